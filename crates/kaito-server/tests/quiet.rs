//! What is not worth a warning, and what is worth one a minute. The log is the process's, so this test has a process of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing helper fails its test")]

use std::io;
use std::sync::{Arc, Mutex, mpsc};

use kaito_engine::remote::{GenerationEvent, GenerationRequest};
use kaito_engine::testing::{At, FakeEngine, ResolveContext, VOCAB, resolve};
use kaito_engine::{DeviceErrorKind, GenerateOptions, LoadOptions};
use kaito_server::{Error, Server};
use kaito_testing::server::{CHAT_MODEL, load, options};
use kaito_testing::wait::eventually;
use serde_json::json;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_and_early_requests_are_no_warnings_and_a_failing_device_is_one_a_minute() {
    let logged = Log::default();
    let writer = logged.clone();
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

    let log = logged.text();
    assert!(log.contains("ready"), "{log}");
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    assert_eq!(log.matches("status=503").count(), 1, "the request for work alone: {log}");

    fail_steps(3).await;
    let log = logged.text();
    assert_eq!(log.matches("the device failed in a step").count(), 1, "{log}");
}

/// Lets a device fail so many steps, each of which has one request.
async fn fail_steps(steps: usize) {
    let fake = FakeEngine::start(20, 2, 0).unwrap();
    let context = ResolveContext {
        prompt_len: 3,
        prefix_len: 0,
        vocab_size: VOCAB,
        max_seq_len: 20,
        eos_token_ids: &[],
        pad_token_id: None,
    };
    for _ in 0..steps {
        fake.device.fail_next(DeviceErrorKind::OutOfMemory, At::Submit);
        let params = resolve(&GenerateOptions::default(), &context).unwrap();
        let mut stream = fake.engine.submit(GenerationRequest { prompt: vec![1, 2, 3], params }).unwrap();
        let last = loop {
            match stream.next().await.unwrap() {
                GenerationEvent::Started => {}
                last => break last,
            }
        };
        assert!(matches!(last, GenerationEvent::Failed(_)));
    }
}
