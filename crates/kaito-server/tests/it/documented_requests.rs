//! Every request that the documentation prints, with its body unchanged, against a live server.
//!
//! The bodies stand in `documented/`, byte for byte as `curl -d` sends them.

use kaito_engine::LoadOptions;
use kaito_testing::server::{CHAT_MODEL, META_MODEL, TestServer, load, options};
use serde_json::Value;

const DOCUMENTED: &str = "Accept: application/json\nContent-Type: application/json";

/// Sends a documented body as curl does and returns the answer, which must be a success.
async fn send(server: &TestServer, path: &str, file: &str) -> (Value, Value) {
    let name = format!("{}/tests/documented/{file}.json", env!("CARGO_MANIFEST_DIR"));
    let body = std::fs::read(&name).expect(&name);
    let sent = serde_json::from_slice(&body).expect("documented bodies are JSON");
    let mut request = server.client.post(format!("{}{path}", server.url)).body(body);
    for header in DOCUMENTED.lines() {
        let (name, value) = header.split_once(": ").expect("a header");
        request = request.header(name, value);
    }
    let response = request.send().await.expect("an answer");
    let status = response.status();
    let answer = response.text().await.expect("a whole body");
    assert_eq!(status, 200, "{path} {file}: {answer}");
    (sent, serde_json::from_str(&answer).expect("JSON"))
}

#[tokio::test(flavor = "multi_thread")]
async fn completions() {
    for model in [META_MODEL, CHAT_MODEL] {
        let server = TestServer::start(model).await;
        for file in ["completion", "completion_mis_encoded"] {
            let (sent, answer) = send(&server, "/generate", file).await;
            let prompts = sent["prompts"].as_array().unwrap();
            let results = answer["results"].as_array().unwrap();
            assert_eq!(answer.as_object().unwrap().len(), 1);
            assert_eq!((prompts.len(), results.len()), (4, 4));
            for (prompt, result) in prompts.iter().zip(results) {
                assert_eq!(result.as_object().unwrap().len(), 2);
                assert_eq!(&result["prompt"], prompt);
                assert!(result["response"].is_string());
            }
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mis_encoded_text_stays_as_it_is() {
    let server = TestServer::start(META_MODEL).await;
    let (_, answer) = send(&server, "/generate", "completion_mis_encoded").await;
    assert!(answer["results"][3]["prompt"].as_str().unwrap().contains("menthe poivrÃ©e"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dialogs() {
    const UNSAFE: &str = "Error: special tags are not allowed as part of the prompt.";
    for model in [META_MODEL, CHAT_MODEL] {
        // The longest dialog has more tokens here, with some 500 in the vocabulary, than with Llama 2's 32,000.
        let server = TestServer::start(model).await;
        for file in ["dialogs", "dialog_with_parameters", "dialog_with_system"] {
            let (sent, answer) = send(&server, "/chat", file).await;
            let dialogs = sent["input_data"]["input_string"].as_array().unwrap();
            let results = answer["results"].as_array().unwrap();
            assert_eq!(dialogs.len(), results.len(), "{file}");
            for (dialog, result) in dialogs.iter().zip(results) {
                let (dialog, result) = (dialog.as_array().unwrap(), result.as_array().unwrap());
                assert_eq!(dialog.len() + 1, result.len(), "the answer is appended");
                for (message, shown) in dialog.iter().zip(result) {
                    let role = match message["role"].as_str().unwrap() {
                        "system" => "System",
                        "user" => "User",
                        "assistant" => "Assistant",
                        other => panic!("{other}"),
                    };
                    assert_eq!(shown["role"], role);
                    assert_eq!(shown["content"], message["content"]);
                }
                let appended = result.last().unwrap();
                assert_eq!(appended["role"], "Assistant");
                let holds_tags = dialog.iter().any(|m| m["content"].as_str().unwrap().contains("[INST]"));
                assert_eq!(appended["content"] == UNSAFE, holds_tags);
            }
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn prompts() {
    for model in [CHAT_MODEL, "llama-bin-sharded-bf16", "mistral-window", "mistral-full-bf16", "phi3-longrope"] {
        let server = TestServer::start(model).await;
        for (file, whole) in [
            ("prompt", true),
            ("prompt_flat_parameters", true),
            ("prompt_flat_parameters_2", true),
            ("prompt_with_special_tokens", true),
            ("prompt_generate_kwargs", false),
        ] {
            let (sent, answer) = send(&server, "/chat", file).await;
            assert_eq!(answer.as_object().unwrap().len(), 1, "{answer}");
            let text = answer["Result"].as_str().unwrap();
            let prompt = sent["prompt"].as_str().unwrap();
            // The fixtures' models are random: they do not repeat the prompt by themselves.
            assert_eq!(text.starts_with(prompt), whole, "{model} {file}: {text}");
        }
        server.stop().await;
    }
}

/// Falcon's fixtures hold 64 positions, as their models' tokenizers say; the documented `max_length` 200 is cut there.
#[tokio::test(flavor = "multi_thread")]
async fn prompts_to_falcon() {
    for model in ["falcon-7b-type", "falcon-40b-type-bf16"] {
        let limits = LoadOptions { max_seq_len: Some(512), ..LoadOptions::default() };
        let server = TestServer::with(load(model, &limits), options()).await;
        for file in ["prompt", "prompt_flat_parameters", "prompt_flat_parameters_2"] {
            let (_, answer) = send(&server, "/chat", file).await;
            assert!(answer["Result"].as_str().unwrap().starts_with("YOUR_PROMPT_HERE"), "{model} {file}");
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_shutdown() {
    let server = TestServer::start(META_MODEL).await;
    for (path, body) in [("/", r#"{"message":"Server is running"}"#), ("/healthz", r#"{"status":"Healthy"}"#)] {
        let response = server.get(path).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "application/json");
        assert_eq!(response.text().await.unwrap(), body);
    }
    let response = server.client.post(format!("{}/shutdown", server.url)).send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.text().await.unwrap().as_str()), (200, "{}"));
    server.ended().await.unwrap();
}
