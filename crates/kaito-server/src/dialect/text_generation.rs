//! Text generation: `prompt` or `messages` to `/chat`, with Hugging Face's parameters.

use std::sync::Arc;

use kaito_engine::dialects::transformers::{PreparedText, TextRequest};
use kaito_engine::{Cancel, GenerateOptions, Output, PARAMETER_NAMES, Prompt, TokenScore};
use serde_json::{Map, Value, json};

use super::{Context, Reply, Request, Streaming, Task, Work, llama, parse_messages};
use crate::error::ApiError;
use crate::fields::{self, Fields};
use crate::{json, stream};

/// What a request has beside the parameters of generation.
const FIELDS: [&str; 10] = [
    "prompt",
    "messages",
    "generate_kwargs",
    "return_full_text",
    "clean_up_tokenization_spaces",
    "prefix",
    "handle_long_generation",
    "add_special_tokens",
    "stop",
    "stream",
];

/// Reads the body of `/chat`, whose fields say of which dialect it is.
pub(crate) fn parse_chat(body: &[u8]) -> Result<Request, ApiError> {
    let fields = Fields::root(json::parse_object(body)?).sorted();
    let mut given = ["prompt", "messages", "input_data"].into_iter().filter(|name| fields.contains(name));
    match (given.next(), given.next()) {
        (Some(first), Some(second)) => {
            Err(ApiError::bad_request(format!("The body has both `{first}` and `{second}`; /chat takes one of them.")))
        }
        (Some("input_data"), None) => llama::parse_dialogs(fields),
        (Some(_), None) => parse(fields),
        (None, _) if fields.contains("prompts") => Err(ApiError::wrong_shape(
            "The body has `prompts`, which /generate takes; /chat takes `prompt`, `messages` or `input_data`.",
        )),
        (None, _) => Err(fields::missing("prompt", "a string, or else give `messages` or `input_data`")),
    }
}

/// Reads a body that has `prompt` or `messages`. Parameters stand at the top level or under `generate_kwargs`.
pub(crate) fn parse(body: Fields) -> Result<Request, ApiError> {
    let (stream, request) = read(body)?;
    Ok(Request { stream, work: Box::new(request) })
}

fn read(mut body: Fields) -> Result<(bool, TextRequest), ApiError> {
    let input = match body.take_list("messages")? {
        Some(list) => Prompt::Messages(parse_messages("messages", list)?),
        None => Prompt::Text(take_prompt(&mut body)?),
    };
    if let Some(parameters) = body.take_object("generate_kwargs")? {
        body.absorb(parameters)?;
    }
    let stream = body.take_flag("stream")?.unwrap_or(false);
    let request = TextRequest {
        input,
        return_full_text: body.take_flag("return_full_text")?,
        // Null is passed on, and means to the pipeline what its own default does.
        clean_up_tokenization_spaces: body
            .take_nullable_flag("clean_up_tokenization_spaces")?
            .map(|given| given.unwrap_or(true)),
        prefix: body.take_string("prefix")?,
        handle_long_generation: body.take_string("handle_long_generation")?,
        add_special_tokens: body.take_flag("add_special_tokens")?,
        stop: take_stop(&mut body)?,
        options: parse_options(body.into_rest())?,
    };
    Ok((stream, request))
}

fn take_prompt(body: &mut Fields) -> Result<String, ApiError> {
    let prompt = body.take_string("prompt")?.ok_or_else(|| fields::missing("prompt", "a string"))?;
    if prompt.is_empty() {
        return Err(ApiError::bad_request("`prompt` is empty: it must hold at least one character."));
    }
    Ok(prompt)
}

/// `stop` is a string or a list of strings.
fn take_stop(body: &mut Fields) -> Result<Vec<String>, ApiError> {
    let texts = match body.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(text) => vec![text],
    };
    texts
        .into_iter()
        .map(|value| match value {
            Value::String(text) if text.is_empty() => {
                Err(ApiError::bad_request("`stop` holds an empty string, which would end every answer at once."))
            }
            Value::String(text) => Ok(text),
            other => Err(fields::wrong_shape("stop", "a string or a list of strings", &other)),
        })
        .collect()
}

fn parse_options(mut parameters: Map<String, Value>) -> Result<GenerateOptions, ApiError> {
    for name in FIELDS {
        // What is left of the fields above is null.
        parameters.shift_remove(name);
    }
    let known = || PARAMETER_NAMES.iter().copied();
    if let Some(name) = parameters.keys().find(|name| !known().any(|known| known == name.as_str())) {
        return Err(fields::unknown("", name, known().chain(FIELDS)));
    }
    Ok(GenerateOptions::from_json(&parameters)?)
}

