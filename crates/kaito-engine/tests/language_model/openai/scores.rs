//! Log-probabilities: of tokens that are generated, and of those of a prompt.

use kaito_engine::{FinishReason, ParameterError, dialects::openai::SamplingOptions};
use serde_json::Value;

use super::super::{fixture, load};
use super::{DECODING, ask, encode, greedy, prepare};

/// The models of the fixtures for which transformers has said log-probabilities, without the one whose own defaults forbid
/// repetitions.
const SCORED_FIXTURES: [&str; 11] = [
    "falcon-40b-type-bf16",
    "falcon-7b-type",
    "falcon-rw-type",
    "llama-bin-sharded-bf16",
    "llama-grouped-sharded",
    "llama-multi-head",
    "mistral-full-bf16",
    "mistral-window",
    "phi3-longrope",
    "phi3-su-bf16",
    "phi3-window",
];

fn near(got: &[f32], expected: &[f32]) -> bool {
    got.len() == expected.len() && got.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-4 * b.abs().max(1.0))
}

/// Without processors the scores that transformers chose by are the raw ones. They are the same for tokens that are generated and
/// for tokens of a prompt, however many pieces it is computed in.
#[tokio::test]
async fn log_probabilities_are_those_of_transformers() {
    let mut compared = 0;
    for name in SCORED_FIXTURES {
        let model = load(name, None);
        let cases = std::fs::read_to_string(fixture(name).join("cases.json")).unwrap();
        let cases: Vec<Value> = serde_json::from_str(&cases).unwrap();
        for case in cases.iter().filter(|case| case["expect"]["log_probs"].is_array()) {
            let ids = |value: &Value| serde_json::from_value::<Vec<u32>>(value.clone()).unwrap();
            let (prompt, whole) = (ids(&case["expect"]["prompt_ids"]), ids(&case["expect"]["sequences"][0]));
            let penalty = case["request"]["generate_kwargs"]["repetition_penalty"].as_f64();
            let options = SamplingOptions { logprobs: Some(20), repetition_penalty: penalty, ..greedy(20) };
            let (output, _) = ask(&model, prepare(&model, prompt.clone(), options, &[], DECODING)).await;
            let sequence = &output.sequences[0];
            assert_eq!([&prompt, &sequence.tokens].map(Vec::as_slice).concat(), whole, "{name} {}", case["name"]);
            let scores = sequence.scores.as_ref().unwrap();
            assert!(scores.iter().all(|score| score.top.len() == 20));
            let chosen: Vec<f32> = scores.iter().map(|score| score.log_prob).collect();
            let scored = SamplingOptions { prompt_logprobs: Some(20), ..greedy(0) };
            let (of_prompt, _) = ask(&model, prepare(&model, whole.clone(), scored, &[], DECODING)).await;
            assert_eq!(of_prompt.sequences[0].finish_reason, FinishReason::Length);
            assert!(of_prompt.sequences[0].tokens.is_empty());
            let of_prompt = of_prompt.prompts[0].scores.as_ref().unwrap();
            assert_eq!((of_prompt.len(), &of_prompt[0]), (whole.len(), &None));
            let of_prompt: Vec<f32> = of_prompt[prompt.len()..].iter().flatten().map(|score| score.log_prob).collect();
            assert!(near(&of_prompt, &chosen), "{name}\n{of_prompt:?}\n{chosen:?}");
            if penalty.is_none() {
                let expected: Vec<f32> = serde_json::from_value(case["expect"]["log_probs"].clone()).unwrap();
                assert!(near(&chosen, &expected), "{name}\n{chosen:?}\n{expected:?}");
                let best =
                    scores.iter().all(|score| score.top[0].id == score.id && score.top[0].log_prob == score.log_prob);
                assert!(best, "{name}: greedy takes the likeliest");
                compared += 1;
            }
        }
    }
    assert_eq!(compared, SCORED_FIXTURES.len());
}

/// Every number of a prompt, also where an earlier request has left its pages in the prefix cache.
#[tokio::test]
async fn scores_of_a_prompt_miss_nothing_that_is_cached() {
    let model = load("llama-multi-head", None);
    let prompt = encode(&model, &"one two three four five six seven eight nine ten ".repeat(5));
    assert!(prompt.len() > 100);
    let scored = || SamplingOptions { prompt_logprobs: Some(1), ..greedy(4) };
    let (first, _) = ask(&model, prepare(&model, prompt.clone(), scored(), &[], DECODING)).await;
    let (second, _) = ask(&model, prepare(&model, prompt.clone(), scored(), &[], DECODING)).await;
    assert_eq!(first, second);
    assert_eq!((second.usage.cached_tokens, model.stats().prompt_tokens_reused_total), (0, 0));
    let scores = first.prompts[0].scores.as_ref().unwrap();
    assert_eq!(scores.len(), prompt.len());
    assert!(scores[1..].iter().zip(&prompt[1..]).all(|(score, &id)| score.as_ref().unwrap().id == id));
    // Others take up the pages that it left, and the answer is the same.
    let (plain, _) = ask(&model, prepare(&model, prompt.clone(), greedy(4), &[], DECODING)).await;
    assert!(plain.usage.cached_tokens > 64, "{:?}", plain.usage);
    assert_eq!(plain.sequences, first.sequences);
    assert_eq!((plain.prompts[0].tokens, &plain.prompts[0].scores), (prompt.len(), &None));
}

#[tokio::test]
async fn a_prompt_may_fill_the_longest_sequence_where_nothing_is_generated() {
    let model = load("llama-multi-head", Some(64));
    let prompt: Vec<u32> = (0..64).map(|at| 261 + at * 7 % 200).collect();
    let scored = SamplingOptions { prompt_logprobs: Some(0), ..greedy(0) };
    let (output, _) = ask(&model, prepare(&model, prompt.clone(), scored, &[], DECODING)).await;
    assert_eq!(output.prompts[0].scores.as_ref().unwrap().len(), 64);
    let (output, deltas) = ask(&model, prepare(&model, prompt.clone(), greedy(0), &[], DECODING)).await;
    assert_eq!((output.sequences[0].finish_reason, deltas.len()), (FinishReason::Length, 1));
    for (prompt, max_tokens) in
        [(prompt.clone(), Some(1)), (prompt.clone(), None), ([prompt, vec![261]].concat(), Some(0))]
    {
        let options = SamplingOptions { max_tokens, ..SamplingOptions::default() };
        let error = options.resolve(model.context(), &prompt).unwrap_err();
        assert!(matches!(error, ParameterError::PromptTooLong { limit: 64, .. }), "{error}");
    }
}
