//! Answers that must be like something.

use kaito_testing::server::{CHAT_MODEL, TestServer};
use serde_json::{Value, json};

use super::{CHAT, COMPLETIONS, hello, of_choice, stream, text};

/// An object of one field that has two values.
fn schema() -> Value {
    json!({
        "type": "object", "properties": { "colour": { "enum": ["red", "blue"] } }, "required": ["colour"],
        "additionalProperties": false,
    })
}

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().expect("a text")
}

fn fits(text: &str) -> bool {
    let value: Value = serde_json::from_str(text).unwrap_or_default();
    value == json!({ "colour": "red" }) || value == json!({ "colour": "blue" })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_binds_the_text_however_it_is_given() {
    let server = TestServer::start(CHAT_MODEL).await;
    let named = json!({ "name": "colours", "schema": schema(), "strict": true });
    for format in [
        json!({ "response_format": { "type": "json_schema", "json_schema": named } }),
        json!({ "response_format": { "type": "json_object", "schema": schema() } }),
        json!({ "structured_outputs": { "json": schema() } }),
        json!({ "structured_outputs": { "json": schema().to_string() } }),
        json!({ "guided_json": schema() }),
        json!({ "json_schema": schema() }),
    ] {
        let body = hello(super::with(format.clone(), json!({ "max_tokens": 100, "temperature": 1, "seed": 3 })));
        let answer = server.ask(CHAT, &body).await;
        assert!(fits(content(&answer)), "{format}: {answer}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        let chunks = stream(&server, CHAT, &body).await;
        let pieces = of_choice(&chunks, 0);
        let joined: String = pieces.iter().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
        assert_eq!(joined, content(&answer), "{format}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn choices_and_expressions_bind_the_text() {
    let server = TestServer::start(CHAT_MODEL).await;
    for format in [
        json!({ "structured_outputs": { "choice": ["red", "blue"] } }),
        json!({ "structured_outputs": { "regex": "red|blue" } }),
        json!({ "structured_outputs": { "grammar": "start: \"red\" | \"blue\"" } }),
        json!({ "guided_choice": ["red", "blue"] }),
        json!({ "guided_regex": "red|blue" }),
        json!({ "guided_grammar": "start: \"red\" | \"blue\"" }),
    ] {
        let answer = server.ask(CHAT, &hello(format.clone())).await;
        assert!(["red", "blue"].contains(&content(&answer)), "{format}: {answer}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        let answer = server.ask(COMPLETIONS, &text(format.clone())).await;
        assert!(["red", "blue"].contains(&answer["choices"][0]["text"].as_str().unwrap()), "{format}: {answer}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_object_is_an_object_or_the_beginning_of_one() {
    let server = TestServer::start(CHAT_MODEL).await;
    let body = hello(
        json!({ "response_format": { "type": "json_object" }, "max_tokens": 40, "n": 2, "temperature": 1, "seed": 1 }),
    );
    for choice in server.ask(CHAT, &body).await["choices"].as_array().unwrap() {
        let text = choice["message"]["content"].as_str().unwrap();
        assert!(text.trim_start().starts_with('{'), "{text}");
        if choice["finish_reason"] == "stop" {
            assert!(serde_json::from_str::<Value>(text).unwrap().is_object());
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_cannot_be_kept_is_refused_by_name() {
    let server = TestServer::start(CHAT_MODEL).await;
    let unknown = json!({ "type": "object", "unevaluatedItems": 5, "properties": { "a": { "type": "hiccup" } } });
    for (format, param) in [
        (json!({ "response_format": { "type": "json_object", "schema": { "type": "hiccup" } } }), "response_format"),
        (json!({ "guided_json": unknown }), "guided_json"),
    ] {
        let refused = server.post(CHAT, &hello(format)).await;
        assert_eq!(refused.status(), 400);
        let error = refused.json::<Value>().await.unwrap()["error"].clone();
        assert_eq!((&error["code"], &error["param"]), (&json!("invalid_json_schema"), &json!(param)));
    }
    let refused = server.post(CHAT, &hello(json!({ "guided_regex": "(" }))).await;
    assert_eq!(refused.status(), 400);
    assert_eq!(refused.json::<Value>().await.unwrap()["error"]["param"], "guided_regex");
    let beams = json!({ "guided_regex": "a", "use_beam_search": true, "n": 2 });
    assert_eq!(server.post(CHAT, &hello(beams)).await.status(), 400);
    server.stop().await;
}
