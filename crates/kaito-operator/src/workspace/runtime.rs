//! The annotation `kaito.sh/runtime`.

use std::{fmt, str::FromStr};

/// What serves the model in the pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Runtime {
    /// `kaito serve`.
    #[default]
    Kaito,
    /// vLLM's own image.
    Vllm,
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kaito => "kaito",
            Self::Vllm => "vllm",
        })
    }
}

impl FromStr for Runtime {
    type Err = UnknownRuntime;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            // Manifests of the Kaito project ask for the same HTTP API by the name transformers.
            "kaito" | "transformers" => Ok(Self::Kaito),
            "vllm" => Ok(Self::Vllm),
            _ => Err(UnknownRuntime { name: name.to_owned() }),
        }
    }
}

/// No runtime has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no runtime {name:?}; there are kaito (also written transformers) and vllm")]
pub struct UnknownRuntime {
    /// The name as it was given.
    pub name: String,
}
