use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::fixtures::{
    condition, gpus, names, node, now, observed, options, pod, preset, read, ready_pod, settle, unready, with,
    workspace,
};
use crate::{
    decide::{Observed, Taken, TurnedDown, choose},
    workspace::ConditionType,
};

const TYPE_LABEL: &str = "/metadata/labels/node.kubernetes.io~1instance-type";

fn why(observed: &Observed, needed: u32) -> TurnedDown {
    let workspace = preset("falcon-7b", 1);
    let choice = choose(&workspace, observed, &gpus(needed), now());
    assert!(choice.chosen.is_empty(), "{choice:?}");
    choice.turned_down.first().unwrap_or_else(|| panic!("{choice:?}")).1.clone()
}

#[test]
fn every_rule_turns_down_a_node_and_says_so() {
    let cases: [(&str, Value, &str); 9] = [
        ("going", with(node("a"), "/metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z")), "is being deleted"),
        (
            "unready",
            unready("a", "2026-01-01T00:01:00Z"),
            "is not ready (NodeStatusUnknown since 2026-01-01T00:01:00Z)",
        ),
        ("new", with(node("a"), "/status/conditions", json!([])), "is not ready (it has no condition Ready yet)"),
        ("cordoned", with(node("a"), "/spec", json!({"unschedulable": true})), "is cordoned"),
        ("other type", with(node("a"), TYPE_LABEL, json!("Standard_NC6s_v3")), "is a Standard_NC6s_v3"),
        (
            "no plugin",
            with(node("a"), "/status/allocatable", json!({})),
            "offers no nvidia.com/gpu and a pod needs 2; does its device plugin run?",
        ),
        (
            "too few",
            with(node("a"), "/status/allocatable", json!({"nvidia.com/gpu": "1"})),
            "offers 1 nvidia.com/gpu and a pod needs 2",
        ),
        (
            "of another workspace",
            with(
                with(node("a"), "/metadata/labels/kaito.sh~1workspace", json!("other")),
                "/metadata/labels/kaito.sh~1workspacenamespace",
                json!("team"),
            ),
            "was made for workspace team/other",
        ),
        (
            "of a workspace of the same name in another namespace",
            with(
                with(node("a"), "/metadata/labels/kaito.sh~1workspace", json!("ws")),
                "/metadata/labels/kaito.sh~1workspacenamespace",
                json!("elsewhere"),
            ),
            "was made for workspace elsewhere/ws",
        ),
    ];
    for (case, node, message) in cases {
        assert_eq!(why(&observed([node]), 2).to_string(), message, "{case}");
    }
}

#[test]
fn gpus_of_other_workspaces_are_not_free() {
    let mut observed = observed([node("a")]);
    observed.taken = BTreeMap::from([("a".to_owned(), vec![Taken { workspace: "team/b".to_owned(), gpus: 3 }])]);
    assert_eq!(why(&observed, 2).to_string(), "has too few free GPUs: of 4, 3 by team/b are used, and a pod needs 2");
    let workspace = preset("falcon-7b", 1);
    assert_eq!(names(&choose(&workspace, &observed, &gpus(1), now()).chosen), ["a"]);
}

#[test]
fn labels_decide_who_is_a_candidate() {
    let workspace = preset("falcon-7b", 1);
    let observed = observed([with(node("a"), "/metadata/labels", json!({"apps": "web"})), node("b"), node("c")]);
    let choice = choose(&workspace, &observed, &gpus(0), now());
    assert_eq!(names(&choice.chosen), ["b"]);
    assert_eq!(choice.unmatched, 1);
    assert_eq!(choice.turned_down, [("c".to_owned(), TurnedDown::NotNeeded)]);
}

#[test]
fn a_node_without_the_label_of_its_type_may_be_of_any() {
    let workspace = preset("falcon-7b", 1);
    let observed = observed([with(node("a"), "/metadata/labels", json!({"apps": "llm"}))]);
    assert_eq!(names(&choose(&workspace, &observed, &gpus(1), now()).chosen), ["a"]);
}

