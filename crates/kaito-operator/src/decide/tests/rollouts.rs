//! Rollouts: a newer controller restarts running models one after another.

use std::{sync::Arc, time::Duration};

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::fixtures::{all_ready, carry_out, condition, node, observed, options, preset, ready_pod, time, workspace};
use crate::{
    decide::{Config, Decision, Observed, Options, RolloutPolicy, decide, under_way_since},
    workspace::{ConditionType, Workspace},
};

/// A workspace with a public preset that has answered for hours, as a controller with the tag 0.1.0 made it.
fn running() -> (Workspace, Observed) {
    let mut workspace = workspace(
        "metadata: {annotations: {kaito.sh/runtime: kaito}}\n\
         resource: {instanceType: Standard_NC24s_v3, labelSelector: {matchLabels: {apps: llm}}}\n\
         inference: {preset: {name: falcon-7b}}",
    );
    let mut observed = observed([node("a")]);
    at("2026-01-01T00:01:00Z", &mut workspace, &mut observed, &options());
    observed.pods = vec![ready_pod("ws-0", "a")];
    all_ready(&mut observed, 1);
    at("2026-01-01T00:05:00Z", &mut workspace, &mut observed, &options());
    assert_eq!(condition(&workspace, ConditionType::WorkspaceReady).0, "True");
    (workspace, observed)
}

/// The options of the next version.
fn newer() -> Options {
    Options { preset_tag: "0.2.0".to_owned(), ..options() }
}

/// Decides and carries the decision out, twice: the second time the status is about what was written.
fn at(now: &str, workspace: &mut Workspace, observed: &mut Observed, options: &Options) -> Decision {
    let decision = decide(workspace, observed, options, time(now));
    carry_out(workspace, observed, &decision);
    let again = decide(workspace, observed, options, time(now));
    assert!(again.writes.is_empty(), "{again:#?}");
    carry_out(workspace, observed, &again);
    decision
}

fn template(observed: &Observed) -> Value {
    serde_json::to_value(&observed.deployment.as_ref().unwrap().spec.as_ref().unwrap().template).unwrap()
}

fn image(observed: &Observed) -> String {
    template(observed)["spec"]["containers"][0]["image"].as_str().unwrap().to_owned()
}

fn since(observed: &Observed) -> Option<Timestamp> {
    under_way_since(&observed.deployment.as_ref().unwrap().metadata)
}

fn up_to_date(workspace: &Workspace) -> Option<(&str, &str)> {
    let condition = workspace.status.as_ref()?.condition(ConditionType::UpToDate)?;
    Some((&condition.reason, &condition.message))
}

const OLD: &str = "registry.example/kaito/kaito-falcon-7b:0.1.0";
const NEW: &str = "registry.example/kaito/kaito-falcon-7b:0.2.0";

#[test]
fn a_running_model_keeps_its_image_until_its_rollout_and_says_so() {
    let (mut workspace, mut observed) = running();
    let before = template(&observed);
    observed.rollouts.under_way = vec!["team/other".to_owned()];
    let decision = at("2026-01-01T01:00:00Z", &mut workspace, &mut observed, &newer());
    assert!(decision.writes.is_empty() && !decision.starts_rollout, "{decision:#?}");
    assert_eq!(template(&observed), before);
    assert_eq!(
        up_to_date(&workspace),
        Some((
            "RolloutDue",
            "the pods run registry.example/kaito/kaito-falcon-7b:0.1.0, and are to run \
             registry.example/kaito/kaito-falcon-7b:0.2.0; it waits until team/other has answered for 1m (at most 1 at a time)"
        ))
    );
    assert_eq!(condition(&workspace, ConditionType::WorkspaceReady).0, "True", "it serves as before");
    assert!(decision.requeue.is_some());

    // The old tag again: nothing is due.
    at("2026-01-01T01:01:00Z", &mut workspace, &mut observed, &options());
    assert_eq!(up_to_date(&workspace), None);

    observed.rollouts.under_way.clear();
    let decision = at("2026-01-01T02:00:00Z", &mut workspace, &mut observed, &newer());
    assert!(decision.starts_rollout);
    assert_eq!((image(&observed).as_str(), since(&observed)), (NEW, Some(time("2026-01-01T02:00:00Z"))));
    assert_eq!(up_to_date(&workspace).unwrap().0, "RolloutUnderWay");
}

