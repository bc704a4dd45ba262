use std::sync::Arc;

use serde_json::{Value, json};

use super::fixtures::{
    carry_out, claims, condition, karpenter, node, now, observed, options, preset, ready_pod, settle, time, unready,
    with,
};
use crate::{
    decide::{ClaimFailure, Claims, ObjectKind, Observed, claim_names, decide},
    karpenter::NodeClaim,
    workspace::{ConditionType, Workspace, WorkspaceState},
};

fn with_karpenter(nodes: impl IntoIterator<Item = Value>) -> Observed {
    Observed { claims: Claims::Present(Vec::new()), ..observed(nodes) }
}

fn edit(observed: &mut Observed, place: usize, status: Value) {
    let Claims::Present(claims) = &mut observed.claims else { panic!("absent") };
    let mut claim: NodeClaim = claims[place].as_ref().clone();
    claim.status = Some(serde_json::from_value(status).unwrap());
    claims[place] = Arc::new(claim);
}

fn fulfilled(node: &str) -> Value {
    let condition = |type_| json!({"type": type_, "status": "True", "reason": type_, "message": "", "lastTransitionTime": "2026-01-01T00:05:00Z"});
    let conditions = ["Launched", "Registered", "Initialized", "Ready"].map(condition);
    json!({"nodeName": node, "conditions": conditions})
}

fn launched(status: &str, reason: &str, message: &str) -> Value {
    json!({"conditions": [{
        "type": "Launched", "status": status, "reason": reason, "message": message,
        "lastTransitionTime": "2026-01-01T00:05:00Z",
    }]})
}

fn made_for_us(name: &str) -> Value {
    with(
        with(node(name), "/metadata/labels/kaito.sh~1workspace", json!("ws")),
        "/metadata/labels/kaito.sh~1workspacenamespace",
        json!("team"),
    )
}

#[test]
fn a_claim_is_made_for_each_missing_node_and_no_second_one_for_it() {
    let mut workspace = preset("falcon-7b", 3);
    let mut observed = with_karpenter([node("a")]);
    settle(&mut workspace, &mut observed, &karpenter());
    let names: Vec<_> = claims(&observed).iter().map(|claim| claim.metadata.name.clone().unwrap()).collect();
    assert_eq!(names, claim_names(&workspace)[..2]);
    for name in names {
        assert!(
            name.len() <= 12 && name.starts_with("ws") && name.chars().all(|c| c.is_ascii_alphanumeric()),
            "{name}"
        );
    }
    let (status, reason, message) = condition(&workspace, ConditionType::NodeClaimReady);
    assert_eq!((status, reason), ("False", "NodeClaimsPending"));
    assert!(message.starts_with("0 of 2 claims became ready nodes"), "{message}");
    assert_eq!(condition(&workspace, ConditionType::ResourceReady).1, "NodesMissing");
    assert_eq!(workspace.status.as_ref().unwrap().state, Some(WorkspaceState::Pending));

    // Karpenter fulfils them.
    edit(&mut observed, 0, fulfilled("b"));
    edit(&mut observed, 1, fulfilled("c"));
    observed.nodes.extend(observed_nodes([made_for_us("b"), made_for_us("c")]));
    settle(&mut workspace, &mut observed, &karpenter());
    assert_eq!(claims(&observed).len(), 2);
    assert_eq!(
        condition(&workspace, ConditionType::NodeClaimReady),
        ("True", "NodeClaimsReady", "2 claims became 2 ready nodes")
    );
    assert_eq!(
        condition(&workspace, ConditionType::ResourceReady),
        ("True", "NodesReady", "3 ready nodes: a, b, c; the runtime kaito computes on CPUs")
    );
}

/// Karpenter writes the node before the claim's status. A pending claim beside enough nodes would be deleted as surplus.
#[test]
fn a_claim_whose_status_does_not_name_its_node_yet_is_not_deleted() {
    let mut workspace = preset("falcon-7b", 1);
    let mut observed = with_karpenter([]);
    settle(&mut workspace, &mut observed, &karpenter());
    let mut claim: NodeClaim = claims(&observed)[0].clone();
    claim.metadata.uid = Some("of-the-claim".to_owned());
    observed.claims = Claims::Present(vec![Arc::new(claim)]);
    let owned_by = |uid: &str| {
        let owner = json!([{"apiVersion": "karpenter.sh/v1", "kind": "NodeClaim", "name": "any", "uid": uid}]);
        with(made_for_us("b"), "/metadata/ownerReferences", owner)
    };
    for (owner, deletes) in [("of-the-claim", 0), ("of-another", 1)] {
        observed.nodes = observed_nodes([owned_by(owner)]);
        let decision = decide(&workspace, &observed, &karpenter(), now());
        assert_eq!(decision.deletes.len(), deletes, "{owner}: {:?}", decision.deletes);
    }
}

