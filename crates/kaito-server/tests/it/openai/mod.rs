//! The OpenAI API, from outside.

mod adapters;
mod bad_requests;
mod chat;
mod completions;
mod embeddings;
mod log_probs;
mod models;
mod null_model;
mod stream;
mod structured;
mod tokens;

use kaito_testing::server::TestServer;
use serde_json::{Value, json};

use crate::objects::{keys, with};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// One message of the user, answered with the likeliest 24 tokens.
fn hello(more: Value) -> Value {
    let messages = json!([{ "role": "user", "content": "Hello" }]);
    with(json!({ "messages": messages, "temperature": 0, "max_tokens": 24, "ignore_eos": true }), more)
}

/// A text, continued with the likeliest 24 tokens.
fn text(more: Value) -> Value {
    with(json!({ "prompt": "Hello", "temperature": 0, "max_tokens": 24, "ignore_eos": true }), more)
}

/// The chunks of a stream, which must end as such streams do.
fn chunks(body: &str) -> Vec<Value> {
    let mut data = Vec::new();
    for block in body.split("\n\n").filter(|block| !block.is_empty()) {
        let line = block.strip_prefix("data: ").unwrap_or_else(|| panic!("{block:?} is more than data"));
        assert!(!line.contains('\n'), "{block:?}");
        data.push(line);
    }
    assert_eq!(data.pop(), Some("[DONE]"));
    data.into_iter().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// The chunks of the answer to `body`, which must be a stream.
async fn stream(server: &TestServer, path: &str, body: &Value) -> Vec<Value> {
    let response = server.post(path, &with(body.clone(), json!({ "stream": true }))).await;
    let status = response.status();
    let content_type = response.headers()["content-type"].clone();
    let text = response.text().await.expect("a whole body");
    assert_eq!(status, 200, "{body} -> {text}");
    assert_eq!(content_type, "text/event-stream");
    chunks(&text)
}

/// The only choices of all chunks that are about the choice at `index`.
fn of_choice(chunks: &[Value], index: usize) -> Vec<&Value> {
    let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().expect("choices"));
    choices.filter(|choice| choice["index"] == index).collect()
}
