//! `resource`: the nodes.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use serde::{Deserialize, Serialize};

use super::tolerant;

/// The most nodes that Kubernetes supports in a cluster.
pub const MOST_NODES: i32 = 5000;

/// The nodes that a workspace runs on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceSpec {
    /// How many nodes. Signed, so that admission can refuse a negative number with a message.
    #[serde(default = "one")]
    pub count: i32,
    /// The cloud's instance type; `None` for any node that the selector matches.
    #[serde(default, deserialize_with = "tolerant::empty", skip_serializing_if = "Option::is_none")]
    pub instance_type: Option<String>,
    /// The labels that a node must have.
    pub label_selector: LabelSelector,
    /// Nodes to take first, if they match.
    #[serde(default, deserialize_with = "tolerant::null", skip_serializing_if = "Vec::is_empty")]
    pub preferred_nodes: Vec<String>,
}

fn one() -> i32 {
    1
}

impl Default for ResourceSpec {
    fn default() -> Self {
        Self {
            count: one(),
            instance_type: None,
            label_selector: LabelSelector::default(),
            preferred_nodes: Vec::new(),
        }
    }
}

impl ResourceSpec {
    /// Whether the selector matches these labels, by Kubernetes' rules: every term must.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        let LabelSelector { match_labels, match_expressions } = &self.label_selector;
        match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value))
            && match_expressions.iter().flatten().all(|term| matches(term, labels))
    }
}

fn matches(term: &LabelSelectorRequirement, labels: &BTreeMap<String, String>) -> bool {
    let value = labels.get(&term.key);
    let is_listed = value.is_some_and(|value| term.values.iter().flatten().any(|listed| listed == value));
    match term.operator.as_str() {
        "In" => is_listed,
        "NotIn" => !is_listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        _ => false,
    }
}
