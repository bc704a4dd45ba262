//! Completions: `POST /v1/completions`, texts and token ids that are to be continued.

mod answer;
mod request;
mod stream;

pub(crate) use self::request::parse;
