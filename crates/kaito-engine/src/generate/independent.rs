//! Greedy decoding and sampling: sequences that do not know of each other.

use std::ops::Range;

use super::constraint::{AskAhead, Asked};
use super::numeric;
use super::params::{GenerationParams, Strategy};
use super::sampler::{self, Sampler};
use super::{
    Advance, Chosen, Constraint, FinishReason, GenerateError, Scratch, SequenceOutput, Stopped, TokenScore, constraint,
    processors,
};

#[derive(Debug, Clone)]
struct Sequence {
    tokens: Vec<u32>,
    constraint: Option<Box<dyn Constraint>>,
    asked: Asked,
    sampler: Sampler,
    scores: Vec<TokenScore>,
    finished: Option<FinishReason>,
}

/// One or more sequences, each continued on its own. Where more are asked for than may run together, they run in waves:
/// the next ones begin when all before them have ended. Each has random numbers of its own, so waves change nothing.
#[derive(Debug, Clone)]
pub struct Independent {
    params: GenerationParams,
    prompt: Vec<u32>,
    sample: bool,
    seed: u64,
    /// How many sequences there are to be.
    count: usize,
    /// Most sequences of a wave.
    width: usize,
    /// Those that have begun.
    sequences: Vec<Sequence>,
    /// Those that were stopped before they began.
    skipped: Vec<usize>,
    /// Scores of the prompt's tokens, from the second one on, where they are asked for, until they are taken.
    prompt_scores: Vec<TokenScore>,
    /// How many tokens of the prompt have them.
    scored: usize,
    /// The unfinished sequences of this wave: once started, the live sequence `i` is `live[i]`.
    live: Vec<usize>,
    /// Before its first step all sequences of a wave are the prompt, and that is the only live one.
    started: bool,
    /// Whether room is made for all that sequences can become.
    reserved: bool,
    scratch: Scratch,
}

impl Independent {
    pub fn new(prompt: Vec<u32>, params: GenerationParams, width: usize) -> Self {
        let seed = params.seed.unwrap_or_else(Sampler::random_seed);
        let (sample, count) = match params.strategy {
            Strategy::Sample { sequences } => (true, sequences),
            _ => (false, 1),
        };
        let mut search = Self {
            params,
            prompt,
            sample,
            seed,
            count,
            width: width.max(1),
            sequences: Vec::new(),
            skipped: Vec::new(),
            prompt_scores: Vec::new(),
            scored: 0,
            live: Vec::new(),
            started: false,
            reserved: false,
            scratch: Scratch::default(),
        };
        search.begin_wave();
        search
    }

    /// Begins the next sequences, as many as run together. There may be none left.
    fn begin_wave(&mut self) {
        self.started = false;
        self.live.clear();
        let scored = self.unscored().is_none();
        let room = if self.reserved { self.params.max_total_len } else { 0 };
        while self.live.len() < self.width && self.sequences.len() < self.count {
            let index = self.sequences.len();
            let constraint = self.params.constraint.clone();
            let finished = match self.skipped.contains(&index) {
                true => Some(FinishReason::Stop),
                // Where the prompt is to be scored, that comes first.
                false => ended(&self.params, self.prompt.len(), constraint.as_deref()).filter(|_| scored),
            };
            let mut tokens = Vec::with_capacity(room.max(self.prompt.len()));
            tokens.extend_from_slice(&self.prompt);
            let sampler = Sampler::new(self.seed, index as u64);
            let (asked, scores) = (Asked::default(), Vec::new());
            self.sequences.push(Sequence { tokens, constraint, asked, sampler, scores, finished });
            if finished.is_none() {
                self.live.push(index);
            }
        }
    }

    pub fn live_sequences(&self) -> usize {
        if self.started { self.live.len() } else { self.live.len().min(1) }
    }

    pub fn tokens(&self, live: usize) -> &[u32] {
        self.live.get(live).and_then(|&sequence| self.sequences.get(sequence)).map_or(&[], |sequence| &sequence.tokens)
    }

    /// The prompt's tokens whose followers have no score yet, where scores of the prompt are asked for.
    pub fn unscored(&self) -> Option<Range<usize>> {
        self.params.prompt_log_probs?;
        Some(self.scored..self.prompt.len().saturating_sub(1)).filter(|range| !range.is_empty())
    }

