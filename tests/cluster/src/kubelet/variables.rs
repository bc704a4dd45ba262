//! Environment variables and arguments of a container, as a kubelet computes them.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{EnvVar, Pod};
use kube::ResourceExt;

/// The value of a variable of one of the pod's containers, without references to others expanded.
pub(super) fn value(pod: &Pod, host_ip: &str, pod_ip: &str, variable: &EnvVar) -> String {
    let Some(source) = &variable.value_from else { return variable.value.clone().unwrap_or_default() };
    let spec = pod.spec.as_ref().unwrap();
    let field = source.field_ref.as_ref().map(|field| field.field_path.as_str()).unwrap_or_default();
    // `metadata.labels['KEY']`
    let keyed = |list: &str| field.strip_prefix(list)?.strip_prefix("['")?.strip_suffix("']");
    if let Some(key) = keyed("metadata.labels") {
        return pod.labels().get(key).cloned().unwrap_or_default();
    }
    if let Some(key) = keyed("metadata.annotations") {
        return pod.annotations().get(key).cloned().unwrap_or_default();
    }
    match field {
        "metadata.name" => pod.name_any(),
        "metadata.namespace" => pod.namespace().unwrap(),
        "metadata.uid" => pod.uid().unwrap(),
        "spec.nodeName" => spec.node_name.clone().unwrap(),
        "spec.serviceAccountName" => spec.service_account_name.clone().unwrap(),
        "status.podIP" | "status.podIPs" => pod_ip.to_owned(),
        "status.hostIP" | "status.hostIPs" => host_ip.to_owned(),
        _ => panic!("the simulated kubelet does not know the source of {}: {source:?}", variable.name),
    }
}

/// The text with each `$(NAME)` replaced by that variable's value; what names no variable stays, and `$$` is one `$`.
pub(super) fn expanded(text: &str, variables: &HashMap<String, String>) -> String {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        expanded += before;
        let name = after.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        if let Some(after) = after.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some((name, after)) = name {
            match variables.get(name) {
                Some(value) => expanded += value,
                None => expanded += &format!("$({name})"),
            }
            rest = after;
        } else {
            expanded.push('$');
            rest = after;
        }
    }
    expanded + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of the API's description of `args`, and the scripts of engines.
    #[test]
    fn references_are_expanded_as_the_api_describes_it() {
        let variables = [("POD_INDEX".to_owned(), "1".to_owned()), ("A".to_owned(), "$(POD_INDEX)".to_owned())].into();
        for (text, wanted) in [
            ("--node-rank=$(POD_INDEX)", "--node-rank=1"),
            ("$$(POD_INDEX)", "$(POD_INDEX)"),
            ("$(MISSING) $(POD_INDEX)", "$(MISSING) 1"),
            ("address=$(getent hosts $(A))", "address=$(getent hosts $(A))"),
            ("$(A)", "$(POD_INDEX)"),
            ("${POD_INDEX} $ $(open", "${POD_INDEX} $ $(open"),
            ("", ""),
        ] {
            assert_eq!(expanded(text, &variables), wanted, "{text}");
        }
    }
}
