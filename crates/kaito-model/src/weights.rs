//! A model's weights, each a view of the mapped checkpoint or of a file of quantised weights.

use std::{collections::BTreeSet, ops::Range, sync::Arc};

use kaito_kernels::{
    self as kernels, BlockFormat, BlocksRef, DType, MappedFile, QuantizedFormat, QuantizedRef, ThreadPool,
};

use crate::{
    checkpoint::{SharedBytes, Tensor},
    config::LinearKind,
};

/// The weights of a whole model.
#[derive(Debug, Clone)]
pub struct ModelWeights {
    /// `vocab_size` rows of `hidden_size`; Meta's shards divide it by columns.
    pub embedding: Linear,
    /// One entry a layer, first layer first.
    pub layers: Vec<LayerWeights>,
    /// Normalisation before the output head.
    pub final_norm: NormWeights,
    /// Output head, `hidden_size` to `vocab_size`; the embedding itself where the two are tied.
    pub head: Linear,
}

/// A layer's linear maps in the order of [`crate::config::LayerSpec::linears`], by shared or mutable reference as the layer is given.
macro_rules! layer_linears {
    ($layer:expr) => {{
        let LayerWeights {
            qkv,
            attention_output,
            mlp_in,
            mlp_out,
            attention_norm: _,
            query_key_norms: _,
            mlp_norm: _,
        } = $layer;
        [
            (LinearKind::Qkv, qkv),
            (LinearKind::AttentionOutput, attention_output),
            (LinearKind::MlpIn, mlp_in),
            (LinearKind::MlpOut, mlp_out),
        ]
    }};
}

/// What the weights of a model amount to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WeightCount {
    /// Parameters, tied ones once.
    pub parameters: u64,
    /// Bytes of the matrices, tied ones once.
    pub bytes: u64,
    /// Bytes of the matrices that every step reads: all but the embedding, of which it takes rows.
    pub step_bytes: u64,
}

impl ModelWeights {
    /// All linear maps: the embedding, those of each layer, and the head, be it the embedding once more.
    pub fn linears(&self) -> impl Iterator<Item = (LinearKind, &Linear)> {
        let layers = self.layers.iter().flat_map(LayerWeights::linears);
        [(LinearKind::Embedding, &self.embedding)].into_iter().chain(layers).chain([(LinearKind::Head, &self.head)])
    }

    /// The same, to change them.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = (LinearKind, &mut Linear)> {
        let layers = self.layers.iter_mut().flat_map(LayerWeights::linears_mut);
        let (embedding, head) = (&mut self.embedding, &mut self.head);
        [(LinearKind::Embedding, embedding)].into_iter().chain(layers).chain([(LinearKind::Head, head)])
    }

    /// All linear maps, a head that is the embedding once.
    fn distinct_linears(&self) -> impl Iterator<Item = (LinearKind, &Linear)> {
        let is_tied = self.is_tied();
        self.linears().filter(move |(kind, _)| !(is_tied && *kind == LinearKind::Head))
    }

    /// All normalisations.
    pub fn norms(&self) -> impl Iterator<Item = &NormWeights> {
        self.layers.iter().flat_map(LayerWeights::norms).chain([&self.final_norm])
    }

    /// Whether embedding and output head are tied: one matrix, at one place in memory.
    pub fn is_tied(&self) -> bool {
        let places = |linear: &Linear| linear.parts.iter().map(|part| part.weight.bytes().as_ptr()).collect::<Vec<_>>();
        places(&self.embedding) == places(&self.head)
    }

    /// Counts parameters and bytes.
    pub fn count(&self) -> WeightCount {
        let mut count = WeightCount::default();
        for (_, linear) in self.distinct_linears() {
            count.parameters += linear.parameters();
            count.bytes += linear.bytes();
        }
        count.parameters += self.norms().map(NormWeights::parameters).sum::<u64>();
        count.step_bytes = count.bytes - if self.is_tied() { 0 } else { self.embedding.bytes() };
        count
    }

    /// What the matrices are held in, for people: `bf16` or `int4`, say.
    pub fn precisions(&self) -> BTreeSet<String> {
        self.linears().flat_map(|(_, linear)| &linear.parts).map(|part| part.weight.precision()).collect()
    }

    /// The formats of the matrices in blocks, that with the most weights first.
    pub fn block_formats(&self) -> Vec<BlockFormat> {
        let mut found: Vec<(usize, BlockFormat)> = Vec::new();
        for part in self.distinct_linears().flat_map(|(_, linear)| &linear.parts) {
            let format = match &part.weight {
                Weight::Blocks(tensor) => tensor.format,
                Weight::Quantized(QuantizedTensor { format: QuantizedFormat::Repacked(format), .. }) => *format,
                Weight::Plain(_) | Weight::Quantized(_) => continue,
            };
            match found.iter_mut().find(|(_, known)| *known == format) {
                Some((elements, _)) => *elements += part.weight.elements(),
                None => found.push((part.weight.elements(), format)),
            }
        }
        // Stable: of two with as many weights, the first stays first.
        found.sort_by_key(|(elements, _)| std::cmp::Reverse(*elements));
        found.into_iter().map(|(_, format)| format).collect()
    }

    /// The mapped files that matrices lie in, each once.
    pub fn mapped_files(&self) -> Vec<Arc<MappedFile>> {
        let mut files: Vec<Arc<MappedFile>> = Vec::new();
        for part in self.linears().flat_map(|(_, linear)| &linear.parts) {
            if let Some(file) = part.weight.file()
                && !files.iter().any(|known| Arc::ptr_eq(known, file))
            {
                files.push(Arc::clone(file));
            }
        }
        files
    }
}

