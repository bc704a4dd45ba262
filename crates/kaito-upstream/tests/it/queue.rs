//! The queue, deadlines, the end, and clients that go away: the front's own, as with an engine of its own.

use std::{collections::BTreeMap, time::Duration};

use futures_util::StreamExt;
use kaito_server::ServerOptions;
use kaito_testing::{server::options, upstream::Fault, wait::eventually};
use kaito_upstream::UpstreamOptions;
use serde_json::{Value, json};

use crate::front::{COMPLETIONS, Front, error, tokens, with};

/// Runs so many sequences at a time, and lets so many requests wait.
async fn narrow(sequences: usize, waiting: usize, server: ServerOptions) -> Front {
    Front::with(server, |upstream| UpstreamOptions { max_batch_size: sequences, max_waiting: waiting, ..upstream })
        .await
}

fn stats(front: &Front) -> (usize, usize) {
    let stats = kaito_server::Model::stats(&front.server.model);
    (stats.running, stats.waiting)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_answers_429_and_admitted_requests_are_answered() {
    let front = narrow(2, 3, options()).await;
    front.engine.allow(0);
    let sent: Vec<_> = (0..5).map(|_| tokio::spawn(front.server.request(COMPLETIONS, &tokens(2)).send())).collect();
    eventually("two run and three wait", async || stats(&front) == (2, 3)).await;
    let refused = front.server.post(COMPLETIONS, &tokens(2)).await;
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(error(refused).await, (429, "3 requests are waiting and at most 3 may; try again later.".to_owned()));
    assert_eq!(front.server.get("/healthz").await.status(), 200, "a full queue is no fault");
    assert_eq!(front.engine.open(), 2);
    front.engine.release();
    let mut statuses = BTreeMap::<u16, usize>::new();
    for answer in sent {
        *statuses.entry(answer.await.unwrap().unwrap().status().as_u16()).or_default() += 1;
    }
    assert_eq!(statuses, BTreeMap::from([(200, 5)]));
    eventually("nothing runs", async || stats(&front) == (0, 0)).await;
    front.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_sequences_than_run_at_a_time_come_one_after_the_other() {
    let front = narrow(2, 100, options()).await;
    let body = with(tokens(6), json!({ "n": 2, "prompt": ["a", "b", "c"], "temperature": 1.0, "seed": 1 }));
    let answer = front.server.ask(COMPLETIONS, &body).await;
    assert_eq!(answer["choices"].as_array().unwrap().len(), 6);
    assert_eq!(answer["usage"]["completion_tokens"], 36);
    front.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_ends_the_work_for_it() {
    let front = Front::start().await;
    front.engine.allow(3);
    let streaming = with(tokens(900), json!({ "stream": true }));
    let mut pieces = front.server.post(COMPLETIONS, &streaming).await.bytes_stream();
    pieces.next().await.unwrap().unwrap();
    let whole =
        tokio::spawn(front.server.request(COMPLETIONS, &with(tokens(900), json!({ "n": 3, "temperature": 1 }))).send());
    eventually("four sequences run", async || front.engine.open() == 4).await;
    drop(pieces);
    whole.abort();
    eventually("the engine is told", async || front.engine.open() == 0 && stats(&front) == (0, 0)).await;
    front.engine.release();
    front.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_in_the_queue_leaves_it() {
    let front = narrow(1, 5, options()).await;
    front.engine.allow(0);
    let runs = tokio::spawn(front.server.request(COMPLETIONS, &tokens(2)).send());
    eventually("one runs", async || stats(&front) == (1, 0)).await;
    let waits = tokio::spawn(front.server.request(COMPLETIONS, &tokens(2)).send());
    eventually("one waits", async || stats(&front) == (1, 1)).await;
    waits.abort();
    eventually("none waits", async || stats(&front) == (1, 0)).await;
    front.engine.release();
    assert_eq!(runs.await.unwrap().unwrap().status(), 200);
    assert_eq!(front.engine.requests().len(), 1, "nothing was asked for a client that had gone");
    front.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_outlives_the_limit_gets_408_and_its_engine_is_told() {
    let limit = Duration::from_millis(300);
    let front = narrow(8, 8, ServerOptions { request_timeout: limit, ..options() }).await;
    front.engine.next([Fault::Hang(1)]);
    let (status, said) = error(front.server.post(COMPLETIONS, &tokens(3)).await).await;
    assert_eq!((status, said.as_str()), (408, "The request took longer than the limit of 0.3 s."));
    eventually("the engine is told", async || front.engine.open() == 0).await;
    front.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_lets_admitted_requests_finish_and_takes_no_new_ones() {
    let front = narrow(1, 5, options()).await;
    front.engine.allow(1);
    let runs = tokio::spawn(front.server.request(COMPLETIONS, &tokens(4)).send());
    eventually("one runs", async || front.engine.is_held()).await;
    let waits = tokio::spawn(front.server.request(COMPLETIONS, &tokens(4)).send());
    eventually("one waits", async || stats(&front) == (1, 1)).await;
    front.server.shut_down();
    eventually("nothing is taken", async || {
        let answer = front.server.request(COMPLETIONS, &tokens(1)).send().await;
        answer.is_ok_and(|answer| answer.status() == 503)
    })
    .await;
    front.engine.release();
    for answer in [runs, waits] {
        let answer: Value = answer.await.unwrap().unwrap().json().await.unwrap();
        assert_eq!(answer["usage"]["completion_tokens"], 4);
    }
    front.server.ended().await.unwrap();
}
