//! Llama 2 as Meta publishes it: `params.json`, `tokenizer.model` and one file a model-parallel rank.

use std::fs;

use anyhow::{Context, ensure};
use kaito_presets::Shape;
use serde_json::{Value, json};

use crate::{Job, plan, tokenizer, torch};

pub fn write(job: &Job) -> anyhow::Result<()> {
    write_beside(job)?;
    let shape = &job.preset.shape;
    let ranks = job.preset.workload.ranks as usize;
    let tensors = plan::meta(shape, ranks);
    let elements: usize = tensors.iter().map(plan::Planned::elements).sum();
    job.progress.set_length((ranks * elements * job.preset.dtype.size()) as u64);
    for rank in 0..ranks {
        let stem = format!("consolidated.{rank:02}");
        // Each rank draws numbers of its own, but all of them the same norms.
        let seed = |tensor: &plan::Planned| match tensor.shape.len() {
            1 => job.seed,
            _ => job.seed.wrapping_add((rank as u64 + 1) << 32),
        };
        torch::write(job, &stem, &tensors, seed)?;
    }
    Ok(())
}

/// What stands beside the weights.
pub fn write_beside(job: &Job) -> anyhow::Result<()> {
    let shape = &job.preset.shape;
    ensure!(shape.family.published_by_meta, "--format meta: {} was never published by Meta", job.preset.name);
    job.write_json("params.json", params(shape)?)?;
    let path = job.dir.join("tokenizer.model");
    fs::write(&path, tokenizer::sentencepiece(shape)).with_context(|| path.display().to_string())
}

/// The published parameters: the inner width follows from the width by a multiplier and a multiple.
fn params(shape: &Shape) -> anyhow::Result<Value> {
    let mut params = json!({
        "dim": shape.hidden_size,
        "n_heads": shape.num_heads,
        "n_layers": shape.num_layers,
        "norm_eps": shape.norm_eps,
        "vocab_size": -1,
    });
    // 7B and 13B, and 70B.
    let rules: [(usize, Option<f64>); 2] = [(256, None), (4096, Some(1.3))];
    let inner = |multiple: usize, factor: Option<f64>| {
        let inner = (8 * shape.hidden_size / 3) as f64 * factor.unwrap_or(1.0);
        (inner as usize).next_multiple_of(multiple)
    };
    let rule = rules.into_iter().find(|&(multiple, factor)| inner(multiple, factor) == shape.intermediate_size);
    let (multiple, factor) = rule.context("an inner width that none of Meta's published rules gives")?;
    params["multiple_of"] = json!(multiple);
    if let Some(factor) = factor {
        params["ffn_dim_multiplier"] = json!(factor);
    }
    if shape.num_kv_heads != shape.num_heads {
        params["n_kv_heads"] = json!(shape.num_kv_heads);
    }
    Ok(params)
}
