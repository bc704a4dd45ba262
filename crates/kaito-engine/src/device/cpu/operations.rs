//! The operations of a forward pass on the processor: weights are used where the checkpoint is mapped.

use std::{mem, sync::Arc};

use kaito_kernels::{
    self as kernels, AttentionSequence, AttentionShape, KvBuffer, KvDType, KvLayout, MAX_PAGE_TOKENS, PAGE_TOKENS,
    ThreadPool, Write,
};

use super::{
    NAME,
    linear::{CpuLinear, CpuMatrix, Products, rows, rows_mut, unsupported},
};
use crate::{
    device::{BufferKind, DeviceError, DeviceErrorKind, Epilogue, Operations},
    executor::{ExecutorLimits, HostMemory, StepInput},
    recycle::recycled,
};
use kaito_model::{
    config::{AttentionSpec, Mlp, ModelConfig, Norm, Positions, QkvLayout, RopePairing},
    weights::{Linear, NormWeights},
};

/// All cores of this machine, or a part of them.
pub struct CpuOperations {
    products: Products,
    kv_dtype: KvDType,
    /// The step that is under way.
    step: StepInput,
    /// Rows `[gate | up]` on their way through SwiGLU.
    gate_up: Vec<f32>,
    /// Room for what attention is told of a step.
    sequences: Vec<AttentionSequence<'static>>,
}

impl CpuOperations {
    /// Operations that `threads` share out, the calling thread included, with a KV cache of this element type.
    pub fn new(threads: Arc<ThreadPool>, kv_dtype: KvDType) -> Self {
        Self {
            products: Products::new(threads),
            kv_dtype,
            step: StepInput::default(),
            gate_up: Vec::new(),
            sequences: Vec::new(),
        }
    }

    /// Writes the rows' keys and values of `layer` into the pages of their sequences.
    fn store(&self, pool: &mut CpuKvPool, layer: usize, qkv: &[f32], layout: &QkvLayout) {
        let (kv_layout, head_dim) = (pool.layout, pool.attention.head_dim);
        for span in &self.step.spans {
            let pages = self.step.pages_of(span);
            // Head by head, since a page of one head stays in the cache while its tokens are written.
            for head in 0..kv_layout.num_kv_heads {
                for row in 0..span.rows {
                    let position = span.context - span.rows + row;
                    let page = pages[position / kv_layout.page_size];
                    let source = (span.first_row + row) * layout.width;
                    let slot = kv_layout.slot(head, page) + position % kv_layout.page_size;
                    let from = source + layout.key[head];
                    pool.keys[layer].write(slot, &qkv[from..from + head_dim]);
                    let from = source + layout.value[head];
                    pool.values[layer].write(slot, &qkv[from..from + head_dim]);
                }
            }
        }
    }
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

fn out_of_memory(cause: String) -> DeviceError {
    DeviceError::new(DeviceErrorKind::OutOfMemory, NAME, cause)
}

/// `len` zeros that take no memory before they are written.
fn zeros(len: usize) -> Result<Vec<f32>, DeviceError> {
    kernels::zeros(len)
        .ok_or_else(|| out_of_memory(format!("no room for {} MiB of memory", (len * size_of::<f32>()) >> 20)))
}

impl Operations for CpuOperations {
    type Buffer = Vec<f32>;
    type Linear = CpuLinear;
    type Norm = CpuNorm;
    type KvPool = CpuKvPool;

