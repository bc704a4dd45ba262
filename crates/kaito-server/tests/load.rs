//! Many clients at once on the demo model, a third of whom hang up midway.
//!
//! Runs for `KAITO_LOAD_SECONDS` seconds, 5 by default. It has a process of its own, so that nothing runs beside it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing helper fails its test")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use kaito_engine::{LanguageModel, LoadOptions};
use kaito_testing::files::repository;
use kaito_testing::server::{TestServer, options};
use serde_json::{Value, json};

const CLIENTS: usize = 64;

/// The kinds of requests, by number.
fn request(kind: usize) -> (&'static str, Value) {
    let prompt = format!("Request {kind} asks");
    match kind % 8 {
        0 => ("/chat", json!({ "prompt": prompt, "do_sample": false, "max_new_tokens": 40 })),
        1 => ("/chat", json!({ "prompt": prompt, "max_new_tokens": 40, "num_return_sequences": 3 })),
        2 => ("/chat", json!({ "prompt": prompt, "do_sample": false, "num_beams": 4, "max_new_tokens": 24 })),
        3 => ("/chat", json!({ "prompt": prompt.repeat(8), "max_new_tokens": 60, "stream": true })),
        4 => (
            "/chat",
            json!({ "messages": [{ "role": "user", "content": prompt }], "max_new_tokens": 30, "stream": true }),
        ),
        5 => ("/generate", json!({ "prompts": [prompt, "another"], "parameters": { "max_gen_len": 30 } })),
        6 => (
            "/chat",
            json!({ "prompt": prompt, "do_sample": false, "num_beams": 4, "num_beam_groups": 2,
                    "diversity_penalty": 1.0, "max_new_tokens": 16 }),
        ),
        _ => (
            "/chat",
            json!({ "input_data": { "input_string": [[{ "role": "user", "content": prompt }]] },
                    "parameters": { "max_gen_len": 30 }, "stream": true }),
        ),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_of_whom_a_third_hang_up() {
    let seconds = std::env::var("KAITO_LOAD_SECONDS").map_or(5, |text| text.parse().expect("a number of seconds"));
    let load = LoadOptions { max_waiting: 32, ..LoadOptions::default() };
    let demo = repository().join("models/demo");
    let model = LanguageModel::load(&demo, &load, &|_| ()).expect("the demo model loads");
    let server = TestServer::with(model, options()).await;
    let end = Instant::now() + Duration::from_secs(seconds);
    let statuses = Arc::new(Mutex::new(BTreeMap::<u16, usize>::new()));
    let hung_up = Arc::new(AtomicUsize::new(0));

    let clients = (0..CLIENTS).map(|number| {
        let (url, client) = (server.url.clone(), server.client.clone());
        let (statuses, hung_up) = (Arc::clone(&statuses), Arc::clone(&hung_up));
        tokio::spawn(async move {
            let mut turn = number;
            while Instant::now() < end {
                let (path, body) = request(turn);
                let request = client.post(format!("{url}{path}")).json(&body).send();
                let patience = if turn % 3 == 0 { Duration::from_millis(5 + turn as u64 % 200) } else { Duration::MAX };
                let whole = async {
                    let response = request.await.expect("an answer");
                    let status = response.status().as_u16();
                    let mut body = response.bytes_stream();
                    let mut last = Vec::new();
                    while let Some(piece) = body.next().await {
                        last = piece.expect("the body does not break off").to_vec();
                    }
                    assert!(!String::from_utf8_lossy(&last).contains("event: error"), "{last:?}");
                    status
                };
                match tokio::time::timeout(patience, whole).await {
                    Ok(status) => {
                        *statuses.lock().unwrap().entry(status).or_default() += 1;
                        if status == 429 {
                            tokio::time::sleep(Duration::from_millis(50)).await;
                        }
                    }
                    Err(_) => {
                        hung_up.fetch_add(1, Ordering::Relaxed);
                    }
                }
                turn += 7;
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.expect("the client saw nothing wrong");
    }

    let statuses = statuses.lock().unwrap().clone();
    println!("statuses: {statuses:?}, hung up: {}", hung_up.load(Ordering::Relaxed));
    assert!(statuses.keys().all(|status| [200, 429].contains(status)), "{statuses:?}");
    assert!(statuses[&200] > CLIENTS, "{statuses:?}");
    assert!(hung_up.load(Ordering::Relaxed) > 0);
    assert_eq!(server.get("/healthz").await.status(), 200);
    server.all_pages_free().await;
    server.stop().await;
}
