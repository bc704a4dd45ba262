//! Adapters (LoRA) as PEFT saves them: small matrices that change a model's linear maps, in a folder of their own.
//!
//! A linear map `y = W x` becomes `y = W x + scale * B (A x)`, with `A` of `rank x in` and `B` of `out x rank` (Hu et al. 2021).
//! The folder has `adapter_config.json` and the matrices in `adapter_model.safetensors` or `adapter_model.bin`, named after the
//! model's own tensors: `base_model.model.` and the name, `.lora_A.weight` and `.lora_B.weight`. Which maps have an adapter, the
//! names in that file decide.
//!
//! <https://huggingface.co/docs/peft/developer_guides/checkpoint>

mod config;
mod modules;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use kaito_kernels::{self as kernels, DType, LOW_RANK_PANEL, low_rank_panels};

use self::{
    config::AdapterConfig,
    modules::{Factor, Module, Modules},
};
use crate::{
    checkpoint::{CheckpointError, Tensor, TensorSet, WeightFile, safetensors, torch},
    config::{LinearKind, ModelConfig},
};

/// Name of the file that describes an adapter.
pub const CONFIG_FILE: &str = "adapter_config.json";

/// Every file that an adapter may be read from.
pub const FILES: [&str; 3] = [CONFIG_FILE, WEIGHT_FILES[0].0, WEIGHT_FILES[1].0];

/// Weight files, the first that is there being read, and what reads them.
const WEIGHT_FILES: [(&str, crate::checkpoint::Reader); 2] =
    [("adapter_model.safetensors", safetensors::parse), ("adapter_model.bin", torch::parse)];

/// What an adapter, or several together, add to a model's linear maps. Cheap to clone: the matrices are shared.
#[derive(Debug, Clone, Default)]
pub struct AdapterWeights {
    /// The products that are added; several may change the same map.
    pub terms: Vec<LowRank>,
}

/// One product that is added to a linear map: `output[output_offset..] += scale * up (down input)`. Its matrices have memory of their
/// own, since an adapter's file may be replaced while the adapter is in use, and the element types of the file.
#[derive(Debug, Clone)]
pub struct LowRank {
    /// Number of the layer, from 0.
    pub layer: usize,
    /// Which of the layer's linear maps is changed.
    pub kind: LinearKind,
    /// First output component that it changes.
    pub output_offset: usize,
    /// Output components that it changes.
    pub outputs: usize,
    /// `A`: `rank x in_features`.
    pub down: Tensor,
    /// `B`, whose rows have the order of the map's, in panels of them: see [`low_rank_panels`].
    pub up: Tensor,
    /// Factor of the product.
    pub scale: f32,
}

impl LowRank {
    /// Width of what lies between the two matrices.
    pub fn rank(&self) -> usize {
        self.down.shape().first().copied().unwrap_or_default()
    }
}

impl AdapterWeights {
    /// Reads the adapter in `dir` for a model of this configuration.
    ///
    /// # Errors
    /// For files that are missing or malformed, and for what is not supported or does not fit the model, by name.
    pub fn open(dir: &Path, model: &ModelConfig) -> Result<Self, CheckpointError> {
        Self::open_within(dir, model, u64::MAX)
    }

    /// The same for an adapter whose matrices take up to `limit` bytes.
    ///
    /// # Errors
    /// As for [`Self::open`], and for a larger one before its matrices are read.
    pub fn open_within(dir: &Path, model: &ModelConfig, limit: u64) -> Result<Self, CheckpointError> {
        let config_path = dir.join(CONFIG_FILE);
        let found =
            WEIGHT_FILES.iter().map(|(name, reader)| (dir.join(name), *reader)).find(|(path, _)| path.is_file());
        let missing = |file: &str| CheckpointError::NoAdapter { dir: dir.to_owned(), missing: file.to_owned() };
        if !config_path.is_file() {
            return Err(missing(CONFIG_FILE));
        }
        let (path, reader) = found.ok_or_else(|| missing("adapter_model.safetensors or adapter_model.bin"))?;
        let config = AdapterConfig::open(&config_path)?;
        let tensors = TensorSet::of_file(WeightFile::open(&path, reader)?);
        read(&config, &tensors, &Modules::of(model), limit)
    }

