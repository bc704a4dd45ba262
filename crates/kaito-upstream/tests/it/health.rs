//! Health by progress, loading, and metrics.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use kaito_server::{Server, ServerOptions};
use kaito_testing::{server::options, upstream::FakeUpstream, wait::eventually};
use kaito_upstream::{Error, Upstream, UpstreamOptions};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    runtime::Handle,
};

use crate::front::{COMPLETIONS, Front, becomes, error, model_files, patient, tokens};

/// vLLM's own `/health` stays 200 while its generation is dead.
#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_owes_a_token_for_too_long_is_stuck() {
    let front =
        Front::with(ServerOptions { stall_limit: Duration::from_millis(200), ..options() }, |upstream| upstream).await;
    front.engine.allow(2);
    let running = tokio::spawn(front.server.request(COMPLETIONS, &tokens(4)).send());
    becomes(&front, 503, "The engine is stuck: no progress for ").await;
    front.engine.release();
    assert_eq!(running.await.unwrap().unwrap().status(), 200);
    becomes(&front, 200, "it is well").await;
    front.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_away_or_not_well_is_told_of_with_the_cause() {
    let mut front = Front::start().await;
    front.engine.set_health(503);
    becomes(&front, 503, "is not well: status 503").await;
    front.engine.set_health(200);
    becomes(&front, 200, "it is well").await;
    // It knows no such route, and answers.
    front.engine.set_health(404);
    front.engine.kill().await;
    becomes(&front, 503, "is away, or still loading: no connection: ").await;
    front.engine.set_max_model_len(512);
    front.engine.restart().await;
    becomes(&front, 503, "takes sequences of 512 tokens now, and this server promises 1024").await;
    front.engine.set_max_model_len(4096);
    becomes(&front, 200, "it is well").await;
    front.server.stop().await;
}

/// A supervisor's `/ranks`, which says what it is set to.
async fn supervisor(cause: &Arc<Mutex<Value>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let cause = Arc::clone(cause);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 4096];
            let read = stream.read(&mut head).await.unwrap();
            let head = String::from_utf8_lossy(&head[..read]);
            if head.starts_with("POST /shutdown ") {
                *cause.lock().unwrap() = json!("shut down");
            } else {
                assert!(head.starts_with("GET /ranks "), "{head}");
            }
            let body = cause.lock().unwrap().to_string();
            let length = body.len();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_supervisor_knows_of_an_engine_that_is_not_fit_is_told_too() {
    let cause = Arc::new(Mutex::new(json!({ "cause": null, "ranks": [] })));
    let says = |text: &str| *cause.lock().unwrap() = json!({ "cause": text });
    let url = supervisor(&cause).await;
    let stalls = ServerOptions { stall_limit: Duration::from_millis(200), ..options() };
    let mut front = Front::with(stalls, |upstream| UpstreamOptions { supervisor: Some(url.clone()), ..upstream }).await;
    becomes(&front, 200, "it is well").await;
    front.engine.allow(2);
    let running = tokio::spawn(front.server.request(COMPLETIONS, &tokens(4)).send());
    says("Stopped processes: 7 (worker) of rank 1.");
    becomes(&front, 503, "0 requests waiting. Stopped processes: 7 (worker) of rank 1.").await;
    front.engine.kill().await;
    says("The engines were ended: rank 1 did not report any more.");
    becomes(&front, 503, "is away, or still loading: no connection: ").await;
    becomes(&front, 503, ". The engines were ended: rank 1 did not report any more.").await;
    *cause.lock().unwrap() = json!([]);
    becomes(&front, 503, "ranks says nothing: it answers what no supervisor does").await;
    front.engine.release();
    front.engine.restart().await;
    assert_eq!(running.await.unwrap().unwrap().status(), 200);
    becomes(&front, 200, "it is well").await;
    front.server.stop().await;
}

