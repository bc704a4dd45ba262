//! A model at a server that speaks OpenAI's API: `POST /chat/completions`, streamed.

use std::fs;

use anyhow::{Context, anyhow, bail};
use kaito_client::{Event, EventStream, Failure, Http, message};
use kaito_engine::ChatMessage;
use serde_json::{Map, Value, json};
use url::Url;

use super::Answer;
use crate::{args::ChatArgs, logging::escape, output, values};

/// Longest answer, in bytes: far more than any model gives.
const MAX_ANSWER: usize = 16 << 20;

/// A server, and how it is asked.
pub struct Remote {
    http: Http,
    base: String,
    /// `None` where the server lists no models; then it is asked for none by name.
    model: Option<String>,
    /// Fields of each request that flags ask for.
    options: Map<String, Value>,
}

impl Remote {
    /// Finds out the model's name, which is the first use of the server.
    pub async fn connect(url: &Url, args: &ChatArgs) -> anyhow::Result<Self> {
        let http = Http::new(key(args)?.as_deref())?;
        let mut options = Map::new();
        if let Some(most) = args.max_new_tokens {
            options.insert("max_tokens".to_owned(), json!(most));
        }
        if let Some(temperature) = args.temperature {
            // As it was written: 0.6, not the f32 nearest to it.
            let temperature: f64 = temperature.to_string().parse().unwrap_or_else(|_| temperature.into());
            options.insert("temperature".to_owned(), json!(temperature));
        }
        if let Some(seed) = args.seed {
            options.insert("seed".to_owned(), json!(seed));
        }
        let mut remote = Self { http, base: base(url), model: args.served_model.clone(), options };
        if remote.model.is_none() {
            remote.model = remote.first_model().await?;
        }
        Ok(remote)
    }

    async fn first_model(&self) -> anyhow::Result<Option<String>> {
        let url = format!("{}/models", self.base);
        let text = match self.http.get(&url).await {
            Ok(text) => text,
            // Not every server has the list.
            Err(Failure::Status { status: 404 | 405 | 501, .. }) => return Ok(None),
            Err(failure) => return Err(told(&url, failure)),
        };
        let models: Value = serde_json::from_str(&text).map_err(|_| {
            anyhow!("{url} answers no list of models; is {} the base URL of an OpenAI server?", self.base)
        })?;
        Ok(models["data"][0]["id"].as_str().map(str::to_owned))
    }

    pub fn introduction(&self) -> String {
        let name = self.model.as_deref().unwrap_or("the model");
        format!("This is {} at {}.", escape::line(name), escape::line(&self.base))
    }

    pub async fn answer(&self, conversation: &[ChatMessage], answer: &mut Answer) -> anyhow::Result<()> {
        let url = format!("{}/chat/completions", self.base);
        let response =
            self.http.send(&url, Some(&self.body(conversation))).await.map_err(|failure| told(&url, failure))?;
        let mut stream = EventStream::of(response).map_err(|failure| told(&url, failure))?;
        let mut events = Vec::new();
        let mut reason = None;
        while stream.read(&mut events).await.map_err(|failure| told(&url, failure))? {
            for event in events.drain(..) {
                match read(&event).map_err(|failure| told(&url, failure))? {
                    Step::Text { text, finish_reason } => {
                        if answer.text.len() + text.len() > MAX_ANSWER {
                            bail!("{url} sent an answer of more than {} MiB", MAX_ANSWER >> 20);
                        }
                        answer.say(&text, &shown(&text))?;
                        reason = finish_reason.or(reason);
                    }
                    Step::Other => {}
                    Step::Done => {
                        stream.finish().await;
                        return end(reason.as_deref());
                    }
                }
            }
        }
        match reason {
            // Some servers leave out the last event.
            Some(reason) => end(Some(&reason)),
            None => Err(told(&url, Failure::Cut(String::new()))),
        }
    }

    fn body(&self, conversation: &[ChatMessage]) -> Value {
        let messages: Vec<Value> =
            conversation.iter().map(|one| json!({ "role": one.role, "content": one.content })).collect();
        let mut body = self.options.clone();
        if let Some(model) = &self.model {
            body.insert("model".to_owned(), json!(model));
        }
        body.insert("messages".to_owned(), messages.into());
        body.insert("stream".to_owned(), json!(true));
        body.into()
    }
}

/// The base URL without a slash at its end: `/v1` unless it has a path of its own.
fn base(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    if matches!(url.path(), "" | "/") {
        url.set_path("/v1");
    }
    url.as_str().trim_end_matches('/').to_owned()
}

/// The key to show, if there is one.
fn key(args: &ChatArgs) -> anyhow::Result<Option<String>> {
    let Some(file) = &args.api_key_file else { return Ok(args.api_key.clone()) };
    let text = fs::read_to_string(file).with_context(|| format!("--api-key-file: cannot read {}", file.display()))?;
    let key = values::first_key(&text).map_err(|cause| anyhow!("--api-key-file: {} {cause}", file.display()))?;
    Ok(Some(key))
}

