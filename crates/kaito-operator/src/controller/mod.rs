//! The shell around [`decide`](crate::decide): watches the cluster, carries decisions out, and leads alone.
//!
//! Every kind is watched once and kept in a [`Cache`](cache::Cache); a reconcile reads caches only, and writes what its
//! decision says. Nothing in it waits for the cluster to change: whatever changes comes as an event and is decided anew.

mod backoff;
mod cache;
mod carry_out;
mod health;
mod instance_types;
mod lease;
mod manifest;
mod metrics;
mod observe;
mod reconcile;
mod watches;

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
    /// What workspaces get.
    pub decide: decide::Options,
    /// Only workspaces of this namespace; of all if absent.
    pub namespace: Option<String>,
    /// The controller's own namespace, for its Lease and its ConfigMap.
    pub own_namespace: String,
    /// Tells this replica from others.
    pub identity: String,
    /// Whether replicas agree on one that leads.
    pub elects_leader: bool,
    /// The ConfigMap, in the controller's own namespace, that describes further instance types.
    pub instance_types: Option<String>,
    /// Where metrics are read.
    pub metrics_address: SocketAddr,
    /// Where health is read.
    pub health_address: SocketAddr,
    /// Lines of the log that were dropped, as whoever writes the log counts them; for the metrics.
    pub dropped_log_lines: Arc<AtomicU64>,
    /// The webhook, where it is to be served.
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
/// Reconciles at once. They wait for the API server nearly all their time.
const CONCURRENCY: u16 = 32;
/// Events of one object in this time are one reason to look.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// Runs until `shutdown` becomes true: leads, or waits to.
///
/// # Errors
///
/// [`Error`]. An API server that does not answer is no reason to end.
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
    // Every replica answers, whoever leads.
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
        // It ends only with the others.
        () = reading => Ok(()),
        result = async {
            tokio::try_join!(answering, async {
                tokio::join!(serving, leading);
                Ok(())
            })
        } => result.map(|_| ()).map_err(Error::Webhook),
    }
}

/// Completes when `shutdown` has become true, or nobody can make it so any more.
async fn ended(mut shutdown: watch::Receiver<bool>) {
    let _ = shutdown.wait_for(|end| *end).await;
}

/// Leads whenever no other replica does.
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
        tracing::info!(identity = options.identity, "leading");
        metrics.leader.set(1);
        tokio::select! {
            biased;
            // Dropping the other branch ends it at once, requests in flight included: another may lead from now on.
            () = lease.keep(acquired) => tracing::warn!(identity = options.identity, "lost the lease, leading no longer"),
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
