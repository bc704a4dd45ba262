//! Flags of the OpenAI API.

use clap::{ArgAction, Args, ValueEnum};
use kaito_engine::Pooling;

use crate::values;

/// How the OpenAI API answers.
#[derive(Debug, Args)]
#[command(next_help_heading = "OpenAI API")]
pub struct ApiArgs {
    /// Name by which requests to /v1 ask for the model; the first of several is the one that answers carry [default: the
    /// preset's, the repository's or the directory's name]
    #[arg(long, env = "KAITO_SERVED_MODEL_NAME", value_name = "NAME", value_delimiter = ',', value_parser = values::not_empty)]
    pub served_model_name: Vec<String>,
    /// Answer requests to /v1 for any model with the one that is served, instead of 404
    #[arg(long, env = "KAITO_ANY_MODEL_NAME", action = ArgAction::SetTrue)]
    pub any_model_name: bool,
    /// Let requests to /v1 bring chat templates of their own
    #[arg(long, env = "KAITO_TRUST_REQUEST_CHAT_TEMPLATE", action = ArgAction::SetTrue)]
    pub trust_request_chat_template: bool,
    /// Answer /v1/embeddings, with hidden states of the model: it was not trained to describe texts, and these vectors are
    /// no match for those of a model that was
    #[arg(long, env = "KAITO_EMBEDDINGS", value_enum, value_name = "POOLING")]
    pub embeddings: Option<EmbeddingsArg>,
}

/// How the hidden states of a text's tokens become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EmbeddingsArg {
    /// Their mean
    Mean,
    /// That of the last token
    Last,
}

impl From<EmbeddingsArg> for Pooling {
    fn from(pooling: EmbeddingsArg) -> Self {
        match pooling {
            EmbeddingsArg::Mean => Self::Mean,
            EmbeddingsArg::Last => Self::Last,
        }
    }
}
