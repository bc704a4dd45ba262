//! Reconciles one workspace: observes the cluster, decides, carries the decision out, writes the status.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kaito_presets::InstanceTypes;
use kube::{
    Api, Client,
    runtime::{controller::Action, reflector::ObjectRef},
};
use tokio::sync::watch;

use super::{
    Options, backoff::Backoff, image_volumes::ImageVolumes, metrics::Metrics, watches::Watches, weights::WeightsOfAll,
};
use crate::{
    decide::{self, Config, Decision, ObjectKind, decide},
    workspace::Workspace,
};

/// What all reconciles share.
pub struct Context {
    pub(super) client: Client,
    pub(super) identity: String,
    pub(super) caches: Watches,
    pub(super) metrics: Metrics,
    options: decide::Options,
    pub(super) leading_since: Timestamp,
    instance_types: watch::Receiver<Arc<InstanceTypes>>,
    backoff: Backoff<ObjectRef<Workspace>>,
    /// Resource versions of objects that differ from what is wanted, and that applying did not change: a webhook of the cluster
    /// sets a field back, say. Applying again would change nothing either.
    pub(super) futile: Mutex<HashMap<(ObjectKind, String, String), String>>,
    pub(super) image_volumes: ImageVolumes,
    pub(super) weights: WeightsOfAll,
    /// Held while a rollout starts, so that two reconciles cannot both count the same free place.
    rollout_starts: tokio::sync::Mutex<()>,
}

/// Why a reconcile is tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A request failed.
    #[error("{what}: {source}")]
    Request {
        /// What was asked for.
        what: String,
        /// Why it failed.
        source: Box<kube::Error>,
    },
    /// The API server refused a write, and the status says so.
    #[error("the API server refuses {0}")]
    Refused(String),
}

impl Error {
    /// As a label of metrics.
    fn result(&self) -> &'static str {
        match self {
            Self::Request { .. } => "failed",
            Self::Refused(_) => "refused",
        }
    }
}

/// When a workspace is reconciled again though no watch reported a change: a safeguard.
const RESYNC: Duration = Duration::from_secs(600);
/// The same for workspaces with a ConfigMap, since ConfigMaps are not watched.
const CONFIG_RESYNC: Duration = Duration::from_secs(120);

impl Context {
    /// For all reconciles between gaining the lease and losing it.
    pub fn new(
        client: Client,
        options: &Options,
        instance_types: watch::Receiver<Arc<InstanceTypes>>,
        caches: Watches,
        metrics: Metrics,
    ) -> Self {
        Self {
            client,
            identity: options.identity.clone(),
            caches,
            metrics,
            options: options.decide.clone(),
            leading_since: Timestamp::now(),
            instance_types,
            backoff: Backoff::default(),
            futile: Mutex::default(),
            image_volumes: ImageVolumes::default(),
            weights: WeightsOfAll::default(),
            rollout_starts: tokio::sync::Mutex::default(),
        }
    }

    /// How long to wait after a failure.
    pub fn failed(&self, workspace: &Workspace, error: &Error) -> Duration {
        let delay = self.backoff.failed(ObjectRef::from_obj(workspace));
        tracing::warn!(
            namespace = workspace.namespace(),
            workspace = workspace.name(),
            %error,
            "reconcile failed, trying again in {delay:?}"
        );
        delay
    }

    fn options(&self) -> decide::Options {
        let instance_types = self.instance_types.borrow().as_ref().clone();
        decide::Options { instance_types, ..self.options.clone() }
    }

    /// The ConfigMap that a workspace names.
    async fn config(&self, workspace: &Workspace) -> Result<Config, Error> {
        let Some(name) = workspace.inference.as_ref().and_then(|inference| inference.config.as_deref()) else {
            return Ok(Config::NotRead);
        };
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), workspace.namespace());
        match api.get_opt(name).await {
            Ok(Some(map)) => Ok(Config::Data(map.data.unwrap_or_default())),
            Ok(None) => Ok(Config::Missing),
            Err(source) => {
                Err(Error::Request { what: format!("cannot read ConfigMap {name}"), source: Box::new(source) })
            }
        }
    }
}

