//! Answers, whole or line by line. Calls come whole, with their arguments as an object.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use kaito_engine::{Delta, FinishReason, Output, StreamEvent};
use serde_json::{Map, Value, json};

use super::models::timestamp;
use crate::dialect::{Event, Framing, Reply, Streaming};
use crate::error::ApiError;
use crate::openai::chat::Choices;
use crate::openai::tools::{CallReader, Piece};
use crate::routes::Family;

/// Where the text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// `message`
    Chat,
    /// `response`
    Generate,
}

impl Shape {
    fn piece(self, model: &str, text: &str, calls: Vec<Value>) -> Map<String, Value> {
        let mut piece = Map::new();
        piece.insert("model".to_owned(), model.into());
        piece.insert("created_at".to_owned(), timestamp(std::time::SystemTime::now()).into());
        match self {
            Self::Generate => piece.insert("response".to_owned(), text.into()),
            Self::Chat => {
                let mut message = json!({ "role": "assistant", "content": text });
                // An empty list is not what Ollama sends.
                if !calls.is_empty() {
                    message["tool_calls"] = calls.into();
                }
                piece.insert("message".to_owned(), message)
            }
        };
        piece.insert("done".to_owned(), false.into());
        piece
    }
}

/// Writes an answer.
pub(super) struct Answer {
    shape: Shape,
    model: String,
    /// What tells calls from the text; none for a prompt that is continued as it is.
    choices: Option<Choices>,
    came: Instant,
    /// When the request left the queue.
    started: OnceLock<Instant>,
    /// When its first token was there.
    first: OnceLock<Instant>,
}

impl Answer {
    /// The answer to a request that came at `came`.
    pub(super) fn new(shape: Shape, model: String, choices: Option<Choices>, came: Instant) -> Self {
        Self { shape, model, choices, came, started: OnceLock::new(), first: OnceLock::new() }
    }

    /// The answer to a request that asks for nothing but that the model be loaded.
    pub(super) fn loaded(shape: Shape, model: String) -> Value {
        let mut piece = shape.piece(&model, "", Vec::new());
        piece.insert("done".to_owned(), true.into());
        piece.insert("done_reason".to_owned(), "load".into());
        piece.into()
    }

    fn reader(&self) -> CallReader {
        self.choices.as_ref().map_or_else(CallReader::of_text, Choices::reader)
    }

    /// The last piece, or the only one.
    fn last(&self, text: &str, calls: Vec<Value>, output: &Output) -> String {
        let mut piece = self.shape.piece(&self.model, text, calls);
        piece.insert("done".to_owned(), true.into());
        let cut = output.sequences.first().is_some_and(|sequence| sequence.finish_reason == FinishReason::Length);
        piece.insert("done_reason".to_owned(), if cut { "length" } else { "stop" }.into());
        let now = Instant::now();
        let started = self.started.get().copied().unwrap_or(self.came);
        let first = self.first.get().copied().unwrap_or(now);
        for (name, value) in [
            ("total_duration", nanoseconds(now - self.came)),
            ("load_duration", nanoseconds(started - self.came)),
            ("prompt_eval_count", output.usage.prompt_tokens as u64),
            ("prompt_eval_duration", nanoseconds(first - started)),
            ("eval_count", output.usage.generated_tokens as u64),
            ("eval_duration", nanoseconds(now - first)),
        ] {
            piece.insert(name.to_owned(), value.into());
        }
        Value::Object(piece).to_string()
    }
}

/// At least one: clients divide by them.
fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).max(1)
}

impl Reply for Answer {
    fn size(&self, output: &Output) -> usize {
        output.sequences.iter().map(|sequence| sequence.text.len()).sum()
    }

    fn body(&self, output: &Output) -> String {
        let (mut pieces, mut text, mut calls) = (Pieces::new(self.reader()), String::new(), Vec::new());
        let generated = output.sequences.first().map_or("", |sequence| &sequence.text);
        for part in pieces.push(generated, true) {
            match part {
                Part::Text(part) => text.push_str(&part),
                Part::Call(call) => calls.push(call),
            }
        }
        self.last(&text, calls, output)
    }

    fn streaming(self: Arc<Self>) -> Box<dyn Streaming> {
        let pieces = Pieces::new(self.reader());
        Box::new(Lines { answer: self, pieces })
    }

    fn framing(&self) -> Framing {
        Framing::Lines
    }

