//! Random elements, fast and in any order: each depends on the seed, the tensor's name and its place alone.

use std::{
    io::{self, Write},
    num::NonZeroUsize,
    thread,
};

use half::{bf16, f16};
use indicatif::ProgressBar;
use kaito_presets::DType;

use crate::plan::Planned;

/// Elements written at once by each thread.
const PIECE: usize = 4 << 20;
/// Elements that one draw of 64 bits gives.
const LANES: usize = 4;

/// Writes the elements of `tensor` to `out`.
pub fn write(
    out: &mut impl Write,
    tensor: &Planned,
    dtype: DType,
    seed: u64,
    progress: &ProgressBar,
) -> io::Result<()> {
    let size = dtype.size();
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let stream = tensor.name.bytes().fold(mix(seed), |state, byte| mix(state ^ u64::from(byte)));
    let total = tensor.elements();
    let mut buffer = vec![0; (threads * PIECE).min(total) * size];
    let mut first = 0;
    while first < total {
        let count = (threads * PIECE).min(total - first);
        let batch = &mut buffer[..count * size];
        thread::scope(|scope| {
            for (number, piece) in batch.chunks_mut(PIECE * size).enumerate() {
                let start = (first + number * PIECE) / LANES;
                scope.spawn(move || fill(piece, tensor, dtype, stream, start as u64));
            }
        });
        out.write_all(batch)?;
        progress.inc(batch.len() as u64);
        first += count;
    }
    Ok(())
}

fn fill(bytes: &mut [u8], tensor: &Planned, dtype: DType, stream: u64, first_draw: u64) {
    let scale = tensor.spread / f32::from(i16::MAX);
    let draw = |index: u64| {
        let bits = mix(stream.wrapping_add(first_draw + index));
        [0, 16, 32, 48].map(|shift| tensor.center + scale * f32::from((bits >> shift) as i16))
    };
    match dtype {
        DType::F32 => fill_with(bytes, draw, f32::to_le_bytes),
        DType::Bf16 => fill_with(bytes, draw, |value| bf16::from_f32(value).to_le_bytes()),
        DType::F16 => fill_with(bytes, draw, |value| f16::from_f32(value).to_le_bytes()),
    }
}

fn fill_with<const N: usize>(bytes: &mut [u8], draw: impl Fn(u64) -> [f32; LANES], encode: impl Fn(f32) -> [u8; N]) {
    for (index, group) in bytes.chunks_mut(LANES * N).enumerate() {
        for (element, value) in group.chunks_mut(N).zip(draw(index as u64)) {
            element.copy_from_slice(&encode(value));
        }
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014) as a function of a counter.
fn mix(counter: u64) -> u64 {
    let z = counter.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
