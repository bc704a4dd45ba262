//! Speed of the kernels next to the machine's limits (roofline), all in one run.
//!
//! `cargo run --release -p kaito-kernels --example kernel_speed [threads] [part of a name]`
//!
//! The environment variable `KAITO_KERNELS` chooses the kernels. Products with weights of 16 bits are measured in each way to compute them, next to
//! the limit of the units that they take: fused multiply-add, products of pairs of bf16, or a plain product of packed matrices by tile registers, of which exact
//! products take three.
//!
//! Figures are the best of several rounds, in which the limits and the kernels take turns: on a busy machine the best
//! round is the one with the fewest disturbances.

mod time_on_core;

use std::{hint::black_box, num::NonZeroUsize, time::Instant};

use kaito_kernels::{
    Arithmetic, AttentionSequence, AttentionShape, BlockFormat, BlocksRef, Compute, DType, InputForm, KernelLevel,
    KvBuffer, KvDType, KvForm, KvLayout, MatrixRef, Quantization, QuantizedFormat, QuantizedInput, QuantizedRef,
    ReadMemory, Rows, RowsMut, ThreadPool, TileElements, TileProduct, TiledInput, Unit, Write, choose_level,
    instruction_set, matmul, narrow, paged_attention, quantize, quantized_matmul, repack,
};

use self::time_on_core::time_on_core;

const ROUNDS: usize = 5;
/// More than the caches hold.
const MEMORY_BYTES: usize = 512 << 20;

// Places of limits of arithmetic, after that of reading memory.
const MULTIPLY_ADD: usize = 1;
const PAIRS: usize = 2;
const TILES: usize = 3;

fn main() -> std::io::Result<()> {
    let threads = std::env::args().nth(1).and_then(|arg| arg.parse().ok());
    let threads = threads.or(std::thread::available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN);
    let filter = std::env::args().nth(2).unwrap_or_default();
    if let Some(level) = KernelLevel::from_environment().map_err(std::io::Error::other)? {
        choose_level(level).map_err(std::io::Error::other)?;
    }
    let pool = ThreadPool::new(threads);
    println!("{} threads, {}", pool.threads(), instruction_set());

    let memory = ReadMemory::new(MEMORY_BYTES)?;
    let flops = plain(&pool, &filter, &memory);
    quantized(&pool, &filter, &memory);
    // Llama-2-7B's heads, and TinyLlama's, eight of which share a KV head (grouped-query attention).
    let heads = [(32, 32, 128), (32, 4, 64)];
    let lengths = [(1, 512), (1, 4096), (1, 16384), (512, 512), (512, 4096)];
    let cases = heads.into_iter().flat_map(|heads| lengths.map(|lengths| (heads, lengths)));
    let forms = [(KvDType::F32, false), (KvDType::Bf16, false), (KvDType::Bf16, true), (KvDType::Int8, false)];
    for ((dtype, rounded), ((heads, kv_heads, head_dim), (rows, context))) in
        forms.into_iter().flat_map(|form| cases.clone().map(move |case| (form, case)))
    {
        let form = KvForm::of(dtype, rounded, head_dim);
        if rounded && !form.is_for_tiles() {
            continue;
        }
        let unit = if rounded { ", tiles" } else { "" };
        let name =
            format!("attention, {heads} heads of {head_dim} on {kv_heads}, {dtype}{unit}, {rows} queries of {context}");
        if !name.contains(&filter) {
            continue;
        }
        let seconds = attention(&pool, form, [heads, kv_heads, head_dim], rows, context);
        let scores = rows * (context - rows) + rows * (rows + 1) / 2;
        let computed = (4 * heads * head_dim * scores) as f64 / seconds;
        let read = (2 * context * kv_heads * dtype.head_bytes(head_dim)) as f64 / seconds;
        println!(
            "{name}: {:.3} ms, {:.1} GB/s, {:.0} GFLOP/s, {:.0}%",
            seconds * 1e3,
            read / 1e9,
            computed / 1e9,
            100.0 * computed / flops
        );
    }
    let count = 10_000;
    let start = Instant::now();
    (0..count).for_each(|_| pool.for_each(pool.threads(), &|i| _ = black_box(i)));
    println!("fork and join: {:.2} us", start.elapsed().as_secs_f64() / f64::from(count) * 1e6);
    Ok(())
}

