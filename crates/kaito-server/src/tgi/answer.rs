//! Answers of text-generation-inference, whole and in pieces.

use std::sync::Arc;

use kaito_engine::{Delta, FinishReason, LikelyToken, Output, OutputSequence, StopReason, TokenScore, Tokenizer};
use serde_json::{Value, json};

use crate::dialect::{Event, Reply, Streaming};
use crate::error::ApiError;
use crate::openai::{body, events, log_probs};

/// Writes an answer.
pub(super) struct Answer {
    pub(super) tokenizer: Tokenizer,
    /// What texts begin with.
    pub(super) shown: String,
    pub(super) prompt: Vec<u32>,
    pub(super) details: bool,
    pub(super) prefill: bool,
    pub(super) likely: usize,
    pub(super) seed: Option<i64>,
}

impl Answer {
    fn token(&self, id: u32, text: &str, log_prob: f32) -> Value {
        let special = self.tokenizer.special_ids().binary_search(&id).is_ok();
        json!({ "id": id, "text": text, "logprob": log_prob, "special": special })
    }

    fn likely(&self, top: &[LikelyToken]) -> Value {
        top.iter().take(self.likely).map(|likely| self.token(likely.id, &likely.text, likely.log_prob)).collect()
    }

    /// The tokens of the prompt: the first has no log-probability.
    fn prefill(&self, scores: Option<&[Option<TokenScore>]>) -> Value {
        let score = |(id, score): (&u32, &Option<TokenScore>)| match score {
            Some(score) => json!({ "id": id, "text": score.text, "logprob": score.log_prob }),
            None => json!({ "id": id, "text": self.tokenizer.token_text(*id), "logprob": null }),
        };
        self.prompt.iter().zip(scores.unwrap_or_default()).map(score).collect()
    }

    fn details(&self, sequence: &OutputSequence, output: &Output) -> Value {
        let scores = sequence.scores.as_deref().unwrap_or_default();
        let prompt = output.prompts.first().and_then(|prompt| prompt.scores.as_deref());
        let mut details = json!({
            "finish_reason": reason(sequence.finish_reason, sequence.stop_reason.as_ref()),
            "generated_tokens": sequence.tokens.len(),
            "seed": self.seed,
            "prefill": if self.prefill { self.prefill(prompt) } else { json!([]) },
            "tokens": scores.iter().map(|score| self.token(score.id, &score.text, score.log_prob)).collect::<Value>(),
        });
        if self.likely > 0 {
            details["top_tokens"] = scores.iter().map(|score| self.likely(&score.top)).collect();
        }
        details
    }
}

fn reason(reason: FinishReason, stop: Option<&StopReason>) -> &'static str {
    match (reason, stop) {
        (FinishReason::Length, _) => "length",
        (_, Some(StopReason::StopString(_))) => "stop_sequence",
        (FinishReason::EndToken | FinishReason::Stop, _) => "eos_token",
    }
}

impl Reply for Answer {
    fn size(&self, output: &Output) -> usize {
        let of = |sequence: &OutputSequence| sequence.text.len() + log_probs::size(sequence);
        self.shown.len() + output.sequences.iter().map(of).sum::<usize>()
    }

    fn body(&self, output: &Output) -> String {
        let Some(sequence) = output.sequences.first() else { return "{}".to_owned() };
        let mut answer = json!({ "generated_text": format!("{}{}", self.shown, sequence.text) });
        if self.details || self.prefill {
            answer["details"] = self.details(sequence, output);
        }
        body::write(&answer)
    }

    fn streaming(self: Arc<Self>) -> Box<dyn Streaming> {
        Box::new(Pieces { answer: self, text: String::new(), generated: 0, last: None })
    }
}

/// Writes one stream: an event for each token, the last one with the whole text.
struct Pieces {
    answer: Arc<Answer>,
    text: String,
    generated: usize,
    /// The last token, which waits for the reason why it was the last.
    last: Option<Value>,
}

impl Streaming for Pieces {
    fn delta(&mut self, delta: &Delta) -> Vec<Event> {
        self.text.push_str(&delta.text);
        let mut events = Vec::new();
        if let Some(token) = &delta.token {
            self.generated += 1;
            let mut shown = self.answer.token(token.id, &token.text, token.log_prob.unwrap_or_default());
            shown["text"] = if delta.text.is_empty() { shown["text"].take() } else { delta.text.clone().into() };
            let mut event = json!({ "index": self.generated, "token": shown, "generated_text": null, "details": null });
            if self.answer.likely > 0 {
                event["top_tokens"] = self.answer.likely(&token.top);
            }
            events.extend(self.last.replace(event).map(|event| events::data(&event.to_string())));
        }
        if let Some(finished) = delta.finish_reason
            && let Some(mut event) = self.last.take()
        {
            event["generated_text"] = format!("{}{}", self.answer.shown, self.text).into();
            event["details"] = json!({
                "finish_reason": reason(finished, delta.stop_reason.as_ref()),
                "generated_tokens": self.generated,
                "input_length": self.answer.prompt.len(),
                "seed": self.answer.seed,
            });
            events.push(events::data(&event.to_string()));
        }
        events
    }

    fn finished(&mut self, _: &Output) -> Vec<Event> {
        Vec::new()
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Event> {
        let error = json!({ "error": error.detail(), "error_type": "generation" });
        vec![events::data(&error.to_string())]
    }
}
