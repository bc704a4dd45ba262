//! Text generation: from a prompt's text to the texts of the answer, as transformers' pipeline of that name does it.

mod assembler;

use std::collections::VecDeque;

use self::assembler::Assembler;
use crate::{
    Cancel, Error,
    engine::{GenerationEvent, GenerationRequest, GenerationStream},
    generate::{Chosen, FinishReason, GenerateOptions, GenerationParams, ResolveContext},
    prompt_bytes,
    stop_strings::StopStrings,
};
use kaito_model::tokenizer::{ChatMessage, DecodeOptions, Special, Tokenizer};

/// Tokens that become text in one go, before other tasks get their turns: less than a millisecond.
pub(crate) const PIECE: usize = 512;

/// What a text is generated from.
#[derive(Debug, Clone, PartialEq)]
pub enum TextInput {
    /// A text to continue.
    Prompt(String),
    /// A conversation, rendered by the model's chat template. If its last message is the assistant's, that one is
    /// continued.
    Messages(Vec<ChatMessage>),
}

/// A request for text.
#[derive(Debug, Clone, PartialEq)]
pub struct TextRequest {
    /// What to continue.
    pub input: TextInput,
    /// Whether the answer begins with the prompt. `None`: a prompt is returned, a conversation is not.
    pub return_full_text: Option<bool>,
    /// Whether spaces before punctuation are removed; `None` is false.
    pub clean_up_tokenization_spaces: Option<bool>,
    /// Text put before the prompt, of which the answer says nothing. It extends `max_length` and `min_length`.
    pub prefix: Option<String>,
    /// `"hole"` drops the beginning of a prompt that leaves too little room; `None` never does.
    pub handle_long_generation: Option<String>,
    /// Whether a prompt gets the tokens that the tokenizer adds to every sequence; `None` is true. A conversation never
    /// does: its template writes them. `Some(true)` also counts them in the prefix's length.
    pub add_special_tokens: Option<bool>,
    /// Parameters of generation.
    pub options: GenerateOptions,
    /// Texts that end a sequence where they appear; they are not part of it.
    pub stop: Vec<String>,
}

/// What a text stream carries.
#[derive(Debug, Clone, PartialEq)]
pub enum TextEvent {
    /// The request left the queue.
    Started,
    /// A new token. Beam search has none, its text comes whole.
    Delta {
        /// Index of the sequence.
        sequence: usize,
        /// Text that is final now: empty while a character or a stop string may be incomplete.
        text: String,
        /// The token that completed it.
        token: u32,
    },
    /// Text without a token: what was held back until the end.
    Rest {
        /// Index of the sequence.
        sequence: usize,
        /// The text.
        text: String,
    },
    /// The last event.
    Finished(TextOutput),
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct TextOutput {
    /// The text of each sequence.
    pub texts: Vec<String>,
    /// The token ids of each sequence, prompt included.
    pub sequences: Vec<Vec<u32>>,
    /// For beams, the score of each sequence.
    pub sequences_scores: Option<Vec<f32>>,
    /// With `output_scores`, the scores of each sequence's new tokens.
    pub scores: Option<Vec<Vec<TokenScore>>>,
    /// Why each sequence ended.
    pub finish_reasons: Vec<FinishReason>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// New tokens of all sequences.
    pub generated_tokens: usize,
}

/// A chosen token, and the likeliest tokens in its place.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenScore {
    /// Token id.
    pub id: u32,
    /// Its text.
    pub text: String,
    /// Natural logarithm of its probability.
    pub log_prob: f32,
    /// Up to ten tokens, likeliest first.
    pub top: Vec<LikelyToken>,
}

/// A token that might have been chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct LikelyToken {
    /// Token id.
    pub id: u32,
    /// Its text.
    pub text: String,
    /// Natural logarithm of its probability.
    pub log_prob: f32,
}

