//! How to ask for tokens in each API, and what its events say.

use kaito_client::{Event, Failure, brief, message};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{answer::Ask, prompts::Prompt};

/// An API that streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Api {
    /// `prompt` to `/chat`.
    Kaito,
    /// `prompts` to `/generate`.
    Generate,
    /// OpenAI's `/v1/completions`.
    OpenAi,
}

/// What an event is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It brings a token.
    Token,
    /// It brings none.
    Other,
    /// The answer is complete.
    Done,
}

/// What an answer's events say about its length.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub(super) prompt_tokens: Option<usize>,
    pub(super) output_tokens: Option<usize>,
    /// Whether the answer said why it ended, after which a stream may end.
    pub(super) finished: bool,
}

impl Api {
    pub(super) fn path(self) -> &'static str {
        match self {
            Api::Kaito => "/chat",
            Api::Generate => "/generate",
            Api::OpenAi => "/v1/completions",
        }
    }

    /// Whether prompts may be token ids.
    pub(super) fn takes_tokens(self) -> bool {
        self == Api::OpenAi
    }

    /// The body of a request. Each API is asked for answers of full length where it can be.
    pub(super) fn body(self, ask: &Ask, model: Option<&str>, extra: &Map<String, Value>) -> Value {
        let Ask { output, temperature, seed, .. } = *ask;
        let prompt = match &ask.prompt {
            Prompt::Tokens(ids) => json!(ids),
            Prompt::Text(text) => json!(text),
        };
        let mut body = match self {
            Api::Kaito => json!({
                "prompt": prompt,
                "stream": true,
                "max_new_tokens": output,
                "min_new_tokens": output,
                "do_sample": temperature > 0.0,
                "return_full_text": false,
                "return_dict_in_generate": true,
            }),
            Api::Generate => json!({
                "prompts": [prompt],
                "stream": true,
                "parameters": { "max_gen_len": output, "temperature": temperature, "seed": seed },
            }),
            Api::OpenAi => json!({
                "prompt": prompt,
                "stream": true,
                "stream_options": { "include_usage": true },
                "max_tokens": output,
                "temperature": temperature,
                "seed": seed,
                "ignore_eos": true,
            }),
        };
        if let Some(fields) = body.as_object_mut() {
            if self == Api::Kaito && temperature > 0.0 {
                fields.insert("temperature".to_owned(), json!(temperature));
                fields.insert("top_k".to_owned(), json!(0));
                fields.insert("seed".to_owned(), json!(seed));
            }
            if let (Api::OpenAi, Some(model)) = (self, model) {
                fields.insert("model".to_owned(), json!(model));
            }
            for (name, value) in extra {
                match value {
                    Value::Null => fields.shift_remove(name),
                    value => fields.insert(name.clone(), value.clone()),
                };
            }
            fields.sort_keys();
        }
        body
    }

    /// Takes note of an event that comes after so many tokens.
    pub(super) fn read(self, event: &Event, tokens: usize, reading: &mut Reading) -> Result<Step, Failure> {
        match self {
            Api::Kaito | Api::Generate => read_own(event, tokens, reading),
            Api::OpenAi => read_openai(event, reading),
        }
    }
}

fn read_own(event: &Event, tokens: usize, reading: &mut Reading) -> Result<Step, Failure> {
    let body = parse(event)?;
    match event.name.as_str() {
        // What was held back until the end comes without a token.
        "" if body.get("token").is_none() => Ok(Step::Other),
        "" => Ok(Step::Token),
        "result" => {
            // Prompt and answer together.
            let total = body["sequences"][0].as_array().map(Vec::len);
            reading.prompt_tokens = total.and_then(|total| total.checked_sub(tokens));
            reading.output_tokens = Some(tokens);
            Ok(Step::Done)
        }
        "error" => Err(Failure::InStream(message(&body))),
        _ => Ok(Step::Other),
    }
}

fn read_openai(event: &Event, reading: &mut Reading) -> Result<Step, Failure> {
    if event.data.trim() == "[DONE]" {
        return Ok(Step::Done);
    }
    let body = parse(event)?;
    if event.name == "error" || body.get("error").is_some_and(|error| !error.is_null()) {
        return Err(Failure::InStream(message(&body)));
    }
    let count = |name: &str| body["usage"][name].as_u64().and_then(|count| usize::try_from(count).ok());
    reading.prompt_tokens = count("prompt_tokens").or(reading.prompt_tokens);
    reading.output_tokens = count("completion_tokens").or(reading.output_tokens);
    let Some(choice) = body["choices"].get(0) else { return Ok(Step::Other) };
    let last = choice["finish_reason"].is_string();
    reading.finished |= last;
    // The text of a token may be empty, while a character is incomplete; that of the last event may bring none.
    let empty = choice["text"].as_str().unwrap_or_default().is_empty();
    Ok(if last && empty { Step::Other } else { Step::Token })
}

