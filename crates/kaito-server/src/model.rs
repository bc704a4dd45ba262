//! What the server needs of a model.

use std::sync::Arc;

use kaito_engine::{EngineStats, Error, FileChange, LanguageModel, ModelInfo, Prepared, RequestContext, Stream};

/// A model that answers: one in this process, or whatever else takes prompts in tokens and gives a stream.
pub trait Model: Send + Sync + 'static {
    /// What decides how requests become tokens.
    fn context(&self) -> &RequestContext;

    /// Queues the prompts of one request; if one is refused, none runs.
    ///
    /// # Errors
    /// A request that can't be served as it stands, a full queue, a model that takes no more requests.
    fn start(&self, prompts: Vec<Prepared>) -> Result<Stream, Error>;

    /// What the model is.
    fn info(&self) -> &ModelInfo;

    /// A snapshot for health checks and metrics.
    fn stats(&self) -> EngineStats;

    /// Files that the model was loaded from and that have changed since. May wait for a disk.
    fn changed_files(&self) -> Vec<FileChange>;

    /// Refuses requests from now on; those that were accepted run to their end.
    fn stop_accepting(&self);
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