/// What of a model decides how text becomes a generation.
#[derive(Debug)]
pub(crate) struct TextContext<'a> {
    /// The model's tokenizer.
    pub(crate) tokenizer: &'a Tokenizer,
    /// Its `generation_config.json`.
    pub(crate) defaults: &'a GenerateOptions,
    /// The token that stands for an empty prompt.
    pub(crate) bos_token_id: Option<u32>,
    /// Rows of its output head.
    pub(crate) vocab_size: usize,
    /// Longest sequence that it can hold.
    pub(crate) max_seq_len: usize,
}

/// A request as the engine needs it, and what turns its tokens into text again.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) generation: GenerationRequest,
    pub(crate) assembler: Assembler,
}

impl TextContext<'_> {
    /// Tokenises a request and checks its parameters. Looks at `cancel` between one stage and the next.
    pub(crate) fn prepare(&self, request: TextRequest, cancel: &Cancel) -> Result<Prepared, Error> {
        let stops = StopStrings::new(&request.stop)?;
        let prefix = request.prefix.unwrap_or_default();
        let limit = match request.handle_long_generation {
            None => self.max_seq_len,
            Some(_) => self.max_seq_len.saturating_mul(prompt_bytes::HOLE),
        };
        let fits = |text: &str| {
            cancel.check()?;
            prompt_bytes::check(self.tokenizer, "the prompt", [text].into_iter(), limit, text.len())
        };
        let special = |add: bool| if add { Special::Add } else { Special::Skip };
        let (shown, encoded) = match request.input {
            TextInput::Prompt(prompt) => {
                let whole = format!("{prefix}{prompt}");
                fits(&whole)?;
                let add = special(request.add_special_tokens.unwrap_or(true));
                let encoded = self.tokenizer.encode(&whole, add)?;
                (if request.return_full_text.unwrap_or(true) { prompt } else { String::new() }, encoded)
            }
            TextInput::Messages(_) if !prefix.is_empty() => {
                return Err(Error::InvalidRequest(
                    "`prefix` can't stand beside `messages`: put its text into a message".to_owned(),
                ));
            }
            TextInput::Messages(messages) => {
                let rendered = render(self.tokenizer, &messages, &|| cancel.is_cancelled())?;
                fits(&rendered)?;
                let encoded = self.tokenizer.encode(&rendered, Special::Skip)?;
                (if request.return_full_text.unwrap_or(false) { rendered } else { String::new() }, encoded)
            }
        };
        cancel.check()?;
        let prompt = self.not_empty(encoded)?;
        let prefix_len = if prefix.is_empty() {
            0
        } else {
            self.tokenizer.encode(&prefix, special(request.add_special_tokens.unwrap_or(false)))?.len()
        };
        let options = request.options.over_model(self.defaults.clone());
        let prompt = match request.handle_long_generation.as_deref() {
            None => prompt,
            Some("hole") => self.dig_hole(prompt, &options)?,
            Some(other) => {
                return Err(Error::InvalidRequest(format!(
                    "`handle_long_generation` is \"{}\": it must be \"hole\" or null",
                    other.chars().take(60).collect::<String>()
                )));
            }
        };
        let end: Vec<u32> = self.tokenizer.eos_token_id().into_iter().collect();
        let params = GenerationParams::resolve(
            &options,
            &ResolveContext {
                prompt_len: prompt.len(),
                prefix_len,
                vocab_size: self.vocab_size,
                max_seq_len: self.max_seq_len,
                eos_token_ids: &end,
                pad_token_id: self.tokenizer.pad_token_id(),
            },
        )?;
        let decode = DecodeOptions {
            skip_special_tokens: true,
            clean_up_tokenization_spaces: request.clean_up_tokenization_spaces.unwrap_or(false),
        };
        let assembler = Assembler::new(self.tokenizer, &prompt, decode, shown, stops);
        Ok(Prepared { generation: GenerationRequest { prompt, params }, assembler })
    }

    /// An empty prompt becomes the begin token, as transformers has it.
    fn not_empty(&self, prompt: Vec<u32>) -> Result<Vec<u32>, Error> {
        match self.bos_token_id.or(self.tokenizer.bos_token_id()) {
            _ if !prompt.is_empty() => Ok(prompt),
            Some(bos) => Ok(vec![bos]),
            None => Err(Error::InvalidRequest(
                "the prompt is empty, and this model has no begin token that could stand for it".to_owned(),
            )),
        }
    }

    /// Drops the beginning of a prompt that leaves too little room for the new tokens asked for.
    fn dig_hole(&self, prompt: Vec<u32>, options: &GenerateOptions) -> Result<Vec<u32>, Error> {
        let longest = self.tokenizer.model_max_length().unwrap_or(self.max_seq_len).min(self.max_seq_len);
        let (name, asked, new) = match (options.max_new_tokens, options.max_length) {
            (Some(new), _) => ("max_new_tokens", new, new),
            (None, length) => {
                let length = length.unwrap_or(0);
                ("max_length", length, length.saturating_sub(prompt.len()))
            }
        };
        // Where nothing new is asked for, the check of the lengths says so.
        if new == 0 || prompt.len().saturating_add(new) <= longest {
            return Ok(prompt);
        }
        if new >= longest {
            return Err(Error::InvalidRequest(format!(
                "`{name}` is {asked}, which asks for {new} new tokens: with `handle_long_generation` \"hole\" they must \
                 be fewer than this model's longest sequence, {longest}"
            )));
        }
        let dropped = prompt.len() - (longest - new).min(prompt.len());
        Ok(prompt.get(dropped..).unwrap_or_default().to_vec())
    }
}

