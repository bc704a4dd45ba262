//! Greedy decoding and sampling: sequences that do not know of each other.

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
        let full = self.prompt.len() >= self.params.max_total_len;
        let room = if self.reserved { self.params.max_total_len } else { 0 };
        while self.live.len() < self.width && self.sequences.len() < self.count {
            let index = self.sequences.len();
            let finished = match self.skipped.contains(&index) {
                true => Some(FinishReason::Stop),
                false => full.then_some(FinishReason::Length),
            };
            let mut tokens = Vec::with_capacity(room.max(self.prompt.len()));
            tokens.extend_from_slice(&self.prompt);
            let sampler = Sampler::new(self.seed, index as u64);
            let constraint = self.params.constraint.clone();
            self.sequences.push(Sequence { tokens, constraint, sampler, scores: Vec::new(), finished });
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
            for (nth, &index) in sequences.iter().enumerate() {
                let Some(sequence) = self.sequences.get_mut(index) else { continue };
                if nth == 0 {
                    choices(&self.params, self.sample, self.prompt.len(), sequence, scores, &mut self.scratch)?;
                }
                let candidates = &self.scratch.candidates;
                let position = sequence.tokens.len();
                let nothing = || GenerateError::NothingAllowed { position };
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
                } else if constraint::follow(sequence.constraint.as_deref_mut(), chosen.token, position)? {
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

    /// How many tokens of a draft behind the first live sequence its constraint lets follow.
    pub fn allowed(&mut self, draft: &[u32]) -> usize {
        let first = self.live.first().and_then(|&index| self.sequences.get_mut(index));
        match first.and_then(|sequence| sequence.constraint.as_deref_mut()) {
            Some(constraint) => constraint::allowed(constraint, &self.params.end_tokens, draft),
            None => draft.len(),
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
            scores: self.params.output_scores.then(|| sequence.scores.clone()),
        };
        self.sequences.iter().map(output).collect()
    }
}

/// Leaves in `scratch` what the next token of a sequence is chosen from: the tokens that can be drawn, or the likeliest alone.
fn choices(
    params: &GenerationParams,
    sample: bool,
    prompt_len: usize,
    sequence: &mut Sequence,
    scores: &mut [f32],
    scratch: &mut Scratch,
) -> Result<(), GenerateError> {
    let Sequence { tokens, constraint, .. } = sequence;
    processors::process(params, tokens, prompt_len, &[], constraint.as_deref_mut(), scores, scratch)?;
    if sample {
        params.warpers.apply(scores, scratch);
    } else {
        let best = numeric::argmax(scores).and_then(|token| numeric::enumerate(scores).nth(token));
        scratch.candidates.clear();
        scratch.candidates.extend(best.filter(|best| best.score > f32::NEG_INFINITY));
    }
    if scratch.candidates.is_empty() {
        return Err(GenerateError::NothingAllowed { position: tokens.len() });
    }
    Ok(())
}
