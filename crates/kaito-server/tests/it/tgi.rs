//! The API of text-generation-inference.

use kaito_testing::server::{CHAT_MODEL, TestServer, parse_events};
use serde_json::{Value, json};

fn inputs(parameters: &Value) -> Value {
    json!({ "inputs": "Hello", "parameters": parameters })
}

#[tokio::test(flavor = "multi_thread")]
async fn inputs_are_continued_with_the_likeliest_tokens() {
    let server = TestServer::start(CHAT_MODEL).await;
    let kaito = json!({ "prompt": "Hello", "do_sample": false, "max_new_tokens": 8, "return_full_text": false });
    let expected = server.ask("/chat", &kaito).await["Result"].as_str().unwrap().to_owned();
    let answer = server.ask("/generate", &inputs(&json!({ "max_new_tokens": 8 }))).await;
    assert_eq!(answer, json!({ "generated_text": expected }));
    let answer = server.ask("/generate", &inputs(&json!({ "max_new_tokens": 8, "return_full_text": true }))).await;
    assert_eq!(answer, json!({ "generated_text": format!("Hello{expected}") }));

    let details = json!({ "max_new_tokens": 8, "details": true, "decoder_input_details": true, "top_n_tokens": 2 });
    let answer = server.ask("/generate", &inputs(&details)).await;
    let details = &answer["details"];
    let tokens = details["tokens"].as_array().unwrap();
    assert_eq!(details["generated_tokens"], tokens.len());
    assert!(tokens.iter().all(|token| token["logprob"].as_f64().unwrap() <= 0.0 && token["special"].is_boolean()));
    assert!(["length", "eos_token"].contains(&details["finish_reason"].as_str().unwrap()));
    let prefill = details["prefill"].as_array().unwrap();
    assert_eq!(prefill[0]["logprob"], Value::Null);
    assert!(prefill[1..].iter().all(|token| token["logprob"].is_number()));
    assert_eq!(details["top_tokens"][0].as_array().unwrap().len(), 2);
    server.stop().await;
}

/// huggingface_hub asks the address that it is given.
#[tokio::test(flavor = "multi_thread")]
async fn a_post_of_the_root_is_answered_as_inputs_are() {
    let server = TestServer::start(CHAT_MODEL).await;
    for more in [json!({}), json!({ "stream": true })] {
        let mut body = inputs(&json!({ "max_new_tokens": 8 }));
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let [at_root, expected] = [server.post("/", &body).await, server.post("/generate", &body).await];
        assert_eq!(
            (at_root.status(), at_root.headers()["content-type"].clone()),
            (expected.status(), expected.headers()["content-type"].clone())
        );
        assert_eq!(at_root.text().await.unwrap(), expected.text().await.unwrap());
    }
    let refused = server.post("/", &json!({ "prompt": "Hello" })).await;
    assert_eq!(refused.status(), 422);
    let error: Value = refused.json().await.unwrap();
    assert_eq!(error["detail"], "`inputs` is missing: it must be a string.");
    let running: Value = server.get("/").await.json().await.unwrap();
    assert_eq!(running, json!({ "message": "Server is running" }));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_has_an_event_for_each_token() {
    let server = TestServer::start(CHAT_MODEL).await;
    let whole = server.ask("/generate", &inputs(&json!({ "max_new_tokens": 8, "details": true }))).await;
    let response = server.post("/generate_stream", &inputs(&json!({ "max_new_tokens": 8 }))).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let events = parse_events(&response.text().await.unwrap());
    let tokens = whole["details"]["tokens"].as_array().unwrap();
    assert_eq!(events.len(), tokens.len());
    for (i, event) in events.iter().enumerate() {
        assert_eq!((&event.data["index"], &event.data["token"]["id"]), (&json!(i + 1), &tokens[i]["id"]));
        assert_eq!(event.data["generated_text"].is_null(), i + 1 < events.len());
    }
    let last = &events.last().unwrap().data;
    assert_eq!(last["generated_text"], whole["generated_text"]);
    assert_eq!(last["details"]["finish_reason"], whole["details"]["finish_reason"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_refused() {
    let server = TestServer::start(CHAT_MODEL).await;
    for (parameters, param) in [
        (json!({ "max_new_tokens": 0 }), "max_new_tokens"),
        (json!({ "watermark": true }), "watermark"),
        (json!({ "stop": [""] }), "stop"),
        (json!({ "grammar": { "type": "sound" } }), "grammar.type"),
        (json!({ "decoder_input_details": true }), "decoder_input_details"),
    ] {
        let response = server.post("/generate_stream", &inputs(&parameters)).await;
        assert_eq!(response.status(), 400, "{parameters}");
        let error = response.json::<Value>().await.unwrap()["error"].clone();
        assert_eq!(error["param"], format!("parameters.{param}"));
    }
    let info: Value = server.get("/info").await.json().await.unwrap();
    assert_eq!(
        (&info["model_id"], &info["max_total_tokens"]),
        (&json!("tiny"), &json!(server.model.info().max_seq_len))
    );
    server.stop().await;
}
