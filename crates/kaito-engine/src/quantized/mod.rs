//! Quantisation of a model's weights while it loads, once: the result is kept in a file, which the next start maps.
//!
//! The matrices of the layers get the precision that is asked for, with a scale for each quantisation group of 128 weights. The
//! output head gets 8 bits: it is a few percent of a model, and its errors go into the logits as they are. So do the value projections:
//! they are 2 to 8 percent of a layer and make a third of what 4 bits cost, see `docs/precision.md`. Where a model has them in one matrix
//! with queries and keys, its rows are divided.
//! Embeddings, norms and biases stay: a step reads little of them.

mod cache_file;
mod key;

use std::{ops::Range, path::Path};

use kaito_kernels::{self as kernels, DType, MatrixRef, Quantization, ThreadPool};

use self::cache_file::{CacheFile, Layout};
use crate::Error;
use kaito_model::{
    checkpoint::SharedBytes,
    config::{AttentionSpec, LinearKind, QkvLayout},
    weights::{LinearPart, ModelWeights, QuantizedTensor, Weight},
};

/// How a model's weights are quantised.
pub(crate) struct Quantize<'a> {
    pub plan: Plan,
    /// Folder of the files that are kept; none are where it is `None`.
    pub cache: Option<&'a Path>,
    /// For the file's name, so that a person who looks into the folder sees what lies there.
    pub family: &'static str,
    pub pool: &'a ThreadPool,
    /// Whether the memory is enough for all of it, so that it is read and checked as a whole.
    pub fits: bool,
    /// Hears the part that is done, from 0 to 1.
    pub progress: &'a (dyn Fn(f32) + Sync),
}

/// A matrix and what becomes of it.
struct Matrix {
    source: Weight,
    quantization: Quantization,
    rows: usize,
    cols: usize,
    /// Bytes when it is quantised.
    bytes: usize,
}

/// What becomes of each matrix of a model.
pub(crate) struct Plan {
    quantization: Quantization,
    /// Those that are quantised, in the order of [`parts_mut`].
    matrices: Vec<Matrix>,
}

impl Plan {
    /// Divides the matrices of `weights` that get two precisions, and says which one each gets; `attention` says which outputs of the
    /// layers' queries, keys and values are values. Matrices that are quantised already stay as they are.
    ///
    /// # Errors
    /// For weights that are no matrices.
    pub(crate) fn new(
        quantization: Quantization,
        attention: &AttentionSpec,
        weights: &mut ModelWeights,
    ) -> Result<Self, Error> {
        let values = values(attention);
        divide(weights, quantization, &values);
        let mut matrices = Vec::new();
        for (kind, linear) in weights.linears() {
            for part in &linear.parts {
                let Some(quantization) = of_part(quantization, kind, part, &values) else { continue };
                if matches!(part.weight, Weight::Quantized(_)) {
                    continue;
                }
                let source = part.weight.clone();
                let (rows, cols, bytes) = dims(&source)
                    .and_then(|(rows, cols)| Some((rows, cols, quantization.bytes(rows, cols)?)))
                    .ok_or_else(|| Error::Load(format!("{source:?} is no matrix, so it can't be quantised")))?;
                matrices.push(Matrix { source, quantization, rows, cols, bytes });
            }
        }
        Ok(Self { quantization, matrices })
    }

    /// Bytes of the matrices when they are quantised.
    pub(crate) fn bytes(&self) -> u64 {
        self.matrices.iter().map(|matrix| matrix.bytes as u64).sum()
    }
}

impl Quantize<'_> {
    /// Quantises `weights`, of which the plan was made, or finds them quantised in a file. A file that can't be written or is damaged
    /// costs time and memory, nothing else.
    pub(crate) fn apply(&self, weights: &mut ModelWeights) {
        let tensors = self.find_or_make();
        for (part, tensor) in parts_mut(weights).zip(tensors) {
            part.weight = Weight::Quantized(tensor);
        }
    }

    fn find_or_make(&self) -> Vec<QuantizedTensor> {
        let Plan { quantization, matrices } = &self.plan;
        let mib = self.plan.bytes() >> 20;
        let Some(folder) = self.cache else {
            tracing::info!(quantization = %quantization, mib, "quantising the weights; they are not kept in a file");
            return self.make_in_memory(matrices);
        };
        let layout = Layout::of(matrices);
        let file = CacheFile::new(folder, self.family, *quantization, key::of(matrices), &layout);
        let path = file.path().display();
        match file.open(self.pool, self.fits, self.progress) {
            Ok(Some(data)) => {
                tracing::info!(quantization = %quantization, mib, file = %path, "the weights are quantised already");
                return tensors(matrices, data);
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(file = %path, %error, "the quantised weights can't be used, making them again")
            }
        }
        tracing::info!(
            quantization = %quantization, mib, file = %path,
            "quantising the weights; the next start finds them in this file"
        );
        let made = file.create(self.pool, self.fits, |write| {
            for (done, matrix) in matrices.iter().enumerate() {
                write(&self.make(matrix))?;
                (self.progress)((done + 1) as f32 / matrices.len() as f32);
            }
            Ok(())
        });
        match made {
            Ok(data) => tensors(matrices, data),
            Err(error) => {
                tracing::warn!(
                    file = %path, %error, mib,
                    "the quantised weights can't be kept in a file: they are made in memory, at every start"
                );
                self.make_in_memory(matrices)
            }
        }
    }

    fn make_in_memory(&self, matrices: &[Matrix]) -> Vec<QuantizedTensor> {
        let data = matrices.iter().enumerate().map(|(done, matrix)| {
            let data = SharedBytes::owned(self.make(matrix));
            (self.progress)((done + 1) as f32 / matrices.len() as f32);
            data
        });
        tensors(matrices, data.collect())
    }

    /// Quantises one matrix. Its source leaves this process's memory, so that what is in memory does not grow.
    fn make(&self, matrix: &Matrix) -> Vec<u8> {
        let mut target = vec![0; matrix.bytes];
        let Matrix { source, quantization, rows, cols, .. } = matrix;
        let widened = match source {
            Weight::Blocks(blocks) => blocks.dequantized(DType::F32, self.pool),
            Weight::Plain(_) | Weight::Quantized(_) => None,
        };
        if let Some(tensor) = widened.as_ref().or_else(|| source.plain()) {
            let view = MatrixRef::new(tensor.dtype(), *rows, *cols, tensor.bytes())
                .unwrap_or_else(|error| unreachable!("a tensor has the bytes of its shape: {error}"));
            kernels::quantize(self.pool, *quantization, view, &mut target);
        }
        source.release();
        target
    }
}

