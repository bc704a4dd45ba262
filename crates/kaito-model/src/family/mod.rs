//! Families of models: a published configuration and its tensor names, translated into [`ModelConfig`] and
//! [`ModelWeights`].
//!
//! A family is one file: the keys of its configuration, and a table of tensor names. It has no forward pass of its own: the
//! decoder computes what the [`LayerSpec`](crate::config::LayerSpec) says.
//!
//! # What a new family touches
//!
//! - one file here: a `FAMILY` with its published names, a function that reads its `config.json` (most families begin with
//!   `llama::base` and change what differs), and its `TensorNames` where they differ from Llama's;
//! - one line in `FAMILIES`, and its `mod`;
//! - fixtures: a small checkpoint saved by transformers in `crates/kaito-model/tests/fixtures/checkpoint`, with a case in
//!   `tests/checkpoints.rs`, and one with the reference's answers in `tests/parity/fixtures`, which `parity.rs` finds by itself.
//!
//! Only where the family brings something that no other has, there is more: an operation that the decoder does not have (a field
//! of the specification and its place in the decoder), a field that `foreign.rs` refuses in all families, or a tokenizer class that
//! `tokenizer/class.rs` does not know. To be in the catalogue, it needs an entry in `kaito-presets` (`family.rs`, `catalogue.rs`).

pub(crate) mod config_file;
mod falcon;
mod foreign;
mod gguf;
mod llama;
mod meta;
mod mistral;
mod phi3;
mod rotary;
mod tensor_names;

use std::path::Path;

use serde_json::{Map, Value};

use crate::{
    checkpoint::{Checkpoint, CheckpointError, TensorSet, shorten},
    config::ModelConfig,
    weights::ModelWeights,
};
use config_file::ConfigFile;
pub(crate) use tensor_names::TensorNames;

/// A family of Hugging Face models.
struct Family {
    /// Values of `architectures` in its config.json.
    architectures: &'static [&'static str],
    /// The same for files that were saved without the output head, which must be the embedding then.
    base: &'static [&'static str],
    /// Values of `model_type`.
    model_types: &'static [&'static str],
    /// Names of its tensors; those of norms may differ from model to model.
    names: TensorNames,
    /// Reads its config.json.
    describe: fn(&ConfigFile) -> Result<Description, CheckpointError>,
}

/// What a family makes of a configuration.
struct Description {
    config: ModelConfig,
    names: TensorNames,
    /// Whether the output head is the embedding.
    tied: bool,
}

const FAMILIES: [Family; 4] = [llama::FAMILY, mistral::FAMILY, falcon::FAMILY, phi3::FAMILY];

/// Reads a model directory, or a GGUF file: configuration, and weights as views of the mapped files.
///
/// # Errors
/// For a file that is missing or malformed, a configuration that contradicts itself, a model of another family, and
/// weights that do not fit the configuration.
pub fn load(dir: &Path) -> Result<(ModelConfig, ModelWeights), CheckpointError> {
    let describes = |weights: &Path, expected: &'static str| {
        let path = dir.join(expected);
        let weights = || weights.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_file() {
            ConfigFile::open(&path)
        } else {
            Err(CheckpointError::NoConfig { dir: dir.to_owned(), weights: weights(), expected })
        }
    };
    match Checkpoint::open(dir)? {
        Checkpoint::HuggingFace(tensors) => hugging_face(&describes(tensors.path(), "config.json")?, &tensors),
        Checkpoint::Meta(ranks) => {
            let first = ranks.first().map_or(dir, TensorSet::path);
            let loaded = meta::load(&describes(first, "params.json")?, &ranks)?;
            ranks.iter().for_each(TensorSet::log_unused);
            Ok(loaded)
        }
        Checkpoint::Gguf(model) => gguf::load(&model),
    }
}

/// A model's configuration, and what it alone says of the weights.
#[derive(Debug)]
pub struct Described {
    /// The configuration.
    pub config: ModelConfig,
    /// Number of parameters, tied ones once.
    pub parameters: u64,
}

/// Reads the configuration of a model directory in Hugging Face's format, whether or not there are weights.
///
/// # Errors
/// For a `config.json` that is missing or malformed or contradicts itself, and for a model of another family.
pub fn describe(dir: &Path) -> Result<Described, CheckpointError> {
    described(&ConfigFile::open(&dir.join("config.json"))?)
}

/// The same for the contents of a `config.json`; errors call the file `name`.
///
/// # Errors
/// As for [`describe`].
pub fn describe_json(name: &Path, config: Value) -> Result<Described, CheckpointError> {
    let map = if let Value::Object(map) = config { map } else { Map::new() };
    described(&ConfigFile::of(name, "", map))
}

fn described(file: &ConfigFile) -> Result<Described, CheckpointError> {
    foreign::refuse(file)?;
    let Description { config, tied, .. } = (find(file)?.describe)(file)?;
    let matrix = config.vocab_size as u64 * config.hidden_size as u64;
    let layer = config.layer.matrix_parameters(config.hidden_size) + config.layer.vector_parameters(config.hidden_size);
    let parameters = matrix * if tied { 1 } else { 2 }
        + config.num_layers as u64 * layer
        + config.final_norm.parameters(config.hidden_size);
    Ok(Described { config, parameters })
}

/// The names that a model of this configuration has for its tensors in Hugging Face's format, be it in that format or not.
pub(crate) fn tensor_names(config: &ModelConfig) -> Option<&'static TensorNames> {
    let family = FAMILIES.iter().find(|family| family.model_types.contains(&config.family))?;
    Some(&family.names)
}

fn hugging_face(file: &ConfigFile, tensors: &TensorSet) -> Result<(ModelConfig, ModelWeights), CheckpointError> {
    let family = find(file)?;
    foreign::refuse(file)?;
    let Description { config, names, tied } = (family.describe)(file)?;
    let weights = names.collect(&config, tied, tensors)?;
    tensors.log_unused();
    Ok((config, weights))
}

fn find(file: &ConfigFile) -> Result<&'static Family, CheckpointError> {
    let architectures: Vec<&str> = match file.value(&["architectures"]) {
        Some(value) => value.as_array().into_iter().flatten().filter_map(|name| name.as_str()).collect(),
        None => Vec::new(),
    };
    let model_type = file.value(&["model_type"]).and_then(|value| value.as_str());
    let known = |family: &&Family| {
        architectures.iter().any(|name| family.architectures.contains(name) || family.base.contains(name))
            || architectures.is_empty() && model_type.is_some_and(|name| family.model_types.contains(&name))
    };
    let family = FAMILIES.iter().find(known).ok_or_else(|| CheckpointError::UnknownArchitecture {
        path: file.path().to_owned(),
        found: match (architectures.as_slice(), model_type) {
            ([], None) => "missing".to_owned(),
            ([], Some(model_type)) => shorten(model_type),
            (names, _) => shorten(&names.join(", ")),
        },
        supported: FAMILIES.iter().flat_map(|family| family.architectures).copied().collect::<Vec<_>>().join(", "),
    })?;
    // The reference goes by the type, and its families differ where their files are silent.
    match file.value(&["model_type"]) {
        Some(name) if !family.model_types.iter().any(|known| name == known) => {
            let architectures = architectures.join(", ");
            Err(file.wrong(
                &["model_type"],
                format!("{}, as the architecture is {architectures}", family.model_types.join(" or ")),
            ))
        }
        _ => Ok(family),
    }
}
