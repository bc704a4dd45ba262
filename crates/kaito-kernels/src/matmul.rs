//! The product of activations with a weight matrix.
//!
//! Every output is summed up in one order, whatever the shape of the call: columns are cut into blocks of
//! [`BLOCK_COLUMNS`]; within a block, lane `l` of one vector sums the columns `l`, `l + LANES`, ..; the lanes are
//! added in a fixed tree; the sums of the blocks are added in order. Tiles of several rows and tokens only decide which
//! of these sums are computed side by side.

use crate::{
    DType, MatrixRef, Rows, RowsMut, ThreadPool,
    matrix::SharedRows,
    simd::{Kernel, Level, Simd, dispatch},
};

/// What becomes of the values that an output held before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// They are replaced.
    Set,
    /// The results are added to them.
    Add,
}

/// Columns that are summed up before their lanes are added. A tile's rows of this length stay in the first level cache.
const BLOCK_COLUMNS: usize = 1024;

/// `y[t][r] = sum_c x[t][c] * w[r][c]`, or `+=`: `input` has `tokens` rows of `weight.cols`, `output` of `weight.rows`.
///
/// The bits of `y[t][r]` depend on `x[t]`, `w[r]` and, with [`Write::Add`], its former value alone.
///
/// # Panics
/// If a shape does not fit its data.
pub fn matmul(pool: &ThreadPool, tokens: usize, input: Rows, weight: MatrixRef, output: RowsMut, mode: Write) {
    matmul_on(Level::best(), pool, tokens, input, weight, output, mode);
}

pub(crate) fn matmul_on(
    level: Level,
    pool: &ThreadPool,
    tokens: usize,
    input: Rows,
    weight: MatrixRef,
    output: RowsMut,
    mode: Write,
) {
    weight.check("weight");
    input.check("input", tokens, weight.cols);
    let output = output.share("output", tokens, weight.rows);
    if tokens == 0 || weight.rows == 0 {
        return;
    }
    let piece_rows = rows_of_a_piece(pool.threads(), tokens, &weight);
    pool.for_each(weight.rows.div_ceil(piece_rows), &|piece| {
        let start = piece * piece_rows;
        let rows = piece_rows.min(weight.rows - start);
        dispatch(level, Piece { tokens, input, weight, output, mode, start, rows });
    });
}

/// Small enough that threads end at nearly the same time, large enough that taking a piece costs nothing next to it.
fn rows_of_a_piece(threads: usize, tokens: usize, weight: &MatrixRef) -> usize {
    const PIECES_OF_A_THREAD: usize = 8;
    const LEAST_WORK: usize = 64 * 1024;
    let even = weight.rows / (threads * PIECES_OF_A_THREAD);
    let least = LEAST_WORK / (weight.cols * tokens).max(1);
    let most = if tokens == 1 { 256 } else { 64 };
    even.clamp(least.clamp(8, most), most).next_multiple_of(8)
}

/// Rows `start..start + rows` for all tokens.
struct Piece<'a> {
    tokens: usize,
    input: Rows<'a>,
    weight: MatrixRef<'a>,
    output: SharedRows<'a>,
    mode: Write,
    start: usize,
    rows: usize,
}

impl Kernel for Piece<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.weight.dtype {
            DType::F32 => self.run_typed::<S, F32>(simd),
            DType::Bf16 => self.run_typed::<S, Bf16>(simd),
            DType::F16 => self.run_typed::<S, F16>(simd),
        }
    }
}

impl Piece<'_> {
    #[inline(always)]
    fn run_typed<S: Simd, E: Element>(self, simd: S) {
        let mut column = 0;
        loop {
            let columns = BLOCK_COLUMNS.min(self.weight.cols - column);
            let add = column > 0 || self.mode == Write::Add;
            let mut t = 0;
            while t < self.tokens {
                let tile_tokens = 4.min(self.tokens - t);
                for r in self.start..self.start + self.rows {
                    let w = &self.weight.data[(r * self.weight.cols + column) * E::SIZE..][..columns * E::SIZE];
                    for t in t..t + tile_tokens {
                        let x = &self.input.row(t, self.weight.cols)[column..column + columns];
                        let sum = dot::<S, E>(simd, x, w);
                        // SAFETY: this piece alone writes these rows of the weight, for all tokens.
                        let y = unsafe { &mut self.output.slice(t, r, 1)[0] };
                        *y = if add { *y + sum } else { sum };
                    }
                }
                t += tile_tokens;
            }
            column += columns;
            if column >= self.weight.cols {
                break;
            }
        }
    }
}

#[inline(always)]
fn dot<S: Simd, E: Element>(simd: S, x: &[f32], w: &[u8]) -> f32 {
    let mut sum = simd.splat(0.0);
    let mut c = 0;
    while c + S::LANES <= x.len() {
        // SAFETY: `w` has as many elements as `x`, and `LANES` are left.
        let v = unsafe { E::load(simd, w.as_ptr().add(c * E::SIZE)) };
        sum = simd.mul_add(simd.load_slice(&x[c..]), v, sum);
        c += S::LANES;
    }
    if c < x.len() {
        let v = E::load_partial(simd, &w[c * E::SIZE..]);
        sum = simd.mul_add(simd.load_partial(&x[c..]), v, sum);
    }
    simd.sum(sum)
}

/// How elements of a weight are widened.
pub(crate) trait Element {
    const SIZE: usize;
    /// # Safety
    /// `LANES` elements can be read at `p`.
    unsafe fn load<S: Simd>(simd: S, p: *const u8) -> S::Vector;

    /// Fewer than `LANES` elements and zeros after them.
    #[inline(always)]
    fn load_partial<S: Simd>(simd: S, bytes: &[u8]) -> S::Vector {
        let mut buffer = [0u8; 4 * crate::simd::MAX_LANES];
        buffer[..bytes.len()].copy_from_slice(bytes);
        // SAFETY: the buffer has room for the widest vector of the widest element.
        unsafe { Self::load(simd, buffer.as_ptr()) }
    }
}

pub(crate) struct F32;
pub(crate) struct Bf16;
pub(crate) struct F16;

impl Element for F32 {
    const SIZE: usize = 4;

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, p: *const u8) -> S::Vector {
        // SAFETY: by contract; vectors need no alignment.
        unsafe { simd.load(p.cast()) }
    }
}

impl Element for Bf16 {
    const SIZE: usize = 2;

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, p: *const u8) -> S::Vector {
        // SAFETY: by contract.
        unsafe { simd.load_bf16(p) }
    }
}

impl Element for F16 {
    const SIZE: usize = 2;

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, p: *const u8) -> S::Vector {
        // SAFETY: by contract.
        unsafe { simd.load_f16(p) }
    }
}
