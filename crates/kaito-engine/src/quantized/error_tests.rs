//! How far the lower precisions are from f32. `docs/precision.md` has the figures, which these tests print:
//! `cargo test -p kaito-engine --lib error_tests -- --nocapture`.

use std::{
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
};

use kaito_kernels::KvDType;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{tests::fixture, *};
use crate::{
    decoder::Decoder,
    device::{Packed, cpu::CpuOperations},
    executor::{Executor, ExecutorLimits, Span, StepInput},
};
use kaito_model::{
    checkpoint::Tensor,
    family,
    tokenizer::{Special, Tokenizer},
};

const PAGE_SIZE: usize = 16;

fn pool() -> ThreadPool {
    ThreadPool::new(NonZeroUsize::new(2).unwrap())
}

fn log_probabilities(
    directory: &Path,
    quantization: Option<Quantization>,
    kv_dtype: KvDType,
    texts: &[Vec<u32>],
) -> Vec<Vec<Vec<f64>>> {
    log_probabilities_with(directory, kv_dtype, texts, |weights| {
        if let Some(quantization) = quantization {
            let (cache, family, pool) = (None, "", &pool());
            let attention = family::load(directory).unwrap().0.layer.attention;
            let plan = Plan::new(quantization, &attention, weights).unwrap();
            Quantize { plan, cache, family, pool, fits: true, progress: &|_| () }.apply(weights);
        }
    })
}

/// The log probabilities of the next token after each token of each text, with changed weights.
fn log_probabilities_with(
    directory: &Path,
    kv_dtype: KvDType,
    texts: &[Vec<u32>],
    change: impl FnOnce(&mut ModelWeights),
) -> Vec<Vec<Vec<f64>>> {
    let (config, mut weights) = family::load(directory).unwrap();
    change(&mut weights);
    let longest = texts.iter().map(Vec::len).max().unwrap();
    let pages: Vec<u32> = (0..longest.div_ceil(PAGE_SIZE) as u32).collect();
    let limits = ExecutorLimits {
        pages: pages.len(),
        page_size: PAGE_SIZE,
        step_tokens: longest,
        step_logits: longest,
        sequences: 1,
        sequence_pages: pages.len(),
    };
    let vocab_size = config.vocab_size;
    let operations = CpuOperations::new(Arc::new(pool()), Packed { kv_dtype, ..Packed::F32 });
    let mut decoder = Decoder::new(operations, config, weights, limits).unwrap();
    let mut step = Some(StepInput::with_room_for(&limits));
    let mut of_text = |text: &Vec<u32>| {
        let mut input = step.take().unwrap();
        input.push(&Span {
            tokens: text,
            draft: &[],
            start: 0,
            pages: &pages,
            variant: Default::default(),
            logits: text.len(),
            states: false,
        });
        let ticket = decoder.submit(input).unwrap();
        let mut output = decoder.collect(ticket).unwrap();
        let probabilities = output.logits().chunks_exact(vocab_size).map(log_softmax).collect();
        step = Some(decoder.recycle(output));
        probabilities
    };
    texts.iter().map(&mut of_text).collect()
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    logits.iter().map(|&x| f64::from(x - max) - sum.ln()).collect()
}

struct Distance {
    /// e to the mean negative log likelihood of the text.
    perplexity: f64,
    /// Mean Kullback-Leibler divergence from the exact distribution of the next token.
    divergence: f64,
    /// Share of the tokens whose likeliest successor is the same.
    agreement: f64,
}

fn distance(texts: &[Vec<u32>], exact: &[Vec<Vec<f64>>], other: &[Vec<Vec<f64>>]) -> Distance {
    let (mut likelihood, mut divergence, mut agreements, mut count) = (0.0, 0.0, 0.0, 0.0);
    for ((text, exact), other) in texts.iter().zip(exact).zip(other) {
        for (i, &next) in text.iter().enumerate().skip(1) {
            let (exact, other) = (&exact[i - 1], &other[i - 1]);
            likelihood += other[next as usize];
            divergence += exact.iter().zip(other).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
            let likeliest = |p: &[f64]| (0..p.len()).max_by(|&a, &b| p[a].total_cmp(&p[b]));
            agreements += f64::from(u8::from(likeliest(exact) == likeliest(other)));
            count += 1.0;
        }
    }
    Distance { perplexity: (-likelihood / count).exp(), divergence: divergence / count, agreement: agreements / count }
}

fn perplexity_of(texts: &[Vec<u32>], exact: &[Vec<Vec<f64>>]) -> f64 {
    distance(texts, exact, exact).perplexity
}

/// Root mean square of the differences, as a part of the standard deviation of the exact values.
fn relative_difference(exact: &[Vec<Vec<f64>>], other: &[Vec<Vec<f64>>]) -> f64 {
    let (mut differences, mut spread) = (0.0, 0.0);
    for (exact, other) in exact.iter().flatten().zip(other.iter().flatten()) {
        let mean = exact.iter().sum::<f64>() / exact.len() as f64;
        differences += exact.iter().zip(other).map(|(p, q)| (p - q).powi(2)).sum::<f64>();
        spread += exact.iter().map(|p| (p - mean).powi(2)).sum::<f64>();
    }
    (differences / spread).sqrt()
}

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo")
}

