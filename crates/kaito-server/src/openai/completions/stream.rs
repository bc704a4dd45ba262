//! The answer to a completion, in pieces: chunks with text, then for each choice one that says why it ended.

use std::sync::Arc;

use kaito_engine::{Delta, Output, PromptScored, TokenScore};
use serde::Serialize;

use super::super::events;
use super::super::finish::{self, Stop};
use super::super::log_probs::{CompletionLogProbs, Pending, Scored, TextOffset};
use super::super::usage::Usage;
use super::answer::Answer;
use crate::dialect::{Event, Streaming};
use crate::error::ApiError;

/// Writes one stream.
pub(super) struct CompletionStream {
    answer: Arc<Answer>,
    choices: Vec<ChoiceStream>,
    generated: usize,
}

/// What is known of a choice and not sent.
struct ChoiceStream {
    /// Whether its chunk with the prompt is still to come.
    echoes: bool,
    tokens: Pending,
    token_ids: Vec<u32>,
    offset: TextOffset,
}

#[derive(Serialize)]
struct Chunk<'a> {
    choices: &'a [ChunkChoice<'a>],
    /// Absent unless it is asked for: then null until it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Default, Serialize)]
struct ChunkChoice<'a> {
    index: usize,
    text: &'a str,
    logprobs: Option<CompletionLogProbs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<Stop<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [u32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

impl CompletionStream {
    pub(super) fn new(answer: Arc<Answer>) -> Self {
        let fresh = |index| ChoiceStream {
            echoes: answer.echo || answer.return_token_ids,
            tokens: Pending::default(),
            token_ids: Vec::new(),
            offset: answer.text_offset(index),
        };
        let choices = (0..answer.prompts.len() * answer.choices).map(fresh).collect();
        Self { answer, choices, generated: 0 }
    }

    fn chunk(&self, choices: &[ChunkChoice<'_>], usage: Option<Usage>) -> Event {
        let options = self.answer.stream;
        let prompt_tokens = || self.answer.prompts.iter().map(|prompt| prompt.count).sum();
        let usage = usage.or_else(|| options.continuous_usage.then(|| Usage::new(prompt_tokens(), 0, self.generated)));
        let rest = Chunk { choices, usage: options.include_usage.then_some(usage) };
        Event::data(self.answer.head.write("text_completion", &rest))
    }

    /// The log-probabilities and ids of all tokens that were not sent, in a chunk that they go with.
    fn take_tokens(&mut self, index: usize) -> (Option<CompletionLogProbs>, Option<Vec<u32>>) {
        let Some(choice) = self.choices.get_mut(index) else { return (None, None) };
        let tokens = choice.tokens.take();
        let log_probs = self.answer.log_probs.as_ref().filter(|_| !tokens.is_empty()).map(|naming| {
            let mut written = CompletionLogProbs::default();
            tokens.iter().for_each(|token| written.push(Scored::from(token), &mut choice.offset, naming));
            written
        });
        let ids = self.answer.return_token_ids.then(|| std::mem::take(&mut choice.token_ids));
        (log_probs, ids)
    }
}

impl CompletionStream {
    /// The chunk with the prompt of a choice, if it is still to come. `scores` are those of the prompt's tokens.
    fn echo(&mut self, index: usize, scores: &[Option<TokenScore>]) -> Option<Event> {
        let answer = Arc::clone(&self.answer);
        let choice = self.choices.get_mut(index).filter(|choice| choice.echoes)?;
        choice.echoes = false;
        let prompt = answer.prompt_of(index);
        let naming = answer.log_probs.as_ref().filter(|_| answer.echo);
        let choice = ChunkChoice {
            index,
            text: prompt.map(|prompt| prompt.text.as_str()).filter(|_| answer.echo).unwrap_or_default(),
            logprobs: naming.map(|naming| answer.prompt_log_probs(index, scores, &mut choice.offset, naming)),
            prompt_token_ids: prompt.map(|prompt| prompt.tokens.as_slice()).filter(|_| answer.return_token_ids),
            ..ChunkChoice::default()
        };
        Some(self.chunk(&[choice], None))
    }
}

impl Streaming for CompletionStream {
    fn started(&mut self) -> Vec<Event> {
        // Log-probabilities of the prompt come later.
        if self.answer.echo && self.answer.log_probs.is_some() {
            return Vec::new();
        }
        (0..self.choices.len()).filter_map(|index| self.echo(index, &[])).collect()
    }

    fn prompt_scored(&mut self, scored: &PromptScored) -> Vec<Event> {
        let first = scored.prompt * self.answer.choices;
        (first..first + self.answer.choices).filter_map(|index| self.echo(index, &scored.scores)).collect()
    }

    fn delta(&mut self, delta: &Delta) -> Vec<Event> {
        let index = delta.sequence;
        // A prompt of a single token, before which nothing stands, has no log-probability to wait for.
        let mut events: Vec<Event> = self.echo(index, &[None]).into_iter().collect();
        let Some(choice) = self.choices.get_mut(index) else { return events };
        if let Some(token) = &delta.token {
            self.generated += 1;
            if self.answer.log_probs.is_some() {
                choice.tokens.push(token.clone());
            }
            if self.answer.return_token_ids {
                choice.token_ids.push(token.id);
            }
        }
        let stop = delta.stop_reason.as_ref();
        if !delta.text.is_empty() {
            let (logprobs, token_ids) = self.take_tokens(index);
            let choice = ChunkChoice { index, text: &delta.text, logprobs, token_ids, ..ChunkChoice::default() };
            events.push(self.chunk(&[choice], None));
        }
        if let Some(reason) = delta.finish_reason {
            let (logprobs, token_ids) = self.take_tokens(index);
            let choice = ChunkChoice {
                index,
                logprobs,
                finish_reason: Some(finish::reason(reason, false)),
                stop_reason: stop.map(Stop::from),
                token_ids,
                ..ChunkChoice::default()
            };
            events.push(self.chunk(&[choice], None));
        }
        events
    }

    fn finished(&mut self, output: &Output) -> Vec<Event> {
        let mut events = Vec::new();
        if self.answer.stream.include_usage {
            events.push(self.chunk(&[], Some(output.usage.into())));
        }
        events.push(super::super::events::done());
        events
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Event> {
        events::failed(error)
    }
}
