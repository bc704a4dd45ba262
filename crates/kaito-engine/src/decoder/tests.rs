//! The decoder against a forward pass by its definition, in f64, which is written here once more: for what a specification can say and
//! no family's reference computes.

use std::{num::NonZeroUsize, sync::Arc};

use kaito_kernels::{DType, ThreadPool, alibi_bias, alibi_slopes};
use kaito_model::{
    checkpoint::Tensor,
    config::{AttentionSpec, LayerSpec, MlpSpec, Norm, Rope, RopePairing, RopeScaling},
    weights::{LayerWeights, Linear, LinearPart, NormWeights},
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::{
    device::{Packed, cpu::CpuOperations},
    executor::Span,
    kv_cache::VariantKey,
};

const VOCAB: usize = 40;
const HIDDEN: usize = 24;
const INNER: usize = 28;
const LAYERS: usize = 2;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
/// No multiple of the lanes of a vector.
const HEAD_DIM: usize = 10;
const THETA: f64 = 1e4;
/// Three pages, the last of which is not full.
const TOKENS: usize = 41;
const RMS: Norm = Norm::Rms { eps: 1e-6 };

fn rotary() -> Positions {
    let (pairing, scaling) = (RopePairing::Halves, RopeScaling::None);
    Positions::Rotary(Rope { theta: THETA, width: HEAD_DIM, pairing, scaling })
}

fn config(attention: AttentionSpec, positions: Positions) -> ModelConfig {
    let mlp = MlpSpec { kind: Mlp::SwiGlu, width: INNER, bias: false };
    ModelConfig {
        family: "none",
        vocab_size: VOCAB,
        hidden_size: HIDDEN,
        num_layers: LAYERS,
        layer: LayerSpec { attention, mlp, norm: RMS, residual: Residual::Sequential },
        final_norm: RMS,
        positions,
        max_position_embeddings: 64,
        dialog_format: None,
    }
}

/// Random weights, with which each linear map keeps the size of numbers.
struct Random(ChaCha8Rng);

impl Random {
    fn numbers(&mut self, count: usize, mean: f32, most: f32) -> Vec<f32> {
        (0..count).map(|_| mean + self.0.random_range(-most..most)).collect()
    }

    fn linear(&mut self, out_features: usize, in_features: usize) -> Linear {
        let numbers = self.numbers(out_features * in_features, 0.0, (3.0 / in_features as f32).sqrt());
        let bytes = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let tensor = Tensor::from_bytes("random", DType::F32, vec![out_features, in_features], bytes).unwrap();
        let part = LinearPart { weight: tensor.into(), output_offset: 0, input_offset: 0 };
        Linear { out_features, in_features, parts: vec![part], bias: None }
    }

    fn norm(&mut self, width: usize, kind: Norm) -> NormWeights {
        let weight = self.numbers(width, 1.0, 0.5);
        NormWeights { weight, bias: kind.has_bias().then(|| self.numbers(width, 0.0, 0.5)) }
    }

    fn model(&mut self, config: &ModelConfig) -> ModelWeights {
        let LayerSpec { attention, norm, .. } = config.layer;
        let mut layer = || LayerWeights {
            attention_norm: self.norm(HIDDEN, norm),
            query_key_norms: attention.query_key_norm.map(|kind| [0; 2].map(|_| self.norm(HEAD_DIM, kind))),
            mlp_norm: Some(self.norm(HIDDEN, norm)),
            qkv: self.linear(attention.qkv_width(), HIDDEN),
            attention_output: self.linear(HIDDEN, attention.query_width()),
            mlp_in: self.linear(2 * INNER, HIDDEN),
            mlp_out: self.linear(HIDDEN, INNER),
        };
        let layers = (0..LAYERS).map(|_| layer()).collect();
        ModelWeights {
            embedding: self.linear(VOCAB, HIDDEN),
            layers,
            final_norm: self.norm(HIDDEN, RMS),
            head: self.linear(VOCAB, HIDDEN),
        }
    }
}

fn weights(config: &ModelConfig) -> ModelWeights {
    Random(ChaCha8Rng::seed_from_u64(7)).model(config)
}

fn tokens() -> Vec<u32> {
    (0..TOKENS).map(|i| ((7 * i + i * i / 5 + 3) % VOCAB) as u32).collect()
}

fn decoder(config: &ModelConfig, weights: ModelWeights) -> Result<Decoder<CpuOperations>, DeviceError> {
    let limits = ExecutorLimits {
        pages: 4,
        page_size: 16,
        step_tokens: TOKENS,
        step_logits: TOKENS,
        sequences: 1,
        sequence_pages: 4,
    };
    let threads = Arc::new(ThreadPool::new(NonZeroUsize::new(2).unwrap()));
    Decoder::new(CpuOperations::new(threads, Packed::F32), config.clone(), weights, limits)
}

/// The logits after each token, computed in steps of so many tokens.
fn decoded(config: &ModelConfig, weights: &ModelWeights, steps: &[usize]) -> Vec<f32> {
    let mut decoder = decoder(config, weights.clone()).unwrap();
    let (tokens, mut start, mut logits) = (tokens(), 0, Vec::new());
    let mut input = StepInput::with_room_for(decoder.limits());
    for rows in steps {
        input.push(&Span {
            tokens: &tokens[start..start + rows],
            draft: &[],
            start,
            pages: &[2, 0, 3],
            variant: VariantKey::default(),
            logits: *rows,
            states: false,
        });
        let ticket = decoder.submit(input).unwrap();
        let mut output = decoder.collect(ticket).unwrap();
        logits.extend_from_slice(output.logits());
        input = decoder.recycle(output);
        start += rows;
    }
    assert_eq!(start, TOKENS);
    logits
}

fn f64s(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

fn product(linear: &Linear, x: &[f64]) -> Vec<f64> {
    let matrix = f64s(&linear.parts[0].weight.plain().unwrap().to_f32());
    matrix.chunks(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
}

fn normed(x: &[f64], weights: &NormWeights, kind: Norm) -> Vec<f64> {
    let count = x.len() as f64;
    let (eps, mean) = match kind {
        Norm::Rms { eps } => (eps, 0.0),
        Norm::Layer { eps } => (eps, x.iter().sum::<f64>() / count),
    };
    let square = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
    let scaled = x.iter().map(|x| (x - mean) / (square + f64::from(eps)).sqrt());
    let bias = weights.bias.as_deref().map_or(vec![0.0; x.len()], f64s);
    scaled.zip(f64s(&weights.weight)).zip(bias).map(|((x, weight), bias)| x * weight + bias).collect()
}

fn rotated(head: &[f64], position: usize) -> Vec<f64> {
    let half = head.len() / 2;
    let turned = |i: usize| {
        let angle = position as f64 * THETA.powf(-2.0 * (i % half) as f64 / head.len() as f64);
        let other = if i < half { -head[i + half] } else { head[i - half] };
        head[i] * angle.cos() + other * angle.sin()
    };
    (0..head.len()).map(turned).collect()
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// The logits after each token, by the definition.
fn expected(config: &ModelConfig, weights: &ModelWeights) -> Vec<f64> {
    let LayerSpec { attention, norm, .. } = config.layer;
    let has_rotation = matches!(config.positions, Positions::Rotary(_));
    let embedding = f64s(&weights.embedding.parts[0].weight.plain().unwrap().to_f32());
    let mut stream: Vec<Vec<f64>> =
        tokens().iter().map(|&token| embedding.chunks(HIDDEN).nth(token as usize).unwrap().to_vec()).collect();
    for layer in &weights.layers {
        // Of each token, its heads.
        let (mut queries, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for (position, x) in stream.iter().enumerate() {
            let qkv = product(&layer.qkv, &normed(x, &layer.attention_norm, norm));
            let heads: Vec<&[f64]> = qkv.chunks(HEAD_DIM).collect();
            let placed = |head: &&[f64], norm: usize| {
                let head = match (attention.query_key_norm, &layer.query_key_norms) {
                    (Some(kind), Some(norms)) => normed(head, &norms[norm], kind),
                    _ => head.to_vec(),
                };
                if has_rotation { rotated(&head, position) } else { head }
            };
            queries.push(heads[..HEADS].iter().map(|head| placed(head, 0)).collect::<Vec<_>>());
            keys.push(heads[HEADS..HEADS + KV_HEADS].iter().map(|head| placed(head, 1)).collect::<Vec<_>>());
            values.push(heads[HEADS + KV_HEADS..].iter().map(|head| head.to_vec()).collect::<Vec<_>>());
        }
        let attended = |position: usize, head: usize| {
            let first = attention.sliding_window.map_or(0, |window| (position + 1).saturating_sub(window));
            let (kv_head, scale) = (head / (HEADS / KV_HEADS), f64::from(attention.scale));
            let score = |j: usize| {
                let products = queries[position][head].iter().zip(&keys[j][kv_head]).map(|(q, k)| q * k);
                let score = products.sum::<f64>() * scale;
                let score = match attention.soft_cap.map(f64::from) {
                    Some(cap) => cap * (score / cap).tanh(),
                    None => score,
                };
                let bias = if has_rotation { 0.0 } else { alibi_bias(alibi_slopes(HEADS)[head], j) };
                score + scale * f64::from(bias)
            };
            let exponentials: Vec<f64> = (first..=position).map(|j| score(j).exp()).collect();
            let total: f64 = exponentials.iter().sum();
            let mut sum = vec![0.0; HEAD_DIM];
            for (j, e) in (first..).zip(exponentials) {
                sum.iter_mut().zip(&values[j][kv_head]).for_each(|(sum, value)| *sum += e / total * value);
            }
            sum
        };
        for (position, x) in stream.iter_mut().enumerate() {
            let heads: Vec<f64> = (0..HEADS).flat_map(|head| attended(position, head)).collect();
            add(x, &product(&layer.attention_output, &heads));
            let inner = product(&layer.mlp_in, &normed(x, layer.mlp_norm.as_ref().unwrap(), norm));
            let (gate, up) = inner.split_at(INNER);
            let gated: Vec<f64> = gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect();
            add(x, &product(&layer.mlp_out, &gated));
        }
    }
    let logits = |x: &Vec<f64>| product(&weights.head, &normed(x, &weights.final_norm, RMS));
    stream.iter().flat_map(logits).collect()
}

#[test]
fn attention_is_what_the_specification_says() {
    let plain = AttentionSpec::new(HEADS, KV_HEADS, HEAD_DIM);
    let capped = AttentionSpec { soft_cap: Some(0.8), ..plain };
    let normed = AttentionSpec { query_key_norm: Some(RMS), ..plain };
    let both = AttentionSpec { query_key_norm: normed.query_key_norm, ..capped };
    let centred = AttentionSpec { query_key_norm: Some(Norm::Layer { eps: 1e-5 }), sliding_window: Some(9), ..capped };
    let cases = [
        (plain, rotary()),
        (capped, rotary()),
        (normed, rotary()),
        (both, rotary()),
        (centred, rotary()),
        (capped, Positions::Alibi),
        (normed, Positions::Alibi),
    ];
    for (attention, positions) in cases {
        let config = config(attention, positions);
        let weights = weights(&config);
        let expected = expected(&config, &weights);
        let found = decoded(&config, &weights, &[TOKENS]);
        assert_eq!(found.len(), expected.len());
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let error = (f64::from(*found) - expected).abs();
            assert!(error < 5e-5, "{attention:?}: logit {i} is {found}, not {expected}");
        }
        // Keys that come from the cache are the keys of their own step.
        let in_steps = decoded(&config, &weights, &[17, 1, TOKENS - 18]);
        assert!(found.iter().map(|x| x.to_bits()).eq(in_steps.iter().map(|x| x.to_bits())), "{attention:?}");
        // What is left out of the specification would be seen.
        for other in
            [AttentionSpec { soft_cap: None, ..attention }, AttentionSpec { query_key_norm: None, ..attention }]
        {
            if other != attention {
                let other = self::expected(&self::config(other, config.positions.clone()), &weights);
                let difference = other.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert!(difference > 0.01, "{attention:?}: {difference}");
            }
        }
    }
}

/// The logits of a model that is not what its specification says would be wrong, and nothing would say so.
#[test]
fn norms_come_with_their_weights() {
    let plain = AttentionSpec::new(HEADS, KV_HEADS, HEAD_DIM);
    let without = config(plain, rotary());
    let with = config(AttentionSpec { query_key_norm: Some(RMS), ..plain }, rotary());
    for (config, weights, which) in
        [(&with, weights(&without), "are missing"), (&without, weights(&with), "are not asked for")]
    {
        let error = decoder(config, weights).err().unwrap();
        assert_eq!(error.to_string(), format!("decoder: weights of norms on queries and keys {which}"));
    }
}
