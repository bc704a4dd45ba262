//! Changes of element type.

use half::{bf16, f16};

use crate::{DType, ThreadPool};

/// Elements that a piece of work converts, and that are widened on the stack at a time.
const PIECE: usize = 256 * 1024;
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
    let pieces = source.chunks(PIECE * from.size()).zip(target.chunks_mut(PIECE * to.size()));
    let pieces: Vec<_> = pieces.map(std::sync::Mutex::new).collect();
    pool.for_each(pieces.len(), &|i| {
        let mut piece = pieces[i].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (source, target) = &mut *piece;
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
