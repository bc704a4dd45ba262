use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use kaito_kernels::{DType, MappedFile};

use super::{
    element::StoredTensor,
    error::{CheckpointError, FormatError, shorten},
    shared_bytes::SharedBytes,
    tensor::{Tensor, byte_len},
};
use crate::weights::{BlockTensor, Weight};

/// First bytes of the text file that a clone without Git LFS has in place of a large file.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Endings of the names of buffers, which are computed and not trained.
const BUFFERS: [&str; 4] = ["rotary_emb.inv_freq", "rope.freqs", ".masked_bias", ".attn.bias"];

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

    /// The mapped file.
    pub(crate) fn map(&self) -> &Arc<MappedFile> {
        &self.map
    }
}

/// Tensors by name, from one or more files.
#[derive(Debug)]
pub struct TensorSet {
    /// The file that stands for all of them in messages: the only one, or the index.
    path: PathBuf,
    /// All files that were opened, also those none of whose tensors is used.
    files: BTreeSet<Arc<Path>>,
    tensors: HashMap<String, Located>,
    /// Tensors that the index lists and no file holds, with the file where it places them.
    absent: HashMap<String, String>,
}

#[derive(Debug)]
struct Located {
    path: Arc<Path>,
    map: Arc<MappedFile>,
    stored: StoredTensor,
    used: AtomicBool,
    /// Another file with a tensor of this name and other elements, where nothing says which one counts.
    rival: Option<Arc<Path>>,
}

impl Located {
    fn has_same_elements(&self, other: &Self) -> bool {
        let of =
            |located: &Self| (located.stored.element, located.stored.shape.clone(), located.stored.strides.clone());
        of(self) == of(other)
            && self.map.bytes().get(self.stored.range.clone()) == other.map.bytes().get(other.stored.range.clone())
    }
}

impl TensorSet {
    /// The tensors of one file.
    pub(crate) fn of_file(file: WeightFile) -> Self {
        Self::of_files(file.path.clone(), vec![(String::new(), file)], BTreeMap::new())
    }

    /// Merges the tensors of `files`, each given with its name in the index at `path`. `weight_map` is the index: from a
    /// tensor's name to the name of its file. It decides which of several tensors of one name counts. A tensor that lies in
    /// another file than the index says is found there, as the reference finds it.
    pub(crate) fn of_files(
        path: PathBuf,
        files: Vec<(String, WeightFile)>,
        weight_map: BTreeMap<String, String>,
    ) -> Self {
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut opened = BTreeSet::new();
        let mut tensors: HashMap<String, Located> = HashMap::new();
        for (file_name, file) in files {
            let path: Arc<Path> = file.path.into();
            opened.insert(path.clone());
            for stored in file.tensors {
                let placed_here = weight_map.get(&stored.name) == Some(&file_name);
                let name = stored.name.clone();
                let (path, map) = (path.clone(), file.map.clone());
                let located = Located { path, map, stored, used: AtomicBool::new(false), rival: None };
                match tensors.entry(name) {
                    Entry::Vacant(place) => drop(place.insert(located)),
                    Entry::Occupied(mut place) if placed_here => drop(place.insert(located)),
                    Entry::Occupied(mut place) => {
                        let first = place.get_mut();
                        let decided =
                            weight_map.get(&located.stored.name).is_some_and(|name| *first.path == folder.join(name));
                        if !decided && !first.has_same_elements(&located) {
                            first.rival = Some(located.path);
                        }
                    }
                }
            }
        }
        let absent = weight_map.into_iter().filter(|(name, _)| !tensors.contains_key(name)).collect();
        Self { path, files: opened, tensors, absent }
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
        self.files.iter().map(|path| &**path).collect()
    }

