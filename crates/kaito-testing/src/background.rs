//! Servers beside tests that are not asynchronous themselves.

use std::net::SocketAddr;

use tokio::{net::TcpListener, runtime::Runtime};

/// A thread that runs what it is given, and ends with this value.
#[derive(Debug)]
pub struct Background(Runtime);

impl Background {
    /// Starts one.
    #[allow(clippy::new_without_default, reason = "a thread is no default")]
    pub fn new() -> Self {
        Self(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap())
    }

    /// Runs `task` to its end on this thread; what it starts runs on.
    pub fn block_on<T>(&self, task: impl Future<Output = T>) -> T {
        self.0.block_on(task)
    }

    /// Listens on a port of the system's choice, and gives the listener to `serve`.
    pub fn listen<F: Future + Send + 'static>(&self, serve: impl FnOnce(TcpListener) -> F) -> SocketAddr
    where
        F::Output: Send,
    {
        let listener = self.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let _guard = self.0.enter();
        self.0.spawn(serve(listener));
        address
    }

    /// Ends everything, so that its addresses answer no more.
    pub fn stop(self) {
        self.0.shutdown_timeout(std::time::Duration::from_secs(1));
    }
}
