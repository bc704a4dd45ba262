use std::{arch::x86_64::*, mem::transmute};

use super::{
    Kernel, Level, Simd,
    avx512::{self, Avx512},
};

/// AVX-512 whose lanes hold pairs of bf16 where they are multiplied, and sums of `f32`: [`Simd::mul_add`] adds both products of
/// each lane to its sum, the second one first, each rounded once (`vdpbf16ps`). Denormal numbers are zeros. All else is AVX-512.
#[derive(Clone, Copy)]
struct Avx512Bf16(Avx512);

/// Whether the processor has pairs of bf16.
pub(crate) fn has_bf16_pairs() -> bool {
    Level::available().contains(&Level::Avx512) && is_x86_feature_detected!("avx512bf16")
}

/// Runs `kernel` with lanes that are pairs of bf16.
///
/// # Panics
/// If the processor does not have them.
pub(crate) fn dispatch_bf16_pairs<K: Kernel>(kernel: K) -> K::Output {
    assert!(has_bf16_pairs());
    // SAFETY: just checked; the level has the other features.
    unsafe { run(kernel) }
}

/// # Safety
/// The processor has the features named here.
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: by contract.
    kernel.run(Avx512Bf16(unsafe { avx512::Avx512::new() }))
}

/// Defines methods that are those of AVX-512.
macro_rules! as_avx512 {
    ($($name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)+) => {$(
        #[inline(always)]
        fn $name(self, $($argument: $type),*) $(-> $result)? {
            self.0.$name($($argument),*)
        }
    )+};
}

/// The same of methods that take pointers.
macro_rules! as_avx512_unsafe {
    ($($name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)+) => {$(
        #[inline(always)]
        unsafe fn $name(self, $($argument: $type),*) $(-> $result)? {
            // SAFETY: by contract, which is the same.
            unsafe { self.0.$name($($argument),*) }
        }
    )+};
}

impl Simd for Avx512Bf16 {
    type Vector = __m512;
    const LANES: usize = Avx512::LANES;
    const MANY_REGISTERS: bool = Avx512::MANY_REGISTERS;

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: a value of this type exists only inside `run`, whose caller made sure of the instructions.
        unsafe { run(kernel) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: as above; the types have the same bits.
        unsafe { _mm512_dpbf16_ps(c, transmute::<__m512, __m512bh>(a), transmute::<__m512, __m512bh>(b)) }
    }

    as_avx512! {
        splat(x: f32) -> __m512;
        add(a: __m512, b: __m512) -> __m512;
        sub(a: __m512, b: __m512) -> __m512;
        mul(a: __m512, b: __m512) -> __m512;
        div(a: __m512, b: __m512) -> __m512;
        max(a: __m512, b: __m512) -> __m512;
        min(a: __m512, b: __m512) -> __m512;
        sum(v: __m512) -> f32;
        sum4(v: [__m512; 4]) -> [f32; 4];
        exp2_integral(n: __m512) -> __m512;
        scale_by_exp2(v: __m512, n: __m512) -> __m512;
    }

    as_avx512_unsafe! {
        load(p: *const f32) -> __m512;
        load_bf16(p: *const u8) -> __m512;
        load_f16(p: *const u8) -> __m512;
        load_i8(p: *const i8) -> __m512;
        store(p: *mut f32, v: __m512);
    }
}
