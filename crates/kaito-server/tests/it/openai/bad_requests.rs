//! Requests that cannot be served: each has its status, type, code, parameter and sentence, and the server goes on serving.
//!
//! What programs read stands here; the sentences stand in `snapshots/`, to be read as a client reads them.

use kaito_engine::LoadOptions;
use kaito_server::ServerOptions;
use kaito_testing::server::{CHAT_MODEL, TestServer, load, options};
use reqwest::Method;
use serde_json::{Value, json};

use super::{CHAT, COMPLETIONS, hello, text, with};

const INVALID: &str = "invalid_request_error";
const BODY_LIMIT: usize = 64 << 10;

/// Bodies that are no request at all, for any route that takes one: always 400, and no field is to blame.
const MALFORMED: &[&str] = &[
    "",
    "hello",
    "[]",
    "null",
    "\"a\"",
    r#"{"messages":"#,
    r#"{"messages":[],}"#,
    r#"{"messages":[],"messages":[]}"#,
    r#"{"temperature":NaN}"#,
    r#"{"temperature":1e999}"#,
    "{\"a\":\"\u{1}\"}",
];

/// Fields beside a message, and the code and the field that the refusal names.
fn chat_fields() -> Vec<(Value, Option<&'static str>, Option<&'static str>)> {
    let unsupported = Some("unsupported_parameter");
    let schema = Some("invalid_json_schema");
    let message = |message: Value| json!({ "messages": [message] });
    vec![
        // Messages.
        (json!({ "messages": null }), None, Some("messages")),
        (json!({ "messages": [] }), None, Some("messages")),
        (json!({ "messages": "Hello" }), None, Some("messages")),
        (json!({ "messages": {} }), None, Some("messages")),
        (message(json!("Hello")), None, Some("messages[0]")),
        (message(json!({ "content": "a" })), None, Some("messages[0].role")),
        (message(json!({ "role": 5, "content": "a" })), None, Some("messages[0].role")),
        (message(json!({ "role": "user" })), None, Some("messages[0].content")),
        (message(json!({ "role": "user", "content": null })), None, Some("messages[0].content")),
        (message(json!({ "role": "user", "content": 5 })), None, Some("messages[0].content")),
        (message(json!({ "role": "user", "content": [5] })), None, Some("messages[0].content[0]")),
        (message(json!({ "role": "user", "content": [{ "text": "a" }] })), None, Some("messages[0].content[0].type")),
        (
            message(json!({ "role": "user", "content": [{ "type": "text" }] })),
            None,
            Some("messages[0].content[0].text"),
        ),
        (
            message(json!({ "role": "user", "content": [{ "type": "image_url", "image_url": { "url": "a" } }] })),
            unsupported,
            Some("messages[0].content[0].type"),
        ),
        (
            message(json!({ "role": "user", "content": [{ "type": "text", "text": "a" }, { "type": "input_audio" }] })),
            unsupported,
            Some("messages[0].content[1].type"),
        ),
        (
            message(json!({ "role": "user", "content": [{ "type": "file", "file": {} }] })),
            unsupported,
            Some("messages[0].content[0].type"),
        ),
        (message(json!({ "role": "assistant", "content": null })), None, Some("messages[0].content")),
        (
            message(json!({ "role": "assistant", "content": "a", "function_call": { "name": "f" } })),
            unsupported,
            Some("messages[0].function_call"),
        ),
        (message(json!({ "role": "assistant", "tool_calls": "f" })), None, Some("messages[0].tool_calls")),
        (message(json!({ "role": "assistant", "tool_calls": [5] })), None, Some("messages[0].tool_calls[0]")),
        (
            message(json!({ "role": "assistant", "tool_calls": [{ "id": "a", "type": "function" }] })),
            None,
            Some("messages[0].tool_calls[0].function"),
        ),
        (
            message(json!({ "role": "assistant", "tool_calls": [{ "function": { "name": "f", "arguments": {} } }] })),
            None,
            Some("messages[0].tool_calls[0].function.arguments"),
        ),
        (message(json!({ "role": "tool", "content": "a", "tool_call_id": 5 })), None, Some("messages[0].tool_call_id")),
        // How the conversation is written down.
        (json!({ "add_generation_prompt": "yes" }), None, Some("add_generation_prompt")),
        (
            json!({ "add_generation_prompt": true, "continue_final_message": true }),
            None,
            Some("continue_final_message"),
        ),
        (json!({ "chat_template": "{{ messages }}" }), unsupported, Some("chat_template")),
        (json!({ "chat_template": 5 }), None, Some("chat_template")),
        (json!({ "chat_template_kwargs": [] }), None, Some("chat_template_kwargs")),
        (json!({ "chat_template_kwargs": { "messages": [] } }), None, Some("chat_template_kwargs.messages")),
        (json!({ "documents": ["a"] }), None, Some("documents[0]")),
        (json!({ "model": 5 }), None, Some("model")),
        // Parameters.
        (json!({ "temperature": "hot" }), None, Some("temperature")),
        (json!({ "temperature": -0.1 }), None, Some("temperature")),
        (json!({ "temperature": 2.1 }), None, Some("temperature")),
        (json!({ "top_p": 0 }), None, Some("top_p")),
        (json!({ "top_p": 1.1 }), None, Some("top_p")),
        (json!({ "top_k": -2 }), None, Some("top_k")),
        (json!({ "top_k": 1.5 }), None, Some("top_k")),
        (json!({ "min_p": -0.1 }), None, Some("min_p")),
        (json!({ "min_p": 2 }), None, Some("min_p")),
        (json!({ "repetition_penalty": 0 }), None, Some("repetition_penalty")),
        (json!({ "presence_penalty": 2.5 }), None, Some("presence_penalty")),
        (json!({ "frequency_penalty": -3 }), None, Some("frequency_penalty")),
        (json!({ "frequency_penalty": true }), None, Some("frequency_penalty")),
        (json!({ "max_tokens": 0 }), None, Some("max_tokens")),
        (json!({ "max_tokens": -1 }), None, Some("max_tokens")),
        (json!({ "max_tokens": "ten" }), None, Some("max_tokens")),
        (json!({ "max_completion_tokens": 0 }), None, Some("max_completion_tokens")),
        (json!({ "max_completion_tokens": 1.5 }), None, Some("max_completion_tokens")),
        (json!({ "n": 0 }), None, Some("n")),
        (json!({ "n": 129 }), None, Some("n")),
        (json!({ "n": 33 }), None, Some("n")),
        (json!({ "n": 3, "best_of": 2 }), None, Some("best_of")),
        (json!({ "best_of": 2, "stream": true }), unsupported, Some("best_of")),
        (json!({ "seed": 1.5 }), None, Some("seed")),
        (json!({ "seed": "a" }), None, Some("seed")),
        (json!({ "seed": 1e30 }), None, Some("seed")),
        (json!({ "stop": 5 }), None, Some("stop")),
        (json!({ "stop": "" }), None, Some("stop")),
        (json!({ "stop": ["a", 5] }), None, Some("stop[1]")),
        (json!({ "stop": vec!["a"; 17] }), None, Some("stop")),
        (json!({ "stop_token_ids": [-1] }), None, Some("stop_token_ids[0]")),
        (json!({ "min_tokens": -1 }), None, Some("min_tokens")),
        (json!({ "min_tokens": 25 }), None, Some("min_tokens")),
        (json!({ "ignore_eos": "no" }), None, Some("ignore_eos")),
        (json!({ "logit_bias": "a" }), None, Some("logit_bias")),
        (json!({ "logit_bias": { "hello": 1 } }), None, Some("logit_bias")),
        (json!({ "logit_bias": { "5": 101 } }), None, Some("logit_bias.5")),
        (json!({ "logit_bias": { "5": "a" } }), None, Some("logit_bias.5")),
        (json!({ "logit_bias": { "99999999": 1 } }), None, Some("logit_bias")),
        (json!({ "logit_bias": [[5]] }), None, Some("logit_bias[0]")),
        (json!({ "allowed_token_ids": [] }), None, Some("allowed_token_ids")),
        (json!({ "allowed_token_ids": [99_999_999] }), None, Some("allowed_token_ids")),
        (json!({ "bad_words": "a" }), None, Some("bad_words")),
        (json!({ "logprobs": 5 }), None, Some("logprobs")),
        (json!({ "top_logprobs": 5 }), None, Some("top_logprobs")),
        (json!({ "logprobs": true, "top_logprobs": 21 }), None, Some("top_logprobs")),
        (json!({ "logprobs": true, "top_logprobs": -1 }), None, Some("top_logprobs")),
        (json!({ "prompt_logprobs": 21 }), None, Some("prompt_logprobs")),
        (json!({ "prompt_logprobs": 1, "stream": true }), None, Some("prompt_logprobs")),
        (json!({ "priority": 1 }), None, Some("priority")),
        (json!({ "cache_salt": "" }), None, Some("cache_salt")),
        (json!({ "truncate_prompt_tokens": 0 }), None, Some("truncate_prompt_tokens")),
        (json!({ "truncate_prompt_tokens": 1_000_000 }), None, Some("truncate_prompt_tokens")),
        (json!({ "skip_special_tokens": 1 }), None, Some("skip_special_tokens")),
        (json!({ "use_beam_search": true, "stream": true }), unsupported, Some("use_beam_search")),
        (json!({ "use_beam_search": true, "n": 2, "logprobs": true }), None, Some("logprobs")),
        // Streams.
        (json!({ "stream": "yes" }), None, Some("stream")),
        (json!({ "stream_options": { "include_usage": true } }), None, Some("stream_options")),
        (json!({ "stream": true, "stream_options": true }), None, Some("stream_options")),
        (
            json!({ "stream": true, "stream_options": { "include_usage": 1 } }),
            None,
            Some("stream_options.include_usage"),
        ),
        // What is known and not supported.
        (json!({ "functions": [] }), unsupported, Some("functions")),
        (json!({ "function_call": "auto" }), unsupported, Some("function_call")),
        (json!({ "audio": { "voice": "a" } }), unsupported, Some("audio")),
        (json!({ "modalities": ["text", "audio"] }), unsupported, Some("modalities")),
        (json!({ "prediction": { "type": "content" } }), unsupported, Some("prediction")),
        (json!({ "logits_processors": ["a"] }), unsupported, Some("logits_processors")),
        (json!({ "grammar": "root ::= \"a\"" }), unsupported, Some("grammar")),
        // What the text must be.
        (json!({ "response_format": "json" }), None, Some("response_format")),
        (json!({ "response_format": {} }), None, Some("response_format.type")),
        (json!({ "response_format": { "type": "sound" } }), None, Some("response_format.type")),
        (json!({ "response_format": { "type": "json_schema" } }), None, Some("response_format.json_schema")),
        (
            json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "a" } } }),
            None,
            Some("response_format.json_schema.schema"),
        ),
        (
            json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "a", "schema": 5 } } }),
            schema,
            Some("response_format.json_schema.schema"),
        ),
        (json!({ "response_format": { "type": "json_object", "schema": 5 } }), schema, Some("response_format.schema")),
        (json!({ "json_schema": "{" }), schema, Some("json_schema")),
        (json!({ "structured_outputs": {} }), None, Some("structured_outputs")),
        (json!({ "structured_outputs": { "regex": "a", "choice": ["a"] } }), None, Some("structured_outputs")),
        (
            json!({ "structured_outputs": { "structural_tag": {} } }),
            unsupported,
            Some("structured_outputs.structural_tag"),
        ),
        (json!({ "structured_outputs": { "choice": [] } }), None, Some("structured_outputs.choice")),
        (json!({ "guided_choice": [5] }), None, Some("guided_choice[0]")),
        (json!({ "guided_regex": 5 }), None, Some("guided_regex")),
        (json!({ "response_format": { "type": "json_object" }, "guided_regex": "a" }), None, Some("guided_regex")),
    ]
}

