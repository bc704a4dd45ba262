//! Prompts that cannot fit, and what they leave to others.

use kaito_engine::dialects::meta::{ChatRequest, CompletionRequest, MetaOptions};
use kaito_engine::dialects::transformers::TextRequest;
use kaito_engine::{Cancel, ChatMessage, Error, LoadOptions, Request};
use kaito_server::ServerOptions;
use kaito_testing::server::{CHAT_MODEL, META_MODEL, TestServer, load, options};
use serde_json::{Value, json};

const LONG: usize = 1_000_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_that_cannot_fit_is_refused_by_its_bytes() {
    for model in [CHAT_MODEL, META_MODEL, "falcon-7b-type", "phi3-window", "mistral-window"] {
        // Some characters take six bytes of JSON.
        let options = ServerOptions { body_limit: 6 * LONG + 1000, ..options() };
        let server = TestServer::with(load(model, &LoadOptions::default()), options).await;
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
            if server.model.info().chat_template {
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
    // Long enough to wait for each other, and not refused by their bytes.
    let long = json!({ "prompt": "a ".repeat(20_000), "handle_long_generation": "hole", "max_new_tokens": 1 });
    let long = format!("{long}{}", " ".repeat(200_000));
    let send = || {
        let request = server.client.post(format!("{}/chat", server.url)).header("content-type", "application/json");
        tokio::spawn(request.body(long.clone()).send())
    };
    let longs: Vec<_> = (0..16).map(|_| send()).collect();
    for _ in 0..8 {
        server.ask("/chat", &json!({ "prompt": "a", "max_new_tokens": 1 })).await;
    }
    for long in longs {
        assert_eq!(long.await.unwrap().unwrap().status(), 200);
    }
    server.all_pages_free().await;
    server.stop().await;
}

#[test]
fn a_request_for_which_nobody_waits_is_not_begun() {
    let model = load(META_MODEL, &LoadOptions::default());
    let cancel = Cancel::default();
    cancel.cancel();
    let context = model.context();
    let request = Request { prompt: "a".into(), ..Request::default() };
    let text = TextRequest { input: "a".into(), ..TextRequest::default() };
    let completion = CompletionRequest { prompts: vec!["a".to_owned()], options: MetaOptions::default() };
    let message = ChatMessage { role: "user".to_owned(), content: "a".to_owned() };
    let dialog = ChatRequest { dialogs: vec![vec![message]], options: MetaOptions::default() };
    assert!(matches!(request.prepare(context, &cancel), Err(Error::Cancelled)));
    assert!(matches!(text.prepare(context, &cancel), Err(Error::Cancelled)));
    assert!(matches!(completion.prepare(context, &cancel), Err(Error::Cancelled)));
    assert!(matches!(dialog.prepare(context, &cancel), Err(Error::Cancelled)));
    let stats = model.stats();
    assert_eq!((stats.waiting, stats.running), (0, 0));
}
