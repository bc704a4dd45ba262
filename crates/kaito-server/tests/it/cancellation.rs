//! Clients that hang up.

use futures_util::StreamExt;
use kaito_engine::testing::NullModel;
use kaito_testing::{
    server::{TestServer, options},
    wait::eventually,
};

use crate::null_model::{one_runs_and_one_waits, serve, stream, tokens};

/// Far more than any test lets the model compute.
const LONG: usize = 900;

/// Lets the model compute until all pages are free, which it is long before the answer would be whole.
async fn pages_come_back(server: &TestServer, null: &NullModel) {
    eventually("all pages are free", async || {
        null.device.allow(1);
        let stats = server.model.stats();
        (stats.pages_used, stats.running, stats.waiting) == (0, 0, 0)
    })
    .await;
    let generated = server.model.stats().generated_tokens_total;
    assert!(generated < LONG as u64, "{generated} tokens were computed for nobody");
    null.device.release();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_in_a_stream_frees_its_pages() {
    let (server, null) = serve(8, options()).await;
    null.device.allow(5);
    let mut pieces = server.post("/chat", &stream(LONG)).await.bytes_stream();
    pieces.next().await.unwrap().unwrap();
    null.device.waits().await;
    assert!(server.model.stats().pages_used > 0);
    drop(pieces);
    pages_come_back(&server, &null).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_before_its_answer_frees_its_pages_and_is_counted() {
    let (server, null) = serve(8, options()).await;
    null.device.allow(5);
    let waiting = tokio::spawn(server.request("/chat", &tokens(LONG)).send());
    null.device.waits().await;
    assert!(server.model.stats().pages_used > 0);
    waiting.abort();
    pages_come_back(&server, &null).await;
    let counted = r#"kaito_requests_total{route="/chat",status="499"} 1"#;
    eventually("it is counted", async || server.get("/metrics").await.text().await.unwrap().contains(counted)).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_in_the_queue_leaves_it() {
    let (server, null) = serve(1, options()).await;
    let [runs, waits] = one_runs_and_one_waits(&server, &null, &tokens(LONG)).await;
    waits.abort();
    let counted = r#"kaito_requests_total{route="/chat",status="499"} 1"#;
    eventually("it is counted", async || server.get("/metrics").await.text().await.unwrap().contains(counted)).await;
    null.device.release();
    assert_eq!(runs.await.unwrap().unwrap().status(), 200);
    server.all_pages_free().await;
    assert_eq!(server.model.stats().generated_tokens_total, 2, "nothing was computed for clients that had gone");
    server.stop().await;
}