/// Fields beside a prompt.
fn completion_fields() -> Vec<(Value, Option<&'static str>, Option<&'static str>)> {
    let unsupported = Some("unsupported_parameter");
    vec![
        (json!({ "prompt": null }), None, Some("prompt")),
        (json!({ "prompt": 5 }), None, Some("prompt")),
        (json!({ "prompt": [] }), None, Some("prompt")),
        (json!({ "prompt": [[]] }), None, Some("prompt[0]")),
        (json!({ "prompt": [5, "a"] }), None, Some("prompt[1]")),
        (json!({ "prompt": ["a", 5] }), None, Some("prompt[1]")),
        (json!({ "prompt": [-1] }), None, Some("prompt[0]")),
        (json!({ "prompt": [1, 99_999_999] }), None, Some("prompt[1]")),
        (json!({ "prompt": [[1], [99_999_999]] }), None, Some("prompt[1][0]")),
        (json!({ "suffix": "a" }), unsupported, Some("suffix")),
        (json!({ "prompt_embeds": "a" }), unsupported, Some("prompt_embeds")),
        (json!({ "max_tokens": 0 }), None, Some("max_tokens")),
        (json!({ "max_tokens": -1, "echo": true }), None, Some("max_tokens")),
        (json!({ "logprobs": 21 }), None, Some("logprobs")),
        (json!({ "logprobs": -1 }), None, Some("logprobs")),
        (json!({ "logprobs": true }), None, Some("logprobs")),
        (json!({ "echo": 1 }), None, Some("echo")),
        (json!({ "best_of": 2, "n": 1, "stream": true }), unsupported, Some("best_of")),
        (json!({ "n": 129 }), None, Some("n")),
        (json!({ "temperature": 3 }), None, Some("temperature")),
    ]
}

