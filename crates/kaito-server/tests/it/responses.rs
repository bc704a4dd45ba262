//! `POST /v1/responses`: what OpenAI's clients send and read there.

use kaito_testing::server::{CHAT_MODEL, Event, TestServer, parse_events};
use serde_json::{Value, json};

use crate::objects::{keys, with};

const PATH: &str = "/v1/responses";

/// A text of the user, answered with the likeliest tokens, as many as there may be.
fn hello(more: Value) -> Value {
    with(json!({ "input": "Hello", "temperature": 0, "max_output_tokens": 24, "ignore_eos": true }), more)
}

/// The same as a chat completion.
async fn chat(server: &TestServer, messages: Value) -> Value {
    let body = json!({ "messages": messages, "temperature": 0, "max_tokens": 24, "ignore_eos": true });
    server.ask("/v1/chat/completions", &body).await
}

/// A function whose arguments are soon written.
fn weather() -> Value {
    let parameters = json!({ "type": "object", "properties": { "city": { "enum": ["Oslo"] } }, "required": ["city"] });
    json!({ "type": "function", "name": "w", "parameters": parameters })
}

/// The events of a stream, whose names are their types and whose numbers rise by one.
async fn stream(server: &TestServer, body: &Value) -> Vec<Value> {
    let response = server.post(PATH, &with(body.clone(), json!({ "stream": true }))).await;
    let status = response.status();
    let text = response.text().await.expect("a whole body");
    assert_eq!(status, 200, "{body} -> {text}");
    assert!(!text.contains("[DONE]"));
    let events: Vec<Event> = parse_events(&text);
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event.data["type"], event.name, "{event:?}");
        assert_eq!(event.data["sequence_number"], number, "{event:?}");
    }
    events.into_iter().map(|event| event.data).collect()
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap().strip_prefix("response.").unwrap()).collect()
}

/// The fields that OpenAI's description requires of a response, and those that its clients read besides.
const FIELDS: [&str; 23] = [
    "background",
    "created_at",
    "error",
    "id",
    "incomplete_details",
    "instructions",
    "max_output_tokens",
    "metadata",
    "model",
    "object",
    "output",
    "parallel_tool_calls",
    "previous_response_id",
    "reasoning",
    "status",
    "store",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_p",
    "truncation",
    "usage",
];

