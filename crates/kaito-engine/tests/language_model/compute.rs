//! Products in both ways in which they treat activations: what the scores of a text do not depend on, to the last bit.

use std::num::NonZeroUsize;

use kaito_engine::{Compute, ComputeChoice, DType, LanguageModel, LoadOptions, StepBudget, TokenScore};

use super::{
    fixture,
    openai::{DECODING, ask, encode, greedy, prepare},
};

/// Models with weights of 16 bits: in bf16 and, of several files and tied, in f16.
const NARROW: [&str; 4] = ["mistral-full-bf16", "falcon-rw-type", "phi3-su-bf16", "llama-tied-bin-f16"];

/// The demo model, whose heads are operands of tile registers, which those of the fixtures are not.
const DEMO: &str = "../../../models/demo";

fn loaded(name: &str, options: LoadOptions) -> LanguageModel {
    let options = LoadOptions { max_batch_size: 8, kv_cache_memory: Some(64 << 20), ..options };
    LanguageModel::load(&fixture(name), &options, &|_| ()).unwrap()
}

/// The scores of every token of a prompt but the first, and of some that follow it.
async fn scores(model: &LanguageModel, text: &str) -> Vec<TokenScore> {
    let options =
        kaito_engine::dialects::openai::SamplingOptions { logprobs: Some(3), prompt_logprobs: Some(3), ..greedy(12) };
    let (output, _) = ask(model, prepare(model, encode(model, text), options, &[], DECODING)).await;
    let prompt = output.prompts[0].scores.clone().unwrap();
    let answer = output.sequences[0].scores.clone().unwrap();
    prompt.iter().flatten().cloned().chain(answer).collect()
}

#[tokio::test]
async fn scores_depend_on_neither_chunks_nor_threads_nor_neighbours() {
    let texts: Vec<String> = (3..9).map(|words| "one two three four five six seven ".repeat(words)).collect();
    let text = &texts[3];
    for name in NARROW.into_iter().chain([DEMO]) {
        for compute in [ComputeChoice::Exact, ComputeChoice::Bf16] {
            let load = |threads, tokens| {
                let threads = NonZeroUsize::new(threads);
                let step_budget = Some(StepBudget { tokens, tokens_beside_streams: tokens, drafts: 4 });
                loaded(name, LoadOptions { compute, threads, step_budget, ..LoadOptions::default() })
            };
            let model = load(1, 256);
            let expected = scores(&model, text).await;
            assert_eq!(scores(&load(3, 9), text).await, expected, "{name} {compute:?}: in chunks, on three threads");
            let neighbours = load(2, 40);
            let asked = texts.iter().cloned().map(|text| {
                let model = neighbours.clone();
                tokio::spawn(async move { scores(&model, &text).await })
            });
            let asked: Vec<_> = asked.collect();
            for (asked, neighbour) in asked.into_iter().zip(&texts) {
                assert_eq!(asked.await.unwrap(), scores(&model, neighbour).await, "{name} {compute:?}: beside others");
            }
        }
    }
}

/// Each mode is another, and what a model is loaded with says which.
#[tokio::test]
async fn the_choice_reaches_the_products_of_weights_of_16_bits_alone() {
    let text = "one two three four five six seven";
    let load = |name, compute, dtype| loaded(name, LoadOptions { compute, dtype, ..LoadOptions::default() });
    for name in NARROW {
        let exact = load(name, ComputeChoice::Exact, None);
        let rounded = load(name, ComputeChoice::Bf16, None);
        assert_eq!((exact.info().compute, rounded.info().compute), (Compute::Exact, Compute::Bf16));
        assert_eq!((exact.info().activations(), rounded.info().activations()), ("f32", "bf16"));
        let of_prompt = |scores: Vec<TokenScore>| -> Vec<f32> { scores.iter().take(6).map(|s| s.log_prob).collect() };
        let (exact, rounded) = (of_prompt(scores(&exact, text).await), of_prompt(scores(&rounded, text).await));
        assert_ne!(exact, rounded, "{name}");
        // Rounding to bf16 is off by 2^-9 at most; what the layers make of it stays in that region.
        for (exact, rounded) in exact.iter().zip(&rounded) {
            assert!((exact - rounded).abs() < 0.02 * exact.abs().max(1.0), "{name}: {rounded}, exactly {exact}");
        }
        let widened = load(name, ComputeChoice::Auto, Some(DType::F32));
        // Both are exact; their sums may be rounded in another order.
        for (exact, widened) in exact.iter().zip(of_prompt(scores(&widened, text).await)) {
            assert!((exact - widened).abs() < 1e-4 * exact.abs().max(1.0), "{name}: {widened}, exactly {exact}");
        }
    }
    let options = LoadOptions { compute: ComputeChoice::Bf16, dtype: Some(DType::F32), ..LoadOptions::default() };
    let error = LanguageModel::load(&fixture(NARROW[0]), &options, &|_| ()).err().unwrap().to_string();
    assert!(error.contains("products with weights in f32 are always exact"), "{error}");
}
