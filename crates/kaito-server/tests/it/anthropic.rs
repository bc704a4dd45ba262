//! Anthropic's API: `POST /v1/messages` and `/v1/messages/count_tokens`, as its clients send and read them.

use kaito_testing::server::{CHAT_MODEL, Event, TestServer, parse_events};
use serde_json::{Value, json};

use crate::objects::{keys, with};

const PATH: &str = "/v1/messages";
const COUNT: &str = "/v1/messages/count_tokens";

/// A text of the user, answered with the likeliest tokens.
fn hello(more: Value) -> Value {
    let body = json!({ "messages": [{ "role": "user", "content": "Hello" }], "temperature": 0, "max_tokens": 24 });
    with(body, more)
}

/// The same as a chat completion.
async fn chat(server: &TestServer, messages: Value, more: Value) -> Value {
    let body = json!({ "messages": messages, "temperature": 0, "max_tokens": 24 });
    server.ask("/v1/chat/completions", &with(body, more)).await
}

/// A tool whose input is soon written.
fn weather() -> Value {
    let schema = json!({ "type": "object", "properties": { "city": { "enum": ["Oslo"] } }, "required": ["city"] });
    json!({ "name": "w", "description": "Weather.", "input_schema": schema })
}

/// The events of a stream, whose names are their types.
async fn stream(server: &TestServer, body: &Value) -> Vec<Value> {
    let response = server.post(PATH, &with(body.clone(), json!({ "stream": true }))).await;
    let status = response.status();
    let text = response.text().await.expect("a whole body");
    assert_eq!(status, 200, "{body} -> {text}");
    assert!(!text.contains("[DONE]"));
    let events: Vec<Event> = parse_events(&text);
    for event in &events {
        assert_eq!(event.data["type"], event.name, "{event:?}");
    }
    events.into_iter().map(|event| event.data).collect()
}

fn kinds(events: &[Value]) -> Vec<&str> {
    let mut kinds: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    kinds.dedup();
    kinds
}

const FIELDS: [&str; 8] = ["content", "id", "model", "role", "stop_reason", "stop_sequence", "type", "usage"];

