//! Pods of several ranks, once their template has changed: the first one's goes first, the others after it, and none twice.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
    sync::Arc,
};

use k8s_openapi::{
    api::{apps::v1::StatefulSet, core::v1::Pod},
    jiff::Timestamp,
};
use proptest::{prelude::*, sample::select};
use serde_json::{Value, json};

use super::fixtures::{carry_out, node, observed, on_gpus, options, preset, read, time, with};
use crate::{
    decide::{Config, Decision, Observed, Options, decide, object::AnyObject},
    workspace::Workspace,
};

const RANKS: usize = 3;
/// Each step of a test takes a minute.
const STEP: i64 = 60;

/// A model of several ranks, with what Kubernetes does for it.
struct Cluster {
    workspace: Workspace,
    observed: Observed,
    options: Options,
    now: Timestamp,
    made: usize,
}

impl Cluster {
    /// One whose pods answer.
    fn running() -> Self {
        let mut cluster = Self {
            workspace: on_gpus(preset("llama-2-70b", RANKS as i32)),
            observed: observed(["a", "b", "c"].map(node)),
            options: options(),
            now: time("2026-01-01T01:00:00Z"),
            made: 0,
        };
        cluster.decide();
        cluster.sees_the_template();
        cluster.makes_pods();
        cluster.sees_the_template();
        // The rollout with which it began, if any.
        cluster.decide();
        assert_eq!(cluster.decide().replaced, []);
        cluster
    }

    fn set(&mut self) -> &mut StatefulSet {
        Arc::make_mut(self.observed.stateful_set.as_mut().unwrap())
    }

    /// The name that Kubernetes gives the present template.
    fn revision(&self) -> String {
        let set = self.observed.stateful_set.as_ref().unwrap().to_json();
        let mut hasher = DefaultHasher::new();
        set["spec"]["template"].to_string().hash(&mut hasher);
        format!("ws-{:x}", hasher.finish())
    }

    fn decide(&mut self) -> Decision {
        self.now = Timestamp::from_second(self.now.as_second() + STEP).unwrap();
        let decision = decide(&self.workspace, &self.observed, &self.options, self.now);
        carry_out(&mut self.workspace, &mut self.observed, &decision);
        decision
    }

    /// Names of the pods that a decision deletes.
    fn replaced(&mut self) -> Vec<String> {
        self.decide().replaced.into_iter().map(|pod| pod.name).collect()
    }

    fn is_going(pod: &Pod) -> bool {
        pod.metadata.deletion_timestamp.is_some()
    }

    fn revision_of(pod: &Pod) -> &str {
        &pod.metadata.labels.as_ref().unwrap()["controller-revision-hash"]
    }

    fn outdated(&self) -> Vec<String> {
        let revision = self.revision();
        let outdated = self.observed.pods.iter().filter(|pod| Self::revision_of(pod) != revision);
        outdated.map(|pod| pod.metadata.name.clone().unwrap()).collect()
    }

    /// The StatefulSet's controller sees the template, and counts the pods.
    fn sees_the_template(&mut self) {
        let revision = self.revision();
        let alive = self.observed.pods.iter().filter(|pod| !Self::is_going(pod));
        let updated = alive.clone().filter(|pod| Self::revision_of(pod) == revision).count();
        let ready = alive.count();
        let set = self.set();
        let generation = set.metadata.generation;
        let status = json!({
            "observedGeneration": generation, "replicas": ready, "readyReplicas": ready, "updatedReplicas": updated,
            "updateRevision": revision, "currentRevision": "ws-first",
        });
        set.status = Some(serde_json::from_value(status).unwrap());
    }

    /// It makes the pods that are missing, and they answer.
    fn makes_pods(&mut self) {
        for rank in 0..RANKS {
            let name = format!("ws-{rank}");
            if self.observed.pods.iter().all(|pod| pod.metadata.name.as_ref() != Some(&name)) {
                self.made += 1;
                let pod = json!({
                    "metadata": {
                        "name": name, "namespace": "team", "uid": format!("pod-{}", self.made),
                        "creationTimestamp": self.now.to_string(),
                        "labels": {"kaito.sh/workspace": "ws", "controller-revision-hash": self.revision()},
                        "ownerReferences": [{
                            "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "ws", "controller": true,
                            "uid": self.observed.stateful_set.as_ref().unwrap().metadata.uid,
                        }],
                    },
                    "spec": {"nodeName": (["a", "b", "c"][rank]), "containers": [{"name": "engine"}]},
                    "status": {"phase": "Running", "conditions": [
                        {"type": "Ready", "status": "True", "lastTransitionTime": self.now.to_string()},
                    ]},
                });
                self.observed.pods.push(read(pod));
            }
        }
    }

