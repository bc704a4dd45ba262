//! More requests than can be run or queued, and requests that take too long.

use std::{collections::BTreeMap, time::Duration};

use kaito_server::ServerOptions;
use kaito_testing::{
    server::{options, parse_events},
    wait::eventually,
};
use serde_json::json;

use crate::null_model::{WAITING, detail, serve, stream, tokens};

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_answers_429_and_admitted_requests_are_answered() {
    let (server, null) = serve(8, options()).await;
    null.device.allow(0);
    let sent: Vec<_> = (0..WAITING + 20).map(|_| tokio::spawn(server.request("/chat", &tokens(2)).send())).collect();
    null.device.waits().await;
    eventually("the queue is full", async || server.model.stats().waiting == WAITING).await;
    let refused = server.post("/chat", &tokens(2)).await;
    assert_eq!(refused.status(), 429);
    assert!(refused.headers()["retry-after"].to_str().unwrap().parse::<u32>().unwrap() > 0);
    assert_eq!(detail(refused).await, "100 requests are waiting and at most 100 may; try again later.");
    assert_eq!(server.get("/healthz").await.status(), 200, "a full queue is no fault");

    null.device.release();
    let mut statuses = BTreeMap::<u16, usize>::new();
    for answer in sent {
        *statuses.entry(answer.await.unwrap().unwrap().status().as_u16()).or_default() += 1;
    }
    assert!(statuses.keys().all(|status| [200, 429].contains(status)), "{statuses:?}");
    assert!(statuses[&200] > WAITING, "those that ran, and those that waited: {statuses:?}");
    server.all_pages_free().await;
    server.ask("/chat", &tokens(2)).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_outlives_the_limit_gets_408_and_frees_its_pages() {
    let limit = Duration::from_millis(300);
    let (server, null) = serve(8, ServerOptions { request_timeout: limit, ..options() }).await;
    null.device.allow(0);
    let late = server.post("/chat", &tokens(2)).await;
    assert_eq!(late.status(), 408);
    assert_eq!(detail(late).await, "The request took longer than the limit of 0.3 s.");
    assert!(server.model.stats().pages_used > 0);
    null.device.release();
    server.all_pages_free().await;

    // A client that never sends its body is no better.
    let slow = reqwest::Body::wrap_stream(futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>());
    let request = server.client.post(format!("{}/chat", server.url)).header("content-type", "application/json");
    assert_eq!(request.body(slow).send().await.unwrap().status(), 408);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_outlives_the_limit_ends_with_an_error() {
    let limit = Duration::from_secs(1);
    let (server, null) = serve(8, ServerOptions { request_timeout: limit, ..options() }).await;
    null.device.allow(0);
    let late = server.post("/chat", &stream(2)).await;
    assert_eq!(late.status(), 200);
    let events = parse_events(&late.text().await.unwrap());
    let last = events.last().unwrap();
    assert_eq!(last.name, "error");
    assert_eq!(last.data, json!({ "status": 408, "detail": "The request took longer than the limit of 1 s." }));
    null.device.release();
    server.all_pages_free().await;
    server.stop().await;
}