/// The weights of one layer.
#[derive(Debug, Clone)]
pub struct LayerWeights {
    /// Normalisation before attention.
    pub attention_norm: NormWeights,
    /// Normalisation of each query head, and of each key head; `None` where the specification has none.
    pub query_key_norms: Option<[NormWeights; 2]>,
    /// Normalisation before the MLP; `None` where it shares the attention's.
    pub mlp_norm: Option<NormWeights>,
    /// Fused query-key-value projection; a head's place in it is [`crate::config::QkvLayout`]'s matter.
    pub qkv: Linear,
    /// Output projection of attention.
    pub attention_output: Linear,
    /// First MLP projection: `[gate | up]` rows, or `up` alone.
    pub mlp_in: Linear,
    /// Second MLP projection.
    pub mlp_out: Linear,
}

impl LayerWeights {
    /// The linear maps, in the order in which a forward pass uses them.
    pub fn linears(&self) -> [(LinearKind, &Linear); 4] {
        layer_linears!(self)
    }

    /// The same, to change them.
    pub fn linears_mut(&mut self) -> [(LinearKind, &mut Linear); 4] {
        layer_linears!(self)
    }

    /// The normalisations.
    pub fn norms(&self) -> impl Iterator<Item = &NormWeights> {
        let heads = self.query_key_norms.iter().flatten();
        [&self.attention_norm].into_iter().chain(heads).chain(&self.mlp_norm)
    }
}

/// Weight and bias of a normalisation (RMS norm or layer norm), in f32.
#[derive(Debug, Clone)]
pub struct NormWeights {
    /// A factor for each element of what is normalised: `hidden_size`, or `head_dim` for norms of heads.
    pub weight: Vec<f32>,
    /// As many terms, for layer norm.
    pub bias: Option<Vec<f32>>,
}

impl NormWeights {
    /// Number of parameters.
    pub fn parameters(&self) -> u64 {
        (self.weight.len() + self.bias.as_ref().map_or(0, Vec::len)) as u64
    }
}

/// A linear map made of one or more matrices that lie where the checkpoint has them.
///
/// `output[p.output_offset..][..rows] += p.weight * input[p.input_offset..][..cols]` over all parts `p`: separate
/// q, k, v matrices are parts with different output offsets, Meta's column-cut shards parts with different input
/// offsets.
#[derive(Debug, Clone)]
pub struct Linear {
    /// Width of the output.
    pub out_features: usize,
    /// Width of the input.
    pub in_features: usize,
    /// The matrices, `rows x cols`, row-major.
    pub parts: Vec<LinearPart>,
    /// `out_features` terms, where the model has them.
    pub bias: Option<Vec<f32>>,
}

