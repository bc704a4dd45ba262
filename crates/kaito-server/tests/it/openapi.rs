//! The description of the API: it has every route, and says of bodies what is true.

use std::path::PathBuf;

use jsonschema::Validator;
use kaito_engine::Pooling;
use kaito_server::ServerOptions;
use kaito_testing::server::{CHAT_MODEL, TestServer, keys, load, options};
use reqwest::Method;
use serde_json::{Value, json};

use crate::objects::with;

/// What validates the body of a request to `path` (`post`), or of an answer with `status`.
struct Description(Value);

impl Description {
    async fn of(server: &TestServer) -> Self {
        let answer = server.get("/openapi.json").await;
        assert_eq!(answer.headers()["content-type"], "application/json");
        Self(answer.json().await.unwrap())
    }

    fn validator(&self, schema: &Value) -> Validator {
        let mut whole = schema.clone();
        whole["components"] = self.0["components"].clone();
        jsonschema::draft202012::new(&whole).unwrap()
    }

    fn operation(&self, path: &str, verb: &str) -> &Value {
        let operation = &self.0["paths"][path][verb];
        assert!(operation.is_object(), "{verb} {path}");
        operation
    }

    fn request(&self, path: &str) -> Validator {
        self.validator(&self.operation(path, "post")["requestBody"]["content"]["application/json"]["schema"])
    }

    fn answer(&self, path: &str, verb: &str, status: &str) -> Validator {
        let response = &self.operation(path, verb)["responses"][status];
        self.validator(&response["content"]["application/json"]["schema"])
    }
}

