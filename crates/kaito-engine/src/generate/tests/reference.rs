//! Checks against transformers 4.46.3: `tests/generate/make_fixtures.py` wrote the expected values.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::*;

#[derive(Deserialize)]
struct Search {
    table: String,
    prompt: Vec<u32>,
    params: Map<String, Value>,
    sequences: Vec<Vec<u32>>,
    sequences_scores: Option<Vec<f32>>,
    log_probs: Option<Vec<Vec<f32>>>,
}

#[test]
fn searches_find_what_transformers_finds() {
    let tables = tables();
    let cases: Vec<Search> = serde_json::from_str(include_str!("../../../tests/generate/searches.json")).unwrap();
    assert!(cases.len() >= 150);
    let mut failures = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        let table = &tables[&case.table];
        let mut params = case.params.clone();
        params.insert("output_scores".into(), true.into());
        let outputs = run(table, &case.prompt, resolve(&params, case.prompt.len(), table[0].len()));
        let sequences: Vec<Vec<u32>> = outputs.iter().map(|output| output.tokens.clone()).collect();
        let scores: Option<Vec<f32>> = outputs.iter().map(|output| output.score).collect();
        let close = |a: &[f32], b: &[f32]| {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-4 * b.abs().max(1.0))
        };
        let mut log_probs: Vec<Vec<f32>> = outputs
            .iter()
            .map(|output| output.scores.as_ref().unwrap().iter().map(|score| score.log_prob).collect())
            .collect();
        let mut expected_log_probs = case.log_probs.clone();
        for (index, output) in outputs.iter().enumerate().filter(|(_, output)| output.score.is_some()) {
            let power = params.get("length_penalty").map_or(1.0, |power| power.as_f64().unwrap() as f32);
            let sum: f32 = log_probs[index].iter().sum();
            let score = sum / (log_probs[index].len() as f32).powf(power);
            assert!(
                close(&[score], &[output.score.unwrap()]),
                "case {index}: the scores of the tokens make up the score"
            );
            // transformers closes hypotheses with the first end token and looks that one's score up, though another
            // was chosen and counts.
            if output.finish_reason == FinishReason::EndToken && params["eos_token_id"].is_array() {
                log_probs[index].pop();
                expected_log_probs.iter_mut().for_each(|expected| expected[index].truncate(log_probs[index].len()));
            }
        }
        if sequences != case.sequences
            || !close(&scores.clone().unwrap_or_default(), case.sequences_scores.as_deref().unwrap_or_default())
            || expected_log_probs.as_ref().is_some_and(|expected| {
                expected.len() != log_probs.len() || !expected.iter().zip(&log_probs).all(|(a, b)| close(b, a))
            })
        {
            failures.push(format!(
                "case {index}: {} {:?} {}\n  expected {:?} {:?} {:?}\n  found    {sequences:?} {scores:?} {log_probs:?}",
                case.table,
                case.prompt,
                Value::Object(case.params.clone()),
                case.sequences,
                case.sequences_scores,
                case.log_probs,
            ));
        }
    }
    assert!(failures.is_empty(), "{} of {} fail:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

#[derive(Deserialize)]
struct Processed {
    prompt_len: usize,
    tokens: Vec<u32>,
    #[serde(default)]
    chosen: Vec<u32>,
    params: Map<String, Value>,
    scores: Vec<Value>,
    expected: Vec<Value>,
}

/// Numbers, or the strings by which Python names what JSON has no numbers for.
fn numbers(values: &[Value]) -> Vec<f32> {
    values
        .iter()
        .map(|value| value.as_f64().map_or_else(|| value.as_str().unwrap().parse().unwrap(), |x| x as f32))
        .collect()
}

#[test]
fn processors_change_scores_as_transformers_does() {
    let cases: Vec<Processed> = serde_json::from_str(include_str!("../../../tests/generate/processors.json")).unwrap();
    assert!(cases.len() >= 100);
    for (index, case) in cases.iter().enumerate() {
        let mut scores = numbers(&case.scores);
        let params = resolve(&case.params, case.prompt_len, scores.len());
        params.processors.apply(&mut scores, &case.tokens, case.prompt_len, &case.chosen, &mut Scratch::default());
        for (token, (found, expected)) in scores.iter().zip(numbers(&case.expected)).enumerate() {
            let close = *found == expected || (found - expected).abs() <= 1e-5 * expected.abs().max(1.0);
            assert!(close, "case {index}, token {token}: {found}, not {expected}: {:?}", case.params);
        }
    }
}

#[derive(Deserialize)]
struct Distribution {
    table: String,
    prompt: Vec<u32>,
    params: Map<String, Value>,
    probs: BTreeMap<u32, f64>,
}

#[test]
fn sampling_draws_from_the_distributions_of_transformers() {
    let tables = tables();
    let cases: Vec<Distribution> =
        serde_json::from_str(include_str!("../../../tests/generate/distributions.json")).unwrap();
    assert!(cases.len() >= 80);
    for (index, case) in cases.iter().enumerate() {
        let mut scores = table_row(&tables[&case.table], &case.prompt);
        let params = resolve(&case.params, case.prompt.len(), scores.len());
        if params.max_sequences() > 1 {
            numeric::log_softmax(&mut scores);
        }
        params.processors.apply(&mut scores, &case.prompt, case.prompt.len(), &[], &mut Scratch::default());
        let found = probabilities(&warped(&params, &mut scores));
        let what = format!("case {index}: {:?}", case.params);
        assert_eq!(found.keys().collect::<Vec<_>>(), case.probs.keys().collect::<Vec<_>>(), "{what}");
        for (token, expected) in &case.probs {
            assert!((found[token] - expected).abs() < 1e-6, "{what}: token {token}: {} not {expected}", found[token]);
        }
    }
}
