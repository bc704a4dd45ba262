//! A directory of weights, checked: what model it is, and which of its files make it up.
//!
//! The engine's own readers do the checking, so what gets into an image is what will be served.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::Path,
};

use kaito_model::{
    checkpoint::Checkpoint,
    config::{ModelConfig, Positions},
    family,
    tokenizer::Tokenizer,
};
use kaito_presets::{PRESETS, Preset};

use crate::{Error, layer::SourceFile};

/// What stands beside the weights, where a model has it. Licences want to go wherever the weights go.
const COMPANIONS: &[&str] = &[
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "NOTICE",
    "NOTICE.md",
    "NOTICE.txt",
    "Notice",
    "USE_POLICY.md",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "params.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
];

/// The folder of further chat templates, each a file `NAME.jinja`, which stands beside chat_template.jinja.
pub(crate) const TEMPLATES: &str = "additional_chat_templates";

/// Most files a model's directory may hold; published ones have some dozens.
const MAX_FILES: usize = 100_000;

/// A model whose files were checked.
#[derive(Debug, Clone)]
pub struct Model {
    /// The preset's name, or what the user calls it.
    pub name: String,
    /// The catalogue's entry, if it is one of them.
    pub preset: Option<&'static Preset>,
    /// `llama`, `falcon`, `mistral`, `phi3`.
    pub family: &'static str,
    /// Element types of the weights: `f16`, or `bf16+f32` where there are several.
    pub dtype: String,
    /// Number of parameters, tied ones once.
    pub parameters: u64,
    /// Files of weights, by name.
    pub weights: Vec<ModelFile>,
    /// The small files beside them, by name.
    pub companions: Vec<ModelFile>,
    /// Files of the directory that serving does not need, by name.
    pub left_out: Vec<ModelFile>,
}

/// A file of a model.
#[derive(Debug, Clone)]
pub struct ModelFile {
    /// Its name within the model's directory.
    pub name: String,
    /// Where it lies.
    pub file: SourceFile,
}

/// What the weights have to be.
#[derive(Debug, Clone)]
pub enum Expected {
    /// This model of the catalogue.
    Preset(&'static Preset),
    /// Any model that can be served, under this name.
    Any(String),
}

impl Expected {
    /// The preset's name, or what the user calls the model.
    pub(crate) fn name(&self) -> &str {
        match self {
            Expected::Preset(preset) => preset.name,
            Expected::Any(name) => name,
        }
    }
}

impl Model {
    /// Checks that `directory` holds a whole model that can be served: every file and every tensor, with the shape that
    /// its configuration says and a type that can be computed with; and that it is the `expected` one.
    ///
    /// # Errors
    /// With the file, the tensor and the numbers.
    pub fn check(directory: &Path, expected: &Expected) -> Result<Self, Error> {
        let checkpoint = Checkpoint::open(directory).map_err(kaito_model::Error::from)?;
        let (config, weights) = family::load(directory).map_err(kaito_model::Error::from)?;
        if let Expected::Preset(preset) = expected {
            compare(directory, preset, &config)?;
        }
        Tokenizer::open(directory).map_err(kaito_model::Error::from)?;
        let read: BTreeSet<String> =
            checkpoint.files().into_iter().filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect();
        let (mut holding, mut companions, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
        for file in files(directory)? {
            match file.name.as_str() {
                name if read.contains(name) && name.ends_with(".index.json") => companions.push(file),
                name if read.contains(name) => holding.push(file),
                name if COMPANIONS.contains(&name) || is_template(name) => companions.push(file),
                _ => left_out.push(file),
            }
        }
        Ok(Self {
            name: expected.name().to_owned(),
            preset: match expected {
                Expected::Preset(preset) => Some(preset),
                Expected::Any(_) => None,
            },
            family: config.family,
            dtype: weights.precisions().into_iter().collect::<Vec<_>>().join("+"),
            parameters: weights.count().parameters,
            weights: holding,
            companions,
            left_out,
        })
    }

    /// Bytes of all files that go into an image.
    pub fn size(&self) -> u64 {
        self.weights.iter().chain(&self.companions).map(|file| file.file.len).sum()
    }
}

fn is_template(name: &str) -> bool {
    name.strip_prefix(TEMPLATES).is_some_and(|name| name.starts_with('/') && name.ends_with(".jinja"))
}

/// Regular files of `directory` and of its folder of chat templates, links to such included, by name. Other folders and
/// whatever begins with a dot don't count.
pub(crate) fn files(directory: &Path) -> Result<Vec<ModelFile>, Error> {
    let mut found = BTreeMap::new();
    list(directory, "", &mut found)?;
    let templates = directory.join(TEMPLATES);
    if templates.is_dir() {
        list(&templates, &format!("{TEMPLATES}/"), &mut found)?;
    }
    // Meta's script puts the tokenizer beside the directories of the sizes, and the engine looks for it there.
    if found.contains_key("params.json")
        && !found.contains_key("config.json")
        && !found.contains_key("tokenizer.model")
        && let Some(above) = directory.canonicalize().ok().as_deref().and_then(Path::parent)
        && above.join("tokenizer.model").is_file()
    {
        found.insert("tokenizer.model".to_owned(), SourceFile::new(above.join("tokenizer.model"))?);
    }
    Ok(found.into_iter().map(|(name, file)| ModelFile { name, file }).collect())
}

/// Adds the regular files of one folder, `prefix` before their names.
fn list(folder: &Path, prefix: &str, found: &mut BTreeMap<String, SourceFile>) -> Result<(), Error> {
    let read = |source| Error::Read { path: folder.to_owned(), source };
    for entry in fs::read_dir(folder).map_err(read)? {
        let path = entry.map_err(read)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()).map(str::to_owned) else { continue };
        if !name.starts_with('.') && path.is_file() {
            found.insert(format!("{prefix}{name}"), SourceFile::new(path)?);
        }
        if found.len() > MAX_FILES {
            return Err(Error::TooManyFiles { directory: folder.to_owned(), limit: MAX_FILES });
        }
    }
    Ok(())
}

/// A number that tells one model from another.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    what: &'static str,
    found: String,
    expected: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {} instead of {}", self.what, self.found, self.expected)
    }
}

