//! SIGTERM reaches every server of the process, so this test has a process of its own.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing helper fails its test")]

use kaito_testing::server::{CHAT_MODEL, TestServer};
use kaito_testing::wait::eventually;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_the_server_after_the_running_requests() {
    let server = TestServer::start(CHAT_MODEL).await;
    let body = json!({ "prompt": "Hello", "num_return_sequences": 16, "max_length": 500, "min_length": 500 });
    let running = tokio::spawn(server.request("/chat", &body).send());
    eventually("it runs", async || server.model.stats().generated_tokens_total > 0).await;
    let pid = std::process::id().to_string();
    let killed = std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap();
    assert!(killed.success());
    assert_eq!(running.await.unwrap().unwrap().status(), 200);
    server.ended().await.unwrap();
}
