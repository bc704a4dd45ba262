//! Writes a checkpoint of random weights in the true shape of a preset (or of a model that speeds are quoted for), as large
//! and as laid out as the published one, for tests of loading, memory and speed without a download:
//!
//! ```text
//! cargo run --release -p random-checkpoint -- llama-2-7b --out DIR [--layers 2] [--dtype bf16] [--format meta]
//! ```

#![forbid(unsafe_code)]

mod meta;
mod plan;
mod random;
mod safetensors;
mod shapes;
#[cfg(test)]
mod tests;
mod tokenizer;
mod torch;

use std::{fs, path::PathBuf};

use anyhow::{Context, ensure};
use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use kaito_presets::{DType, Preset, Shape};
use serde_json::{Value, json};

/// Writes a checkpoint of random weights in the true shape of a preset.
#[derive(Parser)]
struct Args {
    /// The preset whose shape to take: llama-2-7b, falcon-40b, ...; or tinyllama-1.1b
    preset: String,
    /// Directory to write; it must not exist yet, or be empty.
    #[arg(long)]
    out: PathBuf,
    /// Layers, if not as many as published.
    #[arg(long)]
    layers: Option<usize>,
    /// Element type, if not the published one.
    #[arg(long)]
    dtype: Option<DTypeArg>,
    /// Layout of the files; Meta's only for Llama 2, in as many shards as published.
    #[arg(long, default_value = "safetensors")]
    format: Format,
    /// The same seed gives the same files.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum DTypeArg {
    F32,
    Bf16,
    F16,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Safetensors,
    Meta,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut preset = shapes::find(&args.preset)?;
    if let Some(layers) = args.layers {
        ensure!((1..=preset.shape.num_layers).contains(&layers), "--layers: from 1 to {}", preset.shape.num_layers);
        preset.shape.num_layers = layers;
    }
    if let Some(dtype) = args.dtype {
        preset.dtype = match dtype {
            DTypeArg::F32 => DType::F32,
            DTypeArg::Bf16 => DType::Bf16,
            DTypeArg::F16 => DType::F16,
        };
    }
    fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    ensure!(fs::read_dir(&args.out)?.next().is_none(), "{} is not empty", args.out.display());
    let style = ProgressStyle::with_template("{bar:40} {bytes} of {total_bytes} ({bytes_per_sec}, {eta} left)")?;
    let progress = ProgressBar::no_length().with_style(style);
    let job = Job { preset: &preset, dir: &args.out, seed: args.seed, progress: &progress };
    job.write(args.format)?;
    progress.finish();
    eprintln!("{}: {}, {}, {} layers", args.out.display(), preset.name, preset.dtype, preset.shape.num_layers);
    Ok(())
}

/// What to write, and where.
#[derive(Clone, Copy)]
struct Job<'a> {
    preset: &'a Preset,
    dir: &'a std::path::Path,
    seed: u64,
    progress: &'a ProgressBar,
}

impl Job<'_> {
    fn write(&self, format: Format) -> anyhow::Result<()> {
        match format {
            Format::Safetensors => self.write_hugging_face(),
            Format::Meta => meta::write(self),
        }
    }

    fn write_hugging_face(&self) -> anyhow::Result<()> {
        let shape = &self.preset.shape;
        self.write_json("config.json", self.preset.config_json())?;
        self.write_json("generation_config.json", self.preset.generation_config_json())?;
        self.write_json("tokenizer.json", tokenizer::hugging_face(shape))?;
        self.write_json("tokenizer_config.json", tokenizer_config(shape))?;
        safetensors::write(self, &plan::hugging_face(shape))
    }

    /// Writes `value` with sorted keys.
    fn write_json(&self, name: &str, mut value: Value) -> anyhow::Result<()> {
        value.sort_all_objects();
        let path = self.dir.join(name);
        fs::write(&path, serde_json::to_string_pretty(&value)? + "\n").with_context(|| path.display().to_string())
    }
}

fn tokenizer_config(shape: &Shape) -> Value {
    let text = |id: u32| tokenizer::special_text(shape, id);
    let mut config = json!({
        "bos_token": text(shape.bos_token_id),
        "eos_token": shape.eos_token_ids.first().map(|&id| text(id)),
        "unk_token": tokenizer::UNKNOWN,
        "pad_token": shape.pad_token_id.map(text),
        "clean_up_tokenization_spaces": false,
        "model_max_length": shape.max_position_embeddings,
        "tokenizer_class": "PreTrainedTokenizerFast",
    });
    if shape.family.adds_bos {
        config["add_bos_token"] = json!(true);
    }
    config
}
