//! The shell around [`decide`](crate::decide): watches the cluster, and carries decisions out while this replica is the leader.
//!
//! Every kind is watched once and kept in a [`Cache`](cache::Cache). A reconcile reads caches only (and what no watch tells:
//! the workspace's ConfigMap, the claim for its weights, and how far these are), and writes what its decision says. It never waits for the cluster to change: a change comes as an event of a
//! watch, and starts another reconcile.

mod backoff;
mod cache;
mod carry_out;
mod health;
mod image_volumes;
mod instance_types;
mod lease;
mod manifest;
mod metrics;
mod observe;
mod reconcile;
mod watches;
mod weights;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use kube::{Client, runtime::controller::Action};
use tokio::{net::TcpListener, sync::watch};

use self::{
    health::Health,
    lease::{Lease, Timing},
    metrics::Metrics,
    reconcile::Context,
    watches::Watches,
};
use crate::{
    decide,
    webhook::{self, CertificateOptions},
};

/// The field manager of everything that is applied, and the controller that events name.
pub const MANAGER: &str = "kaito-controller";

/// How the controller runs.
#[derive(Debug)]
pub struct Options {
    /// What decisions depend on besides the cluster.
    pub decide: decide::Options,
    /// The only namespace whose workspaces are reconciled; all where absent.
    pub namespace: Option<String>,
    /// The controller's own namespace, for its Lease and its ConfigMap.
    pub own_namespace: String,
    /// Name of this replica in the Lease and in events.
    pub identity: String,
    /// Whether replicas elect a leader.
    pub elects_leader: bool,
    /// The ConfigMap, in the controller's own namespace, that describes further instance types.
    pub instance_types: Option<String>,
    /// Address of the metrics.
    pub metrics_address: SocketAddr,
    /// Address of the health checks.
    pub health_address: SocketAddr,
    /// Counts lines of the log that were dropped; for the metrics.
    pub dropped_log_lines: Arc<AtomicU64>,
    /// The admission webhook, where it is to be served.
    pub webhook: Option<WebhookOptions>,
}

/// How the webhook is served beside the controller.
#[derive(Debug)]
pub struct WebhookOptions {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its certificates.
    pub certificates: CertificateOptions,
}

/// Why the controller cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address is in use, or not this machine's.
    #[error("cannot listen on {address} for {what}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What would listen there.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// The webhook cannot be served.
    #[error("the webhook: {0}")]
    Webhook(#[from] crate::Error),
}

/// How long running reconciles may take to end.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(20);
/// Most reconciles at a time. They wait for the API server nearly all the time.
const CONCURRENCY: u16 = 32;
/// Events of one workspace within this time cause one reconcile.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// Runs until `shutdown` becomes true: as the leader, or waiting to become it.
///
/// # Errors
///
/// [`Error`]. An API server that does not answer is not an error: requests are repeated.
pub async fn run(client: Client, mut options: Options, shutdown: watch::Receiver<bool>) -> Result<(), Error> {
    let metrics = Metrics::default();
    let dropped_log_lines = Arc::clone(&options.dropped_log_lines);
    metrics.register(|registry| kaito_metrics::count_dropped_log_lines(registry, dropped_log_lines));
    let webhook_metrics = webhook::Metrics::default();
    metrics.register(|registry| webhook_metrics.register(registry));
    let webhook = options.webhook.take();
    let health = Health::new(options.webhook.is_some());
    let listen = |address, what| async move {
        TcpListener::bind(address).await.map_err(|source| Error::Bind { address, what, source })
    };
    let metrics_listener = listen(options.metrics_address, "metrics").await?;
    let health_listener = listen(options.health_address, "health").await?;
    let (types, instance_types) = watch::channel(Arc::new(options.decide.instance_types.clone()));

    let serving =
        health::serve(metrics_listener, health_listener, metrics.clone(), health.clone(), ended(shutdown.clone()));
    let reading = instance_types::follow(&client, &options, types);
    // Every replica answers reviews, leader or not.
    let answering = async {
        let Some(WebhookOptions { address, certificates }) = webhook else {
            ended(shutdown.clone()).await;
            return Ok(());
        };
        let options = webhook::Options {
            address,
            certificates,
            instance_types: instance_types.clone(),
            metrics: webhook_metrics,
            ready: health.webhook.clone(),
        };
        webhook::serve(client.clone(), options, ended(shutdown.clone())).await
    };
    let leading = lead(&client, &options, &instance_types, &metrics, &health, shutdown.clone());
    tokio::select! {
        // It never ends by itself.
        () = reading => Ok(()),
        result = async {
            tokio::try_join!(answering, async {
                tokio::join!(serving, leading);
                Ok(())
            })
        } => result.map(|_| ()).map_err(Error::Webhook),
    }
}

