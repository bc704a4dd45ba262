//! Angles of the rotary position embedding (RoPE).
//!
//! Computed as the reference does: inverse frequencies and angles in f32, because at long positions the rounding of an
//! f32 product is larger than anything later in the model.

use std::f64::consts::PI;

use kaito_model::config::{ModelConfig, Positions, Rope, RopeScaling};

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
    /// The table of a model; none where positions are told otherwise.
    pub fn of(config: &ModelConfig) -> Option<Self> {
        match &config.positions {
            Positions::Rotary(rope) => Some(Self::new(rope)),
            Positions::Alibi => None,
        }
    }

    /// The table of a rotary position embedding.
    pub fn new(rope: &Rope) -> Self {
        let width = rope.width;
        let inverse = |factor: &dyn Fn(usize) -> f32| -> Vec<f32> {
            (0..width / 2)
                .map(|i| {
                    let exponent = (2 * i) as f32 / width as f32;
                    let base = rope.theta.powf(f64::from(exponent)) as f32;
                    1.0 / (factor(i) * base)
                })
                .collect()
        };
        let plain = |short: Vec<f32>, attention_factor: f32| Self { short, long: None, attention_factor };
        match &rope.scaling {
            RopeScaling::None => plain(inverse(&|_| 1.0), 1.0),
            RopeScaling::Linear { factor } => {
                plain(inverse(&|_| 1.0).into_iter().map(|f| f / *factor as f32).collect(), 1.0)
            }
            &RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let bounds = Llama3 {
                    factor: factor as f32,
                    low: low_freq_factor as f32,
                    high: high_freq_factor as f32,
                    original: original_max_position_embeddings as f32,
                };
                plain(inverse(&|_| 1.0).into_iter().map(|f| bounds.scaled(f)).collect(), 1.0)
            }
            &RopeScaling::Yarn { factor, beta_fast, beta_slow, max_position_embeddings, attention_factor } => {
                let pair = |turns: f64| {
                    let waves = max_position_embeddings as f64 / (turns * 2.0 * PI);
                    width as f64 * waves.ln() / (2.0 * rope.theta.ln())
                };
                let low = pair(beta_fast).floor().max(0.0);
                let high = pair(beta_slow).ceil().min(width as f64 - 1.0);
                // The reference keeps from dividing by zero so.
                let blended = if low == high { 0.001 } else { high - low };
                let stretched = inverse(&|_| factor as f32);
                let blend = |(i, (kept, stretched)): (usize, (f32, f32))| {
                    let ramp = ((i as f32 - low as f32) / blended as f32).clamp(0.0, 1.0);
                    stretched * (1.0 - (1.0 - ramp)) + kept * (1.0 - ramp)
                };
                let kept = inverse(&|_| 1.0);
                plain(kept.into_iter().zip(stretched).enumerate().map(blend).collect(), attention_factor as f32)
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

    /// Number of angles at each position: half the rotated width.
    pub fn angles(&self) -> usize {
        self.short.len()
    }

    /// Appends cos and sin of the [`Self::angles`] angles at `position` of a sequence; `long` selects the long factors.
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

/// [`RopeScaling::Llama3`] in f32.
struct Llama3 {
    factor: f32,
    low: f32,
    high: f32,
    original: f32,
}

impl Llama3 {
    fn scaled(&self, frequency: f32) -> f32 {
        let wave = 2.0 * std::f32::consts::PI / frequency;
        if wave > self.original / self.low {
            frequency / self.factor
        } else if wave < self.original / self.high {
            frequency
        } else {
            let smooth = (self.original / wave - self.low) / (self.high - self.low);
            (1.0 - smooth) * frequency / self.factor + smooth * frequency
        }
    }
}

#[cfg(test)]
mod tests {
    use kaito_model::config::RopePairing;

    use super::*;

    /// Of a head whose first four components are rotated: inverse frequencies are 1 and 10000^(-1/2).
    #[test]
    fn as_many_components_are_rotated_as_the_specification_says() {
        let (pairing, scaling) = (RopePairing::Halves, RopeScaling::None);
        let table = RopeTable::new(&Rope { theta: 1e4, width: 4, pairing, scaling });
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        table.push_angles(3, false, &mut cos, &mut sin);
        assert_eq!(table.angles(), 2);
        for (found, expected) in cos.iter().chain(&sin).zip([3f64.cos(), 0.03f64.cos(), 3f64.sin(), 0.03f64.sin()]) {
            assert!((f64::from(*found) - expected).abs() < 1e-7, "{found}, expected {expected}");
        }
        assert_eq!((cos.len(), sin.len()), (2, 2));
    }
}
