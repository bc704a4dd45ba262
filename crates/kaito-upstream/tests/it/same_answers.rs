//! The same requests to a server of the null model and to a front of an engine with the null model's function: the answers are the
//! same in every dialect, since all but the tokens is the same code.

use kaito_testing::server::parse_events;
use serde_json::{Map, Value, json};

use crate::front::{COMPLETIONS, Front, own, with};

/// What differs from one request to the next, and what an engine tells of its own prefix cache.
const FLEETING: &[&str] = &[
    "id",
    "item_id",
    "call_id",
    "created",
    "created_at",
    "completed_at",
    "cached_tokens",
    "cache_read_input_tokens",
    "cache_write_tokens",
    "input_tokens",
    // It names the precision, which an engine elsewhere does not tell.
    "system_fingerprint",
];

fn without_fleeting(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept =
                fields.iter().filter(|(name, _)| !FLEETING.contains(&name.as_str()) && !name.ends_with("_duration"));
            kept.map(|(name, value)| (name.clone(), without_fleeting(value))).collect::<Map<_, _>>().into()
        }
        Value::Array(list) => list.iter().map(without_fleeting).collect(),
        other => other.clone(),
    }
}

/// Whether two answers are the same, with log-probabilities as exact as two ways to compute them are.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(name, a)| b.get(name).is_some_and(|b| same(a, b)))
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Number(a), Value::Number(b)) => (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-4,
        (a, b) => a == b,
    }
}

/// The body, or the data of all events or lines.
fn parsed(text: &str) -> Value {
    if let Ok(body) = serde_json::from_str(text) {
        return without_fleeting(&body);
    }
    let mut events: Vec<Value> = match text.contains("data:") {
        true => parse_events(&text.replace("data: [DONE]\n\n", "")).into_iter().map(|event| event.data).collect(),
        false => text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect(),
    };
    // In which order the sequences of a request go on depends on what computes them.
    events.sort_by_key(|event| event["choices"][0]["index"].as_u64());
    without_fleeting(&events.into())
}

fn requests() -> Vec<(&'static str, Value)> {
    let completion =
        |more: Value| with(json!({ "prompt": "Hello", "temperature": 0, "max_tokens": 24, "ignore_eos": true }), more);
    let chat = |more: Value| {
        let messages = json!([{ "role": "user", "content": "Hello" }]);
        with(json!({ "messages": messages, "temperature": 0, "max_tokens": 24 }), more)
    };
    let kaito = |more: Value| with(json!({ "prompt": "Hello", "do_sample": false, "max_new_tokens": 24 }), more);
    let mut requests = vec![
        ("/chat", kaito(json!({}))),
        ("/chat", kaito(json!({ "return_full_text": false, "min_new_tokens": 24 }))),
        ("/chat", kaito(json!({ "repetition_penalty": 1.3 }))),
        ("/chat", kaito(json!({ "eos_token_id": [4, 9, 30] }))),
        ("/chat", kaito(json!({ "bad_words_ids": [[3], [4], [5, 6], [56]] }))),
        ("/chat", kaito(json!({ "max_new_tokens": null, "max_length": 12, "min_length": 12 }))),
        ("/generate", json!({ "prompts": ["Hello", "b"], "parameters": { "temperature": 0, "max_gen_len": 16 } })),
        (
            "/generate",
            json!({ "inputs": "Hello", "parameters": { "max_new_tokens": 16, "details": true, "top_n_tokens": 2 } }),
        ),
        ("/generate_stream", json!({ "inputs": "Hello", "parameters": { "max_new_tokens": 16 } })),
        (COMPLETIONS, completion(json!({ "ignore_eos": false }))),
        (COMPLETIONS, completion(json!({ "n": 3 }))),
        (COMPLETIONS, completion(json!({ "echo": true }))),
        (COMPLETIONS, completion(json!({ "prompt": ["Hello", "b", "ccc"] }))),
        (COMPLETIONS, completion(json!({ "prompt": [1, 5, 9] }))),
        (COMPLETIONS, completion(json!({ "logprobs": 3 }))),
        (COMPLETIONS, completion(json!({ "logprobs": 0 }))),
        (COMPLETIONS, completion(json!({ "logprobs": 2, "echo": true }))),
        (COMPLETIONS, completion(json!({ "prompt_logprobs": 2, "max_tokens": 1 }))),
        (COMPLETIONS, completion(json!({ "stop_token_ids": [20, 30, 40, 50] }))),
        (COMPLETIONS, completion(json!({ "stop_token_ids": [5, 20, 30], "ignore_eos": false, "min_tokens": 9 }))),
        (COMPLETIONS, completion(json!({ "logit_bias": { "7": 4.5, "8": 4, "9": -100 } }))),
        (COMPLETIONS, completion(json!({ "allowed_token_ids": [4, 5, 6, 7] }))),
        (COMPLETIONS, completion(json!({ "allowed_token_ids": [4, 5, 6, 7], "frequency_penalty": 0.5 }))),
        (
            COMPLETIONS,
            completion(
                json!({ "allowed_token_ids": [4, 5, 6, 7], "presence_penalty": 1.5, "repetition_penalty": 1.1 }),
            ),
        ),
        (COMPLETIONS, completion(json!({ "allowed_token_ids": [4, 5, 6, 7], "bad_words": ["ab", "c", "da"] }))),
        (COMPLETIONS, completion(json!({ "max_tokens": 0, "echo": true }))),
        (COMPLETIONS, completion(json!({ "temperature": 1.0, "top_k": 1 }))),
        ("/v1/chat/completions", chat(json!({}))),
        ("/v1/chat/completions", chat(json!({ "n": 2, "logprobs": true, "top_logprobs": 2 }))),
        ("/v1/responses", json!({ "input": "Hello", "temperature": 0, "max_output_tokens": 24 })),
        (
            "/v1/messages",
            json!({ "model": "tiny", "max_tokens": 24, "temperature": 0, "messages": [{ "role": "user", "content": "Hello" }] }),
        ),
        (
            "/api/generate",
            json!({ "model": "tiny", "prompt": "Hello", "stream": false, "options": { "temperature": 0, "num_predict": 24 } }),
        ),
        (
            "/api/chat",
            json!({ "model": "tiny", "messages": [{ "role": "user", "content": "Hello" }], "options": { "temperature": 0, "num_predict": 24 } }),
        ),
    ];
    let streamed: Vec<_> = requests
        .iter()
        .filter(|(path, _)| path.starts_with("/v1") || *path == "/chat")
        // A prompt's scores are told where nothing streams.
        .filter(|(_, body)| body.get("prompt_logprobs").is_none())
        .map(|(path, body)| (*path, with(body.clone(), json!({ "stream": true }))))
        .collect();
    requests.extend(streamed);
    requests
}

