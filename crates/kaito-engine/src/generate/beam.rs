//! Beam search, diverse group beam search and beam sampling.

use super::hypotheses::{Hypotheses, Hypothesis};
use super::numeric::{self, Candidate};
use super::params::{BeamParams, GenerationParams};
use super::sampler::{self, Sampler};
use super::{
    Advance, Constraint, FinishReason, GenerateError, Scratch, SequenceOutput, TokenScore, constraint, processors,
};

/// The score that keeps all beams but a group's first out of the first step, when they are all the same.
const NOT_YET: f32 = -1e9;

#[derive(Debug, Clone)]
struct Beam {
    tokens: Vec<u32>,
    constraint: Option<Box<dyn Constraint>>,
    sum_log_probs: f32,
    trace: Option<usize>,
}

#[derive(Debug, Clone)]
struct Group {
    /// How many beams it has; fewer where fewer continuations are possible at all.
    size: usize,
    beams: Vec<Beam>,
    hypotheses: Hypotheses,
    done: bool,
}

/// A token's score and the entry of the token before it. Beams share their beginnings, so the entries form a tree.
#[derive(Debug, Clone)]
struct TraceEntry {
    parent: Option<usize>,
    score: TokenScore,
}

/// A candidate for a group's next beams.
#[derive(Debug, Clone, Copy)]
struct Continuation {
    beam: usize,
    token: u32,
    sum_log_probs: f32,
    /// The token's processed score alone.
    log_prob: f32,
}

/// What a group's next beams are made from.
struct Step {
    /// Best first.
    continuations: Vec<Continuation>,
    /// For each beam the likeliest tokens, where scores are asked for.
    tops: Vec<Vec<(u32, f32)>>,
}

/// A whole search, with one or more groups of beams.
#[derive(Debug, Clone)]
pub struct BeamSearch {
    params: GenerationParams,
    beams: BeamParams,
    prompt_len: usize,
    groups: Vec<Group>,
    sampler: Sampler,
    trace: Vec<TraceEntry>,
    /// Before the first step all beams are the prompt, and that is the only live sequence.
    started: bool,
    finished: bool,
}

impl BeamSearch {
    pub fn new(prompt: Vec<u32>, params: GenerationParams, beams: BeamParams) -> Self {
        let prompt_len = prompt.len();
        let num_groups = beams.num_groups.max(1);
        let size = beams.num_beams / num_groups;
        let max_new_tokens = params.max_total_len.saturating_sub(prompt_len);
        let beam = |index: usize| Beam {
            tokens: prompt.clone(),
            constraint: params.constraint.clone(),
            sum_log_probs: if index == 0 { 0.0 } else { NOT_YET },
            trace: None,
        };
        let group = Group {
            size,
            beams: (0..size).map(beam).collect(),
            hypotheses: Hypotheses::new(size, beams.length_penalty, beams.early_stopping, max_new_tokens),
            done: false,
        };
        let seed = params.seed.unwrap_or_else(Sampler::random_seed);
        let mut search = Self {
            params,
            beams,
            prompt_len,
            groups: vec![group; num_groups],
            sampler: Sampler::new(seed, 0),
            trace: Vec::new(),
            started: false,
            finished: max_new_tokens == 0,
        };
        if search.finished {
            search.finish();
        }
        search
    }

    fn live_beams(&self) -> impl Iterator<Item = &Beam> {
        self.groups.iter().filter(|group| !group.done).flat_map(|group| &group.beams)
    }

    pub fn live_sequences(&self) -> usize {
        match (self.finished, self.started) {
            (true, _) => 0,
            (false, false) => 1,
            (false, true) => self.groups.iter().filter(|group| !group.done).map(|group| group.beams.len()).sum(),
        }
    }

    pub fn tokens(&self, live: usize) -> &[u32] {
        if live >= self.live_sequences() {
            return &[];
        }
        // From group to group, not from beam to beam: a step asks for every beam.
        let mut before = 0;
        for group in self.groups.iter().filter(|group| !group.done) {
            if let Some(beam) = group.beams.get(live - before) {
                return &beam.tokens;
            }
            before += group.beams.len();
        }
        &[]
    }

