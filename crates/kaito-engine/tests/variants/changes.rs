//! Changes to a copy of a model: of its configuration, its weights and their names, and of the files that they lie in.

use std::{fs, path::Path};

use serde_json::{Map, Value, json};

use crate::{
    fixture,
    safetensors_file::{Entry, Tensors},
};

pub const INDEX: &str = "model.safetensors.index.json";
pub const ONE: &str = "model-00001-of-00002.safetensors";
pub const TWO: &str = "model-00002-of-00002.safetensors";
pub const LLAMA_EMBEDDING: &str = "model.embed_tokens.weight";
pub const FALCON_EMBEDDING: &str = "transformer.word_embeddings.weight";
pub const NORM: &str = "model.norm.weight";

/// A copy of a model, to be changed.
pub fn copy_of(model: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(model)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    dir
}

pub fn edit_config(dir: &Path, edit: impl FnOnce(&mut Map<String, Value>)) {
    let path = dir.join("config.json");
    let mut config: Map<String, Value> = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    fs::write(path, serde_json::to_vec(&config).unwrap()).unwrap();
}

pub fn edit(dir: &Path, edit: impl FnOnce(&mut Tensors)) {
    let path = dir.join("model.safetensors");
    let mut tensors = Tensors::read(&path);
    edit(&mut tensors);
    tensors.write(&path);
}

pub fn renamed(dir: &Path, rename: impl Fn(&str) -> String) {
    edit(dir, |tensors| tensors.0.iter_mut().for_each(|tensor| tensor.name = rename(&tensor.name)));
}

/// Adds another name of the embedding.
pub fn with_head(tensors: &mut Tensors, embedding: &str, head: &str) {
    let mut tensor = tensors.get(embedding).clone();
    tensor.name = head.to_owned();
    tensors.0.push(tensor);
}

/// Cuts the weights into two shards, the first with the tensors that `first` says, and returns the index.
pub fn shard(dir: &Path, first: impl Fn(&str) -> bool) -> Value {
    let tensors = Tensors::read(&dir.join("model.safetensors"));
    fs::remove_file(dir.join("model.safetensors")).unwrap();
    let (one, two): (Vec<Entry>, Vec<Entry>) = tensors.0.into_iter().partition(|tensor| first(&tensor.name));
    let mut map = Map::new();
    for (file, entries) in [(ONE, one), (TWO, two)] {
        map.extend(entries.iter().map(|entry| (entry.name.clone(), json!(file))));
        Tensors(entries).write(&dir.join(file));
    }
    json!({ "metadata": { "total_size": 1 }, "weight_map": map })
}

pub fn write_index(dir: &Path, index: &Value) {
    fs::write(dir.join(INDEX), serde_json::to_vec(index).unwrap()).unwrap();
}

pub fn replace_in(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{text} has no {from}");
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}