impl Linear {
    /// Number of parameters, the bias included.
    pub fn parameters(&self) -> u64 {
        let matrices: usize = self.parts.iter().map(|part| part.weight.elements()).sum();
        (matrices + self.bias.as_ref().map_or(0, Vec::len)) as u64
    }

    /// Bytes of the matrices.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.weight.bytes().len() as u64).sum()
    }
}

/// One matrix of a [`Linear`].
#[derive(Debug, Clone)]
pub struct LinearPart {
    /// A matrix of two dimensions, output by input.
    pub weight: Weight,
    /// First output component that it computes.
    pub output_offset: usize,
    /// First input component that it reads.
    pub input_offset: usize,
}

/// A matrix of weights.
#[derive(Debug, Clone)]
pub enum Weight {
    /// As the checkpoint has it, or with another element type.
    Plain(Tensor),
    /// Quantised.
    Quantized(QuantizedTensor),
    /// In blocks, as a GGUF file has it.
    Blocks(BlockTensor),
}

impl Weight {
    /// The bytes that are read when it is used.
    pub fn bytes(&self) -> &[u8] {
        self.data().bytes()
    }

    /// The mapped file that the bytes lie in, unless they lie in memory of their own.
    pub fn file(&self) -> Option<&Arc<MappedFile>> {
        self.data().file()
    }

    /// Brings mapped bytes into memory with all threads of `pool`, so that their first use waits for nothing.
    pub fn populate(&self, pool: &ThreadPool) {
        self.data().populate(pool);
    }

    /// Takes mapped bytes that nobody will use soon out of this process's memory.
    pub fn release(&self) {
        self.data().release();
    }

    fn data(&self) -> &SharedBytes {
        match self {
            Weight::Plain(tensor) => tensor.data(),
            Weight::Quantized(tensor) => &tensor.data,
            Weight::Blocks(tensor) => &tensor.data,
        }
    }

    /// The tensor, unless it is quantised or in blocks.
    pub fn plain(&self) -> Option<&Tensor> {
        match self {
            Weight::Plain(tensor) => Some(tensor),
            Weight::Quantized(_) | Weight::Blocks(_) => None,
        }
    }

    /// Its name in the checkpoint.
    pub fn name(&self) -> &str {
        match self {
            Weight::Plain(tensor) => tensor.name(),
            Weight::Quantized(tensor) => &tensor.name,
            Weight::Blocks(tensor) => &tensor.name,
        }
    }

    /// What it is held in, for people: `bf16`, `int4` or `Q4_K`, say.
    pub fn precision(&self) -> String {
        match self {
            Weight::Plain(tensor) => tensor.dtype().to_string(),
            Weight::Quantized(tensor) => tensor.format.to_string(),
            Weight::Blocks(tensor) => tensor.format.to_string(),
        }
    }

    /// The rows `range`, sharing the memory. `None` if they are not all there, and for quantised weights, whose rows are interleaved.
    pub fn rows(&self, range: Range<usize>) -> Option<Self> {
        match self {
            Weight::Plain(tensor) => tensor.rows(range).map(Weight::Plain),
            Weight::Quantized(_) => None,
            Weight::Blocks(tensor) => tensor.rows_of(range).map(Weight::Blocks),
        }
    }

    /// Number of weights.
    pub fn elements(&self) -> usize {
        match self {
            Weight::Plain(tensor) => tensor.elements(),
            Weight::Quantized(tensor) => tensor.rows * tensor.cols,
            Weight::Blocks(tensor) => tensor.rows * tensor.cols,
        }
    }
}

impl From<Tensor> for Weight {
    fn from(tensor: Tensor) -> Self {
        Weight::Plain(tensor)
    }
}

/// A matrix for products of integers: a range of a mapped file, or memory of its own.
#[derive(Clone)]
pub struct QuantizedTensor {
    name: Arc<str>,
    format: QuantizedFormat,
    rows: usize,
    cols: usize,
    data: SharedBytes,
}