#[tokio::test(flavor = "multi_thread")]
async fn a_front_answers_as_our_own_engine_does() {
    let (own, front) = (own().await, Front::start().await);
    for (path, body) in requests() {
        let [expected, answer] =
            [own.request(path, &body), front.server.request(path, &body)].map(|request| async move {
                let answer = request.send().await.unwrap();
                (answer.status().as_u16(), answer.text().await.unwrap())
            });
        let ((expected_status, expected), (status, answer)) = (expected.await, answer.await);
        assert_eq!((expected_status, status), (200, 200), "{path} {body}: {expected} {answer}");
        let (expected, answer) = (parsed(&expected), parsed(&answer));
        assert!(same(&expected, &answer), "{path} {body}:\n{expected}\n{answer}");
    }
    own.stop().await;
    front.server.stop().await;
}

/// Every text of two and of three letters in an answer ends it where it comes first, wherever its letters' tokens begin.
#[tokio::test(flavor = "multi_thread")]
async fn stop_strings_end_texts_over_the_boundaries_of_tokens() {
    let front = Front::start().await;
    let body = json!({ "prompt": "Hello", "temperature": 0, "max_tokens": 30, "ignore_eos": true });
    let whole = front.server.ask(COMPLETIONS, &body).await["choices"][0]["text"].as_str().unwrap().to_owned();
    let letters: Vec<char> = whole.chars().collect();
    for length in [2, 3] {
        for stop in letters.windows(length).map(String::from_iter) {
            let answer =
                front.server.ask(COMPLETIONS, &with(body.clone(), json!({ "stop": stop, "stream": false }))).await;
            let choice = &answer["choices"][0];
            let expected = &whole[..whole.find(&stop).unwrap()];
            assert_eq!((&choice["text"], &choice["stop_reason"]), (&json!(expected), &json!(stop)));
        }
    }
    // The engine is told at once that nobody waits for more.
    kaito_testing::wait::eventually("nothing is computed", async || front.engine.open() == 0).await;
    front.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_the_engines_prefix_cache_are_told() {
    let front = Front::start().await;
    front.engine.set_cached(3);
    let body = json!({ "prompt": "Hello", "temperature": 0, "max_tokens": 4, "ignore_eos": true });
    let answer = front.server.ask(COMPLETIONS, &body).await;
    assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 3);
    front.server.stop().await;
}