    /// Notes the scores of the prompt's next tokens.
    pub fn score_prompt(&mut self, rows: &[&mut [f32]]) -> Result<(), GenerateError> {
        let likeliest = self.params.prompt_log_probs.unwrap_or(0);
        for row in rows {
            let position = self.scored + 1;
            let Some(&token) = self.prompt.get(position) else { break };
            let score = sampler::describe_raw(row, token, likeliest, &mut self.scratch.best);
            self.prompt_scores.push(score.ok_or(GenerateError::UnusableScores { position })?);
            self.scored += 1;
        }
        Ok(())
    }

    /// Takes the scores of the prompt's tokens, from the second one on, once there are all.
    pub fn take_prompt_scores(&mut self) -> Option<Vec<TokenScore>> {
        let complete = self.unscored().is_none() && !self.prompt_scores.is_empty();
        complete.then(|| std::mem::take(&mut self.prompt_scores))
    }

    pub fn reserve(&mut self) {
        self.reserved = true;
        let processors = &self.params.processors;
        let ngram = processors.no_repeat_ngram_size.max(processors.encoder_no_repeat_ngram_size).unwrap_or(0);
        self.scratch.borders.reserve(ngram.min(self.params.max_total_len));
        for &index in &self.live {
            if let Some(sequence) = self.sequences.get_mut(index) {
                let missing = self.params.max_total_len.saturating_sub(sequence.tokens.len());
                sequence.tokens.reserve_exact(missing);
            }
        }
    }

