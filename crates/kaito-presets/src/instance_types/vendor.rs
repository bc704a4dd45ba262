use std::fmt;

use serde::{Deserialize, Serialize};

/// Who makes a GPU: which device plugin offers it, and which build of an engine computes on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GpuVendor {
    /// NVIDIA, whose GPUs run CUDA.
    #[default]
    Nvidia,
    /// AMD, whose GPUs run ROCm.
    Amd,
}

/// What a vendor's GPUs are called.
struct Facts {
    name: &'static str,
    resource: &'static str,
}

impl GpuVendor {
    /// All of them; of several that would do, the first is taken.
    pub const ALL: [Self; 2] = [Self::Nvidia, Self::Amd];

    const fn facts(self) -> Facts {
        match self {
            Self::Nvidia => Facts { name: "NVIDIA", resource: "nvidia.com/gpu" },
            Self::Amd => Facts { name: "AMD", resource: "amd.com/gpu" },
        }
    }

    /// The resource by which its device plugin for Kubernetes offers GPUs. Nodes that are kept for pods with GPUs have a taint of
    /// the same name.
    pub const fn resource(self) -> &'static str {
        self.facts().resource
    }
}

impl fmt::Display for GpuVendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.facts().name)
    }
}
