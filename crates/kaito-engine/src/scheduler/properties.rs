//! Property tests: requests of all shapes come, go, share pages and are preempted, and every token that a step computes finds
//! exactly its own past in its pages.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    RequestId,
    machine::{Machine, SEQUENCES, VOCAB, constrained},
};
use crate::generate::example_constraints::Example;

#[derive(Debug, Clone)]
enum Op {
    Submit {
        prompt: Vec<u32>,
        options: Value,
        constraint: Option<Example>,
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
    let submit = (prompt, options, 1..20usize, prop::option::of(0..VOCAB), constraint);
    prop_oneof![
        4 => submit.prop_map(|(prompt, mut options, new, end, constraint)| {
            options["max_new_tokens"] = json!(new);
            if let Some(end) = end {
                options["eos_token_id"] = json!(end);
            }
            Op::Submit { prompt, options, constraint }
        }),
        1 => (0..20usize).prop_map(Op::Cancel),
        1 => (0..20usize).prop_map(Op::CancelInStep),
        1 => (0..20usize, 0..7usize).prop_map(|(request, sequence)| Op::StopSequence(request, sequence)),
        4 => (1..6usize).prop_map(Op::Steps),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Pages are never leaked or shared wrongly, every request ends, and its tokens are those it has alone. A constraint is
    /// kept whatever happens to its request: drafts, beams, waves, preemption, other rotary factors.
    #[test]
    fn requests_run_together_as_they_run_alone(
        ops in prop::collection::vec(op(), 1..30),
        pages in 60..90u32,
        long_above in prop::option::of(8..30usize),
        model_memory in prop_oneof![Just(2), Just(usize::MAX)],
        step_drafts in prop_oneof![Just(0), 1..8usize],
    ) {
        let mut machine = Machine::with(pages, long_above, model_memory, step_drafts);
        let mut requests: BTreeMap<RequestId, (Vec<u32>, Value, Option<Example>)> = BTreeMap::new();
        let mut stopped = BTreeSet::new();
        for op in ops {
            match op {
                Op::Submit { prompt, options, constraint } => {
                    let id = requests.len() as RequestId;
                    // Sequences run in waves here, and together where they run alone.
                    machine.scheduler.submit(id, constrained(&prompt, &options, 3, constraint));
                    requests.insert(id, (prompt, options, constraint));
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
            let (prompt, options, constraint) = &requests[id];
            let mut alone = Machine::with(1000, None, model_memory, 0);
            alone.scheduler.submit(*id, constrained(prompt, options, SEQUENCES, *constraint));
            alone.drain();
            prop_assert_eq!(together, &alone.outputs[id], "{:?} {:?} {:?}", prompt, options, constraint);
            for (output, constraint) in together.iter().zip(constraint.iter().cycle()) {
                let end = options["eos_token_id"].as_u64().map(|end| end as u32);
                prop_assert!(constraint.holds(&output[prompt.len()..], end), "{:?} {:?}", constraint, output);
            }
        }
    }
}
