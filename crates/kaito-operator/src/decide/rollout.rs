//! Rollouts: running models are restarted one after another where only the installation changed.
//!
//! Example: the controller is upgraded, or gets another `--preset-tag`. Either makes another pod template of the same
//! workspace, and to apply it everywhere would restart every model at once. So each workload has annotations with what its
//! pods were made from ([`Record`]: the author's manifest, the nodes, the installation) and with the template that was applied
//! ([`TEMPLATE`]). A change by the author or of the nodes is applied at once, with the images that the workload has. A change
//! of the installation alone is held back until the workload's rollout starts ([`obstacle`] says what it waits for).

use std::{ops::RangeInclusive, time::Duration};

use k8s_openapi::{
    api::core::v1::PodTemplateSpec,
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    jiff::{SignedDuration, Timestamp},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    model::Model,
    object::{APPLIED, Object},
    observed::{Config, Observed},
    options::Options,
    rollout_policy::{RolloutPolicy, Rollouts},
    workload,
};
use crate::{
    layout::Layout,
    reason::Problem,
    text,
    workspace::{ANNOTATION_RUNTIME, Workspace},
};

/// On a workload: what its pods were made from.
pub const RECORD: &str = "kaito.sh/made-from";
/// On a workload: the template of its pods as it was applied.
pub const TEMPLATE: &str = "kaito.sh/pod-template";
/// On a workload whose rollout is under way: since when.
pub const ROLLOUT: &str = "kaito.sh/rollout";

/// Longest template that is kept. All annotations of an object together may have 256 KiB.
const LONGEST_TEMPLATE: usize = 200 << 10;
/// Bounds of how often a workload that waits for other rollouts is looked at again; between them it is the policy's pause.
const LOOK_AGAIN: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60);

/// The images that an installation decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Images {
    registry: Option<String>,
    tag: String,
    server: Option<String>,
    vllm: String,
    /// Absent from what earlier releases made.
    #[serde(default)]
    vllm_rocm: Option<String>,
}

impl Images {
    fn of(options: &Options) -> Self {
        Self {
            registry: options.preset_registry.clone(),
            tag: options.preset_tag.clone(),
            server: options.server_image.clone(),
            vllm: options.vllm_image.clone(),
            vllm_rocm: Some(options.vllm_rocm_image.clone()),
        }
    }

    /// The options of a controller with these images.
    fn instead_of(&self, options: &Options) -> Options {
        Options {
            preset_registry: self.registry.clone(),
            preset_tag: self.tag.clone(),
            server_image: self.server.clone(),
            vllm_image: self.vllm.clone(),
            vllm_rocm_image: self.vllm_rocm.clone().unwrap_or_else(|| options.vllm_rocm_image.clone()),
            ..options.clone()
        }
    }
}

/// What the pods of a workload were made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    /// The controller's version. `facts` can be compared within one version only.
    version: String,
    /// Hash of what the author wrote: the workspace's generation, its runtime, its ConfigMap.
    author: String,
    /// Hash of what this version of the controller read of it, and of the layout, which depends on the nodes.
    facts: String,
    images: Images,
}

impl Record {
    fn of(workspace: &Workspace, layout: &Layout, observed: &Observed, options: &Options) -> Self {
        let hash = |mut value: Value| {
            value.sort_all_objects();
            text::digest(&value.to_string())
        };
        let config = match &observed.config {
            Config::Data(data) => json!(data),
            Config::NotRead | Config::Missing => Value::Null,
        };
        let runtime = workspace.annotation(ANNOTATION_RUNTIME);
        let facts = json!([workspace.resource, workspace.inference, format!("{layout:?}")]);
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            author: hash(json!([workspace.metadata.generation, runtime, config])),
            facts: hash(facts),
            images: Images::of(options),
        }
    }

    /// Whether the author or the nodes have changed since a workload was made from this.
    fn is_outdated(&self, now: &Self) -> bool {
        self.author != now.author || self.version == now.version && self.facts != now.facts
    }
}

/// The workload in the cluster.
struct Live<'a> {
    metadata: &'a ObjectMeta,
    template: Option<&'a PodTemplateSpec>,
}

impl<'a> Live<'a> {
    /// The workload of the kind of `wanted`.
    fn of(wanted: &Object, observed: &'a Observed) -> Option<Self> {
        match wanted {
            Object::Deployment(_) => observed
                .deployment
                .as_ref()
                .map(|live| Self { metadata: &live.metadata, template: live.spec.as_ref().map(|spec| &spec.template) }),
            Object::StatefulSet(_) => observed
                .stateful_set
                .as_ref()
                .map(|live| Self { metadata: &live.metadata, template: live.spec.as_ref().map(|spec| &spec.template) }),
            Object::Service(_) | Object::NetworkPolicy(_) | Object::NodeClaim(_) => None,
        }
    }

