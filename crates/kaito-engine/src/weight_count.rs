//! How many parameters and bytes a model's weights have.

use kaito_model::weights::{Linear, ModelWeights};

/// Sums over a model's weights; a tied head is counted once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WeightCount {
    /// Weights, biases and normalisations.
    pub parameters: u64,
    /// Bytes of the matrices.
    pub bytes: u64,
    /// Bytes of the matrices that every step reads: all but the embedding, of which it takes rows.
    pub step_bytes: u64,
}

impl WeightCount {
    pub fn of(weights: &ModelWeights) -> Self {
        let mut count = Self { parameters: 0, bytes: 0, step_bytes: 0 };
        let mut add = |linear: &Linear| {
            for part in &linear.parts {
                count.parameters += part.weight.elements() as u64;
                count.bytes += part.weight.bytes().len() as u64;
            }
            count.parameters += linear.bias.as_ref().map_or(0, Vec::len) as u64;
        };
        let tied = is_tied(weights);
        add(&weights.embedding);
        if !tied {
            add(&weights.head);
        }
        for layer in &weights.layers {
            [&layer.qkv, &layer.attention_output, &layer.mlp_in, &layer.mlp_out].into_iter().for_each(&mut add);
        }
        let norms = weights.layers.iter().flat_map(|layer| [Some(&layer.attention_norm), layer.mlp_norm.as_ref()]);
        for norm in norms.flatten().chain([&weights.final_norm]) {
            count.parameters += (norm.weight.len() + norm.bias.as_ref().map_or(0, Vec::len)) as u64;
        }
        let embedding: u64 = weights.embedding.parts.iter().map(|part| part.weight.bytes().len() as u64).sum();
        count.step_bytes = count.bytes - if tied { 0 } else { embedding };
        count
    }
}

/// Whether the output head is the embedding.
pub(crate) fn is_tied(weights: &ModelWeights) -> bool {
    let place = |linear: &Linear| linear.parts.iter().map(|part| part.weight.bytes().as_ptr()).collect::<Vec<_>>();
    place(&weights.embedding) == place(&weights.head)
}
