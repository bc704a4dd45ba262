//! Weights as the processor computes with them: quantised, of another element type, or as they lie in the mapped checkpoint.

use kaito_kernels::{Compute, DType, KvDType, KvForm, QuantizedFormat, ThreadPool};

use super::linear::unsupported;
use crate::{
    Error,
    device::{ComputeChoice, Held, Packed, Packing},
    quantized::{Plan, Quantize},
};
use kaito_model::{
    checkpoint::Tensor,
    config::LinearKind,
    weights::{BlockTensor, ModelWeights, Weight},
};

/// Share of the work that quantising or repacking takes where it is done.
const QUANTIZED: f32 = 0.94;

/// What packing came to.
pub(super) struct PackedInMemory {
    pub packed: Packed,
    /// Bytes that stay mapped, are quantised or are repacked.
    pub mapped_bytes: u64,
}

/// Packs a model's weights, where `available` bytes of memory are free.
pub(super) fn pack(
    weights: &mut ModelWeights,
    packing: &Packing,
    threads: &ThreadPool,
    available: u64,
    progress: &(dyn Fn(f32) + Sync),
) -> Result<PackedInMemory, Error> {
    let stored = stored_dtype(weights);
    let dtype = packing.dtype.unwrap_or(stored);
    // Quantised weights are multiplied by quantised activations, whatever is chosen.
    let compute = match packing.quantization {
        None => resolve(packing, weights, dtype, available)?,
        Some(_) => Compute::Exact,
    };
    let mut done = 0.0;
    if let Some(quantization) = packing.quantization {
        let plan = Plan::new(quantization, &packing.attention, weights)?;
        let quantize = Quantize {
            fits: plan.bytes() <= available,
            plan,
            cache: packing.cache,
            family: packing.family,
            pool: threads,
            progress: &|part| progress(part * QUANTIZED),
        };
        quantize.apply(weights);
        done = QUANTIZED;
    } else if compute == Compute::Int8 {
        repack(weights, threads, &|part| progress(part * QUANTIZED));
        done = QUANTIZED;
    }
    let mapped_bytes =
        bring_near(weights, packing.dtype, stored, threads, available, &|part| progress(done + part * (1.0 - done)));
    let rounds_attention =
        packing.compute != ComputeChoice::Exact && (compute != Compute::Exact || packing.quantization.is_some());
    let kv_dtype = packing.kv_dtype.unwrap_or_else(|| kv_dtype(rounds_attention, packing.attention.head_dim));
    Ok(PackedInMemory { packed: Packed { dtype, compute, kv_dtype, rounds_attention }, mapped_bytes })
}

/// Element type of a KV cache where nobody chose one: bf16 where attention may be rounded to that, and is faster for it.
fn kv_dtype(rounds_attention: bool, head_dim: usize) -> KvDType {
    let has_tiles = KvForm::of(KvDType::Bf16, rounds_attention, head_dim).is_for_tiles();
    if has_tiles { KvDType::Bf16 } else { KvDType::F32 }
}

/// How products treat activations. In int8 they need a copy of the weights, which `auto` makes only where there is room for it.
fn resolve(packing: &Packing, weights: &ModelWeights, dtype: DType, available: u64) -> Result<Compute, Error> {
    // With another element type, blocks are dequantised or computed with in f32.
    let blocks = if packing.dtype.is_none() { repacked_bytes(weights) } else { 0 };
    let held = if blocks == 0 { Held::Floats(dtype) } else { Held::Blocks };
    let fits = blocks <= available;
    let is_fast = |compute| match compute {
        Compute::Exact => true,
        Compute::Bf16 => Compute::has_fast_bf16(),
        Compute::Int8 => Compute::has_fast_int8() && fits,
    };
    let compute = packing.compute.resolve(held, is_fast).map_err(unsupported)?;
    if !fits && packing.compute != ComputeChoice::Exact {
        tracing::warn!(
            weights_mib = blocks >> 20,
            available_mib = available >> 20,
            "the free memory has no room for weights that are repacked for products in int8"
        );
    }
    Ok(compute)
}

/// The matrices in blocks that products multiply: all but the embedding, of which a step takes rows.
fn multiplied(weights: &ModelWeights) -> impl Iterator<Item = &BlockTensor> {
    let linears = weights.linears().filter(|(kind, _)| *kind != LinearKind::Embedding);
    linears.flat_map(|(_, linear)| &linear.parts).filter_map(|part| match &part.weight {
        Weight::Blocks(tensor) => Some(tensor),
        Weight::Plain(_) | Weight::Quantized(_) => None,
    })
}

