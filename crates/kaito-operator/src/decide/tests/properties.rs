//! For any cluster: a decision that was carried out is not repeated, and objects of others are left alone.

use std::sync::Arc;

use proptest::{prelude::*, sample::select};
use serde_json::{Value, json};

use super::fixtures::{
    OTHER_TYPE, TYPE, all_ready, carry_out, karpenter, node, now, observed, options, pod, preset, ready_pod, unready,
    with, workspace,
};
use crate::{
    decide::{Claims, ObjectKind, Observed, PodFailure, Refusal, Taken, claim_names, decide},
    karpenter::NodeClaim,
    reason::Reason,
    workspace::{FINALIZER, Workspace},
};

fn any_node(name: String) -> impl Strategy<Value = Value> {
    let labels = select(vec![
        json!({"apps": "llm", "node.kubernetes.io/instance-type": TYPE}),
        json!({"apps": "llm", "node.kubernetes.io/instance-type": OTHER_TYPE}),
        json!({"apps": "llm"}),
        json!({"apps": "llm", "kaito.sh/workspace": "ws", "kaito.sh/workspacenamespace": "team"}),
        json!({"apps": "llm", "kaito.sh/workspace": "other", "kaito.sh/workspacenamespace": "team"}),
        json!({}),
    ]);
    let since = select(vec![None, Some("2026-01-01T00:09:00Z"), Some("2026-01-01T00:01:00Z")]);
    let taints = select(vec![
        json!([]),
        json!([{"key": "sku", "value": "gpu", "effect": "NoSchedule"}]),
        json!([{"key": "spot", "effect": "NoSchedule"}]),
        json!([{"key": "maintenance", "effect": "NoExecute"}, {"key": "spot", "effect": "PreferNoSchedule"}]),
    ]);
    (labels, since, 0..9_u32, any::<bool>(), taints).prop_map(move |(labels, since, gpus, cordoned, taints)| {
        let node = since.map_or_else(|| node(&name), |since| unready(&name, since));
        let node = with(node, "/metadata/labels", labels);
        let node = with(node, "/spec", json!({"unschedulable": cordoned, "taints": taints}));
        with(node, "/status/allocatable", json!({"nvidia.com/gpu": gpus.to_string()}))
    })
}

fn any_workspace() -> impl Strategy<Value = Workspace> {
    let preset_name =
        select(vec!["falcon-7b", "falcon-40b", "llama-2-7b", "llama-2-13b", "llama-2-70b", "no-such-preset"]);
    let runtime = select(vec![None, Some("auto"), Some("kaito"), Some("vllm"), Some("nonsense")]);
    let instance = select(vec![None, Some(TYPE), Some(OTHER_TYPE), Some("unknown")]);
    let used = proptest::collection::vec(select(vec!["n0", "n1", "n9"]), 0..3);
    (preset_name, 1..4_i32, runtime, instance, used, any::<bool>(), any::<bool>()).prop_map(
        |(name, count, runtime, instance, used, is_bare, is_going)| {
            let mut workspace = if is_bare {
                workspace("resource: {labelSelector: {matchLabels: {apps: llm}}}")
            } else {
                preset(name, count)
            };
            workspace.resource.count = count;
            workspace.resource.instance_type = instance.map(str::to_owned);
            workspace.resource.preferred_nodes = vec!["n1".to_owned(), "n7".to_owned()];
            workspace.metadata.annotations =
                runtime.map(|runtime| [("kaito.sh/runtime".to_owned(), runtime.to_owned())].into());
            workspace.status.get_or_insert_default().worker_nodes = used.into_iter().map(str::to_owned).collect();
            workspace.metadata.finalizers = Some(vec!["example.org/keep".to_owned()]);
            if is_going {
                workspace.metadata.finalizers.get_or_insert_default().push(FINALIZER.to_owned());
                workspace.metadata.deletion_timestamp =
                    Some(serde_json::from_value(json!("2026-01-01T00:09:00Z")).unwrap());
            }
            workspace
        },
    )
}

