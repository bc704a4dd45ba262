//! Completions and dialogs with the semantics of Meta's Llama 2 code (`text_completion`, `chat_completion`), over
//! whatever tokenizer the model has.

use crate::{Cancel, Decoding, Error, Prepared, RequestContext, StopStrings, generate::GenerationParams};
use kaito_model::tokenizer::{ChatMessage, Special};

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

impl CompletionRequest {
    /// Turns the prompts into tokens and checks the parameters. Looks at `cancel` between one prompt and the next.
    ///
    /// # Errors
    /// A request that can't be served as it stands, and [`Error::Cancelled`].
    pub fn prepare(&self, context: &RequestContext, cancel: &Cancel) -> Result<Vec<Prepared>, Error> {
        let limits = Limits::of(&self.options, context)?;
        limits.check_count("prompts", self.prompts.len())?;
        let bytes: usize = self.prompts.iter().map(String::len).sum();
        for (index, prompt) in self.prompts.iter().enumerate() {
            let what = format_args!("prompt {index}");
            context.check_bytes(what, [prompt.as_str()].into_iter(), limits.max_seq_len, bytes)?;
        }
        let encode = |prompt: &String| {
            cancel.check()?;
            Ok(Some(context.tokenizer.encode(prompt, Special::Add)?))
        };
        let prompts = self.prompts.iter().map(encode).collect::<Result<Vec<_>, Error>>()?;
        prepare(prompts, &limits, context)
    }
}

impl ChatRequest {
    /// Writes the dialogs as the model was trained on them, turns them into tokens and checks the parameters. Looks at `cancel`
    /// between one turn and the next. The answer to a dialog that holds a special tag is [`SPECIAL_TAGS_ERROR`].
    ///
    /// # Errors
    /// A request that can't be served as it stands, and [`Error::Cancelled`].
    pub fn prepare(&self, context: &RequestContext, cancel: &Cancel) -> Result<Vec<Prepared>, Error> {
        let limits = Limits::of(&self.options, context)?;
        limits.check_count("dialogs", self.dialogs.len())?;
        let bytes: usize = self.dialogs.iter().flatten().map(|message| message.content.len()).sum();
        let write = |(index, dialog): (usize, &Vec<ChatMessage>)| {
            cancel.check()?;
            let turns = turns(index, dialog)?;
            let is_unsafe = dialog.iter().any(|m| SPECIAL_TAGS.iter().any(|tag| m.content.contains(tag)));
            if is_unsafe {
                return Ok(None);
            }
            let texts = turns.iter().map(|turn| turn.text.as_str());
            context.check_bytes(format_args!("dialog {index}"), texts, limits.max_seq_len, bytes)?;
            Ok(Some(turns))
        };
        let dialogs = self.dialogs.iter().enumerate().map(write).collect::<Result<Vec<_>, Error>>()?;
        let encode = |turns: Option<Vec<Turn>>| turns.map(|turns| encode_turns(&turns, context, cancel)).transpose();
        let prompts = dialogs.into_iter().map(encode).collect::<Result<Vec<_>, Error>>()?;
        prepare(prompts, &limits, context)
    }
}

fn encode_turns(turns: &[Turn], context: &RequestContext, cancel: &Cancel) -> Result<Vec<u32>, Error> {
    let mut tokens = Vec::new();
    for turn in turns {
        cancel.check()?;
        tokens.extend(context.tokenizer.encode(&turn.text, Special::Add)?);
        if turn.answered {
            tokens.extend(context.tokenizer.eos_token_id());
        }
    }
    Ok(tokens)
}

/// Prompts in tokens, with the request's parameters; `None` stands for an unsafe dialog.
fn prepare(prompts: Vec<Option<Vec<u32>>>, limits: &Limits, context: &RequestContext) -> Result<Vec<Prepared>, Error> {
    // An answer is decoded by itself, not as the end of its prompt.
    let decoding = Decoding { skip_end_tokens: true, after_prompt: false, ..Decoding::default() };
    let prepare = |(index, prompt): (usize, Option<Vec<u32>>)| {
        let Some(prompt) = prompt else { return Ok(Prepared::known(SPECIAL_TAGS_ERROR)) };
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
            context.end_tokens.clone(),
            // Every prompt draws its own numbers, the same as long as its place in the request is.
            limits.seed.map(|seed| seed.wrapping_add(index as u64)),
        );
        Ok(Prepared::new(context, prompt, params, decoding, StopStrings::default()))
    };
    prompts.into_iter().enumerate().map(prepare).collect()
}

/// The parameters of a request, checked and complete.
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
    fn of(options: &MetaOptions, context: &RequestContext) -> Result<Self, Error> {
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
        let max_seq_len = options.max_seq_len.unwrap_or(context.max_seq_len);
        if !(1..=context.max_seq_len).contains(&max_seq_len) {
            let allowed = format!("from 1 to {}, the longest sequence of this server", context.max_seq_len);
            return invalid("max_seq_len", &max_seq_len, allowed);
        }
        let max_batch_size = options.max_batch_size.unwrap_or(context.max_batch_size);
        if !(1..=context.max_batch_size).contains(&max_batch_size) {
            let allowed = format!("from 1 to {}, the largest batch of this server", context.max_batch_size);
            return invalid("max_batch_size", &max_batch_size, allowed);
        }
        let max_gen_len = options.max_gen_len.unwrap_or(max_seq_len - 1);
        Ok(Self { temperature, top_p, max_gen_len, max_seq_len, max_batch_size, seed: options.seed })
    }

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