fn differences(preset: &Preset, config: &ModelConfig) -> Vec<Difference> {
    let shape = &preset.shape;
    let (attention, mlp) = (&config.layer.attention, &config.layer.mlp);
    let numbers = [
        ("hidden_size", config.hidden_size, shape.hidden_size),
        ("the number of layers", config.num_layers, shape.num_layers),
        ("the number of heads", attention.num_heads, shape.num_heads),
        ("the number of key-value heads", attention.num_kv_heads, shape.num_kv_heads),
        ("the width of a head", attention.head_dim, shape.head_dim),
        ("the inner width", mlp.width, shape.intermediate_size),
        ("the vocabulary", config.vocab_size, shape.vocab_size),
        ("the context", config.max_position_embeddings, shape.max_position_embeddings),
    ]
    .map(|(what, found, expected)| (what, found.to_string(), expected.to_string()));
    let family = ("the family", config.family.to_owned(), shape.family.model_type.to_owned());
    let theta = match &config.positions {
        Positions::Rotary(rope) => rope.theta.to_string(),
        Positions::Alibi => "none".to_owned(),
    };
    let theta = ("rope_theta", theta, shape.rope.theta.to_string());
    [family]
        .into_iter()
        .chain(numbers)
        .chain([theta])
        .filter(|(_, found, expected)| found != expected)
        .map(|(what, found, expected)| Difference { what, found, expected })
        .collect()
}

pub(crate) fn compare(directory: &Path, preset: &'static Preset, config: &ModelConfig) -> Result<(), Error> {
    let differences = differences(preset, config);
    if differences.is_empty() {
        return Ok(());
    }
    let like = PRESETS.iter().filter(|other| self::differences(other, config).is_empty()).map(|other| other.name);
    Err(Error::OtherModel {
        directory: directory.to_owned(),
        preset: preset.name,
        differences: differences.iter().map(Difference::to_string).collect::<Vec<_>>().join(", "),
        like: like.collect::<Vec<_>>().join(" or "),
    })
}
