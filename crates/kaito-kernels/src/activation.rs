//! Element-wise functions of the feed-forward blocks.

use std::f32::consts::FRAC_1_SQRT_2;

use crate::{
    Rows, RowsMut, ThreadPool,
    simd::{Kernel, Level, Simd, dispatch},
};

/// Elements that a piece of work has at least.
const PIECE: usize = 8 * 1024;

/// `out = silu(gate) * up` with `silu(x) = x / (1 + e^-x)` (Shazeer 2020). A row of `gate_up` is `inner` gates and then
/// `inner` ups; a row of `out` has `inner` elements.
///
/// # Panics
/// If a shape does not fit its data.
pub fn swiglu(pool: &ThreadPool, tokens: usize, gate_up: Rows, inner: usize, out: RowsMut) {
    swiglu_on(Level::best(), pool, tokens, gate_up, inner, out);
}

fn swiglu_on(level: Level, pool: &ThreadPool, tokens: usize, gate_up: Rows, inner: usize, out: RowsMut) {
    gate_up.check("gate_up", tokens, inner.saturating_mul(2));
    let out = out.share("out", tokens, inner);
    let parts = inner.div_ceil(PIECE);
    pool.for_each(tokens * parts, &|piece| {
        let (t, start) = (piece / parts, piece % parts * PIECE);
        let len = PIECE.min(inner - start);
        let (gate, up) = gate_up.row(t, 2 * inner).split_at(inner);
        // SAFETY: no other piece has this part of this token.
        let out = unsafe { out.slice(t, start, len) };
        dispatch(level, Swiglu { gate: &gate[start..start + len], up: &up[start..start + len], out });
    });
}

struct Swiglu<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Swiglu<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let lanes = S::LANES;
        let function = |gate, up| {
            let e = simd.exp(simd.sub(simd.splat(0.0), gate));
            simd.mul(simd.div(gate, simd.add(simd.splat(1.0), e)), up)
        };
        for ((gate, up), out) in self.gate.chunks(lanes).zip(self.up.chunks(lanes)).zip(self.out.chunks_mut(lanes)) {
            if out.len() == lanes {
                simd.store_slice(out, function(simd.load_slice(gate), simd.load_slice(up)));
            } else {
                simd.store_partial(out, function(simd.load_partial(gate), simd.load_partial(up)));
            }
        }
    }
}

/// `x = x * (1 + erf(x / sqrt 2)) / 2` in place (Hendrycks and Gimpel 2016, without the approximation by tanh).
pub fn gelu_erf(pool: &ThreadPool, data: &mut [f32]) {
    let len = data.len();
    let data = RowsMut::new(data, len).share("data", 1, len);
    pool.for_each(len.div_ceil(PIECE), &|piece| {
        let start = piece * PIECE;
        // SAFETY: no other piece has these elements.
        let part = unsafe { data.slice(0, start, PIECE.min(len - start)) };
        part.iter_mut().for_each(|x| *x = 0.5 * *x * (1.0 + libm::erff(*x * FRAC_1_SQRT_2)));
    });
}

/// `x += y`.
///
/// # Panics
/// If the lengths differ.
pub fn add(pool: &ThreadPool, x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "terms of a sum");
    let len = x.len();
    let x = RowsMut::new(x, len).share("x", 1, len);
    let piece_len = 4 * PIECE;
    pool.for_each(len.div_ceil(piece_len), &|piece| {
        let start = piece * piece_len;
        let part = start..len.min(start + piece_len);
        // SAFETY: no other piece has these elements.
        let x = unsafe { x.slice(0, start, part.len()) };
        x.iter_mut().zip(&y[part]).for_each(|(x, y)| *x += y);
    });
}
