use std::{
    arch::{aarch64::*, asm},
    marker::PhantomData,
};

use super::{Dot, DotKernel, UnpackedGroup};
use crate::quantized::{
    BLOCK_ROWS, SCALE_BYTES,
    input::InputGroups,
    int4::{CODEBOOK, MULTIPLIERS, NIBBLE_BYTES, SIDE_BYTES},
};

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

    #[inline(always)]
    fn call<K: DotKernel>(self, kernel: K) -> K::Output {
        // SAFETY: see above.
        unsafe { P::call(kernel) }
    }

    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // Iterators take closures.
    unsafe fn group<const R: usize, const T: usize, const Q: usize>(
        self,
        weights: [*const u8; R],
        input: InputGroups,
    ) -> [[Self::Ints; T]; R] {
        // SAFETY: see above.
        unsafe {
            let sign = vdupq_n_u8(128);
            let mut sums = [[[vdupq_n_s32(0); QUARTERS]; T]; R];
            for pair in 0..Q / 2 {
                let mut x = [[vdupq_n_s8(0); 2]; T];
                for t in 0..T {
                    let p = input.numbers.add(t).cast::<i32>().add(2 * pair);
                    x[t][0] = vreinterpretq_s8_s32(vdupq_n_s32(p.read()));
                    x[t][1] = vreinterpretq_s8_s32(vdupq_n_s32(p.add(1).read()));
                }
                for r in 0..R {
                    for quarter in 0..QUARTERS {
                        let at = weights[r].add(pair * 128 + quarter * 16);
                        // Without the zero point the bytes are signed, and need no correction.
                        let (low, high) = (veorq_u8(vld1q_u8(at), sign), veorq_u8(vld1q_u8(at.add(64)), sign));
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
    fn unpack(self, nibbles: &[u8; NIBBLE_BYTES], side: &[u8; SIDE_BYTES], target: &mut UnpackedGroup) {
        let target = target.as_mut_ptr().cast::<u8>();
        // SAFETY: see above. After the scales a side has 16 bytes three times; each 64 bytes of nibbles make 128, which are all of
        // the target.
        unsafe {
            let codebook = vld1q_s8(CODEBOOK.as_ptr());
            let multipliers = vcombine_s8(vld1_s8(MULTIPLIERS.as_ptr()), vdup_n_s8(0));
            let (mask, sign) = (vdupq_n_u8(15), vdupq_n_u8(128));
            let planes = side.as_ptr().add(SCALE_BYTES);
            let (low, high) = (vld1q_u8(planes), vld1q_u8(planes.add(BLOCK_ROWS)));
            let signs = vld1q_u8(planes.add(2 * BLOCK_ROWS));
            for subgroup in 0..8i8 {
                let magnitude = vshlq_u8(if subgroup < 4 { low } else { high }, vdupq_n_s8(-(subgroup % 4 * 2)));
                let negative = vshlq_u8(signs, vdupq_n_s8(-subgroup));
                let bits =
                    vorrq_u8(vandq_u8(magnitude, vdupq_n_u8(3)), vshlq_n_u8::<2>(vandq_u8(negative, vdupq_n_u8(1))));
                let of_rows = vqtbl1q_s8(multipliers, bits);
                for quarter in 0..QUARTERS {
                    // Of each of four rows, for each column of a quad.
                    let first = vdupq_n_u8(4 * quarter as u8);
                    let rows = vaddq_u8(first, vld1q_u8([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3].as_ptr()));
                    let factors = vqtbl1q_s8(of_rows, rows);
                    for pair in [2 * subgroup as usize, 2 * subgroup as usize + 1] {
                        let packed = vld1q_u8(nibbles.as_ptr().add(pair * 64 + quarter * 16));
                        for (i, indices) in [vandq_u8(packed, mask), vshrq_n_u8::<4>(packed)].into_iter().enumerate() {
                            let weights = vreinterpretq_u8_s8(vmulq_s8(vqtbl1q_s8(codebook, indices), factors));
                            vst1q_u8(target.add(pair * 128 + i * 64 + quarter * 16), veorq_u8(weights, sign));
                        }
                    }
                }
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
    fn fma(self, a: Self::Floats, b: Self::Floats, mut c: Self::Floats) -> Self::Floats {
        // SAFETY: see above.
        unsafe {
            for i in 0..QUARTERS {
                c[i] = vfmaq_f32(c[i], a[i], b[i]);
            }
        }
        c
    }

    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        // SAFETY: see above.
        unsafe { [vmulq_f32(a[0], b[0]), vmulq_f32(a[1], b[1]), vmulq_f32(a[2], b[2]), vmulq_f32(a[3], b[3])] }
    }

    #[inline(always)]
    fn corrected(self, ints: &[i32; BLOCK_ROWS], correction: i32) -> Self::Ints {
        let p = ints.as_ptr();
        // SAFETY: see above.
        unsafe {
            let mut corrected = [vdupq_n_s32(correction); QUARTERS];
            for i in 0..QUARTERS {
                corrected[i] = vaddq_s32(corrected[i], vld1q_s32(p.add(4 * i)));
            }
            corrected
        }
    }

    #[inline(always)]
    fn add_product(self, a: Self::Ints, b: Self::Ints, mut c: Self::Ints) -> Self::Ints {
        // SAFETY: see above.
        unsafe {
            for i in 0..QUARTERS {
                c[i] = vmlaq_s32(c[i], a[i], b[i]);
            }
        }
        c
    }

    #[inline(always)]
    fn floats(self, ints: Self::Ints) -> Self::Floats {
        // SAFETY: see above.
        unsafe { [vcvtq_f32_s32(ints[0]), vcvtq_f32_s32(ints[1]), vcvtq_f32_s32(ints[2]), vcvtq_f32_s32(ints[3])] }
    }
}
