//! Why there is no model.

/// Why a model behind an engine elsewhere can't be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model's files are missing, damaged or of a kind that isn't supported.
    #[error(transparent)]
    Model(#[from] kaito_engine::Error),
    /// No requests can be sent.
    #[error(transparent)]
    Client(#[from] kaito_client::Error),
    /// The engine answers what no engine of its kind does, or serves another model.
    #[error("the engine at {engine} {fault}")]
    Engine {
        /// Where it is.
        engine: String,
        /// What it does, as the rest of a sentence.
        fault: String,
    },
}