    /// What was deleted has ended.
    fn ends(&mut self, name: &str) {
        self.observed.pods.retain(|pod| pod.metadata.name.as_deref() != Some(name) || !Self::is_going(pod));
    }

    /// The author names other nodes, which the pods are to prefer.
    fn author_changes(&mut self, node: &str) {
        self.workspace.resource.preferred_nodes = vec![node.to_owned()];
        *self.workspace.metadata.generation.as_mut().unwrap() += 1;
    }

    fn change_pod(&mut self, rank: usize, pointer: &str, value: Value) {
        let pod = self.observed.pods[rank].to_json();
        self.observed.pods[rank] = read(with(pod, pointer, value));
    }
}

#[test]
fn the_first_ranks_pod_goes_first_and_the_others_when_it_has_gone() {
    let mut cluster = Cluster::running();
    cluster.author_changes("b");
    assert_eq!(cluster.replaced(), [""; 0], "the template is being written");
    assert_eq!(cluster.replaced(), [""; 0], "nobody has seen it");
    cluster.sees_the_template();
    let decision = cluster.decide();
    assert_eq!(
        decision.replaced.iter().map(|pod| (pod.name.as_str(), pod.uid.as_str())).collect::<Vec<_>>(),
        [("ws-0", "pod-1")]
    );
    let told: Vec<_> = decision.deeds.iter().map(|deed| (deed.reason.as_str(), deed.message.as_str())).collect();
    assert_eq!(told, [("PodsReplaced", "deleted Pod ws-0, which the workload's last template replaces")]);
    assert_eq!(cluster.replaced(), [""; 0], "it answers its last requests, which the others compute");
    cluster.ends("ws-0");
    assert_eq!(cluster.replaced(), ["ws-1", "ws-2"]);
    cluster.makes_pods();
    assert_eq!(cluster.replaced(), [""; 0], "they are ending");
    cluster.ends("ws-1");
    cluster.ends("ws-2");
    cluster.makes_pods();
    cluster.sees_the_template();
    assert_eq!((cluster.replaced(), cluster.outdated()), (vec![], vec![]));
    assert_eq!(cluster.made, 2 * RANKS, "each was made anew once");
}

/// Though somebody deleted pods by hand, all end up with the same template.
#[test]
fn pods_that_are_of_the_last_template_already_stay() {
    let mut cluster = Cluster::running();
    cluster.author_changes("b");
    cluster.decide();
    cluster.sees_the_template();
    for by_hand in ["ws-0", "ws-2"] {
        cluster.observed.pods.retain(|pod| pod.metadata.name.as_deref() != Some(by_hand));
    }
    cluster.makes_pods();
    assert_eq!(cluster.replaced(), ["ws-1"]);
}

/// A rollout that waits has changed nothing in the cluster.
#[test]
fn no_pod_is_deleted_for_a_rollout_that_waits() {
    let mut cluster = Cluster::running();
    cluster.options.vllm_image = "registry.example/vllm:2".to_owned();
    for (window, under_way) in [(Some("Sat 02:00-06:00"), vec![]), (None, vec!["team/other".to_owned()])] {
        cluster.options.rollouts.windows = window.into_iter().map(|window| window.parse().unwrap()).collect();
        cluster.observed.rollouts.under_way = under_way;
        for _ in 0..3 {
            cluster.sees_the_template();
            let decision = cluster.decide();
            assert!(decision.replaced.is_empty() && decision.writes.is_empty(), "{decision:#?}");
        }
        let status = cluster.workspace.status.as_ref().unwrap();
        assert_eq!(status.condition(crate::workspace::ConditionType::UpToDate).unwrap().reason, "RolloutDue");
    }
    cluster.observed.rollouts.under_way.clear();
    assert!(cluster.decide().starts_rollout);
    cluster.sees_the_template();
    assert_eq!(cluster.replaced(), ["ws-0"]);
}

/// What somebody else makes of the template is set back, and no pod goes for it.
#[test]
fn a_template_of_somebody_else_replaces_no_pod() {
    let mut cluster = Cluster::running();
    let spec = cluster.set().spec.as_mut().unwrap().template.spec.as_mut().unwrap();
    spec.containers[1].image = Some("registry.example/another:1".to_owned());
    *cluster.set().metadata.generation.as_mut().unwrap() += 1;
    cluster.sees_the_template();
    assert_eq!(cluster.outdated().len(), RANKS);
    let decision = cluster.decide();
    assert!(decision.replaced.is_empty() && decision.writes.len() == 1, "{decision:#?}");
    cluster.sees_the_template();
    assert_eq!((cluster.replaced(), cluster.outdated()), (vec![], vec![]));
}

