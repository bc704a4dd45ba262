//! The matrices that an adapter may change, by the names that the family's tensors have in Hugging Face's format.

use crate::{
    config::{LinearKind, ModelConfig, Positions, RopePairing},
    family::{self, TensorNames},
};

/// What all names of an adapter's tensors begin with.
const PREFIX: &str = "base_model.model.";

/// One of an adapter's two matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Factor {
    /// `A`.
    Down,
    /// `B`.
    Up,
}

impl Factor {
    const ALL: [Self; 2] = [Self::Down, Self::Up];

    /// The end of its tensors' names.
    fn suffix(self) -> &'static str {
        match self {
            Self::Down => ".lora_A.weight",
            Self::Up => ".lora_B.weight",
        }
    }
}

/// Parts of names that tensors of adapters have which are not supported, and what they are.
const UNSUPPORTED: [(&str, &str); 6] = [
    (".lora_magnitude_vector", "belongs to DoRA (use_dora), which is not supported"),
    (".modules_to_save.", "is a whole module of its own (modules_to_save), which is not supported"),
    (".lora_embedding_", "is an adapter of the embedding, which is not supported"),
    (".lora_A.bias", "is a bias of an adapter, which is not supported"),
    (".lora_B.bias", "is a bias of an adapter (lora_bias), which is not supported"),
    (".base_layer.", "is a weight of the model itself, which an adapter must not bring"),
];

/// A matrix of one layer that an adapter may change.
#[derive(Debug, Clone)]
pub(super) struct Module {
    /// Number of the layer.
    pub layer: usize,
    /// Its place among the layer's matrices.
    pub order: usize,
    /// Its path in the model, as the adapter's file has it.
    pub path: String,
    /// The linear map that it is a part of.
    pub kind: LinearKind,
    /// First output component of the map that it computes.
    pub output_offset: usize,
    /// Output components that it computes.
    pub rows: usize,
    /// Width of its input.
    pub in_features: usize,
    /// Heads and their width, where the model's rows have the order of Meta's rotary pairs.
    interleaved: Option<(usize, usize)>,
}

impl Module {
    /// The name of one of its tensors.
    pub fn tensor(&self, factor: Factor) -> String {
        format!("{PREFIX}{}{}", self.path, factor.suffix())
    }

    /// `values`, rows of `width`, with the rows in the order of the model's.
    ///
    /// Hugging Face's format has the first components of a head's rotary pairs before all second ones, Meta's has each pair together.
    /// Adapters are trained on the former.
    pub fn in_order(&self, values: Vec<f32>, width: usize) -> Vec<f32> {
        let Some((heads, dim)) = self.interleaved else { return values };
        let mut ordered = Vec::with_capacity(values.len());
        for head in 0..heads {
            for row in 0..dim {
                let source = head * dim + row / 2 + if row % 2 == 1 { dim / 2 } else { 0 };
                ordered.extend(values.get(source * width..(source + 1) * width).unwrap_or_default());
            }
        }
        ordered
    }
}

/// All matrices that an adapter of one model may change.
pub(super) struct Modules<'a> {
    model: &'a ModelConfig,
    names: Option<&'static TensorNames>,
}

impl<'a> Modules<'a> {
    /// Those of a model.
    pub fn of(model: &'a ModelConfig) -> Self {
        Self { model, names: family::tensor_names(model) }
    }

    /// What the tensor `name` of an adapter belongs to.
    ///
    /// # Errors
    /// Why it belongs to nothing.
    pub fn parse(&self, name: &str) -> Result<Module, String> {
        if let Some((_, what)) = UNSUPPORTED.iter().find(|(part, _)| name.contains(part)) {
            return Err((*what).to_owned());
        }
        let names =
            self.names.ok_or_else(|| format!("belongs to a {} model, which has no adapters", self.model.family))?;
        let path = name.strip_prefix(PREFIX).ok_or_else(|| format!("does not begin with {PREFIX}"))?;
        let path = Factor::ALL
            .into_iter()
            .find_map(|factor| path.strip_suffix(factor.suffix()))
            .ok_or("is neither a lora_A.weight nor a lora_B.weight")?;
        let inner = path.strip_prefix(names.base).unwrap_or(path);
        if [names.embedding, names.head].contains(&inner) {
            return Err("is an adapter of the embedding or the output head, which is not supported".to_owned());
        }
        let unknown = || {
            let modules: Vec<&str> = self.of_layer().map(|(_, module)| leaf(module)).collect();
            format!("belongs to no matrix of a {} model's layers; those have {}", self.model.family, modules.join(", "))
        };
        let (number, module) =
            inner.strip_prefix(names.layers).and_then(|rest| rest.split_once('.')).ok_or_else(unknown)?;
        let layer: usize = number.parse().map_err(|_| unknown())?;
        let layers = self.model.num_layers;
        if layer >= layers {
            return Err(format!("belongs to layer {layer}, but the model's {layers} layers end at {}", layers - 1));
        }
        let (found, _) = self.of_layer().find(|(_, name)| *name == module).ok_or_else(unknown)?;
        Ok(Module { layer, path: path.to_owned(), ..found })
    }

    /// The matrices of any layer, with their names in it.
    fn of_layer(&self) -> impl Iterator<Item = (Module, &'static str)> {
        let attention = &self.model.layer.attention;
        let interleaved =
            matches!(&self.model.positions, Positions::Rotary(rope) if rope.pairing == RopePairing::Interleaved);
        // Queries and keys, where they are matrices of their own, are rotated.
        let heads = [attention.num_heads, attention.num_kv_heads];
        let maps = self.names.into_iter().flat_map(|names| names.stored(self.model));
        let modules = maps.flat_map(move |(spec, matrices)| {
            let apart = matrices.len() > 1;
            let mut output_offset = 0;
            let modules = matrices.into_iter().enumerate().map(move |(i, (name, rows))| {
                let rotated = interleaved && apart && spec.kind == LinearKind::Qkv;
                let module = Module {
                    layer: 0,
                    order: 0,
                    path: String::new(),
                    kind: spec.kind,
                    output_offset,
                    rows,
                    in_features: spec.in_features,
                    interleaved: heads.get(i).filter(|_| rotated).map(|&count| (count, attention.head_dim)),
                };
                output_offset += rows;
                (module, name)
            });
            modules.collect::<Vec<_>>()
        });
        modules.enumerate().map(|(order, (module, name))| (Module { order, ..module }, name))
    }
}

/// The last part of a module's name, by which people know it.
fn leaf(module: &'static str) -> &'static str {
    module.rsplit('.').next().unwrap_or(module)
}
