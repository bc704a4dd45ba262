use half::bf16;

use super::{Dot, DotKernel, Form, Nibbles, Stored, UnpackedNibbles};
use crate::quantized::{BLOCK_ROWS, GROUP, QUAD, SCALE_BYTES, input::InputGroup};

/// Plain arrays, which the compiler turns into whatever vectors the target has.
#[derive(Clone, Copy)]
pub(super) struct Portable;

impl Dot for Portable {
    type Ints = [i32; BLOCK_ROWS];
    type Floats = [f32; BLOCK_ROWS];
    const TILE_BLOCKS: usize = 1;
    const TILE_TOKENS: usize = 1;
    const UNPACK_ONCE: bool = true;
    const PREFETCH_BYTES_FROM: usize = 6;
    const PREFETCH_NIBBLES_FROM: usize = 2;

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
    unsafe fn unpack(self, source: *const u8, target: *mut u8) {
        // SAFETY: by contract; they are different memory.
        let (source, target) = unsafe {
            let source = std::slice::from_raw_parts(source, Nibbles::BYTES);
            (source, std::slice::from_raw_parts_mut(target, UnpackedNibbles::BYTES))
        };
        const VECTOR: usize = BLOCK_ROWS * QUAD;
        for (packed, quads) in source.as_chunks::<VECTOR>().0.iter().zip(target.as_chunks_mut::<{ 2 * VECTOR }>().0) {
            for i in 0..VECTOR {
                quads[i] = packed[i] & 15;
                quads[VECTOR + i] = packed[i] >> 4;
            }
        }
    }

    #[inline(always)]
    fn prefetch(self, _: *const u8) {}

    #[inline(always)]
    fn splat(self, x: f32) -> Self::Floats {
        [x; BLOCK_ROWS]
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::Floats {
        // SAFETY: by contract.
        unsafe { p.cast::<Self::Floats>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::Floats) {
        // SAFETY: by contract.
        unsafe { p.cast::<Self::Floats>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn scales(self, p: *const u8) -> Self::Floats {
        // SAFETY: by contract; byte arrays have no alignment.
        let bytes = unsafe { p.cast::<[u8; SCALE_BYTES]>().read() };
        let mut scales = [0.0; BLOCK_ROWS];
        for (scale, bytes) in scales.iter_mut().zip(bytes.as_chunks().0) {
            *scale = bf16::from_le_bytes(*bytes).to_f32();
        }
        scales
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

const _: () = assert!(GROUP.is_multiple_of(2 * QUAD));