/// Products with weights that are not quantised. The peak of fused multiply-add.
fn plain(pool: &ThreadPool, filter: &str, memory: &ReadMemory) -> f64 {
    let multiply_add = Arithmetic::new(Unit::F32);
    let tiles = tile_product(TileElements::Bf16);
    let by_pairs = KernelLevel::chosen() == KernelLevel::Avx512 && Compute::has_fast_bf16();
    let pairs = by_pairs.then(|| Arithmetic::new(Unit::Bf16Pairs));
    let limits = || {
        let pairs = pairs.map_or(0.0, |pairs| peak(pool, pairs));
        [read_bandwidth(pool, memory), peak(pool, multiply_add), pairs, best_rate(pool, tiles.as_ref())]
    };
    let mut limit = limits();
    let mut results = Vec::new();
    for dtype in [DType::Bf16, DType::F16, DType::F32] {
        // Three of Llama-2-7B's, and three of TinyLlama's.
        for (rows, cols) in [(4096, 4096), (11008, 4096), (4096, 11008), (2048, 2048), (5632, 2048), (2048, 5632)] {
            let name = |tokens: usize, compute: Compute| format!("{dtype} {rows} x {cols}, {tokens} tokens, {compute}");
            let cases = [1, 2, 4, 8, 16, 64, 128, 256, 512]
                .into_iter()
                .flat_map(|tokens| [Compute::Exact, Compute::Bf16].map(|compute| (tokens, compute)))
                .filter(|&(_, compute)| dtype != DType::F32 || compute == Compute::Exact);
            let wanted: Vec<_> = cases.filter(|&(tokens, compute)| name(tokens, compute).contains(filter)).collect();
            if wanted.is_empty() {
                continue;
            }
            // So many layers that weights come from memory and not from a cache, as they do in a model.
            let layers = (MEMORY_BYTES / (rows * cols * dtype.size())).max(1);
            let bytes = weights(dtype, layers * rows * cols);
            for (tokens, compute) in wanted {
                // Many tokens take long: fewer layers, more than caches hold, show the same.
                let layers = layers.min((4096 / tokens).max(1));
                let bytes = &bytes[..layers * rows * cols * dtype.size()];
                let seconds = matmuls(pool, dtype, compute, [rows, cols], bytes, tokens);
                let (unit, products) = match dtype {
                    DType::Bf16 | DType::F16 if tiles.is_some() => (TILES, tile_products(dtype, compute)),
                    DType::Bf16 if pairs.is_some() && compute == Compute::Bf16 => (PAIRS, 1.0),
                    _ => (MULTIPLY_ADD, 1.0),
                };
                let operations = (2 * rows * cols * layers * tokens) as f64;
                results.push((name(tokens, compute), bytes.len(), operations, seconds, unit, products));
                let again = limits();
                limit.iter_mut().zip(again).for_each(|(best, rate)| *best = best.max(rate));
            }
        }
    }
    let (bandwidth, flops) = (limit[0], limit[MULTIPLY_ADD]);
    println!("reading memory {:.1} GB/s, fused multiply-add {:.0} GFLOP/s", bandwidth / 1e9, flops / 1e9);
    if pairs.is_some() {
        println!("products of pairs of bf16 {:.0} GFLOP/s", limit[PAIRS] / 1e9);
    }
    if tiles.is_some() {
        println!("plain product of bf16 by tile registers {:.0} GFLOP/s", limit[TILES] / 1e9);
    }
    println!("{:42} {:>8} {:>9} {:>10} {:>9}", "", "GB/s", "of limit", "GFLOP/s", "of limit");
    for (name, bytes, operations, seconds, unit, products) in results {
        let (read, computed) = (bytes as f64 / seconds, operations / seconds);
        println!(
            "{name:42} {:8.1} {:8.0}% {:10.1} {:8.0}%",
            read / 1e9,
            100.0 * read / bandwidth,
            computed / 1e9,
            100.0 * computed * products / limit[unit]
        );
    }
    flops
}

/// A plain product by tile registers, where kernels use them.
fn tile_product(elements: TileElements) -> Option<TileProduct> {
    TileProduct::new(elements).filter(|_| KernelLevel::chosen() == KernelLevel::Amx)
}

