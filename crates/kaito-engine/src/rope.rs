//! Angles of the rotary position embedding.
//!
//! Computed as the reference does: inverse frequencies and angles in f32, because at long positions the rounding of an
//! f32 product is larger than anything later in the model.

use crate::config::{Rope, RopeScaling};

/// Inverse frequencies of a model, and what multiplies cos and sin.
#[derive(Debug)]
pub struct RopeTable {
    short: Vec<f32>,
    long: Option<LongRope>,
    attention_factor: f32,
}

#[derive(Debug)]
struct LongRope {
    inverse_frequencies: Vec<f32>,
    above: usize,
}

impl RopeTable {
    /// The table for heads of `head_dim` components.
    pub fn new(rope: &Rope, head_dim: usize) -> Self {
        let inverse = |factor: &dyn Fn(usize) -> f32| -> Vec<f32> {
            (0..head_dim / 2)
                .map(|i| {
                    let exponent = (2 * i) as f32 / head_dim as f32;
                    let base = rope.theta.powf(f64::from(exponent)) as f32;
                    1.0 / (factor(i) * base)
                })
                .collect()
        };
        match &rope.scaling {
            RopeScaling::None => Self { short: inverse(&|_| 1.0), long: None, attention_factor: 1.0 },
            RopeScaling::Linear { factor } => {
                let short = inverse(&|_| 1.0).into_iter().map(|f| f / *factor as f32).collect();
                Self { short, long: None, attention_factor: 1.0 }
            }
            RopeScaling::LongRope { short_factor, long_factor, original_max_position_embeddings, attention_factor } => {
                let of = |factors: &[f64]| inverse(&|i| factors.get(i).copied().unwrap_or(1.0) as f32);
                Self {
                    short: of(short_factor),
                    long: Some(LongRope {
                        inverse_frequencies: of(long_factor),
                        above: *original_max_position_embeddings,
                    }),
                    attention_factor: *attention_factor as f32,
                }
            }
        }
    }

    /// Sequence length above which other factors apply to the whole sequence, so that its keys must be computed again.
    pub fn long_above(&self) -> Option<usize> {
        self.long.as_ref().map(|long| long.above)
    }

    /// Appends cos and sin of the `head_dim / 2` angles at `position` of a sequence; `long` selects the long factors.
    pub fn push_angles(&self, position: usize, long: bool, cos: &mut Vec<f32>, sin: &mut Vec<f32>) {
        let frequencies = match &self.long {
            Some(table) if long => &table.inverse_frequencies,
            _ => &self.short,
        };
        for &frequency in frequencies {
            let (s, c) = f64::from(position as f32 * frequency).sin_cos();
            cos.push(c as f32 * self.attention_factor);
            sin.push(s as f32 * self.attention_factor);
        }
    }
}
