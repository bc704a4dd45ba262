//! Clients that take nothing of their answers, and bodies that do not arrive. Their limits of time are real, so that no other
//! tests run in this process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing helper fails its test")]

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use kaito_engine::LoadOptions;
use kaito_server::ServerOptions;
use kaito_testing::http::{blocking, connect, post, read_all};
use kaito_testing::server::{CHAT_MODEL, TestServer, load, options};
use kaito_testing::wait::eventually;
use serde_json::json;

/// A client with little room for what it does not read.
fn deaf_client(server: &TestServer) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4 << 10).unwrap();
    socket.connect(&server.address().into()).unwrap();
    TcpStream::from(socket)
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_nobody_reads_give_their_places_to_others() {
    const STREAMS: usize = 8;
    let limits = LoadOptions { max_batch_size: STREAMS, speculate: false, ..LoadOptions::default() };
    let stall_limit = Duration::from_millis(500);
    let server = TestServer::with(load(CHAT_MODEL, &limits), ServerOptions { stall_limit, ..options() }).await;
    // Some 200 KB of events, twice what the buffers of a connection hold.
    let body = json!({
        "prompt": "Hello", "stream": true, "num_return_sequences": STREAMS, "max_length": 500, "min_length": 500,
    })
    .to_string();
    let clients: Vec<_> = (0..STREAMS)
        .map(|_| {
            let mut client = deaf_client(&server);
            let length = format!("Content-Length: {}\r\n", body.len());
            client.write_all(&post("/chat", &length, body.as_bytes())).unwrap();
            client
        })
        .collect();
    eventually("they run", async || server.model.stats().running > 0).await;
    server.ask("/chat", &json!({ "prompt": "a", "max_new_tokens": 1 })).await;
    server.all_pages_free().await;
    let over = format!(r#"kaito_requests_total{{route="/chat",status="200"}} {}"#, STREAMS + 1);
    eventually("all are over", async || server.get("/metrics").await.text().await.unwrap().contains(&over)).await;
    for mut client in clients {
        client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let heard = blocking(move || read_all(&mut client)).await;
        assert!(!heard.text.contains("event: result"), "the answer was written to a client that did not read");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_slowly_hears_everything() {
    let stall_limit = Duration::from_millis(500);
    let server =
        TestServer::with(load(CHAT_MODEL, &LoadOptions::default()), ServerOptions { stall_limit, ..options() }).await;
    let body =
        json!({ "prompt": "Hello", "stream": true, "num_return_sequences": 8, "max_length": 400, "min_length": 400 })
            .to_string();
    let mut client = deaf_client(&server);
    let heard = blocking(move || {
        let lines = format!("Content-Length: {}\r\nConnection: close\r\n", body.len());
        client.write_all(&post("/chat", &lines, body.as_bytes())).unwrap();
        let (mut heard, mut piece) = (Vec::new(), [0; 8 << 10]);
        loop {
            match std::io::Read::read(&mut client, &mut piece).unwrap() {
                0 => return String::from_utf8(heard).unwrap(),
                read => heard.extend_from_slice(&piece[..read]),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    })
    .await;
    assert!(heard.contains("event: result"), "{} bytes", heard.len());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_bodies_keep_neither_small_nor_large_ones_out() {
    // The bodies of twelve clients are more than all bodies together may have, 8 MiB.
    const BODY: usize = 1 << 20;
    let server =
        TestServer::with(load(CHAT_MODEL, &LoadOptions::default()), ServerOptions { body_limit: BODY, ..options() })
            .await;
    let address = server.address();
    let stuck: Vec<_> = (0..12)
        .map(|_| {
            std::thread::spawn(move || {
                let mut client = connect(address).unwrap();
                let rest = vec![b' '; BODY - 1];
                // Those for which there is no room are not read to the end.
                let _ = client.write_all(&post("/chat", &format!("Content-Length: {BODY}\r\n"), &rest));
                read_all(&mut client)
            })
        })
        .collect();
    for _ in 0..5 {
        server.ask("/chat", &json!({ "prompt": "a", "max_new_tokens": 1 })).await;
    }
    let large = json!({ "prompt": "a", "stop": "b".repeat(10), "seed": 1, "max_new_tokens": 1 }).to_string();
    let large = format!("{large}{}", " ".repeat(BODY - large.len()));
    let request = server.client.post(format!("{}/chat", server.url)).header("content-type", "application/json");
    assert_eq!(request.body(large).send().await.unwrap().status(), 200);
    server.shut_down();
    let heard: Vec<_> = stuck.into_iter().map(|client| client.join().unwrap().status()).collect();
    assert!(heard.contains(&408), "{heard:?}");
    assert!(heard.iter().all(|status| [408, 503].contains(status)), "{heard:?}");
    server.ended().await.unwrap();
}
