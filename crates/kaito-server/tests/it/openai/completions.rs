//! Completions that do not stream.

use kaito_testing::server::{CHAT_MODEL, TestServer};
use serde_json::{Value, json};

use super::{COMPLETIONS, keys, text};

fn texts(answer: &Value) -> Vec<&str> {
    answer["choices"].as_array().unwrap().iter().map(|choice| choice["text"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_has_all_fields_and_kaitos_text() {
    let server = TestServer::start(CHAT_MODEL).await;
    let answer = server.ask(COMPLETIONS, &text(json!({ "ignore_eos": false }))).await;
    assert_eq!(keys(&answer), ["choices", "created", "id", "model", "object", "system_fingerprint", "usage"]);
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(keys(&answer["choices"][0]), ["finish_reason", "index", "logprobs", "stop_reason", "text"]);
    let kaito = json!({ "prompt": "Hello", "do_sample": false, "max_new_tokens": 24, "return_full_text": false });
    let kaito = server.ask("/chat", &kaito).await;
    assert_eq!(texts(&answer), [kaito["Result"].as_str().unwrap()]);
    let short = server.ask(COMPLETIONS, &json!({ "prompt": "Hello", "ignore_eos": true })).await;
    assert_eq!(short["usage"]["completion_tokens"], 16);
    server.stop().await;
}

/// `n` beams, as `/chat` searches with them.
#[tokio::test(flavor = "multi_thread")]
async fn a_beam_search_is_that_of_chat() {
    let server = TestServer::start(CHAT_MODEL).await;
    for (n, penalty, early) in [(1, 1.0, false), (3, 1.0, false), (4, -1.0, true)] {
        let body = json!({
            "prompt": "Hello", "max_tokens": 12, "use_beam_search": true, "n": n, "length_penalty": penalty,
            "early_stopping": early,
        });
        let kaito = json!({
            "prompt": "Hello", "max_new_tokens": 12, "do_sample": false, "num_beams": n, "num_return_sequences": n,
            "length_penalty": penalty, "early_stopping": early, "return_full_text": false,
        });
        let answer = server.ask(COMPLETIONS, &body).await;
        assert_eq!(texts(&answer).len(), n);
        let kaito = server.ask("/chat", &kaito).await;
        assert_eq!(texts(&answer).concat(), kaito["Result"].as_str().unwrap(), "{n} beams");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prompts_have_four_shapes() {
    let server = TestServer::start(CHAT_MODEL).await;
    let ids = async |text: &str| server.ask("/tokenize", &json!({ "prompt": text })).await["tokens"].clone();
    let [hello, one] = [ids("Hello").await, ids("One").await];
    let first = server.ask(COMPLETIONS, &text(json!({}))).await;
    let second = server.ask(COMPLETIONS, &text(json!({ "prompt": "One" }))).await;
    let both = [texts(&first), texts(&second)].concat();
    for (prompt, expected) in [
        (json!("Hello"), &both[..1]),
        (hello.clone(), &both[..1]),
        (json!(["Hello", "One"]), &both[..]),
        (json!([hello, one]), &both[..]),
        (json!([hello, "One"]), &both[..]),
    ] {
        let answer = server.ask(COMPLETIONS, &text(json!({ "prompt": prompt }))).await;
        assert_eq!(texts(&answer), expected, "{prompt}");
        let tokens = 24 * expected.len();
        assert_eq!(answer["usage"]["completion_tokens"], tokens);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn choices_count_on_from_prompt_to_prompt() {
    let server = TestServer::start(CHAT_MODEL).await;
    let sampled = |prompt: Value, n: usize| text(json!({ "prompt": prompt, "n": n, "temperature": 1, "seed": 11 }));
    let both = server.ask(COMPLETIONS, &sampled(json!(["Hello", "One"]), 2)).await;
    let indexes: Vec<_> = both["choices"].as_array().unwrap().iter().map(|choice| choice["index"].clone()).collect();
    assert_eq!(indexes, [0, 1, 2, 3]);
    let [hello, one] = [
        server.ask(COMPLETIONS, &sampled(json!("Hello"), 2)).await,
        server.ask(COMPLETIONS, &sampled(json!("One"), 2)).await,
    ];
    assert_eq!(texts(&both), [texts(&hello), texts(&one)].concat());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_prompt_is_echoed() {
    let server = TestServer::start(CHAT_MODEL).await;
    let plain = server.ask(COMPLETIONS, &text(json!({}))).await;
    let echoed = server.ask(COMPLETIONS, &text(json!({ "echo": true }))).await;
    assert_eq!(texts(&echoed), [format!("Hello{}", texts(&plain)[0])]);
    let alone = server.ask(COMPLETIONS, &text(json!({ "echo": true, "max_tokens": 0 }))).await;
    assert_eq!(texts(&alone), ["Hello"]);
    assert_eq!(alone["usage"]["completion_tokens"], 0);
    assert_eq!(alone["choices"][0]["finish_reason"], "length");
    let ids = server.ask("/tokenize", &json!({ "prompt": "Hello" })).await["tokens"].clone();
    let of_ids = server.ask(COMPLETIONS, &text(json!({ "prompt": ids, "echo": true, "max_tokens": 0 }))).await;
    assert_eq!(texts(&of_ids), ["Hello"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_likeliest_of_several_is_chosen() {
    let server = TestServer::start(CHAT_MODEL).await;
    let sampled = |more: Value| {
        super::with(text(json!({ "temperature": 1, "seed": 4, "logprobs": 0, "ignore_eos": true })), more)
    };
    let all = server.ask(COMPLETIONS, &sampled(json!({ "n": 4 }))).await;
    let mean = |choice: &Value| {
        let of_tokens = choice["logprobs"]["token_logprobs"].as_array().unwrap();
        of_tokens.iter().map(|log_prob| log_prob.as_f64().unwrap()).sum::<f64>() / of_tokens.len() as f64
    };
    let mut best: Vec<_> = all["choices"].as_array().unwrap().iter().collect();
    best.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
    let chosen = server.ask(COMPLETIONS, &sampled(json!({ "n": 2, "best_of": 4 }))).await;
    assert_eq!(texts(&chosen), [best[0]["text"].as_str().unwrap(), best[1]["text"].as_str().unwrap()]);
    server.stop().await;
}

/// The body that KAITO's own transformers runtime takes at this path, whose clients name no model.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_the_transformers_runtime_is_answered_in_its_form() {
    let server = TestServer::start(CHAT_MODEL).await;
    for body in [
        json!({ "prompt": "Hello", "return_full_text": false, "generate_kwargs": { "do_sample": false, "max_length": 20 } }),
        json!({ "prompt": "Hello", "do_sample": false, "max_new_tokens": 5 }),
    ] {
        let answer = server.ask(COMPLETIONS, &body).await;
        assert_eq!(answer, server.ask("/chat", &body).await);
        assert_eq!(keys(&answer), ["Result"]);
    }
    let refused = server.post(COMPLETIONS, &json!({ "prompt": "a", "max_length": 0 })).await;
    assert_eq!(refused.status(), 400);
    assert!(refused.json::<Value>().await.unwrap()["error"]["message"].as_str().unwrap().contains("max_length"));
    server.stop().await;
}
