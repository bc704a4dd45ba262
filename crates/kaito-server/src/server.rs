//! A server's life: bind, load, serve, end.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::connection;
use crate::error::Error;
use crate::model::Model;
use crate::options::ServerOptions;
use crate::routes;
use crate::shutdown;
use crate::state::{App, Phase};

/// A server that listens, and does not answer yet.
pub struct Server {
    listener: TcpListener,
    local_addr: SocketAddr,
    app: Arc<App>,
}

/// Ends a server from within the process, as SIGTERM does from outside.
#[derive(Clone)]
pub struct ShutdownHandle(Arc<App>);

impl ShutdownHandle {
    /// Begins the orderly end; [`Server::run`] returns when it is done.
    pub fn shutdown(&self) {
        self.0.advance_to(Phase::Draining);
    }
}

/// Tells what the loading of the model waits for, where that is not this process.
#[derive(Clone)]
pub struct LoadingNote(Arc<App>);

impl LoadingNote {
    /// The reason that health checks and refused requests get until the model is loaded: a part of a sentence.
    pub fn waits_for(&self, what: impl Into<String>) {
        self.0.waits_for(what.into());
    }
}

impl Server {
    /// Listens on the address of `options`.
    ///
    /// # Errors
    /// [`Error::Bind`].
    pub async fn bind(options: ServerOptions) -> Result<Self, Error> {
        let address = options.address;
        let failed = |source| Error::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let local_addr = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, local_addr, app: Arc::new(App::new(options)) })
    }

    /// The address that the server listens on, with the port that the system chose if it was to choose.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// A handle that ends the server from within the process.
    pub fn shutdown_handle(&self) -> ShutdownHandle {
        ShutdownHandle(Arc::clone(&self.app))
    }

    /// What tells why loading takes long.
    pub fn loading_note(&self) -> LoadingNote {
        LoadingNote(Arc::clone(&self.app))
    }

    /// Loads the model with `loader`, on a thread of its own, and answers requests until SIGTERM, ctrl-c, a shutdown
    /// request or a [`ShutdownHandle`] ends the server. While the model loads, `/healthz` gives the fraction that
    /// `loader` reports.
    ///
    /// # Errors
    /// [`Error::Load`] when the loader fails.
    pub async fn run<M, E>(
        self,
        loader: impl FnOnce(&(dyn Fn(f32) + Sync)) -> Result<M, E> + Send + 'static,
    ) -> Result<(), Error>
    where
        M: Model,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        self.run_and_tell(loader, |_| {}).await
    }

    /// [`Self::run`], which calls `ready` as soon as requests are answered.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn run_and_tell<M, E>(
        self,
        loader: impl FnOnce(&(dyn Fn(f32) + Sync)) -> Result<M, E> + Send + 'static,
        ready: impl FnOnce(&M) + Send + 'static,
    ) -> Result<(), Error>
    where
        M: Model,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        let Self { listener, app, .. } = self;
        let signals = shutdown::signals().map_err(Error::Signals)?;
        let loaded = load(Arc::clone(&app), loader, ready);
        let end = shutdown::drained(Arc::clone(&app), signals);
        let serving = connection::serve(listener, routes::router(Arc::clone(&app)), Arc::clone(&app), end);
        let mut serving = std::pin::pin!(serving);
        let _following_keys = AbortOnDrop(tokio::spawn(app.options.api_keys.clone().follow()));
        let _following_tls = app.options.tls.clone().map(|tls| AbortOnDrop(tokio::spawn(tls.follow())));
        tokio::select! {
            () = &mut serving => return Ok(()),
            loaded = loaded => loaded?,
        }
        serving.await;
        Ok(())
    }
}

/// A task that ends with this value.
struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Loads the model on a thread of its own, which is not waited for if the server ends first.
async fn load<M, E>(
    app: Arc<App>,
    loader: impl FnOnce(&(dyn Fn(f32) + Sync)) -> Result<M, E> + Send + 'static,
    ready: impl FnOnce(&M) + Send + 'static,
) -> Result<(), Error>
where
    M: Model,
    E: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("model loader".to_owned())
        .spawn(move || {
            let loaded = loader(&|fraction| app.set_progress(fraction));
            let loaded = loaded.map(|model| {
                let model = Arc::new(model);
                app.set_model(model.clone());
                ready(&model);
            });
            // The receiver is gone when the server ended in the meantime.
            let _ = sender.send(loaded);
        })
        .map_err(|_| Error::LoaderLost)?;
    receiver.await.map_err(|_| Error::LoaderLost)?.map_err(|e| Error::Load(e.into()))?;
    tracing::info!("ready");
    Ok(())
}
