//! Published weight files as named, memory-mapped tensors.
//!
//! The readers check whatever they read against the size of the file and never run anything that a file says.

mod element;
mod error;
pub mod gguf;
mod index;
pub mod pickle;
pub mod safetensors;
mod shared_bytes;
mod tensor;
mod tensor_set;
pub mod torch;
pub mod zip;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

pub use element::{ElementType, StoredTensor};
pub(crate) use error::shorten;
pub use error::{CheckpointError, FormatError};
pub use shared_bytes::SharedBytes;
pub use tensor::Tensor;
pub use tensor_set::TensorSet;

pub(crate) use tensor_set::{Reader, WeightFile};

use gguf::GgufModel;

/// The weight files of a model directory, opened and mapped.
#[derive(Debug)]
pub enum Checkpoint {
    /// Hugging Face's layout: every tensor whole, in one or more files.
    HuggingFace(TensorSet),
    /// Meta's layout: `consolidated.NN.pth`, one file for each tensor-parallel rank, each with its slice of every
    /// tensor.
    Meta(Vec<TensorSet>),
    /// GGUF files, which describe themselves.
    Gguf(GgufModel),
}

/// Hugging Face's weight files in the order of preference: one file, index of several, and what reads them.
const LAYOUTS: [(&str, &str, Reader); 2] = [
    ("model.safetensors", "model.safetensors.index.json", safetensors::parse),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", torch::parse),
];

impl Checkpoint {
    /// Opens the weights in `dir`: safetensors where there are any, else PyTorch files, else Meta's shards, else the only model in GGUF
    /// files. `dir` may be a GGUF file itself.
    ///
    /// # Errors
    /// When there are none, and for every file that is missing, truncated or malformed.
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        if let Some(files) = gguf::find(dir)? {
            return GgufModel::open(&files).map(Self::Gguf);
        }
        for (single, index, reader) in LAYOUTS {
            let (single, index) = (dir.join(single), dir.join(index));
            if single.is_file() {
                return Ok(Self::HuggingFace(TensorSet::of_file(WeightFile::open(&single, reader)?)));
            }
            if index.is_file() {
                return Ok(Self::HuggingFace(index::open(&index, reader)?));
            }
        }
        let ranks = meta_ranks(dir)?;
        if ranks.is_empty() {
            return Err(CheckpointError::NoWeights { dir: dir.to_owned() });
        }
        let open = |path: PathBuf| Ok(TensorSet::of_file(WeightFile::open(&path, torch::parse)?));
        ranks.into_iter().map(open).collect::<Result<_, _>>().map(Self::Meta)
    }
}

impl Checkpoint {
    /// Every file that was read: those that hold tensors and the index that lists them.
    pub fn files(&self) -> BTreeSet<&Path> {
        let sets = match self {
            Self::HuggingFace(tensors) => std::slice::from_ref(tensors),
            Self::Meta(ranks) => ranks,
            Self::Gguf(model) => std::slice::from_ref(&model.tensors),
        };
        sets.iter().flat_map(|set| set.files().into_iter().chain([set.path()])).collect()
    }
}

/// Whether a directory has weights in a format that goes before GGUF.
fn has_other_weights(dir: &Path) -> bool {
    let published = LAYOUTS.iter().any(|(single, index, _)| dir.join(single).is_file() || dir.join(index).is_file());
    published || dir.join("consolidated.00.pth").is_file()
}

/// Paths of `consolidated.00.pth` onwards; the numbering must have no gap.
fn meta_ranks(dir: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let io = |source| CheckpointError::Io { path: dir.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("consolidated.")?.strip_suffix(".pth"));
        if let Some(rank) = number.and_then(|number| number.parse::<usize>().ok()) {
            found.push((rank, dir.join(name)));
        }
    }
    found.sort();
    if let Some((expected, _)) = found.iter().enumerate().find(|(expected, (rank, _))| expected != rank) {
        return Err(CheckpointError::MissingRank {
            dir: dir.to_owned(),
            found: found.len(),
            missing: format!("consolidated.{expected:02}.pth"),
        });
    }
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// Reads a small file whole. `limit` bounds what a wrong or hostile file can cost.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, CheckpointError> {
    let io = |source| CheckpointError::Io { path: path.to_owned(), source };
    let found = fs::metadata(path).map_err(io)?.len();
    if found > limit {
        return Err(CheckpointError::TooLarge { path: path.to_owned(), found, limit });
    }
    fs::read(path).map_err(io)
}
