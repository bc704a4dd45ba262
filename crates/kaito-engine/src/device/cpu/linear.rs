//! Linear maps on the processor: matrices that were checked when they were loaded, and their products.

use std::sync::Arc;

use kaito_kernels::{self as kernels, MatrixRef, QuantizedInput, Rows, RowsMut, ThreadPool, TiledInput, Write};

use super::NAME;
use crate::device::{DeviceError, DeviceErrorKind};
use kaito_model::{
    checkpoint::Tensor,
    weights::{Linear, LinearPart, QuantizedTensor, Weight},
};

/// A linear map whose matrices are known to be such, and to fit it.
pub struct CpuLinear {
    pub(super) out_features: usize,
    pub(super) in_features: usize,
    pub(super) parts: Vec<CpuPart>,
    bias: Option<Vec<f32>>,
}

pub(super) struct CpuPart {
    pub matrix: CpuMatrix,
    output_offset: usize,
    pub input_offset: usize,
}

pub(super) enum CpuMatrix {
    Plain(PlainMatrix),
    Quantized(QuantizedTensor),
}

pub(super) struct PlainMatrix {
    tensor: Tensor,
    rows: usize,
    cols: usize,
}

impl PlainMatrix {
    pub fn view(&self) -> MatrixRef<'_> {
        MatrixRef { dtype: self.tensor.dtype(), rows: self.rows, cols: self.cols, data: self.tensor.bytes() }
    }
}

impl CpuLinear {
    /// Checks a linear map.
    pub(super) fn new(linear: Linear) -> Result<Self, DeviceError> {
        let Linear { out_features, in_features, parts, bias } = linear;
        let parts = parts.into_iter().map(|part| CpuPart::new(part, (out_features, in_features)));
        let mut parts = parts.collect::<Result<Vec<_>, _>>()?;
        // Of the parts that share an output, the first replaces what the output holds and the others add to it.
        parts.sort_by_key(|part| (part.output_offset, part.input_offset));
        Ok(Self { out_features, in_features, parts, bias })
    }
}

impl CpuPart {
    fn new(part: LinearPart, linear: (usize, usize)) -> Result<Self, DeviceError> {
        let (out_features, in_features) = linear;
        let LinearPart { weight, output_offset, input_offset } = part;
        let described = match &weight {
            Weight::Plain(tensor) => format!("{} of shape {:?}", tensor.name(), tensor.shape()),
            Weight::Quantized(tensor) => format!("{} of shape {:?}", weight.name(), [tensor.rows(), tensor.cols()]),
        };
        let (matrix, rows, cols) = match weight {
            Weight::Plain(tensor) => match *tensor.shape() {
                [rows, cols] => (CpuMatrix::Plain(PlainMatrix { tensor, rows, cols }), rows, cols),
                _ => return Err(unsupported(format!("{described} is no matrix"))),
            },
            Weight::Quantized(tensor) => {
                let (rows, cols) = (tensor.rows(), tensor.cols());
                (CpuMatrix::Quantized(tensor), rows, cols)
            }
        };
        if output_offset + rows > out_features || input_offset + cols > in_features {
            return Err(unsupported(format!("{described} does not fit a map of {in_features} to {out_features}")));
        }
        Ok(Self { matrix, output_offset, input_offset })
    }
}

/// Computes linear maps, in memory that is taken once.
pub(super) struct Products {
    pub threads: Arc<ThreadPool>,
    /// The first failure of the step.
    pub error: Option<DeviceError>,
    /// Room for the activations of one linear map, and for their quantised form.
    tiled_input: TiledInput,
    quantized_input: QuantizedInput,
}

impl Products {
    pub fn new(threads: Arc<ThreadPool>) -> Self {
        Self { threads, error: None, tiled_input: TiledInput::default(), quantized_input: QuantizedInput::default() }
    }

    /// Makes room for `rows` rows of up to `widest` activations.
    pub fn reserve(&mut self, rows: usize, widest: usize) {
        self.tiled_input.reserve(rows, widest);
        self.quantized_input.reserve(rows, widest);
    }

