//! Which taints keep a workspace's pods off a node, by the rules of Kubernetes.

use k8s_openapi::api::core::v1::{Node, Taint, Toleration};

use kaito_presets::GpuVendor;

use super::observed::Observed;

/// Effects that keep pods off a node. `PreferNoSchedule` is only a preference.
const KEEPS_OFF: &[&str] = &["NoSchedule", "NoExecute"];
/// The effect that also evicts running pods.
const ENDS: &str = "NoExecute";

/// What the pods of a workspace tolerate: one list for the pods to be created, and one for each pod that exists. The cluster
/// may add tolerations when it admits a pod, and only existing pods show those.
#[derive(Debug, Clone, PartialEq)]
pub struct Tolerations(Vec<Vec<Toleration>>);

impl Default for Tolerations {
    /// One pod that tolerates nothing.
    fn default() -> Self {
        Self(vec![Vec::new()])
    }
}

impl Tolerations {
    /// Those of pods to be created with `wanted`, and of the pods that exist.
    pub fn of(wanted: &[Toleration], observed: &Observed) -> Self {
        let there = observed.pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        let there = there.filter_map(|pod| pod.spec.as_ref()?.tolerations.clone());
        let mut all = vec![wanted.to_vec()];
        all.extend(there);
        all.dedup();
        Self(all)
    }

    /// The taints that keep every pod off a node; none where at least one may go there. On a node that hosts a pod, only taints
    /// that would evict it count.
    pub fn objections(&self, node: &Node, hosts_pod: bool) -> Vec<Taint> {
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
        let counts = |taint: &Taint| if hosts_pod { taint.effect == ENDS } else { keeps_off(taint) };
        let untolerated = |tolerations: &Vec<Toleration>| -> Vec<Taint> {
            let taints = taints.iter().filter(|taint| counts(taint));
            taints.filter(|taint| !tolerations.iter().any(|it| tolerates(it, taint))).cloned().collect()
        };
        self.0.iter().map(untolerated).min_by_key(Vec::len).unwrap_or_default()
    }
}

/// `sku=gpu:NoSchedule`: the taint of nodes that are claimed for workspaces, so that no other pods go there.
pub fn gpu_taint() -> Taint {
    Taint { key: "sku".to_owned(), value: Some("gpu".to_owned()), effect: "NoSchedule".to_owned(), time_added: None }
}

/// What the pods of every workspace tolerate: any taint for GPUs of the vendor of its nodes, and [`gpu_taint`].
pub fn gpu_tolerations(vendor: GpuVendor) -> [Toleration; 2] {
    let Taint { key, value, effect, .. } = gpu_taint();
    [
        Toleration {
            key: Some(vendor.resource().to_owned()),
            operator: Some("Exists".to_owned()),
            ..Toleration::default()
        },
        Toleration {
            key: Some(key),
            operator: Some("Equal".to_owned()),
            value,
            effect: Some(effect),
            ..Toleration::default()
        },
    ]
}

fn keeps_off(taint: &Taint) -> bool {
    KEEPS_OFF.contains(&taint.effect.as_str())
}

/// By the scheduler's rules: an empty key matches any key, an empty effect any effect, and no operator means `Equal`.
fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let given = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
    let matches = |field: &Option<String>, value: &str| given(field).is_none_or(|field| field == value);
    if !matches(&toleration.effect, &taint.effect) || !matches(&toleration.key, &taint.key) {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default(),
        "Exists" => true,
        _ => false,
    }
}

/// `sku=gpu:NoSchedule`, `maintenance:NoExecute`
pub fn text(taint: &Taint) -> String {
    match taint.value.as_deref().filter(|value| !value.is_empty()) {
        Some(value) => format!("{}={value}:{}", taint.key, taint.effect),
        None => format!("{}:{}", taint.key, taint.effect),
    }
}

/// Whether a taint follows the node's readiness: Kubernetes adds and removes it a moment after the condition changed.
pub fn follows_readiness(taint: &Taint) -> bool {
    matches!(taint.key.as_str(), "node.kubernetes.io/not-ready" | "node.kubernetes.io/unreachable")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn objects<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    /// The table of k8s.io/component-helpers' tests of `ToleratesTaint`, and what is written of it in the documentation
    /// of taints and tolerations.
    #[test]
    fn tolerations_are_those_of_kubernetes() {
        let foo = json!({"key": "foo", "value": "bar", "effect": "NoSchedule"});
        let bare = json!({"key": "foo", "effect": "NoExecute"});
        for (toleration, taint, expected) in [
            (json!({"key": "foo", "operator": "Exists", "effect": "NoSchedule"}), &foo, true),
            (json!({"key": "foo", "operator": "Exists"}), &foo, true),
            (json!({"operator": "Exists"}), &foo, true),
            (json!({"operator": "Exists", "effect": "NoSchedule"}), &foo, true),
            (json!({"operator": "Exists", "effect": "NoExecute"}), &foo, false),
            (json!({"key": "foo", "operator": "Exists", "effect": "NoExecute"}), &foo, false),
            (json!({"key": "other", "operator": "Exists"}), &foo, false),
            (json!({"key": "foo", "operator": "Equal", "value": "bar", "effect": "NoSchedule"}), &foo, true),
            (json!({"key": "foo", "operator": "Equal", "value": "bar"}), &foo, true),
            (json!({"key": "foo", "value": "bar"}), &foo, true),
            (json!({"key": "foo", "operator": "", "value": "bar", "effect": ""}), &foo, true),
            (json!({"key": "foo", "value": "other"}), &foo, false),
            (json!({"key": "foo"}), &foo, false),
            (json!({"key": "Foo", "operator": "Exists"}), &foo, false),
            (json!({"key": "foo"}), &bare, true),
            (json!({"key": "foo", "value": ""}), &bare, true),
            (json!({"key": "foo", "value": "bar"}), &bare, false),
            (json!({"key": "foo", "operator": "Exists", "tolerationSeconds": 60}), &bare, true),
            (json!({"key": "foo", "operator": "NotIn", "value": "bar"}), &foo, false),
        ] {
            assert_eq!(
                tolerates(&objects(toleration.clone()), &objects(taint.clone())),
                expected,
                "{toleration} {taint}"
            );
        }
    }

    #[test]
    fn taints_are_written_as_kubectl_writes_them() {
        for (taint, written) in [
            (json!({"key": "sku", "value": "gpu", "effect": "NoSchedule"}), "sku=gpu:NoSchedule"),
            (json!({"key": "a.b/c", "value": "", "effect": "NoExecute"}), "a.b/c:NoExecute"),
            (json!({"key": "a", "effect": "NoExecute"}), "a:NoExecute"),
        ] {
            assert_eq!(text(&objects(taint)), written);
        }
    }
}
