//! Lines of published models, and what all models of a line have in common.

use std::fmt;

use kaito_spec::Mlp;
use serde::{Serialize, Serializer};

use crate::config_json::{FALCON_KEYS, Keys, LLAMA_KEYS, LONG_ROPE_KEYS, WINDOW_KEYS};

/// A line of published models: facts that all its models share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Family {
    /// `model_type` in a published `config.json`.
    pub model_type: &'static str,
    /// What people call it.
    pub title: &'static str,
    /// What `architectures` in a published `config.json` says.
    pub architecture: &'static str,
    /// What its MLPs compute.
    pub mlp: Mlp,
    /// Whether its norms are layer norms, with a bias, and not RMS norms.
    pub layer_norm: bool,
    /// Whether its tokenizer puts the token that begins a sequence before each text.
    pub adds_bos: bool,
    /// Whether checkpoints are published in Meta's layout too, cut for several tensor-parallel ranks.
    pub published_by_meta: bool,
    /// Whether vLLM's class for it applies LoRA adapters; a server of another class that is told to apply one refuses to start.
    pub vllm_applies_adapters: bool,
    /// What the documentation of its completion models sends.
    pub completion_dialect: Dialect,
    /// What the documentation of its chat models sends.
    pub chat_dialect: Dialect,
    /// The keys of its `config.json` beside those that all families have.
    pub(crate) config: &'static [Keys],
}

/// In which form the documentation of a model sends requests to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// As transformers' text-generation pipeline takes them.
    TextGeneration,
    /// Prompts, as Meta's `text_completion` takes them.
    MetaCompletion,
    /// Dialogs, as Meta's `chat_completion` takes them.
    MetaChat,
}

impl Dialect {
    /// Path of its HTTP route.
    pub fn endpoint(self) -> &'static str {
        match self {
            Dialect::TextGeneration | Dialect::MetaChat => "/chat",
            Dialect::MetaCompletion => "/generate",
        }
    }
}

pub(crate) const LLAMA: Family = Family {
    model_type: "llama",
    title: "Llama 2",
    architecture: "LlamaForCausalLM",
    mlp: Mlp::SwiGlu,
    layer_norm: false,
    adds_bos: true,
    published_by_meta: true,
    vllm_applies_adapters: true,
    completion_dialect: Dialect::MetaCompletion,
    chat_dialect: Dialect::MetaChat,
    config: &[LLAMA_KEYS],
};

pub(crate) const MISTRAL: Family = Family {
    model_type: "mistral",
    title: "Mistral",
    architecture: "MistralForCausalLM",
    published_by_meta: false,
    completion_dialect: Dialect::TextGeneration,
    chat_dialect: Dialect::TextGeneration,
    config: &[LLAMA_KEYS, WINDOW_KEYS],
    ..LLAMA
};

pub(crate) const PHI_3: Family = Family {
    model_type: "phi3",
    title: "Phi-3",
    architecture: "Phi3ForCausalLM",
    config: &[LLAMA_KEYS, WINDOW_KEYS, LONG_ROPE_KEYS],
    ..MISTRAL
};

pub(crate) const FALCON: Family = Family {
    model_type: "falcon",
    title: "Falcon",
    architecture: "FalconForCausalLM",
    mlp: Mlp::Gelu,
    layer_norm: true,
    adds_bos: false,
    vllm_applies_adapters: false,
    config: &[FALCON_KEYS],
    ..MISTRAL
};

/// Models of Llama's form with a byte-level tokenizer.
pub(crate) const SMOLLM2: Family = Family {
    model_type: "llama",
    title: "SmolLM2",
    architecture: "LlamaForCausalLM",
    adds_bos: false,
    config: &[LLAMA_KEYS],
    ..MISTRAL
};

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.title)
    }
}

impl Serialize for Family {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.model_type)
    }
}
