//! Text generation: from a prompt's text to the texts of the answer, as transformers' pipeline of that name does it.

use std::collections::VecDeque;

use crate::{
    Cancel, Error,
    engine::{GenerationEvent, GenerationRequest, GenerationStream},
    generate::{self, Chosen, FinishReason, GenerateOptions, GenerationParams, ResolveContext, SequenceOutput},
    prompt_bytes,
    stop_strings::StopStrings,
    tokenizer::{ChatMessage, DecodeOptions, Special, StreamingDecoder, Tokenizer},
};

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
    /// Whether spaces before punctuation are removed; `None` is true.
    pub clean_up_tokenization_spaces: Option<bool>,
    /// Text put before the prompt, of which the answer says nothing. It extends `max_length` and `min_length`.
    pub prefix: Option<String>,
    /// `"hole"` drops the beginning of a prompt that leaves too little room; `None` never does.
    pub handle_long_generation: Option<String>,
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
        /// The token that completed it. Text held back until the end comes with the last token once more.
        token: u32,
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
        let prefix = request.prefix.unwrap_or_default();
        let limit = match request.handle_long_generation {
            None => self.max_seq_len,
            Some(_) => self.max_seq_len.saturating_mul(prompt_bytes::HOLE),
        };
        let fits = |text: &str| {
            cancel.check()?;
            prompt_bytes::check(self.tokenizer, "the prompt", [text].into_iter(), limit, text.len())
        };
        let (shown, encoded) = match request.input {
            TextInput::Prompt(prompt) => {
                let whole = format!("{prefix}{prompt}");
                fits(&whole)?;
                let encoded = self.tokenizer.encode(&whole, Special::Add)?;
                (if request.return_full_text.unwrap_or(true) { prompt } else { String::new() }, encoded)
            }
            TextInput::Messages(_) if !prefix.is_empty() => {
                return Err(Error::InvalidRequest(
                    "`prefix` can't stand beside `messages`: put its text into a message".to_owned(),
                ));
            }
            TextInput::Messages(messages) => {
                let rendered = render(self.tokenizer, &messages)?;
                fits(&rendered)?;
                let encoded = self.tokenizer.encode(&rendered, Special::Skip)?;
                (if request.return_full_text.unwrap_or(false) { rendered } else { String::new() }, encoded)
            }
        };
        cancel.check()?;
        let prompt = self.not_empty(encoded)?;
        let prefix_len = if prefix.is_empty() { 0 } else { self.tokenizer.encode(&prefix, Special::Skip)?.len() };
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
            clean_up_tokenization_spaces: request.clean_up_tokenization_spaces.unwrap_or(true),
        };
        let assembler = Assembler::new(self.tokenizer, &prompt, decode, shown, &request.stop);
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

