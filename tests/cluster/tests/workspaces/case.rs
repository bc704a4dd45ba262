//! What a case does: applies manifests, and waits for the results.

use std::{fmt::Debug, ops::Deref, sync::Arc, time::Duration};

use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{Deployment, StatefulSet},
        core::v1::{Namespace, Pod, Service},
        events::v1::Event,
        networking::v1::NetworkPolicy,
    },
};
use kaito_cluster_tests::{
    eventually::{LIMIT, eventually, within},
    kubelet::Node,
    workspace::{self, Condition, condition},
};
use kube::{
    Api, ResourceExt,
    api::{DynamicObject, ListParams, PostParams},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::suite::Suite;

/// A machine with one GPU that all small presets fit on.
pub const ONE_A100: &str = "Standard_NC24ads_A100_v4";
/// The conditions of a workspace without node claims.
pub const CONDITIONS: [&str; 3] = ["ResourceReady", "InferenceReady", "WorkspaceReady"];

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

    /// A workspace on nodes of this case, with the runtime kaito.
    pub fn workspace(&self, name: &str, count: u32, instance_type: &str, inference: Value) -> Value {
        json!({
            "apiVersion": "kaito.sh/v1beta1",
            "kind": "Workspace",
            "metadata": {"name": name, "annotations": {"kaito.sh/runtime": "kaito"}},
            "resource": {
                "count": count,
                "instanceType": instance_type,
                "labelSelector": {"matchLabels": {"apps": self.namespace}},
            },
            "inference": inference,
        })
    }

    /// A workspace that is as simple as can be: a public preset on one node with one GPU.
    pub fn falcon(&self, name: &str) -> Value {
        self.workspace(name, 1, ONE_A100, json!({"preset": {"name": "falcon-7b-instruct"}}))
    }

    /// A node of this case, not yet added.
    pub fn node(&self, number: usize, instance_type: &str, gpus: u32) -> Node {
        Node::new(format!("{}-{number}", self.namespace))
            .instance_type(instance_type)
            .label("apps", &self.namespace)
            .gpus(gpus)
            .for_gpu_work_alone()
    }

    /// Adds the node that [`Self::falcon`] asks for.
    pub async fn add_node(&self) {
        self.kubelet.add(self.node(0, ONE_A100, 1)).await;
        // The node controller takes the first taint away, which an API server that restarts at that moment would keep it from.
        let nodes = Api::<k8s_openapi::api::core::v1::Node>::all(self.plane.client.clone());
        eventually("the node takes pods", || async {
            let node = nodes.get(&format!("{}-0", self.namespace)).await.map_err(|error| error.to_string())?;
            let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
            let is_ready = taints.iter().all(|taint| taint.key != "node.kubernetes.io/not-ready");
            if is_ready { Ok(()) } else { Err(format!("{taints:?}")) }
        })
        .await;
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.plane.client.clone(), &self.namespace)
    }

    pub fn workspaces(&self) -> Api<DynamicObject> {
        workspace::api(&self.plane.client, &self.namespace)
    }

    /// kubectl in this case's namespace.
    pub async fn kubectl(&self, arguments: &[&str]) -> kaito_cluster_tests::control_plane::Printed {
        self.plane.kubectl(&[&["--namespace", &self.namespace], arguments].concat()).await
    }

    /// `kubectl apply`, which must succeed; its output and its warnings.
    pub async fn apply(&self, manifest: impl ToString) -> String {
        let printed = self.try_apply(manifest).await;
        assert!(printed.success, "{}{}", printed.stdout, printed.stderr);
        printed.stdout + &printed.stderr
    }

    /// `kubectl apply`, which may fail.
    pub async fn try_apply(&self, manifest: impl ToString) -> kaito_cluster_tests::control_plane::Printed {
        let arguments = ["apply", "--namespace", &self.namespace, "--filename", "-"];
        self.plane.kubectl_with(&arguments, &manifest.to_string()).await
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

    pub async fn exists<K>(&self, name: &str) -> K
    where
        K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        self.settles(name, |_| Ok(())).await
    }

    pub async fn pods(&self, labels: &str) -> Vec<Pod> {
        self.api::<Pod>().list(&ListParams::default().labels(labels)).await.unwrap().items
    }

    /// The pods of a workspace.
    pub async fn pods_of(&self, workspace: &str) -> Vec<Pod> {
        self.pods(&format!("kaito.sh/workspace={workspace}")).await
    }

    /// Waits until a condition of a workspace has this status and reason, for the present generation; then its message must
    /// contain these words.
    pub async fn says(&self, workspace: &str, kind: &str, status: &str, reason: &str, words: &[&str]) -> Condition {
        let api = &self.workspaces();
        let what = format!("{}/{workspace}: {kind} {status} {reason} {words:?}", self.namespace);
        eventually(&what, || async {
            let object = api.get(workspace).await.map_err(|error| error.to_string())?;
            let found = condition(&object, kind).ok_or("no such condition")?;
            let of_now = found.observed_generation == object.metadata.generation;
            let told = words.iter().all(|words| found.message.contains(words));
            let right = found.status == status && found.reason == reason && of_now && told;
            if right { Ok(found) } else { Err(format!("{found:?} of generation {:?}", object.metadata.generation)) }
        })
        .await
    }

    /// Waits until a workspace serves.
    pub async fn is_ready(&self, workspace: &str) -> DynamicObject {
        self.is_ready_within(LIMIT, workspace).await
    }

    /// [`Self::is_ready`] with a limit of its own.
    pub async fn is_ready_within(&self, limit: Duration, workspace: &str) -> DynamicObject {
        let api = &self.workspaces();
        within(limit, &format!("{}/{workspace} is ready", self.namespace), || async {
            let object = api.get(workspace).await.map_err(|error| error.to_string())?;
            let found = CONDITIONS.map(|kind| condition(&object, kind));
            let right = found.iter().all(|condition| {
                condition.as_ref().is_some_and(|condition| {
                    condition.status == "True" && condition.observed_generation == object.metadata.generation
                })
            });
            if right { Ok(object) } else { Err(format!("{found:#?}")) }
        })
        .await
    }

    /// Events about an object: type, reason and note.
    pub async fn events(&self, kind: &str, name: &str) -> Vec<(String, String, String)> {
        let events = self.api::<Event>().list(&ListParams::default()).await.unwrap().items;
        let about = |event: &Event| {
            let object = event.regarding.clone().unwrap_or_default();
            object.kind.as_deref() == Some(kind) && object.name.as_deref() == Some(name)
        };
        let part = Option::unwrap_or_default;
        events
            .into_iter()
            .filter(about)
            .map(|event| (part(event.type_), part(event.reason), part(event.note)))
            .collect()
    }

    /// Waits for an event about a workspace that has these words.
    pub async fn tells(&self, workspace: &str, kind: &str, reason: &str, words: &[&str]) {
        eventually(&format!("{}/{workspace}: event {kind} {reason} {words:?}", self.namespace), || async {
            let events = self.events("Workspace", workspace).await;
            let told = events.iter().any(|(its_kind, its_reason, note)| {
                its_kind == kind && its_reason == reason && words.iter().all(|words| note.contains(words))
            });
            if told { Ok(()) } else { Err(format!("{events:#?}")) }
        })
        .await;
    }

    /// Names of all objects in the namespace that carry a workspace's label.
    pub async fn owned(&self, workspace: &str) -> Vec<String> {
        let label = format!("kaito.sh/workspace={workspace}");
        let label = ListParams::default().labels(&label);
        let mut names = Vec::new();
        let mut add =
            |kind: &str, found: Vec<String>| names.extend(found.into_iter().map(|name| format!("{kind}/{name}")));
        add("Deployment", list::<Deployment>(&self.api(), &label).await);
        add("StatefulSet", list::<StatefulSet>(&self.api(), &label).await);
        add("Service", list::<Service>(&self.api(), &label).await);
        add("NetworkPolicy", list::<NetworkPolicy>(&self.api(), &label).await);
        add("Pod", list::<Pod>(&self.api(), &label).await);
        names
    }

    /// `kubectl delete` returns when the workspace and all that it owned are deleted; pods may take a little longer.
    pub async fn delete_and_leave_nothing(&self, workspace: &str) {
        self.delete(workspace).await;
        let mut owned = self.owned(workspace).await;
        owned.retain(|object| !object.starts_with("Pod/"));
        assert!(owned.is_empty(), "{}/{workspace} went before {owned:?}", self.namespace);
        self.nothing_is_left(workspace).await;
    }

    /// Deletes a workspace, and waits until it is gone.
    pub async fn delete(&self, workspace: &str) {
        self.kubectl(&["delete", "workspace", workspace, "--timeout=90s"]).await.stdout();
    }

    /// Waits until all that a workspace owned is gone.
    pub async fn nothing_is_left(&self, workspace: &str) {
        eventually(&format!("nothing of {}/{workspace} is left", self.namespace), || async {
            let owned = self.owned(workspace).await;
            if owned.is_empty() { Ok(()) } else { Err(format!("{owned:?}")) }
        })
        .await;
    }
}

async fn list<K: Clone + DeserializeOwned + Debug + kube::Resource>(
    api: &Api<K>,
    parameters: &ListParams,
) -> Vec<String> {
    api.list(parameters).await.unwrap().iter().map(ResourceExt::name_any).collect()
}
