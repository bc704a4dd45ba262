//! Answers that come piece by piece.

use std::collections::{BTreeMap, BTreeSet};

use kaito_testing::server::{CHAT_MODEL, Event, TestServer, parse_events};
use serde_json::{Value, json};

async fn stream(server: &TestServer, path: &str, body: &Value) -> Vec<Event> {
    let response = server.post(path, body).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()["cache-control"], "no-cache");
    parse_events(&response.text().await.unwrap())
}

/// The deltas joined by sequence, and the last event's data, which must be a result. Only the last text of a sequence may
/// have no token.
fn join(mut events: Vec<Event>) -> (BTreeMap<u64, String>, Value) {
    let last = events.pop().expect("events");
    assert_eq!(last.name, "result", "{last:?}");
    let mut texts = BTreeMap::<u64, String>::new();
    let mut ended = BTreeSet::new();
    for event in events {
        assert_eq!(event.name, "message");
        let sequence = event.data["sequence"].as_u64().unwrap();
        let token = event.data.get("token");
        assert!(token.is_none_or(Value::is_u64), "{event:?}");
        assert!(if token.is_none() { ended.insert(sequence) } else { !ended.contains(&sequence) }, "{event:?}");
        texts.entry(sequence).or_default().push_str(event.data["text"].as_str().unwrap());
    }
    (texts, last.data)
}

/// A request whose answer is the same every time.
fn fixed(mut body: Value, extra: Value) -> Value {
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pieces_of_a_text_join_to_the_whole() {
    for model in [CHAT_MODEL, "falcon-7b-type", "phi3-window", "mistral-window"] {
        let server = TestServer::start(model).await;
        for prompt in ["Hello", "naïve café 🎉", "  two spaces", "<s>", "end in bytes \u{1F389}"] {
            let greedy =
                json!({ "prompt": prompt, "do_sample": false, "max_new_tokens": 24, "return_full_text": false });
            let whole = server.ask("/chat", &greedy).await;
            let (texts, result) = join(stream(&server, "/chat", &fixed(greedy, json!({ "stream": true }))).await);
            assert_eq!(result, whole, "{model} {prompt}");
            assert_eq!(texts[&0], whole["Result"].as_str().unwrap(), "{model} {prompt}");
        }
        server.stop().await;
    }
}

/// A stop string that begins and never ends holds the last text back.
#[tokio::test(flavor = "multi_thread")]
async fn text_held_back_to_the_end_repeats_no_token_and_counts_as_none() {
    let server = TestServer::start(CHAT_MODEL).await;
    let body = json!({
        "prompt": "Hello", "do_sample": false, "max_new_tokens": 12, "min_new_tokens": 12, "return_full_text": false,
    });
    let whole = server.ask("/chat", &body).await["Result"].as_str().unwrap().to_owned();
    let stop = format!("{}\u{0}", whole.chars().next_back().unwrap());
    let events = stream(&server, "/chat", &fixed(body, json!({ "stream": true, "stop": stop }))).await;
    let deltas: Vec<_> = events.iter().filter(|event| event.name == "message").collect();
    let with = deltas.iter().filter(|event| event.data.get("token").is_some()).count();
    assert_eq!((with, deltas.len()), (12, 13), "{deltas:?}");
    assert_eq!(deltas.last().unwrap().data, json!({ "sequence": 0, "text": whole.chars().next_back().unwrap() }));
    // A request for 12 tokens has 11 times between two of them; the one above did not stream but has as many.
    let metrics = server.get("/metrics").await.text().await.unwrap();
    assert!(metrics.contains("kaito_time_per_output_token_seconds_count 22\n"), "{metrics}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_sequences_come_side_by_side() {
    let server = TestServer::start(CHAT_MODEL).await;
    let body = json!({
        "prompt": "Hello", "seed": 7, "num_return_sequences": 3, "return_full_text": false,
        "generate_kwargs": { "max_new_tokens": 20, "stream": true },
    });
    let (texts, result) = join(stream(&server, "/chat", &body).await);
    assert_eq!(texts.keys().copied().collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(texts.values().map(String::as_str).collect::<String>(), result["Result"].as_str().unwrap());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beams_come_all_at_once() {
    let server = TestServer::start(CHAT_MODEL).await;
    let body = json!({ "prompt": "Hello", "do_sample": false, "num_beams": 4, "max_new_tokens": 12 });
    let whole = server.ask("/chat", &body).await;
    let (texts, result) = join(stream(&server, "/chat", &fixed(body, json!({ "stream": true }))).await);
    assert!(texts.is_empty());
    assert_eq!(result, whole);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn completions_and_dialogs_stream_too() {
    let server = TestServer::start(CHAT_MODEL).await;
    let parameters = json!({ "temperature": 0, "max_gen_len": 16 });
    let prompts = json!({ "prompts": ["One", "Two words"], "parameters": parameters });
    let dialogs = json!({ "input_data": { "input_string": [
        [{ "role": "user", "content": "Hello" }],
        [{ "role": "user", "content": "[INST]" }],
    ] }, "parameters": parameters });
    for (path, body) in [("/generate", prompts), ("/chat", dialogs)] {
        let whole = server.ask(path, &body).await;
        let (texts, result) = join(stream(&server, path, &fixed(body, json!({ "stream": true }))).await);
        assert_eq!(result, whole);
        for (i, answer) in whole["results"].as_array().unwrap().iter().enumerate() {
            let text = answer.get("response").unwrap_or(&answer[1]["content"]);
            assert_eq!(texts[&(i as u64)], text.as_str().unwrap(), "{path} {i}");
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_cannot_be_done_has_a_status_even_if_it_streams() {
    let server = TestServer::start(CHAT_MODEL).await;
    let response = server.post("/chat", &json!({ "prompt": "Hello", "stream": true, "num_beams": 0 })).await;
    assert_eq!(response.status(), 400);
    assert_eq!(response.headers()["content-type"], "application/json");
    server.stop().await;
}

/// As clients have always read them, whatever order the code writes them in.
#[tokio::test(flavor = "multi_thread")]
async fn the_keys_of_answers_and_events_are_in_alphabetical_order() {
    let server = TestServer::start(CHAT_MODEL).await;
    let dialog = json!({ "input_data": { "input_string": [[{ "role": "user", "content": "Hi" }]], "parameters": { "max_gen_len": 3 } } });
    let scored = json!({
        "prompt": "Hello", "do_sample": false, "num_beams": 2, "max_new_tokens": 3, "return_dict_in_generate": true,
        "output_scores": true,
    });
    let mut texts = Vec::new();
    for (path, body) in [
        ("/chat", dialog),
        ("/chat", scored),
        ("/chat", json!({ "prompt": "Hello", "max_new_tokens": 3, "stream": true })),
        ("/generate", json!({ "prompts": ["Hello"], "parameters": { "max_gen_len": 3 } })),
        ("/chat", json!({ "prompt": { "b": 1, "a": 2 }, "z": 1, "y": 2 })),
    ] {
        let text = server.post(path, &body).await.text().await.unwrap();
        let data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        texts.extend(if data.is_empty() { vec![text.clone()] } else { data.into_iter().map(str::to_owned).collect() });
    }
    assert!(texts.len() > 6, "{texts:?}");
    for text in texts {
        let mut value: Value = serde_json::from_str(&text).unwrap();
        value.sort_all_objects();
        assert_eq!(value.to_string(), text);
        // The value that was sent is shown in the same way.
        assert!(!text.contains(r#"{\"b\":1"#), "{text}");
    }
    server.stop().await;
}