    fn buffer(&mut self, rows: usize, width: usize, _: BufferKind) -> Result<Vec<f32>, DeviceError> {
        zeros(rows * width)
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

    fn kv_pool(&mut self, config: &ModelConfig, pages: usize, page_size: usize) -> Result<CpuKvPool, DeviceError> {
        let attention = config.layer.attention;
        let layout = KvLayout { num_kv_heads: attention.num_kv_heads, pages, page_size };
        if !layout.is_supported() {
            return Err(unsupported(format!(
                "pages of {page_size} tokens are not a multiple of {PAGE_TOKENS} of up to {MAX_PAGE_TOKENS}"
            )));
        }
        let layers = |layer: &dyn Fn(usize) -> Option<KvBuffer>| {
            let layers = (0..config.num_layers).map(|_| layer(layout.slots()?)).collect::<Option<Vec<_>>>();
            layers.ok_or_else(|| {
                out_of_memory(format!("no room for {pages} pages of keys and values in {}", self.kv_dtype))
            })
        };
        Ok(CpuKvPool {
            keys: layers(&|slots| KvBuffer::keys(self.kv_dtype, slots, attention.head_dim, page_size))?,
            values: layers(&|slots| KvBuffer::values(self.kv_dtype, slots, attention.head_dim))?,
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
        let inputs = config.layer.linears(config.hidden_size).map(|linear| linear.in_features);
        let widest = inputs.into_iter().max().unwrap_or(config.hidden_size);
        self.products.reserve(rows, widest);
        self.sequences.reserve(limits.sequences);
        if config.layer.mlp.kind == Mlp::SwiGlu {
            self.gate_up = zeros(rows * config.layer.mlp.in_width())?;
        }
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

    fn embed(&mut self, table: &CpuLinear, output: &mut Vec<f32>) {
        // An embedding is the transpose of a linear map from tokens: its rows are tokens, its columns components.
        for part in &table.parts {
            match &part.matrix {
                CpuMatrix::Plain(matrix) => match matrix.view() {
                    Ok(matrix) => {
                        let output = rows_mut(output, table.in_features, part.input_offset);
                        kernels::gather_rows(&self.step.tokens, matrix, output);
                    }
                    Err(error) => self.products.fail(error.to_string()),
                },
                // It is not worth it: a step reads few rows of an embedding.
                CpuMatrix::Quantized(tensor) => {
                    self.products.fail(format!("{tensor:?}: a quantised embedding"));
                }
            }
        }
    }

    fn norm(&mut self, norm: &CpuNorm, count: usize, input: &Vec<f32>, output: &mut Vec<f32>) {
        let width = norm.weights.weight.len();
        let (input, output) = (rows(input, width, 0), rows_mut(output, width, 0));
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

    fn linear(
        &mut self,
        linear: &CpuLinear,
        count: usize,
        input: &Vec<f32>,
        output: &mut Vec<f32>,
        epilogue: Epilogue,
    ) {
        match epilogue {
            Epilogue::Set => self.products.compute(linear, count, input, output, Write::Set),
            Epilogue::Add => self.products.compute(linear, count, input, output, Write::Add),
            Epilogue::Gelu => {
                self.products.compute(linear, count, input, output, Write::Set);
                kernels::gelu_erf(&self.products.threads, &mut output[..count * linear.out_features]);
            }
            Epilogue::SwiGlu => {
                self.products.compute(linear, count, input, &mut self.gate_up, Write::Set);
                let inner = linear.out_features / 2;
                let (from, to) = (rows(&self.gate_up, 2 * inner, 0), rows_mut(output, inner, 0));
                kernels::swiglu(&self.products.threads, count, from, inner, to);
            }
        }
    }

    fn place(
        &mut self,
        pool: &mut CpuKvPool,
        layer: usize,
        qkv: &mut Vec<f32>,
        layout: &QkvLayout,
        rotation: Option<RopePairing>,
    ) {
        if let Some(pairing) = rotation {
            let step = &self.step;
            for heads in [&layout.query, &layout.key] {
                let qkv = rows_mut(qkv, layout.width, 0);
                kernels::rope(&self.products.threads, step.rows(), qkv, heads, pairing, &step.cos, &step.sin);
            }
        }
        self.store(pool, layer, qkv, layout);
    }

    fn attention(&mut self, pool: &CpuKvPool, layer: usize, qkv: &Vec<f32>, layout: &QkvLayout, output: &mut Vec<f32>) {
        let shape = AttentionShape {
            query_offsets: &layout.query,
            layout: pool.layout,
            head_dim: pool.attention.head_dim,
            scale: pool.attention.scale,
            window: pool.attention.sliding_window,
            alibi_slopes: &pool.alibi_slopes,
        };
        let step = &self.step;
        let mut sequences = recycled(mem::take(&mut self.sequences));
        sequences.extend(step.spans.iter().map(|span| AttentionSequence {
            first_row: span.first_row,
            rows: span.rows,
            context: span.context,
            pages: step.pages_of(span),
        }));
        let (queries, width) = (rows(qkv, layout.width, 0), pool.attention.query_width());
        let output = rows_mut(output, width, 0);
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

    fn select_rows(&mut self, input: &Vec<f32>, width: usize, output: &mut Vec<f32>) {
        for (target, &row) in output.chunks_exact_mut(width).zip(&self.step.wanted) {
            target.copy_from_slice(&input[row * width..(row + 1) * width]);
        }
    }

    fn finish(&mut self, logits: &Vec<f32>, output: &mut [f32]) -> Result<StepInput, DeviceError> {
        output.copy_from_slice(&logits[..output.len()]);
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
    use crate::{executor::Span, kv_cache::VariantKey};

    /// A step goes on after a failure, and gives the first one at its end; the next step knows nothing of it.
    #[test]
    fn a_failure_in_a_step_comes_at_its_end() {
        let mut operations = CpuOperations::new(Arc::new(ThreadPool::new(NonZeroUsize::MIN)), KvDType::F32);
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
            });
            step
        };
        let (logits, mut output) = (vec![1.0; 4], [0.0; 2]);
        operations.begin(step()).unwrap();
        operations.embed(&table, &mut vec![0.0; 4]);
        let error = operations.finish(&logits, &mut output).unwrap_err();
        assert_eq!(error.kind, DeviceErrorKind::Unsupported);
        assert_eq!(error.to_string(), "cpu: QuantizedTensor(e int4 [2, 4]): a quantised embedding");
        operations.begin(step()).unwrap();
        assert_eq!(operations.finish(&logits, &mut output).unwrap().tokens, [1]);
        assert_eq!(output, [1.0; 2]);
    }
}