#[test]
fn a_rollout_lasts_until_the_model_has_answered_for_a_while() {
    let (mut workspace, mut observed) = running();
    at("2026-01-01T02:00:00Z", &mut workspace, &mut observed, &newer());
    // The old pod answers, the new one does not exist yet.
    at("2026-01-01T02:10:00Z", &mut workspace, &mut observed, &newer());
    assert!(since(&observed).is_some());
    let ready_at = "2026-01-01T02:20:00Z";
    let mut pod = serde_json::to_value(ready_pod("ws-1", "a").as_ref()).unwrap();
    pod["status"]["conditions"][1]["lastTransitionTime"] = json!(ready_at);
    observed.pods = vec![super::fixtures::read(pod)];
    all_ready(&mut observed, 1);
    let decision = at(ready_at, &mut workspace, &mut observed, &newer());
    assert!(since(&observed).is_some());
    assert!(decision.requeue.unwrap() <= Duration::from_secs(61));
    at("2026-01-01T02:20:59Z", &mut workspace, &mut observed, &newer());
    assert!(since(&observed).is_some());
    let before = template(&observed);
    at("2026-01-01T02:21:00Z", &mut workspace, &mut observed, &newer());
    assert_eq!((since(&observed), up_to_date(&workspace)), (None, None));
    assert_eq!(template(&observed), before, "the end of a rollout restarts nothing");
    assert!(decide(&workspace, &observed, &newer(), time("2026-01-01T02:22:00Z")).is_empty());
}

/// A version that does not become ready stops the other rollouts until it is replaced.
#[test]
fn a_rollout_that_fails_does_not_end_and_can_be_replaced() {
    let (mut workspace, mut observed) = running();
    at("2026-01-01T02:00:00Z", &mut workspace, &mut observed, &newer());
    observed.pods.clear();
    at("2026-01-02T02:00:00Z", &mut workspace, &mut observed, &newer());
    assert!(since(&observed).is_some());
    let corrected = Options { preset_tag: "0.2.1".to_owned(), ..options() };
    observed.rollouts.under_way = vec!["team/other".to_owned()];
    at("2026-01-02T03:00:00Z", &mut workspace, &mut observed, &corrected);
    assert_eq!(image(&observed), NEW.replace("0.2.0", "0.2.1"));
    assert_eq!(since(&observed), Some(time("2026-01-01T02:00:00Z")));
}

#[test]
fn a_rollout_starts_when_windows_nodes_and_the_leaders_age_allow_it() {
    let window = |text: &str| RolloutPolicy { windows: vec![text.parse().unwrap()], ..RolloutPolicy::default() };
    // 2026-01-01 is a Thursday.
    for (policy, leads_since, under_way, now, words, seconds) in [
        (
            window("Sat 02:00-06:00"),
            "00:00:00",
            0,
            "01:00:00",
            "it waits for a maintenance window, which opens at 2026-01-03T02:00:00Z",
            176_401,
        ),
        (window("Thu 00:30-06:00"), "00:00:00", 0, "01:00:00", "", 0),
        (
            RolloutPolicy::default(),
            "00:59:30",
            0,
            "01:00:00",
            "it waits until 2026-01-01T01:00:30Z, 1m after this replica of the controller was elected leader",
            31,
        ),
        (RolloutPolicy::default(), "00:59:00", 0, "01:00:00", "", 0),
        (
            RolloutPolicy::default(),
            "00:00:00",
            1,
            "01:00:00",
            "it waits until team/w0 has answered for 1m (at most 1 at a time)",
            61,
        ),
        (RolloutPolicy { at_once: 3, ..RolloutPolicy::default() }, "00:00:00", 2, "01:00:00", "", 0),
        (
            RolloutPolicy { at_once: 3, ..RolloutPolicy::default() },
            "00:00:00",
            3,
            "01:00:00",
            "team/w0, team/w1, team/w2",
            61,
        ),
        (
            RolloutPolicy { at_once: 1, pause: Duration::ZERO, ..RolloutPolicy::default() },
            "01:00:00",
            0,
            "01:00:00",
            "",
            0,
        ),
    ] {
        let (mut workspace, mut observed) = running();
        observed.rollouts.under_way = (0..under_way).map(|number| format!("team/w{number}")).collect();
        observed.rollouts.leading_since = Some(time(&format!("2026-01-01T{leads_since}Z")));
        let options = Options { rollouts: policy.clone(), ..newer() };
        let now = format!("2026-01-01T{now}Z");
        let decision = at(&now, &mut workspace, &mut observed, &options);
        assert_eq!(decision.starts_rollout, words.is_empty(), "{policy:?} {words}");
        if words.is_empty() {
            assert_eq!(image(&observed), NEW);
        } else {
            let (reason, message) = up_to_date(&workspace).unwrap();
            assert!(reason == "RolloutDue" && message.contains(words), "{message}");
            assert_eq!((image(&observed).as_str(), decision.requeue), (OLD, Some(Duration::from_secs(seconds))));
        }
    }
}

