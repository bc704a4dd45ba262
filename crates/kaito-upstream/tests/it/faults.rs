//! Engines that refuse, and engines that lie.

use kaito_testing::upstream::Fault;
use serde_json::json;

use crate::front::{COMPLETIONS, Front, error, tokens, with};

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_the_engine_refuses_fails_at_once_in_its_words() {
    let front = Front::start().await;
    for (status, expected) in [(400, 400), (413, 400), (422, 400), (401, 502), (404, 502), (418, 502)] {
        front.engine.next([Fault::Status(status, "these are its words")]);
        let before = front.engine.requests().len();
        let (got, said) = error(front.server.post(COMPLETIONS, &tokens(3)).await).await;
        assert_eq!(got, expected, "{status}: {said}");
        assert!(said.contains(&front.engine.url()) && said.contains("these are its words"), "{said}");
        assert_eq!(front.engine.requests().len(), before + 1, "{status} is asked again");
    }
    let refused = json!({ "message": "these are its words", "code": 400 });
    front.engine.next([Fault::Error(2, refused)]);
    let (status, said) = error(front.server.post(COMPLETIONS, &tokens(3)).await).await;
    assert_eq!((status, said.contains("these are its words")), (400, true), "{said}");
    front.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_lies_is_told_of_by_its_address() {
    let front = Front::start().await;
    let event = |choice: &str| format!("data: {{\"choices\":[{choice}]}}\n\n");
    let says = |choice: &str| Fault::Says(1, event(choice));
    let raw = |kind: &str, body: &str| {
        Fault::Raw(format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n{body}"))
    };
    for (fault, part) in [
        (says(r#"{"index":0,"token_ids":[64]}"#), "gave the token id 64, but this model's ids are 0 to 63"),
        (says(r#"{"index":0,"token_ids":[-1]}"#), "no part of a completion"),
        (says(r#"{"index":0,"token_ids":[4,5,6,7]}"#), "goes on behind the end"),
        (
            says(r#"{"index":0,"token_ids":[4],"finish_reason":"length"}"#),
            "ended a sequence for \"length\" after 2 of 3",
        ),
        (says(r#"{"index":0,"token_ids":[4],"finish_reason":"stop"}"#), "ended a sequence for \"stop\" after 2 of 3"),
        (says(r#"{"index":0,"token_ids":[4],"finish_reason":"why not"}"#), "ends a sequence for \"why not\""),
        (says(r#"{"index":0,"text":"a"}"#), "no `token_ids`"),
        (says(r#"{"index":5,"token_ids":[4]}"#), "several sequences"),
        (Fault::Says(1, "data: nothing of this kind\n\n".to_owned()), "no part of a completion"),
        (Fault::Says(1, format!("data: {}\n\n", "[".repeat(10_000))), "no part of a completion"),
        (Fault::Says(1, "data: ".to_owned() + &"a".repeat(9 << 20)), "no stream of events"),
        (raw("text/html", "<html>"), "the answer is text/html"),
        (raw("application/json", "{}"), "the answer is application/json"),
    ] {
        let shown = format!("{fault:.60?}");
        front.engine.next([fault]);
        let (status, said) = error(front.server.post(COMPLETIONS, &tokens(3)).await).await;
        assert_eq!(status, 502, "{shown}: {said}");
        let from = format!("The engine at {} ", front.engine.url());
        assert!(said.starts_with(&from) && said.contains(part), "{shown}: {said}");
    }
    for (fault, part) in [(says(r#"{"index":0,"token_ids":[4]}"#), "gave no `logprobs`")] {
        front.engine.next([fault]);
        let body = with(tokens(3), json!({ "logprobs": 1 }));
        let (status, said) = error(front.server.post(COMPLETIONS, &body).await).await;
        assert!(status == 502 && said.contains(part), "{said}");
    }
    // What comes behind an end is no matter.
    front
        .engine
        .next([Fault::Says(2, event(r#"{"index":0,"token_ids":[4],"finish_reason":"length"}"#) + "data: [DONE")]);
    front.server.ask(COMPLETIONS, &tokens(3)).await;
    assert_eq!(front.server.get("/healthz").await.status(), 200);
    front.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_engine_says_of_a_prompt_is_checked() {
    let front = Front::start().await;
    let json = |body: &str| {
        let length = body.len();
        Fault::Raw(format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        ))
    };
    let body = with(tokens(1), json!({ "prompt_logprobs": 1 }));
    for said in ["{}", "<html>", r#"{"choices":[{"index":0,"prompt_logprobs":[null]}]}"#] {
        front.engine.next([json(said)]);
        let (status, detail) = error(front.server.post(COMPLETIONS, &body).await).await;
        assert_eq!(status, 502, "{said}: {detail}");
        assert!(detail.contains(&front.engine.url()), "{detail}");
    }
    front.server.stop().await;
}
