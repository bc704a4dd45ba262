//! What the tokenizer and the chat template make of texts.

use kaito_testing::server::{CHAT_MODEL, TestServer};
use serde_json::{Value, json};

use super::{CHAT, COMPLETIONS, hello};

#[tokio::test(flavor = "multi_thread")]
async fn a_text_and_its_tokens() {
    let server = TestServer::start(CHAT_MODEL).await;
    for body in [json!({ "prompt": "Hello wörld" }), json!({ "prompt": "Hello wörld", "model": "tiny" })] {
        let answer = server.ask("/tokenize", &body).await;
        let count = answer["tokens"].as_array().unwrap().len();
        assert_eq!(
            answer,
            json!({
                "count": count, "max_model_len": server.model.info().max_seq_len,
                "tokens": answer["tokens"], "token_strs": null
            })
        );
        let used = server.ask(COMPLETIONS, &json!({ "prompt": "Hello wörld", "max_tokens": 1 })).await;
        assert_eq!(used["usage"]["prompt_tokens"], count, "it is what a request would cost");
    }
    let bare = server.ask("/tokenize", &json!({ "prompt": "Hello wörld", "add_special_tokens": false })).await;
    let content = server.ask("/tokenize", &json!({ "content": "Hello wörld" })).await;
    assert_eq!(content, json!({ "tokens": bare["tokens"] }));
    let special = server.ask("/tokenize", &json!({ "content": "Hello wörld", "add_special": true })).await;
    assert_ne!(special["tokens"], bare["tokens"]);

    for (body, expected) in [
        (json!({ "tokens": bare["tokens"] }), json!({ "content": "Hello wörld", "prompt": "Hello wörld" })),
        (json!({ "tokens": bare["tokens"], "model": "tiny" }), json!({ "prompt": "Hello wörld" })),
    ] {
        assert_eq!(server.ask("/detokenize", &body).await, expected);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_are_texts_or_bytes() {
    let server = TestServer::start(CHAT_MODEL).await;
    let text = "Hi 😀";
    let answer = server.ask("/tokenize", &json!({ "content": text, "with_pieces": true })).await;
    let mut bytes = Vec::new();
    for token in answer["tokens"].as_array().unwrap() {
        assert!(token["id"].is_u64());
        match &token["piece"] {
            Value::String(piece) => bytes.extend(piece.bytes()),
            Value::Array(piece) => bytes.extend(piece.iter().map(|byte| u8::try_from(byte.as_u64().unwrap()).unwrap())),
            other => panic!("{other}"),
        }
    }
    assert_eq!(String::from_utf8(bytes).unwrap().trim_start(), text);
    let strings = server.ask("/tokenize", &json!({ "prompt": text, "return_token_strs": true })).await;
    assert_eq!(strings["token_strs"].as_array().unwrap().len(), strings["tokens"].as_array().unwrap().len());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_and_its_prompt() {
    let server = TestServer::start(CHAT_MODEL).await;
    let chat = server.ask(CHAT, &hello(json!({}))).await;
    let written = server.ask("/apply-template", &hello(json!({}))).await["prompt"].clone();
    let tokens = server.ask("/tokenize", &hello(json!({}))).await;
    assert_eq!(tokens["count"], chat["usage"]["prompt_tokens"], "it is what the request costs");
    let of_text = server.ask("/tokenize", &json!({ "prompt": written, "add_special_tokens": false })).await;
    assert_eq!(of_text["tokens"], tokens["tokens"]);
    let body = json!({ "prompt": written, "add_special_tokens": false, "temperature": 0, "max_tokens": 24, "ignore_eos": true });
    let completion = server.ask(COMPLETIONS, &body).await;
    assert_eq!(completion["choices"][0]["text"], chat["choices"][0]["message"]["content"]);
    let without =
        server.ask("/apply-template", &hello(json!({ "add_generation_prompt": false }))).await["prompt"].clone();
    assert!(written.as_str().unwrap().starts_with(without.as_str().unwrap().trim_end()), "{written} {without}");
    server.stop().await;
}
