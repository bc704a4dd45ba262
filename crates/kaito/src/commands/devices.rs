//! `kaito devices`: what this machine can compute on.

use anyhow::Context;
use kaito_engine::{DeviceMemory, DeviceProperties, KernelLevel};
use serde_json::{Value, json};

use super::pretty;
use crate::{
    args::DevicesArgs,
    display::{aligned, bytes},
    output::print,
};

pub fn run(args: &DevicesArgs) -> anyhow::Result<()> {
    KernelLevel::from_environment().context("KAITO_KERNELS")?;
    let devices = kaito_engine::devices();
    print(&if args.json { pretty(&devices.iter().map(json_of).collect::<Vec<_>>())? } else { table(&devices) })
}

fn table(devices: &[(DeviceProperties, DeviceMemory)]) -> String {
    let header = [
        "DEVICE",
        "MODEL",
        "INSTRUCTIONS",
        "CORES",
        "MEMORY",
        "FREE",
        "WEIGHTS",
        "COMPUTE",
        "QUANTISED WEIGHTS",
        "KV CACHE",
    ];
    let rows = devices.iter().map(|(device, memory)| {
        [
            device.name.clone(),
            device.model.clone().unwrap_or_else(|| "-".to_owned()),
            device.instruction_set.to_owned(),
            device.cores.to_string(),
            bytes(memory.total),
            bytes(memory.free),
            names(device.precisions.weights).join(", "),
            names(device.precisions.compute).join(", "),
            names(device.precisions.quantized).join(", "),
            names(device.precisions.kv_cache).join(", "),
        ]
    });
    aligned(std::iter::once(header.map(String::from)).chain(rows).collect())
}

fn json_of((device, memory): &(DeviceProperties, DeviceMemory)) -> Value {
    json!({
        "cores": device.cores,
        "instruction_set": device.instruction_set,
        "memory": { "free": memory.free, "total": memory.total },
        "model": device.model,
        "name": device.name,
        "page_size": device.page_size,
        "precisions": {
            "compute": names(device.precisions.compute),
            "kv_cache": names(device.precisions.kv_cache),
            "quantized_weights": names(device.precisions.quantized),
            "weights": names(device.precisions.weights),
        },
    })
}

fn names(precisions: &[impl ToString]) -> Vec<String> {
    precisions.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use kaito_engine::Compute;

    use super::*;

    #[test]
    fn a_device_a_line() {
        let (mut device, _) = kaito_engine::devices().remove(0);
        device.model = Some("AMD EPYC 7B13".to_owned());
        (device.instruction_set, device.cores) = ("avx2", 16);
        device.precisions.compute = &[Compute::Exact, Compute::Bf16];
        let nameless = DeviceProperties { model: None, cores: 2, ..device.clone() };
        let memory = |gib: u64| DeviceMemory { total: gib << 30, free: (gib << 30) - (1 << 29) };
        let expected = [
            "DEVICE  MODEL          INSTRUCTIONS  CORES  MEMORY    FREE      WEIGHTS         COMPUTE      QUANTISED WEIGHTS  KV CACHE\n",
            "cpu     AMD EPYC 7B13  avx2          16     64.0 GiB  63.5 GiB  f32, bf16, f16  exact, bf16  int8, int4         f32, bf16, int8\n",
            "cpu     -              avx2          2      4.0 GiB   3.5 GiB   f32, bf16, f16  exact, bf16  int8, int4         f32, bf16, int8\n",
        ];
        assert_eq!(table(&[(device, memory(64)), (nameless, memory(4))]), expected.concat());
    }
}
