//! The answer to a chat completion, in pieces.
//!
//! For each choice comes a chunk with the role, when the request has left the queue; chunks with text, with log-probabilities
//! for all tokens that the text stands for; a chunk with nothing but the reason why it ended. Then come the usage, if it is asked
//! for, and `[DONE]`.

use std::sync::Arc;

use kaito_engine::{Delta, FinishReason, Output, StopReason};
use serde::Serialize;

use super::super::events;
use super::super::finish::{self, Stop};
use super::super::log_probs::{ChatLogProbs, Pending, Scored};
use super::super::tools::{CallReader, Piece};
use super::super::usage::Usage;
use super::answer::Answer;
use crate::dialect::{Event, Streaming};
use crate::error::ApiError;

/// Writes one stream.
pub(super) struct ChatStream {
    answer: Arc<Answer>,
    choices: Vec<ChoiceStream>,
    generated: usize,
}

/// What is known of a choice and not sent.
struct ChoiceStream {
    reader: CallReader,
    tokens: Pending,
    token_ids: Vec<u32>,
}

#[derive(Serialize)]
struct Chunk<'a> {
    choices: &'a [ChunkChoice<'a>],
    /// Absent unless it is asked for: then null until it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [u32]>,
}

#[derive(Serialize)]
struct ChunkChoice<'a> {
    index: usize,
    delta: ChunkDelta<'a>,
    logprobs: Option<ChatLogProbs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<Stop<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Default, Serialize)]
struct ChunkDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[CallDelta<'a>; 1]>,
}

#[derive(Serialize)]
struct CallDelta<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    function: FunctionDelta<'a>,
}

#[derive(Serialize)]
struct FunctionDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    arguments: &'a str,
}

impl<'a> From<&'a Piece> for ChunkDelta<'a> {
    fn from(piece: &'a Piece) -> Self {
        match piece {
            Piece::Text(text) => Self { content: Some(text), ..Self::default() },
            Piece::Call { index, id, name } => {
                let function = FunctionDelta { name: Some(name), arguments: "" };
                let call = CallDelta { index: *index, id: Some(id), kind: Some("function"), function };
                Self { tool_calls: Some([call]), ..Self::default() }
            }
            Piece::Arguments { index, text } => {
                let function = FunctionDelta { name: None, arguments: text };
                Self {
                    tool_calls: Some([CallDelta { index: *index, id: None, kind: None, function }]),
                    ..Self::default()
                }
            }
        }
    }
}

impl ChatStream {
    pub(super) fn new(answer: Arc<Answer>) -> Self {
        let fresh =
            || ChoiceStream { reader: answer.choices.reader(), tokens: Pending::default(), token_ids: Vec::new() };
        let choices = (0..answer.choices.count).map(|_| fresh()).collect();
        Self { answer, choices, generated: 0 }
    }

