//! A client hears why it is refused, also one that sends its whole body before it listens.

use std::sync::mpsc;

use kaito_engine::{LanguageModel, LoadOptions};
use kaito_server::{Error, Server, ServerOptions};
use kaito_testing::http::{ask_once, post};
use kaito_testing::server::{META_MODEL, TestServer, keys, load, options};

/// Far more than the buffers of a connection hold.
const BODY: usize = 8 << 20;

fn body(announced: bool) -> (String, Vec<u8>) {
    let text = vec![b' '; BODY];
    if announced {
        return (format!("Content-Length: {BODY}\r\n"), text);
    }
    let chunks = text.chunks(1 << 20).flat_map(|chunk| {
        let size = format!("{:x}\r\n", chunk.len()).into_bytes();
        [&size[..], chunk, b"\r\n"].concat()
    });
    ("Transfer-Encoding: chunked\r\n".to_owned(), chunks.chain(*b"0\r\n\r\n").collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_before_the_body_was_read_is_heard() {
    let key = "Authorization: Bearer secret\r\n";
    let model = load(META_MODEL, &LoadOptions::default());
    let options = ServerOptions { api_keys: keys("secret"), ..options() };
    let server = TestServer::with(model, options).await;
    for announced in [true, false] {
        let (length, body) = body(announced);
        for (path, lines, status) in [
            ("/chat", "", 401),
            ("/generate", "Authorization: Bearer wrong\r\n", 401),
            ("/shutdown", "Origin: http://a.example\r\n", 401),
            ("/nowhere", "", 404),
            ("/healthz", "", 405),
            ("/chat", &format!("{key}Host: localhost\r\n"), 400),
            ("/chat", key, 413),
            ("/chat", &format!("{key}Content-Encoding: gzip\r\n"), 415),
            ("/chat", &format!("{key}X-A: \0\r\n"), 400),
            ("/chat", &format!("{key}X-A: {}\r\n", "a".repeat(100_000)), 431),
        ] {
            let answer = ask_once(server.address(), post(path, &format!("{lines}{length}"), &body)).await;
            assert_eq!((answer.status(), answer.reset), (status, false), "{path} {lines:.60} {answer:.300?}");
            assert!(answer.text.to_ascii_lowercase().contains("\r\nconnection: close\r\n"), "{answer:.300?}");
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_while_the_model_loads_is_heard() {
    let server = Server::bind(options()).await.unwrap();
    let (address, handle) = (server.local_addr(), server.shutdown_handle());
    let (_go, wait) = mpsc::channel::<()>();
    let running = tokio::spawn(server.run(move |_| {
        let _ = wait.recv();
        Err::<LanguageModel, Error>(Error::LoaderLost)
    }));
    let (length, body) = body(true);
    let answer = ask_once(address, post("/chat", &length, &body)).await;
    assert_eq!((answer.status(), answer.reset), (503, false), "{answer:?}");
    assert!(answer.body().contains("The model is loading: 0 %."), "{answer:?}");
    handle.shutdown();
    running.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_for_leave_is_refused_without_its_body() {
    let model = load(META_MODEL, &LoadOptions::default());
    let server = TestServer::with(model, ServerOptions { api_keys: keys("secret"), ..options() }).await;
    let lines = "Expect: 100-continue\r\nContent-Length: 1000\r\n";
    let answer = ask_once(server.address(), post("/chat", lines, b"")).await;
    assert_eq!(answer.status(), 401, "{answer:?}");
    server.stop().await;
}
