//! Ollama's API, as its clients send and read it.

use kaito_server::ServerOptions;
use kaito_testing::server::{CHAT_MODEL, TestServer, keys, load, options};
use serde_json::{Value, json};

use crate::objects::with;

const CHAT: &str = "/api/chat";
const GENERATE: &str = "/api/generate";

fn greedy(limit: i64) -> Value {
    json!({ "temperature": 0, "num_predict": limit })
}

/// A text of the user, answered with the likeliest tokens.
fn hello(more: Value) -> Value {
    let messages = json!([{ "role": "user", "content": "Hello" }]);
    with(json!({ "model": "tiny", "messages": messages, "options": greedy(24) }), more)
}

/// The whole answer.
async fn whole(server: &TestServer, path: &str, body: &Value) -> Value {
    server.ask(path, &with(body.clone(), json!({ "stream": false }))).await
}

/// The lines of a stream, of which the last alone is done.
async fn stream(server: &TestServer, path: &str, body: &Value) -> Vec<Value> {
    let response = server.post(path, body).await;
    let (status, kind) = (response.status(), response.headers()["content-type"].clone());
    let text = response.text().await.expect("a whole body");
    assert_eq!((status.as_u16(), kind.to_str().unwrap()), (200, "application/x-ndjson"), "{body} -> {text}");
    assert!(text.ends_with('\n'));
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let (last, others) = lines.split_last().expect("a line");
    assert!(last["done"] == true && others.iter().all(|line| line["done"] == false), "{text}");
    assert!(lines.iter().all(|line| line["model"] == last["model"] && line["created_at"].is_string()));
    lines
}