/// `value` with its fields in alphabetical order, whichever order they are kept in.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields: std::collections::BTreeMap<_, _> =
                fields.iter().map(|(name, value)| (name.clone(), sorted(value))).collect();
            Value::Object(fields.into_iter().collect())
        }
        Value::Array(list) => list.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

struct Case {
    name: String,
    method: Method,
    path: String,
    body: Vec<u8>,
    status: u16,
    code: Option<&'static str>,
    param: Option<&'static str>,
}

fn case(path: &str, body: impl Into<Vec<u8>>, status: u16) -> Case {
    let body = body.into();
    let mut name = String::from_utf8_lossy(&body).into_owned();
    name.truncate(name.floor_char_boundary(160));
    Case { name, method: Method::POST, path: path.to_owned(), body, status, code: None, param: None }
}

fn cases() -> Vec<Case> {
    let mut cases: Vec<_> = MALFORMED.iter().map(|body| case(CHAT, *body, 400)).collect();
    cases.extend(MALFORMED.iter().take(3).map(|body| case(COMPLETIONS, *body, 400)));
    // Each is named by what it adds to a request that could be served.
    let field = |path, base: fn(Value) -> Value, (more, code, param): (Value, _, _)| Case {
        name: sorted(&more).to_string().chars().take(160).collect(),
        code,
        param,
        ..case(path, base(more.clone()).to_string(), 400)
    };
    cases.extend(chat_fields().into_iter().map(|fields| field(CHAT, hello, fields)));
    cases.extend(completion_fields().into_iter().map(|fields| field(COMPLETIONS, text, fields)));

    let unknown = |path, body: Value| Case {
        code: Some("model_not_found"),
        param: Some("model"),
        ..case(path, body.to_string(), 404)
    };
    cases.push(unknown(CHAT, hello(json!({ "model": "gpt-4o" }))));
    cases.push(unknown(COMPLETIONS, text(json!({ "model": "gpt-3.5-turbo-instruct" }))));
    cases.push(Case { method: Method::GET, ..unknown("/v1/models/meta-llama/Llama-2-7b", json!({})) });
    cases.push(Case { method: Method::GET, ..unknown("/v1/models/meta-llama%2FLlama-2-7b", json!({})) });

    let long = |name: &str, path, param, body: Value| Case {
        name: name.to_owned(),
        code: Some("context_length_exceeded"),
        param: Some(param),
        ..case(path, body.to_string(), 400)
    };
    let words = "word ".repeat(1000);
    let message = json!([{ "role": "user", "content": words }]);
    cases.extend([
        long("a message longer than the context", CHAT, "messages", hello(json!({ "messages": message }))),
        long("a prompt longer than the context", COMPLETIONS, "prompt", text(json!({ "prompt": words }))),
        long("one of two prompts too long", COMPLETIONS, "prompt[1]", text(json!({ "prompt": ["a", words] }))),
        long("ids longer than the context", COMPLETIONS, "prompt", text(json!({ "prompt": vec![5; 512] }))),
        long(
            "a prompt of so many bytes that it is not tokenised",
            COMPLETIONS,
            "prompt",
            text(json!({ "prompt": "word ".repeat(9000) })),
        ),
    ]);

    let nested = |depth: usize| format!(r#"{{"a":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
    let named = |name: &str, case: Case| Case { name: name.to_owned(), ..case };
    cases.extend([
        named("JSON that nests 129 levels", case(CHAT, nested(128), 400)),
        named("JSON that nests 20,000 levels", case(CHAT, nested(20_000), 400)),
        named("a byte that is not UTF-8", case(CHAT, &b"{\"a\":\"\xff\"}"[..], 400)),
        named("a body over the limit", case(CHAT, vec![b' '; BODY_LIMIT + 1], 413)),
    ]);
    for (path, name) in [("/tokenize", "prompt"), ("/detokenize", "tokens"), ("/apply-template", "messages")] {
        cases.push(Case { param: Some(name), ..case(path, "{}", 400) });
    }
    cases.push(Case { param: Some("content"), ..case("/tokenize", r#"{"prompt":"a","content":"b"}"#, 400) });
    cases.push(Case { param: Some("tokens[0]"), ..case("/detokenize", r#"{"tokens":[99999999]}"#, 400) });
    cases.push(Case { param: Some("tokens[1]"), ..case("/detokenize", r#"{"tokens":[1,"a"]}"#, 400) });
    cases.push(Case {
        code: Some("unsupported_parameter"),
        param: Some("model"),
        ..case("/v1/embeddings", r#"{"model":"tiny","input":"a"}"#, 400)
    });
    for (method, path, status) in [
        (Method::GET, CHAT, 405),
        (Method::PUT, COMPLETIONS, 405),
        (Method::POST, "/v1/models", 405),
        (Method::DELETE, "/v1/models/tiny", 405),
        (Method::GET, "/v1", 404),
        (Method::POST, "/v1/assistants", 404),
        (Method::POST, "/v1/audio/speech", 404),
        (Method::GET, "/v1/chat/completions/chatcmpl-1", 404),
    ] {
        cases.push(Case { name: format!("{method}"), method, ..case(path, "", status) });
    }
    cases
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_request_has_what_programs_read_and_its_sentence() {
    let model = load(CHAT_MODEL, &LoadOptions::default());
    let server = TestServer::with(model, ServerOptions { body_limit: BODY_LIMIT, ..options() }).await;
    let cases = cases();
    assert!(cases.len() >= 80);
    let (mut sentences, mut wrong) = (String::new(), String::new());
    for case in cases {
        let request = server.client.request(case.method, format!("{}{}", server.url, case.path));
        let response =
            request.header("content-type", "application/json").body(case.body).send().await.expect("an answer");
        let status = response.status().as_u16();
        let answer: Value = response.json().await.expect("a JSON body");
        let name = case.name.replace('\n', "\\n").replace('\u{1}', "\\u0001");
        let error = &answer["error"];
        let expected = json!({ "type": INVALID, "code": case.code, "param": case.param });
        let found = json!({ "type": error["type"], "code": error["code"], "param": error["param"] });
        if status != case.status || found != expected || answer.as_object().is_none_or(|fields| fields.len() != 1) {
            wrong +=
                &format!("{} {name}\n  expected {} {expected}\n  found {status} {answer}\n", case.path, case.status);
        }
        let sentence = error["message"].as_str().unwrap_or_default();
        sentences += &format!("{} {name}\n  {status} {sentence}\n", case.path);
    }
    assert!(wrong.is_empty(), "{wrong}");
    insta::assert_snapshot!(sentences);

    server.ask(CHAT, &hello(json!({}))).await;
    server.all_pages_free().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_under_load_or_without_a_key_has_the_same_shape() {
    let model = load(CHAT_MODEL, &LoadOptions::default());
    let keyed = ServerOptions { api_keys: kaito_testing::server::keys("secret"), ..options() };
    let server = TestServer::with(model, keyed).await;
    for path in [CHAT, COMPLETIONS, "/tokenize"] {
        let response = server.post(path, &hello(json!({}))).await;
        assert_eq!(response.status(), 401);
        let error = response.json::<Value>().await.unwrap()["error"].clone();
        assert_eq!((&error["type"], &error["code"]), (&json!("authentication_error"), &json!("invalid_api_key")));
    }
    assert_eq!(server.get("/v1/models").await.status(), 401);
    let response = server.request(CHAT, &hello(json!({}))).bearer_auth("secret").send().await.unwrap();
    assert_eq!(response.status(), 200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_media_type_that_is_not_json_is_refused() {
    let server = TestServer::start(CHAT_MODEL).await;
    let url = format!("{}{CHAT}", server.url);
    let response = server.client.post(url).header("content-type", "text/plain").body("{}").send().await.unwrap();
    assert_eq!(response.status(), 415);
    assert_eq!(response.json::<Value>().await.unwrap()["error"]["type"], INVALID);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_without_a_chat_template_names_the_way_out() {
    let server = TestServer::start(kaito_testing::server::META_MODEL).await;
    let response = server.post(CHAT, &hello(json!({}))).await;
    assert_eq!(response.status(), 400);
    let error = response.json::<Value>().await.unwrap()["error"].clone();
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("/v1/completions") && message.contains("--chat-template FILE"), "{message}");
    server.ask(COMPLETIONS, &text(json!({}))).await;
    server.stop().await;
}

#[test]
fn bodies_are_built_from_one_that_can_be_served() {
    assert_eq!(with(json!({ "a": 1 }), json!({ "a": null })), json!({ "a": null }));
}
