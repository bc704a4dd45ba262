//! Ollama's API: `/api/chat`, `/api/generate` and `/api/embed`, and what its clients ask of the model: `/api/tags`, `/api/ps`, `/api/show`,
//! `/api/version`.
//!
//! The routes that generate come to a [`ChatRequest`](crate::openai::chat::ChatRequest) or, without a template, to a prompt.
//! [`options`] reads how the text is made, [`messages`] what was said, [`answer`] writes the text, and [`models`] tells of the model.

mod answer;
mod chat;
mod embed;
mod generate;
mod messages;
mod models;
mod options;

pub(crate) use self::chat::parse as parse_chat;
pub(crate) use self::embed::parse as parse_embed;
pub(crate) use self::generate::parse as parse_generate;
pub(crate) use self::models::{parse_show, running, tags, version};
