//! Normalisation of each token's activations.

use crate::{
    Rows, RowsMut, ThreadPool,
    matrix::SharedRows,
    simd::{Kernel, Level, MAX_LANES, Simd, dispatch},
};

/// `out = x / sqrt(mean(x^2) + eps) * weight` for each of `tokens` rows of `weight.len()` (Zhang and Sennrich 2019).
///
/// # Panics
/// If a shape does not fit its data.
pub fn rms_norm(pool: &ThreadPool, tokens: usize, x: Rows, weight: &[f32], eps: f32, out: RowsMut) {
    norm_on(Level::best(), pool, tokens, x, Norm { weight, bias: None, eps, centred: false }, out);
}

/// `out = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias` for each of `tokens` rows of `weight.len()`, with the
/// variance over n (Ba, Kiros and Hinton 2016).
///
/// # Panics
/// If a shape does not fit its data.
pub fn layer_norm(
    pool: &ThreadPool,
    tokens: usize,
    x: Rows,
    weight: &[f32],
    bias: Option<&[f32]>,
    eps: f32,
    out: RowsMut,
) {
    norm_on(Level::best(), pool, tokens, x, Norm { weight, bias, eps, centred: true }, out);
}

#[derive(Clone, Copy)]
struct Norm<'a> {
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
    centred: bool,
}

fn norm_on(level: Level, pool: &ThreadPool, tokens: usize, x: Rows, norm: Norm, out: RowsMut) {
    let width = norm.weight.len();
    x.check("x", tokens, width);
    if let Some(bias) = norm.bias {
        assert_eq!(bias.len(), width, "the bias of a norm has the length of its weight");
    }
    let out = out.share("out", tokens, width);
    let piece_tokens = (16 * 1024 / width.max(1)).max(1);
    pool.for_each(tokens.div_ceil(piece_tokens), &|piece| {
        let start = piece * piece_tokens;
        let end = tokens.min(start + piece_tokens);
        dispatch(level, Piece { start, end, x, norm, out });
    });
}

struct Piece<'a> {
    start: usize,
    end: usize,
    x: Rows<'a>,
    norm: Norm<'a>,
    out: SharedRows<'a>,
}

impl Kernel for Piece<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Norm { weight, bias, eps, centred } = self.norm;
        let width = weight.len();
        for t in self.start..self.end {
            let x = self.x.row(t, width);
            // SAFETY: no other piece has this token.
            let out = unsafe { self.out.slice(t, 0, width) };
            let mean = if centred { sum::<S>(simd, x, |_, v| v) / width as f32 } else { 0.0 };
            let squares = sum::<S>(simd, x, |simd, v| {
                let d = simd.sub(v, simd.splat(mean));
                simd.mul(d, d)
            });
            let scale = 1.0 / (squares / width as f32 + eps).sqrt();
            for i in 0..width {
                out[i] = (x[i] - mean) * scale * weight[i];
            }
            if let Some(bias) = bias {
                out.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
            }
        }
    }
}

/// The sum of `f(x)`.
#[inline(always)]
fn sum<S: Simd>(simd: S, x: &[f32], f: impl Fn(S, S::Vector) -> S::Vector) -> f32 {
    let mut sums = [simd.splat(0.0); 4];
    let mut blocks = x.chunks_exact(4 * S::LANES);
    for block in &mut blocks {
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = simd.add(*sum, f(simd, simd.load_slice(&block[i * S::LANES..])));
        }
    }
    for part in blocks.remainder().chunks(S::LANES) {
        let mut terms = [0.0; MAX_LANES];
        simd.store_partial(&mut terms[..part.len()], f(simd, simd.load_partial(part)));
        sums[0] = simd.add(sums[0], simd.load_slice(&terms));
    }
    simd.sum(simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3])))
}
