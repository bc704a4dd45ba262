//! Completions and dialogs with the semantics of Meta's Llama 2 code (`text_completion`, `chat_completion`), over
//! whatever tokenizer the model has.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
};

use crate::{
    Cancel, Error,
    engine::{GenerationEvent, GenerationRequest, GenerationStream},
    generate::{Chosen, FinishReason, GenerationParams, SequenceOutput},
    prompt_bytes,
    text::PIECE,
};
use kaito_model::tokenizer::{ChatMessage, DecodeOptions, Special, StreamingDecoder, Tokenizer};

/// The answer to a dialog that holds a special tag.
pub const SPECIAL_TAGS_ERROR: &str = "Error: special tags are not allowed as part of the prompt.";

const SPECIAL_TAGS: [&str; 4] = ["[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"];
const DEFAULT_TEMPERATURE: f64 = 0.6;
const DEFAULT_TOP_P: f64 = 0.9;

/// Parameters of completions and dialogs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MetaOptions {
    /// Divisor of the scores; 0 takes the likeliest tokens. 0.6 where it is `None`.
    pub temperature: Option<f64>,
    /// Probability of the tokens that are sampled among. 0.9 where it is `None`.
    pub top_p: Option<f64>,
    /// Most new tokens of each answer.
    pub max_gen_len: Option<usize>,
    /// Longest sequence, prompt included; at most the server's.
    pub max_seq_len: Option<usize>,
    /// Most prompts or dialogs of a request; at most the server's.
    pub max_batch_size: Option<usize>,
    /// Seed of the random numbers.
    pub seed: Option<u64>,
}

/// Prompts to complete.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionRequest {
    /// The prompts, each with an answer of its own.
    pub prompts: Vec<String>,
    /// Parameters for all of them.
    pub options: MetaOptions,
}

/// Dialogs to answer.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    /// The dialogs, each with an answer of its own.
    pub dialogs: Vec<Vec<ChatMessage>>,
    /// Parameters for all of them.
    pub options: MetaOptions,
}

/// What a stream of completions or dialogs carries.
#[derive(Debug, Clone, PartialEq)]
pub enum MetaEvent {
    /// The first of the prompts left the queue.
    Started,
    /// A new token of an answer.
    Delta {
        /// Index of the prompt or dialog.
        index: usize,
        /// Text that is final now: empty while a character is incomplete.
        text: String,
        /// The token that completed it.
        token: u32,
    },
    /// Text without a token: what was held back until the end, or the refusal of an unsafe dialog.
    Rest {
        /// Index of the prompt or dialog.
        index: usize,
        /// The text.
        text: String,
    },
    /// The last event.
    Finished {
        /// One answer for each prompt or dialog.
        outputs: Vec<MetaOutput>,
        /// Tokens of all prompts.
        prompt_tokens: usize,
        /// New tokens of all answers.
        generated_tokens: usize,
    },
}

/// One answer.
#[derive(Debug, Clone, PartialEq)]
pub struct MetaOutput {
    /// Its text.
    pub text: String,
    /// Its tokens, without prompt and end token; none for an unsafe dialog.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Whether the dialog holds special tags: the text says so then, and nothing was generated.
    pub unsafe_tags: bool,
}

/// What of a model decides how prompts and dialogs become generations.
#[derive(Debug)]
pub(crate) struct MetaContext<'a> {
    /// The model's tokenizer.
    pub(crate) tokenizer: &'a Tokenizer,
    /// The tokens that end an answer.
    pub(crate) end_tokens: &'a [u32],
    /// Longest sequence that a request may ask for.
    pub(crate) max_seq_len: usize,
    /// Most prompts of a request.
    pub(crate) max_batch_size: usize,
}

/// One prompt as the engine needs it; `None` for an unsafe dialog.
pub(crate) type PreparedPrompt = Option<GenerationRequest>;

