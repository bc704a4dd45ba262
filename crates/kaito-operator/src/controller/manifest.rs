//! Workspaces as the API server sends them. One that cannot be read must not hide the others of a list.

use std::{borrow::Cow, collections::HashMap};

use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::ObjectMeta, jiff::Timestamp};
use kube::{Client, Resource, runtime::watcher::Event};
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::Value;

use super::{carry_out, metrics::Metrics};
use crate::{
    decide,
    workspace::{
        Workspace,
        strict::{self, ReadError},
    },
};

/// A workspace, or the metadata of one that cannot be read.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// Only with its metadata where it cannot be read.
    workspace: Workspace,
    error: Option<ReadError>,
}

impl Manifest {
    /// The workspace, if it could be read.
    pub fn read(self) -> Option<Workspace> {
        self.error.is_none().then_some(self.workspace)
    }
}

impl<'de> Deserialize<'de> for Manifest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        match strict::read(&value) {
            Ok(read) => Ok(Self { workspace: read.object, error: None }),
            Err(error) => {
                let metadata = ObjectMeta::deserialize(&value["metadata"]).map_err(D::Error::custom)?;
                Ok(Self { workspace: Workspace { metadata, ..Workspace::default() }, error: Some(error) })
            }
        }
    }
}

impl Resource for Manifest {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        Workspace::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        Workspace::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        Workspace::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        Workspace::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.workspace.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.workspace.metadata
    }
}

/// Reports workspaces that cannot be read, in their status and as an event, once a generation.
pub struct Unreadable {
    client: Client,
    identity: String,
    metrics: Metrics,
    /// Generations by uid.
    told: HashMap<String, i64>,
}

impl Unreadable {
    pub fn new(client: Client, identity: &str, metrics: Metrics) -> Self {
        Self { client, identity: identity.to_owned(), metrics, told: HashMap::new() }
    }

    /// The event for the cache of workspaces that can be read; `None` where it does not concern them.
    pub async fn sort_out(&mut self, event: Event<Manifest>) -> Option<Event<Workspace>> {
        Some(match event {
            // A workspace that can no longer be read leaves the cache.
            Event::Apply(manifest) => match self.of(manifest).await {
                Ok(workspace) => Event::Apply(workspace),
                Err(unreadable) => Event::Delete(unreadable),
            },
            Event::InitApply(manifest) => Event::InitApply(self.of(manifest).await.ok()?),
            Event::Delete(manifest) => {
                self.told.remove(manifest.workspace.metadata.uid.as_deref().unwrap_or_default());
                Event::Delete(manifest.workspace)
            }
            Event::Init => Event::Init,
            Event::InitDone => Event::InitDone,
        })
    }

    /// The workspace; `Err` where it cannot be read, and its author must correct it.
    async fn of(&mut self, manifest: Manifest) -> Result<Workspace, Workspace> {
        let Manifest { workspace, error } = manifest;
        match error {
            None => Ok(workspace),
            // To delete it, its metadata is enough.
            Some(_) if workspace.metadata.deletion_timestamp.is_some() => Ok(workspace),
            Some(error) => {
                self.tell(&workspace, &error).await;
                Err(workspace)
            }
        }
    }

    async fn tell(&mut self, workspace: &Workspace, error: &ReadError) {
        let uid = workspace.metadata.uid.clone().unwrap_or_default();
        let generation = workspace.metadata.generation.unwrap_or_default();
        if self.told.get(&uid) == Some(&generation) {
            return;
        }
        let (namespace, name) = (workspace.namespace(), workspace.name());
        tracing::warn!(namespace, workspace = name, %error, "a workspace cannot be read and is left as it is");
        let (status, notice) = decide::unreadable(&workspace.metadata, error, Timestamp::now());
        self.metrics.wrote("Workspace", "apply status");
        match carry_out::apply_status(&self.client, workspace, &status).await {
            Ok(_) => {
                self.told.insert(uid, generation);
                carry_out::tell(&self.client, &self.identity, &self.metrics, workspace, [&notice]).await;
            }
            Err(error) => tracing::warn!(namespace, workspace = name, %error, "cannot write its status"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::workspace::ConditionType;

    fn manifest(ports: Value) -> Manifest {
        serde_json::from_value(json!({
            "apiVersion": "kaito.sh/v1beta1",
            "kind": "Workspace",
            "metadata": {"name": "own", "namespace": "team", "uid": "u", "generation": 3},
            "resource": {"labelSelector": {"matchLabels": {"apps": "own"}}},
            "inference": {"template": {"spec": {"containers": [{"name": "a", "image": "a/b:1", "ports": ports}]}}},
        }))
        .unwrap()
    }

    #[test]
    fn what_cannot_be_read_keeps_its_metadata_and_the_path_of_what_is_wrong() {
        let good = manifest(json!([{"containerPort": 5000}])).read().unwrap();
        assert_eq!(good.name(), "own");
        let bad = manifest(json!(5000));
        assert_eq!((bad.meta().name.as_deref(), bad.meta().generation), (Some("own"), Some(3)));
        let error = bad.error.clone().unwrap();
        assert!(error.path.starts_with("inference.template.spec"), "{error}");
        let (status, notice) = decide::unreadable(bad.meta(), &error, Timestamp::UNIX_EPOCH);
        let condition = status.condition(ConditionType::WorkspaceReady).unwrap();
        assert_eq!((condition.reason.as_str(), condition.observed_generation), ("ManifestUnreadable", Some(3)));
        assert!(condition.message.contains("inference.template.spec") && condition.message.contains("5000"));
        assert_eq!(notice.message, condition.message);
        assert!(bad.read().is_none());
    }

    #[test]
    fn what_has_no_metadata_is_no_object() {
        assert!(serde_json::from_value::<Manifest>(json!({"metadata": 1})).is_err());
    }
}
