use crate::{
    checkpoint::{CheckpointError, TensorSet},
    config::{Mlp, ModelConfig, Norm, Residual},
    weights::{LayerWeights, Linear, LinearPart, ModelWeights, NormWeights},
};

/// Tensor names of a family of Hugging Face models, without `.weight` and `.bias`.
///
/// Embedding, layers and final norm lie under `base`; some exporters leave it out. `{}` stands for the layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct TensorNames {
    pub base: &'static str,
    pub embedding: &'static str,
    /// Prefix of a layer's tensors; a number and a dot follow.
    pub layers: &'static str,
    pub attention_norm: &'static str,
    pub mlp_norm: &'static str,
    /// The fused projection, or q, k and v.
    pub qkv: &'static [&'static str],
    pub attention_output: &'static str,
    /// The fused gate and up, gate and up apart, or up alone.
    pub mlp_in: &'static [&'static str],
    pub mlp_out: &'static str,
    pub final_norm: &'static str,
    /// Not under `base`.
    pub head: &'static str,
    pub attention_bias: bool,
    pub mlp_bias: bool,
}

impl TensorNames {
    /// Finds every weight of a model and checks its shape.
    pub fn collect(
        &self,
        config: &ModelConfig,
        tied: bool,
        tensors: &TensorSet,
    ) -> Result<ModelWeights, CheckpointError> {
        let embedding = format!("{}.weight", self.embedding);
        let base = if tensors.shape(&embedding).is_some() { "" } else { self.base };
        let source = Source { tensors, norm_bias: matches!(config.norm, Norm::Layer { .. }) };
        let hidden = config.hidden_size;
        let embedding = source.linear(&[(format!("{base}{}", self.embedding), config.vocab_size)], hidden, false)?;
        let head = if tied {
            embedding.clone()
        } else {
            source.linear(&[(self.head.to_owned(), config.vocab_size)], hidden, false)?
        };
        Ok(ModelWeights {
            embedding,
            layers: (0..config.num_layers)
                .map(|layer| self.layer(&format!("{base}{}{layer}.", self.layers), config, &source))
                .collect::<Result<_, _>>()?,
            final_norm: source.norm(&format!("{base}{}", self.final_norm), hidden)?,
            head,
        })
    }

    fn layer(&self, prefix: &str, config: &ModelConfig, source: &Source) -> Result<LayerWeights, CheckpointError> {
        let hidden = config.hidden_size;
        let (query_width, key_width) = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim);
        let qkv_rows =
            if self.qkv.len() == 1 { vec![config.qkv_layout.width] } else { vec![query_width, key_width, key_width] };
        let mlp_rows = match (config.mlp, self.mlp_in.len()) {
            (Mlp::SwiGlu, 2) => vec![config.intermediate_size; 2],
            _ => vec![config.mlp_in_width()],
        };
        let name = |name: &str| format!("{prefix}{name}");
        let parts = |names: &[&str], rows: Vec<usize>| -> Vec<_> { names.iter().map(|n| name(n)).zip(rows).collect() };
        Ok(LayerWeights {
            attention_norm: source.norm(&name(self.attention_norm), hidden)?,
            mlp_norm: match config.residual {
                Residual::ParallelSharedNorm => None,
                Residual::Sequential | Residual::Parallel => Some(source.norm(&name(self.mlp_norm), hidden)?),
            },
            qkv: source.linear(&parts(self.qkv, qkv_rows), hidden, self.attention_bias)?,
            attention_output: source.linear(
                &[(name(self.attention_output), hidden)],
                query_width,
                self.attention_bias,
            )?,
            mlp_in: source.linear(&parts(self.mlp_in, mlp_rows), hidden, self.mlp_bias)?,
            mlp_out: source.linear(&[(name(self.mlp_out), hidden)], config.intermediate_size, self.mlp_bias)?,
        })
    }
}

struct Source<'a> {
    tensors: &'a TensorSet,
    norm_bias: bool,
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
            let weight = self.tensors.tensor(&format!("{name}.weight"), &[*rows, in_features])?;
            linear.parts.push(LinearPart {
                weight: weight.into(),
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

    fn norm(&self, name: &str, width: usize) -> Result<NormWeights, CheckpointError> {
        let vector = |suffix: &str| Ok(self.tensors.tensor(&format!("{name}.{suffix}"), &[width])?.to_f32());
        Ok(NormWeights { weight: vector("weight")?, bias: if self.norm_bias { Some(vector("bias")?) } else { None } })
    }
}
