//! Which tensors a published checkpoint of a shape holds, in the order of its layers.

use kaito_presets::{Residual, Shape};

/// A tensor to write.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    pub name: String,
    pub shape: Vec<usize>,
    /// Elements are drawn evenly from `center - spread` to `center + spread`.
    pub center: f32,
    pub spread: f32,
}

impl Planned {
    /// A matrix, `rows` by `cols`, that keeps the size of what it maps: its elements' variance is `1 / cols`.
    pub fn matrix(name: impl Into<String>, rows: usize, cols: usize) -> Self {
        Self { name: name.into(), shape: vec![rows, cols], center: 0.0, spread: (3.0 / cols as f32).sqrt() }
    }

    /// The table of the tokens' vectors, of variance 1.
    pub fn embedding(name: impl Into<String>, rows: usize, cols: usize) -> Self {
        Self { spread: 3f32.sqrt(), ..Self::matrix(name, rows, cols) }
    }

    /// Factors around 1, or terms around 0.
    pub fn vector(name: impl Into<String>, len: usize, center: f32) -> Self {
        Self { name: name.into(), shape: vec![len], center, spread: 0.1 }
    }

    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// How the layers of a family are stored: by its `model_type`.
type Layout = fn(&Shape) -> Vec<Planned>;

const LAYOUTS: [(&str, Layout); 4] = [
    ("llama", |shape| llama_like(shape, false)),
    ("mistral", |shape| llama_like(shape, false)),
    ("phi3", |shape| llama_like(shape, true)),
    ("falcon", falcon),
];

/// The tensors of a Hugging Face checkpoint. A tied head is left out, as transformers does when it saves. None of a family
/// whose layout isn't known here.
pub fn hugging_face(shape: &Shape) -> Vec<Planned> {
    let layout = LAYOUTS.iter().find(|(model_type, _)| *model_type == shape.family.model_type);
    layout.map(|(_, tensors)| tensors(shape)).unwrap_or_default()
}

/// `fused`: whether queries, keys and values are one matrix, and gate and up another.
fn llama_like(shape: &Shape, fused: bool) -> Vec<Planned> {
    let Shape { hidden_size: hidden, intermediate_size: inner, vocab_size: vocab, head_dim, .. } = *shape;
    let (queries, keys) = (shape.num_heads * head_dim, shape.num_kv_heads * head_dim);
    let mut tensors = vec![Planned::embedding("model.embed_tokens.weight", vocab, hidden)];
    for layer in 0..shape.num_layers {
        let name = |name: &str| format!("model.layers.{layer}.{name}.weight");
        let matrix = |suffix: &str, rows, cols| Planned::matrix(name(suffix), rows, cols);
        tensors.push(Planned::vector(name("input_layernorm"), hidden, 1.0));
        if fused {
            tensors.push(matrix("self_attn.qkv_proj", queries + 2 * keys, hidden));
        } else {
            tensors.push(matrix("self_attn.q_proj", queries, hidden));
            tensors.push(matrix("self_attn.k_proj", keys, hidden));
            tensors.push(matrix("self_attn.v_proj", keys, hidden));
        }
        tensors.push(matrix("self_attn.o_proj", hidden, queries));
        tensors.push(Planned::vector(name("post_attention_layernorm"), hidden, 1.0));
        if fused {
            tensors.push(matrix("mlp.gate_up_proj", 2 * inner, hidden));
        } else {
            tensors.push(matrix("mlp.gate_proj", inner, hidden));
            tensors.push(matrix("mlp.up_proj", inner, hidden));
        }
        tensors.push(matrix("mlp.down_proj", hidden, inner));
    }
    tensors.push(Planned::vector("model.norm.weight", hidden, 1.0));
    if !shape.tied_embeddings {
        tensors.push(Planned::matrix("lm_head.weight", vocab, hidden));
    }
    tensors
}

fn falcon(shape: &Shape) -> Vec<Planned> {
    let Shape { hidden_size: hidden, intermediate_size: inner, vocab_size: vocab, head_dim, .. } = *shape;
    let norms: &[&str] = match shape.residual {
        Residual::ParallelSharedNorm => &["input_layernorm"],
        Residual::Parallel => &["ln_attn", "ln_mlp"],
        Residual::Sequential => &["input_layernorm", "post_attention_layernorm"],
    };
    let norm = |name: String| {
        [Planned::vector(format!("{name}.weight"), hidden, 1.0), Planned::vector(format!("{name}.bias"), hidden, 0.0)]
    };
    // The head is the embedding: its variance is that of a matrix, so that scores stay of the size of 1.
    let mut tensors = vec![Planned::matrix("transformer.word_embeddings.weight", vocab, hidden)];
    for layer in 0..shape.num_layers {
        let name = |name: &str| format!("transformer.h.{layer}.{name}");
        let matrix = |suffix: &str, rows, cols| Planned::matrix(name(suffix) + ".weight", rows, cols);
        tensors.extend(norms.iter().flat_map(|suffix| norm(name(suffix))));
        let width = (shape.num_heads + 2 * shape.num_kv_heads) * head_dim;
        tensors.push(matrix("self_attention.query_key_value", width, hidden));
        tensors.push(matrix("self_attention.dense", hidden, hidden));
        tensors.push(matrix("mlp.dense_h_to_4h", inner, hidden));
        tensors.push(matrix("mlp.dense_4h_to_h", hidden, inner));
    }
    tensors.extend(norm("transformer.ln_f".into()));
    tensors
}

/// The tensors of one of Meta's shards, in the order of Meta's files.
pub fn meta(shape: &Shape, ranks: usize) -> Vec<Planned> {
    let Shape { hidden_size: hidden, intermediate_size: inner, vocab_size: vocab, head_dim, .. } = *shape;
    let (queries, keys) = (shape.num_heads * head_dim / ranks, shape.num_kv_heads * head_dim / ranks);
    // A matrix cut by columns keeps the spread of the whole one.
    let by_columns = |name: String, rows, cols: usize| Planned {
        shape: vec![rows, cols / ranks],
        ..Planned::matrix(name, rows, cols)
    };
    let mut tensors = vec![Planned {
        shape: vec![vocab, hidden / ranks],
        ..Planned::embedding("tok_embeddings.weight", vocab, hidden)
    }];
    tensors.push(Planned::vector("norm.weight", hidden, 1.0));
    tensors.push(Planned::matrix("output.weight", vocab / ranks, hidden));
    for layer in 0..shape.num_layers {
        let name = |name: &str| format!("layers.{layer}.{name}.weight");
        tensors.push(Planned::matrix(name("attention.wq"), queries, hidden));
        tensors.push(Planned::matrix(name("attention.wk"), keys, hidden));
        tensors.push(Planned::matrix(name("attention.wv"), keys, hidden));
        tensors.push(by_columns(name("attention.wo"), hidden, shape.num_heads * head_dim));
        tensors.push(Planned::matrix(name("feed_forward.w1"), inner / ranks, hidden));
        tensors.push(by_columns(name("feed_forward.w2"), hidden, inner));
        tensors.push(Planned::matrix(name("feed_forward.w3"), inner / ranks, hidden));
        tensors.push(Planned::vector(name("attention_norm"), hidden, 1.0));
        tensors.push(Planned::vector(name("ffn_norm"), hidden, 1.0));
    }
    tensors.push(Planned::vector("rope.freqs", head_dim / 2, 0.0));
    tensors
}
