//! The message around the blocks: whole, or as events.

use std::sync::Arc;

use kaito_engine::{Delta, FinishReason, Output, StopReason};
use serde_json::{Map, Value, json};

use super::blocks::{Blocks, Event};
use crate::dialect::{self, Reply, Streaming};
use crate::error::ApiError;
use crate::openai::chat::Choices;
use crate::openai::head;
use crate::openai::tools::CallReader;
use crate::routes::Family;

/// Writes a message, whole or in pieces.
pub(super) struct Answer {
    id: String,
    choices: Choices,
}

/// Why a message ended.
struct End<'a> {
    reason: &'static str,
    /// The text that ended it.
    stop: Option<&'a str>,
}

impl<'a> End<'a> {
    /// A message that calls ended for its calls, unless it was cut.
    fn of(reason: FinishReason, stop: Option<&'a StopReason>, called: bool) -> Self {
        let text = match stop {
            Some(StopReason::StopString(text)) => Some(text.as_str()),
            Some(StopReason::Token(_)) | None => None,
        };
        let reason = match reason {
            FinishReason::Length => "max_tokens",
            FinishReason::EndToken | FinishReason::Stop if called => "tool_use",
            FinishReason::EndToken | FinishReason::Stop if text.is_some() => "stop_sequence",
            FinishReason::EndToken | FinishReason::Stop => "end_turn",
        };
        Self { reason, stop: text.filter(|_| reason == "stop_sequence") }
    }
}

impl Answer {
    pub(super) fn new(choices: Choices) -> Self {
        Self { id: head::new_id("msg_"), choices }
    }

    fn message(&self, content: Vec<Value>, end: Option<&End<'_>>, output_tokens: usize) -> Value {
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.choices.model,
            "content": content,
            "stop_reason": end.map(|end| end.reason),
            "stop_sequence": end.and_then(|end| end.stop),
            // What `cache_control` asks for is not kept apart: all tokens of the prompt count as input.
            "usage": {
                "input_tokens": self.choices.prompt_tokens,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
                "output_tokens": output_tokens,
            },
        })
    }
}

impl Reply for Answer {
    fn size(&self, output: &Output) -> usize {
        output.sequences.iter().map(|sequence| sequence.text.len()).sum()
    }

    fn body(&self, output: &Output) -> String {
        let (mut blocks, mut unsent) = (Blocks::default(), Vec::new());
        let Some(sequence) = output.sequences.first() else {
            return self.message(Vec::new(), None, 0).to_string();
        };
        for piece in self.choices.reader().read(&sequence.text, true) {
            blocks.push(piece, &mut unsent);
        }
        let end = End::of(sequence.finish_reason, sequence.stop_reason.as_ref(), blocks.called());
        self.message(blocks.json(), Some(&end), output.usage.generated_tokens).to_string()
    }

    fn streaming(self: Arc<Self>) -> Box<dyn Streaming> {
        let reader = self.choices.reader();
        Box::new(Stream { answer: self, reader, blocks: Blocks::default() })
    }
}

/// Writes one stream.
struct Stream {
    answer: Arc<Answer>,
    reader: CallReader,
    blocks: Blocks,
}

/// An event whose name is also its type.
fn event((kind, fields): Event) -> dialect::Event {
    let mut whole = Map::new();
    whole.insert("type".to_owned(), kind.into());
    if let Value::Object(fields) = fields {
        whole.extend(fields);
    }
    dialect::Event::named(kind, Value::Object(whole).to_string())
}

impl Streaming for Stream {
    fn started(&mut self) -> Vec<dialect::Event> {
        let message = self.answer.message(Vec::new(), None, 0);
        [("message_start", json!({ "message": message })), ("ping", json!({}))].map(event).into()
    }

    fn delta(&mut self, delta: &Delta) -> Vec<dialect::Event> {
        let mut events = Vec::new();
        for piece in self.reader.read(&delta.text, delta.finish_reason.is_some()) {
            self.blocks.push(piece, &mut events);
        }
        events.into_iter().map(event).collect()
    }

    fn finished(&mut self, output: &Output) -> Vec<dialect::Event> {
        let mut events = Vec::new();
        self.blocks.end(&mut events);
        let end = output.sequences.first().map_or(End { reason: "end_turn", stop: None }, |sequence| {
            End::of(sequence.finish_reason, sequence.stop_reason.as_ref(), self.blocks.called())
        });
        let ended = json!({
            "delta": { "stop_reason": end.reason, "stop_sequence": end.stop },
            "usage": { "output_tokens": output.usage.generated_tokens },
        });
        events.extend([("message_delta", ended), ("message_stop", json!({}))]);
        events.into_iter().map(event).collect()
    }

    fn failed(&mut self, error: &ApiError) -> Vec<dialect::Event> {
        vec![dialect::Event::named("error", error.body(Family::Anthropic).to_string())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_of_an_end() {
        let stop = StopReason::StopString("x".to_owned());
        for (reason, stop, called, expected) in [
            (FinishReason::EndToken, None, false, ("end_turn", None)),
            (FinishReason::Length, None, false, ("max_tokens", None)),
            (FinishReason::Length, None, true, ("max_tokens", None)),
            (FinishReason::Stop, None, false, ("end_turn", None)),
            (FinishReason::Stop, Some(&stop), false, ("stop_sequence", Some("x"))),
            (FinishReason::Stop, None, true, ("tool_use", None)),
            (FinishReason::EndToken, None, true, ("tool_use", None)),
        ] {
            let end = End::of(reason, stop, called);
            assert_eq!((end.reason, end.stop), expected, "{reason:?} {stop:?} {called}");
        }
    }
}
