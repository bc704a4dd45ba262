//! A directory with an adapter (LoRA), checked: whether it fits its model, and which of its files make it up.

use std::path::Path;

use kaito_model::{
    adapter::{self, AdapterWeights},
    config::ModelConfig,
    family,
};
use kaito_presets::Preset;

use crate::{
    ADAPTER, Error, Expected, Image, Job, ModelFile,
    extract::extract,
    model::{compare, files},
};

/// What stands beside the matrices, where an adapter has it.
const COMPANIONS: &[&str] =
    &["LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "NOTICE.md", "NOTICE.txt", "README.md", adapter::CONFIG_FILE];

/// An adapter whose files were checked.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// Name of the model that it is for: the preset's, or what the user calls it.
    pub model: String,
    /// Family of that model.
    pub family: &'static str,
    /// Its largest rank.
    pub rank: usize,
    /// Bytes that its matrices take in memory, in 32 bits.
    pub bytes: u64,
    /// The file of its matrices.
    pub weights: ModelFile,
    /// Its configuration, and what belongs to it.
    pub companions: Vec<ModelFile>,
    /// Files of the directory that serving does not need, by name.
    pub left_out: Vec<ModelFile>,
}

impl Adapter {
    /// Checks that `directory` holds an adapter that can be served with the `expected` model: with the shape of the preset, or of the
    /// model in `weights` where that is given, of which no weights are needed.
    ///
    /// # Errors
    /// With the file, the tensor and what is wrong.
    pub fn check(directory: &Path, expected: &Expected, weights: Option<&Path>) -> Result<Self, Error> {
        let config = match (weights, expected) {
            (Some(weights), Expected::Preset(preset)) => {
                let config = of_directory(weights)?;
                compare(weights, preset, &config)?;
                config
            }
            (Some(weights), Expected::Any(_)) => of_directory(weights)?,
            (None, Expected::Preset(preset)) => of_preset(preset)?,
            (None, Expected::Any(model)) => return Err(Error::UnknownModel { model: model.clone() }),
        };
        let matrices = AdapterWeights::open(directory, &config).map_err(kaito_model::Error::from)?;
        let (mut holding, mut companions, mut left_out) = (None, Vec::new(), Vec::new());
        let files = files(directory)?;
        // The reader takes the first of them, too.
        let read = adapter::FILES.iter().skip(1).find(|name| files.iter().any(|file| file.name == **name));
        for file in files {
            if Some(&file.name.as_str()) == read {
                holding = Some(file);
            } else if COMPANIONS.contains(&file.name.as_str()) {
                companions.push(file);
            } else {
                left_out.push(file);
            }
        }
        Ok(Self {
            model: expected.name().to_owned(),
            family: config.family,
            rank: matrices.rank(),
            bytes: matrices.bytes(),
            // Only if it was taken away meanwhile.
            weights: holding.ok_or_else(|| Error::NotAFile { path: directory.join("adapter_model.safetensors") })?,
            companions,
            left_out,
        })
    }

    /// Bytes of all files that go into an image.
    pub fn size(&self) -> u64 {
        self.companions.iter().chain([&self.weights]).map(|file| file.file.len).sum()
    }
}

/// Writes the files of the adapter that `image` holds into `folder`, which exists.
///
/// Layers are read to their ends, which must not happen on a thread of an asynchronous runtime.
///
/// # Errors
/// When it holds none, a layer can't be read or a file can't be written.
pub fn extract_adapter(image: &Image, folder: &Path, job: Job<'_>) -> Result<(), Error> {
    let found = extract(image, ADAPTER, &adapter::FILES, folder, job)?;
    if found.contains(adapter::CONFIG_FILE) {
        return Ok(());
    }
    let missing = format!("/{ADAPTER}/{}", adapter::CONFIG_FILE);
    Err(Error::NoAdapterInImage { digest: image.digest().to_string(), missing })
}

/// What a model's directory says. In Hugging Face's format it needs no weights for that.
fn of_directory(directory: &Path) -> Result<ModelConfig, Error> {
    let config = if directory.join("config.json").is_file() {
        family::describe(directory).map(|described| described.config)
    } else {
        family::load(directory).map(|(config, _)| config)
    };
    Ok(config.map_err(kaito_model::Error::from)?)
}

fn of_preset(preset: &Preset) -> Result<ModelConfig, Error> {
    let name = format!("{}/config.json", preset.name);
    let described = family::describe_json(Path::new(&name), preset.config_json()).map_err(kaito_model::Error::from)?;
    Ok(described.config)
}