impl QuantizedTensor {
    /// `None` unless `data` has the bytes of such a matrix.
    pub fn new(
        name: &str,
        format: impl Into<QuantizedFormat>,
        rows: usize,
        cols: usize,
        data: SharedBytes,
    ) -> Option<Self> {
        let format = format.into();
        let fits = format.bytes(rows, cols) == Some(data.len());
        fits.then(|| Self { name: name.into(), format, rows, cols, data })
    }

    /// Number of rows (outputs).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns (inputs).
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How it is quantised.
    pub fn format(&self) -> QuantizedFormat {
        self.format
    }

    /// A view for the kernels. `None` never comes: the length was checked.
    pub fn matrix(&self) -> Option<QuantizedRef<'_>> {
        QuantizedRef::new(self.format, self.rows, self.cols, self.data.bytes()).ok()
    }
}

impl std::fmt::Debug for QuantizedTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "QuantizedTensor({} {} [{}, {}])", self.name, self.format, self.rows, self.cols)
    }
}

/// A matrix in blocks: a range of a mapped file, or memory of its own.
#[derive(Clone)]
pub struct BlockTensor {
    name: Arc<str>,
    format: BlockFormat,
    rows: usize,
    cols: usize,
    data: SharedBytes,
}

impl BlockTensor {
    /// `None` unless `data` has the bytes of such a matrix.
    pub fn new(name: &str, format: BlockFormat, rows: usize, cols: usize, data: SharedBytes) -> Option<Self> {
        let fits = BlocksRef::new(format, rows, cols, data.bytes()).is_ok();
        fits.then(|| Self { name: name.into(), format, rows, cols, data })
    }

    /// Number of rows (outputs).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns (inputs).
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How it is stored.
    pub fn format(&self) -> BlockFormat {
        self.format
    }

    /// The rows `range`, sharing the memory. `None` if they are not all there.
    fn rows_of(&self, range: Range<usize>) -> Option<Self> {
        if range.start > range.end || range.end > self.rows {
            return None;
        }
        let row = self.format.bytes(self.cols)?;
        let data = self.data.slice(range.start * row..range.end * row);
        Self::new(&self.name, self.format, range.len(), self.cols, data)
    }

    /// A view for the kernels. `None` never comes: the length was checked.
    pub fn matrix(&self) -> Option<BlocksRef<'_>> {
        BlocksRef::new(self.format, self.rows, self.cols, self.data.bytes()).ok()
    }

    /// A copy for products of integers, as [`kernels::repack`] makes it. `None` never comes: the length was checked.
    pub fn repacked(&self, pool: &ThreadPool) -> Option<QuantizedTensor> {
        let format = QuantizedFormat::from(self.format);
        let mut bytes = vec![0; format.bytes(self.rows, self.cols)?];
        kernels::repack(pool, self.matrix()?, &mut bytes);
        QuantizedTensor::new(&self.name, format, self.rows, self.cols, SharedBytes::owned(bytes))
    }

    /// A copy with elements of type `dtype`: exact in f32, else rounded to nearest-even. `None` never comes: the length was checked.
    pub fn dequantized(&self, dtype: DType, pool: &ThreadPool) -> Option<Tensor> {
        // Some rows at a time, so that there is not a whole copy in f32 beside the one that is wanted.
        const PART: usize = 4 << 20;
        let Self { format, rows, cols, .. } = *self;
        let row_bytes = format.bytes(cols)?;
        let mut bytes = vec![0; rows * cols * dtype.size()];
        if !bytes.is_empty() {
            let part_rows = (PART / cols).clamp(1, rows);
            let mut weights = vec![0.0; part_rows * cols];
            let sources = self.data.bytes().chunks(part_rows * row_bytes);
            for (source, target) in sources.zip(bytes.chunks_mut(part_rows * cols * dtype.size())) {
                let weights = weights.get_mut(..target.len() / dtype.size())?;
                let part = BlocksRef::new(format, weights.len() / cols, cols, source).ok()?;
                kernels::dequantize(pool, part, weights);
                kernels::narrow(weights, dtype, target);
            }
        }
        Tensor::from_bytes(&self.name, dtype, vec![rows, cols], bytes)
    }
}

impl std::fmt::Debug for BlockTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BlockTensor({} {} [{}, {}])", self.name, self.format, self.rows, self.cols)
    }
}
