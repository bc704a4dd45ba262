//! The forward pass by itself: logits near PEFT's, and bits that depend on nothing else in the step.

use std::{num::NonZeroUsize, sync::Arc};

use kaito_engine::{
    Quantization,
    testing::{CpuOperations, Decoder, Executor, ExecutorLimits, Packed, Span, StepInput, VariantKey},
};
use kaito_kernels::ThreadPool;
use kaito_model::{
    checkpoint::SharedBytes,
    config::{LinearKind, ModelConfig},
    family,
    weights::{ModelWeights, QuantizedTensor, Weight},
};

use crate::{MODELS, VARIANTS, cases, model, weights};

/// Rounding of f32 in another order of summation, relative to logits above 1.
const TOLERANCE: f32 = 1e-4;
const PAGES_EACH: usize = 4;

/// A sequence of a step.
#[derive(Clone, Copy)]
struct Sequence<'a> {
    tokens: &'a [u32],
    /// Which of [`VARIANTS`] it has.
    variant: usize,
}

/// A model with all variants of its adapters, and a KV cache for some sequences.
fn decoder(
    name: &str,
    (config, weights): (ModelConfig, ModelWeights),
    threads: usize,
    sequences: usize,
) -> Decoder<CpuOperations> {
    let limits = ExecutorLimits {
        pages: PAGES_EACH * sequences,
        page_size: 16,
        step_tokens: 64 * sequences,
        step_logits: sequences,
        sequences,
        sequence_pages: PAGES_EACH,
    };
    let threads = Arc::new(ThreadPool::new(NonZeroUsize::new(threads).unwrap()));
    let mut decoder = Decoder::new(CpuOperations::new(threads, Packed::F32), config.clone(), weights, limits).unwrap();
    for (id, variant) in VARIANTS.iter().enumerate() {
        if let Some(weights) = crate::weights(name, variant, &config) {
            decoder.add_adapter(id as u32, weights).unwrap();
        }
    }
    decoder
}

/// The logits behind each sequence, computed in steps of up to `chunk` tokens of each, all sequences in each step.
fn logits(decoder: &mut Decoder<CpuOperations>, sequences: &[Sequence], chunk: usize) -> Vec<Vec<f32>> {
    let pages: Vec<Vec<u32>> =
        (0..sequences.len()).map(|at| (0..PAGES_EACH).map(|page| (at * PAGES_EACH + page) as u32).collect()).collect();
    let longest = sequences.iter().map(|sequence| sequence.tokens.len()).max().unwrap();
    let mut found = vec![Vec::new(); sequences.len()];
    for start in (0..longest).step_by(chunk) {
        let mut step = StepInput::default();
        let mut ending = Vec::new();
        for (at, Sequence { tokens, variant }) in sequences.iter().enumerate() {
            let Some(part) = tokens.get(start..(start + chunk).min(tokens.len())).filter(|part| !part.is_empty())
            else {
                continue;
            };
            let ends = start + part.len() == tokens.len();
            ending.extend(ends.then_some(at));
            let variant = VariantKey { adapter: (*variant > 0).then_some(*variant as u32), ..VariantKey::default() };
            let logits = usize::from(ends);
            step.push(&Span { tokens: part, draft: &[], start, pages: &pages[at], variant, logits, states: false });
        }
        let ticket = decoder.submit(step).unwrap();
        let mut output = decoder.collect(ticket).unwrap();
        let vocabulary = decoder.vocab_size();
        for (row, at) in output.logits().chunks_exact(vocabulary).zip(ending) {
            found[at] = row.to_vec();
        }
        decoder.recycle(output);
    }
    found
}

