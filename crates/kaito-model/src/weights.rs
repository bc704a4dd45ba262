//! A model's weights, each a view of the mapped checkpoint or of a file of quantised weights.

use std::sync::Arc;

use kaito_kernels::{MappedFile, Quantization, QuantizedRef};

use crate::checkpoint::{SharedBytes, Tensor};

/// The weights of a whole model.
#[derive(Debug, Clone)]
pub struct ModelWeights {
    /// `vocab_size` rows of `hidden_size`; Meta's shards cut it by columns.
    pub embedding: Linear,
    /// One entry a layer, first layer first.
    pub layers: Vec<LayerWeights>,
    /// Normalisation before the output head.
    pub final_norm: NormWeights,
    /// Output head, `hidden_size` to `vocab_size`; the embedding itself where the two are tied.
    pub head: Linear,
}

impl ModelWeights {
    /// The mapped files that matrices lie in, each once.
    pub fn mapped_files(&self) -> Vec<Arc<MappedFile>> {
        let layers =
            self.layers.iter().flat_map(|layer| [&layer.qkv, &layer.attention_output, &layer.mlp_in, &layer.mlp_out]);
        let mut files: Vec<Arc<MappedFile>> = Vec::new();
        for part in [&self.embedding, &self.head].into_iter().chain(layers).flat_map(|linear| &linear.parts) {
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

/// Weight and bias of a normalisation, in f32.
#[derive(Debug, Clone)]
pub struct NormWeights {
    /// `hidden_size` factors.
    pub weight: Vec<f32>,
    /// `hidden_size` terms, for layer norm.
    pub bias: Option<Vec<f32>>,
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
}

impl Weight {
    /// The bytes that are read when it is used.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Weight::Plain(tensor) => tensor.bytes(),
            Weight::Quantized(tensor) => tensor.data.bytes(),
        }
    }

    /// The mapped file that the bytes lie in, unless they lie in memory of their own.
    pub fn file(&self) -> Option<&Arc<MappedFile>> {
        match self {
            Weight::Plain(tensor) => tensor.file(),
            Weight::Quantized(tensor) => tensor.data.file(),
        }
    }

    /// The tensor, unless it is quantised.
    pub fn plain(&self) -> Option<&Tensor> {
        match self {
            Weight::Plain(tensor) => Some(tensor),
            Weight::Quantized(_) => None,
        }
    }

    /// Its name in the checkpoint.
    pub fn name(&self) -> &str {
        match self {
            Weight::Plain(tensor) => tensor.name(),
            Weight::Quantized(tensor) => &tensor.name,
        }
    }

    /// What it is held in, for people: `bf16` or `int4`, say.
    pub fn precision(&self) -> String {
        match self {
            Weight::Plain(tensor) => tensor.dtype().to_string(),
            Weight::Quantized(tensor) => tensor.quantization.to_string(),
        }
    }

    /// Number of weights.
    pub fn elements(&self) -> usize {
        match self {
            Weight::Plain(tensor) => tensor.elements(),
            Weight::Quantized(tensor) => tensor.rows * tensor.cols,
        }
    }
}

impl From<Tensor> for Weight {
    fn from(tensor: Tensor) -> Self {
        Weight::Plain(tensor)
    }
}

/// A quantised matrix: a range of a mapped file, or memory of its own.
#[derive(Clone)]
pub struct QuantizedTensor {
    name: Arc<str>,
    quantization: Quantization,
    rows: usize,
    cols: usize,
    data: SharedBytes,
}

impl QuantizedTensor {
    /// `None` unless `data` has the bytes of such a matrix.
    pub fn new(name: &str, quantization: Quantization, rows: usize, cols: usize, data: SharedBytes) -> Option<Self> {
        let fits = quantization.bytes(rows, cols) == Some(data.len());
        fits.then(|| Self { name: name.into(), quantization, rows, cols, data })
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
    pub fn quantization(&self) -> Quantization {
        self.quantization
    }

    /// A view for the kernels. `None` never comes: the length was checked.
    pub fn matrix(&self) -> Option<QuantizedRef<'_>> {
        QuantizedRef::new(self.quantization, self.rows, self.cols, self.data.bytes()).ok()
    }
}

impl std::fmt::Debug for QuantizedTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "QuantizedTensor({} {} [{}, {}])", self.name, self.quantization, self.rows, self.cols)
    }
}
