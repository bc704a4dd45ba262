//! Flags of `kaito chat`.

use std::{num::NonZeroUsize, path::PathBuf};

use clap::Args;
use url::Url;

use super::ModelArgs;
use crate::values;

#[derive(Debug, Args)]
pub struct ChatArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// System prompt: instructions that come before the conversation
    #[arg(long, env = "KAITO_SYSTEM", value_name = "TEXT")]
    pub system: Option<String>,
    /// Longest answer, in tokens [default: 512; with --url, what the server allows]
    #[arg(long, env = "KAITO_MAX_NEW_TOKENS", value_name = "TOKENS")]
    pub max_new_tokens: Option<NonZeroUsize>,
    /// Randomness of the answers; 0 always takes the likeliest token [default: 0.6; with --url, the server's]
    #[arg(long, env = "KAITO_TEMPERATURE", value_name = "T", value_parser = values::temperature)]
    pub temperature: Option<f32>,
    /// Seed of the random numbers; the same seed gives the same answers again
    #[arg(long, env = "KAITO_SEED", value_name = "N")]
    pub seed: Option<u64>,
    /// Talk to the OpenAI-compatible server at this base URL, like http://localhost:5000/v1, instead of a model in this
    /// process; without a path, /v1 is added
    #[arg(long, env = "KAITO_URL", value_name = "URL", value_parser = values::url, conflicts_with_all = ["model", "weights"], help_heading = "Server")]
    pub url: Option<Url>,
    /// The model's name at the server [default: the first that it lists]
    #[arg(long = "model", env = "KAITO_SERVED_MODEL", value_name = "NAME", requires = "url", help_heading = "Server")]
    pub served_model: Option<String>,
    /// Key to send as `Authorization: Bearer KEY`. Prefer the variable or a file: every user of this machine can read a
    /// command line
    #[arg(long, env = "KAITO_API_KEY", value_name = "KEY", hide_env_values = true, value_parser = values::first_key, help_heading = "Server")]
    pub api_key: Option<String>,
    /// File whose first line is the key; wins over --api-key
    #[arg(long, env = "KAITO_API_KEY_FILE", value_name = "FILE", help_heading = "Server")]
    pub api_key_file: Option<PathBuf>,
}
