//! Google's accelerator-optimised machines, after cloud.google.com/compute/docs/accelerator-optimized-machines. Machines to
//! which GPUs are attached by choice (N1) have no entry, for their name does not tell the GPUs.

use super::{
    Cloud, InstanceType,
    gpu::{A100_40, A100_80, Gpu, H100_80, H200, L4},
};

/// One node: memory in GiB.
const fn google(name: &'static str, gpus: u32, gpu: Gpu, cpus: u32, memory: u64) -> InstanceType {
    InstanceType::published(name, Cloud::Google, gpus, gpu, cpus, memory)
}

pub(super) static INSTANCE_TYPES: &[InstanceType] = &[
    google("g2-standard-4", 1, L4, 4, 16),
    google("g2-standard-8", 1, L4, 8, 32),
    google("g2-standard-12", 1, L4, 12, 48),
    google("g2-standard-16", 1, L4, 16, 64),
    google("g2-standard-24", 2, L4, 24, 96),
    google("g2-standard-32", 1, L4, 32, 128),
    google("g2-standard-48", 4, L4, 48, 192),
    google("g2-standard-96", 8, L4, 96, 384),
    google("a2-highgpu-1g", 1, A100_40, 12, 85),
    google("a2-highgpu-2g", 2, A100_40, 24, 170),
    google("a2-highgpu-4g", 4, A100_40, 48, 340),
    google("a2-highgpu-8g", 8, A100_40, 96, 680),
    google("a2-megagpu-16g", 16, A100_40, 96, 1360),
    google("a2-ultragpu-1g", 1, A100_80, 12, 170),
    google("a2-ultragpu-2g", 2, A100_80, 24, 340),
    google("a2-ultragpu-4g", 4, A100_80, 48, 680),
    google("a2-ultragpu-8g", 8, A100_80, 96, 1360),
    google("a3-highgpu-1g", 1, H100_80, 26, 234),
    google("a3-highgpu-2g", 2, H100_80, 52, 468),
    google("a3-highgpu-4g", 4, H100_80, 104, 936),
    google("a3-highgpu-8g", 8, H100_80, 208, 1872),
    google("a3-edgegpu-8g", 8, H100_80, 208, 1872),
    google("a3-megagpu-8g", 8, H100_80, 208, 1872),
    google("a3-ultragpu-8g", 8, H200, 224, 2952),
];
