//! Answers that come piece by piece.

use kaito_testing::server::{CHAT_MODEL, TestServer};
use serde_json::{Value, json};

use super::{CHAT, COMPLETIONS, hello, keys, of_choice, stream, text, with};

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_begins_with_the_role_and_ends_with_the_reason() {
    let server = TestServer::start(CHAT_MODEL).await;
    let whole = server.ask(CHAT, &hello(json!({ "n": 2 }))).await;
    let chunks = stream(&server, CHAT, &hello(json!({ "n": 2 }))).await;
    let head = |chunk: &Value| ["id", "created", "model", "system_fingerprint"].map(|name| chunk[name].clone());
    for chunk in &chunks {
        assert_eq!(keys(chunk), ["choices", "created", "id", "model", "object", "system_fingerprint"], "no usage");
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(head(chunk), head(&chunks[0]));
        assert_eq!(chunk["choices"].as_array().unwrap().len(), 1);
    }
    for index in 0..2 {
        let mut choices = of_choice(&chunks, index);
        assert_eq!(choices.remove(0)["delta"], json!({ "role": "assistant", "content": "" }));
        let last = choices.pop().unwrap();
        assert_eq!(last["delta"], json!({}));
        assert_eq!(last["finish_reason"], "length");
        let mut joined = String::new();
        for choice in choices {
            assert_eq!(keys(&choice["delta"]), ["content"]);
            assert_eq!(choice["finish_reason"], Value::Null);
            assert!(choice.as_object().unwrap().contains_key("finish_reason"));
            let piece = choice["delta"]["content"].as_str().unwrap();
            assert!(!piece.is_empty());
            joined += piece;
        }
        assert_eq!(joined, whole["choices"][index]["message"]["content"].as_str().unwrap());
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_comes_only_when_it_is_asked_for() {
    let server = TestServer::start(CHAT_MODEL).await;
    for (path, body) in [(CHAT, hello(json!({}))), (COMPLETIONS, text(json!({})))] {
        let whole = server.ask(path, &body).await;
        let counts =
            |usage: &Value| ["prompt_tokens", "completion_tokens", "total_tokens"].map(|name| usage[name].clone());

        let options = json!({ "stream_options": { "include_usage": true } });
        let mut chunks = stream(&server, path, &with(body.clone(), options)).await;
        let last = chunks.pop().unwrap();
        assert_eq!(last["choices"], json!([]));
        assert_eq!(counts(&last["usage"]), counts(&whole["usage"]));
        assert!(chunks.iter().all(|chunk| chunk.get("usage") == Some(&Value::Null)), "{path}");

        let options = json!({ "stream_options": { "include_usage": true, "continuous_usage_stats": true } });
        let chunks = stream(&server, path, &with(body.clone(), options)).await;
        let generated: Vec<_> =
            chunks.iter().map(|chunk| chunk["usage"]["completion_tokens"].as_u64().unwrap()).collect();
        assert!(generated.is_sorted(), "{generated:?}");
        assert_eq!(generated.last(), Some(&24));
        let prompt = &whole["usage"]["prompt_tokens"];
        assert!(chunks.iter().all(|chunk| &chunk["usage"]["prompt_tokens"] == prompt));

        let options = json!({ "stream_options": { "continuous_usage_stats": true } });
        let chunks = stream(&server, path, &with(body, options)).await;
        assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completion_ends_with_an_empty_text() {
    let server = TestServer::start(CHAT_MODEL).await;
    for more in
        [json!({}), json!({ "echo": true }), json!({ "prompt": ["Hello", "One"], "n": 2, "temperature": 1, "seed": 3 })]
    {
        let whole = server.ask(COMPLETIONS, &text(more.clone())).await;
        let chunks = stream(&server, COMPLETIONS, &text(more)).await;
        for (index, expected) in whole["choices"].as_array().unwrap().iter().enumerate() {
            let mut choices = of_choice(&chunks, index);
            let last = choices.pop().unwrap();
            assert_eq!((&last["text"], &last["finish_reason"]), (&json!(""), &json!("length")));
            assert!(choices.iter().all(|choice| choice["finish_reason"].is_null() && choice["text"] != ""));
            let joined: String = choices.iter().map(|choice| choice["text"].as_str().unwrap()).collect();
            assert_eq!(joined, expected["text"].as_str().unwrap());
        }
        for chunk in &chunks {
            assert_eq!(chunk["object"], "text_completion");
            assert_eq!(chunk["id"], chunks[0]["id"]);
        }
    }
    server.stop().await;
}

/// Stop strings that begin in one token and end in another never show, not even their beginnings.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_string_is_found_across_chunks() {
    let server = TestServer::start(CHAT_MODEL).await;
    let whole = server.ask(CHAT, &hello(json!({ "max_tokens": 48 }))).await;
    let whole = whole["choices"][0]["message"]["content"].as_str().unwrap();
    let characters: Vec<char> = whole.chars().collect();
    for (from, len) in [(1, 2), (5, 6), (9, 12), (20, 3)] {
        let Some(stop) = characters.get(from..from + len) else { continue };
        let stop: String = stop.iter().collect();
        let body = hello(json!({ "max_tokens": 48, "stop": [stop], "logprobs": true }));
        let expected = server.ask(CHAT, &body).await;
        let chunks = stream(&server, CHAT, &body).await;
        let choices = of_choice(&chunks, 0);
        let joined: String = choices.iter().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
        assert_eq!(joined, whole[..whole.find(&stop).unwrap()], "{stop:?}");
        let last = choices.last().unwrap();
        assert_eq!((&last["finish_reason"], &last["stop_reason"]), (&json!("stop"), &json!(stop)));
        let tokens: Vec<Value> = choices
            .iter()
            .filter_map(|choice| choice["logprobs"]["content"].as_array())
            .flatten()
            .map(|token| token["token"].clone())
            .collect();
        let of_whole = expected["choices"][0]["logprobs"]["content"].as_array().unwrap();
        let of_whole: Vec<Value> = of_whole.iter().map(|token| token["token"].clone()).collect();
        assert_eq!(tokens, of_whole, "{stop:?}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_cannot_be_done_has_a_status_even_if_it_streams() {
    let server = TestServer::start(CHAT_MODEL).await;
    let response = server.post(CHAT, &hello(json!({ "stream": true, "temperature": 9 }))).await;
    assert_eq!(response.status(), 400);
    assert_eq!(response.headers()["content-type"], "application/json");
    server.stop().await;
}