    pub fn advance(&mut self, scores: &mut [&mut [f32]], advance: &mut Advance) -> Result<(), GenerateError> {
        advance.parents.clear();
        let of_row = if self.started { 1 } else { self.live.len().max(1) };
        for (row, (scores, sequences)) in scores.iter_mut().zip(self.live.chunks(of_row)).enumerate() {
            let mut nothing_follows = false;
            for (nth, &index) in sequences.iter().enumerate() {
                let Some(sequence) = self.sequences.get_mut(index) else { continue };
                let position = sequence.tokens.len();
                // Where the prompt was scored, that was not asked before.
                if position == self.prompt.len()
                    && let Some(reason) = ended(&self.params, position, sequence.constraint.as_deref())
                {
                    sequence.finished = Some(reason);
                    continue;
                }
                if nth == 0 {
                    nothing_follows =
                        choices(&self.params, self.sample, self.prompt.len(), sequence, scores, &mut self.scratch)?;
                }
                let Scratch { candidates, best, raw, .. } = &mut self.scratch;
                if candidates.is_empty() && nothing_follows {
                    sequence.finished = Some(FinishReason::Stop);
                    continue;
                }
                let nothing = || GenerateError::NothingAllowed { position };
                let chosen = match (self.sample, candidates.first()) {
                    (true, _) => sequence.sampler.draw(candidates).ok_or_else(nothing)?,
                    (false, best) => *best.ok_or_else(nothing)?,
                };
                let score = match self.params.log_probs {
                    Some(likeliest) => Some(
                        sampler::describe_raw(raw, chosen.token, likeliest, best)
                            .ok_or(GenerateError::UnusableScores { position })?,
                    ),
                    None => self.params.output_scores.then(|| {
                        if self.sample {
                            sampler::describe(candidates.iter().copied(), chosen)
                        } else {
                            sampler::describe(numeric::enumerate(scores), chosen)
                        }
                    }),
                };
                sequence.tokens.push(chosen.token);
                sequence.scores.extend(score.clone());
                sequence.finished = if self.params.end_tokens.contains(&chosen.token) {
                    Some(FinishReason::EndToken)
                } else if self.params.stop_tokens.contains(&chosen.token)
                    || constraint::follow(sequence.constraint.as_deref_mut(), chosen.token, position)?
                {
                    Some(FinishReason::Stop)
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
        if self.live.is_empty() {
            self.begin_wave();
        }
        advance.restarted = !self.started && !self.live.is_empty();
        advance.finished = self.live.is_empty();
        Ok(())
    }

    /// The live sequences, where they are several with a constraint each. Before the first step they all are the prompt, which is
    /// asked about once.
    pub fn ask_ahead(&mut self) -> impl Iterator<Item = AskAhead<'_>> {
        let several = self.started && self.live.len() > 1;
        let live = self.sequences.iter_mut().filter(move |sequence| several && sequence.finished.is_none());
        live.filter_map(|Sequence { constraint, asked, .. }| {
            Some(AskAhead { constraint: constraint.as_deref_mut()?, asked })
        })
    }

    /// How many tokens of a draft behind the first live sequence its constraint lets follow.
    pub fn allowed(&mut self, draft: &[u32]) -> usize {
        let first = self.live.first().and_then(|&index| self.sequences.get_mut(index));
        match first.and_then(|sequence| sequence.constraint.as_deref_mut()) {
            Some(constraint) => constraint::allowed(constraint, &self.params.end_tokens, draft),
            None => draft.len(),
        }
    }

    /// Adds what the constraint of the first live sequence expects to come next.
    pub fn forced(&mut self, draft: &mut Vec<u32>) {
        let first = self.live.first().and_then(|&index| self.sequences.get_mut(index));
        if let Some(constraint) = first.and_then(|sequence| sequence.constraint.as_deref_mut()) {
            constraint.forced(draft);
        }
    }

    pub fn stop(&mut self, index: usize) -> Stopped {
        match self.sequences.get_mut(index) {
            Some(sequence) => sequence.finished.get_or_insert(FinishReason::Stop),
            None if self.skipped.contains(&index) || index >= self.count => return Stopped::None,
            None => {
                self.skipped.push(index);
                return Stopped::None;
            }
        };
        let Some(at) = self.live.iter().position(|&live| live == index) else { return Stopped::None };
        self.live.remove(at);
        let started = self.started;
        if self.live.is_empty() {
            self.begin_wave();
            if !self.live.is_empty() {
                // A wave that has not started left the prompt as the next one needs it.
                return if started { Stopped::All } else { Stopped::None };
            }
        }
        match (started, self.live.is_empty()) {
            (true, _) => Stopped::Live(at),
            (false, true) => Stopped::Live(0),
            (false, false) => Stopped::None,
        }
    }

    pub fn outputs(&self) -> Vec<SequenceOutput> {
        let output = |sequence: &Sequence| SequenceOutput {
            tokens: sequence.tokens.clone(),
            score: None,
            finish_reason: sequence.finished.unwrap_or(FinishReason::Stop),
            scores: self.params.scores().then(|| sequence.scores.clone()),
        };
        self.sequences.iter().map(output).collect()
    }
}

/// Why a sequence of `len` tokens, none of which ends it, goes no further; `None` where it does.
fn ended(
    params: &GenerationParams,
    len: usize,
    constraint: Option<&(dyn Constraint + 'static)>,
) -> Option<FinishReason> {
    if constraint.is_some_and(Constraint::is_finished) {
        return Some(FinishReason::Stop);
    }
    (len >= params.max_total_len).then_some(FinishReason::Length)
}

/// Leaves in `scratch` what the next token of a sequence is chosen from: the tokens that can be drawn, or the likeliest alone; and
/// the raw scores, where they are asked for. Returns whether the sequence ends where there is nothing to choose from.
fn choices(
    params: &GenerationParams,
    sample: bool,
    prompt_len: usize,
    sequence: &mut Sequence,
    scores: &mut [f32],
    scratch: &mut Scratch,
) -> Result<bool, GenerateError> {
    let Sequence { tokens, constraint, asked, .. } = sequence;
    constraint::take_ahead(asked, &mut scratch.asked);
    if params.log_probs.is_some() {
        scratch.raw.clear();
        scratch.raw.extend_from_slice(scores);
    }
    let nothing_follows =
        processors::process(params, tokens, prompt_len, &[], constraint.as_deref_mut(), scores, scratch)?;
    if sample {
        params.warpers.apply(scores, scratch);
    } else {
        let best = numeric::argmax(scores).and_then(|token| numeric::enumerate(scores).nth(token));
        scratch.candidates.clear();
        scratch.candidates.extend(best.filter(|best| best.score > f32::NEG_INFINITY));
    }
    if scratch.candidates.is_empty() && !nothing_follows {
        return Err(GenerateError::NothingAllowed { position: tokens.len() });
    }
    Ok(nothing_follows)
}
