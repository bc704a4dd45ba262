//! The admission webhook: HTTPS for the API server, with certificates that it makes and renews itself.
//!
//! A review is a pure function of its request ([`review`]), and every replica answers, leader or not. Where no replica answers,
//! the API server refuses workspaces: the webhook configurations have `failurePolicy: Fail`.

mod certificates;
#[cfg(test)]
mod fake_api_server;
mod metrics;
mod review;
mod server;

use std::{net::SocketAddr, sync::Arc};

pub use certificates::{CertificateManager, CertificateOptions, Clock, Lifetimes, service_names};
use kaito_presets::InstanceTypes;
use kube::Client;
pub use metrics::Metrics;
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
    task::JoinError,
};
use tokio_rustls::TlsAcceptor;

use crate::Error;

/// How the webhook serves.
#[derive(Debug)]
pub struct Options {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its certificates.
    pub certificates: CertificateOptions,
    /// The instance types that the rules know, as they are now.
    pub instance_types: watch::Receiver<Arc<InstanceTypes>>,
    /// What it counts.
    pub metrics: Metrics,
    /// Becomes true once it listens, has a certificate, and the API server has been told to trust it.
    pub ready: watch::Sender<bool>,
}

/// A webhook that listens, and does not answer yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    options: Options,
}

impl Server {
    /// Listens on the address of `options`.
    ///
    /// # Errors
    ///
    /// [`Error::Bind`].
    pub async fn bind(options: Options) -> Result<Self, Error> {
        let failed = |source| Error::Bind { address: options.address, source };
        let listener = TcpListener::bind(options.address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address, options })
    }

    /// The address that it listens on, with the port that the system chose where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers reviews until `shutdown` completes.
    ///
    /// # Errors
    ///
    /// [`Error::Tls`]. What fails later is logged and tried again.
    pub async fn run(self, client: Client, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let Options { certificates, instance_types, metrics, ready, .. } = self.options;
        let manager = CertificateManager::new(client, certificates, metrics.clone());
        let tls = server::tls(manager.resolver())?;
        tracing::info!(address = %self.address, "the webhook listens");
        let reviewer = server::Reviewer::new(instance_types, metrics);
        let served = tokio::select! {
            served = serve_apart(self.listener, self.address, tls, reviewer, shutdown) => served,
            () = manager.run(&ready) => Ok(()),
        };
        ready.send_replace(false);
        served
    }
}

/// Answers on a thread of its own. Somebody waits for each review; on the common runtime it would wait behind the tasks of a
/// burst of reconciles.
async fn serve_apart(
    listener: TcpListener,
    address: SocketAddr,
    tls: TlsAcceptor,
    reviewer: server::Reviewer,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let failed = move |source| Error::Bind { address, source };
    let listener = listener.into_std().map_err(failed)?;
    let (end, ended) = oneshot::channel::<()>();
    let mut thread = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).map_err(failed)?;
            // It also ends when the future of this function is dropped.
            server::serve(listener, tls, reviewer, async { drop(ended.await) }).await;
            Ok(())
        })
    });
    let broken = |error: JoinError| failed(std::io::Error::other(error));
    tokio::select! {
        served = &mut thread => return served.map_err(broken)?,
        () = shutdown => drop(end),
    }
    thread.await.map_err(broken)?
}

/// Listens and answers reviews until `shutdown` completes.
///
/// # Errors
///
/// [`Error::Bind`], [`Error::Tls`].
pub async fn serve(client: Client, options: Options, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    Server::bind(options).await?.run(client, shutdown).await
}

#[cfg(test)]
mod tests;