fn observed_nodes(nodes: impl IntoIterator<Item = Value>) -> Vec<Arc<k8s_openapi::api::core::v1::Node>> {
    observed(nodes).nodes
}

#[test]
fn a_claim_is_never_written_again() {
    let mut workspace = preset("falcon-7b", 1);
    let mut observed = with_karpenter([]);
    settle(&mut workspace, &mut observed, &karpenter());
    let mut other_class = karpenter();
    other_class.provisioner =
        crate::decide::Provisioner::Karpenter("EC2NodeClass.karpenter.k8s.aws/other".parse().unwrap());
    let decision = decide(&workspace, &observed, &other_class, now());
    assert!(decision.is_empty(), "{decision:#?}");
}

#[test]
fn each_failure_of_a_claim_has_its_reason() {
    for (status, said, message, reason, part) in [
        ("Unknown", "LaunchFailed", "creating instance, VcpuLimitExceeded: limit of 0", "QuotaExceeded", "more quota"),
        ("False", "QuotaExceeded", "Quota 'StandardNCSv3' exceeded", "QuotaExceeded", "more quota"),
        (
            "Unknown",
            "LaunchFailed",
            "InsufficientCapacityError: all requested instance types were unavailable",
            "InsufficientCapacity",
            "none of these instances",
        ),
        ("Unknown", "NodeClassNotReady", "NodeClass is not ready", "NodeClassNotReady", "--node-class"),
        ("False", "LaunchFailed", "something else.", "NodeClaimFailed", "kubectl describe nodeclaim"),
    ] {
        let mut workspace = preset("falcon-7b", 1);
        let mut observed = with_karpenter([]);
        settle(&mut workspace, &mut observed, &karpenter());
        edit(&mut observed, 0, launched(status, said, message));
        settle(&mut workspace, &mut observed, &karpenter());
        let (_, actual, text) = condition(&workspace, ConditionType::NodeClaimReady);
        assert_eq!(actual, reason, "{text}");
        assert!(text.contains(message.trim_end_matches('.')) && text.contains(said), "{text}");
        assert!(text.contains(part), "{text}");
        assert_eq!(condition(&workspace, ConditionType::WorkspaceReady).1, reason);
        assert_eq!(workspace.status.unwrap().state, Some(WorkspaceState::NotReady));
    }
}

/// Karpenter sends an event and deletes the claim.
#[test]
fn a_cloud_without_machines_is_named_and_asked_again_after_a_while() {
    let mut workspace = preset("falcon-7b", 1);
    let mut observed = with_karpenter([]);
    settle(&mut workspace, &mut observed, &karpenter());
    let claim = claim_names(&workspace)[0].clone();
    observed.claims = Claims::Present(Vec::new());
    let failure = |at: &str| ClaimFailure {
        reason: "InsufficientCapacityError".to_owned(),
        message: "all requested instance types were unavailable during launch".to_owned(),
        at: time(at),
    };
    observed.claim_failures = [(claim.clone(), failure("2026-01-01T00:09:30Z"))].into();
    let decision = decide(&workspace, &observed, &karpenter(), now());
    assert!(decision.writes.is_empty(), "{:#?}", decision.writes);
    assert_eq!(decision.requeue.map(|after| after.as_secs()), Some(31));
    settle(&mut workspace, &mut observed, &karpenter());
    let told = condition(&workspace, ConditionType::NodeClaimReady);
    assert_eq!(told.1, "InsufficientCapacity");
    assert!(told.2.contains("all requested instance types were unavailable"), "{}", told.2);

    // A minute after the failure the claim is created again; until a node comes, the status has the cause.
    observed.claim_failures = [(claim, failure("2026-01-01T00:08:59Z"))].into();
    settle(&mut workspace, &mut observed, &karpenter());
    assert_eq!(claims(&observed).len(), 1);
    assert_eq!(condition(&workspace, ConditionType::NodeClaimReady).1, "InsufficientCapacity");
    edit(&mut observed, 0, fulfilled("b"));
    observed.nodes = observed_nodes([made_for_us("b")]);
    settle(&mut workspace, &mut observed, &karpenter());
    assert_eq!(condition(&workspace, ConditionType::NodeClaimReady).1, "NodeClaimsReady");
}

