use half::bf16;

use super::{Dot, DotKernel, Form, PackedGroup, Stored, UnpackedGroup};
use crate::quantized::{BLOCK_ROWS, QUAD, SCALE_BYTES, input::InputGroup};

/// Plain arrays, which the compiler turns into whatever vectors the target has.
#[derive(Clone, Copy)]
pub(super) struct Portable;

impl Dot for Portable {
    type Ints = [i32; BLOCK_ROWS];
    type Floats = [f32; BLOCK_ROWS];
    const TILE_BLOCKS: usize = 1;
    const TILE_TOKENS: usize = 1;
    const UNPACK_ONCE: bool = true;

    #[inline(never)]
    fn call<K: DotKernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    unsafe fn group<W: Stored, const R: usize, const T: usize>(
        self,
        weights: [*const u8; R],
        input: [*const InputGroup; T],
    ) -> [[Self::Ints; T]; R] {
        let mut sums = [[[0i32; BLOCK_ROWS]; T]; R];
        for r in 0..R {
            // SAFETY: by contract.
            let bytes = unsafe { std::slice::from_raw_parts(weights[r], W::BYTES) };
            for t in 0..T {
                // SAFETY: by contract.
                let input = unsafe { &*input[t] };
                let mut lanes = [input.correction; BLOCK_ROWS];
                for (quad, x) in input.values.as_chunks::<QUAD>().0.iter().enumerate() {
                    let (at, shift) = match W::FORM {
                        Form::Bytes | Form::UnpackedNibbles => (quad, 0),
                        Form::Nibbles => (quad / 2, quad % 2 * 4),
                    };
                    let block = &bytes[at * BLOCK_ROWS * QUAD..][..BLOCK_ROWS * QUAD];
                    for (lane, w) in lanes.iter_mut().zip(block.as_chunks::<QUAD>().0) {
                        for c in 0..QUAD {
                            let w = if W::FORM == Form::Nibbles { w[c] >> shift & 15 } else { w[c] };
                            *lane = lane.wrapping_add(i32::from(w) * i32::from(x[c]));
                        }
                    }
                }
                sums[r][t] = lanes;
            }
        }
        sums
    }

    #[inline(always)]
    fn unpack(self, source: &PackedGroup, target: &mut UnpackedGroup) {
        const VECTOR: usize = BLOCK_ROWS * QUAD;
        for (packed, quads) in source.as_chunks::<VECTOR>().0.iter().zip(target.as_chunks_mut::<{ 2 * VECTOR }>().0) {
            for i in 0..VECTOR {
                quads[i].write(packed[i] & 15);
                quads[VECTOR + i].write(packed[i] >> 4);
            }
        }
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
    fn add_scaled(self, ints: Self::Ints, scales: Self::Floats, sums: Self::Floats) -> Self::Floats {
        // A library call where the processor lacks the instruction; one for many products.
        std::array::from_fn(|i| (ints[i] as f32).mul_add(scales[i], sums[i]))
    }
}
