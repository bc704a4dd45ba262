//! The scores of a prompt's tokens. vLLM streams none, so they are asked for by a request of their own.

use kaito_client::Http;
use kaito_engine::{Error, remote::TokenScore};

use crate::{
    engine::Engine,
    failure::{Failure, Patience},
    plan::Plan,
    wire::{self, Wrong},
};

/// Bytes of the score of a token, its text included, and of all that is around them.
const SCORE_BYTES: usize = 256;
const REST_BYTES: usize = 1 << 20;

/// The scores of the tokens of a prompt from the second one on, with `likeliest` tokens in each place.
///
/// # Errors
/// As for a sequence.
pub(crate) async fn ask(engine: &Engine, plan: &Plan, likeliest: usize) -> Result<Vec<TokenScore>, Error> {
    let mut patience = Patience::new(engine.url(), engine.wait());
    loop {
        match attempt(engine, plan, likeliest).await {
            Ok(scores) => return Ok(scores),
            Err(failure) => {
                engine.look();
                patience.after(failure).await?;
            }
        }
    }
}

async fn attempt(engine: &Engine, plan: &Plan, likeliest: usize) -> Result<Vec<TokenScore>, Failure> {
    let failed = |failure| Failure::of(engine.url(), failure);
    let body = plan.scoring_body(&engine.model(), likeliest);
    let response = engine.http().send(&engine.route("/v1/completions"), Some(&body)).await.map_err(failed)?;
    // Beside those that were asked for, the prompt's own token has a score, and so has the one behind the prompt.
    let scores = plan.prompt.len().saturating_mul(likeliest + 2);
    let most = scores.saturating_mul(SCORE_BYTES).saturating_add(REST_BYTES);
    let text = Http::text_within(response, most).await.map_err(failed)?;
    let read = wire::prompt_scores(&text, &plan.prompt, engine.vocab_size(), likeliest);
    read.map_err(|wrong| match wrong {
        Wrong::Fault(fault) => Failure::fault(engine.url(), fault),
        Wrong::Error(error) => Failure::in_stream(engine.url(), &error),
    })
}
