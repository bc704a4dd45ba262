//! A scheduler with a device whose keys are the tokens themselves, for tests: every step is checked while it is computed.

use std::collections::BTreeMap;

use kaito_kernels::ThreadPool;
use serde_json::Value;

use super::*;
use crate::{
    generate::{
        GenerateOptions, GenerationParams, Pooling, PromptNumbers, ResolveContext, TokenScore,
        example_constraints::Example,
    },
    kv_cache::VariantKey,
    token_choice::TokenChoice,
};

/// Tokens in a page.
pub const PAGE: usize = 4;
/// Tokens of the vocabulary.
pub const VOCAB: usize = 11;
/// Tokens of prompts that are scored in a step.
pub const SCORES: usize = 5;
/// Sequences that run at the same time.
pub const SEQUENCES: usize = 8;

/// Logits that depend on the last `memory` tokens: what a decoder would compute. With a short memory texts repeat
/// themselves.
pub fn logits(tokens: &[u32], memory: usize) -> Vec<f32> {
    let mut state =
        tokens[tokens.len().saturating_sub(memory)..].iter().fold(0x9e37_79b9_7f4a_7c15u64, |state, &token| {
            (state ^ u64::from(token) ^ 0x100).wrapping_mul(0xbf58_476d_1ce4_e5b9).rotate_left(23)
        });
    (0..VOCAB)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 22) as f32
        })
        .collect()
}

/// A generation with at most `sequences` sequences at a time.
pub fn generation(prompt: &[u32], options: &Value, sequences: usize) -> Generation {
    constrained(prompt, options, sequences, None)
}

/// The same with scores of the prompt.
pub fn scored(prompt: &[u32], options: &Value, sequences: usize, likeliest: usize) -> Generation {
    let params = GenerationParams { prompt_log_probs: Some(likeliest), ..params(prompt, options) };
    Generation::within(prompt.to_vec(), params, sequences)
}

/// The same with a constraint.
pub fn constrained(prompt: &[u32], options: &Value, sequences: usize, example: Option<Example>) -> Generation {
    let constraint = example.map(Example::constraint);
    Generation::within(prompt.to_vec(), GenerationParams { constraint, ..params(prompt, options) }, sequences)
}

/// What pools a prompt.
pub fn pooling(prompt: &[u32], pooling: Pooling) -> Generation {
    Generation::within(prompt.to_vec(), GenerationParams::pool(pooling, prompt.len()), 1)
}

/// The hidden state of a token.
pub fn state(token: u32, position: usize) -> [f32; 2] {
    [token as f32, position as f32]
}

/// What the options of a request come to.
pub fn params(prompt: &[u32], options: &Value) -> GenerationParams {
    let options = GenerateOptions::from_json(options.as_object().unwrap()).unwrap();
    let context = ResolveContext {
        prompt_len: prompt.len(),
        prefix_len: 0,
        vocab_size: VOCAB,
        max_seq_len: 64,
        eos_token_ids: &[],
        pad_token_id: None,
    };
    GenerationParams::resolve(&options, &context).unwrap()
}

/// A token's key: with other rotary factors it is another one.
fn key(token: u32, variant: VariantKey) -> u32 {
    token + if variant.long { 1000 } else { 0 }
}

/// The device, and the scheduler that it computes for.
pub struct Machine {
    pub scheduler: Scheduler,
    token_choice: TokenChoice,
    pool: ThreadPool,
    /// Tokens that the model's next one depends on.
    model_memory: usize,
    memory: Vec<u32>,
    /// What requests that ended came to; nothing for one that failed.
    pub outputs: BTreeMap<RequestId, Vec<Vec<u32>>>,
    /// The scores of their prompts, of those that asked for them.
    pub prompt_scores: BTreeMap<RequestId, Vec<TokenScore>>,
    /// What their prompts were pooled to, of those that asked for that.
    pub pooled: BTreeMap<RequestId, Vec<f32>>,
}

impl Machine {
    pub fn new(pages: u32, long_above: Option<usize>) -> Self {
        Self::with(pages, long_above, usize::MAX, 0)
    }

    pub fn with(pages: u32, long_above: Option<usize>, model_memory: usize, step_drafts: usize) -> Self {
        let limits = SchedulerLimits {
            sequences: SEQUENCES,
            step_tokens: 24,
            step_tokens_beside_streams: 9,
            step_drafts,
            step_scores: SCORES,
            long_above,
        };
        Self::limited(pages, model_memory, limits)
    }

    pub fn limited(pages: u32, model_memory: usize, limits: SchedulerLimits) -> Self {
        Self {
            model_memory,
            pool: ThreadPool::new(2.try_into().unwrap()),
            scheduler: Scheduler::new(limits, KvCache::new(pages, PAGE)),
            token_choice: TokenChoice::default(),
            memory: vec![u32::MAX; pages as usize * PAGE],
            outputs: BTreeMap::new(),
            prompt_scores: BTreeMap::new(),
            pooled: BTreeMap::new(),
        }
    }

    pub fn check(&self) {
        let Scheduler { running, waiting, cache, .. } = &self.scheduler;
        assert_eq!(running.sequences(), running.iter().map(|request| request.sequences.len()).sum::<usize>());
        let requests = running.iter().chain(waiting);
        cache.check(requests.flat_map(|request| request.sequences.iter().map(|sequence| &sequence.table)));
    }