/// Completes when `shutdown` has become true, or its sender is gone.
async fn ended(mut shutdown: watch::Receiver<bool>) {
    let _ = shutdown.wait_for(|end| *end).await;
}

/// Reconciles whenever this replica is the leader.
async fn lead(
    client: &Client,
    options: &Options,
    instance_types: &watch::Receiver<Arc<kaito_presets::InstanceTypes>>,
    metrics: &Metrics,
    health: &Health,
    shutdown: watch::Receiver<bool>,
) {
    let reconciling = || reconcile_all(client, options, instance_types.clone(), metrics, health, shutdown.clone());
    if !options.elects_leader {
        metrics.leader.set(1);
        return reconciling().await;
    }
    let lease = Lease::new(client.clone(), &options.own_namespace, &options.identity, Timing::default());
    while !*shutdown.borrow() {
        let acquired = tokio::select! {
            acquired = lease.acquire() => acquired,
            () = ended(shutdown.clone()) => return,
        };
        tracing::info!(identity = options.identity, "elected leader");
        metrics.leader.set(1);
        tokio::select! {
            biased;
            // Dropping the other branch ends it at once, requests in flight included: another replica may be the leader now.
            () = lease.keep(acquired) => tracing::warn!(identity = options.identity, "lost the lease, no longer the leader"),
            () = reconciling() => {}
        }
        metrics.leader.set(0);
        health.is_synced.store(true, Ordering::Relaxed);
        if *shutdown.borrow() {
            lease.release().await;
        }
    }
}

/// Reconciles every workspace until `shutdown`, then lets running reconciles end.
async fn reconcile_all(
    client: &Client,
    options: &Options,
    instance_types: watch::Receiver<Arc<kaito_presets::InstanceTypes>>,
    metrics: &Metrics,
    health: &Health,
    shutdown: watch::Receiver<bool>,
) {
    health.is_synced.store(false, Ordering::Relaxed);
    let (watches, queue) = Watches::start(client, options, instance_types.clone(), metrics);
    let workspaces = watches.workspaces.store();
    metrics.observe_workspaces(watches.workspaces.clone());
    let mut synced = watches.synced();
    let context = Arc::new(Context::new(client.clone(), options, instance_types, watches, metrics.clone()));
    let mark = async {
        if synced.wait_for(|synced| *synced).await.is_ok() {
            health.is_synced.store(true, Ordering::Relaxed);
            tracing::info!("all caches are filled");
        }
        std::future::pending::<()>().await;
    };
    let reconciles = kube::runtime::applier(
        |workspace, context: Arc<Context>| Box::pin(reconcile::reconcile(workspace, context)),
        |workspace, error, context: Arc<Context>| Action::requeue(context.failed(&workspace, error)),
        context,
        workspaces,
        queue.take_until(ended(shutdown.clone())),
        kube::runtime::Config::default().debounce(DEBOUNCE).concurrency(CONCURRENCY),
    );
    let limit = async {
        ended(shutdown.clone()).await;
        tokio::time::sleep(SHUTDOWN_LIMIT).await;
        tracing::warn!("ending although reconciles still run");
    };
    tokio::select! {
        () = reconciles.for_each(|_| std::future::ready(())) => {}
        () = mark => {}
        () = limit => {}
    }
}
