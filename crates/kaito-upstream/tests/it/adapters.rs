//! Adapters that the engine has.

use kaito_testing::{
    server::{TestServer, options},
    upstream::{FakeUpstream, MODEL},
};
use kaito_upstream::Upstream;
use serde_json::{Value, json};

use crate::front::{COMPLETIONS, model_files, patient, tokens, with};

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_of_the_engine_answers_by_its_name_and_the_model_without_one() {
    let (engine, files) = (FakeUpstream::start().await, model_files());
    engine.set_adapters(&["poet", "tutor"]);
    let model = Upstream::connect(files.path(), patient(engine.url()), |_| {}).await.unwrap();
    let server = TestServer::with(model, options()).await;

    let listed: Value = server.get("/v1/models").await.json().await.unwrap();
    let listed: Vec<_> = listed["data"].as_array().unwrap().iter().map(|one| (&one["id"], &one["root"])).collect();
    assert_eq!(listed[1..], [(&json!("poet"), &json!("/mnt/poet")), (&json!("tutor"), &json!("/mnt/tutor"))]);

    for (asked, of_engine) in
        [(json!({}), MODEL), (json!({ "model": "tutor" }), "tutor"), (json!({ "model": "poet" }), "poet")]
    {
        let answer = server.ask(COMPLETIONS, &with(tokens(3), asked)).await;
        assert_eq!(answer["choices"][0]["finish_reason"], "length", "{answer}");
        assert_eq!(engine.requests().last().unwrap()["model"], of_engine);
    }
    // The scores of the prompt are the adapter's, too.
    server.ask(COMPLETIONS, &with(tokens(1), json!({ "model": "poet", "prompt_logprobs": 1 }))).await;
    assert!(
        engine.requests().iter().rev().take(2).all(|request| request["model"] == "poet"),
        "{:?}",
        engine.requests()
    );
    let refused = server.post(COMPLETIONS, &with(tokens(3), json!({ "model": "other" }))).await;
    assert_eq!(refused.status(), 404);
    server.stop().await;
}
