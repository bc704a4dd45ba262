use crate::{
    checkpoint::{CheckpointError, TensorSet},
    config::{LayerSpec, LinearSpec, ModelConfig, Norm, Residual},
    weights::{LayerWeights, Linear, LinearPart, ModelWeights, NormWeights},
};

/// Tensor names of a family of Hugging Face models, without `.weight` and `.bias`.
///
/// Embedding, layers and final norm lie under `base`. Some programs leave it out when they save, and some put a prefix of their
/// own before all names.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TensorNames {
    pub base: &'static str,
    pub embedding: &'static str,
    /// Prefix of a layer's tensors; a number and a dot follow.
    pub layers: &'static str,
    pub attention_norm: &'static str,
    /// Norms of query heads and of key heads, where the specification has them.
    pub query_key_norms: [&'static str; 2],
    pub mlp_norm: &'static str,
    /// The fused projection, or q, k and v.
    pub qkv: &'static [&'static str],
    pub attention_output: &'static str,
    /// The fused gate and up, gate and up apart, or up alone.
    pub mlp_in: &'static [&'static str],
    pub mlp_out: &'static str,
    pub final_norm: &'static str,
    /// Beside `base`.
    pub head: &'static str,
}

impl TensorNames {
    /// Finds every weight of a model and checks its shape.
    pub fn collect(
        &self,
        config: &ModelConfig,
        tied: bool,
        tensors: &TensorSet,
    ) -> Result<ModelWeights, CheckpointError> {
        let base = self.found_base(tensors);
        let source = Source { tensors };
        let hidden = config.hidden_size;
        let matrix = |name: &str| source.linear(&[(name.to_owned(), config.vocab_size)], hidden, false);
        let (embedding_name, head_name) = (format!("{base}{}", self.embedding), self.found_head(tensors, base));
        let stored = |name: &str| tensors.shape(&format!("{name}.weight")).is_some();
        let (embedding, head) = match (tied, stored(&embedding_name), stored(&head_name)) {
            // Tied embeddings are one matrix with two names: a saved file has either name or both.
            (true, false, true) => (matrix(&head_name)?, None),
            (true, true, true) => {
                let (embedding, head) = (matrix(&embedding_name)?, matrix(&head_name)?);
                if !same_matrix(&embedding, &head) {
                    return Err(CheckpointError::Untied {
                        path: tensors.path().to_owned(),
                        head: head_name,
                        embedding: embedding_name,
                    });
                }
                (embedding, None)
            }
            (true, ..) => (matrix(&embedding_name)?, None),
            (false, ..) => (matrix(&embedding_name)?, Some(matrix(&head_name)?)),
        };
        let head = head.unwrap_or_else(|| embedding.clone());
        Ok(ModelWeights {
            embedding,
            layers: (0..config.num_layers)
                .map(|layer| self.layer(&format!("{base}{}{layer}.", self.layers), config, &source))
                .collect::<Result<_, _>>()?,
            final_norm: source.norm(&format!("{base}{}", self.final_norm), config.final_norm, hidden)?,
            head,
        })
    }

    /// What comes before the names of embedding, layers and final norm: `base`, unless the first layer lies elsewhere.
    fn found_base<'a>(&'a self, tensors: &'a TensorSet) -> &'a str {
        let first = format!("{}0.{}.weight", self.layers, self.attention_norm);
        let mut found: Vec<&str> = tensors.names().filter_map(|name| name.strip_suffix(first.as_str())).collect();
        found.retain(|prefix| prefix.is_empty() || prefix.ends_with('.'));
        match found.as_slice() {
            [one] => one,
            several if several.contains(&"") && !several.contains(&self.base) => "",
            _ => self.base,
        }
    }

    /// The head's name: beside what `base` was found to be, else as the family has it.
    fn found_head(&self, tensors: &TensorSet, base: &str) -> String {
        let outer = base.strip_suffix(self.base).unwrap_or_default();
        let names = [outer, base].map(|prefix| format!("{prefix}{}", self.head));
        let stored = names.into_iter().find(|name| tensors.shape(&format!("{name}.weight")).is_some());
        stored.unwrap_or_else(|| self.head.to_owned())
    }

