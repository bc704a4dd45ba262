//! Tests of generation: what they have in common.

mod constraints;
mod parameters;
mod raw;
mod reference;
mod sampling;
mod sequences;

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value};

use super::numeric::{self, Candidate};
use super::*;

type Tables = HashMap<String, Vec<Vec<f32>>>;

fn tables() -> Tables {
    serde_json::from_str(include_str!("../../tests/generate/tables.json")).unwrap()
}

/// The scores of what follows `tokens`, in the "model" that the fixtures come from.
fn table_row(table: &[Vec<f32>], tokens: &[u32]) -> Vec<f32> {
    let back = |n: usize| tokens.len().checked_sub(n).map_or(0, |index| tokens[index] as usize);
    table[(31 * back(1) + 7 * back(2)) % table.len()].clone()
}

fn resolve(params: &Map<String, Value>, prompt_len: usize, vocab_size: usize) -> GenerationParams {
    let options = GenerateOptions::from_json(params).unwrap();
    let context = ResolveContext {
        prompt_len,
        prefix_len: 0,
        vocab_size,
        max_seq_len: 4096,
        eos_token_ids: &[],
        pad_token_id: None,
    };
    GenerationParams::resolve(&options, &context).unwrap()
}

/// What the warpers leave of `scores`.
fn warped(params: &GenerationParams, scores: &mut [f32]) -> Vec<Candidate> {
    let mut scratch = Scratch::default();
    params.warpers.apply(scores, &mut scratch);
    scratch.candidates
}

fn candidates(scores: &[f32]) -> Vec<Candidate> {
    numeric::enumerate(scores).collect()
}

fn probabilities(candidates: &[Candidate]) -> BTreeMap<u32, f64> {
    let (max, log_sum) = numeric::log_sum_exp(candidates.iter().map(|c| c.score));
    candidates
        .iter()
        .map(|c| (c.token, f64::from(c.score - max - log_sum).exp()))
        .filter(|(_, probability)| *probability > 0.0)
        .collect()
}

/// Runs a generation to its end, and checks at every step what an engine relies on.
fn run(table: &[Vec<f32>], prompt: &[u32], params: GenerationParams) -> Vec<SequenceOutput> {
    let mut generation = Generation::new(prompt.to_vec(), params);
    let mut streamed: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
    assert_eq!((generation.live_sequences(), generation.tokens(0)), (1, prompt));
    loop {
        let before: Vec<Vec<u32>> =
            (0..generation.live_sequences()).map(|live| generation.tokens(live).to_vec()).collect();
        let mut scores: Vec<Vec<f32>> = before.iter().map(|tokens| table_row(table, tokens)).collect();
        let mut rows: Vec<&mut [f32]> = scores.iter_mut().map(Vec::as_mut_slice).collect();
        let mut advance = Advance::default();
        generation.advance(&mut rows, &mut advance).unwrap();
        assert_eq!(advance.parents.len(), generation.live_sequences());
        assert!(generation.live_sequences() <= generation.max_sequences());
        for (live, &parent) in advance.parents.iter().enumerate() {
            let (_, start) = generation.tokens(live).split_last().unwrap();
            assert_eq!(start, before[parent], "a sequence extends its parent by one token");
        }
        for chosen in advance.chosen {
            streamed.entry(chosen.sequence).or_default().push(chosen.token);
        }
        assert_eq!(advance.finished, generation.is_finished());
        if advance.finished {
            break;
        }
    }
    let outputs = generation.outputs();
    for (sequence, tokens) in streamed {
        assert_eq!(tokens, outputs[sequence].tokens[prompt.len()..], "what was streamed is what comes out");
    }
    outputs
}