    /// These terms, each `strength` times.
    #[must_use]
    pub fn scaled(&self, strength: f32) -> Self {
        let scaled = |term: &LowRank| LowRank { scale: term.scale * strength, ..term.clone() };
        Self { terms: self.terms.iter().map(scaled).collect() }
    }

    /// Adds the terms of `other`: the sum of both changes, exactly.
    pub fn add(&mut self, other: Self) {
        self.terms.extend(other.terms);
    }

    /// The largest rank of all terms.
    pub fn rank(&self) -> usize {
        self.terms.iter().map(LowRank::rank).max().unwrap_or_default()
    }

    /// Bytes of all matrices.
    pub fn bytes(&self) -> u64 {
        self.terms.iter().map(|term| (term.down.bytes().len() + term.up.bytes().len()) as u64).sum()
    }
}

fn read(
    config: &AdapterConfig,
    tensors: &TensorSet,
    modules: &Modules,
    limit: u64,
) -> Result<AdapterWeights, CheckpointError> {
    let refused = |tensor: &str, reason: String| CheckpointError::AdapterTensor {
        path: tensors.path().to_owned(),
        tensor: crate::checkpoint::shorten(tensor),
        reason,
    };
    let mut found: BTreeMap<(usize, usize), Module> = BTreeMap::new();
    // In the order of their names, so that the first of several faults is always the same one.
    for name in tensors.names().collect::<BTreeSet<_>>() {
        let module = modules.parse(name).map_err(|reason| refused(name, reason))?;
        let path = module.path.clone();
        let first = found.entry((module.layer, module.order)).or_insert(module);
        if first.path != path {
            return Err(refused(name, format!("belongs to the same matrix as those of {}", first.path)));
        }
    }
    if found.is_empty() {
        return Err(refused("lora_A.weight", "is nowhere: the file holds no tensors".to_owned()));
    }
    let mut bytes: u64 = 0;
    for module in found.values() {
        let (rank, _) = config.of_module(&module.path)?;
        for (factor, width) in
            [(Factor::Down, module.in_features), (Factor::Up, module.rows.next_multiple_of(LOW_RANK_PANEL))]
        {
            // What is not there is named below.
            let size = tensors.dtype(&module.tensor(factor)).map_or(0, DType::size);
            bytes += (size * rank * width) as u64;
        }
    }
    if bytes > limit {
        return Err(CheckpointError::AdapterTooLarge { path: tensors.path().to_owned(), found: bytes, limit });
    }
    let mut terms = Vec::with_capacity(found.len());
    for module in found.into_values() {
        let (rank, scale) = config.of_module(&module.path)?;
        let tensor = |factor: Factor, shape: [usize; 2]| {
            let name = module.tensor(factor);
            let tensor = tensors.tensor(&name, &shape)?;
            let values = tensor.to_f32();
            match values.iter().find(|value| !value.is_finite()) {
                Some(value) => Err(refused(&name, format!("holds {value}"))),
                None => Ok((tensor, values)),
            }
        };
        let (of_down, values) = tensor(Factor::Down, [rank, module.in_features])?;
        let down = like(&of_down, &values, [rank, module.in_features]);
        let (of_up, values) = tensor(Factor::Up, [module.rows, rank])?;
        let panels = low_rank_panels(&module.in_order(values, rank), rank);
        let up = like(&of_up, &panels, [panels.len() / LOW_RANK_PANEL, LOW_RANK_PANEL]);
        let (Some(down), Some(up)) = (down, up) else {
            return Err(refused(of_up.name(), "has another number of elements than its shape says".to_owned()));
        };
        let Module { layer, kind, output_offset, rows: outputs, .. } = module;
        terms.push(LowRank { layer, kind, output_offset, outputs, down, up, scale });
    }
    Ok(AdapterWeights { terms })
}

/// A matrix in memory of its own, of the name and the element type of the tensor that its values come from.
fn like(tensor: &Tensor, values: &[f32], shape: [usize; 2]) -> Option<Tensor> {
    let mut bytes = vec![0; values.len() * tensor.dtype().size()];
    kernels::narrow(values, tensor.dtype(), &mut bytes);
    Tensor::from_bytes(tensor.name(), tensor.dtype(), shape.to_vec(), bytes)
}
