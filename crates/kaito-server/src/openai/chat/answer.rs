//! The answer to a chat completion that does not stream.

use std::sync::Arc;

use kaito_engine::{ModelInfo, Output, OutputSequence};
use serde::Serialize;

use super::super::finish::{self, Stop};
use super::super::head::Head;
use super::super::log_probs::{self, ChatLogProbs, Naming, PromptLogProbs, Scored};
use super::super::parameters::StreamOptions;
use super::super::tools::Piece;
use super::super::usage::Usage;
use super::Choices;
use super::stream::ChatStream;
use crate::dialect::{Reply, Streaming};

/// What of an answer is shown beside its texts.
#[derive(Debug, Clone)]
pub(super) struct Shown {
    pub(super) stream: StreamOptions,
    pub(super) log_probs: Option<Naming>,
    pub(super) prompt_log_probs: bool,
    pub(super) prompt_token_ids: Option<Vec<u32>>,
    /// What every text begins with: the message that is continued, with `echo`.
    pub(super) echo: String,
}

/// Writes an answer, whole or in pieces.
pub(super) struct Answer {
    pub(super) head: Head,
    pub(super) choices: Choices,
    pub(super) shown: Shown,
}

impl Answer {
    pub(super) fn new(choices: Choices, shown: Shown, info: &ModelInfo) -> Self {
        Self { head: Head::new("chatcmpl-", &choices.model, info), choices, shown }
    }
}

#[derive(Serialize)]
struct Completion<'a> {
    choices: Vec<Choice<'a>>,
    usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogProbs<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [u32]>,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: usize,
    message: Message,
    logprobs: Option<ChatLogProbs>,
    finish_reason: &'static str,
    stop_reason: Option<Stop<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<&'a [u32]>,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct Message {
    role: &'static str,
    /// Null beside calls.
    content: Option<String>,
    refusal: Option<()>,
    /// An empty list breaks clients.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call>,
}

/// A call, whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Call {
    /// Its id, by which its result names it.
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    /// What is called.
    function: Function,
}

/// The function of a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Function {
    /// Its name.
    name: String,
    /// JSON, as the model wrote it.
    arguments: String,
}

/// The text of a choice and its calls.
fn take_calls(choices: &Choices, text: &str) -> (String, Vec<Call>) {
    let (mut shown, mut calls) = (String::new(), Vec::<Call>::new());
    for piece in choices.reader().read(text, true) {
        match piece {
            Piece::Text(text) => shown.push_str(&text),
            Piece::Call { id, name, .. } => {
                calls.push(Call { id, kind: "function", function: Function { name, arguments: String::new() } });
            }
            Piece::Arguments { index, text } => {
                if let Some(call) = calls.get_mut(index) {
                    call.function.arguments.push_str(&text);
                }
            }
        }
    }
    (shown, calls)
}

impl Answer {
    fn choice<'a>(&'a self, index: usize, sequence: &'a OutputSequence) -> Choice<'a> {
        let (mut text, tool_calls) = take_calls(&self.choices, &sequence.text);
        text.insert_str(0, &self.shown.echo);
        let called = !tool_calls.is_empty();
        Choice {
            index,
            message: Message {
                role: "assistant",
                content: (!called || !text.is_empty()).then_some(text),
                refusal: None,
                tool_calls,
            },
            logprobs: self.shown.log_probs.as_ref().map(|naming| self.log_probs(sequence, naming)),
            finish_reason: finish::reason(sequence.finish_reason, called),
            stop_reason: sequence.stop_reason.as_ref().map(Stop::from),
            token_ids: self.choices.return_token_ids.then_some(&sequence.tokens),
        }
    }

    /// Those of all tokens but the one that ended the text, which has none of it.
    fn log_probs(&self, sequence: &OutputSequence, naming: &Naming) -> ChatLogProbs {
        let scores = sequence.scores.as_deref().unwrap_or_default();
        let ended = finish::by_token(sequence.finish_reason, sequence.stop_reason.as_ref());
        let of_text = scores.len().saturating_sub(usize::from(ended));
        ChatLogProbs::new(scores.iter().take(of_text).map(Scored::from), naming)
    }
}

impl Reply for Answer {
    fn size(&self, output: &Output) -> usize {
        output.sequences.iter().map(|sequence| sequence.text.len() + log_probs::size(sequence)).sum()
    }

    fn body(&self, output: &Output) -> String {
        let prompt_scores = output.prompts.first().and_then(|prompt| prompt.scores.as_deref());
        let rest = Completion {
            choices: output.sequences.iter().enumerate().map(|(i, sequence)| self.choice(i, sequence)).collect(),
            usage: output.usage.into(),
            prompt_logprobs: prompt_scores.filter(|_| self.shown.prompt_log_probs).map(PromptLogProbs::new),
            prompt_token_ids: self.shown.prompt_token_ids.as_deref(),
        };
        self.head.write("chat.completion", &rest)
    }

    fn streaming(self: Arc<Self>) -> Box<dyn Streaming> {
        Box::new(ChatStream::new(self))
    }
}
