//! The controller has the permissions that it uses, and no others: by the audit log of all cases before this one.

use std::{collections::BTreeSet, sync::atomic::Ordering};

use k8s_openapi::api::rbac::v1::{ClusterRole, Role};
use kaito_cluster_tests::audit;
use kube::{Api, api::ListParams};

use crate::{case::Case, suite::SYSTEM};

/// Permissions that a run may not use: an object is read only where its name is taken and it lacks the workspace's label, and
/// the ConfigMap of instance types is listed again only where its watch breaks.
const RARELY: [&str; 6] = [
    "get /configmaps kaito-instance-types",
    "get /services",
    "get apps/deployments",
    "get apps/statefulsets",
    "get karpenter.sh/nodeclaims",
    "get networking.k8s.io/networkpolicies",
];

pub async fn nothing_was_forbidden(case: Case) {
    let requests = audit::requests(&case.plane.folder).split_off(case.audited_from.load(Ordering::Relaxed));
    let account = format!("system:serviceaccount:{SYSTEM}:kaito");
    assert!(requests.iter().any(|request| request.user == account), "nobody asked for anything as {account}");
    let forbidden: BTreeSet<String> = audit::forbidden(&requests, &audit::starts(&case.plane.folder))
        .into_iter()
        .map(|request| format!("{} {} {}/{}", request.verb, request.resource, request.namespace, request.name))
        .collect();
    assert!(forbidden.is_empty(), "forbidden: {forbidden:#?}");
}

pub async fn nothing_is_granted_in_vain(case: Case) {
    let requests = audit::requests(&case.plane.folder);
    let used: BTreeSet<String> = requests.iter().flat_map(audit::Request::needs).collect();
    let client = case.plane.client.clone();
    let ours = ListParams::default().labels("app.kubernetes.io/name=kaito");
    let mut granted = BTreeSet::new();
    for role in Api::<ClusterRole>::all(client.clone()).list(&ours).await.unwrap() {
        granted.extend(audit::permissions(&serde_json::to_value(role).unwrap()));
    }
    for role in Api::<Role>::namespaced(client, SYSTEM).list(&ours).await.unwrap() {
        granted.extend(audit::permissions(&serde_json::to_value(role).unwrap()));
    }
    let in_vain: Vec<_> =
        granted.difference(&used).filter(|permission| !RARELY.contains(&permission.as_str())).collect();
    assert!(in_vain.is_empty(), "granted and never used: {in_vain:#?}");
}
