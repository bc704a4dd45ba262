//! Objects that a workspace owns, and how they differ from those in the cluster.

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, StatefulSet},
        core::v1::{PodTemplateSpec, Service},
        networking::v1::NetworkPolicy,
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::Resource;
use serde::Serialize;
use serde_json::Value;

use crate::{karpenter::NodeClaim, named::named, text, workspace::Workspace};

/// On every object: a hash of what was last applied, by which the controller notices that a field is no longer wanted.
pub const APPLIED: &str = "kaito.sh/applied";

named! {
    /// Kinds of objects that a workspace owns.
    pub enum ObjectKind {
        /// A service.
        Service,
        /// Who reaches the pods.
        NetworkPolicy,
        /// The workload without ranks.
        Deployment,
        /// The workload with ranks.
        StatefulSet,
        /// Karpenter's request for a node.
        NodeClaim,
    }
}

/// An object that a workspace owns, as it is wanted.
#[derive(Debug, Clone, PartialEq)]
pub enum Object {
    /// A service.
    Service(Service),
    /// Who reaches the pods.
    NetworkPolicy(NetworkPolicy),
    /// The workload without ranks.
    Deployment(Deployment),
    /// The workload with ranks.
    StatefulSet(StatefulSet),
    /// Karpenter's request for a node.
    NodeClaim(NodeClaim),
}

/// What all kinds of objects have.
pub trait AnyObject {
    /// Name, labels, annotations.
    fn metadata(&self) -> &ObjectMeta;

    /// The object with its kind, which not every type's own serialisation has.
    fn to_json(&self) -> Value;
}

impl<K: Resource<DynamicType = ()> + Serialize> AnyObject for K {
    fn metadata(&self) -> &ObjectMeta {
        self.meta()
    }

    fn to_json(&self) -> Value {
        let mut json = serde_json::to_value(self).unwrap_or_default();
        if let Value::Object(fields) = &mut json {
            fields.insert("apiVersion".to_owned(), K::api_version(&()).into());
            fields.insert("kind".to_owned(), K::kind(&()).into());
        }
        // Its hash must not depend on the order of a type's fields.
        json.sort_all_objects();
        json
    }
}

impl Object {
    /// Its kind.
    pub fn kind(&self) -> ObjectKind {
        match self {
            Self::Service(_) => ObjectKind::Service,
            Self::NetworkPolicy(_) => ObjectKind::NetworkPolicy,
            Self::Deployment(_) => ObjectKind::Deployment,
            Self::StatefulSet(_) => ObjectKind::StatefulSet,
            Self::NodeClaim(_) => ObjectKind::NodeClaim,
        }
    }

    fn as_any(&self) -> &dyn AnyObject {
        match self {
            Self::Service(object) => object,
            Self::NetworkPolicy(object) => object,
            Self::Deployment(object) => object,
            Self::StatefulSet(object) => object,
            Self::NodeClaim(object) => object,
        }
    }

    /// Its metadata.
    pub fn metadata(&self) -> &ObjectMeta {
        self.as_any().metadata()
    }

    /// Its metadata, to be changed.
    pub fn metadata_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::Service(object) => &mut object.metadata,
            Self::NetworkPolicy(object) => &mut object.metadata,
            Self::Deployment(object) => &mut object.metadata,
            Self::StatefulSet(object) => &mut object.metadata,
            Self::NodeClaim(object) => &mut object.metadata,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.metadata().name.as_deref().unwrap_or_default()
    }

    /// The whole of it, as it is applied.
    pub fn to_json(&self) -> Value {
        self.as_any().to_json()
    }

    /// The template of its pods, where it is a workload.
    pub fn template(&self) -> Option<&PodTemplateSpec> {
        match self {
            Self::Deployment(object) => object.spec.as_ref().map(|spec| &spec.template),
            Self::StatefulSet(object) => object.spec.as_ref().map(|spec| &spec.template),
            Self::Service(_) | Self::NetworkPolicy(_) | Self::NodeClaim(_) => None,
        }
    }

    /// With other pods, where it is a workload.
    #[must_use]
    pub fn with_template(mut self, template: PodTemplateSpec) -> Self {
        match &mut self {
            Self::Deployment(object) => object.spec.get_or_insert_default().template = template,
            Self::StatefulSet(object) => object.spec.get_or_insert_default().template = template,
            Self::Service(_) | Self::NetworkPolicy(_) | Self::NodeClaim(_) => {}
        }
        self
    }

    /// Names of the image volumes of its pods.
    pub fn image_volumes(&self) -> Vec<&str> {
        let volumes = self.template().and_then(|template| template.spec.as_ref()?.volumes.as_ref());
        let images = volumes.into_iter().flatten().filter(|volume| volume.image.is_some());
        images.map(|volume| volume.name.as_str()).collect()
    }

    /// With the hash of everything else in its annotation [`APPLIED`].
    pub fn sealed(mut self) -> Self {
        let hash = text::digest(&self.to_json().to_string());
        self.metadata_mut().annotations.get_or_insert_default().insert(APPLIED.to_owned(), hash);
        self
    }
}

/// Metadata of an object that a workspace owns.
pub fn metadata(workspace: &Workspace, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: workspace.metadata.namespace.clone(),
        labels: Some(workspace.owned_labels()),
        owner_references: Some(vec![owner(workspace)]),
        ..ObjectMeta::default()
    }
}

