//! The operations of a forward pass on the processor: weights are used where the checkpoint is mapped.

use std::{mem, sync::Arc};

use kaito_kernels::{
    self as kernels, AttentionSequence, AttentionShape, KvBuffer, KvForm, KvLayout, MAX_PAGE_TOKENS, PAGE_TOKENS,
    ThreadPool, Write,
};

use super::{
    buffer::CpuBuffer,
    linear::{CpuLinear, CpuMatrix, Products, out_of_memory, rows, rows_mut, unsupported, zeros},
    low_rank::{CpuLowRank, LowRankProducts},
};
use crate::{
    device::{Adapted, BufferKind, DeviceError, Epilogue, Operations, Packed},
    executor::{ExecutorLimits, HostMemory, StepInput},
    recycle::recycled,
};
use kaito_model::{
    adapter::LowRank,
    config::{AttentionSpec, Mlp, ModelConfig, Norm, Positions, QkvLayout, RopePairing},
    weights::{Linear, NormWeights},
};

/// All cores of this machine, or a part of them.
pub struct CpuOperations {
    products: Products,
    low_rank: LowRankProducts,
    packed: Packed,
    /// The step that is under way.
    step: StepInput,
    /// Room for what attention and the KV cache are told of a step.
    sequences: Vec<AttentionSequence<'static>>,
}

impl CpuOperations {
    /// Operations that `threads` share out, the calling thread included. `packed` says what products and attention compute with.
    pub fn new(threads: Arc<ThreadPool>, packed: Packed) -> Self {
        Self {
            products: Products::new(threads, packed),
            low_rank: LowRankProducts::default(),
            packed,
            step: StepInput::default(),
            sequences: Vec::new(),
        }
    }

    /// Writes the rows' keys and values of `layer` into the pages of their sequences.
    fn store(&mut self, pool: &mut CpuKvPool, layer: usize, qkv: &[f32], layout: &QkvLayout) {
        let sequences = sequences_of(&self.step, recycled(mem::take(&mut self.sequences)));
        kernels::store_kv(
            &self.products.threads,
            pool.layout,
            rows(qkv, layout.width, 0),
            &layout.key,
            &layout.value,
            &mut pool.keys[layer],
            &mut pool.values[layer],
            &sequences,
        );
        self.sequences = recycled(sequences);
    }
}

/// What attention and the KV cache are told of a step, in memory for that.
fn sequences_of<'a>(step: &'a StepInput, mut sequences: Vec<AttentionSequence<'a>>) -> Vec<AttentionSequence<'a>> {
    sequences.extend(step.spans.iter().map(|span| AttentionSequence {
        first_row: span.first_row,
        rows: span.rows,
        context: span.context,
        pages: step.pages_of(span),
    }));
    sequences
}

/// A normalisation's weights and kind.
pub struct CpuNorm {
    weights: NormWeights,
    kind: Norm,
}

/// The KV cache: two buffers a layer.
pub struct CpuKvPool {
    keys: Vec<KvBuffer>,
    values: Vec<KvBuffer>,
    layout: KvLayout,
    attention: AttentionSpec,
    alibi_slopes: Vec<f32>,
}

impl Operations for CpuOperations {
    type Buffer = CpuBuffer;
    type Linear = CpuLinear;
    type Norm = CpuNorm;
    type LowRank = CpuLowRank;
    type KvPool = CpuKvPool;

    fn buffer(&mut self, rows: usize, width: usize, kind: BufferKind) -> Result<CpuBuffer, DeviceError> {
        CpuBuffer::new(rows, width, kind)
    }

    fn host_memory(&mut self, len: usize) -> Result<HostMemory, DeviceError> {
        Ok(Box::new(zeros(len)?))
    }

    fn load_linear(&mut self, linear: Linear) -> Result<CpuLinear, DeviceError> {
        CpuLinear::new(linear)
    }

    fn load_norm(&mut self, weights: NormWeights, kind: Norm) -> Result<CpuNorm, DeviceError> {
        Ok(CpuNorm { weights, kind })
    }

    fn load_low_rank(&mut self, term: LowRank) -> Result<CpuLowRank, DeviceError> {
        CpuLowRank::new(term)
    }

