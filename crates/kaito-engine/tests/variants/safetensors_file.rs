//! Reads and writes small safetensors files, to change them.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value, json};

/// A tensor with its bytes.
#[derive(Clone)]
pub struct Entry {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Entry {
    /// A tensor of zeros.
    pub fn zeros(name: &str, dtype: &str, shape: &[usize]) -> Self {
        let size = match dtype {
            "F8_E4M3" | "F8_E8M0" => 1,
            "BF16" | "F16" => 2,
            "F32" => 4,
            _ => 8,
        };
        let bytes = vec![0; size * shape.iter().product::<usize>()];
        Self { name: name.to_owned(), dtype: dtype.to_owned(), shape: shape.to_vec(), bytes }
    }

    /// Keeps the shape and the first bytes.
    pub fn set_type(&mut self, dtype: &str, size: usize) {
        self.dtype = dtype.to_owned();
        self.bytes.truncate(size * self.shape.iter().product::<usize>());
    }
}

/// All tensors of a file.
pub struct Tensors(pub Vec<Entry>);

impl Tensors {
    pub fn read(path: &Path) -> Self {
        let file = fs::read(path).unwrap();
        let end = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let mut header: BTreeMap<String, Value> = serde_json::from_slice(&file[8..end]).unwrap();
        header.remove("__metadata__");
        let number = |value: &Value| value.as_u64().unwrap() as usize;
        let entry = |(name, fields): (String, Value)| Entry {
            name,
            dtype: fields["dtype"].as_str().unwrap().to_owned(),
            shape: fields["shape"].as_array().unwrap().iter().map(number).collect(),
            bytes: file[end..][number(&fields["data_offsets"][0])..number(&fields["data_offsets"][1])].to_vec(),
        };
        Self(header.into_iter().map(entry).collect())
    }

    /// Writes them without metadata.
    pub fn write(&self, path: &Path) {
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for Entry { name, dtype, shape, bytes } in &self.0 {
            let begin = data.len();
            data.extend_from_slice(bytes);
            header.insert(name.clone(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [begin, data.len()] }));
        }
        let header = serde_json::to_vec(&header).unwrap();
        fs::write(path, [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()).unwrap();
    }

    pub fn get(&self, name: &str) -> &Entry {
        self.0.iter().find(|entry| entry.name == name).unwrap()
    }

    pub fn get_mut(&mut self, name: &str) -> &mut Entry {
        self.0.iter_mut().find(|entry| entry.name == name).unwrap()
    }
}
