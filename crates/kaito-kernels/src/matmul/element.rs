//! How elements of a weight are read.

use crate::simd::{MAX_LANES, Simd};

pub(crate) trait Element {
    /// Bytes of an element.
    const SIZE: usize;

    /// # Safety
    /// `LANES` elements can be read at `p`.
    unsafe fn load<S: Simd>(simd: S, p: *const u8) -> S::Vector;

    /// Fewer than `LANES` elements and zeros after them.
    ///
    /// # Safety
    /// `count` elements can be read at `p`.
    #[inline(always)]
    unsafe fn load_partial<S: Simd>(simd: S, p: *const u8, count: usize) -> S::Vector {
        let mut buffer = [0u8; 4 * MAX_LANES];
        // SAFETY: by contract.
        let bytes = unsafe { std::slice::from_raw_parts(p, count * Self::SIZE) };
        buffer[..bytes.len()].copy_from_slice(bytes);
        // SAFETY: the buffer has room for the widest vector of the widest element.
        unsafe { Self::load(simd, buffer.as_ptr()) }
    }
}

pub(crate) struct F32;
pub(crate) struct Bf16;
pub(crate) struct F16;
pub(crate) struct I8;

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

impl Element for I8 {
    const SIZE: usize = 1;

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, p: *const u8) -> S::Vector {
        // SAFETY: by contract.
        unsafe { simd.load_i8(p.cast()) }
    }
}