    pub fn step(&mut self) -> bool {
        let Some(step) = self.schedule() else { return false };
        self.compute(&step);
        true
    }

    pub fn schedule(&mut self) -> Option<Step> {
        let mut step = Step::default();
        self.scheduler.schedule(&mut step).then_some(step)
    }

    /// Spans whose requests are still there, and their sequences.
    fn sequences<'a>(&'a self, step: &'a Step) -> impl Iterator<Item = (&'a StepSpan, SequenceView<'a>)> {
        step.spans.iter().filter_map(|span| {
            let sequence = self.scheduler.sequence(span);
            assert!(sequence.is_some() || !self.scheduler.holds(span.request), "{span:?}");
            Some((span, sequence?))
        })
    }

    pub fn compute(&mut self, step: &Step) {
        self.check();
        let budget: usize = step.spans.iter().map(|span| span.count).sum();
        let limits = *self.scheduler.limits();
        assert!(step.spans.iter().map(|span| span.scored).sum::<usize>() <= limits.step_scores);
        assert!(budget <= limits.step_tokens.max(limits.sequences), "{budget} tokens in a step");
        let mut memory = std::mem::take(&mut self.memory);
        for copy in &step.copies {
            let from = copy.from as usize * PAGE;
            memory.copy_within(from..from + PAGE, copy.to as usize * PAGE);
        }
        let slot = |pages: &[u32], at: usize| pages[at / PAGE] as usize * PAGE + at % PAGE;
        for (span, SequenceView { tokens, draft, pages, variant }) in self.sequences(step) {
            for (at, &token) in tokens.iter().chain(draft).enumerate().skip(span.start).take(span.count) {
                memory[slot(pages, at)] = key(token, variant);
            }
            assert!(draft.len() <= limits.step_drafts);
            if span.logits > 0 {
                assert_eq!(span.start + span.count, tokens.len() + draft.len());
                assert_eq!(span.logits, 1 + draft.len());
            } else {
                assert!(draft.is_empty());
            }
            assert!(span.rows() <= span.count);
        }
        // Checked when all is written: a page that two sequences write would show here.
        for (span, SequenceView { tokens, draft, pages, variant }) in self.sequences(step) {
            for (at, &token) in tokens.iter().chain(draft).enumerate().take(span.start + span.count) {
                assert_eq!(memory[slot(pages, at)], key(token, variant), "{span:?} token {at}");
            }
        }
        self.memory = memory;
        self.scheduler.computed(step);
        let mut rows: Vec<Vec<f32>> = Vec::new();
        for span in &step.spans {
            let Some(SequenceView { tokens, draft, .. }) = self.scheduler.sequence(span) else {
                // A request that gets these does not get its own.
                rows.extend((0..span.rows()).map(|_| vec![f32::NAN; VOCAB]));
                continue;
            };
            let all: Vec<u32> = tokens.iter().chain(draft).copied().collect();
            let end = span.start + span.count;
            rows.extend((end - span.rows()..end).map(|last| logits(&all[..=last], self.model_memory)));
        }
        let mut rows: Vec<&mut [f32]> = rows.iter_mut().map(Vec::as_mut_slice).collect();
        // The hidden states of a row are its token and position.
        let states: Vec<f32> = if step.spans.iter().any(|span| span.states > 0) {
            let state = |span: &StepSpan, at: usize| match self.scheduler.sequence(span) {
                Some(SequenceView { tokens, draft, .. }) => state(*tokens.iter().chain(draft).nth(at).unwrap(), at),
                None => [f32::NAN; 2],
            };
            step.spans
                .iter()
                .flat_map(|span| (span.start..span.start + span.count).flat_map(|at| state(span, at)))
                .collect()
        } else {
            Vec::new()
        };
        self.token_choice.choose(&self.pool, &mut self.scheduler, step, &mut rows, &states);
        for Rows { span, .. } in step.choosing() {
            let settled = self.scheduler.settle(span);
            let settled = settled.map(|settled| {
                settled.map(|advance| {
                    if let Some(PromptNumbers { scores, pooled }) = advance.prompt.take() {
                        self.pooled.extend(pooled.map(|pooled| (span.request, pooled)));
                        self.prompt_scores.insert(span.request, scores);
                    }
                    advance.finished
                })
            });
            let outputs = match settled {
                Some(Ok(false)) => continue,
                None => {
                    assert!(!self.scheduler.holds(span.request));
                    continue;
                }
                Some(Ok(true)) => self.scheduler.remove_settled(span).unwrap().outputs(),
                Some(Err(_)) => {
                    self.scheduler.remove_settled(span).unwrap();
                    Vec::new()
                }
            };
            self.outputs.insert(span.request, outputs.into_iter().map(|output| output.tokens).collect());
        }
        self.check();
    }

    pub fn drain(&mut self) {
        let mut steps = 0;
        while self.step() {
            steps += 1;
            assert!(steps < 100_000, "requests never end");
        }
        assert!(self.scheduler.is_idle());
        assert_eq!(self.scheduler.cache.free_pages(), self.scheduler.cache.total_pages());
    }
}
