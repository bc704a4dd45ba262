//! Where the time of a step goes: each part of a layer of TinyLlama's shape, with quantised weights, all in one run.
//!
//! `cargo run --release -p kaito-kernels --example step_speed [threads] [tokens] [tokens in the KV cache before them]`
//!
//! The parts take turns, and each figure is the best of several rounds: on a busy machine the best round is the one with the
//! fewest disturbances. With one thread, only the time that it ran on a core counts.

mod time_on_core;

use std::{num::NonZeroUsize, time::Instant};

use kaito_kernels::{
    AttentionSequence, AttentionShape, DType, Grouping, KvBuffer, KvDType, KvLayout, MatrixRef, Quantization,
    QuantizedInput, QuantizedRef, RopePairing, Rows, RowsMut, ThreadPool, Write, instruction_set, narrow,
    paged_attention, quantize, quantized_matmul, rms_norm, rope, store_kv, swiglu,
};

use self::time_on_core::time_on_core;

const ROUNDS: usize = 15;
const HIDDEN: usize = 2048;
const INNER: usize = 5632;
const HEADS: usize = 32;
const KV_HEADS: usize = 4;
const HEAD_DIM: usize = 64;
const QKV: usize = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
const PAGE_SIZE: usize = 16;

/// A part of a layer: its name, how often a layer has it, and its seconds.
struct Part {
    name: &'static str,
    count: f64,
    seconds: f64,
}

