//! When the pods of a running model may change, though nobody asked for it.
//!
//! A newer controller, or another tag of its images, makes other pods of the same workspace. To apply them would restart every
//! model at once. So a workload says what its pods were made from: of the workspace's author, of the nodes, and of the
//! controller ([`Record`]), and what they are ([`TEMPLATE`]). What the author or the nodes change is applied at once, with
//! the images that the workload has; what the controller alone changes waits for the workload's turn.

use std::{ops::RangeInclusive, time::Duration};

use k8s_openapi::{
    api::core::v1::PodTemplateSpec,
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    jiff::{SignedDuration, Timestamp},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    Problem,
    layout::Layout,
    object::{APPLIED, Object},
    observed::{Config, Observed},
    options::Options,
    text,
    window::Window,
    workload,
};
use crate::workspace::{ANNOTATION_RUNTIME, InferenceSpec, Workspace};

/// On a workload: what its pods were made from.
pub const RECORD: &str = "kaito.sh/made-from";
/// On a workload: the template of its pods as it was applied.
pub const TEMPLATE: &str = "kaito.sh/pod-template";
/// On a workload whose pods are being changed in its turn: since when.
pub const ROLLOUT: &str = "kaito.sh/rollout";

/// Longest template that is kept. All annotations of an object may have 256 KiB.
const LONGEST_TEMPLATE: usize = 200 << 10;
/// How often a workload that waits for others looks whether they have ended: as often as one may end, within these.
const LOOK_AGAIN: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60);

/// When running models may be restarted for what the controller alone changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolloutPolicy {
    /// So many models at a time.
    pub at_once: u32,
    /// Begun only in one of these; at any time where there are none.
    pub windows: Vec<Window>,
    /// How long a model must have answered before the next one's turn, and the controller have led before the first one's.
    pub pause: Duration,
}

impl RolloutPolicy {
    /// How many at a time, where nobody says it.
    pub const AT_ONCE: u32 = 1;
    /// How long between them, where nobody says it.
    pub const PAUSE: Duration = Duration::from_secs(60);

    /// When the next window opens, if all are closed.
    fn closed_until(&self, now: Timestamp) -> Option<Timestamp> {
        if self.windows.is_empty() || self.windows.iter().any(|window| window.is_open(now)) {
            return None;
        }
        self.windows.iter().filter_map(|window| window.opens(now)).min()
    }
}

impl Default for RolloutPolicy {
    fn default() -> Self {
        Self { at_once: Self::AT_ONCE, windows: Vec::new(), pause: Self::PAUSE }
    }
}

/// Rollouts of the whole cluster, as one workspace sees them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rollouts {
    /// `namespace/name` of the other workspaces whose turn it is.
    pub under_way: Vec<String>,
    /// Since when this controller leads.
    pub leading_since: Option<Timestamp>,
}

/// The images that an installation decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Images {
    registry: Option<String>,
    tag: String,
    server: Option<String>,
    vllm: String,
}

impl Images {
    fn of(options: &Options) -> Self {
        Self {
            registry: options.preset_registry.clone(),
            tag: options.preset_tag.clone(),
            server: options.server_image.clone(),
            vllm: options.vllm_image.clone(),
        }
    }

    /// The options of a controller that has these.
    fn instead_of(&self, options: &Options) -> Options {
        Options {
            preset_registry: self.registry.clone(),
            preset_tag: self.tag.clone(),
            server_image: self.server.clone(),
            vllm_image: self.vllm.clone(),
            ..options.clone()
        }
    }
}

/// What the pods of a workload were made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    /// The controller's version. What it reads out of the rest is comparable within one version only.
    version: String,
    /// Hash of what the author wrote, in the API server's own terms.
    author: String,
    /// Hash of what this version read of it, and of the nodes.
    facts: String,
    images: Images,
}

impl Record {
    fn of(workspace: &Workspace, layout: &Layout, observed: &Observed, options: &Options) -> Self {
        let config = match &observed.config {
            Config::Data(data) => json!(data),
            Config::NotRead | Config::Missing => Value::Null,
        };
        let runtime = workspace.annotation(ANNOTATION_RUNTIME);
        let facts = json!([workspace.resource, workspace.inference, format!("{layout:?}")]);
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            author: hash(&json!([workspace.metadata.generation, runtime, config])),
            facts: hash(&facts),
            images: Images::of(options),
        }
    }

    /// Whether a workload made from this is to change for its author's or its nodes' sake.
    fn is_outdated(&self, now: &Self) -> bool {
        self.author != now.author || self.version == now.version && self.facts != now.facts
    }
}

fn hash(value: &Value) -> String {
    Sha256::digest(value.to_string()).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The workload as it is.
struct Live<'a> {
    metadata: &'a ObjectMeta,
    template: Option<&'a PodTemplateSpec>,
}

impl<'a> Live<'a> {
    /// Of the kind of `wanted`.
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
            Object::Service(_) | Object::NodeClaim(_) => None,
        }
    }

    fn annotation(&self, key: &str) -> Option<&'a str> {
        self.metadata.annotations.as_ref()?.get(key).map(String::as_str)
    }

    fn record(&self) -> Option<Record> {
        serde_json::from_str(self.annotation(RECORD)?).ok()
    }
}

/// Since when it is the turn of a workload, if it is.
pub fn under_way_since(metadata: &ObjectMeta) -> Option<Timestamp> {
    metadata.annotations.as_ref()?.get(ROLLOUT)?.parse().ok()
}

