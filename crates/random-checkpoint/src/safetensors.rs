//! Sharded safetensors with an index, as transformers saves them.

use std::{
    fs::File,
    io::{BufWriter, Write},
};

use anyhow::Context;
use kaito_presets::DType;
use serde_json::{Map, Value, json};

use crate::{Job, plan::Planned, random};

/// Most bytes of tensors in a shard: transformers' default of 5 GB.
const MAX_SHARD: u64 = 5_000_000_000;
/// The header is padded so that the data begins at a multiple of this.
const ALIGNMENT: usize = 8;

pub fn write(job: &Job, tensors: &[Planned]) -> anyhow::Result<()> {
    let bytes = |tensor: &Planned| (tensor.elements() * job.preset.dtype.size()) as u64;
    let shards = split(tensors, bytes);
    let total: u64 = tensors.iter().map(bytes).sum();
    job.progress.set_length(total);
    let name = |number: usize| match shards.len() {
        1 => "model.safetensors".to_owned(),
        count => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
    };
    let mut weight_map = Map::new();
    for (number, shard) in shards.iter().enumerate() {
        write_shard(job, &name(number), shard)?;
        weight_map.extend(shard.iter().map(|tensor| (tensor.name.clone(), Value::from(name(number)))));
    }
    if shards.len() > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        job.write_json("model.safetensors.index.json", index)?;
    }
    Ok(())
}

fn split(tensors: &[Planned], bytes: impl Fn(&Planned) -> u64) -> Vec<&[Planned]> {
    let mut shards = Vec::new();
    let (mut start, mut size) = (0, 0);
    for (place, tensor) in tensors.iter().enumerate() {
        if place > start && size + bytes(tensor) > MAX_SHARD {
            shards.push(&tensors[start..place]);
            (start, size) = (place, 0);
        }
        size += bytes(tensor);
    }
    shards.push(&tensors[start..]);
    shards
}

fn write_shard(job: &Job, name: &str, tensors: &[Planned]) -> anyhow::Result<()> {
    let dtype = job.preset.dtype;
    let type_name = match dtype {
        DType::F32 => "F32",
        DType::Bf16 => "BF16",
        DType::F16 => "F16",
    };
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut end = 0;
    for tensor in tensors {
        let begin = end;
        end += (tensor.elements() * dtype.size()) as u64;
        let entry = json!({ "data_offsets": [begin, end], "dtype": type_name, "shape": tensor.shape });
        header.insert(tensor.name.clone(), entry);
    }
    header.sort_keys();
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(ALIGNMENT), b' ');

    let path = job.dir.join(name);
    let file = File::create(&path).with_context(|| path.display().to_string())?;
    let mut out = BufWriter::new(file);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    for tensor in tensors {
        random::write(&mut out, tensor, dtype, job.seed, job.progress).with_context(|| path.display().to_string())?;
    }
    out.flush().with_context(|| path.display().to_string())
}
