//! How stored elements are read.

use crate::simd::{MAX_LANES, Simd};

/// An element type of weights, keys or values, known when code is compiled.
pub(crate) trait Element {
    /// Bytes of an element.
    const SIZE: usize;

    /// # Safety
    /// `LANES` elements can be read at `p`.
    unsafe fn load<S: Simd>(simd: S, p: *const u8) -> S::Vector;

    /// The first `LANES` elements of `bytes`.
    #[inline(always)]
    fn load_slice<S: Simd>(simd: S, bytes: &[u8]) -> S::Vector {
        assert!(bytes.len() >= S::LANES * Self::SIZE);
        // SAFETY: just checked.
        unsafe { Self::load(simd, bytes.as_ptr()) }
    }

    /// Fewer than `LANES` elements and zeros after them.
    #[inline(always)]
    fn load_rest<S: Simd>(simd: S, bytes: &[u8]) -> S::Vector {
        let mut buffer = [0u8; 4 * MAX_LANES];
        buffer[..bytes.len()].copy_from_slice(bytes);
        // SAFETY: the buffer has room for the widest vector of the widest element.
        unsafe { Self::load(simd, buffer.as_ptr()) }
    }

    /// [`Element::load_rest`] of `count` elements.
    ///
    /// # Safety
    /// `count` elements can be read at `p`.
    #[inline(always)]
    unsafe fn load_partial<S: Simd>(simd: S, p: *const u8, count: usize) -> S::Vector {
        // SAFETY: by contract.
        Self::load_rest(simd, unsafe { std::slice::from_raw_parts(p, count * Self::SIZE) })
    }
}

/// Does `$work` where `$E` is the element type that `$dtype` names.
macro_rules! with_element {
    ($dtype:expr, |$E:ident| $work:expr) => {
        match $dtype {
            $crate::DType::F32 => {
                type $E = $crate::matmul::element::F32;
                $work
            }
            $crate::DType::Bf16 => {
                type $E = $crate::matmul::element::Bf16;
                $work
            }
            $crate::DType::F16 => {
                type $E = $crate::matmul::element::F16;
                $work
            }
        }
    };
}

pub(crate) use with_element;

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
