//! The response around the items: whole, or as events.

use std::sync::Arc;

use kaito_engine::{Delta, FinishReason, ModelInfo, Output, Usage};
use serde_json::{Map, Value, json};

use super::super::chat::Choices;
use super::super::head::Head;
use super::super::tools::CallReader;
use super::items::{Event, Items};
use crate::dialect::{self, Reply, Streaming};
use crate::error::ApiError;

/// What a response says again of its request.
#[derive(Debug, Clone)]
pub(super) struct Echo {
    pub(super) instructions: Option<String>,
    pub(super) max_output_tokens: Option<usize>,
    pub(super) metadata: Map<String, Value>,
    pub(super) parallel_tool_calls: bool,
    pub(super) temperature: Option<f64>,
    pub(super) text: Value,
    pub(super) tool_choice: Value,
    pub(super) tools: Vec<Value>,
    pub(super) top_p: Option<f64>,
}

/// Writes a response, whole or in pieces.
pub(super) struct Answer {
    head: Head,
    choices: Choices,
    echo: Echo,
}

/// How far a response has come.
enum State<'a> {
    InProgress,
    Ended(FinishReason, Usage),
    Failed(&'a ApiError),
}

impl Answer {
    pub(super) fn new(choices: Choices, echo: Echo, info: &ModelInfo) -> Self {
        Self { head: Head::new("resp_", &choices.model, info), choices, echo }
    }

    fn response(&self, state: &State<'_>, output: Vec<Value>) -> Value {
        let Echo {
            instructions,
            max_output_tokens,
            metadata,
            parallel_tool_calls,
            temperature,
            text,
            tool_choice,
            tools,
            top_p,
        } = &self.echo;
        let (status, incomplete) = match state {
            State::InProgress => ("in_progress", None),
            State::Failed(_) => ("failed", None),
            State::Ended(FinishReason::Length, _) => ("incomplete", Some("max_output_tokens")),
            State::Ended(FinishReason::EndToken | FinishReason::Stop, _) => ("completed", None),
        };
        let error = match state {
            State::Failed(error) => json!({ "code": "server_error", "message": error.detail() }),
            State::InProgress | State::Ended(..) => Value::Null,
        };
        let usage = match state {
            State::Ended(_, usage) => json!({
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": { "cached_tokens": usage.cached_tokens, "cache_write_tokens": 0 },
                "output_tokens": usage.generated_tokens,
                "output_tokens_details": { "reasoning_tokens": 0 },
                "total_tokens": usage.prompt_tokens + usage.generated_tokens,
            }),
            State::InProgress | State::Failed(_) => Value::Null,
        };
        json!({
            "id": self.head.id,
            "object": "response",
            "created_at": self.head.created,
            "status": status,
            "background": false,
            "error": error,
            "incomplete_details": incomplete.map(|reason| json!({ "reason": reason })),
            "instructions": instructions,
            "max_output_tokens": max_output_tokens,
            "metadata": metadata,
            "model": self.head.model,
            "output": output,
            "parallel_tool_calls": parallel_tool_calls,
            "previous_response_id": null,
            "reasoning": { "effort": null, "summary": null },
            "store": false,
            "temperature": temperature,
            "text": text,
            "tool_choice": tool_choice,
            "tools": tools,
            "top_p": top_p,
            "truncation": "disabled",
            "usage": usage,
        })
    }
}

impl Reply for Answer {
    fn size(&self, output: &Output) -> usize {
        output.sequences.iter().map(|sequence| sequence.text.len()).sum()
    }

    fn body(&self, output: &Output) -> String {
        let (mut items, mut unsent) = (Items::default(), Vec::new());
        let mut reason = FinishReason::EndToken;
        if let Some(sequence) = output.sequences.first() {
            for piece in self.choices.reader().read(&sequence.text, true) {
                items.push(piece, &mut unsent);
            }
            reason = sequence.finish_reason;
        }
        items.end(reason, &mut unsent);
        self.response(&State::Ended(reason, output.usage), items.json()).to_string()
    }

    fn streaming(self: Arc<Self>) -> Box<dyn Streaming> {
        let reader = self.choices.reader();
        Box::new(Stream { answer: self, reader, items: Items::default(), number: 0, reason: None })
    }
}

/// Writes one stream.
struct Stream {
    answer: Arc<Answer>,
    reader: CallReader,
    items: Items,
    /// Of the next event.
    number: u64,
    /// Why the text ended, once it has.
    reason: Option<FinishReason>,
}

impl Stream {
    fn events(&mut self, events: Vec<Event>) -> Vec<dialect::Event> {
        events.into_iter().map(|(kind, fields)| self.event(kind, fields)).collect()
    }

    fn event(&mut self, kind: &'static str, fields: Map<String, Value>) -> dialect::Event {
        let mut whole = Map::new();
        whole.insert("type".to_owned(), kind.into());
        whole.insert("sequence_number".to_owned(), self.number.into());
        whole.extend(fields);
        self.number += 1;
        dialect::Event::named(kind, Value::Object(whole).to_string())
    }

    fn response(&mut self, kind: &'static str, state: &State<'_>) -> dialect::Event {
        let response = self.answer.response(state, self.items.json());
        self.event(kind, Map::from_iter([("response".to_owned(), response)]))
    }

    /// Ends the items, unless they have ended.
    fn end(&mut self, reason: FinishReason, events: &mut Vec<Event>) {
        if self.reason.is_none() {
            self.reason = Some(reason);
            self.items.end(reason, events);
        }
    }
}

impl Streaming for Stream {
    fn started(&mut self) -> Vec<dialect::Event> {
        ["response.created", "response.in_progress"].map(|kind| self.response(kind, &State::InProgress)).into()
    }

    fn delta(&mut self, delta: &Delta) -> Vec<dialect::Event> {
        let mut events = Vec::new();
        for piece in self.reader.read(&delta.text, delta.finish_reason.is_some()) {
            self.items.push(piece, &mut events);
        }
        if let Some(reason) = delta.finish_reason {
            self.end(reason, &mut events);
        }
        self.events(events)
    }

    fn finished(&mut self, output: &Output) -> Vec<dialect::Event> {
        let mut events = Vec::new();
        let reason = output.sequences.first().map_or(FinishReason::EndToken, |sequence| sequence.finish_reason);
        self.end(reason, &mut events);
        let mut events = self.events(events);
        let kind = if reason == FinishReason::Length { "response.incomplete" } else { "response.completed" };
        events.push(self.response(kind, &State::Ended(reason, output.usage)));
        events
    }

    fn failed(&mut self, error: &ApiError) -> Vec<dialect::Event> {
        vec![self.response("response.failed", &State::Failed(error))]
    }
}