/// Bytes of the matrices in blocks once they are repacked.
fn repacked_bytes(weights: &ModelWeights) -> u64 {
    let bytes = |tensor: &BlockTensor| QuantizedFormat::from(tensor.format()).bytes(tensor.rows(), tensor.cols());
    multiplied(weights).filter_map(bytes).map(|bytes| bytes as u64).sum()
}

/// Repacks the matrices in blocks for products in int8, one after the other. What was mapped leaves this process's memory.
fn repack(weights: &mut ModelWeights, threads: &ThreadPool, progress: &dyn Fn(f32)) {
    let total = multiplied(weights).count();
    let mut done = 0;
    for (kind, linear) in weights.linears_mut() {
        for part in &mut linear.parts {
            let repacked = match &part.weight {
                Weight::Blocks(tensor) if kind != LinearKind::Embedding => tensor.repacked(threads),
                _ => None,
            };
            let Some(repacked) = repacked else { continue };
            part.weight.release();
            part.weight = Weight::Quantized(repacked);
            done += 1;
            progress(done as f32 / total as f32);
        }
    }
}

/// Element type of the weights as they are stored: types are mixed in a checkpoint at times, and the embedding stands for all.
fn stored_dtype(weights: &ModelWeights) -> DType {
    let stored = weights.embedding.parts.iter().find_map(|part| Some(part.weight.plain()?.dtype()));
    stored.unwrap_or(DType::F32)
}

