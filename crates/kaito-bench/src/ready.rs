//! What is measured, once it has answered.

use std::{cell::RefCell, sync::Arc, time::Duration};

use kaito_engine::LanguageModel;
use kaito_model::tokenizer::Special;
use url::Url;

use crate::{
    Error, Settings,
    client::{Calibration, ServerClient, ServerOptions, TokenCounts},
    machine::OthersWatch,
    own_server::OwnServer,
    prompts::{Prompt, PromptMaker, Purpose, Source},
    report::{Model, TargetInfo, TargetKind},
    sequences::Bench,
    target::Target,
};

/// Words of the texts that show how many tokens a word has.
const FEW_WORDS: usize = 16;
const MANY_WORDS: usize = 2000;

/// What is measured.
pub enum Subject {
    /// A model in this process: its engine alone for prompts and decoding, then a kaito server with it for the load.
    Model {
        /// The model.
        model: LanguageModel,
        /// What people call it.
        name: String,
    },
    /// A server, from outside.
    Server(ServerOptions),
}

/// A target that has answered, and what is known of it.
pub(crate) struct Ready {
    pub target: Target,
    pub server: Arc<ServerClient>,
    /// Kept alive while it is measured.
    pub own_server: Option<OwnServer>,
    pub model: Option<Model>,
    pub max_batch_size: Option<usize>,
    pub info: TargetInfo,
    pub watch: OthersWatch,
    /// Whether the target runs on this machine.
    pub here: bool,
    pub sequence_prompts: PromptMaker,
    pub load_prompts: PromptMaker,
}

impl Ready {
    pub async fn of(subject: Subject, settings: &Settings) -> Result<Self, Error> {
        match subject {
            Subject::Model { model, name } => Self::of_model(model, name, settings).await,
            Subject::Server(options) => Self::of_server(options, settings).await,
        }
    }

    async fn of_model(model: LanguageModel, name: String, settings: &Settings) -> Result<Self, Error> {
        let info = model.info();
        let facts = Model {
            family: info.family.to_owned(),
            parameters: info.parameters,
            layer_parameters: info.layer_parameters,
            head_parameters: info.head_parameters,
            precision: info.precision(),
            activations: info.activations().to_owned(),
            kernels: info.instruction_set.to_owned(),
            weights_bytes: info.weights_bytes,
            step_bytes: info.step_bytes,
            kv_dtype: info.kv_dtype.to_string(),
            kv_bytes_per_token: info.kv_bytes_per_token,
            attention_window: info.attention_window,
            max_seq_len: info.max_seq_len,
            threads: info.threads,
        };
        let max_batch_size = Some(info.max_batch_size);
        let vocab_size = u32::try_from(info.vocab_size).unwrap_or(u32::MAX);
        let mut own_server = OwnServer::start(model.clone(), &name).await?;
        let options = ServerOptions {
            url: own_server.url.clone(),
            api: Some(crate::Api::Kaito),
            model: None,
            api_key: None,
            vocab_size: None,
            body: serde_json::Map::new(),
        };
        let source = measured_words(&model, settings.seed)?;
        let server = ServerClient::connect(options).await?;
        // The model is there: it takes the server a moment to know.
        while !server.is_healthy().await {
            own_server.check().await?;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(Self {
            target: Target::Engine(model),
            server: Arc::new(server),
            own_server: Some(own_server),
            model: Some(facts),
            max_batch_size,
            info: TargetInfo {
                kind: TargetKind::Engine,
                url: None,
                api: crate::Api::Kaito,
                name,
                prompts: "random token ids",
                token_counts: TokenCounts::Exact,
            },
            watch: OthersWatch::of_this_process(),
            here: true,
            sequence_prompts: PromptMaker::new(Source::Tokens { vocab_size }, settings.seed, Purpose::Sequences),
            load_prompts: PromptMaker::new(source, settings.seed, Purpose::Load),
        })
    }

    async fn of_server(options: ServerOptions, settings: &Settings) -> Result<Self, Error> {
        let client = ServerClient::connect(options).await?;
        let Calibration { source, counts } = client.calibrate(settings.seed).await?;
        let here = is_here(client.url());
        let watch = match client.url().port_or_known_default() {
            Some(port) if here => OthersWatch::with_server(port),
            _ => OthersWatch::blind(),
        };
        let server = Arc::new(client);
        let info = TargetInfo {
            kind: TargetKind::Server,
            url: Some(server.url().to_string()),
            api: server.api(),
            name: server.name.clone().unwrap_or_else(|| "a model without a name".to_owned()),
            prompts: match source {
                Source::Tokens { .. } => "random token ids",
                Source::Words { .. } => "random words",
            },
            token_counts: counts,
        };
        Ok(Self {
            target: Target::Server(Arc::clone(&server)),
            model: server.model.clone(),
            server,
            own_server: None,
            max_batch_size: None,
            info,
            watch,
            here,
            sequence_prompts: PromptMaker::new(source, settings.seed, Purpose::Sequences),
            load_prompts: PromptMaker::new(source, settings.seed, Purpose::Load),
        })
    }

    /// What measures prompts and decoding.
    pub fn bench<'a>(&'a mut self, settings: &'a Settings, progress: &'a dyn Fn(usize)) -> Bench<'a> {
        Bench {
            target: &self.target,
            prompts: RefCell::new(&mut self.sequence_prompts),
            settings,
            model: self.model.as_ref(),
            progress,
        }
    }
}

/// How many tokens words have for a model's own tokenizer.
fn measured_words(model: &LanguageModel, seed: u64) -> Result<Source, Error> {
    let mut maker = PromptMaker::new(Source::ANY_WORDS, seed, Purpose::Calibration);
    let mut tokens = |words: usize| match maker.words(words) {
        Prompt::Tokens(ids) => Ok((words, ids.len())),
        Prompt::Text(text) => match model.tokenizer().encode(&text, Special::Add) {
            Ok(ids) => Ok((words, ids.len())),
            Err(error) => Err(Error::Settings(format!("the model's tokenizer fails on plain words: {error}"))),
        },
    };
    Ok(Source::measured_words(tokens(FEW_WORDS)?, tokens(MANY_WORDS)?))
}

/// Whether an address certainly is this machine's own.
fn is_here(url: &Url) -> bool {
    match url.host() {
        // 0.0.0.0 and :: reach this machine too.
        Some(url::Host::Ipv4(address)) => address.is_loopback() || address.is_unspecified(),
        Some(url::Host::Ipv6(address)) => address.is_loopback() || address.is_unspecified(),
        Some(url::Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_here_for_certain() {
        for (url, here) in [
            ("http://127.0.0.1:80", true),
            ("http://127.9.9.9/", true),
            ("http://0.0.0.0:5000", true),
            ("http://[::1]:8080", true),
            ("https://LOCALHOST", true),
            ("http://10.0.0.1", false),
            ("http://localhost.example.com", false),
        ] {
            assert_eq!(is_here(&url.parse().unwrap()), here, "{url}");
        }
    }
}
