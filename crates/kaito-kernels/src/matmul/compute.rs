//! How products treat activations.

use std::{fmt, str::FromStr};

#[cfg(target_arch = "x86_64")]
use crate::amx::Hardware;
#[cfg(any(target_arch = "x86_64", test))]
use crate::amx::Unit;
#[cfg(target_arch = "x86_64")]
use crate::simd::has_bf16_pairs;
use crate::{DType, KernelLevel, simd::Level};

/// How products treat activations. Products with weights in f32 are always [`Compute::Exact`].
///
/// It is chosen once for a model: in one mode the bits of a row do not depend on the tokens that are computed together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compute {
    /// Activations keep all their bits.
    Exact,
    /// Activations are rounded to bf16 at each product, to nearest and ties to even, as other programs do with weights in bf16; sums are in
    /// f32. Whether denormal numbers (below 2^-126) count or are zeros depends on the instruction set.
    Bf16,
    /// Activations are rounded to 8 bits at each product with weights in a block format of GGUF, 32 sharing a scale, as llama.cpp does; sums
    /// of 32 products are exact, and added in f32. Products with other weights are as with [`Compute::Exact`].
    Int8,
}

impl Compute {
    /// Whether this process's kernels have units for which [`Compute::Bf16`] is faster than [`Compute::Exact`].
    ///
    /// Tile registers are. Of the processors that multiply pairs of bf16 in vectors, AMD's do so at twice the rate of `f32` (Zen 4 and 5),
    /// Intel's at half of it.
    pub fn has_fast_bf16() -> bool {
        match KernelLevel::chosen() {
            KernelLevel::Amx => true,
            KernelLevel::Avx512 => has_fast_pairs(),
            KernelLevel::Avx2 | KernelLevel::Neon | KernelLevel::Portable => false,
        }
    }

    /// Whether this process's kernels have instructions for which [`Compute::Int8`] is faster than [`Compute::Exact`].
    pub fn has_fast_int8() -> bool {
        KernelLevel::chosen() != KernelLevel::Portable
    }
}

fn has_fast_pairs() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_amd() && has_bf16_pairs();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Whether the processor is AMD's, whose units differ from Intel's with the same instructions.
#[cfg(target_arch = "x86_64")]
fn is_amd() -> bool {
    let vendor = std::arch::x86_64::__cpuid(0);
    [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened() == b"AuthenticAMD"
}

/// Whether widening weights takes the same units as multiplying: with AVX-512, on Intel's processors. On Zen 4, where it does not, weights
/// that were widened beforehand are read at twice the bytes: such products were 3 to 6% slower.
pub(super) fn widening_competes() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        static COMPETES: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
        *COMPETES.get_or_init(|| !is_amd())
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

impl fmt::Display for Compute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exact => "exact",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        })
    }
}

/// A name that is none of [`Compute`]'s.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("products are computed exact, bf16 or int8, not {0:?}")]
pub struct UnknownCompute(String);

impl FromStr for Compute {
    type Err = UnknownCompute;

    fn from_str(name: &str) -> Result<Self, UnknownCompute> {
        [Self::Exact, Self::Bf16, Self::Int8]
            .into_iter()
            .find(|compute| compute.to_string() == name)
            .ok_or_else(|| UnknownCompute(name.to_owned()))
    }
}

/// How activations lie in memory for products with some weights: the kernels that multiply them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InputForm(pub(super) Form);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Form {
    /// Vectors of `f32`.
    Vectors(Level),
    /// The same, rounded to bf16.
    RoundedVectors(Level),
    /// Vectors of pairs of bf16, for weights in bf16 with an even number of columns. With another number they are [`Form::RoundedVectors`].
    #[cfg(target_arch = "x86_64")]
    Pairs,
    /// Operands of tile registers: rounded to bf16, or as sums of three of them.
    #[cfg(any(target_arch = "x86_64", test))]
    Tiles { unit: Unit, split: bool },
}

impl InputForm {
    /// For products with weights of type `weights` by this process's kernels.
    pub fn of(compute: Compute, weights: DType) -> Self {
        Self::on(KernelLevel::chosen(), compute, weights)
    }

    pub(super) fn on(level: KernelLevel, compute: Compute, weights: DType) -> Self {
        let vectors = level.vectors();
        #[cfg(target_arch = "x86_64")]
        if let (KernelLevel::Amx, DType::Bf16 | DType::F16, Some(unit)) = (level, weights, Hardware::new()) {
            return Self(Form::Tiles { unit: Unit::Hardware(unit), split: compute != Compute::Bf16 });
        }
        #[cfg(target_arch = "x86_64")]
        if (level, compute, weights) == (KernelLevel::Avx512, Compute::Bf16, DType::Bf16) && has_fast_pairs() {
            return Self(Form::Pairs);
        }
        Self(match (compute, weights) {
            (Compute::Exact | Compute::Int8, _) | (Compute::Bf16, DType::F32) => Form::Vectors(vectors),
            (Compute::Bf16, DType::Bf16 | DType::F16) => Form::RoundedVectors(vectors),
        })
    }

    /// Whether activations of this form can be multiplied by weights of type `weights`.
    pub(super) fn fits(self, weights: DType) -> bool {
        match self.0 {
            Form::Vectors(_) => true,
            Form::RoundedVectors(_) => weights != DType::F32,
            #[cfg(target_arch = "x86_64")]
            Form::Pairs => weights == DType::Bf16,
            #[cfg(any(target_arch = "x86_64", test))]
            Form::Tiles { .. } => weights != DType::F32,
        }
    }
}
