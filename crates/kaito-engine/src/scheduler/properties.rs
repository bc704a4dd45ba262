//! Property tests: requests of all shapes come, go, share pages and lose them, and every token that a step computes finds
//! exactly its own past in its pages.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::{Value, json};

use kaito_kernels::ThreadPool;

use super::*;
use crate::generate::{GenerateOptions, GenerationParams, ResolveContext};

const PAGE: usize = 4;
const VOCAB: usize = 11;
const ROWS: usize = 8;

/// Logits that depend on the last `memory` tokens: what a decoder would compute. With a short memory texts repeat
/// themselves.
fn logits(tokens: &[u32], memory: usize) -> Vec<f32> {
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

/// A generation in at most `rows` rows at a time.
fn generation(prompt: &[u32], options: &Value, rows: usize) -> Generation {
    let options = GenerateOptions::from_json(options.as_object().unwrap()).unwrap();
    let context = ResolveContext {
        prompt_len: prompt.len(),
        prefix_len: 0,
        vocab_size: VOCAB,
        max_seq_len: 64,
        eos_token_ids: &[],
        pad_token_id: None,
    };
    Generation::within(prompt.to_vec(), GenerationParams::resolve(&options, &context).unwrap(), rows)
}

/// A device whose keys are the tokens themselves.
struct Machine {
    scheduler: Scheduler,
    pool: ThreadPool,
    /// Tokens that the model's next one depends on.
    model_memory: usize,
    memory: Vec<u32>,
    outputs: BTreeMap<RequestId, Vec<Vec<u32>>>,
}

impl Machine {
    fn new(pages: u32, long_above: Option<usize>) -> Self {
        Self::with(pages, long_above, usize::MAX, 0)
    }

    fn with(pages: u32, long_above: Option<usize>, model_memory: usize, step_drafts: usize) -> Self {
        let limits =
            SchedulerLimits { rows: ROWS, step_tokens: 24, step_tokens_beside_streams: 9, step_drafts, long_above };
        Self {
            model_memory,
            pool: ThreadPool::new(2.try_into().unwrap()),
            scheduler: Scheduler::new(limits, KvCache::new(pages, PAGE)),
            memory: vec![u32::MAX; pages as usize * PAGE],
            outputs: BTreeMap::new(),
        }
    }

    fn check(&self) {
        let groups = self.scheduler.running.iter().chain(&self.scheduler.waiting);
        self.scheduler.cache.check(groups.flat_map(|group| group.rows.iter().map(|row| &row.table)));
    }

    fn step(&mut self) -> bool {
        let Some(step) = self.schedule() else { return false };
        self.compute(&step);
        true
    }

    fn schedule(&mut self) -> Option<Step> {
        let mut step = Step::default();
        self.scheduler.schedule(&mut step).then_some(step)
    }

    fn compute(&mut self, step: &Step) {
        self.check();
        let budget: usize = step.spans.iter().map(|span| span.count).sum();
        assert!(budget <= self.scheduler.limits.step_tokens.max(ROWS), "{budget} tokens in a step");
        for copy in &step.copies {
            let from = copy.from as usize * PAGE;
            self.memory.copy_within(from..from + PAGE, copy.to as usize * PAGE);
        }
        for span in &step.spans {
            let RowView { tokens, draft, pages, long } = self.scheduler.row(span.request, span.row).unwrap();
            // Keys made with other rotary factors are other keys.
            let key = |token: u32| token + if long { 1000 } else { 0 };
            let slot = |at: usize| pages[at / PAGE] as usize * PAGE + at % PAGE;
            for (at, &token) in tokens.iter().chain(draft).enumerate().skip(span.start).take(span.count) {
                self.memory[slot(at)] = key(token);
            }
            assert!(draft.len() <= self.scheduler.limits.step_drafts);
            if span.logits > 0 {
                assert_eq!(span.start + span.count, tokens.len() + draft.len());
                assert_eq!(span.logits, 1 + draft.len());
            } else {
                assert!(draft.is_empty());
            }
        }
        // Checked when all is written: a page that two rows write would show here.
        for span in &step.spans {
            let RowView { tokens, draft, pages, long } = self.scheduler.row(span.request, span.row).unwrap();
            for (at, &token) in tokens.iter().chain(draft).enumerate().take(span.start + span.count) {
                let found = self.memory[pages[at / PAGE] as usize * PAGE + at % PAGE];
                let expected = token + if long { 1000 } else { 0 };
                assert_eq!(found, expected, "request {} row {} token {at}", span.request, span.row);
            }
        }
        self.scheduler.computed(step);
        let mut rows: Vec<Vec<f32>> = Vec::new();
        for span in &step.spans {
            let RowView { tokens, draft, .. } = self.scheduler.row(span.request, span.row).unwrap();
            let all: Vec<u32> = tokens.iter().chain(draft).copied().collect();
            let end = span.start + span.count;
            rows.extend((end - span.logits..end).map(|last| logits(&all[..=last], self.model_memory)));
        }
        let mut rows: Vec<&mut [f32]> = rows.iter_mut().map(Vec::as_mut_slice).collect();
        self.scheduler.choose(&self.pool, step, &mut rows);
        let ready: BTreeSet<_> = step.spans.iter().filter(|span| span.logits > 0).map(|span| span.request).collect();
        for id in ready {
            if self.scheduler.settle(id).unwrap().unwrap().finished {
                let generation = self.scheduler.remove(id).unwrap();
                self.outputs.insert(id, generation.outputs().into_iter().map(|output| output.tokens).collect());
            }
        }
        self.check();
    }

    fn drain(&mut self) {
        let mut steps = 0;
        while self.step() {
            steps += 1;
            assert!(steps < 100_000, "requests never end");
        }
        assert!(self.scheduler.is_idle());
        assert_eq!(self.scheduler.cache.free_pages(), self.scheduler.cache.total_pages());
    }
}

#[derive(Debug, Clone)]
enum Op {
    Submit { prompt: Vec<u32>, options: Value },
    Cancel(usize),
    StopSequence(usize, usize),
    Steps(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let options = prop_oneof![
        Just(json!({"do_sample": false})),
        (2..5usize).prop_map(|n| json!({"do_sample": false, "num_beams": n, "num_return_sequences": n})),
        Just(json!({"do_sample": false, "num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5})),
        (1..8usize, any::<u32>())
            .prop_map(|(n, seed)| json!({"do_sample": true, "num_return_sequences": n, "seed": seed})),
        any::<u32>().prop_map(|seed| json!({"do_sample": true, "num_beams": 3, "seed": seed})),
    ];
    // Half of the prompts begin like others.
    let stem = (0..3u32, 1..30usize)
        .prop_map(|(stem, len)| (0..len as u32).map(|at| (at * at + at / 9 * stem) % 11).collect());
    let prompt = prop_oneof![prop::collection::vec(0..VOCAB as u32, 1..30), stem];
    let submit = (prompt, options, 1..20usize, prop::option::of(0..VOCAB));
    prop_oneof![
        4 => submit.prop_map(|(prompt, mut options, new, end)| {
            options["max_new_tokens"] = json!(new);
            if let Some(end) = end {
                options["eos_token_id"] = json!(end);
            }
            Op::Submit { prompt, options }
        }),
        1 => (0..20usize).prop_map(Op::Cancel),
        1 => (0..20usize, 0..7usize).prop_map(|(request, sequence)| Op::StopSequence(request, sequence)),
        4 => (1..6usize).prop_map(Op::Steps),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Pages are never leaked or shared wrongly, every request ends, and its tokens are those it has alone.
    #[test]
    fn requests_run_together_as_they_run_alone(
        ops in prop::collection::vec(op(), 1..30),
        pages in 60..90u32,
        long_above in prop::option::of(8..30usize),
        model_memory in prop_oneof![Just(2), Just(usize::MAX)],
        step_drafts in prop_oneof![Just(0), 1..8usize],
    ) {
        let mut machine = Machine::with(pages, long_above, model_memory, step_drafts);
        let mut requests: BTreeMap<RequestId, (Vec<u32>, Value)> = BTreeMap::new();
        let mut stopped = BTreeSet::new();
        for op in ops {
            match op {
                Op::Submit { prompt, options } => {
                    let id = requests.len() as RequestId;
                    // Sequences run in waves here, and together where they run alone.
                    machine.scheduler.submit(id, generation(&prompt, &options, 3));
                    requests.insert(id, (prompt, options));
                }
                Op::Cancel(which) => {
                    machine.scheduler.remove(which as RequestId);
                }
                Op::StopSequence(which, sequence) => {
                    // What was stopped can't be compared with what runs to its end.
                    if machine.scheduler.stop_sequence(which as RequestId, sequence) == Some(true) {
                        machine.scheduler.remove(which as RequestId);
                    }
                    stopped.insert(which as RequestId);
                }
                Op::Steps(count) => {
                    for _ in 0..count {
                        machine.step();
                    }
                }
            }
        }
        machine.drain();
        for (id, together) in machine.outputs.iter().filter(|(id, _)| !stopped.contains(id)) {
            let (prompt, options) = &requests[id];
            let mut alone = Machine::with(1000, None, model_memory, 0);
            alone.scheduler.submit(*id, generation(prompt, options, ROWS));
            alone.drain();
            prop_assert_eq!(together, &alone.outputs[id], "{:?} {:?}", prompt, options);
        }
    }
}

#[test]
fn older_requests_take_the_pages_of_younger_ones_and_all_of_them_end() {
    let requests: Vec<(Vec<u32>, Value)> = (0..6)
        .map(|n| {
            let beams = if n % 2 == 0 { 1 } else { 3 };
            let options = json!({"do_sample": false, "num_beams": beams, "max_new_tokens": 30});
            ((0..5 + n).collect(), options)
        })
        .collect();
    let mut machine = Machine::new(32, None);
    for (id, (prompt, options)) in requests.iter().enumerate() {
        machine.scheduler.submit(id as RequestId, generation(prompt, options, ROWS));
    }
    machine.drain();
    assert!(machine.scheduler.preemptions() > 0, "the cache is small enough that somebody must give way");
    assert_eq!(machine.outputs.len(), requests.len());
    for (id, (prompt, options)) in requests.iter().enumerate() {
        let mut alone = Machine::new(1000, None);
        alone.scheduler.submit(0, generation(prompt, options, ROWS));
        alone.drain();
        assert_eq!(machine.outputs[&(id as RequestId)], alone.outputs[&0], "request {id}");
    }
}

#[test]
fn a_prompt_that_begins_like_an_earlier_one_computes_only_the_rest() {
    let prompt: Vec<u32> = (0..23).map(|at| at * 5 % 11).collect();
    let options = json!({"do_sample": false, "max_new_tokens": 3});
    let beams = json!({"do_sample": false, "num_beams": 3, "max_new_tokens": 3});
    let mut machine = Machine::new(40, None);
    let computed = |machine: &mut Machine, id: RequestId, options: &Value, prompt: &[u32]| -> usize {
        machine.scheduler.submit(id, generation(prompt, options, ROWS));
        let step = machine.schedule().unwrap();
        let tokens = step.spans.iter().map(|span| span.count).sum();
        machine.compute(&step);
        machine.drain();
        tokens
    };
    assert_eq!(computed(&mut machine, 0, &options, &prompt), 23);
    assert_eq!(machine.scheduler.reused_tokens(), 0);
    // Five pages of four are whole; the tokens that the first request chose are known too.
    assert_eq!(computed(&mut machine, 1, &options, &prompt), 3);
    assert_eq!(computed(&mut machine, 2, &beams, &prompt), 3);
    assert_eq!(machine.scheduler.reused_tokens(), 40);
    let mut longer = machine.outputs[&0][0].clone();
    longer.push(7);
    assert_eq!(computed(&mut machine, 3, &options, &longer), 27 - 24);
    let mut other = prompt.clone();
    other[2] += 1;
    assert_eq!(computed(&mut machine, 4, &options, &other), 23);
    assert_eq!(machine.outputs[&0], machine.outputs[&1]);
    // The last token is always computed, even where all pages are known.
    assert_eq!(computed(&mut machine, 5, &options, &prompt[..20]), 4);
}

#[test]
fn the_next_wave_takes_up_the_pages_of_the_prompt() {
    let prompt: Vec<u32> = (0..23).map(|at| at * 5 % 11).collect();
    let options = json!({"do_sample": true, "seed": 1, "num_return_sequences": 6, "max_new_tokens": 3});
    let mut machine = Machine::new(40, None);
    machine.scheduler.submit(0, generation(&prompt, &options, 2));
    let mut tokens = Vec::new();
    while let Some(step) = machine.schedule() {
        tokens.push(step.tokens());
        machine.compute(&step);
    }
    // Five pages of four are whole.
    assert_eq!(tokens, [23, 2, 2, 3, 2, 2, 3, 2, 2]);
    assert_eq!(machine.outputs[&0].len(), 6);
}

#[test]
fn a_request_in_waves_lets_others_in_between_them() {
    let waves = json!({"do_sample": true, "seed": 1, "num_return_sequences": 6, "max_new_tokens": 3});
    let (prompt, short) = ([1, 2, 3], json!({"do_sample": false, "max_new_tokens": 3}));
    let mut machine = Machine::new(40, None);
    machine.scheduler.submit(0, generation(&prompt, &waves, 2));
    // As many as there are rows, so that the second wave has none at once.
    (1..=ROWS as RequestId).for_each(|id| machine.scheduler.submit(id, generation(&prompt, &short, 1)));
    while machine.outputs.len() < ROWS {
        assert!(machine.step() && !machine.outputs.contains_key(&0), "{:?}", machine.outputs.keys());
    }
    machine.drain();
    assert_eq!(machine.outputs[&0].len(), 6);
}

#[test]
fn a_text_that_repeats_itself_takes_fewer_steps_and_is_the_same() {
    for options in [
        json!({"do_sample": false, "max_new_tokens": 40}),
        json!({"do_sample": true, "temperature": 0.02, "seed": 5, "max_new_tokens": 40}),
    ] {
        let run = |step_drafts: usize| {
            let mut machine = Machine::with(100, None, 2, step_drafts);
            machine.scheduler.submit(0, generation(&[1, 2, 3], &options, ROWS));
            let steps = std::iter::from_fn(|| machine.step().then_some(())).count();
            let (proposed, accepted) = machine.scheduler.proposed_tokens();
            assert!(accepted <= proposed);
            (machine.outputs.remove(&0), steps, accepted)
        };
        let (plain, speculative) = (run(0), run(8));
        assert_eq!((plain.1, plain.2), (40, 0));
        assert_eq!(plain.0, speculative.0, "{options}");
        assert!(speculative.2 >= 10, "{options}: {} accepted", speculative.2);
        assert_eq!(speculative.1, 40 - speculative.2 as usize, "each token that was right saves a step");
    }
}
