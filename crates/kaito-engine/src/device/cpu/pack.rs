//! Weights as the processor computes with them: quantised, of another element type, or as they lie in the mapped checkpoint.

use kaito_kernels::{DType, ThreadPool};

use crate::{Error, device::Packing, quantized::Quantize};
use kaito_model::{
    config::LinearKind,
    weights::{ModelWeights, Weight},
};

/// Share of the work that quantising takes where it is done.
const QUANTIZED: f32 = 0.94;

/// What packing came to.
pub(super) struct Packed {
    /// Element type of the matrices that are not quantised.
    pub dtype: DType,
    /// Bytes that stay mapped or are quantised.
    pub mapped_bytes: u64,
}

/// Packs a model's weights, where `available` bytes of memory are free.
pub(super) fn pack(
    weights: &mut ModelWeights,
    packing: &Packing,
    threads: &ThreadPool,
    available: u64,
    progress: &(dyn Fn(f32) + Sync),
) -> Result<Packed, Error> {
    let mut done = 0.0;
    if let Some(quantization) = packing.quantization {
        let quantize = Quantize {
            quantization,
            cache: packing.cache,
            family: packing.family,
            pool: threads,
            fits: Quantize::bytes(quantization, weights) <= available,
            progress: &|part| progress(part * QUANTIZED),
        };
        quantize.apply(weights)?;
        done = QUANTIZED;
    }
    Ok(bring_near(weights, packing.dtype, threads, available, &|part| progress(done + part * (1.0 - done))))
}

/// Gives all matrices the type that is asked for, and brings those that stay mapped into memory where `available` bytes are
/// enough for it.
fn bring_near(
    weights: &mut ModelWeights,
    choice: Option<DType>,
    threads: &ThreadPool,
    available: u64,
    progress: &dyn Fn(f32),
) -> Packed {
    let needed = weights.count().bytes;
    if needed > available {
        tracing::warn!(
            weights_mib = needed >> 20,
            available_mib = available >> 20,
            "the weights are larger than the free memory: parts of them will be read from disk again at every step"
        );
    }
    let stored = weights.embedding.parts.iter().find_map(|part| Some(part.weight.plain()?.dtype()));
    let stored = stored.unwrap_or(DType::F32);
    let dtype = choice.unwrap_or(stored);
    let tied = weights.is_tied();
    let total = weights.linears().count();
    let (mut copied_bytes, mut mapped_bytes) = (0u64, 0u64);
    for (done, (kind, linear)) in weights.linears_mut().enumerate() {
        // A tied head is the embedding once more.
        let parts = if tied && kind == LinearKind::Head { &mut [] } else { linear.parts.as_mut_slice() };
        for part in parts {
            let tensor = match &mut part.weight {
                Weight::Plain(tensor) => tensor,
                Weight::Quantized(_) => {
                    mapped_bytes += part.weight.bytes().len() as u64;
                    continue;
                }
            };
            // Types are mixed in a checkpoint at times. Without a choice they stay as they are, and with f32 too, since narrower
            // weights are widened exactly in the kernels.
            if choice.is_none_or(|dtype| dtype == DType::F32) || tensor.dtype() == dtype {
                if tensor.is_mapped() {
                    mapped_bytes += tensor.bytes().len() as u64;
                    if needed <= available {
                        tensor.populate(threads);
                    }
                }
            } else {
                *tensor = tensor.cast(dtype, threads);
                copied_bytes += tensor.bytes().len() as u64;
            }
        }
        progress((done + 1) as f32 / total as f32);
    }
    if tied {
        weights.head = weights.embedding.clone();
    }
    if choice == Some(DType::F32) && stored != DType::F32 {
        tracing::info!(stored = %stored, "the weights are used as they are stored and widened to f32 as they are read");
    }
    if copied_bytes > 0 {
        tracing::warn!(
            from = %stored, to = %dtype, mib = copied_bytes >> 20,
            "the weights are copied into memory, since another element type than the checkpoint's is asked for"
        );
    }
    Packed { dtype, mapped_bytes }
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroUsize, path::Path, sync::Mutex};

    use kaito_kernels::Quantization;
    use kaito_model::{family, weights::WeightCount};

    use super::*;

    fn packed(dtype: Option<DType>, quantization: Option<Quantization>) -> (Packed, WeightCount) {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/fixtures/mistral-window");
        let (config, mut weights) = family::load(&directory).unwrap();
        let packing = Packing { dtype, quantization, cache: None, family: config.family };
        let heard = Mutex::new(Vec::new());
        let progress = |part| heard.lock().unwrap().push(part);
        let threads = ThreadPool::new(NonZeroUsize::MIN);
        let packed = pack(&mut weights, &packing, &threads, u64::MAX, &progress).unwrap();
        let heard = heard.into_inner().unwrap();
        assert!(heard.is_sorted() && heard.last() == Some(&1.0), "{heard:?}");
        (packed, weights.count())
    }

    #[test]
    fn what_is_mapped_or_quantised_counts_as_taken() {
        let (plain, published) = packed(None, None);
        assert_eq!((plain.dtype, plain.mapped_bytes), (DType::F32, published.bytes));
        let (narrow, count) = packed(Some(DType::Bf16), None);
        assert_eq!((narrow.dtype, narrow.mapped_bytes, count.bytes), (DType::Bf16, 0, published.bytes / 2));
        let (quantized, count) = packed(None, Some(Quantization::Int8));
        assert_eq!((quantized.dtype, quantized.mapped_bytes), (DType::F32, count.bytes));
        assert!(count.bytes < published.bytes && count.parameters == published.parameters);
    }
}
