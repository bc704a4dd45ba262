//! The GGUF format: metadata, descriptions of tensors, and the tensors' bytes, in one file or in several.
//!
//! Version 2 and 3, little-endian. <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>
//!
//! A file says how many entries, elements and bytes follow; nothing of that is believed before the bytes are there, so that a file
//! costs at most a small multiple of its own header, in time and in memory. Texts and lists stay in the file until they are asked for.

mod cursor;
mod files;
mod metadata;

use std::{path::Path, path::PathBuf, sync::Arc};

use kaito_kernels::MappedFile;

use self::cursor::Cursor;
pub use self::{
    files::{find, model_name},
    metadata::{Array, Metadata, Value},
};
use super::{
    element::{ElementType, StoredTensor},
    error::{CheckpointError, FormatError},
    tensor_set::{TensorSet, WeightFile},
};

const MAGIC: &[u8] = b"GGUF";
/// First bytes of files of the formats before GGUF.
const BEFORE: [&[u8]; 4] = [b"tjgg", b"fmgg", b"lmgg", b"algg"];
/// Tensors begin at multiples of so many bytes where the metadata does not say otherwise.
const ALIGNMENT: u64 = 32;
const ALIGNMENT_KEY: &str = "general.alignment";
/// Most tensors of a file; a model with 126 layers has some 1100.
const MAX_TENSORS: u64 = 1 << 16;
/// Longest name of a tensor, in bytes, and most dimensions: the limits of ggml.
const MAX_NAME: u64 = 64;
const MAX_DIMENSIONS: u32 = 4;

/// What a file says.
#[derive(Debug)]
pub struct Contents<'a> {
    /// By key.
    pub metadata: Metadata<'a>,
    /// In the order of the file.
    pub tensors: Vec<StoredTensor>,
}

/// Reads what stands before the tensors' bytes; `file` is the whole file.
///
/// # Errors
/// Every count, size, offset and type is checked against each other and against the file's length.
pub fn parse(file: &[u8]) -> Result<Contents<'_>, FormatError> {
    let mut cursor = Cursor::new(file);
    version(&mut cursor)?;
    let (tensor_count, entry_count) = (cursor.u64("the number of tensors")?, cursor.u64("the number of entries")?);
    if tensor_count > MAX_TENSORS {
        return Err(FormatError::malformed(format!("{tensor_count} tensors, at most {MAX_TENSORS} are read")));
    }
    let metadata = Metadata::parse(&mut cursor, entry_count)?;
    let alignment = alignment(&metadata)?;
    // The smallest description of a tensor has 24 bytes, so a count that is a lie reserves nothing.
    let mut tensors = Vec::with_capacity((tensor_count as usize).min(cursor.left() / 24));
    for _ in 0..tensor_count {
        tensors.push(description(&mut cursor, alignment)?);
    }
    let start = (cursor.position() as u64).next_multiple_of(alignment);
    place(&mut tensors, start, file.len() as u64)?;
    Ok(Contents { metadata, tensors })
}

/// The tensors of a file, for a [`WeightFile`].
fn tensors(file: &[u8]) -> Result<Vec<StoredTensor>, FormatError> {
    parse(file).map(|contents| contents.tensors)
}

fn version(cursor: &mut Cursor) -> Result<(), FormatError> {
    let magic = cursor.bytes(4, "the first bytes")?;
    if magic != MAGIC {
        return Err(FormatError::malformed(if BEFORE.contains(&magic) {
            "this is a file of the formats before GGUF, which are not read".to_owned()
        } else {
            format!("not a GGUF file: it begins with {}, not with GGUF", magic.escape_ascii())
        }));
    }
    match cursor.u32("the version")? {
        2 | 3 => Ok(()),
        version if version & 0xffff == 0 => {
            Err(FormatError::malformed("this GGUF file is big-endian; little-endian ones are read"))
        }
        version => Err(FormatError::malformed(format!("GGUF version {version} is not read; versions 2 and 3 are"))),
    }
}

fn alignment(metadata: &Metadata) -> Result<u64, FormatError> {
    match metadata.get(ALIGNMENT_KEY) {
        None => Ok(ALIGNMENT),
        Some(Value::Unsigned(alignment)) if alignment.is_power_of_two() && *alignment <= 1 << 20 => Ok(*alignment),
        Some(other) => Err(FormatError::malformed(format!(
            "{ALIGNMENT_KEY} is {other}, expected a power of two up to {}",
            1 << 20
        ))),
    }
}