/// The workload that a workspace is to have, and what it keeps until its turn.
pub struct Draft {
    /// As this controller makes it.
    fresh: Object,
    record: Record,
    /// What stays until its turn, if that is something else.
    held: Option<Held>,
    under_way: Option<Timestamp>,
}

struct Held {
    /// With what this was made from; the workload is left as it is where that is not known.
    pods: Option<(PodTemplateSpec, Record)>,
    /// What will become of what.
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
        inference: &InferenceSpec,
        layout: &Layout,
        observed: &Observed,
        options: &Options,
    ) -> Result<Self, Problem> {
        let make = |options: &Options| workload::workload(workspace, inference, layout, observed, options);
        let fresh = make(options)?;
        let record = Record::of(workspace, layout, observed, options);
        let Some(live) = Live::of(&fresh, observed) else {
            return Ok(Self { fresh, record, held: None, under_way: None });
        };
        let under_way = under_way_since(live.metadata);
        let wanted = fresh.template().map(json_of);
        let pods = match live.record() {
            // Of a release that kept no record: what it applied has a hash, and no more.
            None if live.annotation(APPLIED) == seal_of(fresh.clone().sealed()).as_deref() => {
                return Ok(Self { fresh, record, held: None, under_way });
            }
            None => None,
            Some(made_from) if made_from.is_outdated(&record) => {
                // With its images, for as long as they can make what is asked for now.
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

    /// The pods that there will be for now.
    pub fn template<'a>(&'a self, observed: &'a Observed) -> Option<&'a PodTemplateSpec> {
        match &self.held {
            None => self.fresh.template(),
            Some(Held { pods: Some((template, _)), .. }) => Some(template),
            Some(Held { pods: None, .. }) => Live::of(&self.fresh, observed)?.template,
        }
    }

    /// What is to become of the workload now.
    pub fn settled(self, condition: &Health, rollouts: &Rollouts, policy: &RolloutPolicy, now: Timestamp) -> Settled {
        let Self { fresh, record, held, under_way } = self;
        let Some(held) = held else {
            // Its turn ends when it has answered for a while.
            let ends = condition.answers_since.and_then(|since| after(since, policy.pause));
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
        match obstacle(condition, rollouts, policy, now) {
            None => {
                // What does not answer anyway holds up nobody.
                let since = (!condition.fails).then_some(now);
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

/// How a workload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    /// Whether there are as many nodes as are asked for.
    pub has_nodes: bool,
    /// Since when all its pods, all of the last template, answer; `None` where not all do.
    pub answers_since: Option<Timestamp>,
    /// Whether no pod answers, and for a cause that does not pass by itself.
    pub fails: bool,
}

/// What is to become of a workload.
pub struct Settled {
    /// As it is to be applied; `None` where it is left as it is.
    pub object: Option<Object>,
    /// How far it is.
    pub state: State,
    /// Whether its turn begins now: to be asked again where nobody else can begin one at the same time.
    pub starts: bool,
}

/// How far a workload's rollout is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It is as this controller makes it.
    Current,
    /// It is to change, and waits for its turn.
    Due {
        /// What will change, and what it waits for.
        message: String,
        /// When to look again.
        again: Option<Timestamp>,
    },
    /// It is its turn.
    UnderWay {
        /// Since when.
        since: Timestamp,
        /// When it ends, once all pods answer.
        ends: Option<Timestamp>,
    },
}

impl State {
    /// When to look again though nothing happens.
    pub fn look_again_at(&self) -> Option<Timestamp> {
        match self {
            Self::Current => None,
            Self::Due { again, .. } => *again,
            Self::UnderWay { ends, .. } => *ends,
        }
    }
}

/// What a workload whose pods are to change waits for, and when that may be over.
fn obstacle(
    condition: &Health,
    rollouts: &Rollouts,
    policy: &RolloutPolicy,
    now: Timestamp,
) -> Option<(String, Option<Timestamp>)> {
    if !condition.has_nodes {
        return Some(("until its nodes are ready".to_owned(), None));
    }
    if condition.answers_since.is_none() && !condition.fails {
        return Some(("until its pods answer".to_owned(), None));
    }
    if let Some(opens) = policy.closed_until(now) {
        let message = format!("for a maintenance window, which opens at {}", text::time(opens));
        return Some((message, Some(opens)));
    }
    let begins = rollouts.leading_since.and_then(|since| after(since, policy.pause)).filter(|begins| *begins > now);
    if let Some(begins) = begins {
        let message = format!("until {}, {} after the controller began to lead", text::time(begins), pause(policy));
        return Some((message, Some(begins)));
    }
    if !condition.fails && rollouts.under_way.len() >= policy.at_once as usize {
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

/// The workload with what it was made from.
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
    serde_json::to_value(template).unwrap_or_default()
}

/// What becomes of what, in words.
fn change(before: Option<&PodTemplateSpec>, after: Option<&PodTemplateSpec>) -> String {
    let (before, after) = (images(before), images(after));
    let changed: Vec<_> = before.iter().zip(&after).filter(|(before, after)| before != after).collect();
    match changed.first() {
        Some((before, after)) => format!("the pods run {before}, and are to run {after}"),
        None => "this release of the controller makes other pods than those that run".to_owned(),
    }
}

/// The images of containers and volumes.
fn images(template: Option<&PodTemplateSpec>) -> Vec<&str> {
    let Some(spec) = template.and_then(|template| template.spec.as_ref()) else { return Vec::new() };
    let containers = spec.containers.iter().filter_map(|container| container.image.as_deref());
    let volumes = spec.volumes.iter().flatten().filter_map(|volume| volume.image.as_ref()?.reference.as_deref());
    containers.chain(volumes).collect()
}
