//! What a model needs of the memory of each GPU.
//!
//! ```text
//! weights          matrices of the layers in their precision, and embedding, head and norms in 16 bits at least
//! KV cache         2 x layers x key-value heads x head width x element, for each token of each sequence, in whole pages
//! activations      the vectors of one step's tokens that are alive at once, and the logits of each sequence, twice in f32
//! adapters         for each matrix of the layers rank x (input + output), for each adapter, in 32 bits on CPUs, else in 16 at least
//! runtime          640 MiB: the CUDA context, the libraries' workspaces, what the allocator cannot use
//! ```
//!
//! Before an adapter's files are there, nobody knows its rank, nor which matrices it changes: it counts as one of rank
//! [`ADAPTER_RANK`] on all matrices, more than most published adapters have.
//!
//! A step computes at most 2048 tokens, vLLM's default for `max_num_batched_tokens` in an online server. Of the runtime's
//! share, Kaito's own estimator measured about 0.6 GiB under vLLM.

use std::fmt;

use kaito_spec::{DType, LinearKind};
use serde::Serialize;

use crate::shape::Shape;

/// Tokens in a page of the KV cache; a sequence has whole pages. vLLM's blocks are of this size too.
pub const PAGE_TOKENS: u64 = 16;

/// Rows of logits that a step on CPUs may have beside one for each sequence: for tokens that are proposed, and for tokens of prompts
/// that are scored.
pub const FURTHER_LOGITS_ON_CPUS: u64 = 16 + 32;

/// The rank that an adapter (LoRA) counts with. PEFT's own default is 8; few published adapters have more than 64.
pub const ADAPTER_RANK: u64 = 64;

/// Most tokens that one step computes.
const STEP_TOKENS: u64 = 2048;

/// Bytes that the runtime takes of each GPU, whatever the model.
const RUNTIME: u64 = 640 << 20;

/// Parameters of a quantisation group: they share a scale of 16 bits, as the kernels hold it and published GPTQ and AWQ checkpoints
/// do, which have a zero of the element's width besides.
const QUANTISATION_GROUP: u64 = 128;

/// Parameters of a group of 4 bits that share a multiplier of 3 bits, as the kernels hold it: more than a zero for 128 takes.
const QUANTISATION_SUBGROUP: u64 = 16;

/// How numbers are held in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// IEEE 754 binary32.
    F32,
    /// The upper half of a binary32.
    Bf16,
    /// IEEE 754 binary16.
    F16,
    /// 8-bit floats.
    Fp8,
    /// 8-bit integers, with a scale for each quantisation group.
    Int8,
    /// 4-bit integers, with a scale for each quantisation group.
    Int4,
}

impl Precision {
    /// Bits of one element.
    pub fn bits(self) -> u64 {
        match self {
            Precision::F32 => 32,
            Precision::Bf16 | Precision::F16 => 16,
            Precision::Fp8 | Precision::Int8 => 8,
            Precision::Int4 => 4,
        }
    }

    /// Bytes of so many elements that stand alone, without scales.
    fn bytes(self, elements: u64) -> u64 {
        elements.saturating_mul(self.bits()).div_ceil(8)
    }

    /// Bytes of a matrix of so many parameters.
    fn matrix_bytes(self, parameters: u64) -> u64 {
        let scales = match self {
            Precision::F32 | Precision::Bf16 | Precision::F16 | Precision::Fp8 => 0,
            Precision::Int8 => parameters.div_ceil(QUANTISATION_GROUP) * 2,
            Precision::Int4 => {
                parameters.div_ceil(QUANTISATION_GROUP) * 2
                    + (parameters.div_ceil(QUANTISATION_SUBGROUP) * 3).div_ceil(8)
            }
        };
        self.bytes(parameters) + scales
    }

    /// What embedding, head and norms are held in: quantisation leaves them alone.
    fn unquantised(self) -> Self {
        if self.bits() < 16 { Precision::F16 } else { self }
    }
}

impl From<DType> for Precision {
    fn from(dtype: DType) -> Self {
        match dtype {
            DType::F32 => Precision::F32,
            DType::Bf16 => Precision::Bf16,
            DType::F16 => Precision::F16,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::F16 => "f16",
            Precision::Fp8 => "fp8",
            Precision::Int8 => "int8",
            Precision::Int4 => "int4",
        })
    }
}

