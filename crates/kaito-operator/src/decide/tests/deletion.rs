use std::sync::Arc;

use serde_json::json;

use super::fixtures::{
    carry_out, claims, condition, karpenter, node, now, observed, on_gpus, options, preset, read, settle, with,
};
use crate::{
    decide::{Claims, Decision, ObjectKind, Observed, decide, object::AnyObject},
    workspace::{ConditionType, FINALIZER, Workspace},
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

/// Once the CRD is deleted, a garbage collector that lags behind would not find the owner's kind, and leave the servers.
#[test]
fn what_a_workspace_owns_is_deleted_before_it_goes() {
    for claims in [Claims::Absent, Claims::Present(Vec::new())] {
        for (preset, count, owned) in [
            ("falcon-7b", 1, ["Deployment ws", "Service ws", "NetworkPolicy ws"].as_slice()),
            ("llama-2-13b", 2, &["StatefulSet ws", "Service ws", "Service ws-headless", "NetworkPolicy ws"]),
        ] {
            for options in [options(), karpenter()] {
                let mut workspace = on_gpus(self::preset(preset, count));
                let nodes = ["a", "b"].into_iter().take(count as usize).map(node).collect::<Vec<_>>();
                let mut observed = Observed { claims: claims.clone(), ..observed(nodes) };
                settle(&mut workspace, &mut observed, &options);
                workspace.metadata.finalizers.get_or_insert_default().insert(0, "example.org/keep".to_owned());
                going(&mut workspace);
                let decision = decide(&workspace, &observed, &options, now());
                let deleted: Vec<_> = decision.deletes.iter().map(|(kind, name)| format!("{kind} {name}")).collect();
                assert_eq!(deleted, owned);
                assert_eq!(decision.finalizers, None, "it stays until they are gone");
                let [deed] = decision.deeds.as_slice() else { panic!("{:?}", decision.deeds) };
                assert_eq!(deed.reason.as_str(), "Deleting");

                carry_out(&mut workspace, &mut observed, &decision);
                assert_eq!(
                    decide(&workspace, &observed, &options, now()),
                    Decision { finalizers: Some(vec!["example.org/keep".to_owned()]), ..Decision::default() }
                );
            }
        }
    }
}

#[test]
fn what_others_own_or_delete_does_not_hold_a_workspace() {
    for (path, value) in [
        ("/metadata/ownerReferences/0/uid", json!("66666666-2222-3333-4444-555555555555")),
        ("/metadata/deletionTimestamp", json!("2026-01-01T00:08:00Z")),
    ] {
        let mut workspace = preset("falcon-7b", 1);
        let mut observed = observed([node("a")]);
        settle(&mut workspace, &mut observed, &options());
        observed.services.clear();
        observed.deployment = observed.deployment.map(|it| read(with(it.to_json(), path, value)));
        going(&mut workspace);
        let decision = decide(&workspace, &observed, &options(), now());
        assert_eq!((decision.deletes, decision.finalizers), (Vec::new(), Some(Vec::new())), "{path}");
    }
}

/// Without it nobody would notice that their nodes still cost money.
#[test]
fn claims_from_before_a_switch_to_no_provisioner_are_named() {
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
    let left = "NodeClaim ws0123 is not deleted with the workspace, since the controller runs with --node-provisioner none. Its \
                node costs money until you run kubectl delete nodeclaim ws0123";
    assert_eq!(
        condition(&workspace, ConditionType::ResourceReady).2,
        format!("1 ready node: a; the runtime kaito computes on CPUs; {left}")
    );
    going(&mut workspace);
    let deletes = decide(&workspace, &observed, &options(), now());
    carry_out(&mut workspace, &mut observed, &deletes);
    let decision = decide(&workspace, &observed, &options(), now());
    assert_eq!(decision.finalizers, Some(Vec::new()));
    let [notice] = decision.deeds.as_slice() else { panic!("{:?}", decision.deeds) };
    assert!(notice.is_warning);
    assert_eq!((notice.reason.as_str(), notice.message.as_str()), ("NodeClaimsLeft", left));
}

#[test]
fn a_workspace_without_our_finalizer_is_left_alone() {
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
    let deleted = decision.deletes.iter().filter(|(kind, _)| *kind == ObjectKind::NodeClaim);
    let mut deleted: Vec<_> = deleted.map(|(_, name)| name.clone()).collect();
    deleted.sort();
    assert_eq!((deleted, decision.finalizers.clone()), (names.clone(), None));
    assert_eq!(decision.deeds.len(), 1);

    // Karpenter drains the nodes; meanwhile nothing is deleted twice.
    let Claims::Present(all) = &mut observed.claims else { panic!("absent") };
    for claim in all {
        Arc::make_mut(claim).metadata.deletion_timestamp =
            Some(serde_json::from_value(json!("2026-01-01T00:10:00Z")).unwrap());
    }
    let claims = observed.claims.clone();
    carry_out(&mut workspace, &mut observed, &decision);
    observed.claims = claims;
    let (_, reason, message) = condition(&workspace, ConditionType::WorkspaceReady);
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
    // The claim is still there, as if its deletion were refused.
    let decision = decide(&workspace, &observed, &karpenter(), now());
    let claims = observed.claims.clone();
    carry_out(&mut workspace, &mut observed, &decision);
    observed.claims = claims;
    going(&mut workspace);
    let kinds: Vec<_> =
        decide(&workspace, &observed, &karpenter(), now()).deletes.into_iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(kinds, ["Deployment", "Service", "NodeClaim"]);
}
