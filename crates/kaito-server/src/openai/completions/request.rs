//! The body of a completion.

use std::sync::Arc;

use kaito_engine::{Cancel, DecodeOptions, Special};

use super::super::format::{self, Format};
use super::super::head::Head;
use super::super::input::{self, Input};
use super::super::log_probs::Naming;
use super::super::parameters::{self, Parameters, StreamOptions};
use super::super::{body, prompt};
use super::answer::{Answer, OfPrompt};
use crate::dialect::{Context, Request, Task, Work, text_generation};
use crate::error::ApiError;
use crate::fields::{self, Fields};

/// New tokens where a request says nothing.
const DEFAULT_MAX_TOKENS: usize = 16;

/// What only KAITO's transformers runtime has, whose clients name no model.
const OF_TRANSFORMERS: [&str; 7] = [
    "generate_kwargs",
    "return_full_text",
    "handle_long_generation",
    "clean_up_tokenization_spaces",
    "max_new_tokens",
    "max_length",
    "do_sample",
];

/// What is known and cannot be honoured.
const UNSUPPORTED: &[(&str, &str)] =
    &[("prompt_embeds", "`prompt` holds texts or token ids"), ("logits_processors", "a request brings no code")];

/// A completion as the client wrote it.
#[derive(Debug)]
struct CompletionRequest {
    model: Option<String>,
    prompts: Vec<Input>,
    add_special_tokens: bool,
    parameters: Parameters,
    format: Option<Format>,
    echo: bool,
    log_probs: Option<usize>,
    prompt_log_probs: bool,
    stream: StreamOptions,
}

/// Reads the body of a completion, or of a request to KAITO's transformers runtime.
///
/// # Errors
/// 422 for a body that is no JSON object, 400 for what cannot be done.
pub(crate) fn parse(bytes: &[u8]) -> Result<Request, ApiError> {
    let body = body::parse(bytes)?;
    if !body.contains("model") && OF_TRANSFORMERS.iter().any(|name| body.contains(name)) {
        return text_generation::parse(body.sorted());
    }
    let request = read(body)?;
    Ok(Request { stream: request.stream.stream, work: Box::new(request) })
}

fn read(mut body: Fields) -> Result<CompletionRequest, ApiError> {
    parameters::refuse(&body, UNSUPPORTED)?;
    let stream = parameters::take_stream(&mut body)?;
    let model = body.take_string("model")?;
    if body.take_string("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
        return Err(parameters::unsupported(&body.path("suffix"), "these models continue a text and fill no gap"));
    }
    let prompts = input::take(&mut body, "prompt")?;
    let echo = body.take_flag("echo")?.unwrap_or(false);
    let log_probs = parameters::take_likely(&mut body, "logprobs")?;
    let asked = parameters::take_prompt_log_probs(&mut body, stream)?;
    let format = format::take(&mut body)?;
    let mut parameters = Parameters::take(&mut body, stream)?;
    let sampling = &mut parameters.sampling;
    sampling.logprobs = log_probs;
    sampling.prompt_logprobs = asked.max(log_probs.filter(|_| echo));
    sampling.max_tokens = Some(take_limit(&mut body, echo || asked.is_some())?);
    let add_special_tokens = body.take_flag("add_special_tokens")?.unwrap_or(true);
    parameters::ignore_rest(body);
    Ok(CompletionRequest {
        model,
        prompts,
        add_special_tokens,
        parameters,
        format,
        echo,
        log_probs,
        prompt_log_probs: asked.is_some(),
        stream,
    })
}

/// So many new tokens; none only where the prompt itself is asked for.
fn take_limit(body: &mut Fields, may_be_none: bool) -> Result<usize, ApiError> {
    let (name, given) = match body.take_integer("max_completion_tokens")? {
        Some(given) => ("max_completion_tokens", Some(given)),
        None => ("max_tokens", body.take_integer("max_tokens")?),
    };
    let Some(given) = given else { return Ok(DEFAULT_MAX_TOKENS) };
    let count = usize::try_from(given).ok().filter(|count| *count > 0 || may_be_none);
    count.ok_or_else(|| fields::invalid(&body.path(name), given, "an integer of at least 1, or 0 with `echo`: true"))
}