/// How a model is divided among GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "by", content = "gpus", rename_all = "lowercase")]
pub enum Cut {
    /// A slice of every matrix on each GPU: tensor parallelism, with so many ranks.
    Ranks(u32),
    /// Whole layers on each GPU: pipeline parallelism.
    Layers(u32),
}

impl Cut {
    /// GPUs that hold a part.
    pub fn gpus(self) -> u32 {
        match self {
            Cut::Ranks(gpus) | Cut::Layers(gpus) => gpus.max(1),
        }
    }
}

/// Bytes of the memory of one GPU: of the one that holds most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Estimate {
    /// Its part of the weights.
    pub weights: u64,
    /// Its part of the KV cache.
    pub kv_cache: u64,
    /// Activations of a step.
    pub activations: u64,
    /// Its part of the adapters.
    pub adapters: u64,
    /// What the runtime takes for itself.
    pub runtime: u64,
}

impl Estimate {
    /// All together.
    pub fn total(&self) -> u64 {
        let besides = self.activations.saturating_add(self.adapters).saturating_add(self.runtime);
        self.weights.saturating_add(self.kv_cache).saturating_add(besides)
    }

    /// The same with adapters that take so many bytes.
    #[must_use]
    pub fn with_adapters(self, adapters: u64) -> Self {
        Self { adapters, ..self }
    }
}

/// What the fullest GPU holds of a model of this shape, with room for `batch` sequences of `context` tokens.
pub fn estimate(
    shape: &Shape,
    weights: Precision,
    kv_cache: Precision,
    context: u64,
    batch: u64,
    cut: Cut,
) -> Estimate {
    Estimate {
        weights: weights_bytes(shape, weights, cut),
        kv_cache: kv_cache_bytes(shape, kv_cache, context, batch, cut),
        activations: activation_bytes(shape, weights, context, batch, cut),
        adapters: 0,
        runtime: RUNTIME,
    }
}

/// What a server that computes on CPUs holds in main memory: keys, values and activations in 32 bits, whatever the weights
/// are in.
pub fn estimate_on_cpus(shape: &Shape, weights: Precision, context: u64, batch: u64) -> Estimate {
    let whole = Cut::Layers(1);
    let base = estimate(shape, weights, Precision::F32, context, batch, whole);
    // With 4 bits the engine holds the value projections in 8.
    let values = shape.num_layers as u64 * (shape.num_kv_heads * shape.head_dim * shape.hidden_size) as u64;
    let more = match weights {
        Precision::Int4 => Precision::Int8.matrix_bytes(values) - Precision::Int4.matrix_bytes(values),
        _ => 0,
    };
    Estimate {
        weights: base.weights.saturating_add(more),
        activations: activation_bytes(shape, Precision::F32, context, batch, whole)
            .saturating_add(logit_bytes(shape, FURTHER_LOGITS_ON_CPUS)),
        ..base
    }
}

/// What so many adapters take of each GPU, at most, unless one has a rank of more than [`ADAPTER_RANK`].
pub fn adapter_bytes(shape: &Shape, precision: Precision, adapters: u64, cut: Cut) -> u64 {
    let (layers, ranks) = match cut {
        Cut::Ranks(_) => (shape.num_layers as u64, u64::from(cut.gpus())),
        Cut::Layers(_) => ((shape.num_layers as u64).div_ceil(cut.gpus().into()), 1),
    };
    let layer = shape.layer();
    let widths = layer.linears(shape.hidden_size).map(|map| {
        let (input, output) = (map.in_features as u64, map.out_features as u64);
        match map.kind {
            // Queries, keys and values have a matrix each where a family does not publish them as one, and so have gate and up. By
            // tensor parallelism their outputs are cut up, those of the others at their inputs.
            LinearKind::Qkv => 3 * input + output.div_ceil(ranks),
            LinearKind::MlpIn => (layer.mlp.kind.matrices() as u64 - 1) * input + output.div_ceil(ranks),
            _ => input.div_ceil(ranks) + output,
        }
    });
    let numbers = layers * ADAPTER_RANK * widths.iter().sum::<u64>();
    precision.unquantised().bytes(numbers).saturating_mul(adapters)
}

/// What so many adapters take of main memory where the server computes on CPUs.
pub fn adapter_bytes_on_cpus(shape: &Shape, adapters: u64) -> u64 {
    adapter_bytes(shape, Precision::F32, adapters, Cut::Layers(1))
}