/// What an event of the stream is.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Text { text: String, finish_reason: Option<String> },
    Other,
    Done,
}

fn read(event: &Event) -> Result<Step, Failure> {
    if event.data.trim() == "[DONE]" {
        return Ok(Step::Done);
    }
    let body: Value = serde_json::from_str(&event.data)
        .map_err(|error| Failure::NotAStream(format!("an event's data is no JSON ({error})")))?;
    if event.name == "error" || body.get("error").is_some_and(|error| !error.is_null()) {
        return Err(Failure::InStream(message(&body)));
    }
    // A last event with the usage alone has no choices.
    let Some(choice) = body["choices"].get(0) else { return Ok(Step::Other) };
    let delta = &choice["delta"];
    let text = delta["content"].as_str().or_else(|| delta["refusal"].as_str()).unwrap_or_default().to_owned();
    Ok(Step::Text { text, finish_reason: choice["finish_reason"].as_str().map(str::to_owned) })
}

/// The end of an answer, with a remark if it is no natural one.
fn end(reason: Option<&str>) -> anyhow::Result<()> {
    match reason {
        Some("length") => output::note(" [cut: the answer has as many tokens as it may]"),
        Some("content_filter") => output::note(" [cut by the server's content filter]"),
        _ => {}
    }
    Ok(())
}

/// A text of a server may not control the terminal.
fn shown(text: &str) -> String {
    text.split_inclusive(['\n', '\t'])
        .map(|part| {
            let (line, end) = match part.strip_suffix(['\n', '\t']) {
                Some(line) => part.split_at(line.len()),
                None => (part, ""),
            };
            format!("{}{end}", escape::line(line))
        })
        .collect()
}

/// A failure, with what to do about it.
fn told(url: &str, failure: Failure) -> anyhow::Error {
    let hint = match &failure {
        Failure::Connect(_) => "; is a server running there? `kaito serve` starts one",
        Failure::Status { status: 401 | 403, .. } => "; --api-key-file or KAITO_API_KEY gives the key",
        Failure::Status { status: 404, message } if message.contains("model") => "; --model names another model",
        Failure::Status { status: 404 | 405, .. } | Failure::NotAStream(_) => {
            "; --url wants the base URL of an OpenAI server, which often ends in /v1"
        }
        Failure::Status { status: 400 | 413 | 422, .. } => "; /reset forgets the conversation, if it is too long",
        Failure::Status { status: 408 | 429 | 500..=599, .. } => "; try again later",
        Failure::Status { .. } | Failure::Broken(_) | Failure::InStream(_) | Failure::Cut(_) => "",
    };
    anyhow!("{url}: {failure}{hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls() {
        for (url, expected) in [
            ("http://localhost:5000", "http://localhost:5000/v1"),
            ("http://localhost:5000/", "http://localhost:5000/v1"),
            ("http://localhost:5000/v1/", "http://localhost:5000/v1"),
            ("https://api.example.com/openai/v1?x=1#y", "https://api.example.com/openai/v1"),
        ] {
            assert_eq!(base(&url.parse().unwrap()), expected);
        }
    }

    /// The shapes of OpenAI's published examples of `chat.completion.chunk`, and of errors within streams.
    #[test]
    fn events() {
        let read = |data: &str| read(&Event { name: String::new(), data: data.to_owned() });
        let text = |text: &str, reason: Option<&str>| {
            Ok(Step::Text { text: text.to_owned(), finish_reason: reason.map(str::to_owned) })
        };
        assert_eq!(
            read(r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#),
            text("", None)
        );
        assert_eq!(
            read(r#"{"choices":[{"index":0,"delta":{"content":"Hello"},"finish_reason":null}]}"#),
            text("Hello", None)
        );
        assert_eq!(read(r#"{"choices":[{"index":0,"delta":{"refusal":"No."}}]}"#), text("No.", None));
        assert_eq!(read(r#"{"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}"#), text("", Some("length")));
        assert_eq!(read(r#"{"choices":[],"usage":{"total_tokens":3}}"#), Ok(Step::Other));
        assert_eq!(read("[DONE]"), Ok(Step::Done));
        assert_eq!(
            read(r#"{"error":{"message":"gone","type":"server_error"}}"#),
            Err(Failure::InStream("gone".to_owned()))
        );
        assert!(matches!(read("{"), Err(Failure::NotAStream(_))));
    }

    #[test]
    fn a_server_cannot_control_the_terminal() {
        assert_eq!(shown("one\n\ttwo\x1b[2J é"), "one\n\ttwo\\u{1b}[2J é");
        assert_eq!(shown("\n"), "\n");
        assert_eq!(shown(""), "");
    }
}