/// A conversation as the model reads it, up to where the answer begins.
fn render(tokenizer: &Tokenizer, messages: &[ChatMessage]) -> Result<String, Error> {
    let Some(last) = messages.last() else {
        return Err(Error::InvalidRequest("`messages` is empty: it must hold at least one message".to_owned()));
    };
    if last.role != "assistant" {
        return Ok(tokenizer.apply_chat_template(messages, true)?);
    }
    let rendered = tokenizer.apply_chat_template(messages, false)?;
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

/// The text of one sequence as it grows.
#[derive(Debug)]
struct SequenceText {
    decoder: Option<StreamingDecoder>,
    stops: StopStrings,
    text: String,
    tokens: usize,
    last_token: u32,
}

impl SequenceText {
    fn push(&mut self, token: u32) -> String {
        if self.stops.hit() {
            return String::new();
        }
        self.tokens += 1;
        self.last_token = token;
        let text = self.decoder.as_mut().map(|decoder| decoder.push(token)).unwrap_or_default();
        self.pass(&text)
    }

    /// What is left when no token follows.
    fn finish(&mut self) -> String {
        let text = self.decoder.take().map(StreamingDecoder::finish).unwrap_or_default();
        let mut text = self.pass(&text);
        if !self.stops.hit() {
            let held = self.stops.finish();
            self.text.push_str(&held);
            text.push_str(&held);
        }
        text
    }

    fn pass(&mut self, text: &str) -> String {
        let text = self.stops.push(text);
        self.text.push_str(&text);
        text
    }
}

/// Turns the tokens of a generation into its texts.
#[derive(Debug)]
pub(crate) struct Assembler {
    tokenizer: Tokenizer,
    /// A sequence before its first token.
    fresh: (StreamingDecoder, StopStrings),
    /// What every text begins with.
    shown: String,
    prompt_len: usize,
    sequences: Vec<SequenceText>,
}

impl Assembler {
    pub(crate) fn new(
        tokenizer: &Tokenizer,
        prompt: &[u32],
        decode: DecodeOptions,
        shown: String,
        stop: &[String],
    ) -> Self {
        Self {
            tokenizer: tokenizer.clone(),
            fresh: (StreamingDecoder::new(tokenizer, prompt, decode), StopStrings::new(stop)),
            shown,
            prompt_len: prompt.len(),
            sequences: Vec::new(),
        }
    }

    fn sequence(&mut self, index: usize) -> Option<&mut SequenceText> {
        while self.sequences.len() <= index {
            let (decoder, stops) = self.fresh.clone();
            self.sequences.push(SequenceText {
                decoder: Some(decoder),
                stops,
                text: String::new(),
                tokens: 0,
                last_token: 0,
            });
        }
        self.sequences.get_mut(index)
    }

    /// Takes a token. The second value says that the sequence has come to a stop string.
    pub(crate) fn push(&mut self, chosen: &Chosen) -> (Option<TextEvent>, bool) {
        let (index, token) = (chosen.sequence, chosen.token);
        let Some(sequence) = self.sequence(index) else { return (None, false) };
        if sequence.stops.hit() {
            // The engine was a step ahead of the stop.
            return (None, false);
        }
        let text = sequence.push(token);
        let hit = sequence.stops.hit();
        (Some(TextEvent::Delta { sequence: index, text, token }), hit)
    }

    /// The last events of a generation that gave `outputs`.
    pub(crate) fn finish(mut self, outputs: Vec<SequenceOutput>) -> Vec<TextEvent> {
        let mut events = Vec::new();
        let streamed = !self.sequences.is_empty();
        let mut output = TextOutput {
            texts: Vec::new(),
            sequences: Vec::new(),
            sequences_scores: outputs.iter().map(|output| output.score).collect(),
            scores: None,
            finish_reasons: Vec::new(),
            prompt_tokens: self.prompt_len,
            generated_tokens: 0,
        };
        let mut scores = Vec::new();
        for (index, SequenceOutput { mut tokens, finish_reason, scores: of_tokens, .. }) in
            outputs.into_iter().enumerate()
        {
            let (prompt_len, shown) = (self.prompt_len, self.shown.clone());
            let Some(sequence) = self.sequence(index) else { continue };
            for &token in tokens.iter().skip(prompt_len + sequence.tokens) {
                sequence.push(token);
            }
            let text = sequence.finish();
            if streamed && !text.is_empty() {
                events.push(TextEvent::Delta { sequence: index, text, token: sequence.last_token });
            }
            tokens.truncate(prompt_len + sequence.tokens);
            let generated = tokens.len().saturating_sub(prompt_len);
            output.generated_tokens += generated;
            output.texts.push(format!("{shown}{}", sequence.text));
            output.finish_reasons.push(if sequence.stops.hit() { FinishReason::Stop } else { finish_reason });
            output.sequences.push(tokens);
            scores.push(of_tokens.map(|mut of_tokens| {
                of_tokens.truncate(generated);
                of_tokens.into_iter().map(|score| self.token_score(score)).collect()
            }));
        }
        output.scores = scores.into_iter().collect();
        events.push(TextEvent::Finished(output));
        events
    }

    fn token_score(&self, score: generate::TokenScore) -> TokenScore {
        let likely = |&(id, log_prob): &(u32, f32)| LikelyToken { id, text: self.token_text(id), log_prob };
        TokenScore {
            id: score.token,
            text: self.token_text(score.token),
            log_prob: score.log_prob,
            top: score.top.iter().map(likely).collect(),
        }
    }

    /// A token's text where it stands inside a text: alone, many tokenizers would drop its leading space.
    fn token_text(&self, id: u32) -> String {
        let decode = DecodeOptions { skip_special_tokens: false, clean_up_tokenization_spaces: false };
        let anchor = self.tokenizer.encode("a", Special::Skip).unwrap_or_default();
        let mut decoder = StreamingDecoder::new(&self.tokenizer, &anchor, decode);
        let text = decoder.push(id);
        text + &decoder.finish()
    }
}

/// The events of a request for text. Dropping it cancels the request.
#[derive(Debug)]
pub struct TextStream {
    events: GenerationStream,
    assembler: Option<Assembler>,
    ready: VecDeque<TextEvent>,
}

impl TextStream {
    pub(crate) fn new(events: GenerationStream, assembler: Assembler) -> Self {
        Self { events, assembler: Some(assembler), ready: VecDeque::new() }
    }

    /// The next event; `None` after the last one or an error.
    pub async fn next(&mut self) -> Option<Result<TextEvent, Error>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            let assembler = self.assembler.as_mut()?;
            match self.events.next().await? {
                GenerationEvent::Started => return Some(Ok(TextEvent::Started)),
                GenerationEvent::Chosen(chosen) => {
                    for chosen in &chosen {
                        let (event, stopped) = assembler.push(chosen);
                        self.ready.extend(event);
                        if stopped {
                            self.events.stop_sequence(chosen.sequence);
                        }
                    }
                }
                GenerationEvent::Finished(outputs) => {
                    let assembler = self.assembler.take()?;
                    self.ready.extend(assembler.finish(outputs));
                }
                GenerationEvent::Failed(error) => {
                    self.assembler = None;
                    return Some(Err(error));
                }
            }
        }
    }
}
