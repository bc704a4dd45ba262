//! Whom to ask for tokens.

use std::{sync::Arc, time::Instant};

use kaito_engine::{Decoding, GenerationParams, LanguageModel, Prepared, StopStrings, StreamEvent};

use crate::{
    answer::{Answer, Ask},
    client::ServerClient,
    failure::Failure,
    prompts::Prompt,
};

/// Whom to ask for tokens.
pub(crate) enum Target {
    Engine(LanguageModel),
    Server(Arc<ServerClient>),
}

impl Target {
    /// Whether an answer can be ended once enough of it is there. A server's is read to its end, where it tells how many
    /// tokens it had.
    pub(crate) fn can_stop(&self) -> bool {
        matches!(self, Target::Engine(_))
    }

    /// Asks and notes when tokens come. `stop` hears of each, with the number so far, and may end the answer.
    pub(crate) async fn ask(&self, ask: &Ask, stop: &dyn Fn(usize) -> bool) -> Result<Answer, Failure> {
        match self {
            Target::Server(server) => server.ask(ask).await,
            Target::Engine(model) => ask_engine(model, ask, stop).await,
        }
    }
}

async fn ask_engine(model: &LanguageModel, ask: &Ask, stop: &dyn Fn(usize) -> bool) -> Result<Answer, Failure> {
    let Prompt::Tokens(prompt) = &ask.prompt else {
        return Err(Failure::Engine("it takes tokens and no text".to_owned()));
    };
    let prompt_tokens = prompt.len();
    // No token ends it before its length, and all of the vocabulary is sampled from.
    let total = prompt_tokens + ask.output;
    let params = GenerationParams::meta(ask.temperature, 1.0, total, Vec::new(), Some(ask.seed));
    // Of the text, as little is made as can be.
    let decoding = Decoding { after_prompt: false, ..Decoding::default() };
    let prepared = Prepared::new(model.context(), prompt.clone(), params, decoding, StopStrings::default());
    let prepared = prepared.with_adapter(None);
    let failed = |error: kaito_engine::Error| Failure::Engine(error.to_string());
    let started = Instant::now();
    let mut stream = model.start(vec![prepared]).map_err(failed)?;
    let mut events = Vec::with_capacity(ask.output);
    while let Some(event) = stream.next().await {
        // There is one for each token; what ends the answer has none.
        if let StreamEvent::Delta(delta) = event.map_err(failed)?
            && delta.token.is_some()
        {
            events.push(Instant::now());
            if stop(events.len()) {
                break;
            }
        }
    }
    if events.is_empty() {
        return Err(Failure::Empty);
    }
    let output_tokens = Some(events.len());
    Ok(Answer { started, events, prompt_tokens: Some(prompt_tokens), output_tokens, ended: Instant::now() })
}