    /// Keeps the first failure of a step.
    pub fn fail(&mut self, cause: String) {
        self.error.get_or_insert_with(|| unsupported(cause));
    }

    /// `output[t] (+)= linear(input[t])`.
    pub fn compute(&mut self, linear: &CpuLinear, count: usize, input: &[f32], output: &mut [f32], write: Write) {
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
            match &part.matrix {
                CpuMatrix::Plain(matrix) => {
                    let weight = matrix.view();
                    let wanted = (part.input_offset, weight.cols);
                    if tiled.replace(wanted) != Some(wanted) {
                        self.tiled_input.tile(&self.threads, count, weight.cols, input);
                    }
                    kernels::matmul(&self.threads, &self.tiled_input, weight, output, write);
                }
                CpuMatrix::Quantized(tensor) => {
                    let Some(weight) = tensor.matrix() else {
                        self.fail(format!("{tensor:?} is no quantised matrix"));
                        continue;
                    };
                    let wanted = (weight.quantization(), part.input_offset, weight.cols());
                    if quantized.replace(wanted) != Some(wanted) {
                        self.quantized_input.quantize(
                            &self.threads,
                            weight.quantization(),
                            count,
                            weight.cols(),
                            input,
                        );
                    }
                    kernels::quantized_matmul(&self.threads, &self.quantized_input, weight, output, write);
                }
            }
        }
    }
}

pub(super) fn rows(data: &[f32], stride: usize, offset: usize) -> Rows<'_> {
    Rows { data, stride, offset }
}

pub(super) fn rows_mut(data: &mut [f32], stride: usize, offset: usize) -> RowsMut<'_> {
    RowsMut { data, stride, offset }
}

pub(super) fn unsupported(cause: String) -> DeviceError {
    DeviceError::new(DeviceErrorKind::Unsupported, NAME, cause)
}

#[cfg(test)]
mod tests {
    use kaito_kernels::{DType, Quantization};
    use kaito_model::checkpoint::SharedBytes;

    use super::*;

    fn plain(shape: &[usize]) -> Weight {
        let bytes = vec![0; shape.iter().product::<usize>() * 4];
        Tensor::from_bytes("w", DType::F32, shape.to_vec(), bytes).unwrap().into()
    }

    fn quantized(rows: usize, cols: usize) -> Weight {
        let bytes = vec![0; Quantization::Int8.bytes(rows, cols).unwrap()];
        let tensor = QuantizedTensor::new("w", Quantization::Int8, rows, cols, SharedBytes::owned(bytes));
        Weight::Quantized(tensor.unwrap())
    }

    fn load(weight: Weight, output_offset: usize, input_offset: usize) -> Result<(), String> {
        let parts = vec![LinearPart { weight, output_offset, input_offset }];
        let linear = Linear { out_features: 6, in_features: 4, parts, bias: None };
        CpuLinear::new(linear).map(drop).map_err(|error| {
            assert_eq!(error.kind, DeviceErrorKind::Unsupported);
            error.to_string()
        })
    }

    #[test]
    fn what_is_no_matrix_or_does_not_fit_its_map_is_refused_by_name() {
        assert_eq!(load(plain(&[6, 4]), 0, 0), Ok(()));
        assert_eq!(load(quantized(2, 3), 4, 1), Ok(()));
        for (weight, offsets, refusal) in [
            (plain(&[24]), (0, 0), "cpu: w of shape [24] is no matrix"),
            (plain(&[6, 2, 2]), (0, 0), "cpu: w of shape [6, 2, 2] is no matrix"),
            (plain(&[6, 4]), (1, 0), "cpu: w of shape [6, 4] does not fit a map of 4 to 6"),
            (quantized(2, 4), (0, 1), "cpu: w of shape [2, 4] does not fit a map of 4 to 6"),
        ] {
            assert_eq!(load(weight, offsets.0, offsets.1), Err(refusal.to_owned()));
        }
    }
}
