//! A server, measured from outside.

mod dialect;

use std::time::Instant;

pub use dialect::Api;
use kaito_client::{EventStream, Failure as RequestFailure, Http};
use serde_json::{Map, Value};
use url::Url;

use self::dialect::{Reading, Step};
use crate::{
    Error,
    answer::{Answer, Ask},
    failure::Failure,
    prompts::{Prompt, PromptMaker, Purpose, Source},
    report::Model,
};

/// Words of the texts that show how many tokens a word has.
const FEW_WORDS: usize = 16;
const MANY_WORDS: usize = 128;

/// Where a server is and how to speak with it.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Its address, without the path of an API.
    pub url: Url,
    /// Which API; found out where it is `None`.
    pub api: Option<Api>,
    /// The name under which an OpenAI server has the model.
    pub model: Option<String>,
    /// Shown as `Authorization: Bearer KEY`.
    pub api_key: Option<String>,
    /// Number of token ids; asked of the server where it is `None`.
    pub vocab_size: Option<u32>,
    /// Fields of each request's body; null removes one.
    pub body: Map<String, Value>,
}

/// A server that answers.
pub(crate) struct ServerClient {
    http: Http,
    base: String,
    api: Api,
    options: ServerOptions,
    /// What it says about its model.
    pub(crate) name: Option<String>,
    pub(crate) model: Option<Model>,
    vocab_size: Option<u32>,
}

/// How prompts of some length are made for a server, and how sure that length is.
pub(crate) struct Calibration {
    pub(crate) source: Source,
    pub(crate) counts: TokenCounts,
}

/// How the number of tokens of a prompt is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum TokenCounts {
    /// Prompts are token ids.
    #[serde(rename = "exact")]
    Exact,
    /// The server counted them, for each request.
    #[serde(rename = "as the server reports")]
    Reported,
    /// Estimated from the token counts of two other texts.
    #[serde(rename = "estimated")]
    Estimated,
}

impl ServerClient {
    /// Connects to the server and finds out its API.
    pub(crate) async fn connect(options: ServerOptions) -> Result<Self, Error> {
        let http = Http::new(options.api_key.as_deref()).map_err(|error| match error {
            kaito_client::Error::Key => {
                Error::Settings("--api-key has characters that a header cannot have".to_owned())
            }
            other => Error::Client(other),
        })?;
        let base = options.url.as_str().trim_end_matches('/').trim_end_matches("/v1").to_owned();
        let failed = |cause: &RequestFailure, hint: &str| Error::Server {
            url: base.clone(),
            cause: cause.to_string(),
            hint: hint.to_owned(),
        };
        let api = match options.api {
            Some(api) => api,
            None => match http.get(&format!("{base}/v1/models")).await {
                Ok(models) if is_of_kaito(&models) => Api::Kaito,
                Ok(_) => Api::OpenAi,
                Err(cause @ (RequestFailure::Connect(_) | RequestFailure::Broken(_))) => {
                    return Err(failed(&cause, "; is the server running there?"));
                }
                Err(_) => Api::Kaito,
            },
        };
        let mut client = Self { http, base: base.clone(), api, options, name: None, model: None, vocab_size: None };
        client.describe().await;
        Ok(client)
    }

    /// Asks the server about its model. A server that does not answer is measured all the same.
    async fn describe(&mut self) {
        if self.api == Api::OpenAi {
            let Ok(text) = self.http.get(&format!("{}/v1/models", self.base)).await else { return };
            let models: Value = serde_json::from_str(&text).unwrap_or_default();
            let list = models["data"].as_array().map(Vec::as_slice).unwrap_or_default();
            let wanted = self.options.model.as_deref();
            let model = list.iter().find(|model| wanted.is_none() || model["id"].as_str() == wanted);
            if let Some(model) = model {
                self.name = model["id"].as_str().map(str::to_owned);
                // llama-server tells it.
                self.vocab_size = model["meta"]["n_vocab"].as_u64().and_then(|size| size.try_into().ok());
            }
        } else if let Ok(text) = self.http.get(&format!("{}/metrics", self.base)).await {
            (self.name, self.model) = crate::metrics::model(&text);
        }
    }

    pub(crate) fn api(&self) -> Api {
        self.api
    }

    pub(crate) fn url(&self) -> &Url {
        &self.options.url
    }

    /// Whether a kaito server has loaded its model.
    pub(crate) async fn is_healthy(&self) -> bool {
        self.http.get(&format!("{}/healthz", self.base)).await.is_ok()
    }