#[test]
fn the_order_is_in_use_preferred_used_before_made_for_us_name() {
    let made_for_us = with(
        with(node("d"), "/metadata/labels/kaito.sh~1workspace", json!("ws")),
        "/metadata/labels/kaito.sh~1workspacenamespace",
        json!("team"),
    );
    let nodes = || [node("a"), node("b"), node("c"), made_for_us.clone(), node("e"), node("f"), node("g")];
    let mut workspace = preset("falcon-7b", 7);
    let order = |workspace: &_, observed: &_| names(&choose(workspace, observed, &gpus(1), now()).chosen).concat();

    assert_eq!(order(&workspace, &observed(nodes())), "dabcefg");
    workspace.status.get_or_insert_default().worker_nodes = vec!["e".to_owned()];
    assert_eq!(order(&workspace, &observed(nodes())), "edabcfg");
    workspace.resource.preferred_nodes = vec!["g".to_owned(), "c".to_owned()];
    assert_eq!(order(&workspace, &observed(nodes())), "gcedabf");
    let mut running = observed(nodes());
    running.pods = vec![ready_pod("ws-0", "f")];
    assert_eq!(order(&workspace, &running), "fgcedab");
    running.pods = vec![pod("ws-0", Some("f"), json!({"phase": "Failed"}))];
    assert_eq!(order(&workspace, &running), "gcedabf");
}

#[test]
fn a_preferred_node_that_cannot_be_used_is_named() {
    let mut workspace = preset("falcon-7b", 1);
    workspace.resource.preferred_nodes = vec!["gone".to_owned(), "web".to_owned()];
    let observed = observed([with(node("web"), "/metadata/labels", json!({"apps": "web"})), node("a")]);
    let choice = choose(&workspace, &observed, &gpus(1), now());
    assert_eq!(names(&choice.chosen), ["a"]);
    assert_eq!(choice.turned_down, [("web".to_owned(), TurnedDown::Labels), ("gone".to_owned(), TurnedDown::Absent)]);
}

#[test]
fn a_node_in_use_is_kept_though_no_new_pod_could_go_there() {
    let workspace = preset("falcon-7b", 1);
    let mut observed = observed([with(node("a"), "/spec", json!({"unschedulable": true})), node("b")]);
    observed.pods = vec![ready_pod("ws-0", "a")];
    assert_eq!(names(&choose(&workspace, &observed, &gpus(1), now()).chosen), ["a"]);
}

#[test]
fn a_node_in_use_is_expected_back_for_five_minutes() {
    let mut workspace = preset("falcon-7b", 1);
    workspace.status.get_or_insert_default().worker_nodes = vec!["a".to_owned()];
    let choice_at = |since: &str| {
        let observed = observed([unready("a", since)]);
        let choice = choose(&workspace, &observed, &gpus(1), now());
        (names(&choice.expected_back), choice.give_up_at.map(|at| at.to_string()))
    };
    assert_eq!(choice_at("2026-01-01T00:06:00Z"), (vec!["a".to_owned()], Some("2026-01-01T00:11:00Z".to_owned())));
    assert_eq!(choice_at("2026-01-01T00:05:00Z"), (vec![], None));
}

fn tainted(name: &str, taints: Value) -> Value {
    with(node(name), "/spec", json!({ "taints": taints }))
}

/// What pods of presets tolerate: any taint of GPUs, and `sku=gpu`.
#[test]
fn a_node_whose_taints_no_pod_tolerates_is_turned_down() {
    let taint = |key: &str, value: Option<&str>, effect: &str| json!({"key": key, "value": value, "effect": effect});
    for (taints, words) in [
        (json!([taint("nvidia.com/gpu", Some("present"), "NoSchedule")]), None),
        (json!([taint("nvidia.com/gpu", None, "NoExecute")]), None),
        (json!([taint("sku", Some("gpu"), "NoSchedule")]), None),
        (json!([taint("spot", Some("true"), "PreferNoSchedule")]), None),
        (json!([]), None),
        (
            json!([taint("kubernetes.azure.com/scalesetpriority", Some("spot"), "NoSchedule")]),
            Some("has the taint kubernetes.azure.com/scalesetpriority=spot:NoSchedule"),
        ),
        (json!([taint("sku", Some("cpu"), "NoSchedule")]), Some("has the taint sku=cpu:NoSchedule")),
        (json!([taint("sku", Some("gpu"), "NoExecute")]), Some("has the taint sku=gpu:NoExecute")),
        (
            json!([
                taint("sku", Some("gpu"), "NoSchedule"),
                taint("a", None, "NoExecute"),
                taint("b", Some("c"), "NoSchedule"),
            ]),
            Some("has the taints a:NoExecute, b=c:NoSchedule"),
        ),
    ] {
        let mut workspace = preset("falcon-7b", 1);
        let mut observed = observed([tainted("a", taints.clone())]);
        settle(&mut workspace, &mut observed, &options());
        let (status, reason, message) = condition(&workspace, ConditionType::ResourceReady);
        match words {
            None => assert_eq!((status, observed.deployment.is_some()), ("True", true), "{taints}: {message}"),
            Some(words) => {
                assert_eq!((status, reason), ("False", "NodesMissing"), "{taints}");
                let words = format!("1 of 1 node missing; a {words}, which no pod of the workspace tolerates");
                assert!(message.starts_with(&words), "{message}");
                assert!(observed.deployment.is_none() && workspace.status.unwrap().worker_nodes.is_empty());
            }
        }
    }
}

