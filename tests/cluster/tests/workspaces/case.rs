//! What a case does: apply manifests, and wait for what comes of them.

use std::{fmt::Debug, ops::Deref, sync::Arc};

use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{Namespace, Pod},
};
use kaito_cluster_tests::eventually::eventually;
use kube::{
    Api,
    api::{ListParams, PostParams},
};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::suite::Suite;

/// A namespace of the suite's cluster.
pub struct Case {
    pub suite: Arc<Suite>,
    pub namespace: String,
}

impl Deref for Case {
    type Target = Suite;

    fn deref(&self) -> &Suite {
        &self.suite
    }
}

impl Case {
    pub async fn new(suite: Arc<Suite>, namespace: String) -> Self {
        let namespaces = Api::<Namespace>::all(suite.plane.client.clone());
        let object = serde_json::from_value(json!({"metadata": {"name": namespace}})).unwrap();
        namespaces.create(&PostParams::default(), &object).await.unwrap();
        Self { suite, namespace }
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.plane.client.clone(), &self.namespace)
    }

    /// `kubectl apply`, which must succeed; its output and its warnings.
    pub async fn apply(&self, manifest: &str) -> String {
        let printed =
            self.plane.kubectl_with(&["apply", "--namespace", &self.namespace, "--filename", "-"], manifest).await;
        assert!(printed.success, "{}{}", printed.stdout, printed.stderr);
        printed.stdout + &printed.stderr
    }

    /// The object once it is as `right` says; `right` answers with what is wrong about it.
    pub async fn settles<K>(&self, name: &str, right: impl Fn(&K) -> Result<(), String>) -> K
    where
        K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let api = &self.api::<K>();
        eventually(&format!("{} {}/{name}", K::kind(&()), self.namespace), || async {
            let object = api.get(name).await.map_err(|error| error.to_string())?;
            right(&object).map(|()| object)
        })
        .await
    }

    pub async fn pods(&self, labels: &str) -> Vec<Pod> {
        self.api::<Pod>().list(&ListParams::default().labels(labels)).await.unwrap().items
    }
}
