//! `*.index.json`: which file holds which tensor of a sharded checkpoint.

use std::{
    collections::BTreeMap,
    path::{Component, Path},
};

use serde::Deserialize;

use super::{
    error::{CheckpointError, shorten},
    read_bounded,
    tensor_set::{Reader, TensorSet, WeightFile},
};
use crate::json;

/// Longest index that is read; that of a 70B model has some 70 kB.
const MAX_INDEX: u64 = 64 << 20;

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Opens every file that the index at `path` lists. A tensor that the index lists and no file holds is an error only where it is
/// asked for.
pub(crate) fn open(path: &Path, reader: Reader) -> Result<TensorSet, CheckpointError> {
    let index: Index = serde_json::from_slice(&json::standard(&read_bounded(path, MAX_INDEX)?))
        .map_err(|source| CheckpointError::Json { path: path.to_owned(), source })?;
    let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, shard) in &index.weight_map {
        shards.entry(shard).or_default().push(tensor);
    }
    if shards.is_empty() {
        return Err(CheckpointError::Config {
            path: path.to_owned(),
            key: "weight_map".into(),
            found: "empty".into(),
            expected: "the file of every tensor".into(),
        });
    }
    let dir = path.parent().unwrap_or(Path::new(""));
    // All names before any file: a missing shard is reported without reading the others first.
    for (shard, tensors) in &shards {
        // Links are followed: a hub cache links every file of a model to a store beside it.
        let inside = |part| matches!(part, Component::Normal(_) | Component::CurDir);
        if !Path::new(shard).components().all(inside) || shard.is_empty() {
            return Err(CheckpointError::ShardOutside { index: path.to_owned(), shard: shorten(shard) });
        }
        if !dir.join(shard).is_file() {
            let (index, shard) = (path.to_owned(), shorten(shard));
            return Err(CheckpointError::MissingShard { index, shard, tensors: tensors.len() });
        }
    }
    let open = |shard: &&str| Ok(((*shard).to_owned(), WeightFile::open(&dir.join(shard), reader)?));
    let files = shards.keys().map(open).collect::<Result<_, CheckpointError>>()?;
    Ok(TensorSet::of_files(path.to_owned(), files, index.weight_map))
}