/// A conversation as the model reads it, up to where the answer begins, unless nobody waits for it any more.
fn render(tokenizer: &Tokenizer, messages: &[ChatMessage], cancelled: &dyn Fn() -> bool) -> Result<String, Error> {
    let Some(last) = messages.last() else {
        return Err(Error::InvalidRequest("`messages` is empty: it must hold at least one message".to_owned()));
    };
    if last.role != "assistant" {
        return Ok(tokenizer.apply_chat_template_unless(cancelled, messages, true)?);
    }
    let rendered = tokenizer.apply_chat_template_unless(cancelled, messages, false)?;
    let content = last.content.trim();
    match rendered.rfind(content) {
        Some(at) => Ok(rendered[..at + content.len()].trim_end().to_owned()),
        None => Err(Error::InvalidRequest(
            "the last message is the assistant's, but the model's chat template changes its text, so it can't be \
             continued"
                .to_owned(),
        )),
    }
}

/// The events of a request for text. Dropping it cancels the request.
#[derive(Debug)]
pub struct TextStream {
    events: GenerationStream,
    assembler: Option<Box<Assembler>>,
    /// Tokens that came and are not text yet.
    chosen: std::vec::IntoIter<Chosen>,
    ready: VecDeque<TextEvent>,
    /// Tokens that were worked on since this task last let others go on.
    worked: usize,
}

impl TextStream {
    pub(crate) fn new(events: GenerationStream, assembler: Assembler) -> Self {
        let chosen = Vec::new().into_iter();
        Self { events, assembler: Some(Box::new(assembler)), chosen, ready: VecDeque::new(), worked: 0 }
    }

    /// The next event; `None` after the last one or an error. However much there is to do, other tasks get their turns.
    pub async fn next(&mut self) -> Option<Result<TextEvent, Error>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            let assembler = self.assembler.as_mut()?;
            if self.worked >= PIECE {
                self.worked = 0;
                tokio::task::yield_now().await;
                continue;
            }
            if let Some(chosen) = self.chosen.next() {
                self.worked += 1;
                let (event, stopped) = assembler.push(&chosen);
                self.ready.extend(event);
                if stopped {
                    self.events.stop_sequence(chosen.sequence);
                }
                continue;
            }
            if assembler.is_ending() {
                self.worked += assembler.go_on(PIECE, &mut self.ready);
                if matches!(self.ready.back(), Some(TextEvent::Finished(_))) {
                    self.assembler = None;
                }
                continue;
            }
            match self.events.next().await? {
                GenerationEvent::Started => return Some(Ok(TextEvent::Started)),
                GenerationEvent::Chosen(chosen) => self.chosen = chosen.into_iter(),
                GenerationEvent::Finished(outputs) => assembler.end(outputs),
                GenerationEvent::Failed(error) => {
                    self.assembler = None;
                    return Some(Err(error));
                }
            }
        }
    }
}
