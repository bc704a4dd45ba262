//! What is not worth a warning. The log is the process's, so this test has a process of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing helper fails its test")]

use std::io;
use std::sync::{Arc, Mutex, mpsc};

use kaito_engine::LoadOptions;
use kaito_server::{Error, Server};
use kaito_testing::server::{CHAT_MODEL, load, options};
use kaito_testing::wait::eventually;
use serde_json::json;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_and_early_requests_while_the_model_loads_are_no_warnings() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone());
    tracing::subscriber::set_global_default(subscriber.finish()).unwrap();

    let server = Server::bind(options()).await.unwrap();
    let (url, handle) = (format!("http://{}", server.local_addr()), server.shutdown_handle());
    let (go, wait) = mpsc::channel::<()>();
    let running = tokio::spawn(server.run(move |_| {
        wait.recv().unwrap();
        Ok::<_, Error>(load(CHAT_MODEL, &LoadOptions::default()))
    }));
    for _ in 0..20 {
        assert_eq!(reqwest::get(format!("{url}/healthz")).await.unwrap().status(), 503);
    }
    let client = reqwest::Client::new();
    let refused = client.post(format!("{url}/chat")).json(&json!({ "prompt": "a" })).send().await.unwrap();
    assert_eq!(refused.status(), 503);
    go.send(()).unwrap();
    eventually("the server is healthy", async || reqwest::get(format!("{url}/healthz")).await.unwrap().status() == 200)
        .await;
    handle.shutdown();
    running.await.unwrap().unwrap();

    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("ready"), "{log}");
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    assert_eq!(log.matches("status=503").count(), 1, "the request for work alone: {log}");
}