/// Operations a second of the best round; 0 where there is no such product.
fn best_rate(pool: &ThreadPool, product: Option<&TileProduct>) -> f64 {
    (0..ROUNDS).filter_map(|_| Some(product?.rate(pool))).fold(0.0, f64::max)
}

/// Products of bf16 that a product of a weight and an activation takes.
fn tile_products(weights: DType, compute: Compute) -> f64 {
    let parts = if weights == DType::F16 { 2.0 } else { 1.0 };
    match compute {
        Compute::Exact => 3.0 * parts,
        Compute::Bf16 => parts,
        // These weights have 16 bits or more.
        Compute::Int8 => f64::NAN,
    }
}

/// The same for quantised weights, next to the peak of products of bytes.
fn quantized(pool: &ThreadPool, filter: &str, memory: &ReadMemory) {
    let dot_products = Arithmetic::new(Unit::Int8);
    let tiles = tile_product(TileElements::Int8);
    let limits = || [read_bandwidth(pool, memory), peak(pool, dot_products), best_rate(pool, tiles.as_ref())];
    let mut limit = limits();
    let mut results = Vec::new();
    let quantized = [Quantization::Int8, Quantization::Int4].map(QuantizedFormat::from);
    for format in quantized.into_iter().chain(BlockFormat::all().map(QuantizedFormat::from)) {
        for (rows, cols) in [(4096, 4096), (11008, 4096), (4096, 11008)] {
            let name = |tokens: usize| format!("{format} {rows} x {cols}, {tokens} tokens");
            let wanted: Vec<usize> =
                [1, 2, 4, 6, 8, 16, 64, 256, 512].into_iter().filter(|&tokens| name(tokens).contains(filter)).collect();
            let Some(len) = format.bytes(rows, cols).filter(|_| !wanted.is_empty()) else { continue };
            let mut one = vec![0; len];
            let seconds = best(pool, || make(pool, format, rows, cols, &mut one));
            println!("{format} {rows} x {cols}: made at {:.2} G weights/s", (rows * cols) as f64 / seconds / 1e9);
            let layers = (MEMORY_BYTES / len).max(1);
            let bytes = one.repeat(layers);
            for tokens in wanted {
                let layers = layers.min((4096 / tokens).max(1));
                let input: Vec<f32> = (0..tokens * cols).map(|i| (i as f32 * 0.37).sin()).collect();
                let mut output = vec![0.0; tokens * rows];
                let mut quantized = QuantizedInput::new(format.grouping());
                let seconds = best(pool, || {
                    for layer in bytes.chunks_exact(len).take(layers) {
                        let Ok(weight) = QuantizedRef::new(format, rows, cols, layer) else { continue };
                        quantized.quantize(pool, tokens, cols, Rows::new(&input, cols));
                        quantized_matmul(pool, &quantized, weight, RowsMut::new(&mut output, rows), Write::Set);
                    }
                });
                results.push((name(tokens), layers * len, 2 * rows * cols * layers * tokens, seconds));
                let again = limits();
                limit.iter_mut().zip(again).for_each(|(best, rate)| *best = best.max(rate));
            }
        }
    }
    let [bandwidth, operations, of_tiles] = limit;
    if !results.is_empty() {
        println!("reading memory {:.1} GB/s, products of bytes {:.0} GOP/s", bandwidth / 1e9, operations / 1e9);
        if tiles.is_some() {
            println!("plain product of bytes by tile registers, scaled each 64 columns, {:.0} GOP/s", of_tiles / 1e9);
        }
    }
    for (name, bytes, count, seconds) in results {
        let (read, computed) = (bytes as f64 / seconds, count as f64 / seconds);
        println!(
            "{name:32} {:8.1} {:8.0}% {:10.1} {:8.0}%",
            read / 1e9,
            100.0 * read / bandwidth,
            computed / 1e9,
            100.0 * computed / operations
        );
    }
}

/// Quantises or repacks a matrix of any weights.
fn make(pool: &ThreadPool, format: QuantizedFormat, rows: usize, cols: usize, target: &mut [u8]) {
    match format {
        QuantizedFormat::Quantized(quantization) => {
            let source = weights(DType::Bf16, rows * cols);
            if let Ok(matrix) = MatrixRef::new(DType::Bf16, rows, cols, &source) {
                quantize(pool, quantization, matrix, target);
            }
        }
        QuantizedFormat::Repacked(format) => {
            let blocks: Vec<u8> = (0..format.bytes(rows * cols).unwrap_or(0)).map(|i| (i % 61) as u8).collect();
            if let Ok(matrix) = BlocksRef::new(format, rows, cols, &blocks) {
                repack(pool, matrix, target);
            }
        }
    }
}

