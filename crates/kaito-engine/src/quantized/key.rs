//! What weights a file of quantised ones was made of: the same weights have the same key wherever they lie.

use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::Matrix;
use kaito_model::weights::Weight;

pub(super) const KEY_BYTES: usize = 32;

/// Models up to this size are digested whole.
const WHOLE: usize = 64 << 20;
/// Of the matrices of larger ones, so many samples of so many bytes.
const SAMPLES: usize = 16;
const SAMPLE_BYTES: usize = 4096;

/// A digest of shapes, precisions and weights. Of a large model it holds samples of every matrix, and size and time of its
/// files: another training differs everywhere, an edited file has another time, and images often have one time for
/// all files, which alone would say nothing.
pub(super) fn of(matrices: &[Matrix]) -> [u8; KEY_BYTES] {
    let whole = matrices.iter().map(|matrix| matrix.source.bytes().len()).sum::<usize>() <= WHOLE;
    let mut digest = Sha256::new();
    for Matrix { source, quantization, rows, cols, .. } in matrices {
        digest.update(format!("{quantization} {} {rows} {cols}\n", source.precision()));
        if whole {
            digest.update(source.bytes());
        } else {
            sample(&mut digest, source);
        }
        // What is around a sample may have come into memory with it.
        source.release();
    }
    digest.finalize().into()
}

fn sample(digest: &mut Sha256, weight: &Weight) {
    let bytes = weight.bytes();
    for i in 0..SAMPLES {
        let last = bytes.len().saturating_sub(SAMPLE_BYTES);
        let start = (last as u128 * i as u128 / (SAMPLES as u128 - 1)) as usize;
        digest.update(bytes.get(start..bytes.len().min(start + SAMPLE_BYTES)).unwrap_or_default());
    }
    let file = weight.file();
    let modified = file.and_then(|file| file.modified()?.duration_since(SystemTime::UNIX_EPOCH).ok());
    digest.update(modified.map_or(0, |time| time.as_nanos()).to_le_bytes());
    digest.update(file.map_or(0, |file| file.bytes().len() as u64).to_le_bytes());
}
