//! Quantisation of a model's weights while it loads, once: the result is kept in a file, which the next start maps.
//!
//! The matrices of the layers get the precision that is asked for. The output head gets 8 bits: it is a few percent of
//! a model, and its errors go into the logits as they are. Embeddings, norms and biases stay: a step reads little of them.

mod cache_file;
mod key;

use std::path::Path;

use kaito_kernels::{self as kernels, MatrixRef, Quantization, ThreadPool};

use self::cache_file::{CacheFile, Layout};
use crate::Error;
use kaito_model::{
    checkpoint::{SharedBytes, Tensor},
    weights::{Linear, LinearPart, ModelWeights, QuantizedTensor, Weight},
};

/// How a model's weights are quantised.
pub(crate) struct Quantize<'a> {
    pub quantization: Quantization,
    /// Folder of the files that are kept; none are where it is `None`.
    pub cache: Option<&'a Path>,
    /// For the file's name: whoever looks into the folder wants to know what lies there.
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
        for (part, tensor) in parts_mut(weights).zip(tensors) {
            part.weight = Weight::Quantized(tensor);
        }
        Ok(())
    }

    /// Bytes of `weights` when they are quantised.
    pub(crate) fn bytes(quantization: Quantization, weights: &mut ModelWeights) -> u64 {
        let layers = weights.layers.len();
        let count = |(i, linear): (usize, &mut Linear)| -> u64 {
            let quantization = of_linear(quantization, i, layers);
            let parts = linear.parts.iter().filter_map(|part| match &part.weight {
                Weight::Plain(tensor) => dims(tensor).and_then(|(rows, cols)| quantization.bytes(rows, cols)),
                Weight::Quantized(tensor) => quantization.bytes(tensor.rows(), tensor.cols()),
            });
            parts.map(|bytes| bytes as u64).sum()
        };
        linears_mut(weights).enumerate().map(count).sum()
    }

    fn plan(&self, weights: &mut ModelWeights) -> Result<Vec<Matrix>, Error> {
        let layers = weights.layers.len();
        let mut matrices = Vec::new();
        for (i, linear) in linears_mut(weights).enumerate() {
            for part in &linear.parts {
                let Weight::Plain(source) = &part.weight else { continue };
                let quantization = of_linear(self.quantization, i, layers);
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

/// What is quantised: the layers' linear maps, four in each, and the head at the end.
fn linears_mut(weights: &mut ModelWeights) -> impl Iterator<Item = &mut Linear> {
    let layers = weights
        .layers
        .iter_mut()
        .flat_map(|layer| [&mut layer.qkv, &mut layer.attention_output, &mut layer.mlp_in, &mut layer.mlp_out]);
    layers.chain([&mut weights.head])
}

fn of_linear(quantization: Quantization, i: usize, layers: usize) -> Quantization {
    if i < 4 * layers { quantization } else { Quantization::Int8 }
}

/// The parts of [`linears_mut`] that are not quantised yet.
fn parts_mut(weights: &mut ModelWeights) -> impl Iterator<Item = &mut LinearPart> {
    linears_mut(weights).flat_map(|linear| &mut linear.parts).filter(|part| matches!(part.weight, Weight::Plain(_)))
}

#[cfg(test)]
mod error_tests;
#[cfg(test)]
mod tests;