    /// The matrices (name, rows) that each linear map of a layer is stored as, one above the other, in the order of
    /// [`LayerSpec::linears`](crate::config::LayerSpec::linears).
    pub fn stored(&self, config: &ModelConfig) -> [(LinearSpec, Vec<(&'static str, usize)>); 4] {
        let attention = &config.layer.attention;
        // One matrix, or several of so many rows.
        let matrices = |spec: LinearSpec, names: &[&'static str], rows: &[usize]| {
            let rows = if names.len() == 1 { &[spec.out_features] } else { rows };
            (spec, names.iter().copied().zip(rows.iter().copied()).collect())
        };
        let [qkv, attention_output, mlp_in, mlp_out] = config.layer.linears(config.hidden_size);
        [
            matrices(qkv, self.qkv, &[attention.query_width(), attention.kv_width(), attention.kv_width()]),
            matrices(attention_output, &[self.attention_output], &[]),
            matrices(mlp_in, self.mlp_in, &[config.layer.mlp.width; 2]),
            matrices(mlp_out, &[self.mlp_out], &[]),
        ]
    }

    fn layer(&self, prefix: &str, config: &ModelConfig, source: &Source) -> Result<LayerWeights, CheckpointError> {
        let (hidden, LayerSpec { attention, norm, .. }) = (config.hidden_size, config.layer);
        let name = |name: &str| format!("{prefix}{name}");
        let [qkv, attention_output, mlp_in, mlp_out] = self.stored(config).map(|(spec, matrices)| {
            let matrices: Vec<_> = matrices.into_iter().map(|(suffix, rows)| (name(suffix), rows)).collect();
            source.linear(&matrices, spec.in_features, spec.bias)
        });
        Ok(LayerWeights {
            attention_norm: source.norm(&name(self.attention_norm), norm, hidden)?,
            query_key_norms: match attention.query_key_norm {
                None => None,
                Some(norm) => {
                    let [query, key] =
                        self.query_key_norms.map(|suffix| source.norm(&name(suffix), norm, attention.head_dim));
                    Some([query?, key?])
                }
            },
            mlp_norm: match config.layer.residual {
                Residual::ParallelSharedNorm => None,
                Residual::Sequential | Residual::Parallel => Some(source.norm(&name(self.mlp_norm), norm, hidden)?),
            },
            qkv: qkv?,
            attention_output: attention_output?,
            mlp_in: mlp_in?,
            mlp_out: mlp_out?,
        })
    }
}

/// Whether two matrices are equal, element by element.
fn same_matrix(one: &Linear, other: &Linear) -> bool {
    let part = |linear: &Linear| linear.parts.first().and_then(|part| part.weight.plain().cloned());
    match (part(one), part(other)) {
        (Some(one), Some(other)) => {
            let same = one.dtype() == other.dtype() && one.bytes() == other.bytes();
            other.release();
            same
        }
        _ => false,
    }
}

struct Source<'a> {
    tensors: &'a TensorSet,
}

impl Source<'_> {
    /// A linear map whose output is that of the matrices `parts` (name, rows), one after the other.
    fn linear(
        &self,
        parts: &[(String, usize)],
        in_features: usize,
        with_bias: bool,
    ) -> Result<Linear, CheckpointError> {
        let mut linear = Linear { out_features: 0, in_features, parts: Vec::new(), bias: with_bias.then(Vec::new) };
        for (name, rows) in parts {
            linear.parts.push(LinearPart {
                weight: self.tensors.matrix(&format!("{name}.weight"), *rows, in_features)?,
                output_offset: linear.out_features,
                input_offset: 0,
            });
            if let Some(bias) = &mut linear.bias {
                bias.extend(self.tensors.tensor(&format!("{name}.bias"), &[*rows])?.to_f32());
            }
            linear.out_features += rows;
        }
        Ok(linear)
    }