impl MetaContext<'_> {
    /// Tokenises prompts and checks their parameters.
    pub(crate) fn completion(
        &self,
        request: &CompletionRequest,
        cancel: &Cancel,
    ) -> Result<Vec<PreparedPrompt>, Error> {
        let limits = self.limits(&request.options)?;
        limits.check_count("prompts", request.prompts.len())?;
        let bytes: usize = request.prompts.iter().map(String::len).sum();
        for (index, prompt) in request.prompts.iter().enumerate() {
            let what = format_args!("prompt {index}");
            prompt_bytes::check(self.tokenizer, what, [prompt.as_str()].into_iter(), limits.max_seq_len, bytes)?;
        }
        let encode = |prompt: &String| {
            cancel.check()?;
            Ok(Some(self.tokenizer.encode(prompt, Special::Add)?))
        };
        let prompts = request.prompts.iter().map(encode).collect::<Result<Vec<_>, Error>>()?;
        self.prepare(prompts, &limits)
    }

    /// Writes dialogs as the model was trained on them, and checks their parameters.
    pub(crate) fn chat(&self, request: &ChatRequest, cancel: &Cancel) -> Result<Vec<PreparedPrompt>, Error> {
        let limits = self.limits(&request.options)?;
        limits.check_count("dialogs", request.dialogs.len())?;
        let bytes: usize = request.dialogs.iter().flatten().map(|message| message.content.len()).sum();
        let write = |(index, dialog): (usize, &Vec<ChatMessage>)| {
            cancel.check()?;
            let turns = turns(index, dialog)?;
            let is_unsafe = dialog.iter().any(|m| SPECIAL_TAGS.iter().any(|tag| m.content.contains(tag)));
            if is_unsafe {
                return Ok(None);
            }
            let texts = turns.iter().map(|turn| turn.text.as_str());
            prompt_bytes::check(self.tokenizer, format_args!("dialog {index}"), texts, limits.max_seq_len, bytes)?;
            Ok(Some(turns))
        };
        let dialogs = request.dialogs.iter().enumerate().map(write).collect::<Result<Vec<_>, Error>>()?;
        let encode = |turns: Option<Vec<Turn>>| turns.map(|turns| self.encode_turns(&turns, cancel)).transpose();
        let prompts = dialogs.into_iter().map(encode).collect::<Result<Vec<_>, Error>>()?;
        self.prepare(prompts, &limits)
    }

    fn encode_turns(&self, turns: &[Turn], cancel: &Cancel) -> Result<Vec<u32>, Error> {
        let mut tokens = Vec::new();
        for turn in turns {
            cancel.check()?;
            tokens.extend(self.tokenizer.encode(&turn.text, Special::Add)?);
            if turn.answered {
                tokens.extend(self.tokenizer.eos_token_id());
            }
        }
        Ok(tokens)
    }

    fn prepare(&self, prompts: Vec<Option<Vec<u32>>>, limits: &Limits) -> Result<Vec<PreparedPrompt>, Error> {
        let prepare = |(index, prompt): (usize, Option<Vec<u32>>)| {
            let Some(prompt) = prompt else { return Ok(None) };
            if prompt.is_empty() {
                return Err(Error::InvalidRequest(format!("prompt {index} is empty: it must have at least one token")));
            }
            if prompt.len() > limits.max_seq_len {
                return Err(Error::InvalidRequest(format!(
                    "prompt {index} has {} tokens, but `max_seq_len` is {}",
                    prompt.len(),
                    limits.max_seq_len
                )));
            }
            let max_total_len = prompt.len().saturating_add(limits.max_gen_len).min(limits.max_seq_len);
            let params = GenerationParams::meta(
                limits.temperature,
                limits.top_p,
                max_total_len,
                self.end_tokens.to_vec(),
                // Every prompt draws its own numbers, the same as long as its place in the request is.
                limits.seed.map(|seed| seed.wrapping_add(index as u64)),
            );
            Ok(Some(GenerationRequest { prompt, params }))
        };
        prompts.into_iter().enumerate().map(prepare).collect()
    }

    fn limits(&self, options: &MetaOptions) -> Result<Limits, Error> {
        let invalid = |name: &str, value: &dyn std::fmt::Display, allowed: String| {
            Err(Error::InvalidRequest(format!("`{name}` is {value}: it must be {allowed}")))
        };
        let temperature = options.temperature.unwrap_or(DEFAULT_TEMPERATURE);
        if !(0.0..=f64::from(f32::MAX)).contains(&temperature) {
            return invalid("temperature", &temperature, "a number of at least 0".to_owned());
        }
        let top_p = options.top_p.unwrap_or(DEFAULT_TOP_P);
        if !(0.0..=1.0).contains(&top_p) {
            return invalid("top_p", &top_p, "a number from 0 to 1".to_owned());
        }
        let max_seq_len = options.max_seq_len.unwrap_or(self.max_seq_len);
        if !(1..=self.max_seq_len).contains(&max_seq_len) {
            let allowed = format!("from 1 to {}, the longest sequence of this server", self.max_seq_len);
            return invalid("max_seq_len", &max_seq_len, allowed);
        }
        let max_batch_size = options.max_batch_size.unwrap_or(self.max_batch_size);
        if !(1..=self.max_batch_size).contains(&max_batch_size) {
            let allowed = format!("from 1 to {}, the largest batch of this server", self.max_batch_size);
            return invalid("max_batch_size", &max_batch_size, allowed);
        }
        let max_gen_len = options.max_gen_len.unwrap_or(max_seq_len - 1);
        Ok(Limits { temperature, top_p, max_gen_len, max_seq_len, max_batch_size, seed: options.seed })
    }
}

