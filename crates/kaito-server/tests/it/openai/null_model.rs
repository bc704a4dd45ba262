//! Requests whose tokens do not matter, over a model that waits where it is told to.

use futures_util::StreamExt;
use kaito_engine::testing::Phase;
use kaito_testing::{server::options, wait::eventually};
use serde_json::{Value, json};

use super::{CHAT, COMPLETIONS};
use crate::null_model::{one_runs_and_one_waits, serve, tokens};

fn completion(count: usize) -> Value {
    json!({ "prompt": "Hello", "temperature": 0, "max_tokens": count, "min_tokens": count })
}

fn streamed(count: usize) -> Value {
    super::with(completion(count), json!({ "stream": true }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_frees_its_pages() {
    const LONG: usize = 900;
    let (server, null) = serve(8, options()).await;
    null.device.allow(5);
    let mut pieces = server.post(COMPLETIONS, &streamed(LONG)).await.bytes_stream();
    pieces.next().await.unwrap().unwrap();
    null.device.waits().await;
    assert!(server.model.stats().pages_used > 0);
    drop(pieces);
    eventually("all pages are free", async || {
        null.device.allow(1);
        let stats = server.model.stats();
        (stats.pages_used, stats.running, stats.waiting) == (0, 0, 0)
    })
    .await;
    assert!(server.model.stats().generated_tokens_total < LONG as u64, "tokens were computed for nobody");
    null.device.release();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_says_nothing_while_its_request_waits() {
    let (server, null) = serve(1, options()).await;
    let [runs, waits] = one_runs_and_one_waits(&server, &null, &tokens(2)).await;
    // It waits as the other does: its head is there, and no chunk, although the first one could be written now.
    let response = server.post(COMPLETIONS, &super::with(streamed(2), json!({ "echo": true }))).await;
    assert_eq!(response.status(), 200);
    let mut pieces = response.bytes_stream();
    let waiting = tokio::time::timeout(std::time::Duration::from_millis(100), pieces.next()).await;
    assert!(waiting.is_err(), "a chunk came before the request left the queue");
    null.device.release();
    let mut body = Vec::new();
    while let Some(piece) = pieces.next().await {
        body.extend(piece.unwrap());
    }
    assert_eq!(super::chunks(&String::from_utf8(body).unwrap())[0]["choices"][0]["text"], "Hello");
    for answer in [runs, waits] {
        assert_eq!(answer.await.unwrap().unwrap().status(), 200);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_in_a_stream_is_an_event_and_the_end() {
    let (server, null) = serve(8, options()).await;
    null.device.allow(3);
    let response = server.post(COMPLETIONS, &streamed(50)).await;
    assert_eq!(response.status(), 200);
    null.device.waits().await;
    null.requests.arm(Phase::Settle, 0);
    null.device.release();
    let chunks = super::chunks(&response.text().await.unwrap());
    let last = chunks.last().unwrap();
    let error = last["error"].as_object().expect("an error");
    assert_eq!(error["type"], "server_error");
    assert!(error["message"].is_string() && error.contains_key("param") && error.contains_key("code"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_says_when_to_come_back() {
    let (server, null) = serve(1, options()).await;
    let [runs, waits] = one_runs_and_one_waits(&server, &null, &tokens(2)).await;
    let others: Vec<_> = (1..crate::null_model::WAITING)
        .map(|_| tokio::spawn(server.request(COMPLETIONS, &completion(1)).send()))
        .collect();
    eventually("the queue is full", async || server.model.stats().waiting == crate::null_model::WAITING).await;
    let refused = server.post(COMPLETIONS, &completion(1)).await;
    assert_eq!(refused.status(), 429);
    assert!(refused.headers().contains_key("retry-after"));
    let error = refused.json::<Value>().await.unwrap()["error"].clone();
    assert_eq!((&error["type"], &error["code"]), (&json!("rate_limit_error"), &json!("queue_full")));
    null.device.release();
    for answer in others.into_iter().chain([runs, waits]) {
        assert_eq!(answer.await.unwrap().unwrap().status(), 200);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_has_its_code() {
    let short = kaito_server::ServerOptions { request_timeout: std::time::Duration::from_millis(300), ..options() };
    let (server, null) = serve(8, short).await;
    null.device.allow(0);
    let late = server.post(COMPLETIONS, &completion(5)).await;
    assert_eq!(late.status(), 408);
    let error = late.json::<Value>().await.unwrap()["error"].clone();
    assert_eq!((&error["type"], &error["code"]), (&json!("server_error"), &json!("timeout")));
    null.device.release();
    assert_eq!(server.post(CHAT, &json!({})).await.status(), 400);
    server.stop().await;
}