fn check(validator: &Validator, value: &Value, what: &str) {
    let errors: Vec<_> =
        validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{what}\n{value}\n{errors:#?}");
}

/// Each request of docs/api.md, with its path, and the answer below it.
fn examples() -> Vec<(String, Value, Option<Value>)> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = std::fs::read_to_string(root.join("docs/api.md")).unwrap();
    let mut found: Vec<(String, Value, Option<Value>)> = Vec::new();
    let mut block = None;
    for line in text.lines() {
        if let Some(kind) = line.strip_prefix("```") {
            block = (!kind.is_empty()).then(|| kind.to_owned());
        } else if let (Some("sh"), Some((_, rest))) = (block.as_deref(), line.split_once("http://localhost:5000")) {
            let path = rest.split([' ', '\'']).next().unwrap().to_owned();
            if let Some((_, body)) = rest.split_once("-d '") {
                let body = body.rsplit_once('\'').unwrap().0.replace("'\\''", "'");
                found.push((path, serde_json::from_str(&body).unwrap(), None));
            }
        } else if block.as_deref() == Some("json") && line.starts_with('{') {
            let (.., answer) = found.last_mut().unwrap();
            *answer = Some(serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_of_the_document_match_their_schemas() {
    let server = TestServer::start(CHAT_MODEL).await;
    let description = Description::of(&server).await;
    let examples = examples();
    assert!(examples.len() > 6, "{}", examples.len());
    for (path, request, answer) in examples {
        check(&description.request(&path), &request, &path);
        if let Some(answer) = answer {
            let status = if answer.get("detail").or(answer.get("error")).is_some_and(|field| !field.is_null()) {
                "4XX"
            } else {
                "200"
            };
            check(&description.answer(&path, "post", status), &answer, &path);
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_match_their_schemas() {
    let embedding = ServerOptions { embeddings: Some(Pooling::Mean), ..options() };
    let server = TestServer::with(load(CHAT_MODEL, &Default::default()), embedding).await;
    let description = Description::of(&server).await;
    for path in ["/", "/healthz", "/version", "/openapi.json", "/api/version", "/api/tags", "/api/ps"] {
        let answer = server.get(path).await;
        assert_eq!(answer.status(), 200, "{path}");
        check(&description.answer(path, "get", "200"), &answer.json().await.unwrap(), path);
    }
    for path in ["/health", "/ping"] {
        let answer = server.get(path).await;
        assert_eq!((answer.status().as_u16(), answer.text().await.unwrap().as_str()), (200, ""), "{path}");
    }
    assert_eq!(
        server.get("/version").await.json::<Value>().await.unwrap(),
        json!({ "version": env!("CARGO_PKG_VERSION") })
    );
    for path in ["/v1/models", "/models"] {
        let answer: Value = server.get(path).await.json().await.unwrap();
        check(&description.answer(path, "get", "200"), &answer, path);
        let model = server.get(&format!("{path}/{}", answer["data"][0]["id"].as_str().unwrap())).await;
        let one = format!("{path}/{{id}}");
        check(&description.answer(&one, "get", "200"), &model.json().await.unwrap(), &one);
        let none = server.get(&format!("{path}/no-such-model")).await;
        assert_eq!(none.status(), 404);
        check(&description.answer(&one, "get", "4XX"), &none.json().await.unwrap(), &one);
    }
    let llama = json!({ "temperature": 0, "max_gen_len": 3 });
    let chat = json!([{ "role": "user", "content": "Hello" }]);
    for (path, body, status) in [
        ("/chat", json!({ "prompt": "Hello", "max_new_tokens": 3, "num_return_sequences": 2 }), 200),
        (
            "/chat",
            json!({ "messages": [{ "role": "user", "content": "Hello" }], "generate_kwargs": { "max_new_tokens": 3 } }),
            200,
        ),
        (
            "/chat",
            json!({ "input_data": { "input_string": [[{ "role": "user", "content": "Hi" }]] }, "parameters": llama }),
            200,
        ),
        ("/generate", json!({ "prompts": ["a", "b"], "parameters": llama }), 200),
        ("/chat", json!({ "prompt": "Hello", "temperature": -1 }), 400),
        ("/chat", json!([]), 422),
        ("/generate", json!({}), 422),
        (
            "/v1/chat/completions",
            json!({ "messages": chat, "max_tokens": 3, "n": 2, "seed": 1, "logprobs": true, "top_logprobs": 2 }),
            200,
        ),
        ("/v1/chat/completions", json!({}), 400),
        ("/chat/completions", json!({ "messages": chat, "model": "no-such-model" }), 404),
        ("/v1/completions", json!({ "prompt": ["a", "b"], "max_tokens": 3, "logprobs": 1, "echo": true }), 200),
        ("/completions", json!({ "prompt": 5 }), 400),
        ("/v1/responses", json!({ "input": "Hello", "max_output_tokens": 3 }), 200),
        ("/responses", json!({ "input": [] }), 400),
        ("/v1/embeddings", json!({ "input": ["Hello", "World"] }), 200),
        ("/embeddings", json!({ "input": [5, 6], "encoding_format": "base64" }), 200),
        ("/v1/embeddings", json!({ "input": [] }), 400),
        ("/v1/messages", json!({ "messages": chat, "max_tokens": 3 }), 200),
        ("/v1/messages", json!({ "messages": chat }), 400),
        ("/v1/messages/count_tokens", json!({ "messages": chat }), 200),
        ("/tokenize", json!({ "prompt": "Hello", "return_token_strs": true }), 200),
        ("/tokenize", json!({ "content": "Hello", "with_pieces": true }), 200),
        ("/tokenize", json!({}), 400),
        ("/detokenize", json!({ "tokens": [300, 301] }), 200),
        ("/apply-template", json!({ "messages": chat }), 200),
        ("/", json!({ "inputs": "Hello", "parameters": { "max_new_tokens": 3 } }), 200),
        ("/", json!({}), 422),
        ("/api/chat", json!({ "messages": chat, "stream": false, "options": { "num_predict": 3 } }), 200),
        ("/api/chat", json!({ "messages": 5 }), 400),
        ("/api/generate", json!({ "prompt": "Hello", "stream": false, "options": { "num_predict": 3 } }), 200),
        ("/api/generate", json!({ "prompt": 5 }), 400),
        ("/api/show", json!({ "model": "tiny" }), 200),
        ("/api/show", json!({ "model": "no-such-model" }), 404),
        ("/api/embed", json!({ "input": "Hello" }), 200),
        ("/api/embed", json!({ "input": 5 }), 400),
    ] {
        let answer = server.post(path, &body).await;
        assert_eq!(answer.status(), status, "{body}");
        if status == 200 {
            check(&description.request(path), &body, path);
        }
        let class = if status == 200 { "200" } else { "4XX" };
        check(&description.answer(path, "post", class), &answer.json().await.unwrap(), path);
    }
    server.stop().await;
}

/// The fields of the server-sent events of a body, all of which are strings.
fn events(body: &str) -> Vec<Value> {
    let event = |block: &str| {
        let field = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_owned(), json!(value)));
        Value::Object(block.lines().filter_map(field).collect())
    };
    body.split("\n\n").filter(|block| !block.is_empty()).map(event).collect()
}

/// A schema of which `contentSchema`, of JSON within a string, is asked too: the event with its data as it is, or as what it holds.
fn with_content(mut schema: Value, event: &Value) -> (Value, Value) {
    let mut event = event.clone();
    let data = event["data"].as_str().and_then(|data| serde_json::from_str::<Value>(data).ok());
    if let Some(data) = data.filter(Value::is_object) {
        event["data"] = data;
        for kind in schema["anyOf"].as_array_mut().unwrap() {
            let content = kind["properties"]["data"]["contentSchema"].take();
            kind["properties"]["data"] = if content.is_null() { json!(false) } else { content };
        }
    }
    (schema, event)
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_match_their_schemas() {
    let server = TestServer::start(CHAT_MODEL).await;
    let description = Description::of(&server).await;
    let chat = json!([{ "role": "user", "content": "Hello" }]);
    let tool = json!({ "name": "f", "description": "d", "parameters": { "type": "object", "properties": {} } });
    let usage = json!({ "include_usage": true });
    for (path, body) in [
        (
            "/v1/chat/completions",
            json!({ "messages": chat, "max_tokens": 4, "logprobs": true, "stream_options": usage }),
        ),
        (
            "/v1/chat/completions",
            json!({
                "messages": chat, "max_tokens": 40, "temperature": 0, "tool_choice": "required",
                "tools": [{ "type": "function", "function": tool }],
            }),
        ),
        ("/v1/completions", json!({ "prompt": ["a", "b"], "max_tokens": 4, "logprobs": 2, "stream_options": usage })),
        ("/v1/responses", json!({ "input": "Hello", "max_output_tokens": 4 })),
        ("/v1/messages", json!({ "messages": chat, "max_tokens": 4 })),
        ("/chat", json!({ "prompt": "Hello", "max_new_tokens": 4 })),
        ("/generate", json!({ "prompts": ["a"], "parameters": { "max_gen_len": 4 } })),
        ("/generate", json!({ "inputs": "a", "parameters": { "max_new_tokens": 4 } })),
        ("/generate_stream", json!({ "inputs": "a", "parameters": { "max_new_tokens": 4 } })),
        ("/", json!({ "inputs": "a", "parameters": { "max_new_tokens": 4 } })),
        ("/api/chat", json!({ "messages": chat, "options": { "num_predict": 4 } })),
        ("/api/generate", json!({ "prompt": "a", "options": { "num_predict": 4 } })),
    ] {
        let body = with(body, json!({ "stream": true }));
        let answer = server.post(path, &body).await;
        assert_eq!(answer.status(), 200, "{path} {body}");
        let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
        let text = answer.text().await.unwrap();
        let schema = &description.operation(path, "post")["responses"]["200"]["content"][&kind]["itemSchema"];
        if kind == "application/x-ndjson" {
            let validator = description.validator(schema);
            text.lines().for_each(|line| check(&validator, &serde_json::from_str(line).unwrap(), path));
            continue;
        }
        let events = events(&text);
        assert!(events.len() > 2, "{text}");
        for event in events {
            let (schema, event) = with_content(schema.clone(), &event);
            check(&description.validator(&schema), &event, path);
        }
        // And not just anything does.
        let (schema, event) = with_content(schema.clone(), &json!({ "data": r#"{"object": 5}"# }));
        assert!(!description.validator(&schema).is_valid(&event), "{path}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_that_is_described_is_there_and_wants_the_key_that_it_says() {
    let api_keys = keys("secret");
    let server = TestServer::with(load(CHAT_MODEL, &Default::default()), ServerOptions { api_keys, ..options() }).await;
    let description = Description::of(&server).await;
    assert_eq!(description.0["openapi"], "3.2.0");
    let mut open = Vec::new();
    for (path, verbs) in description.0["paths"].as_object().unwrap() {
        for (verb, operation) in verbs.as_object().unwrap() {
            let method = if verb == "get" { Method::GET } else { Method::POST };
            let url = format!("{}{}", server.url, path.replace("{id}", "none"));
            let mut request = server.client.request(method.clone(), &url);
            if method == Method::POST {
                request = request.json(&json!({}));
            }
            let answer = request.send().await.unwrap();
            let needs_key = !operation["security"].as_array().unwrap().is_empty();
            assert_eq!(answer.status() == 401, needs_key, "{verb} {path}: {}", answer.status());
            if needs_key {
                let error: Value = answer.json().await.unwrap();
                let class = &operation["responses"]["4XX"]["content"]["application/json"]["schema"];
                check(&description.validator(class), &error, path);
            } else {
                assert_eq!(answer.status(), 200, "{path}");
                open.push(path.as_str());
            }
        }
    }
    open.sort_unstable();
    let expected = ["/", "/docs", "/health", "/healthz", "/metrics", "/openapi.json", "/ping", "/version"];
    assert_eq!(open, expected);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_it_without_a_network() {
    let server = TestServer::start(CHAT_MODEL).await;
    let answer = server.get("/docs").await;
    let policy = answer.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(
        policy.starts_with("default-src 'none'; script-src 'nonce-")
            && policy.contains("connect-src 'self'")
            && policy.contains("require-trusted-types-for 'script'; trusted-types 'none'"),
        "{policy}"
    );
    let text = answer.text().await.unwrap();
    let nonce = policy.split("'nonce-").nth(1).unwrap().split('\'').next().unwrap();
    assert_eq!(text.matches(&format!("nonce=\"{nonce}\"")).count(), 2);
    assert!(text.contains("openapi.json") && !text.contains("{{"));
    server.stop().await;
}
