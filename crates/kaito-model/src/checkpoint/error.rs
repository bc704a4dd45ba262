use std::{io, path::PathBuf};

/// Why a model directory cannot be used. Every message names the file and, where there is one, the tensor or the key.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file could not be opened or read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is missing, or neither a directory nor a GGUF file by its name.
    #[error("{path} is neither a directory nor a GGUF file")]
    NotADirectory {
        /// What was asked for.
        path: PathBuf,
    },
    /// No weight file of any known name.
    #[error(
        "{dir} holds no weights: expected model.safetensors, model.safetensors.index.json, pytorch_model.bin, \
         pytorch_model.bin.index.json, consolidated.00.pth or a GGUF file"
    )]
    NoWeights {
        /// The model directory.
        dir: PathBuf,
    },
    /// A directory that is no adapter.
    #[error("{dir} holds no adapter: there is no {missing}")]
    NoAdapter {
        /// The directory.
        dir: PathBuf,
        /// The file that it lacks.
        missing: String,
    },
    /// A tensor of an adapter that the model has no use for, or that is not supported.
    #[error("{path}: tensor {tensor} {reason}")]
    AdapterTensor {
        /// The adapter's weight file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An adapter that there is no room for.
    #[error("{path}: the adapter takes {found} bytes in memory, and there is room for {limit}")]
    AdapterTooLarge {
        /// The adapter's weight file.
        path: PathBuf,
        /// Bytes of its matrices in f32.
        found: u64,
        /// Bytes that it may take.
        limit: u64,
    },
    /// Several models in GGUF files, any of which could be meant.
    #[error("{dir} holds {count} models in GGUF files ({listed}): give the file of one")]
    SeveralModels {
        /// The directory.
        dir: PathBuf,
        /// Number of models.
        count: usize,
        /// A file of each, or of the first few.
        listed: String,
    },
    /// A part of a model in several GGUF files.
    #[error("{dir}: {missing} is missing, one of the {parts} parts of a model")]
    MissingPart {
        /// The directory.
        dir: PathBuf,
        /// Number of parts.
        parts: usize,
        /// The first that is missing.
        missing: String,
    },
    /// Weights without the file that describes them.
    #[error("{dir} holds {weights} but no {expected}, which describes them")]
    NoConfig {
        /// The model directory.
        dir: PathBuf,
        /// The weight file that was found.
        weights: String,
        /// The configuration file that belongs to such weights.
        expected: &'static str,
    },
    /// An index lists a file that is not there.
    #[error("{index} lists {shard}, which is missing (it should hold {tensors} tensors)")]
    MissingShard {
        /// The index.
        index: PathBuf,
        /// The file that it lists.
        shard: String,
        /// Number of tensors that the index places in it.
        tensors: usize,
    },
    /// An index names a path that leads out of the model directory.
    #[error("{index} names the file {shard:?}: only files inside the model directory are read")]
    ShardOutside {
        /// The index.
        index: PathBuf,
        /// The path that it names.
        shard: String,
    },
    /// An index places a tensor that the model needs in a file that does not hold it, and no other file does.
    #[error("{index} places tensor {tensor} in {shard}, but no file that it lists holds it")]
    NotInShard {
        /// The index.
        index: PathBuf,
        /// The tensor.
        tensor: String,
        /// The file named for it.
        shard: String,
    },
    /// One tensor name in two files, with other elements, and no index that says which one counts.
    #[error("tensor {tensor} is in both {first} and {second}, with other elements")]
    Duplicate {
        /// The tensor.
        tensor: String,
        /// One of the files.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// An output head that is not the embedding, in a model whose configuration says that it is.
    #[error("{path}: {head} differs from {embedding}, but tie_word_embeddings says that they are one matrix")]
    Untied {
        /// The weight file, or its index.
        path: PathBuf,
        /// Name of the output head.
        head: String,
        /// Name of the embedding.
        embedding: String,
    },
    /// A gap in the numbering of Meta's tensor-parallel shards.
    #[error("{dir} holds {found} consolidated.NN.pth files, but not {missing}")]
    MissingRank {
        /// The model directory.
        dir: PathBuf,
        /// Number of shards found.
        found: usize,
        /// The one that is missing.
        missing: String,
    },
    /// A file does not follow its format.
    #[error("{path}: {source}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: FormatError,
    },
    /// A tensor that the configuration asks for is nowhere.
    #[error("{path} holds no tensor {tensor} (expected shape {expected:?})")]
    MissingTensor {
        /// The weight file, or its index.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape that the configuration asks for.
        expected: Vec<usize>,
    },
    /// A tensor's shape is not what the configuration says.
    #[error("{path}: tensor {tensor} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The weight file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape that the configuration asks for.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A weight of a type that is not computed with.
    #[error("{path}: tensor {tensor} has element type {found}, expected F32, BF16 or F16")]
    ElementType {
        /// The weight file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The type in the file.
        found: &'static str,
    },
    /// A JSON file that does not parse.
    #[error("{path}: not valid JSON: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A file larger than any published one of its kind.
    #[error("{path} has {found} bytes; such files are read up to {limit} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        found: u64,
        /// The largest that is read.
        limit: u64,
    },
    /// A value of a configuration file that cannot be.
    #[error("{path}: {key} is {found}, expected {expected}")]
    Config {
        /// The configuration file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The value there, or `missing`.
        found: String,
        /// What could stand there.
        expected: String,
    },
    /// A model of no known family.
    #[error("{path}: architecture {found} is not supported; supported are {supported}")]
    UnknownArchitecture {
        /// The configuration file.
        path: PathBuf,
        /// What it says.
        found: String,
        /// The architectures of all families.
        supported: String,
    },
}

/// Why the bytes of a weight file do not follow its format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The file ends before what it announces.
    #[error("the file is truncated: expected {expected} bytes, has {found}")]
    Truncated {
        /// Bytes that the file should have.
        expected: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// Anything else, in words.
    #[error("{0}")]
    Malformed(String),
    /// A tensor's description contradicts itself or the file.
    #[error("tensor {tensor}: {reason}")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// What is wrong.
        reason: String,
    },
}

impl FormatError {
    pub(crate) fn malformed(reason: impl Into<String>) -> Self {
        Self::Malformed(reason.into())
    }

    pub(crate) fn tensor(tensor: &str, reason: impl Into<String>) -> Self {
        Self::Tensor { tensor: shorten(tensor), reason: reason.into() }
    }
}

/// A name from an untrusted file, cut to a length that a message can bear.
pub(crate) fn shorten(text: &str) -> String {
    const LIMIT: usize = 120;
    match text.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
