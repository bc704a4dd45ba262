use std::{
    collections::{BTreeSet, HashMap, HashSet, hash_map::Entry},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use kaito_kernels::{DType, MappedFile};

use super::{
    element::StoredTensor,
    error::{CheckpointError, FormatError},
    tensor::{Tensor, byte_len},
};

/// First bytes of the text file that a clone without Git LFS has in place of a large file.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Lists the tensors of a whole weight file.
pub(crate) type Reader = fn(&[u8]) -> Result<Vec<StoredTensor>, FormatError>;

/// A mapped weight file and what it holds.
pub(crate) struct WeightFile {
    path: PathBuf,
    map: Arc<MappedFile>,
    tensors: Vec<StoredTensor>,
}

impl WeightFile {
    pub(crate) fn open(path: &Path, reader: Reader) -> Result<Self, CheckpointError> {
        let map = MappedFile::open(path).map_err(|source| CheckpointError::Io { path: path.to_owned(), source })?;
        let format = |source| CheckpointError::Format { path: path.to_owned(), source };
        if map.bytes().starts_with(LFS_POINTER) {
            return Err(format(FormatError::malformed(
                "this is a pointer of Git LFS, not the file itself: fetch it with git lfs pull",
            )));
        }
        let tensors = reader(map.bytes()).map_err(format)?;
        Ok(Self { path: path.to_owned(), map: Arc::new(map), tensors })
    }

    pub(crate) fn names(&self) -> HashSet<&str> {
        self.tensors.iter().map(|stored| stored.name.as_str()).collect()
    }
}

/// Tensors by name, from one or more files.
#[derive(Debug)]
pub struct TensorSet {
    /// The file that stands for all of them in messages: the only one, or the index.
    path: PathBuf,
    tensors: HashMap<String, Located>,
}

#[derive(Debug)]
struct Located {
    path: Arc<Path>,
    map: Arc<MappedFile>,
    stored: StoredTensor,
    used: AtomicBool,
}

impl TensorSet {
    /// Puts the tensors of `files` under one roof; `path` stands for all of them in messages.
    pub(crate) fn new(path: PathBuf, files: impl IntoIterator<Item = WeightFile>) -> Result<Self, CheckpointError> {
        let mut tensors = HashMap::new();
        for file in files {
            let path: Arc<Path> = file.path.into();
            for stored in file.tensors {
                match tensors.entry(stored.name.clone()) {
                    Entry::Vacant(place) => {
                        let (path, map) = (path.clone(), file.map.clone());
                        place.insert(Located { path, map, stored, used: AtomicBool::new(false) });
                    }
                    Entry::Occupied(other) => {
                        return Err(CheckpointError::Duplicate {
                            tensor: stored.name,
                            first: other.get().path.to_path_buf(),
                            second: path.to_path_buf(),
                        });
                    }
                }
            }
        }
        Ok(Self { path, tensors })
    }

    /// The file that stands for all of them in messages: the only one, or the index.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of all tensors, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The files that hold the tensors, each once.
    pub fn files(&self) -> BTreeSet<&Path> {
        self.tensors.values().map(|located| &*located.path).collect()
    }

    /// Shape of the tensor `name`, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|located| located.stored.shape.as_slice())
    }

    /// The tensor `name`, in place; one whose elements do not lie in row-major order is copied.
    ///
    /// # Errors
    /// When it is missing, has another shape than `expected` or an element type that is not computed with.
    pub fn tensor(&self, name: &str, expected: &[usize]) -> Result<Tensor, CheckpointError> {
        let Some(Located { path, map, stored, used }) = self.tensors.get(name) else {
            return Err(CheckpointError::MissingTensor {
                path: self.path.clone(),
                tensor: name.to_owned(),
                expected: expected.to_vec(),
            });
        };
        if stored.shape != expected {
            return Err(CheckpointError::Shape {
                path: path.to_path_buf(),
                tensor: name.to_owned(),
                expected: expected.to_vec(),
                found: stored.shape.clone(),
            });
        }
        let Some(dtype) = stored.element.dtype else {
            return Err(CheckpointError::ElementType {
                path: path.to_path_buf(),
                tensor: name.to_owned(),
                found: stored.element.name,
            });
        };
        used.store(true, Ordering::Relaxed);
        let tensor = match &stored.strides {
            None => Tensor::from_file(name, dtype, stored.shape.clone(), map.clone(), stored.range.clone()),
            Some(strides) => gather(name, dtype, &stored.shape, strides, &map.bytes()[stored.range.clone()]),
        };
        tensor.ok_or_else(|| CheckpointError::Format {
            path: path.to_path_buf(),
            source: FormatError::tensor(name, "its elements do not lie inside the file"),
        })
    }

    /// Names the tensors that nobody asked for in the log: buffers of old exporters, or a sign of a wrong
    /// configuration.
    pub(crate) fn log_unused(&self) {
        let unused = self.tensors.iter().filter(|(_, located)| !located.used.load(Ordering::Relaxed));
        let mut names: Vec<&str> = unused.map(|(name, _)| name.as_str()).collect();
        if !names.is_empty() {
            names.sort_unstable();
            tracing::debug!(path = %self.path.display(), count = names.len(), ?names, "unused tensors");
        }
    }
}

/// Copies a tensor with arbitrary `strides` (in elements) out of `span` in row-major order.
fn gather(name: &str, dtype: DType, shape: &[usize], strides: &[usize], span: &[u8]) -> Option<Tensor> {
    let size = dtype.size();
    let total = byte_len(shape, size)?;
    let mut bytes = Vec::with_capacity(total);
    let mut position = vec![0; shape.len()];
    while bytes.len() < total {
        let element: usize = position.iter().zip(strides).map(|(index, stride)| index * stride).sum();
        bytes.extend_from_slice(span.get(element * size..(element + 1) * size)?);
        for (index, dim) in position.iter_mut().zip(shape).rev() {
            *index += 1;
            if *index < *dim {
                break;
            }
            *index = 0;
        }
    }
    Tensor::from_bytes(name, dtype, shape.to_vec(), bytes)
}
