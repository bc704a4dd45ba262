//! Llama 2 as Meta publishes it: `params.json`, and `consolidated.NN.pth` with one slice of every tensor for each
//! tensor-parallel rank (Meta says model-parallel).

use serde_json::Value;

use super::config_file::{ConfigFile, limits};
use crate::{
    checkpoint::{CheckpointError, Tensor, TensorSet},
    config::{
        AttentionSpec, DialogFormat, LayerSpec, Mlp, MlpSpec, ModelConfig, Norm, Positions, Residual, Rope,
        RopePairing, RopeScaling,
    },
    weights::{LayerWeights, Linear, LinearPart, ModelWeights, NormWeights},
};

/// Llama 2's context. `params.json` does not give it.
const MAX_POSITIONS: usize = 4096;
const EMBEDDING: &str = "tok_embeddings.weight";
const HEADS: &[&str] = &["n_heads"];
const KV_HEADS: &[&str] = &["n_kv_heads"];
const VOCAB_SIZE: &[&str] = &["vocab_size"];

pub(super) fn load(file: &ConfigFile, ranks: &[TensorSet]) -> Result<(ModelConfig, ModelWeights), CheckpointError> {
    let config = describe(file, ranks)?;
    let weights = Ranks { sets: ranks, hidden: config.hidden_size };
    Ok((config.clone(), weights.collect(&config)?))
}

/// Every key that Llama 2's code takes, and Code Llama's base.
const KEYS: [&str; 11] = [
    "dim",
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "vocab_size",
    "multiple_of",
    "ffn_dim_multiplier",
    "norm_eps",
    "rope_theta",
    "max_batch_size",
    "max_seq_len",
];

fn describe(file: &ConfigFile, ranks: &[TensorSet]) -> Result<ModelConfig, CheckpointError> {
    // Later models say so what they compute otherwise: `use_scaled_rope`, say.
    if let Some((key, _)) = file.entries().find(|(key, value)| !KEYS.contains(key) && *value != &Value::Bool(false)) {
        return Err(file.wrong(&[key], "nothing: Llama 2 has no such parameter"));
    }
    let hidden_size = file.count(&["dim"], None, limits::WIDTH)?;
    let queries = file.count(HEADS, None, limits::HEADS)?;
    let key_values = file.count(KV_HEADS, Some(queries), limits::HEADS)?;
    let heads = file.heads(hidden_size, (HEADS, queries), (KV_HEADS, key_values), None)?;
    let intermediate_size = intermediate_size(file, hidden_size)?;
    check_rank_count(hidden_size, ranks)?;
    let vocab_size = vocab_size(file, ranks)?;
    for (keys, value) in [
        (&["dim"] as &[&str], hidden_size),
        (HEADS, queries),
        (KV_HEADS, key_values),
        (&["multiple_of"], intermediate_size),
        (VOCAB_SIZE, vocab_size),
    ] {
        if !value.is_multiple_of(ranks.len()) {
            return Err(file.wrong(keys, format!("what {} shards can divide ({value} comes of it)", ranks.len())));
        }
    }
    let norm = Norm::Rms { eps: file.epsilon(&["norm_eps"], Some(1e-5))? };
    Ok(ModelConfig {
        family: "llama",
        vocab_size,
        hidden_size,
        num_layers: file.count(&["n_layers"], None, limits::LAYERS)?,
        layer: LayerSpec {
            attention: AttentionSpec::new(heads.queries, heads.key_values, heads.dim),
            mlp: MlpSpec { kind: Mlp::SwiGlu, width: intermediate_size, bias: false },
            norm,
            residual: Residual::Sequential,
        },
        final_norm: norm,
        positions: Positions::Rotary(Rope {
            theta: file.rope_theta()?,
            width: heads.dim,
            pairing: RopePairing::Interleaved,
            scaling: RopeScaling::None,
        }),
        max_position_embeddings: MAX_POSITIONS,
        dialog_format: Some(DialogFormat::Llama2),
    })
}

/// Nothing numbers the last shard, but the embedding's slices must add up to the width.
fn check_rank_count(hidden_size: usize, ranks: &[TensorSet]) -> Result<(), CheckpointError> {
    let Some(first) = ranks.first() else { return Ok(()) };
    match first.shape(EMBEDDING) {
        Some(&[_, slice]) if slice.saturating_mul(ranks.len()) < hidden_size => Err(CheckpointError::MissingRank {
            dir: first.path().parent().unwrap_or(first.path()).to_owned(),
            found: ranks.len(),
            missing: format!("consolidated.{:02}.pth", ranks.len()),
        }),
        _ => Ok(()),
    }
}

