use std::sync::Arc;

use serde_json::json;

use super::fixtures::{carry_out, claims, condition, karpenter, node, now, observed, options, preset, settle, with};
use crate::{
    decide::{Claims, Decision, Observed, decide},
    workspace::{FINALIZER, RESOURCE_READY, WORKSPACE_READY, Workspace},
};

fn going(workspace: &mut Workspace) {
    workspace.metadata.deletion_timestamp = Some(serde_json::from_value(json!("2026-01-01T00:09:00Z")).unwrap());
}

#[test]
fn the_finalizer_is_added_beside_those_of_others() {
    let mut workspace = preset("falcon-7b", 1);
    workspace.metadata.finalizers = Some(vec!["example.org/keep".to_owned()]);
    let decision = decide(&workspace, &observed([]), &options(), now());
    assert_eq!(decision.finalizers, Some(vec!["example.org/keep".to_owned(), FINALIZER.to_owned()]));
}

#[test]
fn without_claims_a_workspace_goes_at_once_and_keeps_the_finalizers_of_others() {
    for claims in [Claims::Absent, Claims::Present(Vec::new())] {
        for options in [options(), karpenter()] {
            let mut workspace = preset("falcon-7b", 1);
            let mut observed = Observed { claims: claims.clone(), ..observed([node("a")]) };
            settle(&mut workspace, &mut observed, &options);
            workspace.metadata.finalizers.get_or_insert_default().insert(0, "example.org/keep".to_owned());
            going(&mut workspace);
            let decision = decide(&workspace, &observed, &options, now());
            assert_eq!(
                decision,
                Decision { finalizers: Some(vec!["example.org/keep".to_owned()]), ..Decision::default() }
            );
        }
    }
}

/// Nobody would have told that they went on costing.
#[test]
fn claims_from_before_a_switch_to_no_provisioner_are_told_of() {
    let labelled = with(
        with(node("a"), "/metadata/labels/kaito.sh~1workspace", json!("ws")),
        "/metadata/labels/kaito.sh~1workspacenamespace",
        json!("team"),
    );
    let owner = json!([{"apiVersion": "karpenter.sh/v1", "kind": "NodeClaim", "name": "ws0123", "uid": "1"}]);
    let claimed = with(labelled, "/metadata/ownerReferences", owner);
    let mut workspace = preset("falcon-7b", 1);
    let mut observed = observed([claimed]);
    settle(&mut workspace, &mut observed, &options());
    let left = "NodeClaim ws0123 outlives the workspace, since the controller runs with --node-provisioner none: kubectl delete \
                nodeclaim ws0123 gives back what it costs";
    assert_eq!(condition(&workspace, RESOURCE_READY).2, format!("1 ready node: a; {left}"));
    going(&mut workspace);
    let decision = decide(&workspace, &observed, &options(), now());
    assert_eq!(decision.finalizers, Some(Vec::new()));
    let [notice] = decision.deeds.as_slice() else { panic!("{:?}", decision.deeds) };
    assert!(notice.is_warning);
    assert_eq!((notice.reason.as_str(), notice.message.as_str()), ("NodeClaimsLeft", left));
}

#[test]
fn a_workspace_without_our_finalizer_is_none_of_our_business() {
    let mut workspace = preset("falcon-7b", 1);
    workspace.metadata.finalizers = Some(vec!["example.org/keep".to_owned()]);
    going(&mut workspace);
    assert_eq!(decide(&workspace, &observed([node("a")]), &options(), now()), Decision::default());
}

#[test]
fn claims_are_deleted_and_waited_for() {
    let mut workspace = preset("falcon-7b", 2);
    let mut observed = Observed { claims: Claims::Present(Vec::new()), ..observed([]) };
    settle(&mut workspace, &mut observed, &karpenter());
    going(&mut workspace);
    let decision = decide(&workspace, &observed, &karpenter(), now());
    let mut names: Vec<_> = claims(&observed).iter().map(|claim| claim.metadata.name.clone().unwrap()).collect();
    names.sort();
    let mut deleted: Vec<_> = decision.deletes.iter().map(|(_, name)| name.clone()).collect();
    deleted.sort();
    assert_eq!((deleted, decision.finalizers.clone()), (names.clone(), None));
    assert_eq!(decision.deeds.len(), 1);

    // Karpenter drains the nodes; meanwhile nothing is done twice.
    let Claims::Present(all) = &mut observed.claims else { panic!("absent") };
    for claim in all {
        Arc::make_mut(claim).metadata.deletion_timestamp =
            Some(serde_json::from_value(json!("2026-01-01T00:10:00Z")).unwrap());
    }
    carry_out(&mut workspace, &mut observed.clone(), &decision);
    let (_, reason, message) = condition(&workspace, WORKSPACE_READY);
    assert_eq!(
        (reason, message),
        ("Deleting", format!("waits until NodeClaims are gone: {}, {}", names[0], names[1]).as_str())
    );
    assert!(decide(&workspace, &observed, &karpenter(), now()).is_empty());

    observed.claims = Claims::Present(Vec::new());
    assert_eq!(decide(&workspace, &observed, &karpenter(), now()).finalizers, Some(Vec::new()));
}

#[test]
fn a_workload_goes_before_its_nodes() {
    let mut workspace = preset("falcon-7b", 1);
    let mut observed = Observed { claims: Claims::Present(Vec::new()), ..observed([]) };
    settle(&mut workspace, &mut observed, &karpenter());
    observed.nodes = super::fixtures::observed([node("a")]).nodes;
    // The claim is kept while its deletion is refused, say.
    let decision = decide(&workspace, &observed, &karpenter(), now());
    let claims = observed.claims.clone();
    carry_out(&mut workspace, &mut observed, &decision);
    observed.claims = claims;
    going(&mut workspace);
    let kinds: Vec<_> =
        decide(&workspace, &observed, &karpenter(), now()).deletes.into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["Deployment", "NodeClaim"]);
}