/// The answer of Kaito's own route, with the likeliest tokens.
async fn kaito(server: &TestServer, body: Value) -> String {
    let body = with(body, json!({ "do_sample": false, "max_new_tokens": 24, "return_full_text": false }));
    server.ask("/chat", &body).await["Result"].as_str().expect("a text").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_text_is_that_of_chat_and_of_the_openai_api() {
    let server = TestServer::start(CHAT_MODEL).await;
    let messages = json!([{ "role": "user", "content": "Hello" }]);
    let expected = kaito(&server, json!({ "messages": messages })).await;
    let body = json!({ "messages": messages, "temperature": 0, "max_tokens": 24 });
    let openai = server.ask("/v1/chat/completions", &body).await;
    let answer = whole(&server, CHAT, &hello(json!({ "keep_alive": "5m" }))).await;
    assert_eq!(answer["message"], json!({ "role": "assistant", "content": expected }));
    assert_eq!((&answer["model"], &answer["done"]), (&json!("tiny"), &json!(true)));
    let reason = openai["choices"][0]["finish_reason"].as_str().unwrap();
    assert_eq!(answer["done_reason"], reason);
    assert_eq!(answer["prompt_eval_count"], openai["usage"]["prompt_tokens"]);
    assert_eq!(answer["eval_count"], openai["usage"]["completion_tokens"]);
    for name in ["total_duration", "load_duration", "prompt_eval_duration", "eval_duration"] {
        assert!(answer[name].as_u64().is_some_and(|nanoseconds| nanoseconds > 0), "{name}: {answer}");
    }
    let total = answer["total_duration"].as_u64().unwrap();
    assert!(answer["eval_duration"].as_u64().unwrap() <= total);
    let cut = whole(&server, CHAT, &hello(json!({ "options": greedy(2) }))).await;
    assert_eq!((&cut["done_reason"], &cut["eval_count"]), (&json!("length"), &json!(2)));

    let generated = whole(&server, GENERATE, &json!({ "prompt": "Hello", "options": greedy(24) })).await;
    assert_eq!(generated["response"], expected);
    let raw = whole(&server, GENERATE, &json!({ "prompt": "Hello", "raw": true, "options": greedy(24) })).await;
    assert_eq!(raw["response"], kaito(&server, json!({ "prompt": "Hello" })).await);
    assert_eq!(raw["response"], {
        let body = json!({ "prompt": "Hello", "temperature": 0, "max_tokens": 24 });
        server.ask("/v1/completions", &body).await["choices"][0]["text"].clone()
    });
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_add_up_to_the_whole() {
    let server = TestServer::start(CHAT_MODEL).await;
    for (path, body, at) in [
        (CHAT, hello(json!({})), "/message/content"),
        (CHAT, hello(json!({ "options": greedy(3), "format": "json" })), "/message/content"),
        (GENERATE, json!({ "prompt": "Hello", "options": greedy(9) }), "/response"),
        (GENERATE, json!({ "prompt": "Hello", "raw": true, "options": greedy(9) }), "/response"),
        (GENERATE, json!({ "prompt": "Hello", "system": "Be brief.", "options": greedy(9) }), "/response"),
    ] {
        let whole = whole(&server, path, &body).await;
        let lines = stream(&server, path, &body).await;
        let joined: String = lines.iter().map(|line| line.pointer(at).unwrap().as_str().unwrap()).collect();
        assert_eq!(joined, whole.pointer(at).unwrap().as_str().unwrap(), "{body}");
        let last = lines.last().unwrap();
        assert_eq!(last.pointer(at), Some(&json!("")));
        for name in ["done_reason", "prompt_eval_count", "eval_count"] {
            assert_eq!(last[name], whole[name], "{name} of {body}");
        }
        assert!(last["total_duration"].as_u64().unwrap() > 0);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn options_are_honoured() {
    let server = TestServer::start(CHAT_MODEL).await;
    let text = whole(&server, CHAT, &hello(json!({}))).await["message"]["content"].as_str().unwrap().to_owned();
    let stop: String = text.chars().skip(4).take(3).collect();
    let options = with(greedy(24), json!({ "stop": [stop], "num_ctx": 64, "mirostat": 1 }));
    let answer = whole(&server, CHAT, &hello(json!({ "options": options }))).await;
    assert_eq!(answer["message"]["content"], text[..text.find(&stop).unwrap()]);
    assert_eq!(answer["done_reason"], "stop");
    // A seed decides the text, and it is the text of the same request in the OpenAI API.
    let sampled = json!({
        "num_predict": 24, "seed": 7, "temperature": 1.5, "top_k": 50, "top_p": 0.9, "min_p": 0.01, "repeat_penalty": 1.2,
        "presence_penalty": 0.5, "frequency_penalty": 0.25,
    });
    let answer = whole(&server, CHAT, &hello(json!({ "options": sampled }))).await;
    let openai = json!({
        "messages": [{ "role": "user", "content": "Hello" }], "max_tokens": 24, "seed": 7, "temperature": 1.5, "top_k": 50,
        "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.25,
    });
    let openai = server.ask("/v1/chat/completions", &openai).await;
    assert_eq!(answer["message"]["content"], openai["choices"][0]["message"]["content"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_format_is_followed() {
    let server = TestServer::start(CHAT_MODEL).await;
    let format = json!({ "type": "object", "properties": { "city": { "enum": ["Oslo"] } }, "required": ["city"], "additionalProperties": false });
    let more = json!({ "format": format, "options": greedy(60) });
    let answer = whole(&server, CHAT, &hello(more.clone())).await;
    let text = answer["message"]["content"].as_str().unwrap();
    assert_eq!(serde_json::from_str::<Value>(text).expect(text), json!({ "city": "Oslo" }));
    for raw in [false, true] {
        let body = with(json!({ "prompt": "Hello", "raw": raw }), more.clone());
        let answer = whole(&server, GENERATE, &body).await;
        let text = answer["response"].as_str().unwrap();
        assert_eq!(serde_json::from_str::<Value>(text).expect(text), json!({ "city": "Oslo" }));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_come_whole_and_their_results_go_back() {
    let server = TestServer::start(CHAT_MODEL).await;
    let schema = json!({ "type": "object", "properties": { "city": { "enum": ["Oslo"] } }, "required": ["city"] });
    let tool =
        json!({ "type": "function", "function": { "name": "w", "description": "Weather.", "parameters": schema } });
    let messages = json!([
        { "role": "user", "content": "Hello" },
        { "role": "assistant", "content": "", "tool_calls": [{ "function": { "name": "w", "arguments": { "city": "Oslo" } } }] },
        { "role": "tool", "content": "5", "tool_name": "w" },
    ]);
    let history = json!([
        { "role": "user", "content": "Hello" },
        {
            "role": "assistant", "content": "",
            "tool_calls": [{ "type": "function", "function": { "name": "w", "arguments": "{\"city\":\"Oslo\"}" } }],
        },
        { "role": "tool", "content": "5", "name": "w" },
    ]);
    for (ours, theirs) in
        [(messages, history), (hello(json!({}))["messages"].clone(), hello(json!({}))["messages"].clone())]
    {
        let body = hello(json!({ "messages": ours, "tools": [tool], "options": greedy(120) }));
        let openai = json!({ "messages": theirs, "tools": [tool], "temperature": 0, "max_tokens": 120 });
        let expected = server.ask("/v1/chat/completions", &openai).await;
        let message = &expected["choices"][0]["message"];
        let answer = whole(&server, CHAT, &body).await;
        assert_eq!(answer["prompt_eval_count"], expected["usage"]["prompt_tokens"]);
        assert_eq!(answer["message"]["content"], message["content"].as_str().unwrap_or_default());
        let names = |message: &Value| {
            let calls = message["tool_calls"].as_array().cloned().unwrap_or_default();
            calls.iter().map(|call| call["function"]["name"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(&answer["message"]), names(message));
        let lines = stream(&server, CHAT, &body).await;
        let calls: Vec<Value> = lines
            .iter()
            .flat_map(|line| line["message"]["tool_calls"].as_array().cloned().unwrap_or_default())
            .collect();
        assert!(calls.iter().all(|call| call["function"]["arguments"].is_object()));
        assert_eq!(calls, answer["message"]["tool_calls"].as_array().cloned().unwrap_or_default());
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_model_is_listed_and_shown() {
    let server = TestServer::start(CHAT_MODEL).await;
    let info = server.model.info();
    for path in ["/api/tags", "/api/ps"] {
        let listed: Value = server.get(path).await.json().await.unwrap();
        let [model] = listed["models"].as_array().unwrap().as_slice() else { panic!("{listed}") };
        assert_eq!((&model["name"], &model["model"]), (&json!("tiny:latest"), &json!("tiny:latest")));
        assert_eq!(model["size"], info.weights_bytes);
        assert_eq!(model["details"]["family"], info.family);
        assert_eq!(model["digest"].as_str().unwrap().len(), 64);
    }
    for name in [json!({ "model": "tiny" }), json!({ "name": "tiny:latest" }), json!({})] {
        let shown = server.ask("/api/show", &name).await;
        assert_eq!(shown["capabilities"], json!(["completion", "tools"]));
        assert_eq!(shown["model_info"][format!("{}.context_length", info.family)], info.max_seq_len);
        assert_eq!(shown["model_info"]["general.architecture"], info.family);
        assert!(!shown["template"].as_str().unwrap().is_empty());
    }
    let version: Value = server.get("/api/version").await.json().await.unwrap();
    assert_eq!(version, json!({ "version": env!("CARGO_PKG_VERSION") }));
    // No question asks whether the model is loaded.
    for (path, body) in
        [(CHAT, json!({ "model": "tiny:latest" })), (GENERATE, json!({ "model": "tiny", "keep_alive": 0 }))]
    {
        let answer = server.ask(path, &body).await;
        assert_eq!((&answer["done"], &answer["done_reason"]), (&json!(true), &json!("load")));
    }
    server.stop().await;
}

/// LiteLLM sends no Content-Type. Nor does a web page that wants to send without asking, but a browser names its origin.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_no_web_page_may_leave_the_content_type_out() {
    let server = TestServer::start(CHAT_MODEL).await;
    let body = hello(json!({ "options": greedy(2) })).to_string();
    for (path, header, status) in [
        (CHAT, None, 200),
        (CHAT, Some(("origin", "http://evil.example")), 415),
        (CHAT, Some(("origin", "null")), 415),
        (CHAT, Some(("sec-fetch-site", "cross-site")), 415),
        (CHAT, Some(("content-type", "text/plain")), 415),
        (CHAT, Some(("content-type", "application/x-www-form-urlencoded")), 415),
        ("/v1/chat/completions", None, 415),
    ] {
        let mut request = server.client.post(format!("{}{path}", server.url)).body(body.clone());
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        assert_eq!(request.send().await.unwrap().status().as_u16(), status, "{path} {header:?}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_refused() {
    let server = TestServer::start(CHAT_MODEL).await;
    let generate = |more: Value| (GENERATE, with(json!({ "prompt": "Hello" }), more));
    let chat = |more: Value| (CHAT, hello(more));
    for ((path, body), status, start) in [
        (chat(json!({ "messages": 5 })), 400, "`messages` is 5: it must be a list"),
        (chat(json!({ "messages": [5] })), 400, "`messages[0]` is 5: it must be an object"),
        (chat(json!({ "messages": [{ "content": "a" }] })), 400, "`messages[0].role` is missing"),
        (
            chat(json!({ "messages": [{ "role": "user", "content": "a", "images": ["aGk="] }] })),
            400,
            "`messages[0].images` is not supported",
        ),
        (
            chat(
                json!({ "messages": [{ "role": "assistant", "tool_calls": [{ "function": { "name": "f", "arguments": 5 } }] }] }),
            ),
            400,
            "`messages[0].tool_calls[0].function.arguments` is 5: it must be an object",
        ),
        (chat(json!({ "tools": [5] })), 400, "`tools[0]` is 5"),
        (chat(json!({ "tools": [{ "function": {} }] })), 400, "`tools[0].function.name` is missing"),
        (chat(json!({ "stream": "yes" })), 400, "`stream` is \"yes\": it must be true or false"),
        (chat(json!({ "format": "xml" })), 400, "`format` is \"xml\": it must be \"json\" or a JSON schema"),
        (chat(json!({ "format": 5 })), 400, "`format` is 5: it must be \"json\" or a JSON schema"),
        (chat(json!({ "format": { "type": "no-type" } })), 400, ""),
        (chat(json!({ "options": 5 })), 400, "`options` is 5: it must be an object"),
        (chat(json!({ "options": { "temperature": -1 } })), 400, "`options.temperature` is -1"),
        (chat(json!({ "options": { "num_predict": "many" } })), 400, "`options.num_predict` is \"many\""),
        (chat(json!({ "options": { "repeat_penalty": 0 } })), 400, "`options.repeat_penalty` is 0"),
        (chat(json!({ "options": { "stop": [""] } })), 400, "`options.stop` holds an empty string"),
        (chat(json!({ "think": true })), 400, "`think` is not supported"),
        (chat(json!({ "model": "no-such-model" })), 404, "The model `no-such-model` does not exist"),
        (generate(json!({ "prompt": 5 })), 400, "`prompt` is 5: it must be a string"),
        (generate(json!({ "images": ["aGk="] })), 400, "`images` is not supported"),
        (generate(json!({ "suffix": "a" })), 400, "`suffix` is not supported"),
        (generate(json!({ "template": "{{ .Prompt }}" })), 400, "`template` is not supported"),
        (generate(json!({ "context": [1, 2] })), 400, "`context` is not supported"),
        (generate(json!({ "raw": true, "system": "a" })), 400, "`system` can't stand beside `raw`"),
        (generate(json!({ "prompt": "a ".repeat(5000) })), 400, ""),
        (("/api/embed", json!({ "model": "tiny", "input": "a" })), 400, "This server gives no embeddings"),
        (("/api/show", json!({ "model": "no-such-model" })), 404, "The model `no-such-model` does not exist"),
        (("/api/pull", json!({})), 404, "There is no route /api/pull; there are /api/version, /api/tags, /api/ps, "),
        (("/api/tags", json!({})), 405, "/api/tags takes GET"),
    ] {
        let response = server.post(path, &body).await;
        let found = response.status().as_u16();
        let answer: Value = response.json().await.unwrap();
        let error = answer["error"].as_str().unwrap_or_else(|| panic!("{path} {body}: {answer}"));
        assert_eq!((found, answer.as_object().unwrap().len()), (status, 1), "{path} {body}: {error}");
        assert!(error.starts_with(start) && error.ends_with('.'), "{path} {body}: {error}");
    }
    server.stop().await;
    let closed = ServerOptions { api_keys: keys("secret"), ..options() };
    let server = TestServer::with(load(CHAT_MODEL, &Default::default()), closed).await;
    let answer = server.get("/api/tags").await;
    assert_eq!(answer.status(), 401);
    assert!(answer.json::<Value>().await.unwrap()["error"].is_string());
    server.stop().await;
}
