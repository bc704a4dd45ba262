//! Greedy decoding and sampling: sequences that do not know of each other.

use super::numeric;
use super::params::{GenerationParams, Strategy};
use super::sampler::{self, Sampler};
use super::{Advance, Chosen, FinishReason, GenerateError, Scratch, SequenceOutput, TokenScore, processors};

#[derive(Debug, Clone)]
struct Sequence {
    tokens: Vec<u32>,
    sampler: Sampler,
    scores: Vec<TokenScore>,
    finished: Option<FinishReason>,
}

/// One or more sequences, each continued on its own.
#[derive(Debug, Clone)]
pub struct Independent {
    params: GenerationParams,
    prompt_len: usize,
    sample: bool,
    sequences: Vec<Sequence>,
    /// The unfinished sequences; row `i` is `live[i]`'s once started.
    live: Vec<usize>,
    /// Before the first step all sequences share one row.
    started: bool,
    scratch: Scratch,
}

impl Independent {
    pub fn new(prompt: Vec<u32>, params: GenerationParams) -> Self {
        let seed = params.seed.unwrap_or_else(Sampler::random_seed);
        let (sample, count) = match params.strategy {
            Strategy::Sample { sequences } => (true, sequences),
            _ => (false, 1),
        };
        let prompt_len = prompt.len();
        let full = prompt_len >= params.max_total_len;
        let sequence = |stream: usize| Sequence {
            tokens: prompt.clone(),
            sampler: Sampler::new(seed, stream as u64),
            scores: Vec::new(),
            finished: full.then_some(FinishReason::Length),
        };
        let sequences = (0..count).map(sequence).collect();
        let live = if full { Vec::new() } else { (0..count).collect() };
        Self { params, prompt_len, sample, sequences, live, started: false, scratch: Scratch::default() }
    }

    pub fn rows(&self) -> usize {
        if self.started { self.live.len() } else { self.live.len().min(1) }
    }

    pub fn tokens(&self, row: usize) -> &[u32] {
        self.live.get(row).and_then(|&sequence| self.sequences.get(sequence)).map_or(&[], |sequence| &sequence.tokens)
    }

    pub fn reserve(&mut self) {
        for sequence in &mut self.sequences {
            let missing = self.params.max_total_len.saturating_sub(sequence.tokens.len());
            sequence.tokens.reserve_exact(missing);
        }
    }

    pub fn advance(&mut self, scores: &mut [&mut [f32]], advance: &mut Advance) -> Result<(), GenerateError> {
        advance.parents.clear();
        let of_row = if self.started { 1 } else { self.live.len().max(1) };
        for (row, (scores, sequences)) in scores.iter_mut().zip(self.live.chunks(of_row)).enumerate() {
            for (nth, &index) in sequences.iter().enumerate() {
                let Some(sequence) = self.sequences.get_mut(index) else { continue };
                if nth == 0 {
                    choices(&self.params, self.sample, self.prompt_len, &sequence.tokens, scores, &mut self.scratch)?;
                }
                let candidates = &self.scratch.candidates;
                let nothing = || GenerateError::NothingAllowed { position: sequence.tokens.len() };
                let chosen = match (self.sample, candidates.first()) {
                    (true, _) => sequence.sampler.draw(candidates).ok_or_else(nothing)?,
                    (false, best) => *best.ok_or_else(nothing)?,
                };
                let score = self.params.output_scores.then(|| {
                    if self.sample {
                        sampler::describe(candidates.iter().copied(), chosen)
                    } else {
                        sampler::describe(numeric::enumerate(scores), chosen)
                    }
                });
                sequence.tokens.push(chosen.token);
                sequence.scores.extend(score.clone());
                sequence.finished = if self.params.end_tokens.contains(&chosen.token) {
                    Some(FinishReason::EndToken)
                } else if sequence.tokens.len() >= self.params.max_total_len {
                    Some(FinishReason::Length)
                } else {
                    None
                };
                if sequence.finished.is_none() {
                    advance.parents.push(row);
                }
                advance.chosen.push(Chosen { sequence: index, token: chosen.token, score });
            }
        }
        let sequences = &self.sequences;
        self.live.retain(|&index| sequences.get(index).is_some_and(|sequence| sequence.finished.is_none()));
        self.started = true;
        advance.finished = self.live.is_empty();
        Ok(())
    }

    pub fn stop(&mut self, sequence: usize) -> Option<usize> {
        let row = self.live.iter().position(|&live| live == sequence)?;
        self.live.remove(row);
        self.sequences.get_mut(sequence)?.finished = Some(FinishReason::Stop);
        match (self.started, self.live.is_empty()) {
            (true, _) => Some(row),
            (false, true) => Some(0),
            (false, false) => None,
        }
    }

    pub fn outputs(&self) -> Vec<SequenceOutput> {
        let output = |sequence: &Sequence| SequenceOutput {
            tokens: sequence.tokens.clone(),
            score: None,
            finish_reason: sequence.finished.unwrap_or(FinishReason::Stop),
            scores: self.params.output_scores.then(|| sequence.scores.clone()),
        };
        self.sequences.iter().map(output).collect()
    }
}

/// Leaves in `scratch` what the next token is chosen from: the tokens that can be drawn, or the likeliest alone.
fn choices(
    params: &GenerationParams,
    sample: bool,
    prompt_len: usize,
    tokens: &[u32],
    scores: &mut [f32],
    scratch: &mut Scratch,
) -> Result<(), GenerateError> {
    let position = tokens.len();
    params.processors.apply(scores, tokens, prompt_len, &[], scratch);
    if !processors::is_valid(scores) {
        return Err(GenerateError::InvalidScores { position });
    }
    if sample {
        params.warpers.apply(scores, scratch);
    } else {
        let best = numeric::argmax(scores).and_then(|token| numeric::enumerate(scores).nth(token));
        scratch.candidates.clear();
        scratch.candidates.extend(best.filter(|best| best.score > f32::NEG_INFINITY));
    }
    if scratch.candidates.is_empty() {
        return Err(GenerateError::NothingAllowed { position });
    }
    Ok(())
}