#[derive(Debug)]
struct Limits {
    temperature: f64,
    top_p: f64,
    max_gen_len: usize,
    max_seq_len: usize,
    max_batch_size: usize,
    seed: Option<u64>,
}

impl Limits {
    fn check_count(&self, what: &str, count: usize) -> Result<(), Error> {
        match count {
            0 => Err(Error::InvalidRequest(format!("the request has no {what}: it must have at least one"))),
            _ if count > self.max_batch_size => Err(Error::InvalidRequest(format!(
                "the request has {count} {what}, but `max_batch_size` is {}",
                self.max_batch_size
            ))),
            _ => Ok(()),
        }
    }
}

/// A user's text and the answer to it, as the model reads them.
#[derive(Debug, PartialEq)]
struct Turn {
    text: String,
    /// Whether it holds the answer too, and so ends with the end token.
    answered: bool,
}

fn turns(index: usize, dialog: &[ChatMessage]) -> Result<Vec<Turn>, Error> {
    let has_role = |message: &ChatMessage, role: &str| message.role.eq_ignore_ascii_case(role);
    let (system, rest) = match dialog.split_first() {
        Some((first, rest)) if has_role(first, "system") => (Some(&first.content), rest),
        _ => (None, dialog),
    };
    let ordered = rest.iter().enumerate().all(|(i, m)| has_role(m, if i % 2 == 0 { "user" } else { "assistant" }));
    if !ordered || rest.len() % 2 == 0 {
        let roles: Vec<String> = dialog.iter().take(8).map(|m| m.role.chars().take(20).collect()).collect();
        return Err(Error::InvalidRequest(format!(
            "dialog {index} has the roles [{}{}]: they must be \"system\" (or not), then \"user\" and \"assistant\" by \
             turns, and \"user\" at the end",
            roles.join(", "),
            if dialog.len() > 8 { ", ..." } else { "" }
        )));
    }
    let turn = |(i, pair): (usize, &[ChatMessage])| {
        let mut text = String::new();
        if let Some(user) = pair.first() {
            let content = match system.filter(|_| i == 0) {
                Some(system) => format!("<<SYS>>\n{system}\n<</SYS>>\n\n{}", user.content),
                None => user.content.clone(),
            };
            text = format!("[INST] {} [/INST]", content.trim());
        }
        let answer = pair.get(1);
        if let Some(answer) = answer {
            text.push_str(&format!(" {} ", answer.content.trim()));
        }
        Turn { text, answered: answer.is_some() }
    };
    Ok(rest.chunks(2).enumerate().map(turn).collect())
}

/// One answer as it grows.
#[derive(Debug)]
pub(crate) struct Answer {
    decoder: Option<StreamingDecoder>,
    end_tokens: Vec<u32>,
    prompt_len: usize,
    text: String,
    tokens: Vec<u32>,
    /// Set when it is complete.
    output: Option<MetaOutput>,
}

impl Answer {
    pub(crate) fn new(tokenizer: &Tokenizer, end_tokens: &[u32], prompt_len: usize) -> Self {
        let decode = DecodeOptions { skip_special_tokens: true, clean_up_tokenization_spaces: false };
        Self {
            // An answer is decoded by itself, not as the end of its prompt.
            decoder: Some(StreamingDecoder::new(tokenizer, &[], decode)),
            end_tokens: end_tokens.to_vec(),
            prompt_len,
            text: String::new(),
            tokens: Vec::new(),
            output: None,
        }
    }

    /// The answer to a dialog that holds special tags.
    fn refusal() -> Self {
        Self {
            decoder: None,
            end_tokens: Vec::new(),
            prompt_len: 0,
            text: String::new(),
            tokens: Vec::new(),
            output: Some(MetaOutput {
                text: SPECIAL_TAGS_ERROR.to_owned(),
                tokens: Vec::new(),
                finish_reason: FinishReason::Stop,
                unsafe_tags: true,
            }),
        }
    }

    pub(crate) fn push(&mut self, token: u32) -> String {
        if self.end_tokens.contains(&token) {
            return String::new();
        }
        self.tokens.push(token);
        let text = self.decoder.as_mut().map(|decoder| decoder.push(token)).unwrap_or_default();
        self.text.push_str(&text);
        text
    }

    /// Completes the answer; gives what was held back of its text.
    pub(crate) fn finish(&mut self, output: &SequenceOutput) -> String {
        for &token in output.tokens.iter().skip(self.prompt_len + self.tokens.len()) {
            self.push(token);
        }
        let text = self.decoder.take().map(StreamingDecoder::finish).unwrap_or_default();
        self.text.push_str(&text);
        self.output = Some(MetaOutput {
            text: std::mem::take(&mut self.text),
            tokens: self.tokens.clone(),
            finish_reason: output.finish_reason,
            unsafe_tags: false,
        });
        text
    }
}

