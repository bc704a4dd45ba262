//! Answers that are drawn.

use serde_json::{Value, json};

use crate::front::{COMPLETIONS, Front, with};

fn drawn(more: Value) -> Value {
    with(json!({ "prompt": "Hello", "temperature": 1.0, "max_tokens": 20, "ignore_eos": true }), more)
}

async fn texts(front: &Front, body: &Value) -> Vec<String> {
    let answer = front.server.ask(COMPLETIONS, body).await;
    answer["choices"].as_array().unwrap().iter().map(|choice| choice["text"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_draws_the_same_again_and_each_sequence_something_else() {
    let front = Front::start().await;
    let seeded = drawn(json!({ "seed": 7, "n": 3 }));
    let first = texts(&front, &seeded).await;
    assert_eq!(texts(&front, &seeded).await, first);
    assert!(first[0] != first[1] && first[1] != first[2] && first[0] != first[2], "{first:?}");
    assert_eq!(texts(&front, &drawn(json!({ "seed": 7 }))).await, first[..1]);
    assert_eq!(texts(&front, &drawn(json!({ "seed": 8 }))).await, first[1..2], "as vLLM counts the seeds of `n`");
    assert_ne!(texts(&front, &drawn(json!({}))).await, texts(&front, &drawn(json!({}))).await);
    assert!(front.engine.requests().last().unwrap().get("seed").is_none());
    front.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_best_of_several_is_found_by_their_log_probabilities() {
    let front = Front::start().await;
    let all = drawn(json!({ "seed": 7, "n": 4, "logprobs": 0 }));
    let answer = front.server.ask(COMPLETIONS, &all).await;
    let mean = |choice: &Value| {
        let scores = choice["logprobs"]["token_logprobs"].as_array().unwrap();
        scores.iter().map(|score| score.as_f64().unwrap()).sum::<f64>() / scores.len() as f64
    };
    let choices = answer["choices"].as_array().unwrap();
    let best = choices.iter().max_by(|a, b| mean(a).total_cmp(&mean(b))).unwrap();
    let found = front.server.ask(COMPLETIONS, &drawn(json!({ "seed": 7, "best_of": 4 }))).await;
    assert_eq!(found["choices"][0]["text"], best["text"]);
    front.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_choice_binds_what_is_drawn() {
    let front = Front::start().await;
    for seed in 0..6 {
        let body = json!({
            "prompt": "Hello", "temperature": 1.0, "max_tokens": 20, "seed": seed,
            "structured_outputs": { "choice": ["yes", "no", "never"] },
        });
        let answer = front.server.ask(COMPLETIONS, &body).await;
        let choice = &answer["choices"][0];
        assert!(["yes", "no", "never"].contains(&choice["text"].as_str().unwrap()), "{choice}");
        assert_eq!(choice["finish_reason"], "stop");
    }
    front.server.stop().await;
}