fn owner(workspace: &Workspace) -> OwnerReference {
    OwnerReference {
        api_version: Workspace::api_version(&()).into_owned(),
        kind: Workspace::kind(&()).into_owned(),
        name: workspace.name().to_owned(),
        uid: workspace.metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: None,
    }
}

/// What must be done to an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// There is none yet.
    Create,
    /// Something else is wanted than was applied last.
    Update,
    /// Someone else changed these fields.
    Repair(Vec<String>),
}

/// What must be done so that `observed` becomes `wanted`; `None` where it is so already. Fields that `wanted` does not have
/// belong to other field managers.
pub fn change(wanted: &Value, observed: Option<&Value>) -> Option<Change> {
    let Some(observed) = observed else { return Some(Change::Create) };
    let seal = |object: &Value| object.pointer("/metadata/annotations").and_then(|all| all.get(APPLIED)).cloned();
    if seal(wanted) != seal(observed) {
        return Some(Change::Update);
    }
    let mut paths = Vec::new();
    compare(wanted, observed, &mut String::new(), "", &mut paths);
    (!paths.is_empty()).then_some(Change::Repair(paths))
}

/// The field by which the API server tells the items of a list apart when it merges; items of other lists have no identity.
const MERGE_KEYS: &[(&str, &str)] = &[
    ("containers", "name"),
    ("env", "name"),
    ("imagePullSecrets", "name"),
    ("initContainers", "name"),
    ("ownerReferences", "uid"),
    ("ports", "name"),
    ("volumeMounts", "mountPath"),
    ("volumes", "name"),
];

fn compare(wanted: &Value, observed: &Value, path: &mut String, field: &str, paths: &mut Vec<String>) {
    let length = path.len();
    match (wanted, observed) {
        (Value::Object(wanted), Value::Object(observed)) => {
            for (key, value) in wanted {
                path.push_str(if length == 0 { "" } else { "." });
                path.push_str(key);
                match observed.get(key) {
                    Some(actual) => compare(value, actual, path, key, paths),
                    None => paths.push(path.clone()),
                }
                path.truncate(length);
            }
        }
        (Value::Array(wanted), Value::Array(observed)) => {
            let merge_key = MERGE_KEYS.iter().find(|(list, _)| *list == field).map(|(_, key)| *key);
            match merge_key.filter(|key| wanted.iter().all(|item| item.get(*key).is_some())) {
                Some(key) => {
                    for item in wanted {
                        let identity = item.get(key);
                        path.push_str(&format!("[{}]", identity.and_then(Value::as_str).unwrap_or_default()));
                        match observed.iter().find(|actual| actual.get(key) == identity) {
                            Some(actual) => compare(item, actual, path, "", paths),
                            None => paths.push(path.clone()),
                        }
                        path.truncate(length);
                    }
                }
                None if wanted.len() != observed.len() => paths.push(path.clone()),
                None => {
                    for (index, (item, actual)) in wanted.iter().zip(observed).enumerate() {
                        path.push_str(&format!("[{index}]"));
                        compare(item, actual, path, "", paths);
                        path.truncate(length);
                    }
                }
            }
        }
        (wanted, observed) if wanted == observed => {}
        _ => paths.push(path.clone()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn change_of(wanted: Value, observed: Value) -> Option<Change> {
        let sealed = |mut object: Value| {
            object["metadata"] = json!({"annotations": {APPLIED: "1"}});
            object
        };
        change(&sealed(wanted), Some(&sealed(observed)))
    }

    #[test]
    fn fields_of_others_are_theirs() {
        let wanted =
            json!({"spec": {"replicas": 1, "containers": [{"name": "a", "env": [{"name": "X", "value": "1"}]}]}});
        let observed = json!({"spec": {"replicas": 1, "paused": false, "containers": [
            {"name": "sidecar"},
            {"name": "a", "imagePullPolicy": "Always", "env": [{"name": "Y"}, {"name": "X", "value": "1"}]},
        ]}});
        assert_eq!(change_of(wanted, observed), None);
    }

    #[test]
    fn every_changed_field_is_named() {
        let wanted = json!({"spec": {
            "replicas": 1,
            "args": ["a", "b"],
            "tolerations": [{"key": "x"}],
            "containers": [{"name": "a", "image": "i"}, {"name": "b"}],
            "type": "ClusterIP",
        }});
        let observed = json!({"spec": {
            "replicas": 3,
            "args": ["a", "c"],
            "tolerations": [{"key": "x"}, {"key": "y"}],
            "containers": [{"name": "a", "image": "j"}],
        }});
        let Some(Change::Repair(mut paths)) = change_of(wanted, observed) else { panic!("no repair") };
        paths.sort();
        assert_eq!(
            paths,
            [
                "spec.args[1]",
                "spec.containers[a].image",
                "spec.containers[b]",
                "spec.replicas",
                "spec.tolerations",
                "spec.type"
            ]
        );
    }

    #[test]
    fn what_is_wanted_no_longer_is_an_update() {
        let seal = |hash: &str| json!({"metadata": {"annotations": {APPLIED: hash}}, "spec": {}});
        assert_eq!(change(&seal("1"), Some(&seal("2"))), Some(Change::Update));
        assert_eq!(change(&seal("1"), Some(&json!({}))), Some(Change::Update));
        assert_eq!(change(&seal("1"), None), Some(Change::Create));
        assert_eq!(change(&seal("1"), Some(&seal("1"))), None);
    }
}