#[test]
fn a_claim_before_its_first_attempt_does_not_fail() {
    let mut workspace = preset("falcon-7b", 1);
    let mut observed = with_karpenter([]);
    settle(&mut workspace, &mut observed, &karpenter());
    edit(&mut observed, 0, launched("Unknown", "AwaitingReconciliation", "object is awaiting reconciliation"));
    settle(&mut workspace, &mut observed, &karpenter());
    assert_eq!(condition(&workspace, ConditionType::NodeClaimReady).1, "NodeClaimsPending");
}

#[test]
fn a_claim_that_is_being_deleted_is_replaced_under_another_name() {
    let mut workspace = preset("falcon-7b", 1);
    let mut observed = with_karpenter([]);
    settle(&mut workspace, &mut observed, &karpenter());
    let Claims::Present(all) = &mut observed.claims else { panic!("absent") };
    Arc::make_mut(&mut all[0]).metadata.deletion_timestamp =
        Some(serde_json::from_value(json!("2026-01-01T00:09:00Z")).unwrap());
    settle(&mut workspace, &mut observed, &karpenter());
    let names: Vec<_> = claims(&observed).iter().map(|claim| claim.metadata.name.clone().unwrap()).collect();
    assert_eq!(names, claim_names(&workspace));
}

#[test]
fn a_claim_of_someone_else_by_the_same_name_is_left_alone() {
    let mut workspace = preset("falcon-7b", 1);
    let mut observed = with_karpenter([]);
    let taken = claim_names(&workspace);
    let foreign =
        |name: &String| Arc::new(serde_json::from_value::<NodeClaim>(json!({"metadata": {"name": name}})).unwrap());
    observed.claims = Claims::Present(taken.iter().map(foreign).collect());
    settle(&mut workspace, &mut observed, &karpenter());
    assert_eq!(condition(&workspace, ConditionType::NodeClaimReady).1, "NodeClaimNameTaken");
    assert_eq!(claims(&observed).len(), taken.len());
}

#[test]
fn a_claim_that_is_needed_no_longer_is_deleted_unless_the_model_runs_on_its_node() {
    let mut workspace = preset("falcon-7b", 1);
    let mut observed = with_karpenter([]);
    settle(&mut workspace, &mut observed, &karpenter());
    observed.nodes = observed_nodes([node("a")]);
    let decision = decide(&workspace, &observed, &karpenter(), now());
    assert_eq!(decision.deletes, [(ObjectKind::NodeClaim, claim_names(&workspace)[0].clone())]);
    assert!(decision.deeds.iter().any(|notice| notice.reason.as_str() == "Deleted"), "{:#?}", decision.deeds);

    edit(&mut observed, 0, fulfilled("b"));
    observed.nodes = observed_nodes([node("a"), made_for_us("b")]);
    observed.pods = vec![ready_pod("ws-1", "b")];
    let decision = decide(&workspace, &observed, &karpenter(), now());
    assert!(decision.deletes.is_empty(), "{:?}", decision.deletes);
}

#[test]
fn an_unready_node_that_is_expected_back_is_not_replaced() {
    let mut workspace = preset("falcon-7b", 1);
    let mut observed = with_karpenter([node("a")]);
    settle(&mut workspace, &mut observed, &karpenter());
    observed.nodes = observed_nodes([unready("a", "2026-01-01T00:09:00Z")]);
    let decision = decide(&workspace, &observed, &karpenter(), now());
    assert!(decision.writes.is_empty(), "{:#?}", decision.writes);
    assert_eq!(decision.requeue.map(|after| after.as_secs()), Some(241));
    carry_out(&mut workspace, &mut observed, &decision);
    assert_eq!(workspace.status.as_ref().unwrap().worker_nodes, ["a"]);

    observed.nodes = observed_nodes([unready("a", "2026-01-01T00:04:59Z")]);
    settle(&mut workspace, &mut observed, &karpenter());
    assert_eq!(claims(&observed).len(), 1);
}

