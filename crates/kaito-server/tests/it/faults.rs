//! Defects of the engine and its device, as clients and health checks hear of them.

use std::time::Duration;

use kaito_engine::DeviceErrorKind;
use kaito_engine::testing::{At, Phase};
use kaito_server::ServerOptions;
use kaito_testing::{
    server::{options, parse_events},
    wait::eventually,
};
use serde_json::{Value, json};

use crate::null_model::{detail, one_runs_and_one_waits, serve, stream, tokens};

const PANICKED: &str = "The computation of this request panicked; see the log.";
const STOPPED: &str = "The engine has stopped.";
const DEVICE_FAILED: &str = "Fake: a failure, as asked for.";

/// The token of a colon.
const COLON: u32 = 63;

/// A request whose answer has no colon.
fn prompt(text: &str) -> Value {
    json!({ "prompt": text, "do_sample": false, "max_new_tokens": 20, "bad_words_ids": [[COLON]] })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_work_panics_gets_500_and_the_others_their_answers() {
    let (server, null) = serve(8, options()).await;
    let expected = server.ask("/chat", &prompt("Hello")).await;
    // That was request 0; those that follow are numbered as they are let in.
    null.device.allow(0);
    let victim = tokio::spawn(server.request("/chat", &prompt("Hello")).send());
    null.device.waits().await;
    let other = tokio::spawn(server.request("/chat", &prompt("Hello")).send());
    eventually("both are let in", async || server.model.stats().running + server.model.stats().waiting == 2).await;
    null.requests.arm(Phase::Choose, 1);
    null.device.release();
    let victim = victim.await.unwrap().unwrap();
    assert_eq!(victim.status(), 500);
    assert_eq!(detail(victim).await, PANICKED);
    assert!(null.requests.spent());
    assert_eq!(other.await.unwrap().unwrap().json::<Value>().await.unwrap(), expected);
    server.all_pages_free().await;
    assert_eq!(server.get("/healthz").await.status(), 200);
    assert_eq!(server.ask("/chat", &prompt("Hello")).await, expected);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_whose_work_panics_ends_with_an_error() {
    let (server, null) = serve(8, options()).await;
    null.device.allow(4);
    let answer = server.post("/chat", &stream(20)).await;
    null.device.waits().await;
    null.requests.arm(Phase::Settle, 0);
    null.device.release();
    assert_eq!(answer.status(), 200);
    let events = parse_events(&answer.text().await.unwrap());
    assert!(events.len() > 1, "some text came before: {events:?}");
    let last = events.last().unwrap();
    assert_eq!((last.name.as_str(), &last.data), ("error", &json!({ "status": 500, "detail": PANICKED })));
    server.all_pages_free().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pass_that_panics_fails_the_request_that_makes_it_and_no_other() {
    let (server, null) = serve(8, options()).await;
    let expected = server.ask("/chat", &prompt("Hello")).await;
    null.device.once();
    assert_eq!(server.ask("/chat", &prompt("Hello")).await, expected, "a fault that does not come again fails nobody");

    assert_eq!(server.model.tokenizer().token_text(COLON).as_deref(), Some(":"));
    null.device.poison(COLON);
    null.device.allow(0);
    let other = tokio::spawn(server.request("/chat", &prompt("Hello")).send());
    let victim = tokio::spawn(server.request("/chat", &prompt("Hello: you")).send());
    eventually("both are let in", async || server.model.stats().running + server.model.stats().waiting == 2).await;
    null.device.release();
    let victim = victim.await.unwrap().unwrap();
    assert_eq!(victim.status(), 500);
    assert_eq!(detail(victim).await, PANICKED);
    assert_eq!(other.await.unwrap().unwrap().json::<Value>().await.unwrap(), expected);
    server.all_pages_free().await;
    assert_eq!(server.get("/healthz").await.status(), 200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_the_device_has_no_memory_for_fails_its_requests_and_the_next_ones_get_their_answers() {
    let (server, null) = serve(8, options()).await;
    let expected = server.ask("/chat", &prompt("Hello")).await;
    for at in [At::Submit, At::Collect] {
        null.device.fail_next(DeviceErrorKind::OutOfMemory, at);
        let failed = server.post("/chat", &prompt("Hello")).await;
        assert_eq!((failed.status().as_u16(), detail(failed).await.as_str()), (500, DEVICE_FAILED), "{at:?}");
        server.all_pages_free().await;
        assert_eq!(server.get("/healthz").await.status(), 200);
        assert_eq!(server.ask("/chat", &prompt("Hello")).await, expected);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_device_fails_everybody_and_the_server_says_how_it_was_lost() {
    let (server, null) = serve(1, options()).await;
    let [running, waiting] = one_runs_and_one_waits(&server, &null, &tokens(2)).await;
    null.device.fail_next(DeviceErrorKind::Lost, At::Collect);
    null.device.release();
    for answer in [running.await, waiting.await] {
        let answer = answer.unwrap().unwrap();
        assert_eq!((answer.status().as_u16(), detail(answer).await.as_str()), (503, DEVICE_FAILED));
    }
    let health = server.get("/healthz").await;
    let said = "The device is lost (fake: a failure, as asked for); restart the server.";
    assert_eq!((health.status().as_u16(), detail(health).await.as_str()), (503, said));
    let late = server.post("/chat", &tokens(2)).await;
    assert_eq!((late.status().as_u16(), detail(late).await.as_str()), (503, DEVICE_FAILED));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_hangs_makes_the_server_unhealthy_until_it_goes_on() {
    let limit = Duration::from_millis(200);
    let (server, null) = serve(8, ServerOptions { stall_limit: limit, ..options() }).await;
    null.device.allow(0);
    let running = tokio::spawn(server.request("/chat", &tokens(2)).send());
    null.device.waits().await;
    eventually("it is stuck", async || server.get("/healthz").await.status() == 503).await;
    let said = detail(server.get("/healthz").await).await;
    assert!(said.starts_with("The engine is stuck: no progress for "), "{said}");
    assert!(said.ends_with(" with 1 sequences running and 0 requests waiting."), "{said}");
    null.device.release();
    assert_eq!(running.await.unwrap().unwrap().status(), 200);
    assert_eq!(server.get("/healthz").await.status(), 200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_whose_thread_is_gone_answers_nobody_and_the_server_says_so() {
    let (server, null) = serve(1, options()).await;
    let [running, waiting] = one_runs_and_one_waits(&server, &null, &tokens(2)).await;
    null.kill();
    null.device.release();
    for answer in [running, waiting] {
        let answer = answer.await.unwrap().unwrap();
        assert_eq!(answer.status(), 500);
        assert_eq!(detail(answer).await, STOPPED);
    }
    eventually("it is unhealthy", async || server.get("/healthz").await.status() == 503).await;
    assert_eq!(detail(server.get("/healthz").await).await, "The engine has stopped; restart the server.");
    let late = server.post("/chat", &tokens(2)).await;
    assert_eq!((late.status().as_u16(), detail(late).await.as_str()), (500, STOPPED));
    server.stop().await;
}