#[tokio::test(flavor = "multi_thread")]
async fn the_text_is_that_of_a_chat_completion() {
    let server = TestServer::start(CHAT_MODEL).await;
    let chat = chat(&server, json!([{ "role": "user", "content": "Hello" }])).await;
    for path in [PATH, "/responses"] {
        let response = server.ask(path, &hello(json!({ "store": true, "metadata": { "a": "b" }, "user": "u" }))).await;
        assert_eq!(keys(&response), FIELDS);
        assert_eq!(response["object"], "response");
        assert!(response["id"].as_str().unwrap().starts_with("resp_"));
        assert_eq!((&response["store"], &response["metadata"]), (&json!(false), &json!({ "a": "b" })));
        assert_eq!((&response["error"], &response["model"]), (&Value::Null, &chat["model"]));
        assert_eq!(chat["choices"][0]["finish_reason"], "length");
        assert_eq!(response["status"], "incomplete");
        assert_eq!(response["incomplete_details"], json!({ "reason": "max_output_tokens" }));
        let output = response["output"].as_array().unwrap();
        assert_eq!(output.len(), 1);
        assert_eq!(keys(&output[0]), ["content", "id", "role", "status", "type"]);
        let text = &chat["choices"][0]["message"]["content"];
        assert_eq!(
            output[0]["content"],
            json!([{ "type": "output_text", "text": text, "annotations": [], "logprobs": [] }])
        );
        let usage = &chat["usage"];
        assert_eq!(response["usage"]["input_tokens"], usage["prompt_tokens"]);
        assert_eq!(response["usage"]["output_tokens"], usage["completion_tokens"]);
        assert_eq!(response["usage"]["total_tokens"], usage["total_tokens"]);
        assert_eq!(response["usage"]["output_tokens_details"], json!({ "reasoning_tokens": 0 }));
        assert!(response["usage"]["input_tokens_details"]["cached_tokens"].is_u64());
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn items_are_the_messages_of_a_conversation() {
    let server = TestServer::start(CHAT_MODEL).await;
    let expected = chat(
        &server,
        json!([
            { "role": "system", "content": "Be brief." },
            { "role": "user", "content": "One two" },
            { "role": "assistant", "content": "Three" },
            { "role": "user", "content": "Four" },
        ]),
    )
    .await;
    let items = json!([
        { "type": "message", "role": "user", "content": [
            { "type": "input_text", "text": "One" }, { "type": "input_text", "text": " two" },
        ] },
        { "type": "reasoning", "id": "rs_1", "summary": [] },
        { "type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [
            { "type": "output_text", "text": "Three", "annotations": [] },
        ] },
        { "role": "user", "content": "Four" },
    ]);
    let response = server.ask(PATH, &hello(json!({ "instructions": "Be brief.", "input": items }))).await;
    assert_eq!(response["instructions"], "Be brief.");
    assert_eq!(response["usage"]["input_tokens"], expected["usage"]["prompt_tokens"]);
    assert_eq!(response["output"][0]["content"][0]["text"], expected["choices"][0]["message"]["content"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_text_come_in_order_and_add_up() {
    let server = TestServer::start(CHAT_MODEL).await;
    let whole = server.ask(PATH, &hello(json!({}))).await;
    let events = stream(&server, &hello(json!({}))).await;
    let mut order = kinds(&events);
    order.dedup();
    assert_eq!(
        order,
        [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "incomplete"
        ]
    );
    for event in &events[..2] {
        assert_eq!(keys(&event["response"]), FIELDS);
        assert_eq!((&event["response"]["status"], &event["response"]["output"]), (&json!("in_progress"), &json!([])));
        assert_eq!(event["response"]["usage"], Value::Null);
    }
    let of = |kind: &str| -> Vec<&Value> {
        events.iter().filter(|event| event["type"] == format!("response.{kind}")).collect()
    };
    let text = whole["output"][0]["content"][0]["text"].as_str().unwrap();
    let joined: String = of("output_text.delta").iter().map(|event| event["delta"].as_str().unwrap()).collect();
    assert_eq!(joined, text);
    for delta in of("output_text.delta") {
        assert_eq!(
            keys(delta),
            ["content_index", "delta", "item_id", "logprobs", "output_index", "sequence_number", "type"]
        );
        assert_ne!(delta["delta"], "");
    }
    assert_eq!(of("output_text.done")[0]["text"], text);
    assert_eq!(of("content_part.done")[0]["part"], whole["output"][0]["content"][0]);
    let (added, done) = (&of("output_item.added")[0]["item"], &of("output_item.done")[0]["item"]);
    assert_eq!((&added["status"], &added["content"]), (&json!("in_progress"), &json!([])));
    assert_eq!((&done["status"], &done["id"]), (&json!("incomplete"), &added["id"]));
    for event in &events[3..events.len() - 2] {
        assert_eq!((&event["item_id"], &event["output_index"]), (&added["id"], &json!(0)), "{event}");
    }
    let last = &events.last().unwrap()["response"];
    assert_eq!(last["id"], events[0]["response"]["id"]);
    assert_eq!(last["output"], json!([done]));
    assert_eq!(last["usage"]["output_tokens"], 24);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_binds_the_text() {
    let server = TestServer::start(CHAT_MODEL).await;
    let schema = json!({ "type": "object", "properties": { "a": { "enum": ["yes", "no"] } }, "required": ["a"], "additionalProperties": false });
    let format = json!({ "type": "json_schema", "name": "answer", "schema": schema, "strict": true });
    let body = hello(json!({ "text": { "format": format, "verbosity": "low" }, "max_output_tokens": 60 }));
    let response = server.ask(PATH, &body).await;
    assert_eq!((&response["status"], &response["incomplete_details"]), (&json!("completed"), &Value::Null));
    assert_eq!(response["text"]["format"], format);
    let text = response["output"][0]["content"][0]["text"].as_str().unwrap();
    let answer: Value = serde_json::from_str(text).unwrap();
    assert!(["yes", "no"].contains(&answer["a"].as_str().unwrap()), "{text}");
    let events = stream(&server, &body).await;
    assert_eq!(events.last().unwrap()["type"], "response.completed");
    assert_eq!(events.last().unwrap()["response"]["output"][0]["content"][0]["text"], text);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_items_and_their_results_come_back() {
    let server = TestServer::start(CHAT_MODEL).await;
    let body = hello(
        json!({ "tools": [weather()], "tool_choice": "required", "parallel_tool_calls": false, "max_output_tokens": 120 }),
    );
    let response = server.ask(PATH, &body).await;
    assert_eq!((&response["status"], &response["tools"]), (&json!("completed"), &json!([weather()])), "{response}");
    let call = &response["output"][0];
    assert_eq!(keys(call), ["arguments", "call_id", "id", "name", "status", "type"]);
    assert_eq!(
        (&call["type"], &call["name"], &call["status"]),
        (&json!("function_call"), &json!("w"), &json!("completed"))
    );
    let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
    assert_eq!(arguments, json!({ "city": "Oslo" }));

    let events = stream(&server, &body).await;
    let mut order = kinds(&events);
    order.dedup();
    assert_eq!(
        order,
        [
            "created",
            "in_progress",
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
            "completed"
        ]
    );
    let joined: String = events.iter().filter_map(|event| event["delta"].as_str()).collect();
    assert_eq!(joined, call["arguments"].as_str().unwrap());
    let added = &events[2]["item"];
    assert_eq!((&added["arguments"], &added["status"]), (&json!(""), &json!("in_progress")));
    assert_eq!(events[events.len() - 2]["item"]["call_id"], added["call_id"]);

    let input = json!([
        { "role": "user", "content": "Hello" },
        call,
        { "type": "function_call_output", "call_id": call["call_id"], "output": "Rain." },
    ]);
    let answer = server.ask(PATH, &hello(json!({ "input": input, "tools": [weather()], "tool_choice": "none" }))).await;
    assert_eq!(answer["output"][0]["type"], "message");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_says_why_and_where() {
    let server = TestServer::start(CHAT_MODEL).await;
    let unsupported = Some("unsupported_parameter");
    let cases: &[(Value, Option<&str>, Option<&str>)] = &[
        (json!({ "input": null }), None, Some("input")),
        (json!({ "input": [] }), None, Some("input")),
        (json!({ "input": 5 }), None, Some("input")),
        (json!({ "input": ["a"] }), None, Some("input[0]")),
        (json!({ "input": [{ "role": "user" }] }), None, Some("input[0].content")),
        (json!({ "input": [{ "role": "critic", "content": "a" }] }), None, Some("input[0].role")),
        (
            json!({ "input": [{ "role": "user", "content": [{ "type": "input_image", "image_url": "a" }] }] }),
            unsupported,
            Some("input[0].content[0].type"),
        ),
        (json!({ "input": [{ "type": "item_reference", "id": "a" }] }), unsupported, Some("input[0].type")),
        (json!({ "input": [{ "type": "web_search_call", "id": "a" }] }), unsupported, Some("input[0].type")),
        (
            json!({ "input": [{ "type": "function_call", "call_id": "a", "name": "f", "arguments": "{" }] }),
            None,
            Some("input[0].arguments"),
        ),
        (json!({ "instructions": 5 }), None, Some("instructions")),
        (json!({ "max_output_tokens": 0 }), None, Some("max_output_tokens")),
        (json!({ "max_output_tokens": "many" }), None, Some("max_output_tokens")),
        (json!({ "temperature": 3 }), None, Some("temperature")),
        (json!({ "top_p": 0 }), None, Some("top_p")),
        (json!({ "stream": "yes" }), None, Some("stream")),
        (json!({ "previous_response_id": "resp_1" }), unsupported, Some("previous_response_id")),
        (json!({ "conversation": "conv_1" }), unsupported, Some("conversation")),
        (json!({ "prompt": { "id": "pmpt_1" } }), unsupported, Some("prompt")),
        (json!({ "background": true }), unsupported, Some("background")),
        (json!({ "truncation": "auto" }), unsupported, Some("truncation")),
        (json!({ "top_logprobs": 3 }), unsupported, Some("top_logprobs")),
        (json!({ "include": ["message.output_text.logprobs"] }), unsupported, Some("include")),
        (json!({ "text": { "format": { "type": "xml" } } }), None, Some("text.format.type")),
        (json!({ "text": { "format": { "type": "json_schema", "name": "a" } } }), None, Some("text.format.schema")),
        (
            json!({ "text": { "format": { "type": "json_schema", "name": "a", "schema": 5 } } }),
            Some("invalid_json_schema"),
            Some("text.format.schema"),
        ),
        (json!({ "tools": [{ "type": "web_search" }] }), unsupported, Some("tools[0].type")),
        (json!({ "tools": [{ "name": "f" }] }), None, Some("tools[0].type")),
        (json!({ "model": "gpt-5" }), Some("model_not_found"), Some("model")),
        (json!({ "input": "Hello ".repeat(2000) }), Some("context_length_exceeded"), Some("input")),
    ];
    let mut sentences = String::new();
    for (more, code, param) in cases {
        let response = server.post(PATH, &hello(more.clone())).await;
        let status = response.status();
        let body: Value = response.json().await.unwrap();
        let error = &body["error"];
        assert_eq!(status, if *code == Some("model_not_found") { 404 } else { 400 }, "{more}: {body}");
        assert_eq!(error["type"], "invalid_request_error", "{more}: {body}");
        assert_eq!((&error["code"], &error["param"]), (&json!(code), &json!(param)), "{more}: {body}");
        sentences += &format!("{}\n", error["message"].as_str().unwrap());
    }
    insta::assert_snapshot!(sentences);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_stored() {
    let server = TestServer::start(CHAT_MODEL).await;
    let id = server.ask(PATH, &hello(json!({ "store": true }))).await["id"].as_str().unwrap().to_owned();
    for (method, below) in [("GET", ""), ("GET", "/input_items"), ("DELETE", ""), ("POST", "/cancel")] {
        let request = server.client.request(method.parse().unwrap(), format!("{}{PATH}/{id}{below}", server.url));
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 404, "{method} {below}");
        let body: Value = response.json().await.unwrap();
        let expected = format!("There is no response {id}: responses are not stored here.");
        assert_eq!(body["error"]["message"], expected, "{method} {below}");
    }
    server.stop().await;
}