#[test]
fn a_cluster_without_karpenter_is_named() {
    let mut workspace = preset("falcon-7b", 1);
    let mut without = observed([]);
    settle(&mut workspace, &mut without, &karpenter());
    let (_, reason, message) = condition(&workspace, ConditionType::NodeClaimReady);
    assert_eq!(reason, "KarpenterMissing");
    assert!(message.contains("install Karpenter"), "{message}");
    // Without a provisioner there is no such condition.
    let mut workspace = preset("falcon-7b", 1);
    settle(&mut workspace, &mut without, &options());
    assert!(workspace.status.unwrap().condition(ConditionType::NodeClaimReady).is_none());
}

#[test]
fn names_of_claims_differ_by_namespace_name_and_place() {
    let mut names = std::collections::BTreeSet::new();
    for namespace in ["a", "b"] {
        for name in ["c", "d"] {
            let mut workspace: Workspace = preset("falcon-7b", 2);
            workspace.metadata.namespace = Some(namespace.to_owned());
            workspace.metadata.name = Some(name.to_owned());
            names.extend(claim_names(&workspace));
        }
    }
    assert_eq!(names.len(), 16);
}

fn tainted(node: Value) -> Value {
    with(node, "/spec", json!({"taints": [{"key": "scalesetpriority", "value": "spot", "effect": "NoSchedule"}]}))
}

#[test]
fn a_node_is_claimed_where_taints_keep_the_pods_off_those_there_are() {
    let mut workspace = preset("falcon-7b", 1);
    let mut observed = with_karpenter([tainted(node("a"))]);
    settle(&mut workspace, &mut observed, &karpenter());
    assert_eq!(claims(&observed).len(), 1);
    let (status, reason, message) = condition(&workspace, ConditionType::ResourceReady);
    assert_eq!((status, reason), ("False", "NodesMissing"));
    assert!(message.contains("a has the taint scalesetpriority=spot:NoSchedule"), "{message}");
}

/// Somebody tainted the node later: its claim is kept, since the node may be needed, but it does not count as a node.
#[test]
fn a_claimed_node_that_is_tainted_is_replaced_until_the_taint_goes() {
    let mut workspace = preset("falcon-7b", 1);
    let mut observed = with_karpenter([]);
    settle(&mut workspace, &mut observed, &karpenter());
    edit(&mut observed, 0, fulfilled("a"));
    observed.nodes = super::fixtures::observed([tainted(made_for_us("a"))]).nodes;
    settle(&mut workspace, &mut observed, &karpenter());
    assert_eq!(claims(&observed).len(), 2, "{:?}", condition(&workspace, ConditionType::ResourceReady));
    observed.nodes = super::fixtures::observed([made_for_us("a")]).nodes;
    settle(&mut workspace, &mut observed, &karpenter());
    assert_eq!(claims(&observed).len(), 1, "one is enough again");
    assert_eq!(condition(&workspace, ConditionType::ResourceReady).0, "True");
}

/// The cluster removes the taint of a node that was not ready a moment after it is; a claim may be ready before.
#[test]
fn a_claimed_node_whose_taint_follows_its_readiness_is_no_reason_for_another_claim() {
    let mut workspace = preset("falcon-7b", 1);
    let mut observed = with_karpenter([]);
    settle(&mut workspace, &mut observed, &karpenter());
    edit(&mut observed, 0, fulfilled("a"));
    let taint = json!({"taints": [{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]});
    observed.nodes = super::fixtures::observed([with(made_for_us("a"), "/spec", taint)]).nodes;
    settle(&mut workspace, &mut observed, &karpenter());
    assert_eq!(claims(&observed).len(), 1, "{:?}", condition(&workspace, ConditionType::ResourceReady));
}

/// A node that starts has taints that the cluster removes later.
#[test]
fn a_claimed_node_that_is_not_ready_as_a_claim_is_waited_for() {
    let mut workspace = preset("falcon-7b", 1);
    let mut observed = with_karpenter([]);
    settle(&mut workspace, &mut observed, &karpenter());
    edit(&mut observed, 0, json!({"nodeName": "a", "conditions": []}));
    observed.nodes = super::fixtures::observed([tainted(made_for_us("a"))]).nodes;
    settle(&mut workspace, &mut observed, &karpenter());
    assert_eq!(claims(&observed).len(), 1);
}
