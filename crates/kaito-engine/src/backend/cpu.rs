//! The processor as a device: weights are used where the checkpoint is mapped.

use std::{mem, num::NonZeroUsize};

use kaito_kernels::{
    self as kernels, AttentionSequence, AttentionShape, KvBuffer, KvDType, KvLayout, MAX_PAGE_TOKENS, MatrixRef,
    PAGE_TOKENS, QuantizedInput, Rows, RowsMut, ThreadPool, TiledInput,
};

use super::{AttentionSpan, Backend, BackendError, Write};
use crate::{kv_cache::PageCopy, recycle::recycled};
use kaito_model::{
    checkpoint::Tensor,
    config::{ModelConfig, Norm, Positions, QkvLayout, RopePairing},
    weights::{Linear, NormWeights, Weight},
};

/// All cores of this machine, or a part of them.
pub struct CpuBackend {
    pool: ThreadPool,
    kv_dtype: KvDType,
    /// Room for the activations of one linear map, and for their quantised form.
    tiled_input: TiledInput,
    quantized_input: QuantizedInput,
    /// Room for what attention is told of a step.
    sequences: Vec<AttentionSequence<'static>>,
}

impl CpuBackend {
    /// A backend of `threads` threads, the calling one included, with keys and values in f32.
    pub fn new(threads: NonZeroUsize) -> Self {
        Self::on(ThreadPool::new(threads))
    }

    /// The same on threads that are there already.
    pub fn on(pool: ThreadPool) -> Self {
        Self {
            pool,
            kv_dtype: KvDType::default(),
            tiled_input: TiledInput::default(),
            quantized_input: QuantizedInput::default(),
            sequences: Vec::new(),
        }
    }

    /// The same with keys and values of another type.
    pub fn with_kv_dtype(self, kv_dtype: KvDType) -> Self {
        Self { kv_dtype, ..self }
    }
}

/// A normalisation's weights and kind.
pub struct CpuNorm {
    weights: NormWeights,
    kind: Norm,
}

/// Keys and values, a buffer a layer.
pub struct CpuKvPool {
    keys: Vec<KvBuffer>,
    values: Vec<KvBuffer>,
    layout: KvLayout,
    head_dim: usize,
    window: Option<usize>,
    alibi_slopes: Vec<f32>,
}

fn rows(data: &[f32], stride: usize, offset: usize) -> Rows<'_> {
    Rows { data, stride, offset }
}

fn rows_mut(data: &mut [f32], stride: usize, offset: usize) -> RowsMut<'_> {
    RowsMut { data, stride, offset }
}

fn plain_dims(tensor: &Tensor) -> Option<(usize, usize)> {
    match *tensor.shape() {
        [rows, cols] => Some((rows, cols)),
        _ => None,
    }
}

/// Rows and columns, unless it is no matrix.
fn dims(weight: &Weight) -> Option<(usize, usize)> {
    match weight {
        Weight::Plain(tensor) => plain_dims(tensor),
        Weight::Quantized(tensor) => Some((tensor.rows(), tensor.cols())),
    }
}

fn describe(weight: &Weight) -> String {
    match weight {
        Weight::Plain(tensor) => format!("{} of shape {:?}", tensor.name(), tensor.shape()),
        Weight::Quantized(tensor) => format!("{} of shape {:?}", weight.name(), [tensor.rows(), tensor.cols()]),
    }
}

/// A tensor that [`Backend::load_linear`] found to be a matrix.
fn matrix(tensor: &Tensor) -> MatrixRef<'_> {
    let matrix =
        plain_dims(tensor).and_then(|(rows, cols)| MatrixRef::new(tensor.dtype(), rows, cols, tensor.bytes()).ok());
    matrix.unwrap_or_else(|| unreachable!("{} of shape {:?} is no matrix", tensor.name(), tensor.shape()))
}

/// `len` zeros that take no memory before they are written.
fn zeros(len: usize) -> Result<Vec<f32>, BackendError> {
    kernels::zeros(len).ok_or_else(|| BackendError {
        device: "cpu".to_owned(),
        cause: format!("no room for {} MiB of memory", (len * size_of::<f32>()) >> 20),
    })
}

impl Backend for CpuBackend {
    type Buffer = Vec<f32>;
    type Linear = Linear;
    type Norm = CpuNorm;
    type KvPool = CpuKvPool;

    fn buffer(&self, len: usize) -> Result<Vec<f32>, BackendError> {
        zeros(len)
    }