    fn kv_pool(&mut self, config: &ModelConfig, pages: usize, page_size: usize) -> Result<CpuKvPool, DeviceError> {
        let attention = config.layer.attention;
        let layout = KvLayout { num_kv_heads: attention.num_kv_heads, pages, page_size };
        if !layout.is_supported() {
            return Err(unsupported(format!(
                "pages of {page_size} tokens are not a multiple of {PAGE_TOKENS} of up to {MAX_PAGE_TOKENS}"
            )));
        }
        let Packed { kv_dtype, rounds_attention, .. } = self.packed;
        let form = KvForm::of(kv_dtype, rounds_attention, attention.head_dim);
        let layers = |layer: &dyn Fn(usize) -> Option<KvBuffer>| {
            let layers = (0..config.num_layers).map(|_| layer(layout.slots()?)).collect::<Option<Vec<_>>>();
            layers.ok_or_else(|| out_of_memory(format!("no room for {pages} pages of the KV cache in {kv_dtype}")))
        };
        Ok(CpuKvPool {
            keys: layers(&|slots| KvBuffer::keys(form, slots, attention.head_dim, page_size))?,
            values: layers(&|slots| KvBuffer::values(form, slots, attention.head_dim))?,
            layout,
            attention,
            alibi_slopes: match config.positions {
                Positions::Rotary(_) => Vec::new(),
                Positions::Alibi => kernels::alibi_slopes(attention.num_heads),
            },
        })
    }

    fn reserve(&mut self, config: &ModelConfig, limits: &ExecutorLimits) -> Result<(), DeviceError> {
        let rows = limits.step_tokens;
        let linears = config.layer.linears(config.hidden_size);
        let widest = linears.iter().map(|linear| linear.in_features).max().unwrap_or(config.hidden_size);
        let mlp = config.layer.mlp;
        self.products.reserve(rows, widest, if mlp.kind == Mlp::SwiGlu { mlp.width } else { 0 })?;
        self.sequences.reserve(limits.sequences);
        Ok(())
    }

    fn begin(&mut self, step: StepInput) -> Result<(), DeviceError> {
        (self.step, self.products.error) = (step, None);
        Ok(())
    }

    fn copy_pages(&mut self, pool: &mut CpuKvPool) {
        let layout = pool.layout;
        for layer in pool.keys.iter_mut().chain(&mut pool.values) {
            for copy in &self.step.copies {
                for head in 0..layout.num_kv_heads {
                    layer.copy(layout.slot(head, copy.from), layout.slot(head, copy.to), layout.page_size);
                }
            }
        }
    }

    fn embed(&mut self, table: &CpuLinear, output: &mut CpuBuffer) {
        // An embedding is the transpose of a linear map from tokens: its rows are tokens, its columns components.
        for part in &table.parts {
            match &part.matrix {
                CpuMatrix::Plain(matrix) => match matrix.view() {
                    Ok(matrix) => {
                        let output = rows_mut(output.values_mut(), table.in_features, part.input_offset);
                        kernels::gather_rows(&self.step.tokens, matrix, output);
                    }
                    Err(error) => self.products.fail(error.to_string()),
                },
                CpuMatrix::Blocks(tensor) => match tensor.matrix() {
                    Some(matrix) => {
                        let output = rows_mut(output.values_mut(), table.in_features, part.input_offset);
                        kernels::gather_block_rows(&self.step.tokens, matrix, output);
                    }
                    None => self.products.fail(format!("{tensor:?} is no matrix of blocks")),
                },
                // It is not worth it: a step reads few rows of an embedding.
                CpuMatrix::Quantized(tensor) => {
                    self.products.fail(format!("{tensor:?}: a quantised embedding"));
                }
            }
        }
    }

    fn norm(&mut self, norm: &CpuNorm, count: usize, input: &CpuBuffer, output: &mut CpuBuffer) {
        let width = norm.weights.weight.len();
        let (input, output) = (rows(input.values(), width, 0), rows_mut(output.values_mut(), width, 0));
        let weights = &norm.weights;
        match norm.kind {
            Norm::Rms { eps } => kernels::rms_norm(&self.products.threads, count, input, &weights.weight, eps, output),
            Norm::Layer { eps } => kernels::layer_norm(
                &self.products.threads,
                count,
                input,
                &weights.weight,
                weights.bias.as_deref(),
                eps,
                output,
            ),
        }
    }

    fn norm_heads(&mut self, norm: &CpuNorm, count: usize, heads: &mut CpuBuffer, width: usize, offsets: &[usize]) {
        let NormWeights { weight, bias } = &norm.weights;
        let heads = rows_mut(heads.values_mut(), width, 0);
        kernels::norm_heads(&self.products.threads, count, heads, offsets, norm.kind, weight, bias.as_deref());
    }

    fn linear(
        &mut self,
        linear: &CpuLinear,
        count: usize,
        input: &CpuBuffer,
        output: &mut CpuBuffer,
        epilogue: Epilogue,
        adapted: Adapted<'_, CpuLowRank>,
    ) {
        let write = if epilogue == Epilogue::Add { Write::Add } else { Write::Set };
        let output = if epilogue == Epilogue::SwiGlu { output.gate_up_mut() } else { output.values_mut() };
        self.products.compute(linear, count, input, output, write);
        if !adapted.is_empty() {
            let threads = Arc::clone(&self.products.threads);
            let input = self.products.operand(linear, count, input);
            if let Err(cause) = self.low_rank.add(&threads, linear, &adapted, count, input, output) {
                self.products.fail(cause);
            }
        }
        if epilogue == Epilogue::Gelu {
            kernels::gelu_erf(&self.products.threads, &mut output[..count * linear.out_features]);
        }
    }