#[test]
fn pods_that_do_not_answer_wait_and_pods_that_fail_are_replaced_at_once() {
    for (pods, nodes, words) in [
        (json!({"phase": "Running"}), true, "it waits until its pods answer"),
        (json!({"phase": "Running"}), false, "it waits until its nodes are ready"),
        (
            json!({"phase": "Pending", "containerStatuses": [{
                "name": "server", "image": OLD, "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": "ImagePullBackOff", "message": "manifest unknown"}},
            }]}),
            true,
            "",
        ),
    ] {
        let (mut workspace, mut observed) = running();
        all_ready(&mut observed, 0);
        observed.pods = vec![super::fixtures::pod("ws-0", nodes.then_some("a"), pods)];
        if !nodes {
            observed.nodes.clear();
        }
        // Another rollout is no reason to wait where nothing answers.
        observed.rollouts.under_way = if words.is_empty() { vec!["team/other".to_owned()] } else { Vec::new() };
        at("2026-01-01T02:00:00Z", &mut workspace, &mut observed, &newer());
        if words.is_empty() {
            assert_eq!((image(&observed).as_str(), since(&observed)), (NEW, None), "it holds up nobody");
        } else {
            let (_, message) = up_to_date(&workspace).unwrap();
            assert!(message.ends_with(words), "{message}");
            assert_eq!(image(&observed), OLD);
        }
    }
}

/// It depends on who changed something, not on whether the pods change.
#[test]
fn a_change_of_the_author_is_applied_at_once_with_the_image_that_runs() {
    let (mut workspace, mut observed) = running();
    observed.rollouts.under_way = vec!["team/other".to_owned()];
    workspace.metadata.generation = Some(2);
    workspace.resource.preferred_nodes = vec!["a".to_owned()];
    let decision = at("2026-01-01T02:00:00Z", &mut workspace, &mut observed, &newer());
    assert_eq!(decision.writes.len(), 1);
    assert!(template(&observed)["spec"]["affinity"].to_string().contains("preferred"));
    assert_eq!((image(&observed).as_str(), since(&observed)), (OLD, None));
    assert_eq!(up_to_date(&workspace).unwrap().0, "RolloutDue");

    // So are flags in the ConfigMap, which are not part of the workspace's generation.
    workspace.inference.as_mut().unwrap().config = Some("flags".to_owned());
    observed.config = Config::Data([("max-batch-size".to_owned(), "8".to_owned())].into());
    at("2026-01-01T02:01:00Z", &mut workspace, &mut observed, &newer());
    observed.config = Config::Data([("max-batch-size".to_owned(), "4".to_owned())].into());
    at("2026-01-01T02:02:00Z", &mut workspace, &mut observed, &newer());
    assert!(template(&observed)["spec"]["containers"][0]["args"].to_string().contains("--max-batch-size=4"));
    assert_eq!(image(&observed), OLD);
}

/// Changes the workload's pods into those of another release of the controller.
fn made_by_another_release(observed: &mut Observed) {
    let deployment = Arc::make_mut(observed.deployment.as_mut().unwrap());
    deployment.spec.as_mut().unwrap().template.spec.as_mut().unwrap().termination_grace_period_seconds = Some(7);
    let annotations = deployment.metadata.annotations.as_mut().unwrap();
    let mut template: Value = serde_json::from_str(&annotations["kaito.sh/pod-template"]).unwrap();
    template["spec"]["terminationGracePeriodSeconds"] = json!(7);
    annotations.insert("kaito.sh/pod-template".to_owned(), template.to_string());
    let mut record: Value = serde_json::from_str(&annotations["kaito.sh/made-from"]).unwrap();
    record["version"] = json!("0.0.1");
    // It read the same workspace in another way.
    record["facts"] = json!("0011223344556677");
    annotations.insert("kaito.sh/made-from".to_owned(), record.to_string());
    annotations.insert("kaito.sh/applied".to_owned(), "0011223344556677".to_owned());
}

