//! Linear maps on the processor: matrices that were checked when they were loaded, and their products.

use std::sync::Arc;

use kaito_kernels::{
    self as kernels, BlocksRef, Compute, DType, Grouping, InputForm, MatrixLengthError, MatrixRef, QuantizedInput,
    Rows, RowsMut, ThreadPool, TiledInput, Write,
};

use super::{NAME, buffer::CpuBuffer};
use crate::device::{DeviceError, DeviceErrorKind, Packed};
use kaito_model::{
    checkpoint::Tensor,
    weights::{BlockTensor, Linear, LinearPart, QuantizedTensor, Weight},
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
    Blocks(BlockTensor),
}

pub(super) struct PlainMatrix {
    tensor: Tensor,
    rows: usize,
    cols: usize,
}

impl PlainMatrix {
    pub fn view(&self) -> Result<MatrixRef<'_>, MatrixLengthError> {
        MatrixRef::new(self.tensor.dtype(), self.rows, self.cols, self.tensor.bytes())
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
            Weight::Blocks(tensor) => format!("{} of shape {:?}", weight.name(), [tensor.rows(), tensor.cols()]),
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
            Weight::Blocks(tensor) => {
                let (rows, cols) = (tensor.rows(), tensor.cols());
                (CpuMatrix::Blocks(tensor), rows, cols)
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
    packed: Packed,
    /// Room for what SwiGLU makes of activations that are not quantised.
    activated: Vec<f32>,
    /// Whether it has what SwiGLU makes of the input of the present map.
    is_activated: bool,
    /// Room for the activations of one linear map, and for their quantised form.
    tiled_input: TiledInput,
    /// One for each way to quantise activations that the weights may ask for.
    quantized_inputs: Vec<QuantizedInput>,
}

impl Products {
    /// Products with weights as `packed` says.
    pub fn new(threads: Arc<ThreadPool>, packed: Packed) -> Self {
        Self {
            threads,
            error: None,
            packed,
            activated: Vec::new(),
            is_activated: false,
            tiled_input: TiledInput::default(),
            quantized_inputs: match packed.compute {
                // A file of blocks may mix formats.
                Compute::Int8 => vec![Grouping::Subgroups, Grouping::Unrotated],
                Compute::Exact | Compute::Bf16 => vec![Grouping::Rotated],
            }
            .into_iter()
            .map(QuantizedInput::new)
            .collect(),
        }
    }

    /// The form of activations for weights that are stored in this type. Where weights are asked for in f32, narrower ones are
    /// multiplied by the kernels of f32: that gives the bits of a widened copy.
    fn form(&self, stored: DType) -> InputForm {
        let weights = if self.packed.dtype == DType::F32 { DType::F32 } else { stored };
        InputForm::of(self.packed.compute, weights)
    }

    /// Makes room for `rows` rows of up to `widest` activations, and of `gated` that come out of SwiGLU.
    pub fn reserve(&mut self, rows: usize, widest: usize, gated: usize) -> Result<(), DeviceError> {
        for weights in [DType::F32, DType::Bf16, DType::F16] {
            self.tiled_input.reserve(self.form(weights), rows, widest);
        }
        for input in &mut self.quantized_inputs {
            input.reserve(rows, widest);
        }
        self.activated = zeros(rows * gated)?;
        Ok(())
    }

    /// Keeps the first failure of a step.
    pub fn fail(&mut self, cause: String) {
        self.error.get_or_insert_with(|| unsupported(cause));
    }

    /// Applies SwiGLU to the input of a linear map, where that is yet to be done.
    fn activate(&mut self, linear: &CpuLinear, count: usize, input: &CpuBuffer) {
        if input.is_gated() && !self.is_activated {
            let width = linear.in_features;
            let to = rows_mut(&mut self.activated, width, 0);
            kernels::swiglu(&self.threads, count, input.gate_up(width), width, to);
            self.is_activated = true;
        }
    }

    /// What the map that was computed last multiplied: its input, or what SwiGLU made of it.
    pub fn operand<'a>(&'a mut self, linear: &CpuLinear, count: usize, input: &'a CpuBuffer) -> &'a [f32] {
        self.activate(linear, count, input);
        if self.is_activated { &self.activated } else { input.values() }
    }