/// Gives all matrices the type that is asked for, and brings those that stay mapped into memory where `available` bytes are
/// enough for it. Returns how many bytes stay mapped or are quantised.
fn bring_near(
    weights: &mut ModelWeights,
    choice: Option<DType>,
    stored: DType,
    threads: &ThreadPool,
    available: u64,
    progress: &dyn Fn(f32),
) -> u64 {
    let needed = needed(weights, choice);
    if needed > available {
        tracing::warn!(
            weights_mib = needed >> 20,
            available_mib = available >> 20,
            "the weights are larger than the free memory: parts of them will be read from disk again at every step"
        );
    }
    let tied = weights.is_tied();
    let total = weights.linears().count();
    let (mut copied_bytes, mut mapped_bytes) = (0u64, 0u64);
    for (done, (kind, linear)) in weights.linears_mut().enumerate() {
        // A tied head is the embedding once more.
        let parts = if tied && kind == LinearKind::Head { &mut [] } else { linear.parts.as_mut_slice() };
        for part in parts {
            if matches!(part.weight, Weight::Quantized(_)) {
                mapped_bytes += part.weight.bytes().len() as u64;
                continue;
            }
            // Without a choice types stay as they are, and with f32 too, since narrower weights are widened exactly in the kernels.
            match choice.filter(|&dtype| dtype != DType::F32).and_then(|dtype| cast(&part.weight, dtype, threads)) {
                Some(tensor) => {
                    copied_bytes += tensor.bytes().len() as u64;
                    part.weight.release();
                    part.weight = tensor.into();
                }
                None if part.weight.file().is_some() => {
                    mapped_bytes += part.weight.bytes().len() as u64;
                    if needed <= available {
                        part.weight.populate(threads);
                    }
                }
                None => {}
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
            from = %stored, to = %choice.unwrap_or(stored), mib = copied_bytes >> 20,
            "the weights are copied into memory, since another element type than the checkpoint's is asked for"
        );
    }
    mapped_bytes
}

/// Bytes that the matrices will have. Blocks grow where another type than f32 is chosen.
fn needed(weights: &ModelWeights, choice: Option<DType>) -> u64 {
    let tied = weights.is_tied();
    let distinct = weights.linears().filter(|(kind, _)| !(tied && *kind == LinearKind::Head));
    let bytes = |weight: &Weight| match (weight, choice.filter(|&dtype| dtype != DType::F32)) {
        (Weight::Blocks(_), Some(dtype)) => weight.elements() * dtype.size(),
        _ => weight.bytes().len(),
    };
    distinct.flat_map(|(_, linear)| &linear.parts).map(|part| bytes(&part.weight) as u64).sum()
}

/// The matrix with elements of another type, `None` where it has that type.
fn cast(weight: &Weight, dtype: DType, threads: &ThreadPool) -> Option<Tensor> {
    match weight {
        Weight::Plain(tensor) => (tensor.dtype() != dtype).then(|| tensor.cast(dtype, threads)),
        Weight::Blocks(tensor) => tensor.dequantized(dtype, threads),
        Weight::Quantized(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroUsize, path::Path, sync::Mutex};

    use kaito_kernels::{KernelLevel, Quantization};
    use kaito_model::{config::AttentionSpec, family, weights::WeightCount};

    use super::*;

    fn packed(dtype: Option<DType>, quantization: Option<Quantization>) -> (PackedInMemory, WeightCount) {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/fixtures/mistral-window");
        let (config, mut weights) = family::load(&directory).unwrap();
        let compute = ComputeChoice::Auto;
        let attention = config.layer.attention;
        let packing =
            Packing { dtype, compute, quantization, kv_dtype: None, attention, cache: None, family: config.family };
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
        assert_eq!((plain.packed.dtype, plain.mapped_bytes), (DType::F32, published.bytes));
        let (narrow, count) = packed(Some(DType::Bf16), None);
        assert_eq!((narrow.packed.dtype, narrow.mapped_bytes, count.bytes), (DType::Bf16, 0, published.bytes / 2));
        let (quantized, count) = packed(None, Some(Quantization::Int8));
        assert_eq!((quantized.packed.dtype, quantized.mapped_bytes), (DType::F32, count.bytes));
        assert!(count.bytes < published.bytes && count.parameters == published.parameters);
    }

    /// A model in bf16, packed as if its heads had `head_dim` elements.
    fn packed_bf16(
        head_dim: usize,
        dtype: Option<DType>,
        compute: ComputeChoice,
        quantization: Option<Quantization>,
        kv_dtype: Option<KvDType>,
    ) -> Result<Packed, String> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/fixtures/falcon-rw-type");
        let (config, mut weights) = family::load(&directory).unwrap();
        let attention = AttentionSpec { head_dim, ..config.layer.attention };
        let packing = Packing { dtype, compute, quantization, kv_dtype, attention, cache: None, family: config.family };
        let packed = pack(&mut weights, &packing, &ThreadPool::new(NonZeroUsize::MIN), u64::MAX, &|_| ());
        packed.map(|packed| packed.packed).map_err(|error| error.to_string())
    }

    #[test]
    fn how_products_compute_follows_the_weights_as_they_are_used() {
        let computed = |dtype, compute, quantization| {
            packed_bf16(16, dtype, compute, quantization, None).map(|packed| packed.compute)
        };
        let auto = if Compute::has_fast_bf16() { Compute::Bf16 } else { Compute::Exact };
        assert_eq!(computed(None, ComputeChoice::Auto, None), Ok(auto));
        assert_eq!(computed(None, ComputeChoice::Exact, None), Ok(Compute::Exact));
        assert_eq!(computed(None, ComputeChoice::Bf16, None), Ok(Compute::Bf16));
        // Mapped in 16 bits and widened as they are read, and exact all the same.
        assert_eq!(computed(Some(DType::F32), ComputeChoice::Auto, None), Ok(Compute::Exact));
        let refusal = computed(Some(DType::F32), ComputeChoice::Bf16, None).unwrap_err();
        assert!(refusal.starts_with("cpu: products with weights in f32 are always exact"), "{refusal}");
        assert_eq!(computed(None, ComputeChoice::Bf16, Some(Quantization::Int8)), Ok(Compute::Exact));
    }

    /// With tile registers it is bf16 where activations are rounded, unless exactness is asked for; what is asked for is taken.
    #[test]
    fn the_kv_cache_is_narrow_where_activations_are_and_attention_is_faster_for_it() {
        use ComputeChoice::{Auto, Exact};
        let has_tiles = KernelLevel::chosen() == KernelLevel::Amx;
        let narrow = if has_tiles { KvDType::Bf16 } else { KvDType::F32 };
        for (head_dim, dtype, compute, quantization, kv_dtype, expected) in [
            (64, None, Auto, None, None, narrow),
            (64, None, Auto, Some(Quantization::Int4), None, narrow),
            (64, None, Exact, None, None, KvDType::F32),
            (64, None, Exact, Some(Quantization::Int4), None, KvDType::F32),
            (64, Some(DType::F32), Auto, None, None, KvDType::F32),
            // No whole operands.
            (80, None, Auto, None, None, KvDType::F32),
            (64, None, Auto, None, Some(KvDType::F32), KvDType::F32),
            (64, None, Exact, None, Some(KvDType::Bf16), KvDType::Bf16),
            (64, None, Auto, None, Some(KvDType::Int8), KvDType::Int8),
        ] {
            let case = format!("heads of {head_dim} in {dtype:?}, {compute:?}, {quantization:?}, {kv_dtype:?}");
            let packed = packed_bf16(head_dim, dtype, compute, quantization, kv_dtype).unwrap();
            assert_eq!(packed.kv_dtype, expected, "{case}");
            let form = KvForm::of(packed.kv_dtype, packed.rounds_attention, head_dim);
            let rounds = has_tiles && head_dim == 64 && compute == Auto && packed.kv_dtype == KvDType::Bf16;
            assert_eq!(form.is_for_tiles(), rounds, "{case}");
        }
    }
}
