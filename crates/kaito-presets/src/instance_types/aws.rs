//! AWS's accelerated instances for amd64 with whole NVIDIA GPUs, as EC2's `DescribeInstanceTypes` tells them (in the tables
//! that karpenter.sh/docs/reference/instance-types prints of it; p3 from its version 1.0).

use super::{
    Cloud, InstanceType,
    gpu::{A10G, A100_40, A100_80, Gpu, H100_80, H200, L4, L40S, T4, V100_16, V100_32},
};

/// One node: memory in GiB.
const fn aws(name: &'static str, gpus: u32, gpu: Gpu, cpus: u32, memory: u64) -> InstanceType {
    InstanceType::published(name, Cloud::Aws, gpus, gpu, cpus, memory)
}

pub(super) static INSTANCE_TYPES: &[InstanceType] = &[
    aws("g4dn.xlarge", 1, T4, 4, 16),
    aws("g4dn.2xlarge", 1, T4, 8, 32),
    aws("g4dn.4xlarge", 1, T4, 16, 64),
    aws("g4dn.8xlarge", 1, T4, 32, 128),
    aws("g4dn.12xlarge", 4, T4, 48, 192),
    aws("g4dn.16xlarge", 1, T4, 64, 256),
    aws("g4dn.metal", 8, T4, 96, 384),
    aws("p3.2xlarge", 1, V100_16, 8, 61),
    aws("p3.8xlarge", 4, V100_16, 32, 244),
    aws("p3.16xlarge", 8, V100_16, 64, 488),
    aws("p3dn.24xlarge", 8, V100_32, 96, 768),
    aws("g5.xlarge", 1, A10G, 4, 16),
    aws("g5.2xlarge", 1, A10G, 8, 32),
    aws("g5.4xlarge", 1, A10G, 16, 64),
    aws("g5.8xlarge", 1, A10G, 32, 128),
    aws("g5.12xlarge", 4, A10G, 48, 192),
    aws("g5.16xlarge", 1, A10G, 64, 256),
    aws("g5.24xlarge", 4, A10G, 96, 384),
    aws("g5.48xlarge", 8, A10G, 192, 768),
    aws("g6.xlarge", 1, L4, 4, 16),
    aws("g6.2xlarge", 1, L4, 8, 32),
    aws("g6.4xlarge", 1, L4, 16, 64),
    aws("g6.8xlarge", 1, L4, 32, 128),
    aws("g6.12xlarge", 4, L4, 48, 192),
    aws("g6.16xlarge", 1, L4, 64, 256),
    aws("g6.24xlarge", 4, L4, 96, 384),
    aws("g6.48xlarge", 8, L4, 192, 768),
    aws("gr6.4xlarge", 1, L4, 16, 128),
    aws("gr6.8xlarge", 1, L4, 32, 256),
    aws("g6e.xlarge", 1, L40S, 4, 32),
    aws("g6e.2xlarge", 1, L40S, 8, 64),
    aws("g6e.4xlarge", 1, L40S, 16, 128),
    aws("g6e.8xlarge", 1, L40S, 32, 256),
    aws("g6e.12xlarge", 4, L40S, 48, 384),
    aws("g6e.16xlarge", 1, L40S, 64, 512),
    aws("g6e.24xlarge", 4, L40S, 96, 768),
    aws("g6e.48xlarge", 8, L40S, 192, 1536),
    aws("p4d.24xlarge", 8, A100_40, 96, 1152),
    aws("p4de.24xlarge", 8, A100_80, 96, 1152),
    aws("p5.4xlarge", 1, H100_80, 16, 256),
    aws("p5.48xlarge", 8, H100_80, 192, 2048),
    aws("p5e.48xlarge", 8, H200, 192, 2048),
    aws("p5en.48xlarge", 8, H200, 192, 2048),
];
