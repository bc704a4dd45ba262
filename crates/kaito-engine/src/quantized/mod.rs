//! Quantisation of a model's weights while it loads, once: the result is kept in a file, which the next start maps.
//!
//! The matrices of the layers get the precision that is asked for, with a scale for each quantisation group of 128 weights. The
//! output head gets 8 bits: it is a few percent of a model, and its errors go into the logits as they are. So do the value projections,
//! where they are matrices of their own: they are 2 to 8 percent of a layer and make a third of what 4 bits cost, see `docs/precision.md`.
//! Embeddings, norms and biases stay: a step reads little of them.

mod cache_file;
mod key;

use std::path::Path;

use kaito_kernels::{self as kernels, DType, MatrixRef, Quantization, ThreadPool};

use self::cache_file::{CacheFile, Layout};
use crate::Error;
use kaito_model::{
    checkpoint::SharedBytes,
    config::LinearKind,
    weights::{Linear, LinearPart, ModelWeights, QuantizedTensor, Weight},
};

/// How a model's weights are quantised.
pub(crate) struct Quantize<'a> {
    pub quantization: Quantization,
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

impl Quantize<'_> {
    /// Quantises `weights`, or finds them quantised in a file.
    ///
    /// # Errors
    /// For weights that are no matrices. A file that can't be written or is damaged costs time and memory, nothing else.
    pub(crate) fn apply(&self, weights: &mut ModelWeights) -> Result<(), Error> {
        let matrices = self.plan(weights)?;
        let tensors = self.find_or_make(&matrices);
        for (part, tensor) in parts_mut(weights).zip(tensors) {
            part.weight = Weight::Quantized(tensor);
        }
        Ok(())
    }

    /// Bytes of `weights` when they are quantised.
    pub(crate) fn bytes(quantization: Quantization, weights: &ModelWeights) -> u64 {
        let values = first_value(weights);
        let count = |(kind, linear): (LinearKind, &Linear)| -> u64 {
            let parts = linear.parts.iter().filter_map(|part| {
                let quantization = of_part(quantization, kind, part, values)?;
                match &part.weight {
                    Weight::Quantized(tensor) => quantization.bytes(tensor.rows(), tensor.cols()),
                    source => dims(source).and_then(|(rows, cols)| quantization.bytes(rows, cols)),
                }
            });
            parts.map(|bytes| bytes as u64).sum()
        };
        weights.linears().map(count).sum()
    }

    fn plan(&self, weights: &ModelWeights) -> Result<Vec<Matrix>, Error> {
        let (mut matrices, values) = (Vec::new(), first_value(weights));
        for (kind, linear) in weights.linears() {
            for part in &linear.parts {
                let Some(quantization) = of_part(self.quantization, kind, part, values) else { continue };
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
        Ok(matrices)
    }

    fn find_or_make(&self, matrices: &[Matrix]) -> Vec<QuantizedTensor> {
        let mib = matrices.iter().map(|matrix| matrix.bytes).sum::<usize>() >> 20;
        let Some(folder) = self.cache else {
            tracing::info!(quantization = %self.quantization, mib, "quantising the weights; they are not kept in a file");
            return self.make_in_memory(matrices);
        };
        let layout = Layout::of(matrices);
        let file = CacheFile::new(folder, self.family, self.quantization, key::of(matrices), &layout);
        let path = file.path().display();
        match file.open(self.pool, self.fits, self.progress) {
            Ok(Some(data)) => {
                tracing::info!(quantization = %self.quantization, mib, file = %path, "the weights are quantised already");
                return tensors(matrices, data);
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(file = %path, %error, "the quantised weights can't be used, making them again")
            }
        }
        tracing::info!(
            quantization = %self.quantization, mib, file = %path,
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

/// How a part of a linear map is quantised where `quantization` is asked for; `None` where it is not. `first_value` is that of
/// [`first_value`].
fn of_part(
    quantization: Quantization,
    kind: LinearKind,
    part: &LinearPart,
    first_value: usize,
) -> Option<Quantization> {
    match kind {
        LinearKind::Embedding => None,
        LinearKind::Qkv if part.output_offset >= first_value => Some(Quantization::Int8),
        LinearKind::Qkv | LinearKind::AttentionOutput | LinearKind::MlpIn | LinearKind::MlpOut => Some(quantization),
        LinearKind::Head => Some(Quantization::Int8),
    }
}

/// Where values begin among the outputs of a layer's queries, keys and values: there are as many queries as attention has outputs, and
/// keys and values share the rest.
fn first_value(weights: &ModelWeights) -> usize {
    let first = weights.layers.first();
    first.map_or(usize::MAX, |layer| layer.qkv.out_features.midpoint(layer.attention_output.in_features))
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