#[test]
fn logits_are_those_of_peft_in_one_batch_of_all() {
    let mut wrong = Vec::new();
    for name in MODELS {
        let cases = cases(name);
        let all: Vec<(&str, Sequence, &crate::Answer)> = cases
            .iter()
            .flat_map(|case| {
                VARIANTS.iter().enumerate().map(move |(variant, named)| {
                    (*named, Sequence { tokens: &case.prompt, variant }, &case.answers[*named])
                })
            })
            .collect();
        let sequences: Vec<Sequence> = all.iter().map(|(_, sequence, _)| *sequence).collect();
        let mut decoder = decoder(name, family::load(&model(name)).unwrap(), 2, sequences.len());
        for ((variant, sequence, answer), found) in all.iter().zip(logits(&mut decoder, &sequences, 64)) {
            let kept: Vec<f32> = found.iter().step_by(4).copied().collect();
            assert_eq!(kept.len(), answer.logits.len());
            let off =
                kept.iter().zip(&answer.logits).map(|(a, b)| (a - b).abs() / b.abs().max(1.0)).fold(0.0, f32::max);
            if off > TOLERANCE {
                wrong.push(format!("{name}, {variant}, {} tokens: off by {off}", sequence.tokens.len()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The matrices of the layers as `--quantize` makes them.
fn quantized(name: &str, quantization: Quantization) -> (ModelConfig, ModelWeights) {
    let (config, mut weights) = family::load(&model(name)).unwrap();
    let pool = ThreadPool::new(NonZeroUsize::MIN);
    for (kind, linear) in weights.linears_mut() {
        if [LinearKind::Embedding, LinearKind::Head].contains(&kind) {
            continue;
        }
        for part in &mut linear.parts {
            let Weight::Plain(tensor) = &part.weight else { panic!("quantised already") };
            let &[rows, cols] = tensor.shape() else { panic!("no matrix") };
            let mut bytes = vec![0; quantization.bytes(rows, cols).unwrap()];
            let matrix = kaito_kernels::MatrixRef::new(tensor.dtype(), rows, cols, tensor.bytes()).unwrap();
            kaito_kernels::quantize(&pool, quantization, matrix, &mut bytes);
            let bytes = SharedBytes::owned(bytes);
            part.weight = Weight::Quantized(QuantizedTensor::new("w", quantization, rows, cols, bytes).unwrap());
        }
    }
    (config, weights)
}

/// Whatever is beside a sequence in a step, in whatever chunks it is computed and on however many threads.
#[test]
fn the_bits_of_a_row_depend_on_its_own_input_and_adapter() {
    let plain = |name: &str| family::load(&model(name)).unwrap();
    let models: [(&str, (ModelConfig, ModelWeights)); 6] = [
        ("llama-grouped-sharded", plain("llama-grouped-sharded")),
        ("falcon-40b-type-bf16", plain("falcon-40b-type-bf16")),
        ("meta-llama-70b-type-2-shards", plain("meta-llama-70b-type-2-shards")),
        ("phi3-window", plain("phi3-window")),
        ("llama-grouped-sharded", quantized("llama-grouped-sharded", Quantization::Int8)),
        ("phi3-window", quantized("phi3-window", Quantization::Int4)),
    ];
    for (name, parts) in models {
        let prompts: Vec<Vec<u32>> =
            (0..10).map(|at| (0..3 + 4 * at).map(|i| ((7 * i + 5 * at) % 400 + 20) as u32).collect()).collect();
        // Neighbours have other adapters, and each adapter has rows that lie apart.
        let sequences: Vec<Sequence> = prompts
            .iter()
            .enumerate()
            .map(|(at, tokens)| Sequence { tokens, variant: 2 * at % VARIANTS.len() })
            .collect();
        let mut alone = decoder(name, parts.clone(), 1, 1);
        let expected: Vec<Vec<f32>> =
            sequences.iter().flat_map(|sequence| logits(&mut alone, &[*sequence], 64)).collect();
        for (threads, chunk, order) in [(1, 64, 1), (3, 64, 3), (2, 5, 7), (4, 1, 9)] {
            let mut together = decoder(name, parts.clone(), threads, sequences.len());
            let shuffled: Vec<usize> = (0..sequences.len()).map(|at| (order * at + 1) % sequences.len()).collect();
            let batch: Vec<Sequence> = shuffled.iter().map(|&at| sequences[at]).collect();
            for (at, found) in shuffled.iter().zip(logits(&mut together, &batch, chunk)) {
                assert!(found == expected[*at], "{name}, sequence {at}, {threads} threads, chunks of {chunk}");
            }
        }
    }
}

/// An adapter of strength 0 adds nothing, to whatever the weights are held in.
#[test]
fn what_adapters_add_is_added_to_quantised_products() {
    for quantization in [Quantization::Int8, Quantization::Int4] {
        let name = "llama-grouped-sharded";
        let parts = quantized(name, quantization);
        let tokens = &cases(name)[1].prompt;
        let of = |variant: usize| Sequence { tokens, variant };
        let mut decoder = decoder(name, parts.clone(), 2, 2);
        let nothing = weights(name, "both", &parts.0).unwrap().scaled(0.0);
        decoder.add_adapter(VARIANTS.len() as u32, nothing).unwrap();
        let found = logits(&mut decoder, &[of(0), of(VARIANTS.len())], 64);
        assert_eq!(found[0], found[1], "{quantization}");
        let found = logits(&mut decoder, &[of(0), of(1)], 64);
        let answers = &cases(name)[1].answers;
        // What quantisation changes is small beside what the adapter changes.
        let distance = |found: &[f32], expected: &[f32]| -> f32 {
            found.iter().step_by(4).zip(expected).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt()
        };
        let own = distance(&found[1], &answers["one"].logits);
        assert!(3.0 * own < distance(&found[1], &answers["none"].logits), "{quantization}: {own}");
    }
}