#[test]
fn what_a_templates_own_pods_tolerate_counts() {
    let spot = json!([{"key": "spot", "value": "true", "effect": "NoSchedule"}, {"key": "x", "effect": "NoExecute"}]);
    for (tolerations, status) in [
        ("[]", "False"),
        ("[{key: spot, operator: Exists}]", "False"),
        ("[{key: spot, value: 'true'}, {key: x, operator: Exists, effect: NoExecute}]", "True"),
        ("[{operator: Exists}]", "True"),
    ] {
        let mut workspace = workspace(&format!(
            "resource: {{labelSelector: {{matchLabels: {{apps: llm}}}}}}\n\
             inference: {{template: {{spec: {{tolerations: {tolerations}, containers: [{{name: a, image: 'a:1'}}]}}}}}}"
        ));
        let mut observed = observed([tainted("a", spot.clone())]);
        settle(&mut workspace, &mut observed, &options());
        assert_eq!(condition(&workspace, ConditionType::ResourceReady).0, status, "{tolerations}");
    }
}

/// The cluster itself adds tolerations as it admits pods.
#[test]
fn what_pods_that_are_there_tolerate_counts() {
    let spot = || tainted("b", json!([{"key": "spot", "effect": "NoSchedule"}]));
    let mut observed = observed([tainted("a", json!([{"key": "spot", "effect": "NoSchedule"}])), spot()]);
    let workspace = preset("falcon-7b", 2);
    let chosen = |observed: &Observed| {
        let needs = crate::decide::PodNeeds::of(None, observed);
        names(&choose(&workspace, observed, &needs, now()).chosen)
    };
    assert_eq!(chosen(&observed), [""; 0]);
    observed.pods = vec![ready_pod("ws-0", "a")];
    assert_eq!(chosen(&observed), ["a"], "a taint against new pods does not move those there");
    let mut pod = serde_json::to_value(ready_pod("ws-0", "a").as_ref()).unwrap();
    pod["spec"]["tolerations"] = json!([{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}]);
    observed.pods = vec![read(pod)];
    assert_eq!(chosen(&observed), ["a", "b"]);
}

#[test]
fn a_taint_that_ends_pods_counts_on_the_node_in_use_too() {
    let workspace = preset("falcon-7b", 1);
    let mut observed = observed([tainted("a", json!([{"key": "maintenance", "effect": "NoExecute"}])), node("b")]);
    observed.pods = vec![ready_pod("ws-0", "a")];
    let choice = choose(&workspace, &observed, &gpus(1), now());
    assert_eq!(names(&choice.chosen), ["b"]);
    assert!(choice.turned_down[0].1.to_string().starts_with("has the taint maintenance:NoExecute"), "{choice:?}");
}

/// Kubernetes removes its own taint a moment after the node is ready again.
#[test]
fn a_node_in_use_that_has_just_come_back_is_no_reason_to_take_another() {
    let mut workspace = preset("falcon-7b", 1);
    workspace.status.get_or_insert_default().worker_nodes = vec!["a".to_owned()];
    let back = |key: &str| {
        let node = tainted("a", json!([{"key": key, "effect": "NoSchedule"}]));
        with(node, "/status/conditions/0/lastTransitionTime", json!("2026-01-01T00:09:59Z"))
    };
    for (key, expected) in
        [("node.kubernetes.io/unreachable", &["a"][..]), ("node.kubernetes.io/not-ready", &["a"]), ("other", &[])]
    {
        let observed = observed([back(key)]);
        let choice = choose(&workspace, &observed, &gpus(1), now());
        assert_eq!(names(&choice.expected_back), expected, "{key}");
        assert_eq!(names(&choice.chosen), [""; 0]);
    }
}