    fn norm(&self, name: &str, kind: Norm, width: usize) -> Result<NormWeights, CheckpointError> {
        let vector = |suffix: &str| Ok(self.tensors.tensor(&format!("{name}.{suffix}"), &[width])?.to_f32());
        Ok(NormWeights { weight: vector("weight")?, bias: if kind.has_bias() { Some(vector("bias")?) } else { None } })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::{Map, json};

    use super::*;
    use crate::{
        checkpoint::{WeightFile, safetensors},
        config::{AttentionSpec, Mlp, MlpSpec, Positions},
        family::llama,
    };

    /// A file of Qwen3's names, whose elements are numbered: one layer of two query heads of width 2 on one key-value head.
    #[test]
    fn norms_of_queries_and_keys_are_read_where_the_specification_has_them() {
        let tensors: [(&str, &[usize]); 13] = [
            ("embed_tokens", &[5, 4]),
            ("layers.0.input_layernorm", &[4]),
            ("layers.0.self_attn.q_proj", &[4, 4]),
            ("layers.0.self_attn.k_proj", &[2, 4]),
            ("layers.0.self_attn.v_proj", &[2, 4]),
            ("layers.0.self_attn.o_proj", &[4, 4]),
            ("layers.0.self_attn.q_norm", &[2]),
            ("layers.0.self_attn.k_norm", &[2]),
            ("layers.0.post_attention_layernorm", &[4]),
            ("layers.0.mlp.gate_proj", &[3, 4]),
            ("layers.0.mlp.up_proj", &[3, 4]),
            ("layers.0.mlp.down_proj", &[4, 3]),
            ("norm", &[4]),
        ];
        let directory = tempfile::tempdir().unwrap();
        let written = |left_out: &str| {
            let (mut header, mut end) = (Map::new(), 0);
            for (name, shape) in tensors.into_iter().filter(|(name, _)| *name != left_out) {
                let begin = end;
                end += 4 * shape.iter().product::<usize>();
                let entry = json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, end] });
                header.insert(format!("model.{name}.weight"), entry);
            }
            let header = serde_json::to_vec(&header).unwrap();
            let mut file = [&(header.len() as u64).to_le_bytes()[..], &header].concat();
            file.extend((0..end / 4).flat_map(|i| (i as f32).to_le_bytes()));
            let path = directory.path().join(format!("without {left_out}.safetensors"));
            fs::write(&path, file).unwrap();
            TensorSet::of_file(WeightFile::open(&path, safetensors::parse).unwrap())
        };
        let norm = Norm::Rms { eps: 1e-6 };
        let config = |query_key_norm| ModelConfig {
            family: "llama",
            vocab_size: 5,
            hidden_size: 4,
            num_layers: 1,
            layer: LayerSpec {
                attention: AttentionSpec { query_key_norm, ..AttentionSpec::new(2, 1, 2) },
                mlp: MlpSpec { kind: Mlp::SwiGlu, width: 3, bias: false },
                norm,
                residual: Residual::Sequential,
            },
            final_norm: norm,
            positions: Positions::Alibi,
            max_position_embeddings: 8,
            dialog_format: None,
        };
        let collected = |query_key_norm, file: &TensorSet| llama::NAMES.collect(&config(query_key_norm), true, file);

        let whole = written("");
        let weights = collected(Some(norm), &whole).unwrap();
        let [query, key] = weights.layers[0].query_key_norms.as_ref().unwrap();
        // Before them lie 20 elements of the embedding, 4 of a norm, 32 and 16 of attention's maps.
        assert_eq!((&query.weight[..], &key.weight[..]), (&[72.0, 73.0][..], &[74.0, 75.0][..]));
        assert!(query.bias.is_none() && key.bias.is_none());
        assert_eq!(weights.count().parameters, 120);

        let weights = collected(None, &whole).unwrap();
        assert!(weights.layers[0].query_key_norms.is_none());
        assert_eq!(weights.count().parameters, 116);

        let part = written("layers.0.self_attn.k_norm");
        let error = collected(Some(norm), &part).unwrap_err().to_string();
        assert!(error.contains("model.layers.0.self_attn.k_norm.weight"), "{error}");
        let error = collected(Some(Norm::Layer { eps: 1e-5 }), &whole).unwrap_err().to_string();
        assert!(error.contains("model.layers.0.self_attn.q_norm.bias"), "{error}");
    }
}
