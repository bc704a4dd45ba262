use std::{
    arch::{aarch64::*, asm},
    marker::PhantomData,
};

use super::{Dot, DotKernel, Form, PackedGroup, QUADS, Stored, UnpackedGroup};
use crate::quantized::{BLOCK_ROWS, SCALE_BYTES, input::InputGroup};

/// Whether four products of bytes are added by one instruction.
pub(super) trait Sums: Copy {
    /// `sums[lane] + sum of the lane's four products`.
    ///
    /// # Safety
    /// The processor has the instructions.
    unsafe fn add(sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t;
    /// # Safety
    /// As above.
    unsafe fn call<K: DotKernel>(kernel: K) -> K::Output;
}

/// `sdot`.
#[derive(Clone, Copy)]
pub(super) struct DotProduct;

/// Products in 16 bits, which are added in pairs.
#[derive(Clone, Copy)]
pub(super) struct Widening;

impl Sums for DotProduct {
    #[inline(always)]
    unsafe fn add(mut sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
        // SAFETY: by contract; registers only.
        unsafe {
            asm!(
                ".arch_extension dotprod",
                "sdot {sums:v}.4s, {a:v}.16b, {b:v}.16b",
                sums = inout(vreg) sums, a = in(vreg) a, b = in(vreg) b,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        sums
    }

    #[inline(always)]
    unsafe fn call<K: DotKernel>(kernel: K) -> K::Output {
        // SAFETY: by contract.
        unsafe { run_with_dot(kernel) }
    }
}

impl Sums for Widening {
    #[inline(always)]
    unsafe fn add(sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
        // SAFETY: by contract. A product of magnitudes up to 128 and 127 fits 16 bits, and so do two of them.
        unsafe {
            let low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
            let high = vmull_high_s8(a, b);
            vpadalq_s16(sums, vpaddq_s16(low, high))
        }
    }

    #[inline(always)]
    unsafe fn call<K: DotKernel>(kernel: K) -> K::Output {
        // SAFETY: by contract.
        unsafe { run(kernel) }
    }
}

/// NEON. A vector has four rows: a quarter of a block.
#[derive(Clone, Copy)]
pub(super) struct Neon<P>(PhantomData<P>);

/// # Safety
/// The processor has NEON and its dot products.
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn run_with_dot<K: DotKernel>(kernel: K) -> K::Output {
    kernel.run(Neon::<DotProduct>(PhantomData))
}

/// # Safety
/// The processor has NEON.
#[target_feature(enable = "neon")]
pub(super) unsafe fn run<K: DotKernel>(kernel: K) -> K::Output {
    kernel.run(Neon::<Widening>(PhantomData))
}

/// Vectors of a block of rows.
const QUARTERS: usize = 4;

// SAFETY of every block below: a value of `Neon` exists only inside `run` or `run_with_dot`, whose callers made sure
// of the instructions; what pointers need is the methods' own contract.
impl<P: Sums> Dot for Neon<P> {
    type Ints = [int32x4_t; QUARTERS];
    type Floats = [float32x4_t; QUARTERS];
    const TILE_BLOCKS: usize = 1;
    const TILE_TOKENS: usize = 2;
    const UNPACK_ONCE: bool = true;
    const PREFETCH_NIBBLES_FROM: Option<usize> = Some(2);

    #[inline(always)]
    fn call<K: DotKernel>(self, kernel: K) -> K::Output {
        // SAFETY: see above.
        unsafe { P::call(kernel) }
    }

    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // Iterators take closures.
    unsafe fn group<W: Stored, const R: usize, const T: usize>(
        self,
        weights: [*const u8; R],
        input: [*const InputGroup; T],
    ) -> [[Self::Ints; T]; R] {
        // SAFETY: see above.
        unsafe {
            let (mask, sign) = (vdupq_n_u8(15), vdupq_n_u8(128));
            let mut sums = [[[vdupq_n_s32(0); QUARTERS]; T]; R];
            if W::FORM != Form::Bytes {
                for t in 0..T {
                    for r in 0..R {
                        sums[r][t] = [vdupq_n_s32((*input[t]).correction); QUARTERS];
                    }
                }
            }
            for pair in 0..QUADS / 2 {
                let mut x = [[vdupq_n_s8(0); 2]; T];
                for t in 0..T {
                    let p = (&raw const (*input[t]).values).cast::<i32>().add(2 * pair);
                    x[t][0] = vreinterpretq_s8_s32(vdupq_n_s32(p.read_unaligned()));
                    x[t][1] = vreinterpretq_s8_s32(vdupq_n_s32(p.add(1).read_unaligned()));
                }
                for r in 0..R {
                    for quarter in 0..QUARTERS {
                        // Weights as signed bytes: those of the zero point 128 lose it, nibbles are small enough.
                        let (low, high) = match W::FORM {
                            Form::Nibbles => {
                                let packed = vld1q_u8(weights[r].add(pair * 64 + quarter * 16));
                                (vandq_u8(packed, mask), vshrq_n_u8::<4>(packed))
                            }
                            Form::UnpackedNibbles => {
                                let at = weights[r].add(pair * 128 + quarter * 16);
                                (vld1q_u8(at), vld1q_u8(at.add(64)))
                            }
                            Form::Bytes => {
                                let at = weights[r].add(pair * 128 + quarter * 16);
                                (veorq_u8(vld1q_u8(at), sign), veorq_u8(vld1q_u8(at.add(64)), sign))
                            }
                        };
                        let (low, high) = (vreinterpretq_s8_u8(low), vreinterpretq_s8_u8(high));
                        for t in 0..T {
                            let sum = P::add(sums[r][t][quarter], low, x[t][0]);
                            sums[r][t][quarter] = P::add(sum, high, x[t][1]);
                        }
                    }
                }
            }
            sums
        }
    }

    #[inline(always)]
    fn unpack(self, source: &PackedGroup, target: &mut UnpackedGroup) {
        // SAFETY: see above. Each 64 bytes make 128.
        unsafe {
            let mask = vdupq_n_u8(15);
            for i in 0..QUADS * 2 {
                let packed = vld1q_u8(source.as_ptr().add(i * 16));
                let target = target.as_mut_ptr().add(i / QUARTERS * 128 + i % QUARTERS * 16).cast::<u8>();
                vst1q_u8(target, vandq_u8(packed, mask));
                vst1q_u8(target.add(64), vshrq_n_u8::<4>(packed));
            }
        }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::Floats {
        // SAFETY: see above.
        unsafe { [vdupq_n_f32(x); QUARTERS] }
    }

    #[inline(always)]
    fn load(self, lanes: &[f32; BLOCK_ROWS]) -> Self::Floats {
        let p = lanes.as_ptr();
        // SAFETY: see above.
        unsafe { [vld1q_f32(p), vld1q_f32(p.add(4)), vld1q_f32(p.add(8)), vld1q_f32(p.add(12))] }
    }

    #[inline(always)]
    fn store(self, lanes: &mut [f32; BLOCK_ROWS], v: Self::Floats) {
        let p = lanes.as_mut_ptr();
        // SAFETY: see above.
        unsafe {
            for i in 0..QUARTERS {
                vst1q_f32(p.add(4 * i), v[i]);
            }
        }
    }

    #[inline(always)]
    fn scales(self, scales: &[u8; SCALE_BYTES]) -> Self::Floats {
        let p = scales.as_ptr();
        // SAFETY: see above.
        unsafe {
            let mut widened = [vdupq_n_f32(0.0); QUARTERS];
            for i in 0..QUARTERS {
                let halves = vreinterpret_u16_u8(vld1_u8(p.add(8 * i)));
                widened[i] = vreinterpretq_f32_u32(vshll_n_u16::<16>(halves));
            }
            widened
        }
    }

    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        // SAFETY: see above.
        unsafe { [vmulq_f32(a[0], b[0]), vmulq_f32(a[1], b[1]), vmulq_f32(a[2], b[2]), vmulq_f32(a[3], b[3])] }
    }

    #[inline(always)]
    fn add_scaled(self, ints: Self::Ints, scales: Self::Floats, mut sums: Self::Floats) -> Self::Floats {
        // SAFETY: see above.
        unsafe {
            for i in 0..QUARTERS {
                sums[i] = vfmaq_f32(sums[i], vcvtq_f32_s32(ints[i]), scales[i]);
            }
        }
        sums
    }
}