    fn annotation(&self, key: &str) -> Option<&'a str> {
        self.metadata.annotations.as_ref()?.get(key).map(String::as_str)
    }

    fn record(&self) -> Option<Record> {
        serde_json::from_str(self.annotation(RECORD)?).ok()
    }
}

/// Since when a workload's rollout is under way, if it is.
pub fn under_way_since(metadata: &ObjectMeta) -> Option<Timestamp> {
    metadata.annotations.as_ref()?.get(ROLLOUT)?.parse().ok()
}

/// The workload that a workspace is to have, and what it keeps until its rollout.
pub struct Draft {
    /// As this controller makes it.
    fresh: Object,
    record: Record,
    /// What stays until the rollout, if that is something else.
    held: Option<Held>,
    under_way: Option<Timestamp>,
}

struct Held {
    /// The pods that stay, and what they were made from; where that is not known, the workload is left as it is.
    pods: Option<(PodTemplateSpec, Record)>,
    /// What the rollout will change, in words.
    change: String,
}

impl Draft {
    /// What a workspace is to have.
    ///
    /// # Errors
    ///
    /// Where the workspace asks for what cannot be had.
    pub fn of(
        workspace: &Workspace,
        model: &Model<'_>,
        layout: &Layout,
        observed: &Observed,
        options: &Options,
    ) -> Result<Self, Problem> {
        let make = |options: &Options| workload::workload(workspace, model, layout, options);
        let fresh = make(options)?;
        let record = Record::of(workspace, layout, observed, options);
        let Some(live) = Live::of(&fresh, observed) else {
            return Ok(Self { fresh, record, held: None, under_way: None });
        };
        let under_way = under_way_since(live.metadata);
        let wanted = fresh.template().map(json_of);
        let pods = match live.record() {
            // Made by a release that kept no record, but it is what this release would apply.
            None if live.annotation(APPLIED) == seal_of(fresh.clone().sealed()).as_deref() => {
                return Ok(Self { fresh, record, held: None, under_way });
            }
            None => None,
            Some(made_from) if made_from.is_outdated(&record) => {
                // With the images that it has, if they can serve what is asked for now.
                match make(&made_from.images.instead_of(options)) {
                    Ok(kept) => kept
                        .template()
                        .cloned()
                        .map(|template| (template, Record { images: made_from.images.clone(), ..record.clone() })),
                    Err(_) => return Ok(Self { fresh, record, held: None, under_way }),
                }
            }
            Some(made_from) => live
                .annotation(TEMPLATE)
                .and_then(|template| serde_json::from_str(template).ok())
                .map(|template| (template, made_from)),
        };
        let is_same = pods.as_ref().is_some_and(|(template, _)| Some(json_of(template)) == wanted);
        let before = pods.as_ref().map(|(template, _)| template).or(live.template);
        let change = change(before, fresh.template());
        let held = (!is_same).then_some(Held { pods, change });
        Ok(Self { fresh, record, held, under_way })
    }

    /// The pods until the rollout.
    pub fn template<'a>(&'a self, observed: &'a Observed) -> Option<&'a PodTemplateSpec> {
        match &self.held {
            None => self.fresh.template(),
            Some(Held { pods: Some((template, _)), .. }) => Some(template),
            Some(Held { pods: None, .. }) => Live::of(&self.fresh, observed)?.template,
        }
    }

    /// What is to become of the workload now.
    pub fn settled(self, health: &Health, rollouts: &Rollouts, policy: &RolloutPolicy, now: Timestamp) -> Settled {
        let Self { fresh, record, held, under_way } = self;
        let Some(held) = held else {
            // A rollout ends when all pods have answered for the policy's pause.
            let ends = health.answers_since.and_then(|since| after(since, policy.pause));
            let since = under_way.filter(|_| ends.is_none_or(|ends| ends > now));
            let state = match since {
                Some(since) => State::UnderWay { since, ends },
                None => State::Current,
            };
            return Settled { object: noted(fresh, &record, since), state, starts: false };
        };
        if let Some(since) = under_way {
            return Settled {
                object: noted(fresh, &record, Some(since)),
                state: State::UnderWay { since, ends: None },
                starts: false,
            };
        }
        match obstacle(health, rollouts, policy, now) {
            None => {
                // A model that fails anyway does not count as under way: no other rollout has to wait for it.
                let since = (!health.fails).then_some(now);
                let state = since.map_or(State::Current, |since| State::UnderWay { since, ends: None });
                Settled { object: noted(fresh, &record, since), state, starts: true }
            }
            Some((waits, again)) => Settled {
                object: held.pods.and_then(|(template, record)| noted(fresh.with_template(template), &record, None)),
                state: State::Due { message: format!("{}; it waits {waits}", held.change), again },
                starts: false,
            },
        }
    }
}

