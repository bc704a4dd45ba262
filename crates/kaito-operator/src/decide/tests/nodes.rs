use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::fixtures::{names, node, now, observed, pod, preset, ready_pod, unready, with};
use crate::decide::{Observed, Taken, TurnedDown, choose};

const TYPE_LABEL: &str = "/metadata/labels/node.kubernetes.io~1instance-type";

fn why(observed: &Observed, gpus: u32) -> TurnedDown {
    let workspace = preset("falcon-7b", 1);
    let choice = choose(&workspace, observed, gpus, now());
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
        ("new", with(node("a"), "/status/conditions", json!([])), "is not ready (it has not said so yet)"),
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
    assert_eq!(names(&choose(&workspace, &observed, 1, now()).chosen), ["a"]);
}

#[test]
fn labels_decide_who_is_a_candidate() {
    let workspace = preset("falcon-7b", 1);
    let observed = observed([with(node("a"), "/metadata/labels", json!({"apps": "web"})), node("b"), node("c")]);
    let choice = choose(&workspace, &observed, 0, now());
    assert_eq!(names(&choice.chosen), ["b"]);
    assert_eq!(choice.unmatched, 1);
    assert_eq!(choice.turned_down, [("c".to_owned(), TurnedDown::NotNeeded)]);
}

#[test]
fn a_node_that_does_not_say_its_type_is_taken_at_the_users_word() {
    let workspace = preset("falcon-7b", 1);
    let observed = observed([with(node("a"), "/metadata/labels", json!({"apps": "llm"}))]);
    assert_eq!(names(&choose(&workspace, &observed, 1, now()).chosen), ["a"]);
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
    let order = |workspace: &_, observed: &_| names(&choose(workspace, observed, 1, now()).chosen).concat();

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
fn a_preferred_node_that_is_no_good_is_named() {
    let mut workspace = preset("falcon-7b", 1);
    workspace.resource.preferred_nodes = vec!["gone".to_owned(), "web".to_owned()];
    let observed = observed([with(node("web"), "/metadata/labels", json!({"apps": "web"})), node("a")]);
    let choice = choose(&workspace, &observed, 1, now());
    assert_eq!(names(&choice.chosen), ["a"]);
    assert_eq!(choice.turned_down, [("web".to_owned(), TurnedDown::Labels), ("gone".to_owned(), TurnedDown::Absent)]);
}

#[test]
fn a_node_in_use_is_kept_whatever_new_pods_may_think_of_it() {
    let workspace = preset("falcon-7b", 1);
    let mut observed = observed([with(node("a"), "/spec", json!({"unschedulable": true})), node("b")]);
    observed.pods = vec![ready_pod("ws-0", "a")];
    assert_eq!(names(&choose(&workspace, &observed, 1, now()).chosen), ["a"]);
}

#[test]
fn a_node_in_use_is_expected_back_for_five_minutes() {
    let mut workspace = preset("falcon-7b", 1);
    workspace.status.get_or_insert_default().worker_nodes = vec!["a".to_owned()];
    let choice_at = |since: &str| {
        let observed = observed([unready("a", since)]);
        let choice = choose(&workspace, &observed, 1, now());
        (names(&choice.expected_back), choice.give_up_at.map(|at| at.to_string()))
    };
    assert_eq!(choice_at("2026-01-01T00:06:00Z"), (vec!["a".to_owned()], Some("2026-01-01T00:11:00Z".to_owned())));
    assert_eq!(choice_at("2026-01-01T00:05:00Z"), (vec![], None));
}
