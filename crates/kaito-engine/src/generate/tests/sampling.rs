//! Choosing from scores: draws and their distributions, seeds, ties, and the scores that are noted.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::*;

/// Pearson's statistic of `observed` counts, and the number of cells; cells that expect few are put together.
fn chi_square(observed: &[f64], expected: &[f64]) -> (f64, usize) {
    let (mut statistic, mut cells) = (0.0, 0);
    let (mut rest_observed, mut rest_expected) = (0.0, 0.0);
    for (&o, &e) in observed.iter().zip(expected) {
        if e < 8.0 {
            rest_observed += o;
            rest_expected += e;
        } else {
            statistic += (o - e).powi(2) / e;
            cells += 1;
        }
    }
    if rest_expected >= 8.0 {
        statistic += (rest_observed - rest_expected).powi(2) / rest_expected;
        cells += 1;
    }
    (statistic, cells)
}

/// Whether a chi-square variate is within about four standard deviations of its mean (Wilson and Hilferty's cube).
fn plausible(statistic: f64, degrees: usize) -> bool {
    let d = degrees as f64;
    ((statistic / d).cbrt() - (1.0 - 2.0 / (9.0 * d))) / (2.0 / (9.0 * d)).sqrt() < 4.0
}

#[test]
fn a_draw_has_the_softmax_of_the_scores_as_its_distribution() {
    let candidates = candidates(&[0.3, -1.0, 2.0, 1.1, f32::NEG_INFINITY, 0.0]);
    let probs = probabilities(&candidates);
    let mut sampler = sampler::Sampler::new(11, 0);
    let mut counts = [0.0; 6];
    let runs = 40_000;
    for _ in 0..runs {
        counts[sampler.draw(&candidates).unwrap().token as usize] += 1.0;
    }
    let expected: Vec<f64> = (0..6).map(|token| f64::from(runs) * probs.get(&token).unwrap_or(&0.0)).collect();
    let (statistic, cells) = chi_square(&counts, &expected);
    assert_eq!((counts[4], cells), (0.0, 5));
    assert!(plausible(statistic, cells - 1), "{statistic}: {counts:?} {expected:?}");
}

#[test]
fn drawing_without_replacement_has_the_probabilities_of_drawing_one_after_another() {
    let scores = [0.3f32, -1.0, 2.0, 1.1, 0.0];
    let total: f64 = scores.iter().map(|&score| f64::from(score).exp()).sum();
    let p = |i: usize| f64::from(scores[i]).exp() / total;
    let pairs: Vec<(usize, usize)> = (0..5).flat_map(|a| (0..5).map(move |b| (a, b))).filter(|(a, b)| a != b).collect();
    let mut counts = vec![0.0; pairs.len()];
    let mut sampler = sampler::Sampler::new(5, 0);
    let runs = 60_000;
    for _ in 0..runs {
        let keys = sampler.gumbel_keys(scores.iter().copied());
        let mut order: Vec<usize> = (0..5).collect();
        order.sort_by(|&a, &b| keys[b].total_cmp(&keys[a]));
        counts[pairs.iter().position(|&pair| pair == (order[0], order[1])).unwrap()] += 1.0;
    }
    let expected: Vec<f64> = pairs.iter().map(|&(a, b)| f64::from(runs) * p(a) * p(b) / (1.0 - p(a))).collect();
    let (statistic, cells) = chi_square(&counts, &expected);
    assert!(plausible(statistic, cells - 1), "{statistic}: {counts:?} {expected:?}");
}

#[derive(Deserialize)]
struct BeamSamples {
    table: String,
    prompt: Vec<u32>,
    params: Map<String, Value>,
    counts: BTreeMap<String, f64>,
}

#[test]
fn beam_sampling_returns_sequences_as_often_as_transformers() {
    let tables = tables();
    let cases: Vec<BeamSamples> =
        serde_json::from_str(include_str!("../../../tests/generate/beam_samples.json")).unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let table = &tables[&case.table];
        let mut params = resolve(&case.params, case.prompt.len(), table[0].len());
        let runs = 20_000;
        let mut found: BTreeMap<String, f64> = BTreeMap::new();
        for seed in 0..runs {
            params.seed = Some(seed);
            let text = |output: &SequenceOutput| {
                output.tokens[case.prompt.len()..].iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
            };
            let texts: Vec<String> = run(table, &case.prompt, params.clone()).iter().map(text).collect();
            *found.entry(texts.join(" | ")).or_default() += 1.0;
        }
        // Two samples of the same size: the expectation of each cell is their mean, and the statistic is twice Pearson's.
        let keys: std::collections::BTreeSet<&String> = found.keys().chain(case.counts.keys()).collect();
        let get = |counts: &BTreeMap<String, f64>, key: &String| counts.get(key).copied().unwrap_or(0.0);
        let total: f64 = case.counts.values().sum();
        assert_eq!(total, runs as f64);
        let observed: Vec<f64> = keys.iter().map(|key| get(&found, key)).collect();
        let mean: Vec<f64> = keys.iter().map(|key| (get(&found, key) + get(&case.counts, key)) / 2.0).collect();
        let (statistic, cells) = chi_square(&observed, &mean);
        assert!(cells > 3);
        assert!(plausible(2.0 * statistic, cells - 1), "{statistic} over {cells} cells: {:?}", case.params);
    }
}