fn any_claims() -> impl Strategy<Value = Vec<Value>> {
    let status = select(vec![
        json!(null),
        json!({"nodeName": "n0", "conditions": [{"type": "Ready", "status": "True", "reason": "Ready", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}),
        json!({"conditions": [{"type": "Launched", "status": "Unknown", "reason": "LaunchFailed", "message": "no", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}),
    ]);
    let claim = (0..6_usize, status, any::<bool>(), any::<bool>()).prop_map(|(slot, status, is_ours, is_going)| {
        let names = claim_names(&preset("falcon-7b", 3));
        let labels = if is_ours {
            json!({"kaito.sh/workspace": "ws", "kaito.sh/workspacenamespace": "team"})
        } else {
            json!({"kaito.sh/workspace": "ws", "kaito.sh/workspacenamespace": "elsewhere"})
        };
        let deleted = if is_going { json!("2026-01-01T00:09:00Z") } else { json!(null) };
        json!({"metadata": {"name": names[slot], "labels": labels, "deletionTimestamp": deleted}, "status": status})
    });
    proptest::collection::vec(claim, 0..5).prop_map(|mut claims: Vec<Value>| {
        claims.sort_by_key(|claim| claim["metadata"]["name"].to_string());
        claims.dedup_by_key(|claim| claim["metadata"]["name"].to_string());
        claims
    })
}

fn any_pods() -> impl Strategy<Value = Vec<Arc<k8s_openapi::api::core::v1::Pod>>> {
    let pod = select(vec![0, 1, 2, 3]).prop_map(|kind| match kind {
        0 => ready_pod("ws-0", "n0"),
        1 => pod("ws-1", Some("n1"), json!({"phase": "Pending"})),
        2 => pod("ws-2", None, json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no"}]})),
        _ => pod("ws-3", Some("n2"), json!({"phase": "Failed", "reason": "Evicted"})),
    });
    proptest::collection::vec(pod, 0..4)
}

fn any_cluster() -> impl Strategy<Value = Observed> {
    let nodes =
        (any_node("n0".to_owned()), any_node("n1".to_owned()), any_node("n2".to_owned()), any_node("n3".to_owned()));
    (nodes, any_claims(), any_pods(), any::<[bool; 4]>(), 0..5_u32).prop_map(
        |(nodes, claims, pods, [no_kind, failure, refusal, _], taken)| {
            let mut observed = observed([nodes.0, nodes.1, nodes.2, nodes.3]);
            if !no_kind {
                observed.claims = Claims::Present(
                    claims
                        .into_iter()
                        .map(|claim| Arc::new(serde_json::from_value::<NodeClaim>(claim).unwrap()))
                        .collect(),
                );
            }
            observed.pods = pods;
            observed.taken =
                [("n3".to_owned(), vec![Taken { workspace: "team/other".to_owned(), gpus: taken }])].into();
            if failure {
                observed.pod_failures = vec![PodFailure { message: "exceeded quota".to_owned() }];
            }
            if refusal {
                observed.refusals = vec![Refusal {
                    kind: ObjectKind::Service,
                    name: "ws".to_owned(),
                    reason: Reason::ApplyRefused,
                    message: "no".to_owned(),
                }];
            }
            observed
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_has_been_done_is_not_done_again(
        mut workspace in any_workspace(),
        mut observed in any_cluster(),
        uses_karpenter in any::<bool>(),
        answers in any::<bool>(),
    ) {
        let options = if uses_karpenter { karpenter() } else { options() };
        for round in 0.. {
            let decision = decide(&workspace, &observed, &options, now());
            if decision.is_empty() {
                prop_assert!(decision.notices.is_empty() && decision.deeds.is_empty(), "{decision:#?}");
                break;
            }
            // At most four rounds: nodes, claims, services and workload, status may each follow from the one before.
            prop_assert!(round < 4, "{decision:#?}");
            carry_out(&mut workspace, &mut observed, &decision);
            if answers {
                all_ready(&mut observed, workspace.resource.count);
            }
            prop_assert!(decision.deletes.iter().all(|(kind, _)| *kind == ObjectKind::NodeClaim || workspace.metadata.deletion_timestamp.is_some()));
        }
    }

    #[test]
    fn what_belongs_to_others_is_left_alone(
        mut workspace in any_workspace(),
        mut observed in any_cluster(),
        uses_karpenter in any::<bool>(),
    ) {
        let options = if uses_karpenter { karpenter() } else { options() };
        let foreign = |observed: &Observed| -> Vec<NodeClaim> {
            let all = observed.claims.all().iter().filter(|claim| {
                claim.metadata.labels.as_ref().and_then(|labels| labels.get("kaito.sh/workspacenamespace")).map(String::as_str) != Some("team")
            });
            all.map(|claim| claim.as_ref().clone()).collect()
        };
        let before = foreign(&observed);
        for _ in 0..4 {
            let decision = decide(&workspace, &observed, &options, now());
            carry_out(&mut workspace, &mut observed, &decision);
        }
        prop_assert_eq!(foreign(&observed), before);
        let finalizers = workspace.metadata.finalizers.clone().unwrap();
        prop_assert!(finalizers.contains(&"example.org/keep".to_owned()));
        let count = usize::try_from(workspace.resource.count).unwrap();
        prop_assert!(workspace.status.is_none_or(|status| status.worker_nodes.len() <= count + 4));
    }

    /// Neither more nodes than asked for, nor any that the rules forbid.
    #[test]
    fn chosen_nodes_obey_the_rules(workspace in any_workspace(), observed in any_cluster(), gpus in 0..5_u32) {
        let choice = crate::decide::choose(&workspace, &observed, &super::fixtures::gpus(gpus), now());
        prop_assert!(choice.chosen.len() <= usize::try_from(workspace.resource.count).unwrap());
        for node in &choice.chosen {
            let labels = node.metadata.labels.clone().unwrap_or_default();
            prop_assert!(workspace.resource.selects(&labels));
            let is_turned_down = choice.turned_down.iter().any(|(name, _)| Some(name) == node.metadata.name.as_ref());
            prop_assert!(!is_turned_down);
        }
        prop_assert_eq!(
            choice.chosen.len() + choice.unmatched
                + choice.turned_down.iter().filter(|(name, _)| name != "n7").count(),
            observed.nodes.len()
        );
    }
}
