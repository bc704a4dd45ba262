use std::{borrow::Cow, fmt};

use serde::{Serialize, Serializer};

use super::GpuVendor;
use crate::GIB;

/// A model of GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// Who makes it.
    pub vendor: GpuVendor,
    /// As its maker calls it: `NVIDIA A100`.
    pub model: Cow<'static, str>,
    /// Memory as published, in bytes. A published "80 GB" is 80 GiB, for memory chips come in powers of two.
    pub memory: u64,
    /// Bytes of it that a program can have: what error correction and the driver leave.
    pub usable_memory: u64,
    /// Compute capability; `None` where a user's description leaves it out, and for GPUs of others than NVIDIA.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compute_capability: Option<ComputeCapability>,
}

/// Compute capability of an NVIDIA GPU: which instructions it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ComputeCapability {
    /// The architecture: 7 Volta and Turing, 8 Ampere and Ada Lovelace, 9 Hopper.
    pub major: u8,
    /// The variant of it.
    pub minor: u8,
}

impl ComputeCapability {
    /// The first that multiplies bf16.
    pub const BF16: Self = Self { major: 8, minor: 0 };
}

impl fmt::Display for ComputeCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{}", self.major, self.minor))
    }
}

impl Serialize for ComputeCapability {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// `gib` GiB as published, of which a program sees hundredths of a GiB.
const fn nvidia(model: &'static str, gib: u64, usable_hundredths: u64, major: u8, minor: u8) -> Gpu {
    Gpu {
        vendor: GpuVendor::Nvidia,
        model: Cow::Borrowed(model),
        memory: gib * GIB,
        usable_memory: (usable_hundredths * GIB).div_ceil(100),
        compute_capability: Some(ComputeCapability { major, minor }),
    }
}

// Models, sizes and compute capabilities are NVIDIA's (data sheets; developer.nvidia.com/cuda-gpus). What a program sees
// is the "total capacity" of PyTorch's out-of-memory messages in public reports, the least of those that agree.

pub(super) const V100_16: Gpu = nvidia("NVIDIA V100", 16, 1577, 7, 0);
pub(super) const V100_32: Gpu = nvidia("NVIDIA V100", 32, 3173, 7, 0);
pub(super) const T4: Gpu = nvidia("NVIDIA T4", 16, 1456, 7, 5);
pub(super) const A10: Gpu = nvidia("NVIDIA A10", 24, 2195, 8, 6);
pub(super) const A10G: Gpu = nvidia("NVIDIA A10G", 24, 2195, 8, 6);
pub(super) const L4: Gpu = nvidia("NVIDIA L4", 24, 2195, 8, 9);
pub(super) const L40S: Gpu = nvidia("NVIDIA L40S", 48, 4434, 8, 9);
pub(super) const A100_40: Gpu = nvidia("NVIDIA A100", 40, 3938, 8, 0);
pub(super) const A100_80: Gpu = nvidia("NVIDIA A100", 80, 7914, 8, 0);
pub(super) const H100_80: Gpu = nvidia("NVIDIA H100", 80, 7910, 9, 0);
pub(super) const H100_NVL: Gpu = nvidia("NVIDIA H100 NVL", 94, 9300, 9, 0);
pub(super) const H200: Gpu = nvidia("NVIDIA H200", 141, 13972, 9, 0);

// Slices of an A10, a virtual GPU each.
pub(super) const A10_SIXTH: Gpu = nvidia("NVIDIA A10 (1/6)", 4, 400, 8, 6);
pub(super) const A10_THIRD: Gpu = nvidia("NVIDIA A10 (1/3)", 8, 800, 8, 6);
pub(super) const A10_HALF: Gpu = nvidia("NVIDIA A10 (1/2)", 12, 1200, 8, 6);
