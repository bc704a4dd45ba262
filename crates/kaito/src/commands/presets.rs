//! `kaito presets`: the catalogue.

use kaito_presets::{DType, ImageAccess, PRESETS, Preset, PresetKind, WorkloadKind};
use serde_json::{Value, json};

use super::pretty;
use crate::{
    args::PresetsArgs,
    display::{aligned, bytes, count},
    output::print,
};

pub fn run(args: &PresetsArgs) -> anyhow::Result<()> {
    let text = match (&args.name, args.json) {
        (None, false) => table(),
        (None, true) => pretty(&Value::Array(PRESETS.iter().map(json_of).collect()))?,
        (Some(name), json) => {
            let preset = super::preset(name)?;
            if json { pretty(&json_of(preset))? } else { in_full(preset) }
        }
    };
    print(&text)
}

fn table() -> String {
    let header =
        ["NAME", "PARAMETERS", "WEIGHTS", "CONTEXT", "KIND", "ENDPOINT", "KAITO'S", "REPOSITORY"].map(String::from);
    let rows = PRESETS.iter().map(|preset| {
        [
            preset.name.to_owned(),
            count(preset.shape.parameters()),
            format!("{} {}", bytes(preset.shape.weights_bytes(preset.dtype)), preset.dtype),
            preset.shape.max_position_embeddings.to_string(),
            kind(preset.kind).to_owned(),
            preset.openai_endpoint().to_owned(),
            preset.endpoint().to_owned(),
            preset.hub_id.to_owned(),
        ]
    });
    aligned(std::iter::once(header).chain(rows).collect())
}

fn in_full(preset: &Preset) -> String {
    let shape = &preset.shape;
    let workload = &preset.workload;
    let kv = |dtype| shape.kv_cache_bytes_per_token(dtype);
    let context = shape.max_position_embeddings as u64;
    let rows = [
        ("name", preset.name.to_owned()),
        ("also written", preset.aliases.join(", ")),
        ("repository", preset.hub_id.to_owned()),
        (
            "in GGUF files",
            preset.gguf.map_or_else(String::new, |gguf| format!("{gguf}, {}:Q4_K_M and others", preset.name)),
        ),
        ("family", shape.family.to_string()),
        ("kind", kind(preset.kind).to_owned()),
        ("endpoint", format!("{} (OpenAI's API), {} (Kaito's)", preset.openai_endpoint(), preset.endpoint())),
        ("", String::new()),
        ("parameters", count(shape.parameters())),
        (
            "weights",
            format!(
                "{} in 16 bits, {} in 32",
                bytes(shape.weights_bytes(DType::Bf16)),
                bytes(shape.weights_bytes(DType::F32))
            ),
        ),
        (
            "KV cache",
            format!(
                "{} a token in 32 bits; {} for a full context",
                bytes(kv(DType::F32)),
                bytes(kv(DType::F32).saturating_mul(context))
            ),
        ),
        ("context", format!("{} tokens", shape.max_position_embeddings)),
        ("window", shape.sliding_window.map_or_else(|| "none".to_owned(), |window| format!("{window} tokens"))),
        (
            "shape",
            format!(
                "{} layers, hidden {}, inner {}, {} heads of {}, {} key-value heads, vocabulary {}",
                shape.num_layers,
                shape.hidden_size,
                shape.intermediate_size,
                shape.num_heads,
                shape.head_dim,
                shape.num_kv_heads,
                shape.vocab_size
            ),
        ),
        ("", String::new()),
        (
            "workload",
            format!(
                "{}, {} rank{}",
                workload_kind(workload.kind),
                workload.ranks,
                if workload.ranks == 1 { "" } else { "s" }
            ),
        ),
        ("image", image(workload.image).to_owned()),
        (
            "GPUs",
            match workload.gpu_memory_each {
                Some(each) => {
                    format!("{}, with {} in all and {} each", workload.gpus, bytes(workload.gpu_memory), bytes(each))
                }
                None => format!("{}, with {} in all", workload.gpus, bytes(workload.gpu_memory)),
            },
        ),
        ("disk", bytes(workload.disk)),
        ("ready within", format!("{} min", workload.ready_within.as_secs() / 60)),
    ];
    let rows = rows.into_iter().filter(|(key, _)| *key != "in GGUF files" || preset.gguf.is_some());
    aligned(rows.map(|(key, value)| [key.to_owned(), value]).collect())
}

fn json_of(preset: &Preset) -> Value {
    let mut value = json!(preset);
    if let Some(object) = value.as_object_mut() {
        object.insert("endpoint".to_owned(), json!(preset.endpoint()));
        object.insert("openai_endpoint".to_owned(), json!(preset.openai_endpoint()));
        object.insert("parameters".to_owned(), json!(preset.shape.parameters()));
    }
    value.sort_all_objects();
    value
}

fn kind(kind: PresetKind) -> &'static str {
    match kind {
        PresetKind::Completion => "completion",
        PresetKind::Chat => "chat",
    }
}

fn workload_kind(kind: WorkloadKind) -> &'static str {
    match kind {
        WorkloadKind::Deployment => "Deployment",
        WorkloadKind::StatefulSet => "StatefulSet",
    }
}

fn image(access: ImageAccess) -> &'static str {
    match access {
        ImageAccess::Public => "public",
        ImageAccess::Private => "private: the licence wants users to build their own",
    }
}
