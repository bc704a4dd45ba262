//! Azure's N series, after the size tables of learn.microsoft.com/azure/virtual-machines/sizes/gpu-accelerated. Where two
//! pages disagree about a node's GPU memory, it is GPUs times the memory of one.

use super::{
    Cloud, InstanceType,
    gpu::{A10, A10_HALF, A10_SIXTH, A10_THIRD, A100_40, A100_80, Gpu, H100_80, H100_NVL, H200, T4, V100_16, V100_32},
};

/// One node: memory in GiB.
const fn azure(name: &'static str, gpus: u32, gpu: Gpu, cpus: u32, memory: u64) -> InstanceType {
    InstanceType::published(name, Cloud::Azure, gpus, gpu, cpus, memory)
}

pub(super) static INSTANCE_TYPES: &[InstanceType] = &[
    azure("Standard_NC4as_T4_v3", 1, T4, 4, 28),
    azure("Standard_NC8as_T4_v3", 1, T4, 8, 56),
    azure("Standard_NC16as_T4_v3", 1, T4, 16, 110),
    azure("Standard_NC64as_T4_v3", 4, T4, 64, 440),
    azure("Standard_NC6s_v3", 1, V100_16, 6, 112),
    azure("Standard_NC12s_v3", 2, V100_16, 12, 224),
    azure("Standard_NC24s_v3", 4, V100_16, 24, 448),
    azure("Standard_NC24rs_v3", 4, V100_16, 24, 448),
    azure("Standard_ND40rs_v2", 8, V100_32, 40, 672),
    azure("Standard_NV6ads_A10_v5", 1, A10_SIXTH, 6, 55),
    azure("Standard_NV12ads_A10_v5", 1, A10_THIRD, 12, 110),
    azure("Standard_NV18ads_A10_v5", 1, A10_HALF, 18, 220),
    azure("Standard_NV36ads_A10_v5", 1, A10, 36, 440),
    azure("Standard_NV36adms_A10_v5", 1, A10, 36, 880),
    azure("Standard_NV72ads_A10_v5", 2, A10, 72, 880),
    azure("Standard_NC24ads_A100_v4", 1, A100_80, 24, 220),
    azure("Standard_NC48ads_A100_v4", 2, A100_80, 48, 440),
    azure("Standard_NC96ads_A100_v4", 4, A100_80, 96, 880),
    azure("Standard_ND96asr_v4", 8, A100_40, 96, 900),
    azure("Standard_ND96amsr_A100_v4", 8, A100_80, 96, 1900),
    azure("Standard_NC40ads_H100_v5", 1, H100_NVL, 40, 320),
    azure("Standard_NC80adis_H100_v5", 2, H100_NVL, 80, 640),
    azure("Standard_NCC40ads_H100_v5", 1, H100_NVL, 40, 320),
    azure("Standard_ND96isr_H100_v5", 8, H100_80, 96, 1900),
    azure("Standard_ND96isr_H200_v5", 8, H200, 96, 1850),
];