    fn note(&self, event: &StreamEvent) {
        // The first of each is kept.
        match event {
            StreamEvent::Started => _ = self.started.set(Instant::now()),
            StreamEvent::Delta(Delta { token: Some(_), .. }) => _ = self.first.set(Instant::now()),
            StreamEvent::PromptScored(_) | StreamEvent::Delta(_) | StreamEvent::Finished(_) => {}
        }
    }
}

/// Makes whole calls of an answer's pieces.
struct Pieces {
    reader: CallReader,
    /// The name and the arguments, so far, of a call that is being written.
    call: Option<(String, String)>,
}

/// What an answer is made of.
#[derive(Debug, PartialEq)]
enum Part {
    Text(String),
    Call(Value),
}

impl Pieces {
    fn new(reader: CallReader) -> Self {
        Self { reader, call: None }
    }

    /// What `text` adds, and at the `end` what was held back.
    fn push(&mut self, text: &str, end: bool) -> Vec<Part> {
        let pieces = self.reader.read(text, end);
        let mut parts = Vec::new();
        pieces.into_iter().for_each(|piece| self.take(piece, &mut parts));
        if end {
            self.end_call(&mut parts);
        }
        parts
    }

    fn take(&mut self, piece: Piece, parts: &mut Vec<Part>) {
        match piece {
            Piece::Text(text) if text.is_empty() => {}
            Piece::Text(text) => {
                self.end_call(parts);
                parts.push(Part::Text(text));
            }
            Piece::Call { name, .. } => {
                self.end_call(parts);
                self.call = Some((name, String::new()));
            }
            Piece::Arguments { text, .. } => {
                if let Some((_, arguments)) = &mut self.call {
                    arguments.push_str(&text);
                }
            }
        }
    }

    fn end_call(&mut self, parts: &mut Vec<Part>) {
        let Some((name, arguments)) = self.call.take() else { return };
        // Arguments that the limit of tokens has cut are no object.
        let arguments: Map<String, Value> = serde_json::from_str(&arguments).unwrap_or_default();
        parts.push(Part::Call(json!({ "function": { "name": name, "arguments": arguments } })));
    }
}

/// Writes one stream.
struct Lines {
    answer: Arc<Answer>,
    pieces: Pieces,
}

impl Streaming for Lines {
    fn delta(&mut self, delta: &Delta) -> Vec<Event> {
        let parts = self.pieces.push(&delta.text, delta.finish_reason.is_some());
        let line = |part| {
            let (text, calls) = match part {
                Part::Text(text) => (text, Vec::new()),
                Part::Call(call) => (String::new(), vec![call]),
            };
            Event::data(Value::Object(self.answer.shape.piece(&self.answer.model, &text, calls)).to_string())
        };
        parts.into_iter().map(line).collect()
    }

    fn finished(&mut self, output: &Output) -> Vec<Event> {
        vec![Event::data(self.answer.last("", Vec::new(), output))]
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Event> {
        vec![Event::data(error.body(Family::Ollama).to_string())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_come_whole() {
        let (mut pieces, mut parts) = (Pieces::new(CallReader::of_text()), Vec::new());
        let call = |index: usize, name: &str| Piece::Call { index, id: format!("call_{index}"), name: name.to_owned() };
        let arguments = |index: usize, text: &str| Piece::Arguments { index, text: text.to_owned() };
        for piece in [
            Piece::Text("Okay".to_owned()),
            Piece::Text(String::new()),
            call(0, "f"),
            arguments(0, "{\"x\""),
            arguments(0, ":1}"),
            call(1, "g"),
            arguments(1, "{\"cut"),
        ] {
            pieces.take(piece, &mut parts);
        }
        pieces.end_call(&mut parts);
        pieces.end_call(&mut parts);
        let part =
            |name: &str, arguments: Value| Part::Call(json!({ "function": { "name": name, "arguments": arguments } }));
        assert_eq!(parts, [Part::Text("Okay".to_owned()), part("f", json!({ "x": 1 })), part("g", json!({}))]);
    }

    #[test]
    fn a_model_that_is_loaded_says_so() {
        for (shape, field, text) in [
            (Shape::Chat, "message", json!({ "role": "assistant", "content": "" })),
            (Shape::Generate, "response", json!("")),
        ] {
            let answer = Answer::loaded(shape, "m".to_owned());
            assert_eq!((&answer["done"], &answer["done_reason"]), (&json!(true), &json!("load")));
            assert_eq!((&answer["model"], &answer[field]), (&json!("m"), &text));
        }
    }
}