/// One tensor; its range is still counted from the first byte of the first tensor.
fn description(cursor: &mut Cursor, alignment: u64) -> Result<StoredTensor, FormatError> {
    let name = cursor.text(MAX_NAME, "the name of a tensor")?.to_owned();
    let dimensions = cursor.u32("a number of dimensions")?;
    if dimensions > MAX_DIMENSIONS {
        return Err(FormatError::tensor(&name, format!("{dimensions} dimensions, at most {MAX_DIMENSIONS}")));
    }
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        let dimension = cursor.u64("a dimension")?;
        let dimension = usize::try_from(dimension);
        shape.push(dimension.map_err(|_| FormatError::tensor(&name, "a dimension that is too large"))?);
    }
    // The innermost dimension comes first here.
    shape.reverse();
    let (kind, offset) = (cursor.u32("a type")?, cursor.u64("an offset")?);
    let element = ElementType::from_ggml(kind)
        .map_err(|kind| FormatError::tensor(&name, format!("{kind} is not read; {}", ElementType::read_from_ggml())))?;
    let bytes = element.bytes_of(&shape).ok_or_else(|| {
        let weights = element.block_elements();
        let whole = if weights > 1 { format!(", or its rows are no multiples of {weights}") } else { String::new() };
        FormatError::tensor(&name, format!("shape {shape:?} of {} is too large{whole}", element.name))
    })?;
    if !offset.is_multiple_of(alignment) {
        let reason = format!("its data offset {offset} is no multiple of the alignment, {alignment}");
        return Err(FormatError::tensor(&name, reason));
    }
    let range = usize::try_from(offset).ok().and_then(|offset| Some(offset..offset.checked_add(bytes)?));
    let range = range.ok_or_else(|| FormatError::tensor(&name, format!("data offset {offset} is too large")))?;
    Ok(StoredTensor { name, element, shape, strides: None, range })
}

/// Counts the tensors' ranges from the beginning of the file; `start` is where the first may begin, `length` the file's.
fn place(tensors: &mut [StoredTensor], start: u64, length: u64) -> Result<(), FormatError> {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    let range =
        |tensors: &[StoredTensor], i: usize| tensors.get(i).map(|tensor| tensor.range.clone()).unwrap_or_default();
    order.sort_by_key(|&i| (range(tensors, i).start, range(tensors, i).end));
    let mut previous_end = 0;
    for i in order {
        let Some(tensor) = tensors.get_mut(i) else { continue };
        let std::ops::Range { start: first, end } = tensor.range.clone();
        if first < previous_end && first < end {
            let reason =
                format!("begins at data offset {first}, within the tensor before it (it ends at {previous_end})");
            return Err(FormatError::tensor(&tensor.name, reason));
        }
        previous_end = previous_end.max(end);
        let expected = start.saturating_add(end as u64);
        if expected > length {
            return Err(FormatError::Truncated { expected, found: length });
        }
        // Both fit, for the file is in memory.
        tensor.range = start as usize + first..expected as usize;
    }
    names_differ(tensors)
}

fn names_differ(tensors: &[StoredTensor]) -> Result<(), FormatError> {
    let mut names = std::collections::HashSet::new();
    match tensors.iter().find(|tensor| !names.insert(tensor.name.as_str())) {
        Some(twice) => Err(FormatError::tensor(&twice.name, "the file describes it twice")),
        None => Ok(()),
    }
}

/// A model in GGUF files, opened and mapped.
#[derive(Debug)]
pub struct GgufModel {
    path: PathBuf,
    /// The first file, which has the metadata.
    map: Arc<MappedFile>,
    /// The tensors of all files.
    pub tensors: TensorSet,
}

impl GgufModel {
    /// Opens a model's files, as [`find`] lists them.
    ///
    /// # Errors
    /// For a file that is missing or malformed, and for parts that do not belong together.
    pub fn open(files: &[PathBuf]) -> Result<Self, CheckpointError> {
        let first = files.first().ok_or_else(|| CheckpointError::NoWeights { dir: PathBuf::new() })?;
        let mut opened = Vec::new();
        for (number, path) in files.iter().enumerate() {
            let file = WeightFile::open(path, tensors)?;
            let contents = parse(file.map().bytes()).map_err(|source| format_error(path, source))?;
            split_fits(&contents.metadata, number, files.len()).map_err(|source| format_error(path, source))?;
            opened.push((String::new(), file));
        }
        let map = opened.first().map(|(_, file)| Arc::clone(file.map()));
        let map = map.ok_or_else(|| CheckpointError::NoWeights { dir: PathBuf::new() })?;
        let tensors = TensorSet::of_files(first.clone(), opened, Default::default());
        Ok(Self { path: first.clone(), map, tensors })
    }

    /// The file that has the metadata.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The metadata.
    ///
    /// # Errors
    /// None but those that [`GgufModel::open`] would have had.
    pub fn metadata(&self) -> Result<Metadata<'_>, CheckpointError> {
        let contents = parse(self.map.bytes()).map_err(|source| format_error(&self.path, source))?;
        Ok(contents.metadata)
    }
}

fn format_error(path: &Path, source: FormatError) -> CheckpointError {
    CheckpointError::Format { path: path.to_owned(), source }
}

/// Whether a file is the part of a model that its name says.
fn split_fits(metadata: &Metadata, number: usize, count: usize) -> Result<(), FormatError> {
    for (key, default, expected) in [("split.no", 0, number), ("split.count", 1, count)] {
        let found = match metadata.get(key) {
            None => default,
            // A model that was never split may say that it has no parts.
            Some(Value::Unsigned(0)) if key == "split.count" => 1,
            Some(Value::Unsigned(found)) => *found,
            Some(other) => return Err(FormatError::malformed(format!("{key} is {other}, expected {expected}"))),
        };
        if found != expected as u64 {
            let reason = format!("{key} is {found}, but by its name and those beside it, it should be {expected}");
            return Err(FormatError::malformed(reason));
        }
    }
    Ok(())
}
