use half::{bf16, f16};

use super::{Kernel, Simd};

/// Plain arrays, which the compiler turns into whatever vectors the target has.
#[derive(Clone, Copy)]
pub(super) struct Portable;

const LANES: usize = 8;

type Vector = [f32; LANES];

#[inline(always)]
fn map2(a: Vector, b: Vector, f: impl Fn(f32, f32) -> f32) -> Vector {
    std::array::from_fn(|i| f(a[i], b[i]))
}

/// # Safety
/// `N * LANES` bytes can be read at `p`.
#[inline(always)]
unsafe fn elements<const N: usize>(p: *const u8) -> [[u8; N]; LANES] {
    // SAFETY: by contract; byte arrays have no alignment.
    unsafe { p.cast::<[[u8; N]; LANES]>().read() }
}

impl Simd for Portable {
    type Vector = Vector;
    const LANES: usize = LANES;
    const MANY_REGISTERS: bool = false;
    const IS_FALLBACK: bool = true;

    #[inline(never)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Vector {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Vector {
        // SAFETY: by contract.
        unsafe { p.cast::<Vector>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u8) -> Vector {
        // SAFETY: by contract.
        unsafe { elements(p) }.map(|bytes| bf16::from_le_bytes(bytes).to_f32())
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const u8) -> Vector {
        // SAFETY: by contract.
        unsafe { elements(p) }.map(|bytes| f16::from_le_bytes(bytes).to_f32())
    }

    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> Vector {
        // SAFETY: by contract.
        unsafe { p.cast::<[i8; LANES]>().read() }.map(f32::from)
    }

    /// Nothing: without vector instructions of its own a kernel is bound by arithmetic.
    #[inline(always)]
    fn prefetch(self, _: *const u8) {}

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Vector) {
        // SAFETY: by contract.
        unsafe { p.cast::<Vector>().write_unaligned(v) }
    }

    #[inline(always)]
    fn add(self, a: Vector, b: Vector) -> Vector {
        map2(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Vector, b: Vector) -> Vector {
        map2(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Vector, b: Vector) -> Vector {
        map2(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Vector, b: Vector) -> Vector {
        map2(a, b, |a, b| a / b)
    }

    // Without the instruction a fused multiplication is a slow library call.
    #[inline(always)]
    fn mul_add(self, a: Vector, b: Vector, c: Vector) -> Vector {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn max(self, a: Vector, b: Vector) -> Vector {
        map2(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: Vector, b: Vector) -> Vector {
        map2(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn sum(self, v: Vector) -> f32 {
        ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    }

    #[inline(always)]
    fn exp2_integral(self, n: Vector) -> Vector {
        // The cast saturates, and turns NaN into 0: NaN comes back with the factor that is multiplied.
        n.map(|n| f32::from_bits(((n as i32).wrapping_add(127) as u32) << 23))
    }
}