    pub fn advance(&mut self, rows: &mut [&mut [f32]]) -> Result<Advance, GenerateError> {
        let mut advance = Advance::default();
        // Tokens chosen at this step by the groups so far, which later groups avoid.
        let mut chosen: Vec<u32> = Vec::new();
        let mut first_row = 0;
        for row in rows.iter_mut() {
            numeric::log_softmax(row);
        }
        for index in 0..self.groups.len() {
            let Some(group) = self.groups.get(index) else { break };
            if group.done {
                chosen.extend(std::iter::repeat_n(self.beams.pad_token, group.size));
                continue;
            }
            let size = group.beams.len();
            let step = if self.started {
                let rows = rows.get_mut(first_row..first_row + size).unwrap_or_default();
                self.step(index, rows, &chosen)?
            } else {
                // Every group begins with the same scores and changes them in its own way.
                let mut row = rows.first().map(|row| row.to_vec()).unwrap_or_default();
                self.step(index, &mut [&mut row], &chosen)?
            };
            let sources = self.extend(index, &step)?;
            let Some(group) = self.groups.get(index) else { break };
            chosen.extend(group.beams.iter().filter_map(|beam| beam.tokens.last()));
            if !group.done {
                advance.parents.extend(sources.iter().map(|beam| if self.started { first_row + beam } else { 0 }));
            }
            first_row += size;
        }
        self.started = true;
        let at_limit = self.live_beams().all(|beam| beam.tokens.len() >= self.params.max_total_len);
        if at_limit {
            self.finish();
            advance = Advance { finished: true, ..Advance::default() };
        }
        Ok(advance)
    }

    /// The candidates of a group, best first: enough that as many beams remain when all end tokens are taken away.
    /// `rows` are log-probabilities, one row a beam or a single one for all.
    fn step(&mut self, group: usize, rows: &mut [&mut [f32]], chosen: &[u32]) -> Result<Step, GenerateError> {
        let Some(Group { beams, size, .. }) = self.groups.get_mut(group) else {
            return Ok(Step { continuations: Vec::new(), tops: Vec::new() });
        };
        let position = beams.first().map_or(0, |beam| beam.tokens.len());
        let count = (1 + self.params.end_tokens.len()).max(2) * *size;
        let mut warped: Vec<Vec<Candidate>> = Vec::new();
        let mut scratch = Scratch::default();
        for (row, beam) in rows.iter_mut().zip(beams.iter_mut()) {
            let Beam { tokens, constraint, .. } = beam;
            let constraint = constraint.as_deref_mut();
            processors::process(&self.params, tokens, self.prompt_len, chosen, constraint, row, &mut scratch)?;
            if self.beams.sample {
                self.params.warpers.apply(row, &mut scratch);
                warped.push(scratch.candidates.clone());
            }
        }
        let row_of = |beam: usize| if self.started { beam } else { 0 };
        let tops = if self.params.output_scores {
            let top = |beam: usize| match warped.get(row_of(beam)) {
                Some(candidates) => sampler::likeliest(candidates.iter().copied()),
                None => sampler::likeliest(numeric::enumerate(rows.get(row_of(beam)).map_or(&[], |row| row))),
            };
            (0..beams.len()).map(top).collect()
        } else {
            Vec::new()
        };
        let mut best: Vec<Continuation> = Vec::new();
        for (index, beam) in beams.iter().enumerate() {
            // The sum is made in f32 before the comparison, as the reference makes it.
            let sum = |c: Candidate| Candidate { score: c.score + beam.sum_log_probs, ..c };
            let row: &[f32] = rows.get(row_of(index)).map_or(&[], |row| row);
            let continuation = |c: Candidate, log_prob: f32| Continuation {
                beam: index,
                token: c.token,
                sum_log_probs: c.score,
                log_prob,
            };
            if let Some(candidates) = warped.get(row_of(index)) {
                best.extend(candidates.iter().map(|&c| continuation(sum(c), c.score)));
            } else {
                let top = numeric::top_n(numeric::enumerate(row).map(sum), count);
                best.extend(
                    top.into_iter().map(|c| continuation(c, row.get(c.token as usize).copied().unwrap_or_default())),
                );
            }
        }
        if self.beams.sample {
            best = self.draw(best, count);
        }
        // Stable: of equal scores the lower beam comes first, and in it the lower token.
        best.sort_by(|a, b| b.sum_log_probs.total_cmp(&a.sum_log_probs));
        best.truncate(count);
        best.retain(|continuation| continuation.sum_log_probs > f32::NEG_INFINITY);
        if best.is_empty() {
            return Err(GenerateError::NothingAllowed { position });
        }
        Ok(Step { continuations: best, tops })
    }

