//! The end of a server waits for admitted requests, and for nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing helper fails its test")]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;

use common::raw::{blocking, connect, post, read_all};
use common::{CHAT_MODEL, TestServer, eventually};
use serde_json::{Value, json};

/// Reads the head of an answer and its body of known length; the connection stays open.
fn read_one(stream: &mut TcpStream) {
    let mut seen = Vec::new();
    while !seen.ends_with(br#"{"status":"Healthy"}"#) {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        seen.push(byte[0]);
    }
}

// The limit for the draining is three minutes, and a test server that has not ended after one fails its test.

#[tokio::test(flavor = "multi_thread")]
async fn nobody_who_was_not_admitted_delays_the_end() {
    let server = TestServer::start(CHAT_MODEL).await;
    let address = server.address();
    let open = move |sent: &[u8]| {
        let mut stream = connect(address);
        stream.write_all(sent).unwrap();
        stream
    };
    let health = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let (silent, idle, half_head, half_body, second_head) = blocking(move || {
        let mut idle = open(health);
        read_one(&mut idle);
        let mut second_head = open(health);
        read_one(&mut second_head);
        second_head.write_all(b"POST /chat HT").unwrap();
        let half_body = post("/chat", "Content-Length: 100\r\n", b"{");
        (open(b""), idle, open(b"POST /chat HTTP/1.1\r\nHost: localhost\r\n"), open(&half_body), second_head)
    })
    .await;
    // All of them have arrived.
    for _ in 0..3 {
        assert_eq!(server.get("/healthz").await.status(), 200);
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    server.shut_down();
    for (name, mut stream, status) in [
        ("silent", silent, 0),
        ("idle", idle, 0),
        ("half a head", half_head, 503),
        ("half a body", half_body, 503),
        ("half a second head", second_head, 503),
    ] {
        let answer = blocking(move || read_all(&mut stream)).await;
        assert_eq!(answer.status(), status, "{name}: {answer:?}");
        if status == 503 {
            assert_eq!(answer.body(), r#"{"detail":"The server is shutting down."}"#, "{name}");
        }
    }
    server.ended().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_body_neither_delays_nor_cuts_an_admitted_request() {
    let server = TestServer::start(CHAT_MODEL).await;
    let address = server.address();
    let _half = blocking(move || {
        let mut stream = connect(address);
        stream.write_all(&post("/chat", "Content-Length: 100\r\n", b"{")).unwrap();
        stream
    })
    .await;
    let body = json!({ "prompt": "Hello", "num_return_sequences": 32, "max_length": 500, "min_length": 500 });
    let running = tokio::spawn(server.client.post(format!("{}/chat", server.url)).json(&body).send());
    eventually("it runs", async || server.model.stats().generated_tokens_total > 0).await;
    server.shut_down();
    let answer = running.await.unwrap().unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.json::<Value>().await.unwrap()["Result"].is_string());
    server.ended().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_waits_for_its_turn_is_admitted() {
    let (model, work) = common::busy_model();
    let server = TestServer::with(model, common::options()).await;
    let waits = tokio::spawn(server.client.post(format!("{}/chat", server.url)).json(&json!({ "prompt": "a" })).send());
    let before = work.len();
    eventually("it waits", async || server.model.stats().waiting + server.model.stats().running > before).await;
    server.shut_down();
    drop(work);
    assert_eq!(waits.await.unwrap().unwrap().status(), 200);
    server.ended().await.unwrap();
}
