//! Quantisation of a model's weights while it loads, once: the result is kept in a file, which the next start maps.
//!
//! The matrices of the layers get the precision that is asked for, with a scale for each quantisation group of 64 weights. The
//! output head gets 8 bits: it is a few percent of a model, and its errors go into the logits as they are. Embeddings, norms and
//! biases stay: a step reads little of them.

mod cache_file;
mod key;

use std::path::Path;

use kaito_kernels::{self as kernels, MatrixRef, Quantization, ThreadPool};

use self::cache_file::{CacheFile, Layout};
use crate::Error;
use kaito_model::{
    checkpoint::{SharedBytes, Tensor},
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
    source: Tensor,
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
        for (part, tensor) in parts_mut(self.quantization, weights).zip(tensors) {
            part.weight = Weight::Quantized(tensor);
        }
        Ok(())
    }

    /// Bytes of `weights` when they are quantised.
    pub(crate) fn bytes(quantization: Quantization, weights: &ModelWeights) -> u64 {
        let count = |(kind, linear): (LinearKind, &Linear)| -> u64 {
            let Some(quantization) = of_linear(quantization, kind) else { return 0 };
            let parts = linear.parts.iter().filter_map(|part| match &part.weight {
                Weight::Plain(tensor) => dims(tensor).and_then(|(rows, cols)| quantization.bytes(rows, cols)),
                Weight::Quantized(tensor) => quantization.bytes(tensor.rows(), tensor.cols()),
            });
            parts.map(|bytes| bytes as u64).sum()
        };
        weights.linears().map(count).sum()
    }

    fn plan(&self, weights: &ModelWeights) -> Result<Vec<Matrix>, Error> {
        let mut matrices = Vec::new();
        for (kind, linear) in weights.linears() {
            let Some(quantization) = of_linear(self.quantization, kind) else { continue };
            for part in &linear.parts {
                let Weight::Plain(source) = &part.weight else { continue };
                let (rows, cols, bytes) = dims(source)
                    .and_then(|(rows, cols)| Some((rows, cols, quantization.bytes(rows, cols)?)))
                    .ok_or_else(|| Error::Load(format!("{source:?} is no matrix, so it can't be quantised")))?;
                matrices.push(Matrix { source: source.clone(), quantization, rows, cols, bytes });
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
        let view = MatrixRef::new(source.dtype(), *rows, *cols, source.bytes())
            .unwrap_or_else(|error| unreachable!("a tensor has the bytes of its shape: {error}"));
        kernels::quantize(self.pool, *quantization, view, &mut target);
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

fn dims(tensor: &Tensor) -> Option<(usize, usize)> {
    match *tensor.shape() {
        [rows, cols] => Some((rows, cols)),
        _ => None,
    }
}

/// How a linear map is quantised where `quantization` is asked for; `None` where it is not.
fn of_linear(quantization: Quantization, kind: LinearKind) -> Option<Quantization> {
    match kind {
        LinearKind::Embedding => None,
        LinearKind::Qkv | LinearKind::AttentionOutput | LinearKind::MlpIn | LinearKind::MlpOut => Some(quantization),
        LinearKind::Head => Some(Quantization::Int8),
    }
}

/// The matrices that are quantised where `quantization` is asked for and are not quantised yet, in the order of
/// [`ModelWeights::linears`].
fn parts_mut(quantization: Quantization, weights: &mut ModelWeights) -> impl Iterator<Item = &mut LinearPart> {
    let linears = weights.linears_mut().filter(move |(kind, _)| of_linear(quantization, *kind).is_some());
    linears.flat_map(|(_, linear)| &mut linear.parts).filter(|part| matches!(part.weight, Weight::Plain(_)))
}

#[cfg(test)]
mod error_tests;
#[cfg(test)]
mod tests;
