//! Products of adapters on the processor, beside those of the linear maps that they change.

use std::sync::Arc;

use kaito_kernels::{
    self as kernels, Compute, DType, InputForm, MatrixRef, Rows, RowsMut, ThreadPool, TiledInput, Write,
};
use kaito_model::{adapter::LowRank, checkpoint::Tensor};

use super::{
    buffer::CpuBuffer,
    linear::{CpuLinear, rows, rows_mut, unsupported, zeros},
};
use crate::device::{Adapted, DeviceError};

/// A product of an adapter whose matrices are known to be such.
pub struct CpuLowRank {
    term: LowRank,
    rank: usize,
    inputs: usize,
    outputs: usize,
}

impl CpuLowRank {
    fn new(term: LowRank) -> Result<Self, DeviceError> {
        match (term.down.shape(), term.up.shape()) {
            (&[rank, inputs], &[outputs, same]) if rank == same && rank > 0 => Ok(Self { rank, inputs, outputs, term }),
            (down, up) => Err(unsupported(format!(
                "{} of shape {down:?} and {} of shape {up:?} are no two matrices of one rank",
                term.down.name(),
                term.up.name()
            ))),
        }
    }
}

/// Computes them, in memory that is taken when the first adapter comes.
#[derive(Default)]
pub(super) struct LowRankProducts {
    /// Rows of the largest step, and the widths of the widest input and output of any linear map.
    room: (usize, usize, usize),
    /// Largest rank of all that came.
    rank: usize,
    /// Inputs of rows that do not lie together.
    gathered: Vec<f32>,
    /// What the first matrices give, as wide as the rank.
    narrow: Vec<f32>,
    /// What the second ones give, for rows that do not lie together.
    wide: Vec<f32>,
    tiled_input: TiledInput,
    tiled_narrow: TiledInput,
}

impl LowRankProducts {
    /// Notes how much room steps need: so many rows, of the widest input and output.
    pub fn note_room(&mut self, rows: usize, input: usize, output: usize) {
        self.room = (rows, input, output);
    }

    /// Checks a product, and makes room for it.
    pub fn load(&mut self, term: LowRank) -> Result<CpuLowRank, DeviceError> {
        let term = CpuLowRank::new(term)?;
        let (rows, input, output) = self.room;
        if self.gathered.is_empty() {
            self.gathered = zeros(rows * input)?;
            self.wide = zeros(rows * output)?;
            self.tiled_input.reserve(form(), rows, input);
        }
        if term.rank > self.rank {
            self.narrow = zeros(rows * term.rank)?;
            self.tiled_narrow.reserve(form(), rows, term.rank);
            self.rank = term.rank;
        }
        Ok(term)
    }

    /// `output[t] += sum of scale * up(down(input[t]))` for each row and the products that its adapter adds to `linear`.
    ///
    /// The bits of a row depend on its own input and adapter alone: those of both kernels do, and rows are only copied otherwise.
    ///
    /// # Errors
    /// Of products that do not fit the map, what does not.
    pub fn add(
        &mut self,
        threads: &Arc<ThreadPool>,
        linear: &CpuLinear,
        adapted: &Adapted<'_, CpuLowRank>,
        input: &CpuBuffer,
        output: &mut [f32],
    ) -> Result<(), String> {
        let (inputs, outputs) = (linear.in_features, linear.out_features);
        for (group, terms) in adapted.groups() {
            let count = group.len();
            let (Some(&first), Some(&last)) = (group.first(), group.last()) else { continue };
            let together = last - first + 1 == count;
            let source = self.inputs(threads, group, together, inputs, input);
            self.tiled_input.tile(threads, form(), count, inputs, source_rows(source, &self.gathered, input, inputs));
            for CpuLowRank { term, rank, inputs: wanted, outputs: given } in terms {
                let (rank, given) = (*rank, *given);
                if *wanted != inputs || term.output_offset + given > outputs {
                    return Err(format!(
                        "{} of {wanted} inputs and {given} outputs from {} on does not fit a map of {inputs} to {outputs}",
                        term.down.name(),
                        term.output_offset
                    ));
                }
                let narrow = self.narrow.get_mut(..count * rank).unwrap_or_default();
                kernels::matmul(
                    threads,
                    &self.tiled_input,
                    view(&term.down, rank, inputs)?,
                    RowsMut::new(narrow, rank),
                    Write::Set,
                );
                narrow.iter_mut().for_each(|value| *value *= term.scale);
                self.tiled_narrow.tile(threads, form(), count, rank, Rows::new(narrow, rank));
                let up = view(&term.up, given, rank)?;
                if together {
                    let output = rows_mut(output, outputs, first * outputs + term.output_offset);
                    kernels::matmul(threads, &self.tiled_narrow, up, output, Write::Add);
                } else {
                    kernels::matmul(threads, &self.tiled_narrow, up, RowsMut::new(&mut self.wide, given), Write::Set);
                    for (sum, row) in self.wide.chunks_exact(given).zip(group) {
                        let at = row * outputs + term.output_offset;
                        let output = output.get_mut(at..at + given).unwrap_or_default();
                        output.iter_mut().zip(sum).for_each(|(out, term)| *out += term);
                    }
                }
            }
        }
        Ok(())
    }

    /// Brings the inputs of a group's rows together, unless they lie so, and applies SwiGLU where that is yet to be done.
    fn inputs(
        &mut self,
        threads: &Arc<ThreadPool>,
        group: &[usize],
        together: bool,
        width: usize,
        input: &CpuBuffer,
    ) -> Source {
        let first = group.first().copied().unwrap_or_default();
        if together && !input.is_gated() {
            return Source::InPlace { first };
        }
        if input.is_gated() {
            let gate_up = input.gate_up(width);
            // One call for rows that follow each other.
            let mut done = 0;
            for run in group.chunk_by(|row, next| row + 1 == *next) {
                let row = run.first().copied().unwrap_or_default();
                let from = Rows { offset: gate_up.offset + row * gate_up.stride, ..gate_up };
                let to = rows_mut(&mut self.gathered, width, done * width);
                kernels::swiglu(threads, run.len(), from, width, to);
                done += run.len();
            }
        } else {
            for (to, row) in self.gathered.chunks_exact_mut(width).zip(group) {
                to.copy_from_slice(&input.values()[row * width..(row + 1) * width]);
            }
        }
        Source::Gathered
    }
}

/// Where the inputs of a group's rows are.
#[derive(Clone, Copy)]
enum Source {
    /// In the input, from this row on.
    InPlace { first: usize },
    /// Brought together.
    Gathered,
}

fn source_rows<'a>(source: Source, gathered: &'a [f32], input: &'a CpuBuffer, width: usize) -> Rows<'a> {
    match source {
        Source::InPlace { first } => rows(input.values(), width, first * width),
        Source::Gathered => rows(gathered, width, 0),
    }
}

/// Always exact, whatever the model's own products are.
fn form() -> InputForm {
    InputForm::of(Compute::Exact, DType::F32)
}

fn view(matrix: &Tensor, rows: usize, cols: usize) -> Result<MatrixRef<'_>, String> {
    MatrixRef::new(DType::F32, rows, cols, matrix.bytes()).map_err(|error| format!("{}: {error}", matrix.name()))
}
