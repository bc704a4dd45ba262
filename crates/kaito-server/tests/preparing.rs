//! Prompts that cannot fit, and what they leave to others.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing helper fails its test")]

mod common;

use common::{CHAT_MODEL, META_MODEL, TestServer};
use kaito_engine::LoadOptions;
use kaito_server::ServerOptions;
use serde_json::{Value, json};

const LONG: usize = 4_000_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_that_cannot_fit_is_refused_by_its_bytes() {
    for model in [CHAT_MODEL, META_MODEL, "falcon-7b-type", "phi3-window", "mistral-window"] {
        // Some characters take six bytes of JSON.
        let options = ServerOptions { body_limit: 6 * LONG + 1000, ..common::options() };
        let server = TestServer::with(common::load(model, &LoadOptions::default()), options).await;
        let chat = model != META_MODEL && model != "falcon-7b-type";
        for filler in [" ", "a", "é", "<|end|>", "\n"] {
            let text = filler.repeat(LONG / filler.len());
            let dialog = json!([{ "role": "user", "content": format!("a{text}b") }]);
            let mut cases = vec![
                ("/chat", json!({ "prompt": text }), "the prompt"),
                ("/chat", json!({ "prompt": "a", "prefix": text }), "the prompt"),
                (
                    "/chat",
                    json!({ "prompt": text, "handle_long_generation": "hole", "max_new_tokens": 2 }),
                    "the prompt",
                ),
                ("/generate", json!({ "prompts": ["a", text] }), "prompt 1"),
                ("/chat", json!({ "input_data": { "input_string": [dialog] } }), "dialog 0"),
            ];
            if chat {
                cases.push(("/chat", json!({ "messages": dialog }), "the prompt"));
            }
            for (path, body, what) in cases {
                let response = server.post(path, &body).await;
                let status = response.status();
                let answer: Value = response.json().await.unwrap();
                let detail = answer["detail"].as_str().unwrap_or_default().to_lowercase();
                assert_eq!(status, 400, "{model} {path} {filler:?} {detail}");
                let said =
                    detail.starts_with(&format!("{what} has ")) && detail.contains(" bytes, which are at least ");
                assert!(said, "{model} {path} {filler:?} {detail}");
            }
        }
        server.ask("/generate", &json!({ "prompts": ["a"], "parameters": { "max_gen_len": 1 } })).await;
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn short_requests_are_answered_beside_long_ones() {
    let server = TestServer::start(CHAT_MODEL).await;
    // As long as a prompt can be before it is refused unread, and sixteen of them.
    let long = json!({ "prompt": " ".repeat(3_900_000), "handle_long_generation": "hole", "max_new_tokens": 1 });
    let longs = (0..16).map(|_| tokio::spawn(server.client.post(format!("{}/chat", server.url)).json(&long).send()));
    let longs: Vec<_> = longs.collect();
    for _ in 0..8 {
        server.ask("/chat", &json!({ "prompt": "a", "max_new_tokens": 1 })).await;
    }
    for long in longs {
        assert_eq!(long.await.unwrap().unwrap().status(), 400);
    }
    server.stop().await;
}
