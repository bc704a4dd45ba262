//! How keys and values lie in memory: the kernels that attend to them.

use super::KvDType;
#[cfg(any(target_arch = "x86_64", test))]
use crate::amx::Unit;
#[cfg(target_arch = "x86_64")]
use crate::{KernelLevel, amx::Hardware};

/// How keys and values lie in memory: the kernels that attend to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KvForm(pub(crate) Form);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Form {
    /// For vectors of `f32`: see [`KvBuffer`](super::KvBuffer).
    Vectors(KvDType),
    /// In bf16, as operands of tile registers: elements of keys, and tokens of values, are interleaved in pairs.
    #[cfg(any(target_arch = "x86_64", test))]
    Tiles(Unit),
}

/// Elements of a head that a tile register has of each token.
#[cfg(any(target_arch = "x86_64", test))]
pub(crate) const TILE_ELEMENTS: usize = 32;

impl KvForm {
    /// For a KV cache in `dtype`, of heads of `head_dim` elements. Where `rounded` is true, attention may round queries and the exponentials of
    /// scores to bf16: with a KV cache in bf16 it does so where this process's kernels have tile registers.
    pub fn of(dtype: KvDType, rounded: bool, head_dim: usize) -> Self {
        #[cfg(target_arch = "x86_64")]
        if let (KvDType::Bf16, true, KernelLevel::Amx, Some(unit)) =
            (dtype, rounded && fits_tiles(head_dim), KernelLevel::chosen(), Hardware::new())
        {
            return Self(Form::Tiles(Unit::Hardware(unit)));
        }
        let _ = (rounded, head_dim);
        dtype.into()
    }

    /// For tile registers: the processor's, and where it has none their definition.
    #[cfg(test)]
    pub(crate) fn tiles() -> Self {
        #[cfg(target_arch = "x86_64")]
        let unit = Hardware::new().map_or(Unit::Emulated, Unit::Hardware);
        #[cfg(not(target_arch = "x86_64"))]
        let unit = Unit::Emulated;
        Self(Form::Tiles(unit))
    }

    /// Whether attention is by tile registers.
    pub fn is_for_tiles(self) -> bool {
        match self.0 {
            Form::Vectors(_) => false,
            #[cfg(any(target_arch = "x86_64", test))]
            Form::Tiles(_) => true,
        }
    }

    /// Element type.
    pub fn dtype(self) -> KvDType {
        match self.0 {
            Form::Vectors(dtype) => dtype,
            #[cfg(any(target_arch = "x86_64", test))]
            Form::Tiles(_) => KvDType::Bf16,
        }
    }
}

/// Whether heads of so many elements are whole operands.
#[cfg(any(target_arch = "x86_64", test))]
pub(crate) fn fits_tiles(head_dim: usize) -> bool {
    head_dim > 0 && head_dim.is_multiple_of(TILE_ELEMENTS)
}

impl From<KvDType> for KvForm {
    /// For vectors of `f32`.
    fn from(dtype: KvDType) -> Self {
        Self(Form::Vectors(dtype))
    }
}