    fn place(
        &mut self,
        pool: &mut CpuKvPool,
        layer: usize,
        qkv: &mut CpuBuffer,
        layout: &QkvLayout,
        rotation: Option<RopePairing>,
    ) {
        let qkv = qkv.values_mut();
        if let Some(pairing) = rotation {
            let step = &self.step;
            for heads in [&layout.query, &layout.key] {
                let qkv = rows_mut(qkv, layout.width, 0);
                kernels::rope(&self.products.threads, step.rows(), qkv, heads, pairing, &step.cos, &step.sin);
            }
        }
        self.store(pool, layer, qkv, layout);
    }

    fn attention(
        &mut self,
        pool: &CpuKvPool,
        layer: usize,
        qkv: &CpuBuffer,
        layout: &QkvLayout,
        output: &mut CpuBuffer,
    ) {
        let shape = AttentionShape {
            query_offsets: &layout.query,
            layout: pool.layout,
            head_dim: pool.attention.head_dim,
            scale: pool.attention.scale,
            soft_cap: pool.attention.soft_cap,
            window: pool.attention.sliding_window,
            alibi_slopes: &pool.alibi_slopes,
        };
        let sequences = sequences_of(&self.step, recycled(mem::take(&mut self.sequences)));
        let (queries, width) = (rows(qkv.values(), layout.width, 0), pool.attention.query_width());
        let output = rows_mut(output.values_mut(), width, 0);
        kernels::paged_attention(
            &self.products.threads,
            &shape,
            queries,
            &pool.keys[layer],
            &pool.values[layer],
            &sequences,
            output,
        );
        self.sequences = recycled(sequences);
    }

    fn select_rows(&mut self, input: &CpuBuffer, width: usize, output: &mut CpuBuffer) {
        let input = input.values();
        for (target, &row) in output.values_mut().chunks_exact_mut(width).zip(&self.step.wanted) {
            target.copy_from_slice(&input[row * width..(row + 1) * width]);
        }
    }

    fn finish(&mut self, read: &mut [(&CpuBuffer, &mut [f32])]) -> Result<StepInput, DeviceError> {
        for (buffer, output) in read {
            output.copy_from_slice(&buffer.values()[..output.len()]);
        }
        match self.products.error.take() {
            None => Ok(mem::take(&mut self.step)),
            Some(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use kaito_kernels::Quantization;
    use kaito_model::{
        checkpoint::SharedBytes,
        weights::{LinearPart, QuantizedTensor, Weight},
    };

    use super::*;
    use crate::{device::DeviceErrorKind, executor::Span, kv_cache::VariantKey};

    /// A step goes on after a failure, and gives the first one at its end; the next step knows nothing of it.
    #[test]
    fn a_failure_in_a_step_comes_at_its_end() {
        let threads = Arc::new(ThreadPool::new(NonZeroUsize::MIN));
        let mut operations = CpuOperations::new(threads, Packed::F32);
        let bytes = vec![0; Quantization::Int4.bytes(2, 4).unwrap()];
        let tensor = QuantizedTensor::new("e", Quantization::Int4, 2, 4, SharedBytes::owned(bytes)).unwrap();
        let parts = vec![LinearPart { weight: Weight::Quantized(tensor), output_offset: 0, input_offset: 0 }];
        let table = operations.load_linear(Linear { out_features: 2, in_features: 4, parts, bias: None }).unwrap();
        let step = || {
            let mut step = StepInput::default();
            step.push(&Span {
                tokens: &[1],
                draft: &[],
                start: 0,
                pages: &[0],
                variant: VariantKey::default(),
                logits: 1,
                states: false,
            });
            step
        };
        let mut logits = operations.buffer(1, 4, BufferKind::Logits).unwrap();
        logits.values_mut().fill(1.0);
        let (mut embedded, mut output) = (operations.buffer(1, 4, BufferKind::Exact).unwrap(), [0.0; 2]);
        operations.begin(step()).unwrap();
        operations.embed(&table, &mut embedded);
        let error = operations.finish(&mut [(&logits, &mut output)]).unwrap_err();
        assert_eq!(error.kind, DeviceErrorKind::Unsupported);
        assert_eq!(error.to_string(), "cpu: QuantizedTensor(e int4 [2, 4]): a quantised embedding");
        operations.begin(step()).unwrap();
        assert_eq!(operations.finish(&mut [(&logits, &mut output)]).unwrap().tokens, [1]);
        assert_eq!(output, [1.0; 2]);
    }
}
