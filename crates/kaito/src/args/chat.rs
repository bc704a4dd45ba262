//! Flags of `kaito chat`.

use std::num::NonZeroUsize;

use clap::Args;

use super::ModelArgs;
use crate::values;

#[derive(Debug, Args)]
pub struct ChatArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// System prompt: instructions that come before the conversation
    #[arg(long, env = "KAITO_SYSTEM", value_name = "TEXT")]
    pub system: Option<String>,
    /// Longest answer, in tokens
    #[arg(long, env = "KAITO_MAX_NEW_TOKENS", value_name = "TOKENS", default_value = "512")]
    pub max_new_tokens: NonZeroUsize,
    /// Randomness of the answers; 0 always takes the likeliest token
    #[arg(long, env = "KAITO_TEMPERATURE", value_name = "T", value_parser = values::temperature, default_value = "0.6")]
    pub temperature: f32,
    /// Seed of the random numbers; the same seed gives the same answers again
    #[arg(long, env = "KAITO_SEED", value_name = "N")]
    pub seed: Option<u64>,
}
