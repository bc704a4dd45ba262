//! `kaito instance-types`: machines.

use kaito_presets::{InstanceType, InstanceTypes, Load, PRESETS};
use serde_json::{Value, json};

use super::pretty;
use crate::{args::InstanceTypesArgs, display::aligned, output::print};

pub fn run(args: &InstanceTypesArgs) -> anyhow::Result<()> {
    let types = super::instance_types(args.instance_types.as_deref())?;
    print(&match &args.instance_type {
        Some(name) => {
            let one = super::instance_type(&types, name)?;
            if args.json { pretty(&json_of(one))? } else { in_full(one, &types) }
        }
        None => {
            let cloud = args.cloud.map(Into::into);
            let chosen = types.iter().filter(|one| cloud.is_none_or(|cloud| one.cloud == cloud));
            if args.json { pretty(&chosen.map(json_of).collect::<Vec<_>>())? } else { table(chosen) }
        }
    })
}

fn json_of(one: &InstanceType) -> Value {
    let mut value = json!(one);
    if let Some(object) = value.as_object_mut() {
        object.insert("gpu_memory".to_owned(), json!(one.gpu_memory()));
    }
    value.sort_all_objects();
    value
}

fn table<'a>(types: impl Iterator<Item = &'a InstanceType>) -> String {
    let header = ["NAME", "CLOUD", "GPUS", "GPU", "MEMORY EACH", "USABLE EACH", "IN ALL", "COMPUTE", "CPUS", "MEMORY"];
    let rows = types.map(|one| {
        [
            one.name.clone().into_owned(),
            one.cloud.to_string(),
            one.gpus.to_string(),
            one.gpu.model.clone().into_owned(),
            gib(one.gpu.memory),
            gib(one.gpu.usable_memory),
            gib(one.gpu_memory()),
            known(one.gpu.compute_capability),
            known(one.cpus),
            one.memory.map_or_else(unknown, gib),
        ]
    });
    aligned(std::iter::once(header.map(String::from)).chain(rows).collect())
}

fn in_full(one: &InstanceType, types: &InstanceTypes) -> String {
    let rows = [
        ("name", one.name.clone().into_owned()),
        ("cloud", one.cloud.to_string()),
        ("GPUs", format!("{} x {}", one.gpus, one.gpu.model)),
        (
            "GPU memory",
            format!(
                "{} in all, {} each, {} of that usable",
                gib(one.gpu_memory()),
                gib(one.gpu.memory),
                gib(one.gpu.usable_memory)
            ),
        ),
        ("compute capability", known(one.gpu.compute_capability)),
        ("CPUs", known(one.cpus)),
        ("memory", one.memory.map_or_else(unknown, gib)),
    ];
    let mut text = aligned(rows.map(|(key, value)| [key.to_owned(), value]).into());
    let header = ["PRESET", "NODES", "GPUS PER NODE", "CONTEXT", "SEQUENCES"].map(String::from);
    let plans = PRESETS.iter().map(|preset| types.plan(&Load::from(preset), one, None)).filter(|plan| plan.fits);
    let fitting: Vec<_> = plans
        .map(|plan| {
            let capacity = |of: fn(&kaito_presets::Capacity) -> u64| {
                plan.capacity.as_ref().map_or_else(unknown, |capacity| of(capacity).to_string())
            };
            [
                plan.preset.to_owned(),
                plan.nodes.to_string(),
                plan.gpus_per_node.to_string(),
                capacity(|capacity| capacity.context),
                capacity(|capacity| capacity.batch),
            ]
        })
        .collect();
    if fitting.is_empty() {
        text.push_str("\nNo preset fits on it.\n");
    } else {
        text.push('\n');
        text.push_str(&aligned(std::iter::once(header).chain(fitting).collect()));
        text.push_str("\nCONTEXT: the longest sequence that fits; SEQUENCES: how many of 2048 tokens do.\n");
    }
    text
}

fn known(value: Option<impl ToString>) -> String {
    value.map_or_else(unknown, |value| value.to_string())
}

fn unknown() -> String {
    "-".to_owned()
}

/// `15.77 GiB`.
fn gib(bytes: u64) -> String {
    kaito_presets::gib(bytes)
}