/// How a workload's pods are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    /// Whether there are as many nodes as are asked for.
    pub has_nodes: bool,
    /// Since when all pods answer, and all are of the last template; `None` where not all do.
    pub answers_since: Option<Timestamp>,
    /// Whether no pod answers, for a cause that does not pass by itself.
    pub fails: bool,
}

/// What is to become of a workload.
pub struct Settled {
    /// As it is to be applied; `None` where it is left as it is.
    pub object: Option<Object>,
    /// How far its rollout is.
    pub state: State,
    /// Whether its rollout starts now; see [`Decision::starts_rollout`](super::Decision::starts_rollout).
    pub starts: bool,
}

/// How far a workload's rollout is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The workload is as this controller makes it.
    Current,
    /// The workload is to change, and waits.
    Due {
        /// What will change, and what it waits for.
        message: String,
        /// When to reconcile again.
        again: Option<Timestamp>,
    },
    /// The pods are being replaced, or have not answered for long enough.
    UnderWay {
        /// Since when.
        since: Timestamp,
        /// When it ends, once all pods answer.
        ends: Option<Timestamp>,
    },
}

impl State {
    /// When to reconcile again though nothing happens.
    pub fn look_again_at(&self) -> Option<Timestamp> {
        match self {
            Self::Current => None,
            Self::Due { again, .. } => *again,
            Self::UnderWay { ends, .. } => *ends,
        }
    }
}

/// What a rollout that is due waits for, and when that may be over; `None` where it may start.
fn obstacle(
    health: &Health,
    rollouts: &Rollouts,
    policy: &RolloutPolicy,
    now: Timestamp,
) -> Option<(String, Option<Timestamp>)> {
    if !health.has_nodes {
        return Some(("until its nodes are ready".to_owned(), None));
    }
    if health.answers_since.is_none() && !health.fails {
        return Some(("until its pods answer".to_owned(), None));
    }
    if let Some(opens) = policy.closed_until(now) {
        let message = format!("for a maintenance window, which opens at {}", text::time(opens));
        return Some((message, Some(opens)));
    }
    let begins = rollouts.leading_since.and_then(|since| after(since, policy.pause)).filter(|begins| *begins > now);
    if let Some(begins) = begins {
        let message = format!(
            "until {}, {} after this replica of the controller was elected leader",
            text::time(begins),
            pause(policy)
        );
        return Some((message, Some(begins)));
    }
    if !health.fails && rollouts.under_way.len() >= policy.at_once as usize {
        let others = text::list(&rollouts.under_way);
        let message =
            format!("until {others} has answered for {} (at most {} at a time)", pause(policy), policy.at_once);
        return Some((message, after(now, policy.pause.clamp(*LOOK_AGAIN.start(), *LOOK_AGAIN.end()))));
    }
    None
}

fn pause(policy: &RolloutPolicy) -> String {
    text::duration(i64::try_from(policy.pause.as_secs()).unwrap_or(i64::MAX))
}

fn after(time: Timestamp, duration: Duration) -> Option<Timestamp> {
    time.checked_add(SignedDuration::try_from(duration).ok()?).ok()
}

/// The workload with annotations of what it was made from.
fn noted(mut object: Object, record: &Record, under_way: Option<Timestamp>) -> Option<Object> {
    let template = object.template().map(|template| json_of(template).to_string());
    let annotations = object.metadata_mut().annotations.get_or_insert_default();
    annotations.insert(RECORD.to_owned(), serde_json::to_string(record).unwrap_or_default());
    if let Some(template) = template.filter(|template| template.len() <= LONGEST_TEMPLATE) {
        annotations.insert(TEMPLATE.to_owned(), template);
    }
    if let Some(since) = under_way {
        annotations.insert(ROLLOUT.to_owned(), text::time(since));
    }
    Some(object)
}

fn seal_of(object: Object) -> Option<String> {
    object.metadata().annotations.as_ref()?.get(APPLIED).cloned()
}

fn json_of(template: &PodTemplateSpec) -> Value {
    let mut json = serde_json::to_value(template).unwrap_or_default();
    json.sort_all_objects();
    json
}

/// What a rollout changes, in words.
fn change(before: Option<&PodTemplateSpec>, after: Option<&PodTemplateSpec>) -> String {
    let (before, after) = (images(before), images(after));
    let changed: Vec<_> = before.iter().zip(&after).filter(|(before, after)| before != after).collect();
    match changed.first() {
        Some((before, after)) => format!("the pods run {before}, and are to run {after}"),
        None => "this release of the controller makes other pods than those that run".to_owned(),
    }
}

/// The images of a template's containers and volumes.
fn images(template: Option<&PodTemplateSpec>) -> Vec<&str> {
    let Some(spec) = template.and_then(|template| template.spec.as_ref()) else { return Vec::new() };
    let containers = spec.containers.iter().filter_map(|container| container.image.as_deref());
    let volumes = spec.volumes.iter().flatten().filter_map(|volume| volume.image.as_ref()?.reference.as_deref());
    containers.chain(volumes).collect()
}