#[test]
fn a_seed_gives_the_same_sequences_and_another_seed_others() {
    let tables = tables();
    let draw = |seed: Option<u64>| {
        let mut params = json!({"do_sample": true, "num_return_sequences": 3, "max_new_tokens": 20, "top_k": 0});
        if let Some(seed) = seed {
            params["seed"] = seed.into();
        }
        run(&tables["flat"], &[1], resolve(params.as_object().unwrap(), 1, 24))
    };
    let first = draw(Some(u64::MAX));
    assert_eq!(first, draw(Some(u64::MAX)));
    assert_ne!(first, draw(Some(1)));
    assert_ne!(draw(None), draw(None));
    assert!(first[0].tokens != first[1].tokens && first[1].tokens != first[2].tokens);
}

#[test]
fn metas_sampling() {
    // Probabilities of Meta's `sample_top_p`, by hand: sorted 0.5, 0.25, 0.125, 0.125; the mass before each is 0, 0.5,
    // 0.75, 0.875, and what is not above p is kept.
    let scores: Vec<f32> = [0.25f32, 0.5, 0.125, 0.125].iter().map(|p| p.ln()).collect();
    for (p, kept) in [(0.0, vec![1]), (0.49, vec![1]), (0.51, vec![0, 1]), (0.74, vec![0, 1]), (0.9, vec![0, 1, 2, 3])]
    {
        let params = GenerationParams::meta(1.0, p, 9, vec![], None);
        let found = probabilities(&warped(&params, &mut scores.clone()));
        assert_eq!(found.keys().copied().collect::<Vec<u32>>(), kept, "p = {p}");
    }
    let params = GenerationParams::meta(0.5, 1.0, 9, vec![], None);
    let found = probabilities(&warped(&params, &mut scores.clone()));
    let squares = [0.0625, 0.25, 0.015625, 0.015625].map(|square| square / 0.34375);
    assert!(found.iter().all(|(&token, p)| (p - squares[token as usize]).abs() < 1e-6), "{found:?}");
    assert_eq!(GenerationParams::meta(0.0, 0.9, 9, vec![], None).strategy, Strategy::Greedy);
}

#[test]
fn of_equal_scores_the_lowest_token_wins() {
    assert_eq!(numeric::argmax(&[1.0, 3.0, 3.0, 2.0]), Some(1));
    let scores: Vec<f32> = (0..1000).map(|i| [1.0, 2.0, 0.0][i % 3]).collect();
    let top: Vec<u32> = numeric::top_n(numeric::enumerate(&scores), 4).iter().map(|c| c.token).collect();
    assert_eq!(top, [1, 4, 7, 10]);
    let params = resolve(json!({"do_sample": true, "top_k": 3}).as_object().unwrap(), 1, 1000);
    assert_eq!(warped(&params, &mut scores.clone()).len(), 333, "all that tie with the k-th are kept");
}

#[test]
fn the_first_of_a_partial_order_are_the_first_of_the_whole_order() {
    let mut scores: Vec<f32> = (0..5000).map(|i| ((i * 7919) % 611) as f32 * 0.25).collect();
    scores[77] = f32::NEG_INFINITY;
    let mut sorted = candidates(&scores);
    sorted.sort_by(numeric::best_first);
    for n in [0, 1, 2, 63, 64, 65, 700, 4999, 5000, 9000] {
        assert_eq!(numeric::top_n(numeric::enumerate(&scores), n), sorted[..n.min(5000)], "n = {n}");
    }
}

#[test]
fn output_scores_name_the_ten_likeliest_tokens() {
    let tables = tables();
    let params = json!({"do_sample": false, "max_new_tokens": 3, "output_scores": true, "bad_words_ids": [[5]]});
    let outputs = run(&tables["small"], &[3, 4], resolve(params.as_object().unwrap(), 2, 24));
    for score in outputs[0].scores.as_ref().unwrap() {
        assert_eq!((score.top.len(), score.top[0]), (TOP_SCORES, (score.token, score.log_prob)));
        assert!(score.top.is_sorted_by(|a, b| a.1 >= b.1) && score.top.iter().all(|(token, _)| *token != 5));
    }
}