/// A webhook of the cluster has another image in every template. It has it in the next one too, which replaces pods all the same.
#[test]
fn a_template_that_cannot_be_set_back_replaces_pods() {
    let mut cluster = Cluster::running();
    let mutate = |cluster: &mut Cluster, version: &str| {
        let set = cluster.set();
        let spec = set.spec.as_mut().unwrap().template.spec.as_mut().unwrap();
        spec.containers[1].image = Some("mirror.example/vllm:1".to_owned());
        set.metadata.resource_version = Some(version.to_owned());
    };
    mutate(&mut cluster, "7");
    for pod in 0..RANKS {
        let revision = cluster.revision();
        cluster.change_pod(pod, "/metadata/labels/controller-revision-hash", json!(revision));
    }
    cluster.author_changes("b");
    assert_eq!(cluster.decide().writes.len(), 1);
    mutate(&mut cluster, "8");
    cluster.sees_the_template();
    assert_eq!(cluster.replaced(), [""; 0], "it is to be set back");
    mutate(&mut cluster, "8");
    cluster.sees_the_template();
    let kind = crate::decide::ObjectKind::StatefulSet;
    cluster.observed.in_vain = vec![crate::decide::InVain { kind, name: "ws".to_owned(), version: "8".to_owned() }];
    let decision = cluster.decide();
    assert!(decision.writes.is_empty(), "{:?}", decision.writes);
    assert_eq!(decision.replaced.iter().map(|pod| pod.name.as_str()).collect::<Vec<_>>(), ["ws-0"]);
    // What the author changes is written, although the last write was in vain.
    cluster.author_changes("c");
    assert_eq!(cluster.decide().writes.len(), 1);
}

#[test]
fn pods_of_others_and_of_an_unknown_template_stay() {
    let unlabelled = |pod: &mut Value| {
        pod["metadata"]["labels"].as_object_mut().unwrap().shift_remove("controller-revision-hash").map(drop).unwrap();
    };
    let of_somebody = |pod: &mut Value| pod["metadata"]["ownerReferences"][0]["uid"] = json!("somebody");
    let going = |pod: &mut Value| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    for (what, change) in
        [("unlabelled", &unlabelled as &dyn Fn(&mut Value)), ("of somebody", &of_somebody), ("going", &going)]
    {
        let mut cluster = Cluster::running();
        cluster.author_changes("b");
        cluster.decide();
        cluster.sees_the_template();
        for pod in &mut cluster.observed.pods {
            let mut changed = pod.to_json();
            change(&mut changed);
            *pod = read(changed);
        }
        let decision = decide(&cluster.workspace, &cluster.observed, &cluster.options, cluster.now);
        assert_eq!(decision.replaced, [], "{what}");
    }
    // And the StatefulSet of somebody else is none of ours.
    let mut cluster = Cluster::running();
    cluster.author_changes("b");
    cluster.decide();
    cluster.sees_the_template();
    cluster.set().metadata.owner_references.as_mut().unwrap()[0].uid = "somebody".to_owned();
    let decision = decide(&cluster.workspace, &cluster.observed, &cluster.options, cluster.now);
    assert_eq!(decision.replaced, []);
}

/// Else pods that come back with an old template would be deleted as fast as they are made.
#[test]
fn a_pod_is_some_seconds_old_before_it_is_deleted() {
    let mut cluster = Cluster::running();
    cluster.author_changes("b");
    cluster.decide();
    cluster.sees_the_template();
    let created = Timestamp::from_second(cluster.now.as_second() - 3).unwrap();
    cluster.change_pod(0, "/metadata/creationTimestamp", json!(created.to_string()));
    let decision = decide(&cluster.workspace, &cluster.observed, &cluster.options, cluster.now);
    assert_eq!(decision.replaced, []);
    assert!(decision.requeue.is_some_and(|after| after.as_secs() <= 8), "{:?}", decision.requeue);
    assert_eq!(cluster.replaced(), ["ws-0"]);
}

