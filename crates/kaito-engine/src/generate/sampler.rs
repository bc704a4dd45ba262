//! Drawing at random. Every sequence has its own stream of random numbers, so what it draws does not depend on what
//! else runs, nor on when another sequence of the same request ends.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::numeric::{self, Candidate};

/// The random numbers of one sequence.
#[derive(Debug, Clone)]
pub struct Sampler {
    rng: ChaCha8Rng,
}

impl Sampler {
    /// Stream number `stream` of `seed`.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Self { rng }
    }

    /// A seed from the operating system.
    pub fn random_seed() -> u64 {
        rand::random()
    }

    /// One candidate, with probabilities that are the softmax of the scores. `None` if there is none.
    pub fn draw(&mut self, candidates: &[Candidate]) -> Option<Candidate> {
        let max = candidates.iter().map(|c| c.score).fold(f32::NEG_INFINITY, f32::max);
        let weight = |c: &Candidate| f64::from(c.score - max).exp();
        let total: f64 = candidates.iter().map(weight).sum();
        let mut rest = self.rng.random::<f64>() * total;
        let mut drawn = None;
        for candidate in candidates {
            let weight = weight(candidate);
            if weight > 0.0 {
                drawn = Some(*candidate);
                rest -= weight;
                if rest < 0.0 {
                    break;
                }
            }
        }
        drawn
    }

    /// Keys whose `n` highest are a draw of `n` candidates without replacement from the softmax of the scores: each
    /// score plus a Gumbel variate (the "Gumbel top-k trick"; Vieira 2014, Kool et al. 2019).
    pub fn gumbel_keys(&mut self, scores: impl Iterator<Item = f32>) -> Vec<f64> {
        scores
            .map(|score| {
                // In (0, 1]: the logarithm of 0 would rule a candidate in or out for good.
                let uniform = 1.0 - self.rng.random::<f64>();
                f64::from(score) - (-uniform.ln()).max(f64::MIN_POSITIVE).ln()
            })
            .collect()
    }
}

/// The ten likeliest candidates, best first; none of probability zero.
pub fn likeliest(candidates: impl Iterator<Item = Candidate>) -> Vec<(u32, f32)> {
    let top = numeric::top_n(candidates, super::TOP_SCORES);
    top.into_iter().filter(|c| c.score > f32::NEG_INFINITY).map(|c| (c.token, c.score)).collect()
}

/// The log-probability of `token` under the softmax of a row of scores, and those of the `likeliest` likeliest tokens; `None`
/// where the scores have none.
pub fn describe_raw(
    scores: &[f32],
    token: u32,
    likeliest: usize,
    best: &mut Vec<Candidate>,
) -> Option<super::TokenScore> {
    let (max, log_sum) = numeric::log_sum_exp(scores.iter().copied());
    let log_prob = |score: f32| score - max - log_sum;
    let own = *scores.get(token as usize)?;
    if !log_sum.is_finite() {
        return None;
    }
    numeric::top_n_into(numeric::enumerate(scores), likeliest, best);
    let top = best.iter().map(|c| (c.token, log_prob(c.score))).collect();
    let before = |&(other, &score): &(usize, &f32)| score > own || (score == own && other < token as usize);
    let rank = 1 + scores.iter().enumerate().filter(before).count();
    Some(super::TokenScore { token, log_prob: log_prob(own), rank: Some(rank), top })
}

/// Log-probabilities of `chosen` and of the likeliest candidates, under the softmax of the candidates' scores.
pub fn describe(candidates: impl Iterator<Item = Candidate> + Clone, chosen: Candidate) -> super::TokenScore {
    let (max, log_sum) = numeric::log_sum_exp(candidates.clone().map(|c| c.score));
    let log_prob = |score: f32| score - max - log_sum;
    super::TokenScore {
        token: chosen.token,
        log_prob: log_prob(chosen.score),
        rank: None,
        top: likeliest(candidates).into_iter().map(|(token, score)| (token, log_prob(score))).collect(),
    }
}
