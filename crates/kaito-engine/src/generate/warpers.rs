//! Logits warpers: how sampling narrows and flattens the distribution before it draws.

use std::cmp::Ordering;

use super::{
    Scratch,
    numeric::{self, Candidate},
};

/// One step from scores to the distribution that is drawn from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Warper {
    /// Divides all scores.
    Temperature(f32),
    /// Keeps the `k` best and what ties with the last of them.
    TopK(usize),
    /// Keeps the likeliest tokens until they have this probability: the mass before a kept one is below it.
    TopP(f64),
    /// The same in Meta's code, which keeps a token whose preceding mass equals the limit.
    MetaTopP(f64),
    /// Keeps the tokens whose surprise is nearest the entropy, up to the one that completes this probability
    /// (Meister et al., "Locally Typical Sampling").
    TypicalP(f64),
    /// Keeps the tokens whose probability is at least this part of the likeliest one's.
    MinP(f64),
}

/// The warpers of one request, in order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Warpers {
    /// The steps.
    pub steps: Vec<Warper>,
    /// No step leaves fewer tokens than this.
    pub min_tokens_to_keep: usize,
}

impl Warpers {
    /// Leaves in `scratch.candidates` the tokens that can be drawn and their warped scores, in no particular order; all other
    /// tokens have probability zero. `scores` may be changed.
    pub(crate) fn apply(&self, scores: &mut [f32], scratch: &mut Scratch) {
        let Scratch { candidates, best, .. } = scratch;
        candidates.clear();
        candidates.reserve(scores.len());
        let keep = self.min_tokens_to_keep.max(1);
        let mut steps = self.steps.iter().peekable();
        if let Some(Warper::Temperature(temperature)) = steps.next_if(|step| matches!(step, Warper::Temperature(_))) {
            scores.iter_mut().for_each(|score| *score /= temperature);
        }
        // Top-k comes before all that needs a sum or an order, so that what follows sees a handful of tokens.
        let top_k = steps.next_if(|step| matches!(step, Warper::TopK(_)));
        let mut lowest = f32::NEG_INFINITY;
        if let Some(&Warper::TopK(k)) = top_k {
            numeric::top_n_into(numeric::enumerate(scores), k.max(keep), best);
            lowest = best.last().map_or(f32::NEG_INFINITY, |last| last.score);
        }
        let possible = |c: &Candidate| c.score >= lowest && c.score > f32::NEG_INFINITY;
        candidates.extend(numeric::enumerate(scores).filter(possible));
        for step in steps {
            match *step {
                Warper::Temperature(temperature) => candidates.iter_mut().for_each(|c| c.score /= temperature),
                Warper::TopK(k) => {
                    numeric::top_n_into(candidates.iter().copied(), k.max(keep), best);
                    let last = best.last().map_or(f32::NEG_INFINITY, |last| last.score);
                    candidates.retain(|c| c.score >= last);
                }
                Warper::TopP(mass) => {
                    let count = nucleus(candidates, keep, |before| before < mass);
                    candidates.truncate(count);
                }
                Warper::MetaTopP(mass) => {
                    let count = nucleus(candidates, keep, |before| before <= mass);
                    candidates.truncate(count);
                }
                Warper::TypicalP(mass) => typical(candidates, keep, mass),
                Warper::MinP(part) => {
                    let max = candidates.iter().map(|c| c.score).fold(f32::NEG_INFINITY, f32::max);
                    let lowest = part.ln();
                    candidates.retain(|c| f64::from(c.score - max) >= lowest);
                }
            }
        }
    }
}

/// Sorts candidates so far that the `count` it returns are the first: the likeliest for whose preceding probability
/// `keep` holds, at least `at_least`.
fn nucleus(candidates: &mut [Candidate], at_least: usize, keep: impl Fn(f64) -> bool) -> usize {
    let (max, log_sum) = numeric::log_sum_exp(candidates.iter().map(|c| c.score));
    let mut before = 0.0;
    // The reference sorts upwards, and stably: among equal scores the lowest token is dropped first.
    let order = |a: &Candidate, b: &Candidate| b.score.total_cmp(&a.score).then(b.token.cmp(&a.token));
    take_sorted(candidates, order, |index, candidate| {
        let kept = index < at_least || keep(before);
        before += f64::from(candidate.score - max - log_sum).exp();
        kept
    })
}

fn typical(candidates: &mut Vec<Candidate>, at_least: usize, mass: f64) {
    let (max, log_sum) = numeric::log_sum_exp(candidates.iter().map(|c| c.score));
    let log_prob = |c: &Candidate| c.score - max - log_sum;
    let entropy = -candidates.iter().map(|c| f64::from(log_prob(c) * log_prob(c).exp())).sum::<f64>() as f32;
    let distance = |c: &Candidate| (-log_prob(c) - entropy).abs();
    let order = |a: &Candidate, b: &Candidate| distance(a).total_cmp(&distance(b)).then(a.token.cmp(&b.token));
    let mut total = 0.0;
    let mut limit = f32::INFINITY;
    let count = take_sorted(candidates, order, |index, candidate| {
        let kept = index < at_least || distance(candidate) <= limit;
        total += f64::from(log_prob(candidate)).exp();
        if total >= mass && limit == f32::INFINITY {
            limit = distance(candidate);
        }
        kept
    });
    candidates.truncate(count);
}

/// Sorts from the front for as long as `accept` says so, and returns how many it accepted. Most calls accept a few of
/// very many, so growing pieces are sorted one after another.
fn take_sorted(
    candidates: &mut [Candidate],
    order: impl Fn(&Candidate, &Candidate) -> Ordering,
    mut accept: impl FnMut(usize, &Candidate) -> bool,
) -> usize {
    let mut done = 0;
    let mut piece = 128;
    while done < candidates.len() {
        let rest = &mut candidates[done..];
        let len = piece.min(rest.len());
        if len < rest.len() {
            rest.select_nth_unstable_by(len - 1, &order);
        }
        let sorted = &mut rest[..len];
        sorted.sort_unstable_by(&order);
        for (index, candidate) in sorted.iter().enumerate() {
            if !accept(done + index, candidate) {
                return done + index;
            }
        }
        done += len;
        piece *= 8;
    }
    done
}
