//! `kaito serve` in front of an engine elsewhere, run for real.

use std::fs;

use kaito_testing::{
    files::{copy_of, letters},
    process::{Serving, output, text},
    upstream::{FakeUpstream, MODEL},
};
use serde_json::{Value, json};

use crate::program::kaito;

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_weights_answers_with_its_engines_tokens() {
    let engine = FakeUpstream::start().await;
    let files = copy_of(&letters());
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 64, "hidden_size": 64,
        "intermediate_size": 112, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": false,
    });
    fs::write(files.path().join("config.json"), config.to_string()).unwrap();
    let (directory, url) = (files.path().to_str().unwrap().to_owned(), engine.url());
    let asked = tokio::task::spawn_blocking(move || {
        let serve = |more: &[&str]| kaito(&[&["serve", &directory, "--upstream", &url][..], more].concat());
        let refused = output(&mut serve(&["--upstream-model", "other"]));
        let said = text(&refused.stderr);
        assert!(
            !refused.status.success() && said.contains("does not serve the model other; it serves letters"),
            "{said}"
        );
        for flags in
            [&["--adapter", "sql=/adapters/sql"][..], &["--adapters", "/adapters"], &["--runtime-adapters", "/"]]
        {
            let refused = output(&mut serve(flags));
            let said = text(&refused.stderr);
            assert!(refused.status.code() == Some(2), "{said}");
            assert!(said.contains("--upstream <URL>' cannot be used with") && said.contains(flags[0]), "{said}");
        }
        // A variable is refused as the flag is.
        let refused = output(serve(&[]).env("KAITO_ADAPTERS", "/adapters"));
        assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
        let server = Serving::start(&mut serve(&["--upstream-model", MODEL, "--max-seq-len", "500"]));
        for line in ["  sequences   256 at once, of 500 tokens at most".to_owned(), format!("  engine      {url}")] {
            assert!(server.summary.lines().any(|found| found == line), "{}", server.summary);
        }
        let (status, answer) = server.post("/v1/completions", r#"{"prompt":"Hello","temperature":0,"max_tokens":5}"#);
        assert_eq!(status, 200, "{answer}");
        assert!(server.terminate().success());
        serde_json::from_str::<Value>(&answer).unwrap()
    });
    let answer = asked.await.unwrap();
    let requests = engine.requests();
    let [request] = &requests[..] else { panic!("one request") };
    assert_eq!((&request["model"], &request["max_tokens"]), (&json!(MODEL), &json!(5)));
    assert!(answer["choices"][0]["text"].as_str().is_some_and(|text| !text.is_empty()), "{answer}");
}