fn tensors(matrices: &[Matrix], data: Vec<SharedBytes>) -> Vec<QuantizedTensor> {
    let tensor = |(matrix, data): (&Matrix, SharedBytes)| {
        QuantizedTensor::new(matrix.source.name(), matrix.quantization, matrix.rows, matrix.cols, data)
    };
    matrices.iter().zip(data).filter_map(tensor).collect()
}

fn dims(weight: &Weight) -> Option<(usize, usize)> {
    match weight {
        Weight::Plain(tensor) => match *tensor.shape() {
            [rows, cols] => Some((rows, cols)),
            _ => None,
        },
        Weight::Blocks(tensor) => Some((tensor.rows(), tensor.cols())),
        Weight::Quantized(tensor) => Some((tensor.rows(), tensor.cols())),
    }
}

/// How a part of a linear map is quantised where `quantization` is asked for; `None` where it is not. `values` are those of
/// [`values`], and a part has nothing else beside them, see [`divide`].
fn of_part(
    quantization: Quantization,
    kind: LinearKind,
    part: &LinearPart,
    values: &[Range<usize>],
) -> Option<Quantization> {
    let is_value = || values.iter().any(|rows| rows.contains(&part.output_offset));
    match kind {
        LinearKind::Embedding => None,
        LinearKind::Qkv if is_value() => Some(Quantization::Int8),
        LinearKind::Qkv | LinearKind::AttentionOutput | LinearKind::MlpIn | LinearKind::MlpOut => Some(quantization),
        LinearKind::Head => Some(Quantization::Int8),
    }
}

/// The outputs of a layer's queries, keys and values that are values, in ascending order: those of all heads together, or of each
/// group of heads.
fn values(attention: &AttentionSpec) -> Vec<Range<usize>> {
    let mut rows: Vec<Range<usize>> = Vec::new();
    for start in QkvLayout::of(attention).value {
        let end = start + attention.head_dim;
        match rows.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => rows.push(start..end),
        }
    }
    rows
}

/// Divides matrices that have values beside queries and keys, where values get another precision. The parts share the memory.
fn divide(weights: &mut ModelWeights, quantization: Quantization, values: &[Range<usize>]) {
    if quantization == Quantization::Int8 {
        return;
    }
    for layer in &mut weights.layers {
        let parts = std::mem::take(&mut layer.qkv.parts);
        layer.qkv.parts = parts.into_iter().flat_map(|part| divided(part, values)).collect();
    }
}

/// A part, cut where values begin and end; whole where it is quantised already.
fn divided(part: LinearPart, values: &[Range<usize>]) -> Vec<LinearPart> {
    let Some((rows, _)) = dims(&part.weight) else { return vec![part] };
    let (first, last) = (part.output_offset, part.output_offset + rows);
    let bounds = values.iter().flat_map(|rows| [rows.start, rows.end]).filter(|at| first < *at && *at < last);
    let mut start = first;
    let pieces = bounds.chain([last]).map(|end| {
        let weight = part.weight.rows(start - first..end - first)?;
        let piece = LinearPart { weight, output_offset: start, input_offset: part.input_offset };
        start = end;
        Some(piece)
    });
    let pieces: Option<Vec<_>> = pieces.collect();
    pieces.unwrap_or_else(|| vec![part])
}

/// The matrices that are quantised and are not quantised yet, in the order of [`ModelWeights::linears`].
fn parts_mut(weights: &mut ModelWeights) -> impl Iterator<Item = &mut LinearPart> {
    let linears = weights.linears_mut().filter(|(kind, _)| *kind != LinearKind::Embedding);
    linears.flat_map(|(_, linear)| &mut linear.parts).filter(|part| !matches!(part.weight, Weight::Quantized(_)))
}

#[cfg(test)]
mod error_tests;
#[cfg(test)]
mod tests;
