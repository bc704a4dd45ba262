//! Requests that cannot be served: each has its status and its sentence, and the server goes on serving.
//!
//! The statuses are the contract and stand here; the sentences stand in `snapshots/`, to be read as a client reads them.

use kaito_server::ServerOptions;
use kaito_testing::server::{CHAT_MODEL, TestServer, load, options};
use reqwest::Method;
use serde_json::json;

const BODY_LIMIT: usize = 64 << 10;
const JSON: &str = "application/json";

/// Bodies for `POST /chat`, and the status of the answer.
const CHAT: &[(&str, u16)] = &[
    // Not JSON, or not an object.
    ("", 422),
    ("   \n", 422),
    ("hello", 422),
    (r#"{"prompt":"a""#, 422),
    (r#"{"prompt":"a",}"#, 422),
    (r#"{'prompt':'a'}"#, 422),
    (r#"{"prompt":"a"} {"prompt":"b"}"#, 422),
    (r#"["a"]"#, 422),
    (r#""a""#, 422),
    ("null", 422),
    ("{\"prompt\":\"a\nb\"}", 422),
    (r#"{"prompt":"\ud800"}"#, 422),
    (r#"{"prompt":"a","temperature":NaN}"#, 422),
    (r#"{"prompt":"a","temperature":1e999}"#, 422),
    (r#"{"prompt":"a","prompt":"b"}"#, 422),
    // Of the wrong shape.
    ("{}", 422),
    (r#"{"prompt":null}"#, 422),
    (r#"{"prompt":5}"#, 422),
    (r#"{"prompt":["a"]}"#, 422),
    (r#"{"prompt":"a","generate_kwargs":[]}"#, 422),
    (r#"{"prompt":"a","generate_kwargs":"max_length"}"#, 422),
    (r#"{"prompt":"a","prefix":5}"#, 422),
    (r#"{"prompt":"a","stop":5}"#, 422),
    (r#"{"prompt":"a","stop":["b",5]}"#, 422),
    (r#"{"messages":"hello"}"#, 422),
    (r#"{"messages":["hello"]}"#, 422),
    (r#"{"messages":[{"role":"user"}]}"#, 422),
    (r#"{"messages":[{"role":"user","content":["a"]}]}"#, 422),
    (r#"{"messages":[{"role":5,"content":"a"}]}"#, 422),
    (r#"{"prompts":["a"]}"#, 422),
    (r#"{"input_data":"hello"}"#, 422),
    (r#"{"input_data":{}}"#, 422),
    (r#"{"input_data":{"input_string":"hello"}}"#, 422),
    (r#"{"input_data":{"input_string":[{"role":"user","content":"a"}]}}"#, 422),
    (r#"{"input_data":{"input_string":[["hello"]]}}"#, 422),
    (r#"{"input_data":{"input_string":[[{"content":"a"}]]}}"#, 422),
    (r#"{"input_data":{"input_string":[[{"role":"user","content":"a"}]],"parameters":[]}}"#, 422),
    // Unknown names.
    (r#"{"prompt":"a","temprature":1}"#, 400),
    (r#"{"prompt":"a","generate_kwargs":{"max_lenght":5}}"#, 400),
    (r#"{"prompt":"a","TopK":5}"#, 400),
    (r#"{"prompt":"a","something_else_altogether":5}"#, 400),
    (r#"{"prompt":"a","return_ful_text":true}"#, 400),
    (r#"{"promt":"a","messages":[{"role":"user","content":"a"}]}"#, 400),
    (r#"{"messages":[{"role":"user","content":"a","nmae":"b"}]}"#, 400),
    (r#"{"input_data":{"input_string":[],"paramters":{}}}"#, 400),
    (r#"{"input_data":{"input_string":[[{"role":"user","content":"a"}]]},"parameters":{"max_length":5}}"#, 400),
    // Parameters of the wrong type or out of range.
    (r#"{"prompt":"a","temperature":"hot"}"#, 400),
    (r#"{"prompt":"a","temperature":-1}"#, 400),
    (r#"{"prompt":"a","temperature":0}"#, 400),
    (r#"{"prompt":"a","max_length":"ten"}"#, 400),
    (r#"{"prompt":"a","max_length":0}"#, 400),
    (r#"{"prompt":"a","max_length":1.5}"#, 400),
    (r#"{"prompt":"a","max_new_tokens":0}"#, 400),
    (r#"{"prompt":"a","max_new_tokens":-5}"#, 400),
    (r#"{"prompt":"a","max_new_tokens":1e30}"#, 400),
    (r#"{"prompt":"a","min_length":-1}"#, 400),
    (r#"{"prompt":"a","do_sample":"yes"}"#, 400),
    (r#"{"prompt":"a","do_sample":1}"#, 400),
    (r#"{"prompt":"a","top_k":-1}"#, 400),
    (r#"{"prompt":"a","top_p":1.5}"#, 400),
    (r#"{"prompt":"a","top_p":-0.1}"#, 400),
    (r#"{"prompt":"a","typical_p":0}"#, 400),
    (r#"{"prompt":"a","repetition_penalty":0}"#, 400),
    (r#"{"prompt":"a","early_stopping":"sometimes"}"#, 400),
    (r#"{"prompt":"a","num_beams":0}"#, 400),
    (r#"{"prompt":"a","num_beams":100000}"#, 400),
    (r#"{"prompt":"a","num_return_sequences":0}"#, 400),
    (r#"{"prompt":"a","bad_words_ids":[]}"#, 400),
    (r#"{"prompt":"a","bad_words_ids":[[]]}"#, 400),
    (r#"{"prompt":"a","bad_words_ids":[["word"]]}"#, 400),
    (r#"{"prompt":"a","bad_words_ids":[[99999999]]}"#, 400),
    (r#"{"prompt":"a","eos_token_id":-1}"#, 400),
    (r#"{"prompt":"a","eos_token_id":"</s>"}"#, 400),
    (r#"{"prompt":"a","forced_eos_token_id":99999999}"#, 400),
    (r#"{"prompt":"a","seed":-1}"#, 400),
    (r#"{"prompt":"a","stream":"yes"}"#, 400),
    (r#"{"prompt":"a","return_full_text":"no"}"#, 400),
    (r#"{"prompt":"a","clean_up_tokenization_spaces":0}"#, 400),
    (r#"{"prompt":"a","add_special_tokens":"no"}"#, 400),
    (r#"{"prompt":"a","generate_kwargs":{"add_special_tokens":1}}"#, 400),
    (r#"{"prompt":"a","stop":""}"#, 400),
    // Nothing to continue.
    (r#"{"prompt":""}"#, 400),
    (r#"{"prompt":"","prefix":"a"}"#, 400),
    (r#"{"prompt":"a","handle_long_generation":"cut"}"#, 400),
    // Parameters at odds with each other.
    (r#"{"prompt":"a","max_length":10,"generate_kwargs":{"max_length":20}}"#, 400),
    (r#"{"prompt":"a","do_sample":false,"num_return_sequences":2}"#, 400),
    (r#"{"prompt":"a","do_sample":false,"num_beams":2,"num_return_sequences":3}"#, 400),
    (r#"{"prompt":"a","do_sample":false,"num_beams":3,"num_beam_groups":2,"diversity_penalty":1.0}"#, 400),
    (r#"{"prompt":"a","do_sample":true,"num_beams":2,"num_beam_groups":2,"diversity_penalty":1.0}"#, 400),
    (r#"{"prompt":"a","do_sample":false,"num_beams":2,"num_beam_groups":2}"#, 400),
    (r#"{"prompt":"a","messages":[{"role":"user","content":"a"}]}"#, 400),
    (r#"{"prompt":"a","input_data":{"input_string":[]}}"#, 400),
    (r#"{"messages":[]}"#, 400),
    (r#"{"input_data":{"input_string":[],"parameters":{"top_p":1}},"parameters":{"top_p":1}}"#, 400),
    // Dialogs that Llama 2 does not know.
    (r#"{"input_data":{"input_string":[]}}"#, 400),
    (r#"{"input_data":{"input_string":[[]]}}"#, 400),
    (r#"{"input_data":{"input_string":[[{"role":"assistant","content":"a"}]]}}"#, 400),
    (r#"{"input_data":{"input_string":[[{"role":"user","content":"a"},{"role":"user","content":"b"}]]}}"#, 400),
    (r#"{"input_data":{"input_string":[[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]]}}"#, 400),
    (r#"{"input_data":{"input_string":[[{"role":"robot","content":"a"}]]}}"#, 400),
];

/// Bodies for `POST /generate`, and the status of the answer.
const GENERATE: &[(&str, u16)] = &[
    ("{}", 422),
    (r#"{"prompt":"a"}"#, 422),
    (r#"{"prompts":"a"}"#, 422),
    (r#"{"prompts":[5]}"#, 422),
    (r#"{"prompts":[null]}"#, 422),
    (r#"{"prompts":["a"],"parameters":5}"#, 422),
    (r#"{"prompts":[]}"#, 400),
    (r#"{"prompts":["a"],"max_gen_len":5}"#, 400),
    (r#"{"prompts":["a"],"parameters":{"max_gen_length":5}}"#, 400),
    (r#"{"prompts":["a"],"parameters":{"temperature":"hot"}}"#, 400),
    (r#"{"prompts":["a"],"parameters":{"temperature":-0.5}}"#, 400),
    (r#"{"prompts":["a"],"parameters":{"top_p":2}}"#, 400),
    (r#"{"prompts":["a"],"parameters":{"max_gen_len":-1}}"#, 400),
    (r#"{"prompts":["a"],"parameters":{"max_gen_len":true}}"#, 400),
    (r#"{"prompts":["a"],"parameters":{"max_seq_len":0}}"#, 400),
    (r#"{"prompts":["a"],"parameters":{"max_seq_len":1000000}}"#, 400),
    (r#"{"prompts":["a"],"parameters":{"max_batch_size":0}}"#, 400),
    (r#"{"prompts":["a"],"parameters":{"max_batch_size":1000}}"#, 400),
    (r#"{"prompts":["a","b","c"],"parameters":{"max_batch_size":2}}"#, 400),
    (r#"{"prompts":["a rather long prompt"],"parameters":{"max_seq_len":2}}"#, 400),
    (r#"{"prompts":["a"],"parameters":{"stream":true},"stream":true}"#, 400),
];

struct Case {
    name: String,
    method: Method,
    path: &'static str,
    content_type: &'static str,
    body: Vec<u8>,
    status: u16,
}

fn cases() -> Vec<Case> {
    let case = |name: &str, path, body: &[u8], status| Case {
        name: name.to_owned(),
        method: Method::POST,
        path,
        content_type: JSON,
        body: body.to_vec(),
        status,
    };
    let mut cases: Vec<_> = CHAT.iter().map(|(body, status)| case(body, "/chat", body.as_bytes(), *status)).collect();
    cases.extend(GENERATE.iter().map(|(body, status)| case(body, "/generate", body.as_bytes(), *status)));

    let nested = |depth: usize| format!(r#"{{"prompt":"a","stop":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
    let long = json!({ "prompt": "word ".repeat(1000) }).to_string();
    let long_message = json!({ "messages": [{ "role": "user", "content": "word ".repeat(1000) }] }).to_string();
    let long_prompt = json!({ "prompts": ["a", "word ".repeat(1000)] }).to_string();
    let large = json!({ "prompt": "a".repeat(BODY_LIMIT) }).to_string();
    cases.extend([
        case("JSON that nests 33 levels", "/chat", nested(33).as_bytes(), 422),
        case("JSON that nests 20,000 levels", "/chat", nested(20_000).as_bytes(), 422),
        case("a byte that is not UTF-8", "/chat", b"{\"prompt\":\"\xff\"}", 422),
        case("Latin-1", "/chat", b"{\"prompt\":\"caf\xe9\"}", 422),
        case("half a character", "/chat", b"{\"prompt\":\"\xe2\x82\"}", 422),
        case("UTF-16", "/chat", b"\xff\xfe{\0}\0", 422),
        case("a zero byte", "/chat", b"\0", 422),
        case("a prompt longer than the model's context", "/chat", long.as_bytes(), 400),
        case("a message longer than the model's context", "/chat", long_message.as_bytes(), 400),
        case("one of two prompts longer than the model's context", "/generate", long_prompt.as_bytes(), 400),
        case("a body over the limit", "/chat", large.as_bytes(), 413),
        case("a path that is not there", "/v2/chat", b"{}", 404),
        case("a path below a route", "/chat/", b"{}", 404),
    ]);
    for (content_type, status) in [("", 415), ("text/plain", 415), ("application/x-www-form-urlencoded", 415)] {
        cases.push(Case {
            content_type,
            ..case(&format!("Content-Type {content_type:?}"), "/chat", br#"{"prompt":"a"}"#, status)
        });
    }
    for (method, path) in [
        (Method::GET, "/chat"),
        (Method::GET, "/generate"),
        (Method::GET, "/shutdown"),
        (Method::PUT, "/chat"),
        (Method::OPTIONS, "/chat"),
        (Method::PUT, "/"),
        (Method::DELETE, "/healthz"),
        (Method::POST, "/metrics"),
    ] {
        cases.push(Case { method: method.clone(), ..case(&format!("{method} {path}"), path, b"", 405) });
    }
    cases
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_request_has_its_status_and_its_sentence() {
    let model = load(CHAT_MODEL, &kaito_engine::LoadOptions::default());
    let server = TestServer::with(model, ServerOptions { body_limit: BODY_LIMIT, ..options() }).await;
    let cases = cases();
    assert!(cases.len() >= 60);
    let (mut sentences, mut wrong) = (String::new(), String::new());
    for case in cases {
        let mut request = server.client.request(case.method, format!("{}{}", server.url, case.path)).body(case.body);
        if !case.content_type.is_empty() {
            request = request.header("content-type", case.content_type);
        }
        let response = request.send().await.expect(&case.name);
        let status = response.status().as_u16();
        let answer: serde_json::Value = response.json().await.expect("a JSON body");
        let name = case.name.replace('\n', "\\n");
        if status != case.status {
            wrong += &format!("{} {name}: {status} instead of {}: {answer}\n", case.path, case.status);
        }
        match answer.as_object().filter(|fields| fields.len() == 1).and_then(|fields| fields.get("detail")?.as_str()) {
            Some(detail) => sentences += &format!("{} {name}\n  {status} {detail}\n", case.path),
            None => wrong += &format!("{} {name}: not {{\"detail\": ...}}: {answer}\n", case.path),
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    insta::assert_snapshot!(sentences);

    assert_eq!(server.get("/healthz").await.status(), 200);
    server.ask("/chat", &json!({ "prompt": "still there?", "max_new_tokens": 3 })).await;
    server.all_pages_free().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_405_says_what_is_allowed() {
    let server = TestServer::start(CHAT_MODEL).await;
    assert_eq!(server.get("/chat").await.headers()["allow"], "POST");
    let response = server.client.post(format!("{}/healthz", server.url)).send().await.unwrap();
    assert_eq!(response.headers()["allow"], "GET,HEAD");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_the_limit_is_refused_however_it_is_sent() {
    let model = load(CHAT_MODEL, &kaito_engine::LoadOptions::default());
    let server = TestServer::with(model, ServerOptions { body_limit: BODY_LIMIT, ..options() }).await;
    let piece = || Ok::<_, std::io::Error>(vec![b' '; BODY_LIMIT / 4]);
    let chunked = reqwest::Body::wrap_stream(futures_util::stream::iter((0..8).map(move |_| piece())));
    let whole = vec![b' '; 16 << 20].into();
    for (body, detail) in [
        (chunked, "The body is over the limit of 65536 bytes."),
        (whole, "The body has 16777216 bytes; the limit is 65536."),
    ] {
        let url = format!("{}/chat", server.url);
        let response = server.client.post(url).header("content-type", JSON).body(body).send().await.unwrap();
        assert_eq!(response.status(), 413);
        assert_eq!(response.json::<serde_json::Value>().await.unwrap(), json!({ "detail": detail }));
    }
    server.stop().await;
}
