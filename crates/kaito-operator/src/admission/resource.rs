use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::{ANEW, Verdict, immutable, names, quoted, syntax};
use crate::workspace::{LABEL_INSTANCE_TYPE, MOST_NODES, ResourceSpec};

const PREFERRED_NODES: &str = "resource.preferredNodes";

pub fn check(resource: &ResourceSpec, verdict: &mut Verdict) {
    let count = resource.count;
    if count < 1 {
        verdict.refuse("resource.count", format!("is {count}, but a workspace needs at least 1 node"));
    } else if count > MOST_NODES {
        verdict.refuse("resource.count", format!("is {count}, but a cluster has {MOST_NODES} nodes at most"));
    }
    if let Some(name) = resource.instance_type.as_deref()
        && !syntax::is_label_value(name)
    {
        verdict.refuse(
            "resource.instanceType",
            format!(
                "is {name:?}, but it must be the value of the label {LABEL_INSTANCE_TYPE}: {}",
                syntax::A_LABEL_VALUE
            ),
        );
    }
    check_selector(&resource.label_selector, verdict);
    check_contradictions(resource, verdict);
    names::check(&resource.preferred_nodes, PREFERRED_NODES, "a node", verdict);
}

pub fn check_update(old: &ResourceSpec, new: &ResourceSpec, verdict: &mut Verdict) {
    if old.count != new.count {
        verdict.refuse("resource.count", immutable(old.count, new.count));
    }
    if old.instance_type != new.instance_type {
        let (old, new) = (quoted(old.instance_type.as_deref()), quoted(new.instance_type.as_deref()));
        verdict.refuse("resource.instanceType", immutable(old, new));
    }
    if old.label_selector != new.label_selector {
        let message = format!("field is immutable: to move a model to other nodes, {ANEW}");
        verdict.refuse("resource.labelSelector", message);
    }
    if old.preferred_nodes != new.preferred_nodes {
        names::check(&new.preferred_nodes, PREFERRED_NODES, "a node", verdict);
    }
}

fn check_selector(selector: &LabelSelector, verdict: &mut Verdict) {
    let labels = selector.match_labels.as_ref().filter(|labels| !labels.is_empty());
    let expressions = selector.match_expressions.as_deref().unwrap_or_default();
    if labels.is_none() && expressions.is_empty() {
        verdict.warn("resource.labelSelector", "is empty, which selects every node of the cluster");
    }
    for (key, value) in labels.into_iter().flatten() {
        let path = format!("resource.labelSelector.matchLabels[{key}]");
        if !syntax::is_label_key(key) {
            verdict.refuse(&path, format!("{key:?} is not the key of a label: {}", syntax::A_LABEL_KEY));
        }
        if !syntax::is_label_value(value) {
            verdict.refuse(&path, format!("{value:?} is not the value of a label: {}", syntax::A_LABEL_VALUE));
        }
    }
    for (index, expression) in expressions.iter().enumerate() {
        let path = |field: &str| format!("resource.labelSelector.matchExpressions[{index}].{field}");
        if !syntax::is_label_key(&expression.key) {
            let message = format!("{:?} is not the key of a label: {}", expression.key, syntax::A_LABEL_KEY);
            verdict.refuse(path("key"), message);
        }
        if expression.operator != "In" {
            let message = format!("Only allow matchLabels or 'In' matchExpression, not {:?}", expression.operator);
            verdict.refuse(path("operator"), message);
        }
        let values = expression.values.as_deref().unwrap_or_default();
        if values.is_empty() && expression.operator == "In" {
            verdict.refuse(path("values"), "is empty; give the values that the label may have");
        }
        for (number, value) in values.iter().enumerate().filter(|(_, value)| !syntax::is_label_value(value)) {
            let message = format!("{value:?} is not the value of a label: {}", syntax::A_LABEL_VALUE);
            verdict.refuse(path(&format!("values[{number}]")), message);
        }
    }
}

/// Refuses terms that no node can fulfil together.
fn check_contradictions(resource: &ResourceSpec, verdict: &mut Verdict) {
    let selector = &resource.label_selector;
    let labels = selector.match_labels.iter().flatten();
    let expressions = selector.match_expressions.iter().flatten().filter(|one| one.operator == "In");
    let terms: Vec<(&str, BTreeSet<&str>)> =
        labels
            .map(|(key, value)| (key.as_str(), BTreeSet::from([value.as_str()])))
            .chain(expressions.map(|one| {
                (one.key.as_str(), one.values.iter().flatten().map(String::as_str).collect::<BTreeSet<_>>())
            }))
            .filter(|(_, values)| !values.is_empty())
            .collect();
    for (index, (key, values)) in terms.iter().enumerate() {
        let others = terms.iter().take(index).filter(|(other, _)| other == key);
        for (_, other) in others.filter(|(_, other)| other.is_disjoint(values)) {
            verdict.refuse(
                "resource.labelSelector",
                format!("no node can match: the label {key} must be {} and {}", one_of(other), one_of(values)),
            );
        }
        if let (LABEL_INSTANCE_TYPE, Some(asked)) = (*key, resource.instance_type.as_deref())
            && !values.contains(asked)
        {
            verdict.refuse(
                "resource.labelSelector",
                format!(
                    "no node can match: the label {LABEL_INSTANCE_TYPE} must be {}, but resource.instanceType is {asked:?}",
                    one_of(values)
                ),
            );
        }
    }
}

fn one_of(values: &BTreeSet<&str>) -> String {
    let values: Vec<String> = values.iter().map(|value| format!("{value:?}")).collect();
    values.join(" or ")
}
