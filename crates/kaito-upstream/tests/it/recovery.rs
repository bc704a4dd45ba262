//! Requests outlive the engine.

use std::time::Duration;

use kaito_testing::{server::parse_events, upstream::Fault, wait::eventually};
use serde_json::{Value, json};

use crate::front::{COMPLETIONS, Front, becomes, error, tokens, with};

const COUNT: usize = 20;

/// Greedy requests, and drawn ones that are generated again from their seeds.
fn requests() -> Vec<Value> {
    vec![
        tokens(COUNT),
        with(tokens(COUNT), json!({ "repetition_penalty": 1.2, "logprobs": 2 })),
        with(tokens(COUNT), json!({ "allowed_token_ids": [4, 5, 6, 7], "frequency_penalty": 0.4 })),
        with(
            tokens(COUNT),
            json!({ "allowed_token_ids": [4, 5, 6, 7], "presence_penalty": 1.1, "temperature": 1.0, "seed": 5 }),
        ),
        with(tokens(COUNT), json!({ "allowed_token_ids": [4, 5, 6, 7], "bad_words": ["ab", "cd"] })),
        with(tokens(COUNT), json!({ "stop_token_ids": [10, 20, 30], "ignore_eos": false, "min_tokens": 15 })),
        with(
            tokens(COUNT),
            json!({ "prompt": ["Hello", "b"], "n": 2, "temperature": 1.0, "presence_penalty": 0.5, "seed": 1 }),
        ),
        json!({ "prompt": "Hello", "temperature": 0, "max_tokens": 9, "structured_outputs": { "choice": ["yes", "no"] } }),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_goes_on_where_its_engine_failed() {
    let front = Front::start().await;
    let dead = json!({ "message": "EngineCore encountered an issue", "type": "InternalServerError", "code": 500 });
    for body in requests() {
        let expected = front.server.ask(COMPLETIONS, &body).await["choices"].clone();
        for at in [0, 1, 7] {
            for faults in [
                vec![Fault::Cut(at)],
                vec![Fault::Error(at, dead.clone())],
                vec![Fault::Status(500, "dead"), Fault::Cut(at)],
                vec![Fault::Status(503, "loading"); 3],
                vec![Fault::Cut(at), Fault::Status(502, "no gateway"), Fault::Cut(at + 1)],
                vec![Fault::Says(at, "data: [DONE]\n\n".to_owned())],
            ] {
                front.engine.next(faults.clone());
                let answer = front.server.ask(COMPLETIONS, &body).await;
                assert_eq!(answer["choices"], expected, "{body} {faults:?}");
            }
        }
    }
    front.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_goes_on_asks_for_what_is_missing() {
    let front = Front::start().await;
    let body = with(
        tokens(COUNT),
        json!({ "ignore_eos": false, "stop_token_ids": [40], "min_tokens": 12, "temperature": 1.0, "seed": 3 }),
    );
    front.engine.next([Fault::Cut(7)]);
    front.server.ask(COMPLETIONS, &body).await;
    let requests = front.engine.requests();
    let [first, second] = &requests[..] else { panic!("two requests") };
    let length = |request: &Value| request["prompt"].as_array().unwrap().len();
    assert_eq!(length(second), length(first) + 7);
    assert_eq!((&first["max_tokens"], &second["max_tokens"]), (&json!(20), &json!(13)));
    assert_eq!((&first["min_tokens"], &second["min_tokens"]), (&json!(12), &json!(5)));
    assert_eq!(first["seed"], 3);
    assert_ne!(second["seed"], 3, "the same seed would draw by the same numbers again");
    front.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_pauses_while_its_engine_restarts() {
    let mut front = Front::start().await;
    let expected = front.server.ask(COMPLETIONS, &tokens(COUNT)).await["choices"][0]["text"].clone();
    front.engine.allow(5);
    let streamed =
        tokio::spawn(front.server.request(COMPLETIONS, &with(tokens(COUNT), json!({ "stream": true }))).send());
    eventually("five tokens came", async || front.engine.is_held()).await;
    front.engine.kill().await;
    becomes(&front, 503, "is away, or still loading").await;
    // One that comes meanwhile waits as well.
    let late = tokio::spawn(front.server.request(COMPLETIONS, &tokens(COUNT)).send());
    tokio::time::sleep(Duration::from_millis(200)).await;
    front.engine.release();
    front.engine.restart().await;
    let body = streamed.await.unwrap().unwrap().text().await.unwrap();
    let events = parse_events(&body.replace("data: [DONE]\n\n", ""));
    let text: String = events.iter().filter_map(|event| event.data["choices"][0]["text"].as_str()).collect();
    assert_eq!(json!(text), expected);
    let late: Value = late.await.unwrap().unwrap().json().await.unwrap();
    assert_eq!(late["choices"][0]["text"], expected);
    eventually("it is healthy again", async || front.server.get("/healthz").await.status() == 200).await;
    front.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_does_not_come_back_ends_the_wait() {
    let short = Duration::from_millis(300);
    let mut front = Front::with(kaito_testing::server::options(), |upstream| kaito_upstream::UpstreamOptions {
        wait: short,
        ..upstream
    })
    .await;
    front.engine.kill().await;
    let (status, said) = error(front.server.post(COMPLETIONS, &tokens(3)).await).await;
    assert_eq!(status, 503);
    let expected = format!("The engine at {} is away since 0 s: no connection: ", front.engine.url());
    assert!(said.starts_with(&expected) && said.ends_with("; try again later."), "{said}");
    let answer = front.server.post(COMPLETIONS, &tokens(3)).await;
    assert!(answer.headers().contains_key("retry-after"));
    front.server.stop().await;
}

/// Perhaps the request kills the engine, and it is not to do so again and again.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_on_which_the_engine_fails_again_and_again_is_given_up() {
    let front = Front::start().await;
    // Failures that follow each other fast count as one.
    let faults: Vec<_> = std::iter::once(Fault::Cut(2)).chain((0..1000).map(|_| Fault::Cut(0))).collect();
    front.engine.next(faults);
    let (status, said) = error(front.server.post(COMPLETIONS, &tokens(9)).await).await;
    assert_eq!(status, 502);
    assert!(said.contains("failed on this request 3 times without a token in between"), "{said}");
    assert!(front.engine.requests().len() > 3, "it is asked again");
    front.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_draws_other_tokens_the_second_time_is_told_of() {
    let front = Front::start().await;
    // The second time, the stream begins with another token than the first time.
    let other = r#"{"choices":[{"index":0,"text":"","token_ids":[63],"finish_reason":null}]}"#;
    front.engine.next([Fault::Cut(3), Fault::Says(0, format!("data: {other}\n\n"))]);
    let body = with(tokens(9), json!({ "presence_penalty": 0.5, "allowed_token_ids": [4, 5, 6] }));
    let (status, said) = error(front.server.post(COMPLETIONS, &body).await).await;
    assert_eq!(status, 502);
    assert!(said.contains("was restarted, and gave the token 63 at position 0"), "{said}");
    front.server.stop().await;
}