    /// Finds out how prompts of a given number of tokens are made, which is the first use of the server.
    pub(crate) async fn calibrate(&self, seed: u64) -> Result<Calibration, Error> {
        if self.api.takes_tokens()
            && let Some(vocab_size) = self.options.vocab_size.or(self.vocab_size).filter(|&size| size > 0)
        {
            let source = Source::Tokens { vocab_size };
            self.try_out(self.api, PromptMaker::new(source, seed, Purpose::Calibration).prompt(FEW_WORDS)).await?;
            return Ok(Calibration { source, counts: TokenCounts::Exact });
        }
        let mut maker = PromptMaker::new(Source::ANY_WORDS, seed, Purpose::Calibration);
        // /generate does not tell the length of prompts; the same server's /chat does.
        let api = if self.api == Api::Generate { Api::Kaito } else { self.api };
        let few = self.try_out(api, maker.words(FEW_WORDS)).await?.prompt_tokens;
        let many = self.try_out(api, maker.words(MANY_WORDS)).await?.prompt_tokens;
        Ok(match (few, many) {
            (Some(few), Some(many)) => Calibration {
                source: Source::measured_words((FEW_WORDS, few), (MANY_WORDS, many)),
                counts: if api == self.api { TokenCounts::Reported } else { TokenCounts::Estimated },
            },
            _ => Calibration { source: Source::ANY_WORDS, counts: TokenCounts::Estimated },
        })
    }

    async fn try_out(&self, api: Api, prompt: Prompt) -> Result<Answer, Error> {
        let ask = Ask { prompt, output: 1, temperature: 0.0, seed: 0 };
        self.ask_by(api, &ask).await.map_err(|cause| {
            let hint = match &cause {
                Failure::Request(RequestFailure::Connect(_)) => "; is the server running there?",
                Failure::Request(RequestFailure::Status { status: 404 | 405, .. }) => "; --api says which API it has",
                Failure::Request(RequestFailure::Status { status: 401 | 403, .. }) => "; --api-key shows a key",
                Failure::Request(RequestFailure::Status { status: 400 | 422, .. }) => {
                    "; --body changes the fields of requests"
                }
                _ => "",
            };
            Error::Server {
                url: format!("{}{}", self.base, api.path()),
                cause: cause.to_string(),
                hint: hint.to_owned(),
            }
        })
    }

    /// Sends a request and notes when its tokens come.
    pub(crate) async fn ask(&self, ask: &Ask) -> Result<Answer, Failure> {
        self.ask_by(self.api, ask).await
    }

    async fn ask_by(&self, api: Api, ask: &Ask) -> Result<Answer, Failure> {
        let body = api.body(ask, self.options.model.as_deref(), &self.options.body);
        let url = format!("{}{}", self.base, api.path());
        let started = Instant::now();
        let response = self.http.send(&url, Some(&body)).await?;
        let (events, reading) = read(api, EventStream::of(response)?, ask.output).await?;
        if events.is_empty() {
            return Err(Failure::Empty);
        }
        let Reading { output_tokens, prompt_tokens, .. } = reading;
        let prompt_tokens = match &ask.prompt {
            Prompt::Tokens(ids) => prompt_tokens.or(Some(ids.len())),
            Prompt::Text(_) => prompt_tokens,
        };
        Ok(Answer { started, events, prompt_tokens, output_tokens, ended: Instant::now() })
    }
}

/// Whether a list of models is a kaito server's, which says more of its model in its own API. While it loads, its list is empty.
fn is_of_kaito(models: &str) -> bool {
    let models: Value = serde_json::from_str(models).unwrap_or_default();
    models["data"].as_array().is_some_and(|list| list.iter().all(|model| model["owned_by"] == "kaito"))
}

async fn read(api: Api, mut stream: EventStream, asked: usize) -> Result<(Vec<Instant>, Reading), RequestFailure> {
    let mut reading = Reading::default();
    let mut times = Vec::new();
    let mut events = Vec::new();
    while stream.read(&mut events).await? {
        let now = Instant::now();
        for event in events.drain(..) {
            match api.read(&event, times.len(), &mut reading)? {
                // Text that was held back comes once more after the last token.
                Step::Token if api != Api::OpenAi && times.len() == asked => {}
                Step::Token => times.push(now),
                Step::Other => {}
                Step::Done => {
                    stream.finish().await;
                    return Ok((times, reading));
                }
            }
        }
    }
    if reading.finished { Ok((times, reading)) } else { Err(RequestFailure::Cut(String::new())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kaito_server_is_known_by_its_models() {
        for (models, kaito) in [
            (r#"{"object":"list","data":[{"id":"demo","owned_by":"kaito"}]}"#, true),
            (r#"{"object":"list","data":[]}"#, true),
            (r#"{"object":"list","data":[{"id":"m","owned_by":"vllm"}]}"#, false),
            (r#"{"data":[{"id":"tiny","meta":{"n_vocab":100}}]}"#, false),
            ("{}", false),
            ("nonsense", false),
        ] {
            assert_eq!(is_of_kaito(models), kaito, "{models}");
        }
    }
}
