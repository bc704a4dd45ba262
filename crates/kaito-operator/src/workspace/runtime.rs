//! The annotation `kaito.sh/runtime`.

use std::{fmt, str::FromStr};

/// What serves the model in the pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Runtime {
    /// `kaito serve`.
    Kaito,
    /// vLLM's own image, behind `kaito serve`.
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

/// What a workspace says about its runtime.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RuntimeChoice {
    /// The hardware of its nodes decides.
    #[default]
    Auto,
    /// It is to be this one.
    Fixed(Runtime),
}

impl FromStr for RuntimeChoice {
    type Err = UnknownRuntime;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "auto" => Ok(Self::Auto),
            // Manifests of the Kaito project ask for the same HTTP API by the name transformers.
            "kaito" | "transformers" => Ok(Self::Fixed(Runtime::Kaito)),
            "vllm" => Ok(Self::Fixed(Runtime::Vllm)),
            _ => Err(UnknownRuntime { name: name.to_owned() }),
        }
    }
}

/// No runtime has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no runtime {name:?}; there are kaito (also written transformers), vllm, and auto")]
pub struct UnknownRuntime {
    /// The name as it was given.
    pub name: String,
}
