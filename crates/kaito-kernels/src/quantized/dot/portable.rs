use half::bf16;

use super::{Dot, DotKernel};
use crate::quantized::{BLOCK_ROWS, QUAD, SCALE_BYTES, input::InputGroups};

/// Plain arrays, which the compiler turns into whatever vectors the target has.
#[derive(Clone, Copy)]
pub(super) struct Portable;

impl Dot for Portable {
    type Ints = [i32; BLOCK_ROWS];
    type Floats = [f32; BLOCK_ROWS];
    const TILE_BLOCKS: usize = 1;
    const TILE_TOKENS: usize = 1;

    #[inline(never)]
    fn call<K: DotKernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // Rows and tokens, as in the other instruction sets.
    unsafe fn group<const R: usize, const T: usize, const Q: usize>(
        self,
        weights: [*const u8; R],
        input: InputGroups,
    ) -> [[Self::Ints; T]; R] {
        let mut sums = [[[0i32; BLOCK_ROWS]; T]; R];
        for r in 0..R {
            // SAFETY: by contract.
            let bytes = unsafe { std::slice::from_raw_parts(weights[r], Q * QUAD * BLOCK_ROWS) };
            for t in 0..T {
                // SAFETY: by contract. Those of a subgroup are not aligned as a group is.
                let (numbers, correction) = unsafe {
                    let numbers = input.numbers.add(t).cast::<i8>();
                    (std::slice::from_raw_parts(numbers, Q * QUAD), *input.corrections.add(t))
                };
                let mut lanes = [correction; BLOCK_ROWS];
                for (quad, x) in numbers.as_chunks::<QUAD>().0.iter().enumerate() {
                    let block = &bytes[quad * BLOCK_ROWS * QUAD..][..BLOCK_ROWS * QUAD];
                    for (lane, w) in lanes.iter_mut().zip(block.as_chunks::<QUAD>().0) {
                        for c in 0..QUAD {
                            *lane = lane.wrapping_add(i32::from(w[c]) * i32::from(x[c]));
                        }
                    }
                }
                sums[r][t] = lanes;
            }
        }
        sums
    }

    /// Nothing: without vector instructions of its own a product is bound by arithmetic.
    #[inline(always)]
    fn prefetch(self, _: *const u8) {}

    #[inline(always)]
    fn splat(self, x: f32) -> Self::Floats {
        [x; BLOCK_ROWS]
    }

    #[inline(always)]
    fn load(self, lanes: &[f32; BLOCK_ROWS]) -> Self::Floats {
        *lanes
    }

    #[inline(always)]
    fn store(self, lanes: &mut [f32; BLOCK_ROWS], v: Self::Floats) {
        *lanes = v;
    }

    #[inline(always)]
    fn scales(self, scales: &[u8; SCALE_BYTES]) -> Self::Floats {
        let mut widened = [0.0; BLOCK_ROWS];
        for (scale, bytes) in widened.iter_mut().zip(scales.as_chunks().0) {
            *scale = bf16::from_le_bytes(*bytes).to_f32();
        }
        widened
    }

    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn fma(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        // A library call where the processor lacks the instruction; one for many products.
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn corrected(self, ints: &[i32; BLOCK_ROWS], correction: i32) -> Self::Ints {
        let mut corrected = *ints;
        for lane in &mut corrected {
            *lane = lane.wrapping_add(correction);
        }
        corrected
    }

    #[inline(always)]
    fn add_product(self, a: Self::Ints, b: Self::Ints, c: Self::Ints) -> Self::Ints {
        std::array::from_fn(|i| a[i].wrapping_mul(b[i]).wrapping_add(c[i]))
    }

    #[inline(always)]
    fn floats(self, ints: Self::Ints) -> Self::Floats {
        ints.map(|int| int as f32)
    }
}