/// Decides, and carries the decision out.
pub async fn reconcile(workspace: Arc<Workspace>, context: Arc<Context>) -> Result<Action, Error> {
    let mut synced = context.caches.synced();
    // Before the caches are filled, objects would look as if they did not exist.
    if synced.wait_for(|synced| *synced).await.is_err() {
        return Ok(Action::await_change());
    }
    let key = ObjectRef::from_obj(workspace.as_ref());
    context.metrics.begun(&key);
    // The object from the queue may be older than our own last write.
    let Some(workspace) = context.caches.workspaces.get(&key) else { return Ok(Action::await_change()) };
    let begun = Instant::now();
    let outcome = settle(&workspace, &context).await;
    let result = match &outcome {
        Ok((_, true)) => "changed",
        Ok((_, false)) => "unchanged",
        Err(error) => error.result(),
    };
    context.metrics.ended(result, begun.elapsed());
    let (requeue, _) = outcome?;
    context.backoff.succeeded(&key);
    let is_read = workspace.inference.as_ref().is_some_and(|inference| inference.config.is_some());
    let resync = if is_read { CONFIG_RESYNC } else { RESYNC };
    Ok(Action::requeue(requeue.map_or(resync, |requeue| requeue.min(resync))))
}

/// When to reconcile again, and whether anything was written.
async fn settle(workspace: &Arc<Workspace>, context: &Context) -> Result<(Option<Duration>, bool), Error> {
    let options = context.options();
    let config = context.config(workspace).await?;
    context.learn_of_weights(workspace).await?;
    let mut workspace = Arc::clone(workspace);
    let mut observed = context.observe(&workspace, config.clone(), Vec::new());
    let mut decision = decide(&workspace, &observed, &options, Timestamp::now());
    let mut start = None;
    if decision.starts_rollout {
        start = Some(context.rollout_starts.lock().await);
        observed = context.observe(&workspace, config.clone(), Vec::new());
        decision = decide(&workspace, &observed, &options, Timestamp::now());
    }
    // Nothing comes back to what is left behind.
    if decision.releases(&workspace) && context.learn_of_owned(&workspace).await? {
        observed = context.observe(&workspace, config.clone(), Vec::new());
        decision = decide(&workspace, &observed, &options, Timestamp::now());
    }

    let mut has_changed = false;
    if let Some(finalizers) = &decision.finalizers {
        match context.write_finalizers(&workspace, finalizers).await? {
            Some(current) if !finalizers.is_empty() => workspace = Arc::new(current),
            // It no longer exists, or its finalizer is removed.
            _ => {
                context.tell(&workspace, decision.deeds.iter()).await;
                return Ok((None, true));
            }
        }
        has_changed = true;
    }
    let refusals = context.carry_out(&workspace, &decision).await?;
    drop(start);
    if !observed.without_image_volumes && context.image_volumes.are_left_out() {
        // Weights come into the pods in another way now.
        return Ok((Some(Duration::ZERO), true));
    }
    has_changed |= !(decision.writes.is_empty() && decision.deletes.is_empty() && decision.replaced.is_empty());

    // The status is to include what was written just now.
    let last = if decision.writes.is_empty() {
        decision.clone()
    } else {
        decide(&workspace, &context.observe(&workspace, config, refusals.clone()), &options, Timestamp::now())
    };
    if let Some(status) = &last.status {
        if !context.write_status(&workspace, status).await? {
            clear_up(&workspace, context, &options).await?;
            return Ok((None, true));
        }
        has_changed = true;
    }
    let done: Vec<_> = if refusals.is_empty() { decision.deeds.clone() } else { Vec::new() };
    context.tell(&workspace, done.iter().chain(&last.notices)).await;
    log(&workspace, &decision, &last);
    match refusals.first() {
        Some(refusal) => Err(Error::Refused(format!("{} {}: {}", refusal.kind, refusal.name, refusal.message))),
        None => Ok((last.requeue, has_changed)),
    }
}

/// Deletes what was made for a workspace that is gone although it had its finalizer.
///
/// An API server that is about to delete an object without finalizers does not see one that is added at that moment.
async fn clear_up(workspace: &Workspace, context: &Context, options: &decide::Options) -> Result<(), Error> {
    let mut gone = workspace.clone();
    gone.metadata.deletion_timestamp = Some(Time(Timestamp::now()));
    if context.learn_of_owned(&gone).await? {
        let observed = context.observe(&gone, Config::NotRead, Vec::new());
        let decision = decide(&gone, &observed, options, Timestamp::now());
        context.carry_out(&gone, &decision).await?;
    }
    Ok(())
}

fn log(workspace: &Workspace, decision: &Decision, last: &Decision) {
    let state = last.status.as_ref().and_then(|status| status.state);
    if decision.is_empty() && last.is_empty() {
        tracing::debug!(namespace = workspace.namespace(), workspace = workspace.name(), "nothing to do");
    } else {
        tracing::info!(
            namespace = workspace.namespace(),
            workspace = workspace.name(),
            writes = decision.writes.len(),
            deletes = decision.deletes.len(),
            replaced = decision.replaced.len(),
            state = state.map(tracing::field::debug),
            "reconciled"
        );
    }
}