    fn chunk(&self, choices: &[ChunkChoice<'_>], usage: Option<Usage>, prompt: Option<&[u32]>) -> Event {
        let options = self.answer.shown.stream;
        let running = || Usage::new(self.answer.choices.prompt_tokens, 0, self.generated);
        let usage = usage.or_else(|| options.continuous_usage.then(running));
        let rest = Chunk { choices, usage: options.include_usage.then_some(usage), prompt_token_ids: prompt };
        Event::data(self.answer.head.write("chat.completion.chunk", &rest))
    }

    /// The log-probabilities and ids of all tokens that were not sent, in a chunk that they go with.
    fn take_tokens(&mut self, index: usize) -> (Option<ChatLogProbs>, Option<Vec<u32>>) {
        let Some(choice) = self.choices.get_mut(index) else { return (None, None) };
        let naming = self.answer.shown.log_probs.as_ref();
        let tokens = choice.tokens.take();
        let log_probs = naming
            .filter(|_| !tokens.is_empty())
            .map(|naming| ChatLogProbs::new(tokens.iter().map(Scored::from), naming));
        let ids = self.answer.choices.return_token_ids.then(|| std::mem::take(&mut choice.token_ids));
        (log_probs, ids)
    }

    fn pieces(&mut self, index: usize, pieces: &[Piece], events: &mut Vec<Event>) {
        for piece in pieces {
            if matches!(piece, Piece::Text(text) | Piece::Arguments { text, .. } if text.is_empty()) {
                continue;
            }
            let (logprobs, token_ids) = self.take_tokens(index);
            let delta = ChunkDelta::from(piece);
            let choice = ChunkChoice { index, delta, logprobs, finish_reason: None, stop_reason: None, token_ids };
            events.push(self.chunk(&[choice], None, None));
        }
    }

    fn end(&mut self, index: usize, reason: FinishReason, stop: Option<&StopReason>, events: &mut Vec<Event>) {
        let Some(choice) = self.choices.get_mut(index) else { return };
        let ending = choice.reader.finish();
        let called = choice.reader.called();
        self.pieces(index, &ending, events);
        let (logprobs, token_ids) = self.take_tokens(index);
        let choice = ChunkChoice {
            index,
            delta: ChunkDelta::default(),
            logprobs,
            finish_reason: Some(finish::reason(reason, called)),
            stop_reason: stop.map(Stop::from),
            token_ids,
        };
        events.push(self.chunk(&[choice], None, None));
    }
}

impl Streaming for ChatStream {
    fn started(&mut self) -> Vec<Event> {
        let role = |index| {
            let delta = ChunkDelta { role: Some("assistant"), content: Some(""), tool_calls: None };
            let choice =
                ChunkChoice { index, delta, logprobs: None, finish_reason: None, stop_reason: None, token_ids: None };
            let prompt = self.answer.shown.prompt_token_ids.as_deref().filter(|_| index == 0);
            self.chunk(&[choice], None, prompt)
        };
        let mut events: Vec<Event> = (0..self.choices.len()).map(role).collect();
        let echo = Piece::Text(self.answer.shown.echo.clone());
        for index in 0..self.choices.len() {
            self.pieces(index, std::slice::from_ref(&echo), &mut events);
        }
        events
    }

    fn delta(&mut self, delta: &Delta) -> Vec<Event> {
        let index = delta.sequence;
        let mut events = Vec::new();
        let Some(choice) = self.choices.get_mut(index) else { return events };
        if let Some(token) = &delta.token {
            self.generated += 1;
            if self.answer.shown.log_probs.is_some() {
                choice.tokens.push(token.clone());
            }
            if self.answer.choices.return_token_ids {
                choice.token_ids.push(token.id);
            }
        }
        let pieces = choice.reader.push(&delta.text);
        if let Some(reason) = delta.finish_reason {
            let stop = delta.stop_reason.as_ref();
            if finish::by_token(reason, stop) {
                // It has no text.
                choice.tokens.drop_last();
            }
            self.pieces(index, &pieces, &mut events);
            self.end(index, reason, stop, &mut events);
        } else {
            self.pieces(index, &pieces, &mut events);
        }
        events
    }

    fn finished(&mut self, output: &Output) -> Vec<Event> {
        let mut events = Vec::new();
        if self.answer.shown.stream.include_usage {
            events.push(self.chunk(&[], Some(output.usage.into()), None));
        }
        events.push(super::super::events::done());
        events
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Event> {
        events::failed(error)
    }
}

#[cfg(test)]
mod tests {
    use kaito_engine::{LikelyToken, Token};
    use serde_json::{Value, json};

    use super::super::super::head::Head;
    use super::super::super::log_probs::Naming;
    use super::super::super::parameters::StreamOptions;
    use super::super::Choices;
    use super::super::answer::Shown;
    use super::*;

    fn stream(stream: StreamOptions, log_probs: bool, count: usize) -> ChatStream {
        let head = Head {
            id: "chatcmpl-1".to_owned(),
            created: 7,
            model: "tiny".to_owned(),
            system_fingerprint: "kaito".to_owned(),
        };
        let shown = Shown {
            stream,
            log_probs: log_probs.then_some(Naming { as_ids: false, likely: 1 }),
            prompt_log_probs: false,
            prompt_token_ids: None,
            echo: String::new(),
        };
        ChatStream::new(Arc::new(Answer { head, choices: Choices::plain("tiny", count, 5), shown }))
    }