#[tokio::test(flavor = "multi_thread")]
async fn the_text_is_that_of_a_chat_completion() {
    let server = TestServer::start(CHAT_MODEL).await;
    // Betas, and what is said of how to serve a request, change nothing.
    let more = json!({
        "metadata": { "user_id": "u" }, "thinking": { "type": "disabled" }, "service_tier": "auto",
        "messages": [{ "role": "user", "content": [{ "type": "text", "text": "Hello", "cache_control": { "type": "ephemeral" } }] }],
    });
    for limit in [2, 24] {
        let limited = json!({ "max_tokens": limit });
        let chat = chat(&server, json!([{ "role": "user", "content": "Hello" }]), limited.clone()).await;
        let request = server.request(&format!("{PATH}?beta=true"), &hello(with(more.clone(), limited)));
        let request = request.header("anthropic-version", "2023-06-01").header("anthropic-beta", "some-2099-01-01");
        let message: Value = request.send().await.unwrap().json().await.unwrap();
        assert_eq!(keys(&message), FIELDS, "{message}");
        assert!(message["id"].as_str().unwrap().starts_with("msg_"));
        assert_eq!((&message["type"], &message["role"]), (&json!("message"), &json!("assistant")));
        assert_eq!(message["model"], chat["model"]);
        assert_eq!(message["content"], json!([{ "type": "text", "text": chat["choices"][0]["message"]["content"] }]));
        let reason = match chat["choices"][0]["finish_reason"].as_str() {
            Some("length") => "max_tokens",
            _ => "end_turn",
        };
        assert!(limit > 2 || reason == "max_tokens");
        assert_eq!((&message["stop_reason"], &message["stop_sequence"]), (&json!(reason), &Value::Null));
        assert_eq!(message["usage"]["input_tokens"], chat["usage"]["prompt_tokens"]);
        assert_eq!(message["usage"]["output_tokens"], chat["usage"]["completion_tokens"]);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_is_the_same_as_in_a_chat_completion() {
    let server = TestServer::start(CHAT_MODEL).await;
    let messages = json!([
        { "role": "system", "content": "Be brief." },
        { "role": "user", "content": "One" },
        { "role": "assistant", "content": "Two" },
        { "role": "user", "content": "Three" },
    ]);
    let expected = chat(&server, messages, json!({})).await;
    let turns = json!([
        { "role": "user", "content": "One" },
        { "role": "assistant", "content": [{ "type": "thinking", "thinking": "Hm", "signature": "s" }, { "type": "text", "text": "Two" }] },
        { "role": "user", "content": [{ "type": "text", "text": "Three" }] },
    ]);
    let system = json!([{ "type": "text", "text": "Be " }, { "type": "text", "text": "brief." }]);
    let message = server.ask(PATH, &hello(json!({ "system": system, "messages": turns }))).await;
    assert_eq!(message["content"][0]["text"], expected["choices"][0]["message"]["content"]);
    assert_eq!(message["usage"]["input_tokens"], expected["usage"]["prompt_tokens"]);

    // The beginning of an answer is continued.
    let begun = json!([{ "role": "user", "content": "One" }, { "role": "assistant", "content": "Two" }]);
    let expected = chat(&server, begun.clone(), json!({ "continue_final_message": true })).await;
    let message = server.ask(PATH, &hello(json!({ "messages": begun }))).await;
    assert_eq!(message["content"][0]["text"], expected["choices"][0]["message"]["content"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_text_come_in_order_and_add_up() {
    let server = TestServer::start(CHAT_MODEL).await;
    let body = hello(json!({ "max_tokens": 3 }));
    let whole = server.ask(PATH, &body).await;
    let events = stream(&server, &body).await;
    assert_eq!(
        kinds(&events),
        [
            "message_start",
            "ping",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop"
        ]
    );
    let start = &events[0]["message"];
    assert_eq!(keys(start), FIELDS);
    assert_eq!(
        (&start["content"], &start["stop_reason"], &start["stop_sequence"]),
        (&json!([]), &Value::Null, &Value::Null)
    );
    assert_eq!(start["usage"]["input_tokens"], whole["usage"]["input_tokens"]);
    assert_eq!(events[1], json!({ "type": "ping" }));
    assert_eq!(
        events[2],
        json!({ "type": "content_block_start", "index": 0, "content_block": { "type": "text", "text": "" } })
    );
    let deltas: Vec<_> = events.iter().filter(|event| event["type"] == "content_block_delta").collect();
    let joined: String = deltas.iter().map(|event| event["delta"]["text"].as_str().unwrap()).collect();
    assert_eq!(joined, whole["content"][0]["text"].as_str().unwrap());
    assert!(deltas.iter().all(|event| event["index"] == 0 && event["delta"]["type"] == "text_delta"));
    let [.., stop, delta, end] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(stop, &json!({ "type": "content_block_stop", "index": 0 }));
    assert_eq!(
        delta,
        &json!({
            "type": "message_delta", "delta": { "stop_reason": "max_tokens", "stop_sequence": null },
            "usage": { "output_tokens": 3 },
        })
    );
    assert_eq!(end, &json!({ "type": "message_stop" }));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_sequence_is_named() {
    let server = TestServer::start(CHAT_MODEL).await;
    let whole = server.ask(PATH, &hello(json!({}))).await;
    let text = whole["content"][0]["text"].as_str().unwrap();
    let stop: String = text.chars().skip(4).take(3).collect();
    let body = hello(json!({ "stop_sequences": ["\u{0}", stop] }));
    let message = server.ask(PATH, &body).await;
    assert_eq!((&message["stop_reason"], &message["stop_sequence"]), (&json!("stop_sequence"), &json!(stop)));
    assert_eq!(message["content"][0]["text"], text[..text.find(&stop).unwrap()]);
    let events = stream(&server, &body).await;
    let delta = &events[events.len() - 2]["delta"];
    assert_eq!(delta, &json!({ "stop_reason": "stop_sequence", "stop_sequence": stop }));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_are_used_and_their_results_come_back() {
    let server = TestServer::start(CHAT_MODEL).await;
    let body =
        hello(json!({ "tools": [weather()], "tool_choice": { "type": "tool", "name": "w" }, "max_tokens": 120 }));
    let message = server.ask(PATH, &body).await;
    assert_eq!(message["stop_reason"], "tool_use", "{message}");
    let call = &message["content"][0];
    assert_eq!(keys(call), ["id", "input", "name", "type"]);
    assert_eq!(
        (&call["type"], &call["name"], &call["input"]),
        (&json!("tool_use"), &json!("w"), &json!({ "city": "Oslo" }))
    );

    let events = stream(&server, &body).await;
    assert_eq!(
        kinds(&events),
        [
            "message_start",
            "ping",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop"
        ]
    );
    let begun = &events[2]["content_block"];
    assert_eq!((&begun["type"], &begun["name"], &begun["input"]), (&json!("tool_use"), &json!("w"), &json!({})));
    let deltas = events.iter().filter(|event| event["type"] == "content_block_delta");
    let joined: String = deltas.map(|event| event["delta"]["partial_json"].as_str().unwrap()).collect();
    assert_eq!(serde_json::from_str::<Value>(&joined).unwrap(), json!({ "city": "Oslo" }));
    assert_eq!(events[events.len() - 2]["delta"]["stop_reason"], "tool_use");

    let turns = json!([
        { "role": "user", "content": "Hello" },
        { "role": "assistant", "content": [call] },
        { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": call["id"], "content": "Rain." }] },
    ]);
    let more = json!({ "messages": turns, "tools": [weather()], "tool_choice": { "type": "none" } });
    let answer = server.ask(PATH, &hello(more)).await;
    assert_eq!(answer["content"][0]["type"], "text");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_counted_exactly() {
    let server = TestServer::start(CHAT_MODEL).await;
    for more in [
        json!({}),
        json!({ "system": "Be brief." }),
        json!({ "messages": [{ "role": "user", "content": "One" }, { "role": "assistant", "content": "Two" }] }),
        json!({ "tools": [weather()] }),
    ] {
        let message = server.ask(PATH, &hello(more.clone())).await;
        let mut body = hello(more);
        body.as_object_mut().unwrap().retain(|name, _| name != "max_tokens" && name != "temperature");
        let count = server.ask(&format!("{COUNT}?beta=true"), &body).await;
        assert_eq!(count, json!({ "input_tokens": message["usage"]["input_tokens"] }), "{body}");
    }
    // What does not fit is counted all the same.
    let long = json!({ "messages": [{ "role": "user", "content": "Hello ".repeat(400) }] });
    let count = server.ask(COUNT, &long).await["input_tokens"].as_u64().unwrap();
    assert!(count > 512, "{count}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_says_why_in_anthropics_shape() {
    let server = TestServer::start(CHAT_MODEL).await;
    let message = |message: Value| json!({ "messages": [message] });
    let blocks = |block: Value| message(json!({ "role": "user", "content": [block] }));
    let cases = [
        json!({ "max_tokens": null }),
        json!({ "max_tokens": 0 }),
        json!({ "max_tokens": "many" }),
        json!({ "temperature": 1.5 }),
        json!({ "top_p": 2 }),
        json!({ "top_k": -1 }),
        json!({ "stop_sequences": "a" }),
        json!({ "stop_sequences": [""] }),
        json!({ "stream": 1 }),
        json!({ "system": 5 }),
        json!({ "system": [{ "type": "image" }] }),
        json!({ "messages": null }),
        json!({ "messages": [] }),
        message(json!("Hello")),
        message(json!({ "role": "tool", "content": "a" })),
        message(json!({ "role": "user" })),
        blocks(json!({ "text": "a" })),
        blocks(json!({ "type": "image", "source": {} })),
        blocks(json!({ "type": "document", "source": {} })),
        blocks(json!({ "type": "tool_use", "id": "a", "name": "f", "input": {} })),
        blocks(json!({ "type": "tool_result" })),
        message(
            json!({ "role": "assistant", "content": [{ "type": "tool_use", "id": "a", "name": "f", "input": {} }] }),
        ),
        json!({ "tools": [{ "type": "bash_20250124", "name": "bash" }] }),
        json!({ "tools": [{ "name": "f" }] }),
        json!({ "tools": [{ "name": "a b", "input_schema": {} }] }),
        json!({ "tools": [weather()], "tool_choice": { "type": "tool", "name": "g" } }),
        json!({ "tool_choice": { "type": "any" } }),
        json!({ "mcp_servers": [{}] }),
        json!({ "output_config": { "format": { "type": "xml" } } }),
        json!({ "messages": [{ "role": "user", "content": "Hello ".repeat(2000) }] }),
    ];
    let mut sentences = String::new();
    for more in cases {
        let response = server.post(PATH, &hello(more.clone())).await;
        assert_eq!(response.status(), 400, "{more}");
        let body: Value = response.json().await.unwrap();
        assert_eq!(keys(&body), ["error", "type"], "{more}: {body}");
        assert_eq!(
            (&body["type"], &body["error"]["type"]),
            (&json!("error"), &json!("invalid_request_error")),
            "{more}: {body}"
        );
        sentences += &format!("{}\n", body["error"]["message"].as_str().unwrap());
    }
    insta::assert_snapshot!(sentences);
    for (path, body, status, kind) in [
        (PATH, hello(json!({ "model": "claude" })), 404, "not_found_error"),
        (COUNT, hello(json!({ "model": "claude" })), 404, "not_found_error"),
        ("/v1/messages/batches", hello(json!({})), 404, "not_found_error"),
    ] {
        let response = server.post(path, &body).await;
        assert_eq!(response.status(), status, "{path}");
        let body: Value = response.json().await.unwrap();
        assert_eq!(body["error"]["type"], kind, "{path}: {body}");
    }
    server.stop().await;
}