fn main() {
    let argument = |i: usize| std::env::args().nth(i).and_then(|argument| argument.parse::<usize>().ok());
    let threads = argument(1).and_then(NonZeroUsize::new).or(std::thread::available_parallelism().ok());
    let pool = &ThreadPool::new(threads.unwrap_or(NonZeroUsize::MIN));
    let (tokens, before) = (argument(2).unwrap_or(256), argument(3).unwrap_or(0));
    println!("{} threads, {}, {tokens} tokens after {before}", pool.threads(), instruction_set());

    let some = |count: usize| -> Vec<f32> { (0..count).map(|i| (i as f32 * 0.37).sin()).collect() };
    let (x, weight) = (some(tokens * HIDDEN), some(HIDDEN));
    let (mut normed, gate_up, mut inner) = (some(tokens * HIDDEN), some(tokens * 2 * INNER), some(tokens * INNER));
    let mut qkv = some(tokens * QKV);
    let mut attended = vec![0.0; tokens * HIDDEN];
    let angles = some(tokens * HEAD_DIM / 2);
    let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|angle| (angle.cos(), angle.sin())).unzip();
    let offsets: Vec<usize> = (0..HEADS + 2 * KV_HEADS).map(|head| head * HEAD_DIM).collect();

    let context = before + tokens;
    let pages: Vec<u32> = (0..context.div_ceil(PAGE_SIZE) as u32).rev().collect();
    let layout = KvLayout { num_kv_heads: KV_HEADS, pages: pages.len(), page_size: PAGE_SIZE };
    let Some(slots) = layout.slots() else { return };
    let (Some(mut keys), Some(mut values)) =
        (KvBuffer::keys(KvDType::F32, slots, HEAD_DIM, PAGE_SIZE), KvBuffer::values(KvDType::F32, slots, HEAD_DIM))
    else {
        return;
    };
    for (slot, head) in some(slots * HEAD_DIM).chunks_exact(HEAD_DIM).enumerate() {
        keys.write(slot, head);
        values.write(slot, head);
    }
    let shape = AttentionShape {
        query_offsets: &offsets[..HEADS],
        layout,
        head_dim: HEAD_DIM,
        scale: 0.125,
        soft_cap: None,
        window: None,
        alibi_slopes: &[],
    };

    for quantization in [Quantization::Int8, Quantization::Int4] {
        let matrices: Vec<(&str, usize, usize, Vec<u8>)> = [
            ("product qkv", QKV, HIDDEN),
            ("product attention output", HIDDEN, HIDDEN),
            ("product gate and up", 2 * INNER, HIDDEN),
            ("product down", HIDDEN, INNER),
        ]
        .into_iter()
        .map(|(name, rows, cols)| (name, rows, cols, quantized(pool, quantization, rows, cols)))
        .collect();
        let (mut narrow, mut wide) = (QuantizedInput::new(Grouping::Rotated), QuantizedInput::new(Grouping::Rotated));
        let mut output = vec![0.0; tokens * 2 * INNER];
        let mut parts: Vec<Part> = Vec::new();
        for _ in 0..ROUNDS {
            let mut at = 0;
            let mut part = |name: &'static str, count: f64, work: &mut dyn FnMut()| {
                let seconds = seconds(pool, work);
                match parts.get_mut(at) {
                    Some(part) => part.seconds = part.seconds.min(seconds),
                    None => parts.push(Part { name, count, seconds }),
                }
                at += 1;
            };
            part("norm", 2.0, &mut || {
                rms_norm(pool, tokens, Rows::new(&x, HIDDEN), &weight, 1e-5, RowsMut::new(&mut normed, HIDDEN));
            });
            part("quantise hidden", 3.0, &mut || {
                narrow.quantize(pool, tokens, HIDDEN, Rows::new(&x, HIDDEN));
            });
            part("rope", 1.0, &mut || {
                for heads in [&offsets[..HEADS], &offsets[HEADS..HEADS + KV_HEADS]] {
                    let rows = RowsMut::new(&mut qkv, QKV);
                    rope(pool, tokens, rows, heads, RopePairing::Halves, &cos, &sin);
                }
            });
            let sequences = [AttentionSequence { first_row: 0, rows: tokens, context, pages: &pages }];
            part("store keys and values", 1.0, &mut || {
                let (of_keys, of_values) = offsets[HEADS..].split_at(KV_HEADS);
                let rows = Rows::new(&qkv, QKV);
                store_kv(pool, layout, rows, of_keys, of_values, &mut keys, &mut values, &sequences);
            });
            part("attention", 1.0, &mut || {
                let out = RowsMut::new(&mut attended, HIDDEN);
                paged_attention(pool, &shape, Rows::new(&qkv, QKV), &keys, &values, &sequences, out);
            });
            // Not parts of a step: what the one after them does at once.
            part("swiglu", 0.0, &mut || {
                swiglu(pool, tokens, Rows::new(&gate_up, 2 * INNER), INNER, RowsMut::new(&mut inner, INNER));
            });
            part("quantise inner", 0.0, &mut || {
                wide.quantize(pool, tokens, INNER, Rows::new(&inner, INNER));
            });
            part("swiglu, quantised", 1.0, &mut || {
                wide.quantize_swiglu(pool, tokens, Rows::new(&gate_up, 2 * INNER), INNER, 0..INNER);
            });
            for (name, rows, cols, bytes) in &matrices {
                let input = if *cols == HIDDEN { &narrow } else { &wide };
                let Ok(weight) = QuantizedRef::new(quantization, *rows, *cols, bytes) else { continue };
                part(name, 1.0, &mut || {
                    quantized_matmul(pool, input, weight, RowsMut::new(&mut output, *rows), Write::Set);
                });
            }
        }
        let total: f64 = parts.iter().map(|part| part.count * part.seconds).sum();
        println!("{quantization}: {:.3} ms a layer", total * 1e3);
        for Part { name, count, seconds } in parts {
            let all = count * seconds;
            println!("  {name:26} {count} x {:8.3} ms {:5.1}%", seconds * 1e3, 100.0 * all / total);
        }
    }
}

fn quantized(pool: &ThreadPool, quantization: Quantization, rows: usize, cols: usize) -> Vec<u8> {
    let numbers: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.61).sin() * 0.02).collect();
    let mut source = vec![0; numbers.len() * DType::F32.size()];
    narrow(&numbers, DType::F32, &mut source);
    let mut bytes = vec![0; quantization.bytes(rows, cols).unwrap_or(0)];
    if let Ok(matrix) = MatrixRef::new(DType::F32, rows, cols, &source) {
        quantize(pool, quantization, matrix, &mut bytes);
    }
    bytes
}

/// Seconds of some work: the time on a core where one thread does it.
fn seconds(pool: &ThreadPool, work: &mut dyn FnMut()) -> f64 {
    let (start, before) = (Instant::now(), time_on_core());
    work();
    match (before, time_on_core()) {
        (Some(before), Some(after)) if pool.threads() == 1 => after - before,
        _ => start.elapsed().as_secs_f64(),
    }
}