/// While an engine is away it owes nothing, so the one that is back is not stuck from its first moment on.
#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_back_owes_nothing_yet() {
    let limit = Duration::from_secs(4);
    let mut front = Front::with(ServerOptions { stall_limit: limit, ..options() }, |upstream| upstream).await;
    front.engine.allow(2);
    let running = tokio::spawn(front.server.request(COMPLETIONS, &tokens(4)).send());
    eventually("it is held", async || front.engine.is_held()).await;
    front.engine.kill().await;
    let away = std::time::Instant::now();
    becomes(&front, 503, "is away, or still loading").await;
    eventually("it was away for longer than it may owe a token", async || away.elapsed() > limit).await;
    front.engine.restart().await;
    // What it says first once it is not away any more.
    eventually("it is back", async || {
        let answer = front.server.get("/healthz").await;
        let said = if answer.status() == 200 { String::new() } else { error(answer).await.1 };
        assert!(!said.contains("stuck"), "{said}");
        said.is_empty()
    })
    .await;
    front.engine.release();
    assert_eq!(running.await.unwrap().unwrap().status(), 200);
    front.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_engine_is_not_there_yet_says_so_until_it_is() {
    let mut engine = FakeUpstream::start().await;
    engine.kill().await;
    let (files, upstream) = (model_files(), patient(engine.url() + "/v1/"));
    let server = Server::bind(options()).await.unwrap();
    let (url, handle) = (format!("http://{}", server.local_addr()), server.shutdown_handle());
    let (runtime, note, directory) = (Handle::current(), server.loading_note(), files.path().to_owned());
    let loader = move |_: &(dyn Fn(f32) + Sync)| {
        runtime.block_on(Upstream::connect(&directory, upstream, |what| note.waits_for(what)))
    };
    let running = tokio::spawn(server.run(loader));
    let expected =
        format!("The model is loading: the engine at {} is away, or still loading: no connection: ", engine.url());
    let health = async || reqwest::get(format!("{url}/healthz")).await.unwrap();
    eventually("it says what it waits for", async || {
        let (status, said) = error(health().await).await;
        status == 503 && said.starts_with(&expected)
    })
    .await;
    engine.restart().await;
    eventually("it is healthy", async || health().await.status() == 200).await;
    handle.shutdown();
    running.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_of_another_model_or_of_shorter_sequences_is_refused() {
    let (engine, files) = (FakeUpstream::start().await, model_files());
    engine.set_max_model_len(512);
    let connect = async |change: fn(UpstreamOptions) -> UpstreamOptions| {
        Upstream::connect(files.path(), change(patient(engine.url())), |_| {}).await
    };
    let model = connect(|options| options).await.unwrap();
    assert_eq!(kaito_server::Model::info(&model).max_seq_len, 512);
    assert_eq!(model.engine_model(), kaito_testing::upstream::MODEL);
    type Change = fn(UpstreamOptions) -> UpstreamOptions;
    let refused: [(Change, &str); 3] = [
        (
            |options| UpstreamOptions { model: Some("other".to_owned()), ..options },
            "does not serve the model other; it serves letters",
        ),
        (|options| UpstreamOptions { max_seq_len: Some(513), ..options }, "takes sequences of 512 tokens at most"),
        (|options| UpstreamOptions { max_seq_len: Some(1025), ..options }, "must be from 1 to 1024"),
    ];
    for (change, part) in refused {
        let error = connect(change).await.err().unwrap().to_string();
        assert!(error.contains(part), "{error}");
    }
    std::fs::remove_file(files.path().join("config.json")).unwrap();
    let error = connect(|options| options).await.err().unwrap();
    assert!(matches!(error, Error::Model(_)) && error.to_string().contains("config.json"), "{error}");
}

/// Parameters that are counted with weights (`kaito-model`) and without them are the same.
#[test]
fn parameters_are_counted_without_weights() {
    for name in ["llama-multi-head", "mistral-window"] {
        let directory = kaito_testing::files::parity_model(name);
        let without = kaito_engine::ModelFiles::read(&directory, None, 1, "http://engine").unwrap();
        let with = kaito_testing::server::load(name, &kaito_engine::LoadOptions::default());
        assert_eq!(without.info.parameters, with.info().parameters, "{name}");
        assert_eq!(without.info.vocab_size, with.info().vocab_size, "{name}");
        assert_eq!(without.context.end_tokens, with.context().end_tokens, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_engines_own_metrics_stand_below_ours() {
    let front = Front::start().await;
    front.engine.set_metrics(
        "# HELP vllm:kv_cache_usage_perc KV-cache usage.\n# TYPE vllm:kv_cache_usage_perc gauge\n\
         vllm:kv_cache_usage_perc{engine=\"0\"} 0.5\n# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 77\n\
         # TYPE python_gc gauge\npython_gc 1\n",
    );
    front.server.ask(COMPLETIONS, &tokens(3)).await;
    let metrics = front.server.get("/metrics").await.text().await.unwrap();
    for line in [
        r#"kaito_requests_total{route="/v1/completions",status="200"} 1"#,
        "kaito_generated_tokens_total 3",
        "vllm:kv_cache_usage_perc{engine=\"0\"} 0.5",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line}\n{metrics}");
    }
    let ended = metrics.lines().find(|line| line.starts_with("vllm:request_success_total") && line.contains("length"));
    assert!(ended.is_some_and(|line| line.ends_with(" 1")), "{metrics}");
    for absent in ["python_gc", "running 77", "kaito_kv_cache_pages_free", "kaito_engine_steps"] {
        assert!(!metrics.contains(absent), "{absent}\n{metrics}");
    }
    let types: Vec<&str> = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let distinct: std::collections::BTreeSet<_> = types.iter().collect();
    assert_eq!(distinct.len(), types.len(), "a family is there twice");
    front.server.stop().await;
}

/// A client that ends the server ends all of it; whoever runs the server may start it again before the same engine.
#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_that_a_client_asks_for_is_passed_on_to_the_supervisor() {
    for asked_for in [true, false] {
        let cause = Arc::new(Mutex::new(json!({ "cause": null, "ranks": [] })));
        let url = supervisor(&cause).await;
        let front = Front::with(options(), |upstream| UpstreamOptions { supervisor: Some(url), ..upstream }).await;
        becomes(&front, 200, "it is well").await;
        if asked_for {
            assert_eq!(front.server.request("/shutdown", &json!({})).send().await.unwrap().status(), 200);
        }
        front.server.stop().await;
        assert_eq!(*cause.lock().unwrap() == "shut down", asked_for);
    }
}
