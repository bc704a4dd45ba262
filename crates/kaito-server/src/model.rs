//! What the server needs of a model.

use std::future;
use std::path::Path;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use kaito_engine::{
    Adapters, EngineStats, Error, FileChange, LanguageModel, ModelInfo, Prepared, RequestContext, Stream,
};

use crate::openai::names::Names;
use crate::options::ServerOptions;

/// A model that answers: one in this process, or whatever else takes prompts in tokens and gives a stream.
pub trait Model: Send + Sync + 'static {
    /// What decides how requests become tokens.
    fn context(&self) -> &RequestContext;

    /// Queues the prompts of one request; if one is refused, none runs.
    ///
    /// # Errors
    /// A request that can't be served as it stands, a full queue, a model that takes no more requests.
    fn start(&self, prompts: Vec<Prepared>) -> Result<Stream, Error>;

    /// The adapters that requests may name.
    fn adapters(&self) -> &Adapters;

    /// Loads the adapter in `folder` while requests run, for requests that name it. Waits until it can be used.
    ///
    /// # Errors
    /// A name that is in use, unless the adapter may `replace` another; files that can't be loaded; too little memory.
    fn load_adapter(&self, name: &str, folder: &Path, replace: bool) -> Result<(), Error>;

    /// What the model is.
    fn info(&self) -> &ModelInfo;

    /// A snapshot for health checks and metrics.
    fn stats(&self) -> EngineStats;

    /// Files that the model was loaded from and that have changed since. May wait for a disk.
    fn changed_files(&self) -> Vec<FileChange>;

    /// Refuses requests from now on; those that were accepted run to their end.
    fn stop_accepting(&self);

    /// Why it can't compute at the moment, as a sentence, beside what [`Self::stats`] tells.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// What whoever runs an engine elsewhere knows of one that makes no progress, in sentences.
    fn cause(&self) -> Option<String> {
        None
    }

    /// Ends what computes for this model elsewhere, where that can be: a client has asked for the end, and all requests are answered. Takes
    /// seconds at most.
    fn end_engine(&self) -> BoxFuture<'_, ()> {
        future::ready(()).boxed()
    }

    /// What an engine elsewhere says of itself, in Prometheus' text format 0.0.4; `None` where it says nothing in time.
    fn engine_metrics(&self) -> BoxFuture<'_, Option<String>> {
        future::ready(None).boxed()
    }
}

impl dyn Model {
    /// The names that the model and its adapters are served by.
    pub(crate) fn names<'a>(&'a self, options: &'a ServerOptions) -> Names<'a> {
        Names::new(options, self.adapters(), self.context().adapter.as_ref())
    }
}

/// A model that all requests share.
pub(crate) type SharedModel = Arc<dyn Model>;

impl Model for LanguageModel {
    fn context(&self) -> &RequestContext {
        self.context()
    }

    fn start(&self, prompts: Vec<Prepared>) -> Result<Stream, Error> {
        self.start(prompts)
    }

    fn adapters(&self) -> &Adapters {
        self.adapters()
    }

    fn load_adapter(&self, name: &str, folder: &Path, replace: bool) -> Result<(), Error> {
        self.load_adapter(name, folder, replace)
    }

    fn info(&self) -> &ModelInfo {
        self.info()
    }

    fn stats(&self) -> EngineStats {
        self.stats()
    }

    fn changed_files(&self) -> Vec<FileChange> {
        self.changed_files()
    }

    fn stop_accepting(&self) {
        self.stop_accepting();
    }
}
