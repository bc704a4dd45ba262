//! The answer to a completion that does not stream.

use std::sync::Arc;

use kaito_engine::{Output, OutputSequence, TokenScore, Tokenizer};
use serde::Serialize;

use super::super::finish::{self, Stop};
use super::super::head::Head;
use super::super::log_probs::{self, CompletionLogProbs, Naming, PromptLogProbs, Scored, TextOffset};
use super::super::parameters::StreamOptions;
use super::super::usage::Usage;
use super::stream::CompletionStream;
use crate::dialect::{Reply, Streaming};

/// What an answer shows of one of its prompts.
#[derive(Debug, Clone)]
pub(super) struct OfPrompt {
    /// Its text, where texts begin with it.
    pub(super) text: String,
    /// How many tokens it has.
    pub(super) count: usize,
    /// Its tokens, where they are shown.
    pub(super) tokens: Vec<u32>,
}

/// Writes an answer, whole or in pieces.
pub(super) struct Answer {
    pub(super) head: Head,
    pub(super) tokenizer: Tokenizer,
    pub(super) prompts: Vec<OfPrompt>,
    /// Choices of each prompt.
    pub(super) choices: usize,
    pub(super) stream: StreamOptions,
    pub(super) echo: bool,
    pub(super) log_probs: Option<Naming>,
    pub(super) skip_special_tokens: bool,
    pub(super) return_token_ids: bool,
    pub(super) prompt_log_probs: bool,
}

#[derive(Serialize)]
struct Completion<'a> {
    choices: Vec<Choice<'a>>,
    usage: Usage,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: usize,
    text: String,
    logprobs: Option<CompletionLogProbs>,
    finish_reason: &'static str,
    stop_reason: Option<Stop<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogProbs<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [u32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<&'a [u32]>,
}

impl Answer {
    /// The prompt that the choice at `index` continues.
    pub(super) fn prompt_of(&self, index: usize) -> Option<&OfPrompt> {
        self.prompts.get(index / self.choices)
    }

    /// Where the first token of the text at `index` begins.
    pub(super) fn text_offset(&self, index: usize) -> TextOffset {
        let beginning = self.prompt_of(index).map_or("", |prompt| &prompt.text);
        TextOffset::new(&self.tokenizer, self.skip_special_tokens, beginning)
    }

    fn choice<'a>(&'a self, index: usize, sequence: &'a OutputSequence, output: &'a Output) -> Choice<'a> {
        let prompt = self.prompt_of(index);
        let scores = output.prompts.get(index / self.choices).and_then(|prompt| prompt.scores.as_deref());
        let echoed = prompt.map(|prompt| prompt.text.as_str()).filter(|_| self.echo).unwrap_or_default();
        Choice {
            index,
            text: format!("{echoed}{}", sequence.text),
            logprobs: self.log_probs.as_ref().map(|naming| self.log_probs(index, sequence, output, naming)),
            finish_reason: finish::reason(sequence.finish_reason, false),
            stop_reason: sequence.stop_reason.as_ref().map(Stop::from),
            prompt_logprobs: scores.filter(|_| self.prompt_log_probs).map(PromptLogProbs::new),
            prompt_token_ids: prompt.map(|prompt| prompt.tokens.as_slice()).filter(|_| self.return_token_ids),
            token_ids: self.return_token_ids.then_some(&sequence.tokens),
        }
    }

    /// Those of the prompt of the choice at `index`, if it is echoed, of whose tokens these are the scores.
    pub(super) fn prompt_log_probs(
        &self,
        index: usize,
        scores: &[Option<TokenScore>],
        offset: &mut TextOffset,
        naming: &Naming,
    ) -> CompletionLogProbs {
        let mut written = CompletionLogProbs::default();
        if let Some(prompt) = self.prompt_of(index).filter(|_| self.echo) {
            for (id, score) in prompt.tokens.iter().zip(scores) {
                match score {
                    Some(score) => written.push(score.into(), offset, naming),
                    None => written.push_first(&self.tokenizer, *id, offset, naming),
                }
            }
        }
        written
    }

    /// Those of the prompt, if it is echoed, and of all tokens of the sequence, the one that ended it included.
    fn log_probs(
        &self,
        index: usize,
        sequence: &OutputSequence,
        output: &Output,
        naming: &Naming,
    ) -> CompletionLogProbs {
        let mut offset = self.text_offset(index);
        let scores = output.prompts.get(index / self.choices).and_then(|prompt| prompt.scores.as_deref());
        let mut written = self.prompt_log_probs(index, scores.unwrap_or_default(), &mut offset, naming);
        for score in sequence.scores.as_deref().unwrap_or_default() {
            written.push(Scored::from(score), &mut offset, naming);
        }
        written
    }
}

impl Reply for Answer {
    fn size(&self, output: &Output) -> usize {
        let of_prompts: usize = self.prompts.iter().map(|prompt| prompt.text.len() + prompt.tokens.len() * 8).sum();
        let of_texts: usize =
            output.sequences.iter().map(|sequence| sequence.text.len() + log_probs::size(sequence)).sum();
        of_prompts.saturating_mul(self.choices) + of_texts
    }

    fn body(&self, output: &Output) -> String {
        let choices = output.sequences.iter().enumerate().map(|(i, sequence)| self.choice(i, sequence, output));
        self.head.write("text_completion", &Completion { choices: choices.collect(), usage: output.usage.into() })
    }

    fn streaming(self: Arc<Self>) -> Box<dyn Streaming> {
        Box::new(CompletionStream::new(self))
    }
}
