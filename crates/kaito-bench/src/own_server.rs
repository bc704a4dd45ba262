//! A kaito server in this process, started for the tables of rates and clients.

use std::{convert::Infallible, net::Ipv4Addr, time::Duration};

use kaito_engine::LanguageModel;
use kaito_server::{Server, ServerOptions, ShutdownHandle};
use tokio::task::JoinHandle;
use url::Url;

use crate::Error;

/// Longer than any row takes, so that the server's limit never ends a measured request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// A kaito server in this process.
pub(crate) struct OwnServer {
    pub(crate) url: Url,
    shutdown: ShutdownHandle,
    running: JoinHandle<Result<(), kaito_server::Error>>,
}

impl OwnServer {
    /// Listens on a free port of this machine.
    pub(crate) async fn start(model: LanguageModel, name: &str) -> Result<Self, Error> {
        let options = ServerOptions {
            address: (Ipv4Addr::LOCALHOST, 0).into(),
            request_timeout: REQUEST_TIMEOUT,
            drain_limit: Duration::ZERO,
            model_name: name.to_owned(),
            ..ServerOptions::default()
        };
        let server = Server::bind(options).await.map_err(Error::OwnServer)?;
        let shutdown = server.shutdown_handle();
        let url = Url::parse(&format!("http://{}", server.local_addr()))
            .map_err(|error| Error::Settings(format!("no address for a server of our own: {error}")))?;
        let running = tokio::spawn(server.run(move |_: &(dyn Fn(f32) + Sync)| Ok::<_, NoFailure>(model)));
        Ok(Self { url, shutdown, running })
    }

    /// Whether it still runs; if not, why.
    pub(crate) async fn check(&mut self) -> Result<(), Error> {
        if !self.running.is_finished() {
            return Ok(());
        }
        Err(Error::OwnServerEnded(match (&mut self.running).await {
            Ok(Ok(())) => "it was told to end".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        }))
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        self.shutdown.shutdown();
        self.running.abort();
    }
}

/// The model is there already.
#[derive(Debug)]
struct NoFailure(Infallible);

impl From<NoFailure> for Box<dyn std::error::Error + Send + Sync> {
    fn from(never: NoFailure) -> Self {
        match never.0 {}
    }
}
