//! Loading, and the routes around the work.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use kaito_engine::{LanguageModel, LoadOptions};
use kaito_server::{Error, Server, ServerOptions};
use kaito_testing::server::{CHAT_MODEL, META_MODEL, TestServer, load, options};
use kaito_testing::wait::eventually;
use serde_json::{Value, json};

fn detail(body: &str) -> String {
    serde_json::from_str::<Value>(body).unwrap()["detail"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_model_loads_the_port_answers_503_with_the_percentage() {
    let server = Server::bind(options()).await.unwrap();
    let url = format!("http://{}", server.local_addr());
    let handle = server.shutdown_handle();
    let (go, wait) = mpsc::channel::<()>();
    let running = tokio::spawn(server.run(move |progress| {
        progress(0.425);
        wait.recv().unwrap();
        Ok::<_, Error>(load(CHAT_MODEL, &LoadOptions::default()))
    }));
    let get = async |path: &str| reqwest::get(format!("{url}{path}")).await.unwrap();
    eventually("42 %", async || {
        let response = get("/healthz").await;
        assert_eq!(response.status(), 503);
        detail(&response.text().await.unwrap()) == "The model is loading: 42 %."
    })
    .await;
    let client = reqwest::Client::new();
    let response = client.post(format!("{url}/chat")).json(&json!({ "prompt": "a" })).send().await.unwrap();
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(get("/").await.status(), 200);
    assert!(get("/metrics").await.text().await.unwrap().contains("kaito_model_loaded 0\n"));

    go.send(()).unwrap();
    eventually("the server is healthy", async || get("/healthz").await.status() == 200).await;
    assert!(get("/metrics").await.text().await.unwrap().contains("kaito_model_loaded 1\n"));
    handle.shutdown();
    running.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_does_not_load_ends_the_server_with_the_cause() {
    for (loader, message) in
        [(false, "no weights here"), (true, "the thread that loads the model could not start, or died")]
    {
        let server = Server::bind(options()).await.unwrap();
        let error = server
            .run(move |_| {
                assert!(!loader, "a loader that panics");
                Err::<LanguageModel, _>(std::io::Error::other("no weights here"))
            })
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), message);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_does_not_wait_for_the_model_to_load() {
    let server = Server::bind(options()).await.unwrap();
    let handle = server.shutdown_handle();
    let (_go, wait) = mpsc::channel::<()>();
    let running = tokio::spawn(server.run(move |_| {
        let _ = wait.recv();
        Err::<LanguageModel, _>(std::io::Error::other("never"))
    }));
    handle.shutdown();
    tokio::time::timeout(Duration::from_secs(30), running).await.expect("it ends").unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_use_is_named() {
    let server = Server::bind(options()).await.unwrap();
    let address = server.local_addr();
    let error = Server::bind(ServerOptions { address, ..options() }).await.err().expect("taken");
    assert!(error.to_string().starts_with(&format!("cannot listen on {address}: ")), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_gets_the_page() {
    let server = TestServer::start(CHAT_MODEL).await;
    let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
    let response = server.client.get(&server.url).header("accept", browser).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/html; charset=utf-8");
    let policy = response.headers()["content-security-policy"].to_str().unwrap().to_owned();
    let page = response.text().await.unwrap();
    let nonce = policy.split("'nonce-").nth(1).unwrap().split('\'').next().unwrap();
    assert_eq!(page.matches(&format!("nonce=\"{nonce}\"")).count(), 3);
    assert!(page.contains(r#""name":"tiny""#));
    assert!(page.contains(r#""chatTemplate":true"#));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_have_ids() {
    let server = TestServer::start(META_MODEL).await;
    for (sent, kept) in [("abc-123", true), ("", false), ("a b", false)] {
        let response = server.client.get(&server.url).header("x-request-id", sent).send().await.unwrap();
        assert_eq!(response.headers()["x-request-id"] == sent, kept);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_requests_tokens_and_pages() {
    let dropped_log_lines = Arc::new(AtomicU64::new(7));
    let model = load(CHAT_MODEL, &LoadOptions::default());
    let server = TestServer::with(model, ServerOptions { dropped_log_lines, ..options() }).await;
    server.ask("/chat", &json!({ "prompt": "Hello", "max_new_tokens": 10, "min_new_tokens": 10 })).await;
    server.post("/chat", &json!({ "prompt": 5 })).await;
    server.get("/no/such/route").await;
    server.all_pages_free().await;
    let response = server.get("/metrics").await;
    assert_eq!(response.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let text = response.text().await.unwrap();
    let pages = server.model.stats().pages_total;
    let free = format!("kaito_kv_cache_pages_free {pages}");
    for line in [
        r#"kaito_requests_total{route="/chat",status="200"} 1"#,
        r#"kaito_requests_total{route="/chat",status="422"} 1"#,
        r#"kaito_requests_total{route="other",status="404"} 1"#,
        "kaito_generated_tokens_total 10",
        "kaito_time_to_first_token_seconds_count 1",
        "kaito_requests_waiting 0",
        "kaito_sequences_running 0",
        "kaito_kv_cache_pages_used 0",
        &free,
        "# TYPE kaito_requests_total counter",
        "# TYPE kaito_log_lines_dropped_total counter",
        "kaito_log_lines_dropped_total 7",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    assert!(text.contains(r#"kaito_model_info{name="tiny",family=""#));
    let gaps = text.lines().find_map(|l| l.strip_prefix("kaito_time_per_output_token_seconds_count ")).unwrap();
    // Text held back until the end comes with an event of its own.
    assert!(["9", "10"].contains(&gaps), "{gaps}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scores_and_sequences_stand_beside_the_result() {
    let server = TestServer::start(CHAT_MODEL).await;
    let plain = json!({ "prompt": "Hello", "do_sample": false, "max_new_tokens": 5, "return_full_text": false });
    let mut beams = plain.clone();
    beams["num_beams"] = 3.into();
    beams["num_return_sequences"] = 2.into();
    beams["return_dict_in_generate"] = true.into();
    let mut scored = plain.clone();
    scored["output_scores"] = true.into();

    let plain = server.ask("/chat", &plain).await;
    assert_eq!(plain.as_object().unwrap().len(), 1);

    let beams = server.ask("/chat", &beams).await;
    assert_eq!(beams["sequences"].as_array().unwrap().len(), 2);
    let scores = beams["sequences_scores"].as_array().unwrap();
    assert!(scores[0].as_f64().unwrap() >= scores[1].as_f64().unwrap());
    assert!(beams.get("scores").is_none());

    let scored = server.ask("/chat", &scored).await;
    assert_eq!(scored["Result"], plain["Result"]);
    let tokens = scored["scores"][0].as_array().unwrap();
    let sequence = scored["sequences"][0].as_array().unwrap();
    let new = &sequence[sequence.len() - tokens.len()..];
    for (token, id) in tokens.iter().zip(new) {
        assert_eq!(&token["id"], id);
        let top = token["top"].as_array().unwrap();
        assert_eq!(top.len(), 10);
        assert_eq!(top[0]["id"], token["id"], "greedy takes the likeliest");
        assert_eq!(top[0]["logprob"], token["logprob"]);
        assert!(top.windows(2).all(|pair| pair[0]["logprob"].as_f64() >= pair[1]["logprob"].as_f64()));
    }
    assert!(scored.get("sequences_scores").is_none());
    server.stop().await;
}