/// Two thirds of four times the width, times a multiplier, rounded up to a multiple; each step in whole numbers.
fn intermediate_size(file: &ConfigFile, hidden_size: usize) -> Result<usize, CheckpointError> {
    let multiple = file.count(&["multiple_of"], Some(256), limits::WIDTH)?;
    let multiplier = file.number(&["ffn_dim_multiplier"], Some(1.0), 0.01..=100.0)?;
    let inner = (2 * 4 * hidden_size / 3) as f64 * multiplier;
    Ok((inner as usize).next_multiple_of(multiple))
}

/// Published files say -1: the tokenizer's size, which the embedding has too.
fn vocab_size(file: &ConfigFile, ranks: &[TensorSet]) -> Result<usize, CheckpointError> {
    if file.value(VOCAB_SIZE).is_some_and(|value| value.as_i64() != Some(-1)) {
        return file.count(VOCAB_SIZE, None, limits::VOCABULARY);
    }
    let rows = ranks.first().and_then(|rank| rank.shape(EMBEDDING)?.first().copied());
    rows.filter(|rows| (1..=limits::VOCABULARY).contains(rows)).ok_or_else(|| {
        file.wrong(VOCAB_SIZE, format!("the number of rows of {EMBEDDING}, which the first shard does not hold"))
    })
}

/// The slices of all ranks.
struct Ranks<'a> {
    sets: &'a [TensorSet],
    hidden: usize,
}

impl Ranks<'_> {
    fn collect(&self, config: &ModelConfig) -> Result<ModelWeights, CheckpointError> {
        let LayerSpec { attention, mlp: MlpSpec { width: inner, .. }, .. } = config.layer;
        let (query_width, key_width) = (attention.query_width(), attention.kv_width());
        let layer = |layer: usize| {
            let name = |name: &str| format!("layers.{layer}.{name}.weight");
            Ok(LayerWeights {
                attention_norm: self.norm(&name("attention_norm"))?,
                query_key_norms: None,
                mlp_norm: Some(self.norm(&name("ffn_norm"))?),
                qkv: self.by_rows(&[
                    (name("attention.wq"), query_width),
                    (name("attention.wk"), key_width),
                    (name("attention.wv"), key_width),
                ])?,
                attention_output: self.by_columns(&name("attention.wo"), self.hidden, query_width)?,
                // w1 is the gate, w3 goes up, w2 down.
                mlp_in: self.by_rows(&[(name("feed_forward.w1"), inner), (name("feed_forward.w3"), inner)])?,
                mlp_out: self.by_columns(&name("feed_forward.w2"), self.hidden, inner)?,
            })
        };
        Ok(ModelWeights {
            embedding: self.by_columns(EMBEDDING, config.vocab_size, self.hidden)?,
            layers: (0..config.num_layers).map(layer).collect::<Result<_, CheckpointError>>()?,
            final_norm: self.norm("norm.weight")?,
            head: self.by_rows(&[("output.weight".into(), config.vocab_size)])?,
        })
    }

    /// Matrices (name, rows) one above the other, each divided among the ranks by its rows.
    fn by_rows(&self, matrices: &[(String, usize)]) -> Result<Linear, CheckpointError> {
        let mut linear = Linear { out_features: 0, in_features: self.hidden, parts: Vec::new(), bias: None };
        for (name, rows) in matrices {
            let slice = rows / self.sets.len();
            for weight in self.slices(name, [slice, self.hidden]) {
                let output_offset = linear.out_features;
                linear.parts.push(LinearPart { weight: weight?.into(), output_offset, input_offset: 0 });
                linear.out_features += slice;
            }
        }
        Ok(linear)
    }

    /// A matrix that is divided among the ranks by its columns.
    fn by_columns(&self, name: &str, rows: usize, cols: usize) -> Result<Linear, CheckpointError> {
        let slice = cols / self.sets.len();
        let part = |(rank, weight): (usize, Result<Tensor, _>)| {
            Ok(LinearPart { weight: weight?.into(), output_offset: 0, input_offset: rank * slice })
        };
        let parts = self.slices(name, [rows, slice]).enumerate().map(part).collect::<Result<_, CheckpointError>>()?;
        Ok(Linear { out_features: rows, in_features: cols, parts, bias: None })
    }

    fn slices(&self, name: &str, shape: [usize; 2]) -> impl Iterator<Item = Result<Tensor, CheckpointError>> {
        self.sets.iter().map(move |rank| rank.tensor(name, &shape))
    }

    /// A norm's weight, which every rank repeats.
    fn norm(&self, name: &str) -> Result<NormWeights, CheckpointError> {
        let copies = self.sets.iter().map(|rank| rank.tensor(name, &[self.hidden]));
        let copies: Vec<Tensor> = copies.collect::<Result<_, _>>()?;
        Ok(NormWeights { weight: copies.first().map(Tensor::to_f32).unwrap_or_default(), bias: None })
    }
}
