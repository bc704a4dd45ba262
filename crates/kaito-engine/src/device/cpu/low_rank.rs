//! Products of adapters on the processor, beside those of the linear maps that they change.

use std::mem;

use kaito_kernels::{self as kernels, LOW_RANK_PANEL, LowRankRows, MatrixRef, ThreadPool};
use kaito_model::{adapter::LowRank, checkpoint::Tensor};

use super::linear::{CpuLinear, rows, rows_mut, unsupported};
use crate::{
    device::{Adapted, DeviceError},
    recycle::recycled,
};

/// A product of an adapter whose matrices are known to be such.
pub struct CpuLowRank {
    term: LowRank,
    rank: usize,
    inputs: usize,
}

impl CpuLowRank {
    /// Checks a product.
    pub(super) fn new(term: LowRank) -> Result<Self, DeviceError> {
        let panels = term.outputs.div_ceil(LOW_RANK_PANEL);
        match (term.down.shape(), term.up.shape()) {
            (&[rank, inputs], &[up, LOW_RANK_PANEL]) if rank > 0 && rank.checked_mul(panels) == Some(up) => {
                Ok(Self { rank, inputs, term })
            }
            (down, up) => Err(unsupported(format!(
                "{} of shape {down:?} and {} of shape {up:?} are no two matrices of one rank for {} outputs",
                term.down.name(),
                term.up.name(),
                term.outputs
            ))),
        }
    }

    /// The product for some rows, if it fits the map.
    fn of_rows<'a>(&'a self, rows: &'a [usize], linear: &CpuLinear) -> Result<LowRankRows<'a>, String> {
        let Self { rank, inputs, term: LowRank { output_offset, outputs, down, up, scale, .. } } = self;
        if *inputs != linear.in_features || output_offset + outputs > linear.out_features {
            return Err(format!(
                "{} of {inputs} inputs and {outputs} outputs from {output_offset} on does not fit a map of {} to {}",
                down.name(),
                linear.in_features,
                linear.out_features
            ));
        }
        Ok(LowRankRows {
            rows,
            down: view(down, *rank, *inputs)?,
            up: view(up, outputs.div_ceil(LOW_RANK_PANEL) * rank, LOW_RANK_PANEL)?,
            scale: *scale,
            outputs: *outputs,
            output_offset: *output_offset,
        })
    }
}

/// Computes them, in memory that is kept.
#[derive(Default)]
pub(super) struct LowRankProducts {
    /// Room for the products of a linear map.
    products: Vec<LowRankRows<'static>>,
    /// Room for what lies between their two matrices.
    between: Vec<f32>,
}

impl LowRankProducts {
    /// `output[t] += sum of scale * up(down(input[t]))` for each of `count` rows and the products that its adapter adds to `linear`.
    ///
    /// # Errors
    /// Of products that do not fit the map, what does not.
    pub fn add(
        &mut self,
        threads: &ThreadPool,
        linear: &CpuLinear,
        adapted: &Adapted<'_, CpuLowRank>,
        count: usize,
        input: &[f32],
        output: &mut [f32],
    ) -> Result<(), String> {
        let (inputs, outputs) = (linear.in_features, linear.out_features);
        let mut products = recycled(mem::take(&mut self.products));
        for (rows, terms) in adapted.groups() {
            for term in terms {
                products.push(term.of_rows(rows, linear)?);
            }
        }
        let between = products.iter().map(LowRankRows::between).sum();
        if self.between.len() < between {
            self.between = kernels::zeros(between)
                .ok_or_else(|| format!("no room for {between} numbers of adapters' products"))?;
        }
        let (input, output) = (rows(input, inputs, 0), rows_mut(output, outputs, 0));
        kernels::add_low_rank(threads, &products, (count, inputs, outputs), input, &mut self.between, output);
        self.products = recycled(products);
        Ok(())
    }
}

fn view(matrix: &Tensor, rows: usize, cols: usize) -> Result<MatrixRef<'_>, String> {
    MatrixRef::new(matrix.dtype(), rows, cols, matrix.bytes()).map_err(|error| format!("{}: {error}", matrix.name()))
}