fn parse(event: &Event) -> Result<Value, Failure> {
    serde_json::from_str(&event.data)
        .map_err(|error| Failure::NotAStream(format!("an event's data is no JSON ({error}): {}", brief(&event.data))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(prompt: Prompt, temperature: f64) -> Ask {
        Ask { prompt, output: 8, temperature, seed: 5 }
    }

    fn event(name: &str, data: &str) -> Event {
        Event { name: name.to_owned(), data: data.to_owned() }
    }

    #[test]
    fn bodies_are_those_of_the_apis() {
        let text = || Prompt::Text("about above".to_owned());
        let none = Map::new();
        assert_eq!(
            Api::Kaito.body(&ask(text(), 0.0), None, &none),
            json!({"prompt": "about above", "stream": true, "max_new_tokens": 8, "min_new_tokens": 8,
                   "do_sample": false, "return_full_text": false, "return_dict_in_generate": true})
        );
        assert_eq!(Api::Kaito.body(&ask(text(), 0.5), None, &none)["temperature"], 0.5);
        assert_eq!(
            Api::Generate.body(&ask(text(), 0.0), Some("unused"), &none),
            json!({"prompts": ["about above"], "stream": true,
                   "parameters": {"max_gen_len": 8, "temperature": 0.0, "seed": 5}})
        );
        let extra = json!({"ignore_eos": null, "cache_prompt": false});
        assert_eq!(
            Api::OpenAi.body(&ask(Prompt::Tokens(vec![3, 4]), 0.0), Some("m"), extra.as_object().unwrap()),
            json!({"prompt": [3, 4], "stream": true, "stream_options": {"include_usage": true}, "max_tokens": 8,
                   "temperature": 0.0, "seed": 5, "model": "m", "cache_prompt": false})
        );
    }

    #[test]
    fn events_of_our_api() {
        let mut reading = Reading::default();
        let mut read = |name, data| Api::Kaito.read(&event(name, data), 2, &mut reading);
        assert_eq!(read("", r#"{"sequence":0,"token":13,"text":""}"#), Ok(Step::Token));
        assert_eq!(read("", r#"{"sequence":0,"text":"held back"}"#), Ok(Step::Other));
        assert_eq!(read("other", "{}"), Ok(Step::Other));
        assert_eq!(read("result", r#"{"Result":"x","sequences":[[1,2,3,4,5]]}"#), Ok(Step::Done));
        assert_eq!(
            read("error", r#"{"status":408,"detail":"too late"}"#),
            Err(Failure::InStream("too late".to_owned()))
        );
        assert!(matches!(read("", "nonsense"), Err(Failure::NotAStream(cause)) if cause.contains("nonsense")));
        assert_eq!((reading.prompt_tokens, reading.output_tokens), (Some(3), Some(2)));
    }

    /// The shapes that OpenAI, llama-server and vLLM send.
    #[test]
    fn events_of_openais_api() {
        let mut reading = Reading::default();
        let mut read = |data| Api::OpenAi.read(&event("", data), 2, &mut reading);
        assert_eq!(read(r#"{"choices":[{"text":"a","index":0,"finish_reason":null}],"usage":null}"#), Ok(Step::Token));
        assert_eq!(
            read(r#"{"choices":[{"text":"","index":0,"logprobs":null,"finish_reason":null}]}"#),
            Ok(Step::Token)
        );
        assert_eq!(read(r#"{"choices":[{"text":"b","finish_reason":"length"}]}"#), Ok(Step::Token));
        assert_eq!(
            read(
                r#"{"choices":[{"text":"","finish_reason":"length"}],"usage":{"prompt_tokens":7,"completion_tokens":3}}"#
            ),
            Ok(Step::Other)
        );
        assert_eq!(read(r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}"#), Ok(Step::Other));
        assert_eq!(read("[DONE]"), Ok(Step::Done));
        assert_eq!(
            read(r#"{"error":{"code":400,"message":"the request exceeds the context","type":"x"}}"#),
            Err(Failure::InStream("the request exceeds the context".to_owned()))
        );
        assert_eq!((reading.prompt_tokens, reading.output_tokens, reading.finished), (Some(7), Some(3), true));
    }
}
