//! The end of a server waits for admitted requests, and for nothing else.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use kaito_server::ServerOptions;
use kaito_testing::{
    http::{blocking, connect, post, read_all},
    server::{CHAT_MODEL, TestServer, options, parse_events},
    wait::eventually,
};
use reqwest::Response;
use serde_json::{Value, json};

use crate::null_model::{detail, one_runs_and_one_waits, serve, stream, tokens};

/// Reads the head of an answer and its body of known length; the connection stays open.
fn read_one(stream: &mut TcpStream) {
    let mut seen = Vec::new();
    while !seen.ends_with(br#"{"status":"Healthy"}"#) {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        seen.push(byte[0]);
    }
}

/// Whether this is a whole answer.
async fn is_answer(response: Response) -> bool {
    response.status() == 200 && response.json::<Value>().await.unwrap()["Result"].is_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_who_was_not_admitted_delays_the_end() {
    let server = TestServer::start(CHAT_MODEL).await;
    let address = server.address();
    let open = move |sent: &[u8]| {
        let mut stream = connect(address).unwrap();
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
    let (server, null) = serve(8, options()).await;
    let address = server.address();
    let _half = blocking(move || {
        let mut stream = connect(address).unwrap();
        stream.write_all(&post("/chat", "Content-Length: 100\r\n", b"{")).unwrap();
        stream
    })
    .await;
    null.device.allow(3);
    let running = tokio::spawn(server.request("/chat", &tokens(20)).send());
    null.device.waits().await;
    server.shut_down();
    null.device.release();
    assert!(is_answer(running.await.unwrap().unwrap()).await);
    server.ended().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_waits_for_its_turn_is_admitted() {
    let (server, null) = serve(1, options()).await;
    let [runs, waits] = one_runs_and_one_waits(&server, &null, &tokens(2)).await;
    server.shut_down();
    null.device.release();
    for answer in [runs, waits] {
        assert!(is_answer(answer.await.unwrap().unwrap()).await);
    }
    server.ended().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_lets_running_requests_finish_and_takes_no_new_ones() {
    let (server, null) = serve(8, options()).await;
    let (url, client) = (server.url.clone(), server.client.clone());
    null.device.allow(3);
    let running = tokio::spawn(server.request("/chat", &tokens(20)).send());
    null.device.waits().await;
    let stopped = client.post(format!("{url}/shutdown")).send().await.unwrap();
    assert_eq!((stopped.status().as_u16(), stopped.text().await.unwrap().as_str()), (200, "{}"));
    let refused = server.post("/chat", &tokens(1)).await;
    assert_eq!(refused.status(), 503);
    assert_eq!(detail(refused).await, "The server is shutting down.");
    null.device.release();
    assert!(is_answer(running.await.unwrap().unwrap()).await);
    server.ended().await.unwrap();
    assert!(client.get(url).send().await.is_err(), "the port is closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_breaks_off_requests_that_take_too_long() {
    let limit = Duration::from_millis(1);
    let (server, null) = serve(8, ServerOptions { drain_limit: limit, ..options() }).await;
    null.device.allow(3);
    let whole = tokio::spawn(server.request("/chat", &tokens(20)).send());
    let streamed = server.post("/chat", &stream(20)).await;
    eventually("both are let in", async || server.model.stats().running + server.model.stats().waiting == 2).await;
    server.shut_down();
    let whole = whole.await.unwrap().unwrap();
    assert_eq!(whole.status(), 503);
    let said = "The server shut down before the answer was complete.";
    assert_eq!(detail(whole).await, said);
    let events = parse_events(&streamed.text().await.unwrap());
    assert_eq!(events.last().unwrap().data, json!({ "status": 503, "detail": said }));
    server.ended().await.unwrap();
    null.device.release();
}
