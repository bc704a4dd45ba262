//! Which models there are, and by which names.

use std::net::Ipv4Addr;
use std::sync::mpsc;

use kaito_engine::{LanguageModel, LoadOptions};
use kaito_server::{Server, ServerOptions};
use kaito_testing::server::{CHAT_MODEL, TestServer, load, options};
use serde_json::{Value, json};

use super::{CHAT, COMPLETIONS, hello, keys, text};

#[tokio::test(flavor = "multi_thread")]
async fn the_model_is_listed_by_its_served_names() {
    let named = ServerOptions {
        served_model_names: vec!["main".to_owned(), "org/other".to_owned()],
        repository: Some("meta-llama/Llama-2-7b-chat-hf".to_owned()),
        ..options()
    };
    let server = TestServer::with(load(CHAT_MODEL, &LoadOptions::default()), named).await;
    for path in ["/v1/models", "/models"] {
        let list: Value = server.get(path).await.json().await.unwrap();
        assert_eq!(list["object"], "list");
        let models = list["data"].as_array().unwrap();
        assert_eq!(models.iter().map(|model| model["id"].as_str().unwrap()).collect::<Vec<_>>(), ["main", "org/other"]);
        let names = ["created", "id", "max_model_len", "object", "owned_by", "parent", "permission", "root"];
        assert_eq!(keys(&models[0]), names);
        assert_eq!((&models[0]["object"], &models[0]["owned_by"]), (&json!("model"), &json!("kaito")));
        assert_eq!(models[0]["max_model_len"], server.model.info().max_seq_len);
        assert_eq!((&models[0]["parent"], &models[0]["permission"]), (&Value::Null, &json!([])));
        assert_eq!(models[0]["root"], "meta-llama/Llama-2-7b-chat-hf");
    }
    for id in [
        "main",
        "org/other",
        "org%2Fother",
        "meta-llama/Llama-2-7b-chat-hf",
        "meta-llama%2FLlama-2-7b-chat-hf",
        "default",
    ] {
        let model = server.get(&format!("/v1/models/{id}")).await;
        assert_eq!(model.status(), 200, "{id}");
        assert_eq!(model.json::<Value>().await.unwrap()["id"], id.replace("%2F", "/"));
    }
    for (path, body) in [(CHAT, hello(json!({}))), (COMPLETIONS, text(json!({})))] {
        for name in ["main", "org/other", "meta-llama/Llama-2-7b-chat-hf", "default", ""] {
            let answer = server.ask(path, &super::with(body.clone(), json!({ "model": name }))).await;
            assert_eq!(answer["model"], "main", "{name}");
        }
    }
    let refused: Value = server.post(CHAT, &hello(json!({ "model": "gpt-4o" }))).await.json().await.unwrap();
    let message = refused["error"]["message"].as_str().unwrap();
    assert!(["gpt-4o", "main", "org/other"].iter().all(|name| message.contains(name)), "{message}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_name_may_be_answered() {
    let any = ServerOptions { any_model_name: true, ..options() };
    let server = TestServer::with(load(CHAT_MODEL, &LoadOptions::default()), any).await;
    let answer = server.ask(CHAT, &hello(json!({ "model": "gpt-4o" }))).await;
    assert_eq!(answer["model"], "tiny");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_model_loads_there_is_none() {
    let server = Server::bind(ServerOptions { address: (Ipv4Addr::LOCALHOST, 0).into(), ..options() }).await.unwrap();
    let url = format!("http://{}", server.local_addr());
    let handle = server.shutdown_handle();
    let (go_on, wait) = mpsc::channel::<()>();
    let running = tokio::spawn(server.run(move |_| {
        let _ = wait.recv();
        Ok::<LanguageModel, kaito_server::Error>(load(CHAT_MODEL, &LoadOptions::default()))
    }));
    let client = reqwest::Client::new();
    let list: Value = client.get(format!("{url}/v1/models")).send().await.unwrap().json().await.unwrap();
    assert_eq!(list, json!({ "object": "list", "data": [] }));
    let chat = client.post(format!("{url}{CHAT}")).json(&hello(json!({}))).send().await.unwrap();
    assert_eq!(chat.status(), 503);
    assert!(chat.headers().contains_key("retry-after"));
    let error = chat.json::<Value>().await.unwrap()["error"].clone();
    assert_eq!((&error["type"], &error["code"]), (&json!("server_error"), &json!("loading")));
    drop(go_on);
    handle.shutdown();
    running.await.unwrap().unwrap();
}