    fn delta(text: &str, token: Option<(u32, &[u8])>) -> Delta {
        let token = token.map(|(id, bytes)| Token {
            id,
            text: String::new(),
            log_prob: Some(-0.5),
            bytes: Some(bytes.to_vec()),
            top: vec![LikelyToken { id, text: String::new(), log_prob: -0.5, bytes: Some(bytes.to_vec()) }],
        });
        Delta { sequence: 0, text: text.to_owned(), token, finish_reason: None, stop_reason: None }
    }

    async fn read(events: Vec<Event>) -> Vec<Value> {
        events::read(events).await.iter().map(|data| serde_json::from_str(data).unwrap()).collect()
    }

    /// Half a character has no text, and its token's log-probability waits for the other half.
    #[tokio::test]
    async fn log_probabilities_stand_beside_the_text_of_their_tokens() {
        let mut stream = stream(StreamOptions { stream: true, ..StreamOptions::default() }, true, 1);
        assert_eq!(read(stream.delta(&delta("", Some((1, b"\xc3"))))).await, Vec::<Value>::new());
        let chunks = read(stream.delta(&delta("é", Some((2, b"\xa9"))))).await;
        assert_eq!(chunks.len(), 1);
        let choice = &chunks[0]["choices"][0];
        assert_eq!(choice["delta"], json!({ "content": "é" }));
        let bytes: Vec<_> =
            choice["logprobs"]["content"].as_array().unwrap().iter().map(|token| token["bytes"].clone()).collect();
        assert_eq!(bytes, [json!([195]), json!([169])]);

        // The end token has no text, and so no log-probability.
        assert!(stream.delta(&delta("", Some((3, b"</s>")))).is_empty());
        let last = Delta { finish_reason: Some(FinishReason::EndToken), ..delta("", None) };
        let chunks = read(stream.delta(&last)).await;
        assert_eq!(
            chunks[0]["choices"],
            json!([{ "index": 0, "delta": {}, "logprobs": null, "finish_reason": "stop" }])
        );
    }

    #[tokio::test]
    async fn chunks_are_written_as_openai_does() {
        let options = StreamOptions { stream: true, include_usage: true, continuous_usage: false };
        let mut stream = stream(options, false, 2);
        let head = json!({
            "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "tiny",
            "system_fingerprint": "kaito",
        });
        let chunk = |more: Value| {
            let mut chunk = head.clone();
            chunk.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            chunk
        };
        let choice = |index: usize, delta: Value, reason: Value| {
            chunk(json!({
                "choices": [{ "index": index, "delta": delta, "logprobs": null, "finish_reason": reason }],
                "usage": null,
            }))
        };
        let role = json!({ "role": "assistant", "content": "" });
        let started = read(stream.started()).await;
        assert_eq!(started, [choice(0, role.clone(), Value::Null), choice(1, role, Value::Null)]);
        let text = read(stream.delta(&delta("Hi", Some((1, b"Hi"))))).await;
        assert_eq!(text, [choice(0, json!({ "content": "Hi" }), Value::Null)]);
        let last = Delta { finish_reason: Some(FinishReason::Length), ..delta("", None) };
        assert_eq!(read(stream.delta(&last)).await, [choice(0, json!({}), json!("length"))]);

        let usage = kaito_engine::Usage { prompt_tokens: 5, cached_tokens: 4, generated_tokens: 1 };
        let finished = stream.finished(&Output { usage, ..Output::default() });
        let mut finished = events::read(finished).await;
        assert_eq!(finished.pop().as_deref(), Some("[DONE]"));
        let usage = serde_json::to_value(Usage::from(usage)).unwrap();
        assert_eq!(finished.len(), 1);
        let last: Value = serde_json::from_str(&finished[0]).unwrap();
        assert_eq!(last, chunk(json!({ "choices": [], "usage": usage })));
    }

    #[tokio::test]
    async fn an_error_is_an_event_and_the_end() {
        let mut stream = stream(StreamOptions::default(), false, 1);
        let events = events::read(stream.failed(&ApiError::internal("it broke"))).await;
        assert_eq!(events.len(), 2);
        let error: Value = serde_json::from_str(&events[0]).unwrap();
        assert_eq!(
            error,
            json!({ "error": { "message": "It broke.", "type": "server_error", "param": null, "code": null } })
        );
        assert_eq!(events[1], "[DONE]");
    }
}