    /// `output[t] (+)= linear(input[t])`.
    pub fn compute(&mut self, linear: &CpuLinear, count: usize, input: &CpuBuffer, output: &mut [f32], write: Write) {
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
        self.is_activated = false;
        let width = linear.in_features;
        for part in &linear.parts {
            let first = written != Some(part.output_offset);
            written = Some(part.output_offset);
            let write = if first && linear.bias.is_none() { write } else { Write::Add };
            let output = rows_mut(output, linear.out_features, part.output_offset);
            match &part.matrix {
                CpuMatrix::Plain(_) | CpuMatrix::Blocks(_) => {
                    let weight = match FloatMatrix::of(&part.matrix) {
                        Ok(weight) => weight,
                        Err(error) => {
                            self.fail(error);
                            continue;
                        }
                    };
                    let form = self.form(weight.dtype());
                    let wanted = (form, part.input_offset, weight.cols());
                    if tiled.replace(wanted) != Some(wanted) {
                        self.activate(linear, count, input);
                        let values: &[f32] = if self.is_activated { &self.activated } else { input.values() };
                        let input = rows(values, width, part.input_offset);
                        self.tiled_input.tile(&self.threads, form, count, weight.cols(), input);
                    }
                    match weight {
                        FloatMatrix::Plain(weight) => {
                            kernels::matmul(&self.threads, &self.tiled_input, weight, output, write);
                        }
                        FloatMatrix::Blocks(weight) => {
                            kernels::block_matmul(&self.threads, &self.tiled_input, weight, output, write);
                        }
                    }
                }
                CpuMatrix::Quantized(tensor) => {
                    let Some(weight) = tensor.matrix() else {
                        self.fail(format!("{tensor:?} is no quantised matrix"));
                        continue;
                    };
                    let (first, cols, grouping) = (part.input_offset, weight.cols(), weight.format().grouping());
                    let Some(target) = self.quantized_inputs.iter_mut().find(|input| input.grouping() == grouping)
                    else {
                        self.fail(format!("{tensor:?} is multiplied by activations that are quantised otherwise"));
                        continue;
                    };
                    let wanted = (first, cols, grouping);
                    let threads = &self.threads;
                    if quantized.replace(wanted) != Some(wanted) {
                        if input.is_gated() {
                            let gate_up = input.gate_up(width);
                            target.quantize_swiglu(threads, count, gate_up, width, first..first + cols);
                        } else {
                            target.quantize(threads, count, cols, rows(input.values(), width, first));
                        }
                    }
                    kernels::quantized_matmul(threads, target, weight, output, write);
                }
            }
        }
    }
}

/// A matrix whose products do not quantise activations.
enum FloatMatrix<'a> {
    Plain(MatrixRef<'a>),
    Blocks(BlocksRef<'a>),
}

impl<'a> FloatMatrix<'a> {
    fn of(matrix: &'a CpuMatrix) -> Result<Self, String> {
        match matrix {
            CpuMatrix::Plain(matrix) => matrix.view().map(Self::Plain).map_err(|error| error.to_string()),
            CpuMatrix::Blocks(tensor) => {
                tensor.matrix().map(Self::Blocks).ok_or_else(|| format!("{tensor:?} is no matrix of blocks"))
            }
            CpuMatrix::Quantized(tensor) => Err(format!("{tensor:?} is quantised")),
        }
    }

    /// The type that its products compute with: blocks stand for numbers in f32.
    fn dtype(&self) -> DType {
        match self {
            Self::Plain(matrix) => matrix.dtype(),
            Self::Blocks(_) => DType::F32,
        }
    }

    fn cols(&self) -> usize {
        match self {
            Self::Plain(matrix) => matrix.cols(),
            Self::Blocks(matrix) => matrix.cols(),
        }
    }
}

pub(super) fn rows(data: &[f32], stride: usize, offset: usize) -> Rows<'_> {
    Rows { data, stride, offset }
}

pub(super) fn rows_mut(data: &mut [f32], stride: usize, offset: usize) -> RowsMut<'_> {
    RowsMut { data, stride, offset }
}

/// `len` zeros that take no memory before they are written.
pub(super) fn zeros(len: usize) -> Result<Vec<f32>, DeviceError> {
    kernels::zeros(len)
        .ok_or_else(|| out_of_memory(format!("no room for {} MiB of memory", (len * size_of::<f32>()) >> 20)))
}

pub(super) fn out_of_memory(cause: String) -> DeviceError {
    DeviceError::new(DeviceErrorKind::OutOfMemory, NAME, cause)
}

pub(super) fn unsupported(cause: String) -> DeviceError {
    DeviceError::new(DeviceErrorKind::Unsupported, NAME, cause)
}

#[cfg(test)]
mod tests {
    use kaito_kernels::Quantization;
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
