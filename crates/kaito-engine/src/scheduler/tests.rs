//! What the scheduler does, case by case.

use serde_json::{Value, json};

use super::{
    machine::{Machine, SEQUENCES, VOCAB, constrained, generation, params, pooling, scored, state},
    *,
};
use crate::generate::{Constraint, GenerationParams, Pooling, TokenMask, example_constraints::Example};

#[test]
fn younger_requests_are_preempted_for_older_ones_and_all_of_them_end() {
    let requests: Vec<(Vec<u32>, Value)> = (0..6)
        .map(|n| {
            let beams = if n % 2 == 0 { 1 } else { 3 };
            let options = json!({"do_sample": false, "num_beams": beams, "max_new_tokens": 30});
            ((0..5 + n).collect(), options)
        })
        .collect();
    let mut machine = Machine::new(32, None);
    for (id, (prompt, options)) in requests.iter().enumerate() {
        machine.scheduler.submit(id as RequestId, generation(prompt, options, SEQUENCES));
    }
    machine.drain();
    assert!(machine.scheduler.preemptions() > 0, "the cache is small enough that somebody must be preempted");
    assert_eq!(machine.outputs.len(), requests.len());
    for (id, (prompt, options)) in requests.iter().enumerate() {
        let mut alone = Machine::new(1000, None);
        alone.scheduler.submit(0, generation(prompt, options, SEQUENCES));
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
        machine.scheduler.submit(id, generation(prompt, options, SEQUENCES));
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
fn the_next_wave_uses_the_pages_of_the_prompt_again() {
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
    // As many as may run, so that the second wave cannot begin at once.
    (1..=SEQUENCES as RequestId).for_each(|id| machine.scheduler.submit(id, generation(&prompt, &short, 1)));
    while machine.outputs.len() < SEQUENCES {
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
            machine.scheduler.submit(0, generation(&[1, 2, 3], &options, SEQUENCES));
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

/// What a request comes to on a machine of its own.
fn alone(prompt: &[u32], options: &Value, constraint: Option<Example>) -> Vec<Vec<u32>> {
    let mut machine = Machine::new(1000, None);
    machine.scheduler.submit(0, constrained(prompt, options, SEQUENCES, constraint));
    machine.drain();
    machine.outputs.remove(&0).unwrap()
}

#[test]
fn a_constraint_goes_on_where_its_request_was_after_preemption_and_with_other_rotary_factors() {
    let options = [
        json!({"do_sample": false, "max_new_tokens": 30}),
        json!({"do_sample": false, "num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 30}),
        json!({"do_sample": true, "seed": 3, "num_return_sequences": 3, "max_new_tokens": 30}),
    ];
    for example in Example::ALL {
        let mut machine = Machine::new(32, Some(20));
        for id in 0..6 {
            let prompt: Vec<u32> = (0..5 + id as u32).collect();
            // Two at a time, so that the third sample begins again at the prompt.
            machine.scheduler.submit(id, constrained(&prompt, &options[id as usize % 3], 2, Some(example)));
        }
        machine.drain();
        assert!(example == Example::Fixed || machine.scheduler.preemptions() > 0, "{example:?}");
        for (id, outputs) in &machine.outputs {
            let prompt: Vec<u32> = (0..5 + *id as u32).collect();
            assert_eq!(outputs, &alone(&prompt, &options[*id as usize % 3], Some(example)), "{example:?} {id}");
            assert!(!outputs.is_empty() && outputs.iter().all(|output| example.holds(&output[prompt.len()..], None)));
        }
        assert_eq!(machine.outputs.len(), 6);
    }
}

#[test]
fn nothing_is_computed_of_a_draft_that_the_constraint_refuses() {
    // What stood there before is proposed: a 5 behind a 2 and a 4.
    let prompt = [2, 4, 5, 8, 2, 4, 5, 8, 2, 4];
    let options = json!({"do_sample": false, "max_new_tokens": 40});
    let run = |constraint: Option<Example>, step_drafts: usize| {
        let mut machine = Machine::with(100, None, 2, step_drafts);
        machine.scheduler.submit(0, constrained(&prompt, &options, SEQUENCES, constraint));
        let mut drafts: Vec<Vec<u32>> = Vec::new();
        while let Some(step) = machine.schedule() {
            drafts.extend(step.spans.iter().map(|span| machine.scheduler.sequence(span).unwrap().draft.to_vec()));
            machine.compute(&step);
        }
        let (_, accepted) = machine.scheduler.proposed_tokens();
        (machine.outputs.remove(&0).unwrap(), drafts, accepted)
    };
    for constraint in [Example::Even, Example::Brackets] {
        let (plain, speculative) = (run(Some(constraint), 0), run(Some(constraint), 8));
        assert_eq!(plain.0, speculative.0, "{constraint:?}");
        assert!(speculative.2 > 10, "{constraint:?}: {} accepted", speculative.2);
        assert!(speculative.1.len() < plain.1.len(), "{constraint:?}");
        let refused = |draft: &Vec<u32>| draft.iter().any(|token| !token.is_multiple_of(2));
        assert!(constraint != Example::Even || !speculative.1.iter().any(refused));
    }
}

#[test]
fn tokens_that_a_constraint_forces_take_few_steps_and_guesses_that_are_wrong_change_nothing() {
    let prompt = [1, 2, 3];
    for options in [
        json!({"do_sample": false, "max_new_tokens": 40}),
        json!({"do_sample": true, "seed": 4, "top_k": 0, "max_new_tokens": 40}),
    ] {
        for example in [Example::Fixed, Example::Brackets] {
            let run = |step_drafts: usize| {
                // A model that remembers everything repeats nothing: all drafts are the constraint's.
                let mut machine = Machine::with(100, None, usize::MAX, step_drafts);
                machine.scheduler.submit(0, constrained(&prompt, &options, SEQUENCES, Some(example)));
                let steps = std::iter::from_fn(|| machine.step().then_some(())).count();
                (machine.outputs.remove(&0).unwrap(), steps, machine.scheduler.proposed_tokens())
            };
            let (plain, forced) = (run(0), run(4));
            assert_eq!((&plain.0, plain.2), (&alone(&prompt, &options, Some(example)), (0, 0)));
            assert_eq!(plain.0, forced.0, "{example:?} {options}");
            let (proposed, accepted) = forced.2;
            assert_eq!(forced.1, plain.1 - accepted as usize);
            if example == Example::Fixed {
                // Behind the prompt's step, which chooses the first of six tokens, four drafts and the one behind them.
                assert_eq!((forced.1, proposed, accepted), (2, 4, 4), "{options}");
            } else {
                assert!(accepted < proposed, "{options}: all of {proposed} guesses were right");
            }
        }
    }
}

#[test]
fn a_prompt_that_is_scored_takes_no_pages_where_scores_are_missing() {
    let prompt: Vec<u32> = (0..23).map(|at| at * 5 % 11).collect();
    let options = json!({"do_sample": false, "max_new_tokens": 3});
    let mut machine = Machine::new(40, None);
    let run = |machine: &mut Machine, generation: Generation| {
        machine.scheduler.submit(9, generation);
        let mut spans = Vec::new();
        while let Some(step) = machine.schedule() {
            spans.extend(step.spans.iter().map(|span| (span.start, span.count, span.scored, span.logits)));
            machine.compute(&step);
        }
        spans
    };
    let plain = run(&mut machine, generation(&prompt, &options, 1));
    assert_eq!(plain, [(0, 23, 0, 1), (23, 1, 0, 1), (24, 1, 0, 1)]);
    let tokens = machine.outputs.remove(&9);
    // Five at a time, and with the last of them the row that the answer begins with.
    let scored = run(&mut machine, scored(&prompt, &options, 1, 2));
    let pieces =
        [(0, 5, 5, 0), (5, 5, 5, 0), (10, 5, 5, 0), (15, 5, 5, 0), (20, 3, 2, 1), (23, 1, 0, 1), (24, 1, 0, 1)];
    assert_eq!((scored, machine.scheduler.reused_tokens()), (pieces.to_vec(), 0));
    assert_eq!(machine.outputs.remove(&9), tokens);
    assert_eq!(machine.prompt_scores[&9].len(), 22);
    // Its own pages are known to others.
    assert_eq!(run(&mut machine, generation(&prompt, &options, 1))[0], (20, 3, 0, 1));
}

#[test]
fn a_prompt_that_was_preempted_while_it_was_scored_goes_on_where_it_was() {
    let scored_options = json!({"do_sample": false, "max_new_tokens": 2});
    let prompt: Vec<u32> = (0..30).map(|at| at * 7 % 11).collect();
    // One token at a time is scored; meanwhile an older request grows until the pages of the younger one are needed.
    let limits = SchedulerLimits {
        sequences: SEQUENCES,
        step_tokens: 24,
        step_tokens_beside_streams: 9,
        step_drafts: 0,
        step_scores: 1,
        long_above: None,
    };
    let mut machine = Machine::limited(14, usize::MAX, limits);
    machine.scheduler.submit(0, generation(&[1, 2, 3], &json!({"do_sample": false, "max_new_tokens": 45}), 1));
    (0..8).for_each(|_| assert!(machine.step()));
    machine.scheduler.submit(1, scored(&prompt, &scored_options, 1, 0));
    machine.drain();
    assert!(machine.scheduler.preemptions() > 0, "nobody was preempted");
    let mut alone = Machine::new(1000, None);
    alone.scheduler.submit(1, scored(&prompt, &scored_options, 1, 0));
    alone.drain();
    assert_eq!(machine.prompt_scores[&1], alone.prompt_scores[&1]);
    assert_eq!(machine.outputs[&1], alone.outputs[&1]);
}

#[test]
fn a_prompt_that_is_pooled_computes_the_tokens_whose_states_are_wanted() {
    let prompt: Vec<u32> = (0..30).map(|at| at * 5 % 11).collect();
    let spans = |machine: &mut Machine, generation: Generation| {
        machine.scheduler.submit(9, generation);
        let mut spans = Vec::new();
        while let Some(step) = machine.schedule() {
            spans.extend(step.spans.iter().map(|span| (span.start, span.count, span.logits, span.states)));
            machine.compute(&step);
        }
        spans
    };
    let mut machine = Machine::new(40, None);
    // In chunks of a step, and only as far as the prompt.
    assert_eq!(spans(&mut machine, pooling(&prompt, Pooling::Mean)), [(0, 24, 0, 24), (24, 6, 0, 6)]);
    let mean = machine.pooled.remove(&9).unwrap();
    assert_eq!(mean, [prompt.iter().sum::<u32>() as f32 / 30.0, 14.5]);
    // Its pages are known to others, but hold no hidden states.
    assert_eq!(spans(&mut machine, pooling(&prompt, Pooling::Last)), [(28, 2, 0, 1)]);
    assert_eq!(machine.pooled.remove(&9).unwrap(), state(prompt[29], 29));
    assert_eq!(spans(&mut machine, pooling(&prompt, Pooling::Mean)), [(0, 24, 0, 24), (24, 6, 0, 6)]);
    assert_eq!(machine.pooled[&9], mean);
    assert!(machine.outputs[&9].is_empty());
}

/// Allows everything, and panics when it has accepted so many tokens.
#[derive(Debug)]
struct Panicking(usize);

impl Constraint for Panicking {
    fn mask(&mut self, allowed: &mut TokenMask) {
        assert!(self.0 > 0, "as asked for");
        allowed.words_mut().fill(u64::MAX);
    }

    fn accept(&mut self, _: u32) -> bool {
        self.0 -= 1;
        true
    }

    fn rollback(&mut self, tokens: usize) {
        self.0 += tokens;
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(Self(self.0))
    }

    fn may_end(&self) -> bool {
        true
    }
}

#[test]
fn a_constraint_that_panics_fails_its_request_alone() {
    for options in [
        json!({"do_sample": false, "max_new_tokens": 9}),
        json!({"do_sample": true, "seed": 5, "num_return_sequences": 3, "max_new_tokens": 9}),
        json!({"do_sample": false, "num_beams": 2, "max_new_tokens": 9}),
    ] {
        let mut machine = Machine::new(60, None);
        for id in 0..3 {
            let prompt = [id as u32, 4];
            let constraint: Option<Box<dyn Constraint>> = if id == 1 { Some(Box::new(Panicking(5))) } else { None };
            let params = GenerationParams { constraint, ..params(&prompt, &options) };
            machine.scheduler.submit(id, Generation::within(prompt.to_vec(), params, 2));
        }
        machine.drain();
        assert_eq!(machine.outputs.remove(&1), Some(Vec::new()), "{options}");
        for id in [0, 2] {
            assert_eq!(machine.outputs[&id], alone(&[id as u32, 4], &options, None), "{options}");
        }
    }
}

#[test]
fn a_span_of_a_request_that_left_names_nobody() {
    let options = json!({"do_sample": false, "max_new_tokens": 6});
    let prompts: Vec<Vec<u32>> = (0..4).map(|n| vec![n, 5, n]).collect();
    let mut machine = Machine::new(40, None);
    for (id, prompt) in prompts.iter().enumerate() {
        machine.scheduler.submit(id as RequestId, generation(prompt, &options, 1));
    }
    let old = machine.schedule().unwrap();
    machine.compute(&old);
    let step = machine.schedule().unwrap();
    // One leaves while the step is under way; the others keep their places and get their own logits.
    machine.scheduler.remove(1);
    machine.compute(&step);
    machine.step();
    // In the next step request 2 runs where request 1 ran.
    assert!(old.spans.iter().any(|span| (span.request, span.index) == (1, 1)));
    for span in &old.spans {
        let found = machine.scheduler.sequence(span).map(|sequence| &sequence.tokens[..3]);
        assert_eq!(found, (span.request == 0).then_some(&prompts[0][..]), "{span:?}");
    }
    machine.drain();
    assert_eq!(machine.outputs.keys().collect::<Vec<_>>(), [&0, &2, &3]);
    for (id, outputs) in &machine.outputs {
        assert_eq!(outputs, &alone(&prompts[*id as usize], &options, None));
    }
}

/// How often the step of a run that does so most often looks at a running request, where `requests` requests run together.
fn most_looks(requests: usize, pages_each: usize, step_drafts: usize) -> usize {
    let limits = SchedulerLimits {
        sequences: requests,
        step_tokens: 2 * requests,
        step_tokens_beside_streams: 2 * requests,
        step_drafts,
        step_scores: 0,
        long_above: Some(30),
    };
    let options = json!({"do_sample": false, "max_new_tokens": 6});
    let mut machine = Machine::limited((pages_each * requests) as u32, 2, limits);
    for id in 0..requests {
        machine.scheduler.submit(id as RequestId, generation(&[id as u32 % VOCAB as u32, 3], &options, 1));
    }
    let (mut most, mut together) = (0, 0);
    loop {
        let before = machine.scheduler.running.visits.get();
        let Some(step) = machine.schedule() else { break };
        together = together.max(step.requests().count());
        machine.compute(&step);
        most = most.max(machine.scheduler.running.visits.get() - before);
    }
    assert_eq!((together, machine.outputs.len()), (requests, requests));
    assert_eq!(machine.scheduler.preemptions() > 0, pages_each == 1);
    most
}

#[test]
fn no_step_is_quadratic_in_the_requests_that_run() {
    // Pages for all, without drafts and with them, and pages for less than half of the requests once they have five tokens:
    // the others are preempted then, all in one step. With enough pages all of them end in one step.
    for (pages_each, step_drafts) in [(3, 0), (3, 64), (1, 0)] {
        let (few, many) = (most_looks(500, pages_each, step_drafts), most_looks(2_000, pages_each, step_drafts));
        assert!(many < 5 * few, "{few} looks at 500 requests, {many} at 2,000");
    }
}