    fn load_linear(&self, mut linear: Linear) -> Result<Linear, BackendError> {
        for part in &linear.parts {
            let (rows, cols) = dims(&part.weight).ok_or_else(|| BackendError {
                device: "cpu".to_owned(),
                cause: format!("{} is no matrix", describe(&part.weight)),
            })?;
            let fits =
                part.output_offset + rows <= linear.out_features && part.input_offset + cols <= linear.in_features;
            if !fits {
                return Err(BackendError {
                    device: "cpu".to_owned(),
                    cause: format!(
                        "{} does not fit a map of {} to {}",
                        describe(&part.weight),
                        linear.in_features,
                        linear.out_features
                    ),
                });
            }
        }
        // Of the parts that share an output, the first replaces what the output holds and the others add to it.
        linear.parts.sort_by_key(|part| (part.output_offset, part.input_offset));
        Ok(linear)
    }

    fn load_norm(&self, weights: NormWeights, kind: Norm) -> Result<CpuNorm, BackendError> {
        Ok(CpuNorm { weights, kind })
    }

    fn kv_pool(&self, config: &ModelConfig, pages: usize, page_size: usize) -> Result<CpuKvPool, BackendError> {
        let layout = KvLayout { num_kv_heads: config.num_kv_heads, pages, page_size };
        if !layout.is_supported() {
            return Err(BackendError {
                device: "cpu".to_owned(),
                cause: format!(
                    "pages of {page_size} tokens are not a multiple of {PAGE_TOKENS} of up to {MAX_PAGE_TOKENS}"
                ),
            });
        }
        let layers = |layer: &dyn Fn(usize) -> Option<KvBuffer>| {
            let layers = (0..config.num_layers).map(|_| layer(layout.slots()?)).collect::<Option<Vec<_>>>();
            layers.ok_or_else(|| BackendError {
                device: "cpu".to_owned(),
                cause: format!("no room for {pages} pages of keys and values in {}", self.kv_dtype),
            })
        };
        Ok(CpuKvPool {
            keys: layers(&|slots| KvBuffer::keys(self.kv_dtype, slots, config.head_dim, page_size))?,
            values: layers(&|slots| KvBuffer::values(self.kv_dtype, slots, config.head_dim))?,
            layout,
            head_dim: config.head_dim,
            window: config.sliding_window,
            alibi_slopes: match config.positions {
                Positions::Rotary(_) => Vec::new(),
                Positions::Alibi => kernels::alibi_slopes(config.num_heads),
            },
        })
    }

    fn reserve(&mut self, config: &ModelConfig, rows: usize) {
        let widest = config.hidden_size.max(config.intermediate_size).max(config.num_heads * config.head_dim);
        self.tiled_input.reserve(rows, widest);
        self.quantized_input.reserve(rows, widest);
        self.sequences.reserve(rows);
    }

    fn host_pool(&self) -> &ThreadPool {
        &self.pool
    }

    fn embed(&mut self, table: &Linear, ids: &[u32], output: &mut Vec<f32>) {
        // An embedding is the transpose of a linear map from tokens: its rows are tokens, its columns components.
        for part in &table.parts {
            // Embeddings are never quantised: a step reads few of their rows.
            if let Weight::Plain(tensor) = &part.weight {
                kernels::gather_rows(ids, matrix(tensor), rows_mut(output, table.in_features, part.input_offset));
            }
        }
    }

    fn norm(&mut self, norm: &CpuNorm, count: usize, input: &Vec<f32>, output: &mut Vec<f32>) {
        let width = norm.weights.weight.len();
        let (input, output) = (rows(input, width, 0), rows_mut(output, width, 0));
        let weights = &norm.weights;
        match norm.kind {
            Norm::Rms { eps } => kernels::rms_norm(&self.pool, count, input, &weights.weight, eps, output),
            Norm::Layer { eps } => {
                kernels::layer_norm(&self.pool, count, input, &weights.weight, weights.bias.as_deref(), eps, output)
            }
        }
    }

