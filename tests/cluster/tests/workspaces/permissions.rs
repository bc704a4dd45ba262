//! What the controller does is what it may do: by the API server's record of everything above.

use std::collections::BTreeSet;

use kaito_cluster_tests::audit;

use crate::{case::Case, suite::SYSTEM};

pub async fn nothing_was_forbidden(case: Case) {
    let requests = audit::requests(&case.plane.folder);
    let account = format!("system:serviceaccount:{SYSTEM}:kaito");
    assert!(requests.iter().any(|request| request.user == account), "nobody asked for anything as {account}");
    let forbidden: BTreeSet<String> = requests
        .iter()
        .filter(|request| request.forbidden_by_rbac)
        .map(|request| format!("{} {} {}/{}", request.verb, request.resource, request.namespace, request.name))
        .collect();
    assert!(forbidden.is_empty(), "forbidden: {forbidden:#?}");
}