fn weights_bytes(shape: &Shape, precision: Precision, cut: Cut) -> u64 {
    let layers = shape.num_layers as u64;
    let plain = precision.unquantised();
    let (layer, hidden) = (shape.layer(), shape.hidden_size);
    let matrices = precision.matrix_bytes(layer.matrix_parameters(hidden));
    let vectors = plain.bytes(layer.vector_parameters(hidden));
    let final_norm = plain.bytes(shape.norm().parameters(hidden));
    let embedding = plain.bytes(shape.embedding_parameters());
    let head = if shape.tied_embeddings { 0 } else { embedding };
    match cut {
        // Every tensor-parallel rank has all norms, for they are not cut.
        Cut::Ranks(_) => {
            let cut_up = (layers * matrices + embedding + head).div_ceil(cut.gpus().into());
            cut_up + layers * vectors + final_norm
        }
        Cut::Layers(_) if cut.gpus() == 1 => layers * (matrices + vectors) + final_norm + embedding + head,
        // The first has the embedding, the last the head: the fullest has one of them.
        Cut::Layers(_) => layers.div_ceil(cut.gpus().into()) * (matrices + vectors) + final_norm + embedding,
    }
}

fn kv_cache_bytes(shape: &Shape, precision: Precision, context: u64, batch: u64, cut: Cut) -> u64 {
    let (layers, heads) = match cut {
        // Where there are more ranks than key-value heads, some hold the same one.
        Cut::Ranks(_) => (shape.num_layers as u64, (shape.num_kv_heads as u64).div_ceil(cut.gpus().into())),
        Cut::Layers(_) => ((shape.num_layers as u64).div_ceil(cut.gpus().into()), shape.num_kv_heads as u64),
    };
    let token = precision.bytes(2 * layers * heads * shape.head_dim as u64);
    let tokens = context.div_ceil(PAGE_TOKENS).saturating_mul(PAGE_TOKENS).saturating_mul(batch);
    token.saturating_mul(tokens)
}

fn activation_bytes(shape: &Shape, weights: Precision, context: u64, batch: u64, cut: Cut) -> u64 {
    let ranks = match cut {
        Cut::Ranks(_) => u64::from(cut.gpus()),
        Cut::Layers(_) => 1,
    };
    let head_dim = shape.head_dim as u64;
    // The residual stream, its normed copy and what is added to it.
    let whole = 3 * shape.hidden_size as u64;
    // Queries and what attention gives for them, keys, values, and the MLP's inner vectors.
    let queries_and_outputs = 2 * shape.num_heads as u64 * head_dim;
    let keys_and_values = 2 * shape.num_kv_heads as u64 * head_dim;
    let inner = (shape.family.mlp.matrices() * shape.intermediate_size) as u64;
    let token = whole + (queries_and_outputs + keys_and_values + inner).div_ceil(ranks);
    let tokens = context.saturating_mul(batch).min(STEP_TOKENS);
    let element = if weights == Precision::F32 { 4 } else { 2 };
    (token * element * tokens).saturating_add(logit_bytes(shape, batch))
}