impl Work for CompletionRequest {
    fn prepare(self: Box<Self>, context: &Context<'_>, cancel: &Cancel) -> Result<Task, ApiError> {
        let Self { parameters, format, echo, log_probs, prompt_log_probs, stream, .. } = *self;
        let served = context.names().resolve(self.model.as_deref())?;
        prompt::check_choices(&parameters, context)?;
        let tokenizer = &context.request.tokenizer;
        let grammar = format.as_ref().map(|format| (format.parameter.as_str(), &format.grammar));
        let special = if self.add_special_tokens { Special::Add } else { Special::Skip };
        let count = self.prompts.len();
        let (mut prompts, mut shown) = (Vec::new(), Vec::new());
        for (i, input) in self.prompts.into_iter().enumerate() {
            let text = match &input {
                Input::Text(text) if echo => Some(text.clone()),
                _ => None,
            };
            let at = input::place("prompt", count, i);
            let tokens = input.tokens(special, &at, &parameters, context, cancel)?;
            let decode = DecodeOptions {
                skip_special_tokens: parameters.skip_special_tokens,
                clean_up_tokenization_spaces: false,
            };
            let prepared = prompt::prepare(parameters.clone(), tokens, grammar, context, cancel)?
                .with_adapter(served.adapter.clone());
            let text = match text {
                Some(text) => text,
                None if echo => tokenizer.decode(prepared.prompt(), decode),
                None => String::new(),
            };
            let tokens = if echo || parameters.return_token_ids { prepared.prompt().to_vec() } else { Vec::new() };
            shown.push(OfPrompt { text, count: prepared.prompt().len(), tokens });
            prompts.push(prepared);
        }
        let naming = log_probs.map(|likely| Naming { as_ids: parameters.tokens_as_ids, likely });
        let reply = Answer {
            head: Head::new("cmpl-", &served.name, context.info),
            tokenizer: tokenizer.clone(),
            prompts: shown,
            choices: parameters.sampling.n.max(1),
            stream,
            echo,
            log_probs: naming,
            skip_special_tokens: parameters.skip_special_tokens,
            return_token_ids: parameters.return_token_ids,
            prompt_log_probs,
        };
        Ok(Task::Generate { prompts, reply: Arc::new(reply) })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn completion(body: Value) -> Result<CompletionRequest, ApiError> {
        read(Fields::root(body.as_object().unwrap().clone()))
    }

    #[test]
    fn none_are_generated_only_where_the_prompt_is_shown() {
        for (body, expected) in [
            (json!({ "prompt": "a" }), Some(16)),
            (json!({ "prompt": "a", "max_tokens": 5 }), Some(5)),
            (json!({ "prompt": "a", "max_tokens": 0, "echo": true }), Some(0)),
            (json!({ "prompt": "a", "max_tokens": 0 }), None),
            (json!({ "prompt": "a", "max_tokens": -1 }), None),
        ] {
            assert_eq!(completion(body).ok().and_then(|request| request.parameters.sampling.max_tokens), expected);
        }
    }

    #[test]
    fn requests_of_the_transformers_runtime_are_told_by_their_fields() {
        for (body, streams) in [
            (json!({ "prompt": "a", "generate_kwargs": { "max_length": 5 } }), false),
            (json!({ "prompt": "a", "return_full_text": false, "stream": true }), true),
        ] {
            let request = parse(body.to_string().as_bytes()).unwrap();
            assert_eq!(request.stream, streams);
            assert!(format!("{:?}", request.work).starts_with("TextRequest"), "{:?}", request.work);
        }
        // With a model's name the fields are as unknown as any.
        let named = json!({ "model": "m", "prompt": "a", "max_length": 5 });
        assert!(format!("{:?}", parse(named.to_string().as_bytes()).unwrap().work).starts_with("CompletionRequest"));
    }
}