/// Seconds of the best round. With one thread, only the time that it ran on a core counts.
fn best(pool: &ThreadPool, mut work: impl FnMut()) -> f64 {
    let time = |_| {
        let start = Instant::now();
        let before = time_on_core();
        work();
        match (before, time_on_core()) {
            (Some(before), Some(after)) if pool.threads() == 1 => after - before,
            _ => start.elapsed().as_secs_f64(),
        }
    };
    (0..ROUNDS).map(time).fold(f64::INFINITY, f64::min)
}

fn weights(dtype: DType, count: usize) -> Vec<u8> {
    let some: Vec<f32> = (0..8192).map(|i| (i as f32 * 0.61).sin() * 0.02).collect();
    let mut bytes = vec![0; count * dtype.size()];
    for part in bytes.chunks_mut(some.len() * dtype.size()) {
        narrow(&some[..part.len() / dtype.size()], dtype, part);
    }
    bytes
}

fn matmuls(
    pool: &ThreadPool,
    dtype: DType,
    compute: Compute,
    [rows, cols]: [usize; 2],
    bytes: &[u8],
    tokens: usize,
) -> f64 {
    let input: Vec<f32> = (0..tokens * cols).map(|i| (i as f32 * 0.37).sin()).collect();
    let mut output = vec![0.0; tokens * rows];
    let mut tiled = TiledInput::new();
    best(pool, || {
        for layer in bytes.chunks_exact(rows * cols * dtype.size()) {
            let Ok(weight) = MatrixRef::new(dtype, rows, cols, layer) else { continue };
            tiled.tile(pool, InputForm::of(compute, dtype), tokens, cols, Rows::new(&input, cols));
            matmul(pool, &tiled, weight, RowsMut::new(&mut output, rows), Write::Set);
        }
    })
}

fn attention(pool: &ThreadPool, form: KvForm, shape: [usize; 3], rows: usize, context: usize) -> f64 {
    let ([heads, kv_heads, head_dim], page_size) = (shape, 16);
    let pages: Vec<u32> = (0..(context / page_size) as u32).collect();
    let some = |count: usize| -> Vec<f32> { (0..count).map(|i| (i as f32 * 0.61).sin()).collect() };
    let queries = &some(rows * heads * head_dim);
    let layout = KvLayout { num_kv_heads: kv_heads, pages: pages.len(), page_size };
    let Some(slots) = layout.slots() else { return f64::NAN };
    let (Some(mut keys), Some(mut values)) =
        (KvBuffer::keys(form, slots, head_dim, page_size), KvBuffer::values(form, slots, head_dim))
    else {
        return f64::NAN;
    };
    for (slot, head) in some(slots * head_dim).chunks_exact(head_dim).enumerate() {
        keys.write(slot, head);
        values.write(slot, head);
    }
    let mut output = vec![0.0; queries.len()];
    let offsets: Vec<usize> = (0..heads).map(|head| head * head_dim).collect();
    let shape = AttentionShape {
        query_offsets: &offsets,
        layout,
        head_dim,
        scale: 0.088,
        soft_cap: None,
        window: None,
        alibi_slopes: &[],
    };
    let sequences = [AttentionSequence { first_row: 0, rows, context, pages: &pages }];
    best(pool, || {
        let out = RowsMut::new(&mut output, heads * head_dim);
        paged_attention(pool, &shape, Rows::new(queries, heads * head_dim), &keys, &values, &sequences, out);
    })
}

/// Bytes read in a second by all threads.
fn read_bandwidth(pool: &ThreadPool, memory: &ReadMemory) -> f64 {
    MEMORY_BYTES as f64 / best(pool, || memory.read(pool))
}

/// Operations in a second, with operands in registers.
fn peak(pool: &ThreadPool, work: Arithmetic) -> f64 {
    let mut operations = 0.0;
    let seconds = best(pool, || operations = work.run(pool));
    operations / seconds
}
