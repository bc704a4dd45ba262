//! Changes of element type.

use half::{bf16, f16};

use crate::{DType, ThreadPool};

/// Elements that a thread converts at a time, and that are widened on the stack at a time.
const PART: usize = 256 * 1024;
const BLOCK: usize = 256;

/// Widens `source`, little-endian elements of `dtype` at any alignment, exactly.
///
/// # Panics
/// If the lengths differ.
pub fn widen(dtype: DType, source: &[u8], target: &mut [f32]) {
    assert_eq!(source.len(), target.len() * dtype.size(), "bytes of {} elements of {dtype}", target.len());
    match dtype {
        DType::F32 => {
            let elements = source.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
            target.iter_mut().zip(elements).for_each(|(y, x)| *y = x);
        }
        DType::Bf16 => {
            let elements = source.as_chunks().0.iter().map(|&bytes| bf16::from_le_bytes(bytes).to_f32());
            target.iter_mut().zip(elements).for_each(|(y, x)| *y = x);
        }
        DType::F16 => {
            let elements = source.as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32());
            target.iter_mut().zip(elements).for_each(|(y, x)| *y = x);
        }
    }
}

/// Rounds to the nearest element of `dtype`, ties to even, and writes it little-endian. What is too large for f16
/// becomes infinite; NaN stays NaN.
///
/// # Panics
/// If the lengths differ.
pub fn narrow(source: &[f32], dtype: DType, target: &mut [u8]) {
    assert_eq!(target.len(), source.len() * dtype.size(), "bytes of {} elements of {dtype}", source.len());
    match dtype {
        DType::F32 => {
            let elements = source.iter().map(|x| x.to_le_bytes());
            target.as_chunks_mut().0.iter_mut().zip(elements).for_each(|(y, x)| *y = x);
        }
        DType::Bf16 => {
            let elements = source.iter().map(|&x| bf16::from_f32(x).to_le_bytes());
            target.as_chunks_mut().0.iter_mut().zip(elements).for_each(|(y, x)| *y = x);
        }
        DType::F16 => {
            let elements = source.iter().map(|&x| f16::from_f32(x).to_le_bytes());
            target.as_chunks_mut().0.iter_mut().zip(elements).for_each(|(y, x)| *y = x);
        }
    }
}

/// Changes elements of type `from` to type `to`: exactly where `to` is wider, rounded to nearest even where it is not.
///
/// # Panics
/// If the two do not have the same number of elements.
pub fn convert(pool: &ThreadPool, from: DType, source: &[u8], to: DType, target: &mut [u8]) {
    assert_eq!(source.len() % from.size(), 0, "bytes of elements of {from}");
    let count = source.len() / from.size();
    assert_eq!(target.len(), count * to.size(), "bytes of {count} elements of {to}");
    let parts = source.chunks(PART * from.size()).zip(target.chunks_mut(PART * to.size()));
    pool.for_each_item(count.div_ceil(PART), parts, |(source, target)| {
        if from == to {
            target.copy_from_slice(source);
            return;
        }
        let mut buffer = [0.0; BLOCK];
        for (source, target) in source.chunks(BLOCK * from.size()).zip(target.chunks_mut(BLOCK * to.size())) {
            let wide = &mut buffer[..source.len() / from.size()];
            widen(from, source, wide);
            narrow(wide, to, target);
        }
    });
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::matmul::tests::numbers;

    /// The nearest of all finite bf16 or f16 values, the even one of two: the definition, by search.
    fn nearest(dtype: DType, x: f32) -> u16 {
        let value = |bits: u16| {
            let mut wide = [0.0];
            widen(dtype, &bits.to_le_bytes(), &mut wide);
            f64::from(wide[0])
        };
        let largest = if dtype == DType::F16 { 0x7bff } else { 0x7f7f };
        let magnitude = f64::from(x.abs());
        // Magnitudes grow with their bits.
        let (mut low, mut high) = (0u16, largest + 1);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            *(if value(middle) <= magnitude { &mut low } else { &mut high }) = middle;
        }
        // Numbers round to infinity from halfway between the largest value and the one that would come next.
        let above = if high > largest { 2.0 * value(largest) - value(largest - 1) } else { value(high) };
        let (down, up) = (magnitude - value(low), above - magnitude);
        let bits = if down < up || (down == up && low % 2 == 0) { low } else { high };
        bits | u16::from(x.is_sign_negative()) << 15
    }

    #[test]
    fn rounds_to_the_nearest_and_ties_to_even() {
        let mut inputs =
            vec![0.0, -0.0, 1.0, 65504.0, 65519.99, 65520.0, 1e9, f32::MAX, -f32::MAX, 5e-8, 2.9e-8, 1e-40];
        inputs.extend([f32::INFINITY, f32::NEG_INFINITY, 3e-45, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 2049.0, 2051.0]);
        let mut next = numbers(3);
        inputs.extend((0..20_000).map(|i| next() * 2f32.powi(i % 250 - 140)));
        // Halfway between neighbours.
        inputs.extend((0..0x7f00u32).map(|i| f32::from_bits(i << 16 | 0x8000)));
        for dtype in [DType::Bf16, DType::F16] {
            let mut bytes = vec![0; inputs.len() * 2];
            narrow(&inputs, dtype, &mut bytes);
            for (&x, bytes) in inputs.iter().zip(bytes.as_chunks().0) {
                let (actual, expected) = (u16::from_le_bytes(*bytes), nearest(dtype, x));
                assert_eq!(actual, expected, "{dtype}: {x:e} became {actual:#x}, not {expected:#x}");
            }
            let mut nan = [0; 2];
            narrow(&[f32::NAN], dtype, &mut nan);
            let mut back = [0.0];
            widen(dtype, &nan, &mut back);
            assert!(back[0].is_nan());
        }
    }

    #[test]
    fn whole_tensors_change_their_type_in_parts() {
        let pool = ThreadPool::new(NonZeroUsize::new(2).unwrap());
        let count = PART + BLOCK + 77;
        let mut next = numbers(4);
        let wide: Vec<f32> = (0..count).map(|_| next()).collect();
        for from in [DType::F32, DType::Bf16, DType::F16] {
            let mut source = vec![0; 1 + count * from.size()];
            narrow(&wide, from, &mut source[1..]);
            let mut exact = vec![0.0; count];
            widen(from, &source[1..], &mut exact);
            for to in [DType::F32, DType::Bf16, DType::F16] {
                let (mut actual, mut expected) = (vec![0; count * to.size()], vec![0; count * to.size()]);
                convert(&pool, from, &source[1..], to, &mut actual);
                narrow(&exact, to, &mut expected);
                assert!(actual == expected, "{from} to {to}");
            }
        }
    }
}