/// Rows of logits, twice in f32.
fn logit_bytes(shape: &Shape, rows: u64) -> u64 {
    rows.saturating_mul(shape.vocab_size as u64 * 2 * 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PRESETS, find};

    const MIB: u64 = 1 << 20;

    fn of(name: &str, weights: Precision, context: u64, batch: u64, cut: Cut) -> Estimate {
        estimate(&find(name).unwrap().shape, weights, Precision::F16, context, batch, cut)
    }

    /// By hand from the published shape: 32 layers of 4 x 4096^2 + 3 x 4096 x 11008 + 2 x 4096 parameters, 32000 x 4096 twice,
    /// 4096; a KV cache of 2 x 32 x 4096 numbers a token.
    #[test]
    fn llama_2_7b_on_one_gpu() {
        let layer = 4 * 4096_u64.pow(2) + 3 * 4096 * 11008 + 2 * 4096;
        let parameters = 32 * layer + 2 * 32000 * 4096 + 4096;
        assert_eq!(parameters, 6_738_415_616);
        let estimate = of("llama-2-7b", Precision::F16, 2048, 1, Cut::Layers(1));
        assert_eq!(estimate.weights, 13_476_831_232);
        assert_eq!(estimate.kv_cache, 1024 * MIB);
        // 3 x 4096 + 4 x 4096 + 3 x 11008 numbers of two bytes for each of 2048 tokens, and 32000 x 8 bytes.
        assert_eq!(estimate.activations, (7 * 4096 + 3 * 11008) * 2 * 2048 + 256_000);
        assert_eq!(estimate.runtime, 640 * MIB);
        assert_eq!(of("llama-2-7b", Precision::F32, 2048, 1, Cut::Layers(1)).weights, 2 * 13_476_831_232);
    }

    /// The published 16-bit weights, a KV cache of 2 x 32 x 4096 floats a token, and the same vectors in floats.
    #[test]
    fn llama_2_7b_on_cpus() {
        let estimate = estimate_on_cpus(&find("llama-2-7b").unwrap().shape, Precision::F16, 2048, 1);
        assert_eq!(estimate.weights, 13_476_831_232);
        assert_eq!(estimate.kv_cache, 2048 * MIB);
        // A row for the sequence, 16 for drafts, 32 for scores of prompts.
        assert_eq!(estimate.activations, (7 * 4096 + 3 * 11008) * 4 * 2048 + 49 * 256_000);
    }

    /// 8 bits and scales for the 4096 x 4096 value projections of each layer: 65/64 bytes and not 69/128.
    #[test]
    fn on_cpus_values_have_8_bits_where_others_have_4() {
        let shape = &find("llama-2-7b").unwrap().shape;
        let on_gpu = of("llama-2-7b", Precision::Int4, 2048, 1, Cut::Layers(1)).weights;
        let more = 32 * 4096 * 4096 * 61 / 128;
        assert_eq!(estimate_on_cpus(shape, Precision::Int4, 2048, 1).weights, on_gpu + more);
    }

    /// An eighth of all matrices on each rank, and all 161 norms of 8192; one key-value head of eight.
    #[test]
    fn llama_2_70b_on_eight_ranks() {
        let estimate = of("llama-2-70b", Precision::F16, 4096, 4, Cut::Ranks(8));
        let norms = 161 * 8192 * 2;
        assert_eq!(estimate.weights, (2 * 68_976_648_192 - norms) / 8 + norms);
        assert_eq!(estimate.kv_cache, 2 * 80 * 128 * 2 * 4096 * 4);
        // More ranks than key-value heads do not make that less.
        assert_eq!(of("llama-2-70b", Precision::F16, 4096, 4, Cut::Ranks(16)).kv_cache, estimate.kv_cache);
    }

    /// 60 layers on four GPUs are 15 each, of 8192 x (128 + 2 x 8) x 64 + 8192^2 + 2 x 8192 x 32768 parameters and four vectors; the
    /// fullest has the embedding or the final norm besides: both are counted.
    #[test]
    fn falcon_40b_by_layers() {
        let matrices = 8192 * 144 * 64 + 8192_u64.pow(2) + 2 * 8192 * 32768;
        let layer = matrices + 4 * 8192;
        let estimate = of("falcon-40b", Precision::Bf16, 2048, 1, Cut::Layers(4));
        assert_eq!(estimate.weights, 2 * (15 * layer + 65024 * 8192 + 2 * 8192));
        assert_eq!(estimate.kv_cache, 2 * 15 * 8 * 64 * 2 * 2048);
    }

    /// Four bits, for each 16 parameters 3 bits, and for each 128 a scale of 16 bits: 4.3125 bits a parameter, 69 for 16.
    #[test]
    fn integers_come_with_scales() {
        let int4 = of("llama-2-7b", Precision::Int4, 2048, 1, Cut::Layers(1)).weights;
        let matrices = 32 * (4 * 4096_u64.pow(2) + 3 * 4096 * 11008);
        assert_eq!(int4, matrices * 69 / 128 + (2 * 32000 * 4096 + 65 * 4096) * 2);
        let int8 = of("llama-2-7b", Precision::Int8, 2048, 1, Cut::Layers(1)).weights;
        assert_eq!(int8, matrices * 65 / 64 + (2 * 32000 * 4096 + 65 * 4096) * 2);
    }

    /// By hand: for each of 32 layers four matrices of 4096 x 4096, two of 11008 x 4096 and one of 4096 x 11008 have 64 x (input +
    /// output) numbers each, of four bytes on CPUs and of two on GPUs.
    #[test]
    fn an_adapter_of_llama_2_7b() {
        let shape = &find("llama-2-7b").unwrap().shape;
        let numbers = 32 * 64 * (4 * (4096 + 4096) + 3 * (4096 + 11008));
        assert_eq!(adapter_bytes_on_cpus(shape, 1), 4 * numbers);
        assert_eq!(adapter_bytes_on_cpus(shape, 3), 3 * 4 * numbers);
        assert_eq!(adapter_bytes(shape, Precision::Int4, 1, Cut::Layers(1)), 2 * numbers);
        // Half of the layers, or of each layer the cut sides of the matrices.
        assert_eq!(adapter_bytes(shape, Precision::F16, 1, Cut::Layers(2)), numbers);
        let cut = 4 * (4096 + 2048) + 2 * (4096 + 5504) + (5504 + 4096);
        assert_eq!(adapter_bytes(shape, Precision::F16, 1, Cut::Ranks(2)), 2 * 32 * 64 * cut);
        assert_eq!(adapter_bytes_on_cpus(shape, 0), 0);
    }

    /// Falcon's MLP has no gate: 7B's four matrices, with the one of queries, keys and values counted as three at its input.
    #[test]
    fn an_adapter_of_falcon_7b() {
        let shape = &find("falcon-7b").unwrap().shape;
        let layer = (3 * 4544 + 73 * 64) + (4544 + 4544) + 2 * (4544 + 4 * 4544);
        assert_eq!(adapter_bytes_on_cpus(shape, 1), 4 * 32 * 64 * layer);
    }

    #[test]
    fn one_gpu_holds_what_the_catalogue_says() {
        for preset in PRESETS {
            for cut in [Cut::Layers(1), Cut::Ranks(1)] {
                let weights = estimate(&preset.shape, preset.dtype.into(), Precision::F16, 1, 1, cut).weights;
                assert_eq!(weights, preset.shape.weights_bytes(preset.dtype), "{} {cut:?}", preset.name);
            }
        }
    }

    #[test]
    fn sequences_have_whole_pages() {
        let kv = |context| of("mistral-7b", Precision::Bf16, context, 3, Cut::Layers(1)).kv_cache;
        assert_eq!((kv(1), kv(16), kv(17)), (kv(16), 3 * 16 * 131_072, 3 * 32 * 131_072));
    }

    proptest::proptest! {
        #[test]
        fn no_number_overflows(context: u64, batch: u64, gpus: u32, preset in 0..PRESETS.len()) {
            for cut in [Cut::Ranks(gpus), Cut::Layers(gpus)] {
                let estimate = estimate(&PRESETS[preset].shape, Precision::Int4, Precision::F32, context, batch, cut);
                proptest::prop_assert!(estimate.total() >= estimate.weights);
                let adapters = adapter_bytes(&PRESETS[preset].shape, Precision::F32, batch, cut);
                proptest::prop_assert!(estimate.with_adapters(adapters).total() >= estimate.total());
            }
        }

        #[test]
        fn more_of_anything_needs_no_less(
            context in 1..200_000_u64,
            batch in 1..300_u64,
            more in 0..5000_u64,
            gpus in 1..16_u32,
            preset in 0..PRESETS.len(),
        ) {
            let shape = &PRESETS[preset].shape;
            for cut in [Cut::Ranks, Cut::Layers] {
                let total = |context, batch, weights, kv, gpus| {
                    estimate(shape, weights, kv, context, batch, cut(gpus)).total()
                };
                let base = total(context, batch, Precision::F16, Precision::F16, gpus);
                proptest::prop_assert!(base <= total(context + more, batch, Precision::F16, Precision::F16, gpus));
                proptest::prop_assert!(base <= total(context, batch + more, Precision::F16, Precision::F16, gpus));
                proptest::prop_assert!(base <= total(context, batch, Precision::F32, Precision::F16, gpus));
                proptest::prop_assert!(base <= total(context, batch, Precision::F16, Precision::F32, gpus));
                proptest::prop_assert!(base >= total(context, batch, Precision::Int8, Precision::Fp8, gpus));
                proptest::prop_assert!(base >= total(context, batch, Precision::Int4, Precision::F16, gpus));
                proptest::prop_assert!(base >= total(context, batch, Precision::F16, Precision::F16, gpus + 1));
            }
        }
    }
}