/// The events of a request for completions or answers. Dropping it cancels the request.
#[derive(Debug)]
pub struct MetaStream {
    running: Vec<(usize, GenerationStream)>,
    answers: Vec<Answer>,
    /// Tokens of an answer that came and are not text yet.
    chosen: (usize, std::vec::IntoIter<Chosen>),
    ready: VecDeque<MetaEvent>,
    /// Tokens that were worked on since this task last let others go on.
    worked: usize,
    /// Refusals of unsafe dialogs, which wait for the start.
    refusals: Vec<MetaEvent>,
    started: bool,
    done: bool,
    prompt_tokens: usize,
    generated_tokens: usize,
}

impl MetaStream {
    /// Submits all prompts; if one is refused, none runs.
    pub(crate) fn start(
        context: &MetaContext<'_>,
        prompts: Vec<PreparedPrompt>,
        submit: impl Fn(GenerationRequest) -> Result<GenerationStream, Error>,
    ) -> Result<Self, Error> {
        let mut stream = Self {
            running: Vec::new(),
            answers: Vec::new(),
            chosen: (0, Vec::new().into_iter()),
            ready: VecDeque::new(),
            worked: 0,
            refusals: Vec::new(),
            started: false,
            done: false,
            prompt_tokens: 0,
            generated_tokens: 0,
        };
        for (index, prompt) in prompts.into_iter().enumerate() {
            let Some(request) = prompt else {
                stream.refusals.push(MetaEvent::Rest { index, text: SPECIAL_TAGS_ERROR.to_owned() });
                stream.answers.push(Answer::refusal());
                continue;
            };
            stream.prompt_tokens += request.prompt.len();
            stream.answers.push(Answer::new(context.tokenizer, context.end_tokens, request.prompt.len()));
            stream.running.push((index, submit(request)?));
        }
        if stream.running.is_empty() {
            stream.begin();
        }
        Ok(stream)
    }

    fn begin(&mut self) {
        if !std::mem::replace(&mut self.started, true) {
            self.ready.push_back(MetaEvent::Started);
            self.ready.extend(self.refusals.drain(..));
        }
    }

    /// The next event; `None` after the last one or an error. However much there is to do, other tasks get their turns.
    pub async fn next(&mut self) -> Option<Result<MetaEvent, Error>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            if self.worked >= PIECE {
                self.worked = 0;
                tokio::task::yield_now().await;
                continue;
            }
            let (index, chosen) = &mut self.chosen;
            if let Some(token) = chosen.next().map(|chosen| chosen.token)
                && let Some(answer) = self.answers.get_mut(*index)
            {
                self.worked += 1;
                return Some(Ok(MetaEvent::Delta { index: *index, text: answer.push(token), token }));
            }
            if self.done {
                return None;
            }
            if self.running.is_empty() {
                self.done = true;
                return Some(Ok(MetaEvent::Finished {
                    outputs: self.answers.iter_mut().filter_map(|answer| answer.output.take()).collect(),
                    prompt_tokens: self.prompt_tokens,
                    generated_tokens: self.generated_tokens,
                }));
            }
            let (position, event) = next_of(&mut self.running).await;
            if let Err(error) = self.take(position, event) {
                self.done = true;
                self.running.clear();
                self.ready.clear();
                self.chosen.1 = Vec::new().into_iter();
                return Some(Err(error));
            }
        }
    }

    fn take(&mut self, position: usize, event: Option<GenerationEvent>) -> Result<(), Error> {
        let Some(&(index, _)) = self.running.get(position) else { return Ok(()) };
        let Some(answer) = self.answers.get_mut(index) else { return Ok(()) };
        match event {
            Some(GenerationEvent::Started) => self.begin(),
            Some(GenerationEvent::Chosen(chosen)) => self.chosen = (index, chosen.into_iter()),
            Some(GenerationEvent::Finished(outputs)) => {
                let Some(output) = outputs.first() else { return Err(Error::EngineStopped) };
                self.generated_tokens += output.tokens.len().saturating_sub(answer.prompt_len);
                let text = answer.finish(output);
                if !text.is_empty() {
                    self.ready.push_back(MetaEvent::Rest { index, text });
                }
                self.running.swap_remove(position);
            }
            Some(GenerationEvent::Failed(error)) => return Err(error),
            None => return Err(Error::EngineStopped),
        }
        Ok(())
    }
}

/// The next event of any of the streams, and the stream's position. A future that is not ready keeps no state of its
/// own, so the streams can be asked anew each time.
async fn next_of(streams: &mut [(usize, GenerationStream)]) -> (usize, Option<GenerationEvent>) {
    poll_fn(|context| {
        for (position, (_, stream)) in streams.iter_mut().enumerate() {
            if let Poll::Ready(event) = pin!(stream.next()).poll(context) {
                return Poll::Ready((position, event));
            }
        }
        Poll::Pending
    })
    .await
}