    /// Shape of the tensor `name`, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|located| located.stored.shape.as_slice())
    }

    /// Element type of the tensor `name`, if it is there and of one that is computed with.
    pub fn dtype(&self, name: &str) -> Option<DType> {
        self.tensors.get(name).and_then(|located| located.stored.element.dtype)
    }

    /// The tensor `name`, in place; one whose elements do not lie in row-major order is copied.
    ///
    /// # Errors
    /// When it is missing, has another shape than `expected` or an element type that is not computed with.
    pub fn tensor(&self, name: &str, expected: &[usize]) -> Result<Tensor, CheckpointError> {
        let Located { path, map, stored, used, .. } = self.located(name, expected)?;
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
        tensor.ok_or_else(|| outside(path, name))
    }

    /// The matrix `name` of `rows` x `cols`, in place: a tensor, or blocks.
    ///
    /// # Errors
    /// As for [`TensorSet::tensor`].
    pub fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Weight, CheckpointError> {
        let Located { path, map, stored, used, .. } = self.located(name, &[rows, cols])?;
        let Some(format) = stored.element.blocks else {
            return self.tensor(name, &[rows, cols]).map(Weight::Plain);
        };
        used.store(true, Ordering::Relaxed);
        let data = SharedBytes::mapped(map.clone(), stored.range.clone());
        let blocks = data.and_then(|data| BlockTensor::new(name, format, rows, cols, data));
        blocks.map(Weight::Blocks).ok_or_else(|| outside(path, name))
    }

    /// The only tensor `name`, which has the shape `expected`.
    fn located(&self, name: &str, expected: &[usize]) -> Result<&Located, CheckpointError> {
        let Some(located) = self.tensors.get(name) else {
            let (path, tensor) = (self.path.clone(), name.to_owned());
            return Err(match self.absent.get(name) {
                Some(shard) => CheckpointError::NotInShard { index: path, tensor, shard: shorten(shard) },
                None => CheckpointError::MissingTensor { path, tensor, expected: expected.to_vec() },
            });
        };
        if let Some(rival) = &located.rival {
            return Err(CheckpointError::Duplicate {
                tensor: name.to_owned(),
                first: located.path.to_path_buf(),
                second: rival.to_path_buf(),
            });
        }
        if located.stored.shape != expected {
            return Err(CheckpointError::Shape {
                path: located.path.to_path_buf(),
                tensor: name.to_owned(),
                expected: expected.to_vec(),
                found: located.stored.shape.clone(),
            });
        }
        Ok(located)
    }

    /// Names the tensors that nobody asked for in the log: buffers that some programs save, or a sign of a configuration that
    /// is another model's.
    pub(crate) fn log_unused(&self) {
        let unused = self.tensors.iter().filter(|(_, located)| !located.used.load(Ordering::Relaxed));
        let mut names: Vec<&str> = unused.map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        if names.iter().all(|name| BUFFERS.iter().any(|buffer| name.ends_with(buffer))) {
            if !names.is_empty() {
                tracing::debug!(path = %self.path.display(), count = names.len(), ?names, "unused tensors");
            }
        } else {
            let first = names.iter().take(8).map(|name| shorten(name)).collect::<Vec<_>>().join(", ");
            tracing::warn!(
                path = %self.path.display(), count = names.len(), first,
                "the weights hold tensors that this model has no use for; they are passed over, as the reference does"
            );
        }
    }
}

/// The error for a tensor that is not where its file says.
fn outside(path: &Path, name: &str) -> CheckpointError {
    let source = FormatError::tensor(name, "its elements do not lie inside the file");
    CheckpointError::Format { path: path.to_path_buf(), source }
}

/// Copies a tensor with arbitrary `strides` (in elements) out of `stored`, its first to its last byte, into row-major order.
fn gather(name: &str, dtype: DType, shape: &[usize], strides: &[usize], stored: &[u8]) -> Option<Tensor> {
    let size = dtype.size();
    let total = byte_len(shape, size)?;
    let mut bytes = Vec::with_capacity(total);
    let mut position = vec![0; shape.len()];
    while bytes.len() < total {
        let element: usize = position.iter().zip(strides).map(|(index, stride)| index * stride).sum();
        bytes.extend_from_slice(stored.get(element * size..(element + 1) * size)?);
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