    fn linear(&mut self, linear: &Linear, count: usize, input: &Vec<f32>, output: &mut Vec<f32>, write: Write) {
        if let Some(bias) = &linear.bias {
            for row in output.chunks_exact_mut(linear.out_features).take(count) {
                match write {
                    Write::Set => row.copy_from_slice(bias),
                    Write::Add => row.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias),
                }
            }
        }
        // Parts that read the same input share its tiled or quantised form.
        let (mut written, mut tiled, mut quantized) = (None, None, None);
        for part in &linear.parts {
            let first = written != Some(part.output_offset);
            written = Some(part.output_offset);
            let write = if first && linear.bias.is_none() { write } else { Write::Add };
            let input = rows(input, linear.in_features, part.input_offset);
            let output = rows_mut(output, linear.out_features, part.output_offset);
            match &part.weight {
                Weight::Plain(tensor) => {
                    let weight = matrix(tensor);
                    let wanted = (part.input_offset, weight.cols());
                    if tiled.replace(wanted) != Some(wanted) {
                        self.tiled_input.tile(&self.pool, count, weight.cols(), input);
                    }
                    kernels::matmul(&self.pool, &self.tiled_input, weight, output, write);
                }
                Weight::Quantized(tensor) => {
                    let Some(weight) = tensor.matrix() else { continue };
                    let wanted = (weight.quantization(), part.input_offset, weight.cols());
                    if quantized.replace(wanted) != Some(wanted) {
                        self.quantized_input.quantize(&self.pool, weight.quantization(), count, weight.cols(), input);
                    }
                    kernels::quantized_matmul(&self.pool, &self.quantized_input, weight, output, write);
                }
            }
        }
    }

    fn rope(
        &mut self,
        qkv: &mut Vec<f32>,
        layout: &QkvLayout,
        pairing: RopePairing,
        count: usize,
        cos: &[f32],
        sin: &[f32],
    ) {
        let pairing = match pairing {
            RopePairing::Halves => kernels::RopePairing::Halves,
            RopePairing::Interleaved => kernels::RopePairing::Interleaved,
        };
        for heads in [&layout.query, &layout.key] {
            kernels::rope(&self.pool, count, rows_mut(qkv, layout.width, 0), heads, pairing, cos, sin);
        }
    }

    fn store_kv(
        &mut self,
        pool: &mut CpuKvPool,
        layer: usize,
        qkv: &Vec<f32>,
        layout: &QkvLayout,
        spans: &[AttentionSpan],
    ) {
        let CpuKvPool { layout: kv_layout, head_dim, .. } = *pool;
        for span in spans {
            // Head by head, since a page of one head stays in the cache while its tokens are written.
            for head in 0..kv_layout.num_kv_heads {
                for row in 0..span.rows {
                    let position = span.context - span.rows + row;
                    let page = span.pages[position / kv_layout.page_size];
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

    fn attention(
        &mut self,
        pool: &CpuKvPool,
        layer: usize,
        qkv: &Vec<f32>,
        layout: &QkvLayout,
        spans: &[AttentionSpan],
        output: &mut Vec<f32>,
    ) {
        let shape = AttentionShape {
            query_offsets: &layout.query,
            layout: pool.layout,
            head_dim: pool.head_dim,
            scale: 1.0 / (pool.head_dim as f32).sqrt(),
            window: pool.window,
            alibi_slopes: &pool.alibi_slopes,
        };
        let mut sequences = recycled(mem::take(&mut self.sequences));
        sequences.extend(spans.iter().map(|span| AttentionSequence {
            first_row: span.first_row,
            rows: span.rows,
            context: span.context,
            pages: span.pages,
        }));
        let (queries, width) = (rows(qkv, layout.width, 0), layout.query.len() * pool.head_dim);
        let output = rows_mut(output, width, 0);
        kernels::paged_attention(
            &self.pool,
            &shape,
            queries,
            &pool.keys[layer],
            &pool.values[layer],
            &sequences,
            output,
        );
        self.sequences = recycled(sequences);
    }

    fn swiglu(&mut self, count: usize, gate_up: &Vec<f32>, inner: usize, output: &mut Vec<f32>) {
        kernels::swiglu(&self.pool, count, rows(gate_up, 2 * inner, 0), inner, rows_mut(output, inner, 0));
    }

    fn gelu(&mut self, count: usize, width: usize, data: &mut Vec<f32>) {
        kernels::gelu_erf(&self.pool, &mut data[..count * width]);
    }

    fn select_rows(&mut self, input: &Vec<f32>, width: usize, selected: &[usize], output: &mut Vec<f32>) {
        for (target, &row) in output.chunks_exact_mut(width).zip(selected) {
            target.copy_from_slice(&input[row * width..(row + 1) * width]);
        }
    }

    fn read(&mut self, buffer: &Vec<f32>, output: &mut [f32]) {
        output.copy_from_slice(&buffer[..output.len()]);
    }

    fn copy_pages(&mut self, pool: &mut CpuKvPool, copies: &[PageCopy]) {
        let layout = pool.layout;
        for layer in pool.keys.iter_mut().chain(&mut pool.values) {
            for copy in copies {
                for head in 0..layout.num_kv_heads {
                    layer.copy(layout.slot(head, copy.from), layout.slot(head, copy.to), layout.page_size);
                }
            }
        }
    }
}