/// One pod is replaced by Kubernetes itself, and so are those that are no ranks.
#[test]
fn only_several_ranks_are_replaced_from_here() {
    for (name, count, strategy) in
        [("llama-2-70b", 2, "OnDelete"), ("llama-2-13b", 3, "OnDelete"), ("llama-2-70b", 1, "RollingUpdate")]
    {
        let mut workspace = on_gpus(preset(name, count));
        workspace.resource.instance_type = None;
        let nodes = ["a", "b", "c"].map(|name| with(node(name), "/status/allocatable", json!({"nvidia.com/gpu": "8"})));
        let mut observed = observed(nodes.map(|node| with(node, "/metadata/labels", json!({"apps": "llm"}))));
        let decision = decide(&workspace, &observed, &options(), time("2026-01-01T00:10:00Z"));
        carry_out(&mut workspace, &mut observed, &decision);
        let set = observed.stateful_set.unwrap_or_else(|| panic!("{name} on {count}: {:?}", workspace.status));
        assert_eq!(
            set.spec.as_ref().unwrap().update_strategy.as_ref().unwrap().type_.as_deref(),
            Some(strategy),
            "{name}"
        );
    }
}

/// What may happen between two decisions.
#[derive(Debug, Clone)]
enum Step {
    Decides,
    SeesTheTemplate,
    MakesPods,
    Ends(usize),
    AuthorChanges(&'static str),
    InstallationChanges(&'static str),
    OthersAreUnderWay(bool),
    ConfigChanges(u32),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Decides),
        2 => Just(Step::SeesTheTemplate),
        2 => Just(Step::MakesPods),
        2 => (0..RANKS).prop_map(Step::Ends),
        1 => select(vec!["a", "b", "c"]).prop_map(Step::AuthorChanges),
        1 => select(vec!["registry.example/vllm:1", "registry.example/vllm:2"]).prop_map(Step::InstallationChanges),
        1 => any::<bool>().prop_map(Step::OthersAreUnderWay),
        1 => (1..9_u32).prop_map(Step::ConfigChanges),
    ]
}

impl Cluster {
    fn take(&mut self, step: &Step) {
        match step {
            Step::Decides => drop(self.decide()),
            Step::SeesTheTemplate => self.sees_the_template(),
            Step::MakesPods => self.makes_pods(),
            Step::Ends(rank) => self.ends(&format!("ws-{rank}")),
            Step::AuthorChanges(node) => self.author_changes(node),
            Step::InstallationChanges(image) => (*image).clone_into(&mut self.options.vllm_image),
            Step::OthersAreUnderWay(are) => {
                self.observed.rollouts.under_way = are.then(|| "team/other".to_owned()).into_iter().collect();
            }
            Step::ConfigChanges(sequences) => {
                let flags = [("max-num-seqs".to_owned(), sequences.to_string())];
                self.workspace.inference.as_mut().unwrap().config = Some("flags".to_owned());
                self.observed.config = Config::Data(flags.into());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens in whatever order: only pods of another template than the one in the cluster are deleted, the first before the
    /// others, and in the end all are of the last one.
    #[test]
    fn ranks_of_different_templates_do_not_stay_together(steps in proptest::collection::vec(any_step(), 0..30)) {
        let mut cluster = Cluster::running();
        for step in &steps {
            if let Step::Decides = step {
                let then = Timestamp::from_second(cluster.now.as_second() + STEP).unwrap();
                let decision = decide(&cluster.workspace, &cluster.observed, &cluster.options, then);
                let revision = cluster.revision();
                let set = cluster.observed.stateful_set.as_ref().unwrap();
                let is_seen = set.status.as_ref().unwrap().observed_generation == set.metadata.generation;
                let pods = &cluster.observed.pods;
                let first = pods.iter().find(|pod| pod.metadata.name.as_deref() == Some("ws-0"));
                let first_is_outdated = first.is_some_and(|pod| Cluster::revision_of(pod) != revision);
                prop_assert!(decision.replaced.len() < RANKS);
                for replaced in &decision.replaced {
                    let pod = pods.iter().find(|pod| pod.metadata.uid.as_ref() == Some(&replaced.uid)).unwrap();
                    prop_assert!(is_seen && decision.writes.is_empty());
                    prop_assert!(!Cluster::is_going(pod) && Cluster::revision_of(pod) != revision);
                    prop_assert_eq!(first_is_outdated, replaced.name == "ws-0");
                }
            }
            cluster.take(step);
        }
        for _ in 0..8 {
            cluster.sees_the_template();
            cluster.decide();
            (0..RANKS).for_each(|rank| cluster.ends(&format!("ws-{rank}")));
            cluster.makes_pods();
        }
        cluster.sees_the_template();
        prop_assert_eq!(cluster.outdated(), Vec::<String>::new());
        prop_assert_eq!(cluster.decide().replaced, []);
    }
}
