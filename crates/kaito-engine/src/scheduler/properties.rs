//! Property tests: requests of all shapes come, go, share pages and are preempted, and every token that a step computes finds
//! exactly its own past in its pages.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    RequestId,
    machine::{self, Machine, SEQUENCES, VOCAB, constrained, logits, params, state},
};
use crate::generate::{Generation, GenerationParams, Pooling, example_constraints::Example};

#[derive(Debug, Clone)]
enum Op {
    Submit {
        prompt: Vec<u32>,
        options: Value,
        constraint: Option<Example>,
        /// Likeliest tokens in the place of each of the prompt's.
        scored: Option<usize>,
        /// No tokens: the prompt's hidden states are pooled.
        pooling: Option<Pooling>,
    },
    Cancel(usize),
    /// After a step was planned and before it is computed.
    CancelInStep(usize),
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
    let constraint = prop_oneof![2 => Just(None), 1 => prop::sample::select(&Example::ALL[..]).prop_map(Some)];
    let scored = prop_oneof![2 => Just(None), 1 => (0..4usize).prop_map(Some)];
    let pooling = prop_oneof![4 => Just(None), 1 => Just(Some(Pooling::Mean)), 1 => Just(Some(Pooling::Last))];
    let submit = (prompt, options, 1..20usize, prop::option::of(0..VOCAB), constraint, scored, pooling);
    prop_oneof![
        4 => submit.prop_map(|(prompt, mut options, new, end, constraint, scored, pooling)| {
            options["max_new_tokens"] = json!(new);
            if let Some(end) = end {
                options["eos_token_id"] = json!(end);
            }
            // Beams have no scores of their prompt.
            let scored = scored.filter(|_| options.get("num_beams").is_none());
            Op::Submit { prompt, options, constraint, scored, pooling }
        }),
        1 => (0..20usize).prop_map(Op::Cancel),
        1 => (0..20usize).prop_map(Op::CancelInStep),
        1 => (0..20usize, 0..7usize).prop_map(|(request, sequence)| Op::StopSequence(request, sequence)),
        4 => (1..6usize).prop_map(Op::Steps),
    ]
}

/// The log-probability of a token by its definition.
fn log_prob(scores: &[f32], token: u32) -> f64 {
    let sum: f64 = scores.iter().map(|&score| f64::from(score).exp()).sum();
    f64::from(scores[token as usize]) - sum.ln()
}

/// What a prompt's hidden states come to by their definition.
fn pooled(prompt: &[u32], pooling: Pooling) -> Vec<f32> {
    let states: Vec<[f32; 2]> = prompt.iter().enumerate().map(|(at, &token)| state(token, at)).collect();
    match pooling {
        Pooling::Last => states.last().unwrap().to_vec(),
        Pooling::Mean => {
            let mean = |at: usize| states.iter().map(|state| f64::from(state[at])).sum::<f64>() / states.len() as f64;
            vec![mean(0) as f32, mean(1) as f32]
        }
    }
}

/// A request: its prompt, its options, its constraint, how many likely tokens its prompt's scores come with, and whether its
/// prompt is pooled instead.
type Submitted = (Vec<u32>, Value, Option<Example>, Option<usize>, Option<Pooling>);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Pages are never leaked or shared wrongly, every request ends, and its tokens are those it has alone, its prompt's scores and
    /// hidden states those of the model. A constraint is kept whatever happens to its request: drafts, beams, waves, preemption, other rotary factors.
    #[test]
    fn requests_run_together_as_they_run_alone(
        ops in prop::collection::vec(op(), 1..30),
        pages in 60..90u32,
        long_above in prop::option::of(8..30usize),
        model_memory in prop_oneof![Just(2), Just(usize::MAX)],
        step_drafts in prop_oneof![Just(0), 1..8usize],
    ) {
        let mut machine = Machine::with(pages, long_above, model_memory, step_drafts);
        let mut requests: BTreeMap<RequestId, Submitted> = BTreeMap::new();
        let mut stopped = BTreeSet::new();
        for op in ops {
            match op {
                Op::Submit { prompt, options, constraint, scored, pooling } => {
                    let id = requests.len() as RequestId;
                    // Sequences run in waves here, and together where they run alone.
                    let constraint_of_it = constraint.map(Example::constraint);
                    let params = GenerationParams {
                        constraint: constraint_of_it,
                        prompt_log_probs: scored,
                        ..params(&prompt, &options)
                    };
                    let generation = match pooling {
                        Some(pooling) => machine::pooling(&prompt, pooling),
                        None => Generation::within(prompt.clone(), params, 3),
                    };
                    machine.scheduler.submit(id, generation);
                    requests.insert(id, (prompt, options, constraint, scored, pooling));
                }
                Op::Cancel(which) => {
                    machine.scheduler.remove(which as RequestId);
                }
                Op::CancelInStep(which) => {
                    let step = machine.schedule();
                    machine.scheduler.remove(which as RequestId);
                    step.iter().for_each(|step| machine.compute(step));
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
            let (prompt, options, constraint, scored, pooling) = &requests[id];
            if let Some(pooling) = pooling {
                prop_assert_eq!(machine.pooled.get(id), Some(&pooled(prompt, *pooling)), "{:?}", prompt);
                continue;
            }
            let mut alone = Machine::with(1000, None, model_memory, 0);
            alone.scheduler.submit(*id, constrained(prompt, options, SEQUENCES, *constraint));
            alone.drain();
            prop_assert_eq!(together, &alone.outputs[id], "{:?} {:?} {:?}", prompt, options, constraint);
            // Nothing comes before a token that is alone; a request that failed may have failed before.
            let scores = machine.prompt_scores.get(id).filter(|_| !together.is_empty());
            let expected = scored.filter(|_| !together.is_empty() && prompt.len() > 1).map(|_| prompt[1..].to_vec());
            prop_assert_eq!(scores.map(|scores| scores.iter().map(|score| score.token).collect()), expected);
            for (at, score) in scores.into_iter().flatten().enumerate() {
                let expected = log_prob(&logits(&prompt[..=at], model_memory), prompt[at + 1]);
                prop_assert!((f64::from(score.log_prob) - expected).abs() < 1e-5, "{:?} {}", score, expected);
                prop_assert_eq!(Some(score.top.len()), *scored);
            }
            for (output, constraint) in together.iter().zip(constraint.iter().cycle()) {
                let end = options["eos_token_id"].as_u64().map(|end| end as u32);
                prop_assert!(constraint.holds(&output[prompt.len()..], end), "{:?} {:?}", constraint, output);
            }
        }
    }
}