/// Paragraphs of running text.
fn texts() -> Vec<Vec<u32>> {
    let tokenizer = Tokenizer::open(&demo()).unwrap();
    let text = fs::read_to_string(demo().join("train/text/prose.txt")).unwrap();
    let paragraphs = text.lines().filter(|line| line.len() > 80 && !line.starts_with('#'));
    paragraphs.map(|line| tokenizer.encode(line, Special::Add).unwrap()).collect()
}

/// Weights, keys and values, and the largest divergence.
///
/// An error of standard deviation `s` in each logit costs a divergence of about `s^2 / 2`. With logits of a standard
/// deviation near 4, results of 16 linear maps that are each off by a part `e` of themselves, independently, and a stream
/// to which each adds a small part of what it holds, `s` is at most `4 e sqrt(16)`, and so the divergence at most
/// `128 e^2`. `e` is 0.0086 for 8 bits of weights and activations and 0.091 for 4 bits of weights
/// (`relative_errors_of_true_shapes` in kaito-kernels): 0.0095 and 1.06. The errors of one map are independent from row to
/// row, so that most of them cancel in the next one: what is measured is a hundredth of that. The bounds are a few times
/// what is measured.
const PRECISIONS: [(Option<Quantization>, KvDType, f64); 8] = [
    (None, KvDType::F32, 0.0),
    (None, KvDType::Bf16, 5e-6),
    (None, KvDType::Int8, 5e-5),
    (Some(Quantization::Int8), KvDType::F32, 2e-4),
    (Some(Quantization::Int8), KvDType::Int8, 2.5e-4),
    (Some(Quantization::Int4), KvDType::F32, 0.012),
    (Some(Quantization::Int4), KvDType::Bf16, 0.012),
    (Some(Quantization::Int4), KvDType::Int8, 0.012),
];

#[test]
fn the_demo_model_on_running_text() {
    let texts = texts();
    let tokens: usize = texts.iter().map(Vec::len).sum();
    assert!(tokens > 1000, "{tokens} tokens are too few to tell precisions apart");
    let exact = log_probabilities(&demo(), None, KvDType::F32, &texts);
    println!("{tokens} tokens\nweights  KV cache  perplexity  divergence  same token");
    for (quantization, kv_dtype, bound) in PRECISIONS {
        let other = log_probabilities(&demo(), quantization, kv_dtype, &texts);
        let distance = distance(&texts, &exact, &other);
        let weights = quantization.map_or("bf16".to_owned(), |quantization| quantization.to_string());
        println!(
            "{weights:8} {:15}  {:10.4}  {:10.6}  {:9.2}%",
            kv_dtype.to_string(),
            distance.perplexity,
            distance.divergence,
            100.0 * distance.agreement
        );
        assert!(distance.divergence <= bound, "{weights} {kv_dtype}: {} above {bound}", distance.divergence);
        // A divergence of `d` moves the mean log likelihood by `sqrt(2 d)` at most (Pinsker), as a rule by far less.
        let change = (distance.perplexity / perplexity_of(&texts, &exact)).ln().abs();
        assert!(
            change <= (2.0 * bound).sqrt() / 5.0,
            "{weights} {kv_dtype}: the log of the perplexity moved by {change}"
        );
    }
}

/// Adds noise to the matrices that quantisation changes, of a root mean square that is a part of theirs.
fn disturb(weights: &mut ModelWeights, part: f32, rng: &mut impl Rng) {
    for linear_part in parts_mut(weights) {
        let Weight::Plain(tensor) = &linear_part.weight else { continue };
        let mut values = tensor.to_f32();
        let mean_square = values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32;
        // Uniform noise up to `a` has a root mean square of `a / sqrt(3)`.
        let most = part * (3.0 * mean_square).sqrt();
        values.iter_mut().for_each(|x| *x += rng.random_range(-most..most));
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let shape = tensor.shape().to_vec();
        linear_part.weight = Tensor::from_bytes("disturbed", DType::F32, shape, bytes).unwrap().into();
    }
}

/// Every family, layout of heads, kind of shard and storage goes through the quantised kernels, and comes no further from
/// itself than by noise of the size of quantisation: 0.0061 of weights, of activations and of keys and values each. The
/// random weights of these models let attention jump, so that the same error moves some of them ten times as far as others;
/// a part of a map that is left out or misplaced would move all of them by about 1.
#[test]
fn every_fixture_is_as_near_itself_in_8_bits_as_with_noise() {
    for entry in fs::read_dir(fixture("")).unwrap() {
        let directory = entry.unwrap().path();
        let texts = [(0..24).map(|i| (i * 37 + 11) % 250).collect()];
        let exact = log_probabilities(&directory, None, KvDType::F32, &texts);
        let other = log_probabilities(&directory, Some(Quantization::Int8), KvDType::Int8, &texts);
        let difference = relative_difference(&exact, &other);
        let noise = 0.0061 * 3f32.sqrt();
        let by_noise = (0..4).map(|seed| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let change = |weights: &mut ModelWeights| disturb(weights, noise, &mut rng);
            relative_difference(&exact, &log_probabilities_with(&directory, KvDType::F32, &texts, change))
        });
        let by_noise = by_noise.fold(0.0, f64::max);
        println!("{}: {difference:.4}, by noise {by_noise:.4}", directory.file_name().unwrap().to_string_lossy());
        let bounds = 0.2 * by_noise..1.5 * by_noise;
        assert!(bounds.contains(&difference), "{}: {difference} is not in {bounds:?}", directory.display());
    }
}