    /// `count` candidates drawn without replacement, with the probabilities that their sums are the logarithms of.
    fn draw(&mut self, candidates: Vec<Continuation>, count: usize) -> Vec<Continuation> {
        let keys = self.sampler.gumbel_keys(candidates.iter().map(|c| c.sum_log_probs));
        let mut keyed: Vec<(f64, Continuation)> = keys.into_iter().zip(candidates).collect();
        if count < keyed.len() {
            keyed.select_nth_unstable_by(count, |a, b| b.0.total_cmp(&a.0));
            keyed.truncate(count);
        }
        // Back to the order of beams and tokens, which decides between equal sums.
        keyed.sort_unstable_by_key(|(_, c)| (c.beam, c.token));
        keyed.into_iter().map(|(_, c)| c).collect()
    }

    /// Makes a group's next beams and hypotheses; returns the old beam of each new one.
    fn extend(&mut self, index: usize, step: &Step) -> Result<Vec<usize>, GenerateError> {
        let mut sources = Vec::new();
        let Some(group) = self.groups.get_mut(index) else { return Ok(sources) };
        let old = std::mem::take(&mut group.beams);
        let new_tokens = old.first().map_or(0, |beam| beam.tokens.len() + 1 - self.prompt_len);
        for (rank, continuation) in step.continuations.iter().enumerate() {
            if group.beams.len() == group.size {
                break;
            }
            let Some(beam) = old.get(continuation.beam) else { continue };
            let is_end = self.params.end_tokens.contains(&continuation.token);
            let mut constraint = beam.constraint.clone().filter(|_| !is_end);
            let position = beam.tokens.len();
            let nothing_follows = constraint::follow(constraint.as_deref_mut(), continuation.token, position)?;
            if (is_end || nothing_follows) && rank >= group.size {
                continue;
            }
            let trace = step.tops.get(continuation.beam).map(|top| {
                let score = TokenScore {
                    token: continuation.token,
                    log_prob: continuation.log_prob,
                    rank: None,
                    top: top.clone(),
                };
                self.trace.push(TraceEntry { parent: beam.trace, score });
                self.trace.len() - 1
            });
            let mut tokens = Vec::with_capacity(beam.tokens.len() + 1);
            tokens.extend_from_slice(&beam.tokens);
            // The reference closes every hypothesis with the first end token, whichever was chosen.
            let last = self.params.end_tokens.first().copied().filter(|_| is_end).unwrap_or(continuation.token);
            tokens.push(last);
            if is_end || nothing_follows {
                group.hypotheses.add(Hypothesis {
                    score: group.hypotheses.score(continuation.sum_log_probs, new_tokens),
                    tokens,
                    trace,
                    finish_reason: if is_end { FinishReason::EndToken } else { FinishReason::Stop },
                });
            } else {
                group.beams.push(Beam { tokens, constraint, sum_log_probs: continuation.sum_log_probs, trace });
                sources.push(continuation.beam);
            }
        }
        let best = step.continuations.first().map_or(f32::NEG_INFINITY, |best| best.sum_log_probs);
        group.done = group.beams.is_empty() || group.hypotheses.is_done(best, new_tokens);
        Ok(sources)
    }

    /// Lets the beams that are still open compete with the hypotheses.
    fn finish(&mut self) {
        for group in self.groups.iter_mut().filter(|group| !group.done) {
            for beam in &group.beams {
                let new_tokens = (beam.tokens.len() - self.prompt_len).max(1);
                group.hypotheses.add(Hypothesis {
                    score: group.hypotheses.score(beam.sum_log_probs, new_tokens),
                    tokens: beam.tokens.clone(),
                    trace: beam.trace,
                    finish_reason: FinishReason::Length,
                });
            }
        }
        self.finished = true;
    }

    pub fn outputs(&self) -> Vec<SequenceOutput> {
        let mut best: Vec<&Hypothesis> = self.groups.iter().flat_map(|group| &group.hypotheses.kept).collect();
        // Of equal scores the latest comes first, as in the reference, which sorts upwards and takes from the end.
        best.sort_by(|a, b| a.score.total_cmp(&b.score));
        let output = |hypothesis: &&Hypothesis| SequenceOutput {
            tokens: hypothesis.tokens.clone(),
            score: Some(hypothesis.score as f32),
            finish_reason: hypothesis.finish_reason,
            scores: self.params.output_scores.then(|| self.scores(hypothesis.trace)),
        };
        best.iter().rev().take(self.beams.sequences).map(output).collect()
    }

    fn scores(&self, mut trace: Option<usize>) -> Vec<TokenScore> {
        let mut scores = Vec::new();
        while let Some(entry) = trace.and_then(|index| self.trace.get(index)) {
            scores.push(entry.score.clone());
            trace = entry.parent;
        }
        scores.reverse();
        scores
    }
}