impl Work for TextRequest {
    fn prepare(self: Box<Self>, context: &Context<'_>, cancel: &Cancel) -> Result<Task, ApiError> {
        let flags = [self.options.return_dict_in_generate, self.options.output_scores];
        let PreparedText { prompt, shown } = TextRequest::prepare(*self, context.request, cancel)?;
        let prompt_tokens = flags.contains(&Some(true)).then(|| prompt.prompt().to_vec());
        Ok(Task::Generate { prompts: vec![prompt], reply: Arc::new(Texts { shown, prompt_tokens }) })
    }
}

/// The answer: the texts of all sequences, one after the other, and on request what they are made of.
struct Texts {
    /// What each text begins with.
    shown: String,
    /// The prompt's token ids, where those of the sequences are asked for.
    prompt_tokens: Option<Vec<u32>>,
}

/// What a token with its scores counts for: a line for itself and each of ten others.
const SCORES: usize = 1 << 10;

impl Reply for Texts {
    fn size(&self, output: &Output) -> usize {
        let of_prompt = self.shown.len() + self.prompt_tokens.as_ref().map_or(0, Vec::len);
        let sequences = output.sequences.iter();
        sequences
            .map(|sequence| {
                let scored = sequence.scores.as_ref().map_or(0, Vec::len);
                of_prompt + sequence.text.len() + sequence.tokens.len() + scored * SCORES
            })
            .sum()
    }

    fn body(&self, output: &Output) -> String {
        let sequences = &output.sequences;
        let texts: String = sequences.iter().flat_map(|sequence| [self.shown.as_str(), &sequence.text]).collect();
        let mut body = json!({ "Result": texts });
        if let Some(scores) = sequences.iter().map(|sequence| sequence.scores.as_ref()).collect::<Option<Vec<_>>>() {
            body["scores"] = scores.into_iter().map(|scores| scores.iter().map(score).collect::<Value>()).collect();
        }
        if let Some(prompt) = &self.prompt_tokens {
            body["sequences"] =
                sequences.iter().map(|sequence| json!([prompt.as_slice(), &sequence.tokens].concat())).collect();
            if let Some(scores) = sequences.iter().map(|sequence| sequence.beam_score).collect::<Option<Vec<f32>>>() {
                body["sequences_scores"] = json!(scores);
            }
        }
        body.to_string()
    }

    fn streaming(self: Arc<Self>) -> Box<dyn Streaming> {
        stream::kaito(self)
    }
}

/// One token with its log-probability (null where it is minus infinity) and its likeliest rivals.
fn score(token: &TokenScore) -> Value {
    let top: Vec<_> = token.top.iter().map(|t| json!({ "id": t.id, "logprob": t.log_prob, "text": t.text })).collect();
    json!({ "id": token.id, "logprob": token.log_prob, "text": token.text, "top": top })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(body: &Value) -> TextRequest {
        read(Fields::root(body.as_object().unwrap().clone())).unwrap().1
    }

    #[test]
    fn only_an_explicit_null_means_the_pipelines_own_clean_up() {
        for (body, clean_up) in [
            (json!({"prompt": "a"}), None),
            (json!({"prompt": "a", "clean_up_tokenization_spaces": null}), Some(true)),
            (json!({"prompt": "a", "generate_kwargs": {"clean_up_tokenization_spaces": null}}), Some(true)),
            (json!({"prompt": "a", "clean_up_tokenization_spaces": true}), Some(true)),
            (json!({"prompt": "a", "clean_up_tokenization_spaces": false}), Some(false)),
        ] {
            assert_eq!(request(&body).clean_up_tokenization_spaces, clean_up, "{body}");
        }
    }

    #[test]
    fn add_special_tokens_stands_at_either_level() {
        for (body, add) in [
            (json!({"prompt": "a"}), None),
            (json!({"prompt": "a", "add_special_tokens": null}), None),
            (json!({"prompt": "a", "add_special_tokens": false}), Some(false)),
            (json!({"prompt": "a", "generate_kwargs": {"add_special_tokens": true}}), Some(true)),
        ] {
            assert_eq!(request(&body).add_special_tokens, add, "{body}");
        }
    }
}