#[test]
fn pods_do_not_change_merely_because_the_controller_is_newer() {
    let (mut workspace, mut observed) = running();
    made_by_another_release(&mut observed);
    let before = template(&observed);
    observed.rollouts.under_way = vec!["team/other".to_owned()];
    at("2026-01-01T02:00:00Z", &mut workspace, &mut observed, &options());
    assert_eq!(template(&observed), before);
    let (reason, message) = up_to_date(&workspace).unwrap();
    assert_eq!(reason, "RolloutDue");
    assert!(message.starts_with("this release of the controller makes other pods than those that run"), "{message}");
    assert!(decide(&workspace, &observed, &options(), time("2026-01-01T02:00:01Z")).is_empty());

    // Drift is repaired meanwhile, back to what was applied.
    let deployment = Arc::make_mut(observed.deployment.as_mut().unwrap());
    deployment.spec.as_mut().unwrap().template.spec.as_mut().unwrap().containers[0].image = Some("other:1".to_owned());
    let decision = at("2026-01-01T02:00:02Z", &mut workspace, &mut observed, &options());
    assert_eq!(decision.deeds[0].reason.as_str(), "Repaired", "{decision:#?}");
    assert_eq!(template(&observed), before);

    observed.rollouts.under_way.clear();
    all_ready(&mut observed, 1);
    at("2026-01-01T02:01:00Z", &mut workspace, &mut observed, &options());
    assert_eq!(template(&observed)["spec"]["terminationGracePeriodSeconds"], 200);
}

#[test]
fn a_workload_of_a_release_that_kept_no_record_stays_as_it_is_until_its_rollout() {
    let (mut workspace, mut observed) = running();
    let deployment = Arc::make_mut(observed.deployment.as_mut().unwrap());
    let annotations = deployment.metadata.annotations.as_mut().unwrap();
    annotations.retain(|key, _| key == "kaito.sh/applied");
    let before = observed.deployment.clone();
    observed.rollouts.under_way = vec!["team/other".to_owned()];
    let decision = at("2026-01-01T02:00:00Z", &mut workspace, &mut observed, &options());
    assert!(decision.writes.is_empty(), "{decision:#?}");
    assert_eq!(observed.deployment, before);
    assert_eq!(up_to_date(&workspace).unwrap().0, "RolloutDue");
    observed.rollouts.under_way.clear();
    at("2026-01-01T02:01:00Z", &mut workspace, &mut observed, &options());
    assert!(since(&observed).is_some());
}

/// A user's own image does not depend on the controller's tag, so nothing is restarted or due.
#[test]
fn what_the_tag_does_not_touch_is_up_to_date() {
    let mut workspace = preset("falcon-7b", 1);
    let mut observed = observed([node("a")]);
    at("2026-01-01T00:01:00Z", &mut workspace, &mut observed, &options());
    observed.pods = vec![ready_pod("ws-0", "a")];
    all_ready(&mut observed, 1);
    let before = template(&observed);
    let decision = at("2026-01-01T02:00:00Z", &mut workspace, &mut observed, &newer());
    assert!(!decision.starts_rollout);
    assert_eq!((template(&observed), up_to_date(&workspace)), (before, None));
    assert!(decide(&workspace, &observed, &newer(), time("2026-01-01T02:01:00Z")).is_empty());
}

/// All workspaces of a cluster, each as its reconcile sees the others.
#[test]
fn never_more_than_the_limit_change_at_a_time_and_all_do_in_the_end() {
    for at_once in [1, 2, 5] {
        let mut cluster: Vec<_> = (0..5).map(|_| running()).collect();
        let options = Options { rollouts: RolloutPolicy { at_once, ..RolloutPolicy::default() }, ..newer() };
        let mut most = 0;
        for minute in 0..40 {
            let now = time("2026-01-02T00:00:00Z").as_second() + minute * 60;
            let now = Timestamp::from_second(now).unwrap();
            for place in 0..cluster.len() {
                let others =
                    cluster.iter().enumerate().filter(|(other, (_, seen))| *other != place && since(seen).is_some());
                let others: Vec<_> = others.map(|(other, _)| format!("team/w{other}")).collect();
                let (workspace, observed) = &mut cluster[place];
                observed.rollouts.under_way = others;
                let decision = decide(workspace, observed, &options, now);
                carry_out(workspace, observed, &decision);
                if minute % 2 == 1 {
                    let mut pod = serde_json::to_value(ready_pod("ws-0", "a").as_ref()).unwrap();
                    pod["status"]["conditions"][1]["lastTransitionTime"] = json!(now.to_string());
                    if since(observed).is_some() {
                        observed.pods = vec![super::fixtures::read(pod)];
                    }
                    all_ready(observed, 1);
                }
            }
            most = most.max(cluster.iter().filter(|(_, observed)| since(observed).is_some()).count());
        }
        assert_eq!(most, at_once as usize);
        for (workspace, observed) in &cluster {
            assert_eq!((image(observed).as_str(), up_to_date(workspace)), (NEW, None));
        }
    }
}
