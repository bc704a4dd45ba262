//! Checks against transformers 4.46.3: `tests/generate/make_fixtures.py` wrote the expected values.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use serde_json::{Map, Value, json};

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

/// Runs a generation to its end, and checks at every step what an engine relies on.
fn run(table: &[Vec<f32>], prompt: &[u32], params: GenerationParams) -> Vec<SequenceOutput> {
    let mut generation = Generation::new(prompt.to_vec(), params);
    let mut streamed: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
    assert_eq!((generation.rows(), generation.tokens(0)), (1, prompt));
    loop {
        let before: Vec<Vec<u32>> = (0..generation.rows()).map(|row| generation.tokens(row).to_vec()).collect();
        let mut scores: Vec<Vec<f32>> = before.iter().map(|tokens| table_row(table, tokens)).collect();
        let mut rows: Vec<&mut [f32]> = scores.iter_mut().map(Vec::as_mut_slice).collect();
        let mut advance = Advance::default();
        generation.advance(&mut rows, &mut advance).unwrap();
        assert_eq!(advance.parents.len(), generation.rows());
        assert!(generation.rows() <= generation.max_rows());
        for (row, &parent) in advance.parents.iter().enumerate() {
            let (_, start) = generation.tokens(row).split_last().unwrap();
            assert_eq!(start, before[parent], "a row extends its parent by one token");
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
    let cases: Vec<Search> = serde_json::from_str(include_str!("../../tests/generate/searches.json")).unwrap();
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
    let cases: Vec<Processed> = serde_json::from_str(include_str!("../../tests/generate/processors.json")).unwrap();
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

fn probabilities(candidates: &[Candidate]) -> BTreeMap<u32, f64> {
    let (max, log_sum) = numeric::log_sum_exp(candidates.iter().map(|c| c.score));
    candidates
        .iter()
        .map(|c| (c.token, f64::from(c.score - max - log_sum).exp()))
        .filter(|(_, probability)| *probability > 0.0)
        .collect()
}

#[test]
fn sampling_draws_from_the_distributions_of_transformers() {
    let tables = tables();
    let cases: Vec<Distribution> =
        serde_json::from_str(include_str!("../../tests/generate/distributions.json")).unwrap();
    assert!(cases.len() >= 80);
    for (index, case) in cases.iter().enumerate() {
        let mut scores = table_row(&tables[&case.table], &case.prompt);
        let params = resolve(&case.params, case.prompt.len(), scores.len());
        if params.max_rows() > 1 {
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

fn candidates(scores: &[f32]) -> Vec<Candidate> {
    numeric::enumerate(scores).collect()
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
    let cases: Vec<BeamSamples> = serde_json::from_str(include_str!("../../tests/generate/beam_samples.json")).unwrap();
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
fn what_a_sequence_draws_does_not_depend_on_when_another_is_stopped() {
    let tables = tables();
    let params = json!({"do_sample": true, "num_return_sequences": 3, "max_new_tokens": 12, "top_k": 0, "seed": 4});
    let params = resolve(params.as_object().unwrap(), 1, 24);
    let undisturbed = run(&tables["flat"], &[1], params.clone());
    let mut generation = Generation::new(vec![1], params);
    for step in 0.. {
        if step == 3 {
            assert_eq!(generation.stop_sequence(1), Stopped::Row(1));
            assert_eq!(generation.stop_sequence(1), Stopped::NoRow);
            assert_eq!(generation.rows(), 2);
        }
        let mut scores: Vec<Vec<f32>> =
            (0..generation.rows()).map(|row| table_row(&tables["flat"], generation.tokens(row))).collect();
        let mut rows: Vec<&mut [f32]> = scores.iter_mut().map(Vec::as_mut_slice).collect();
        let mut advance = Advance::default();
        generation.advance(&mut rows, &mut advance).unwrap();
        if advance.finished {
            break;
        }
    }
    let outputs = generation.outputs();
    assert_eq!((&outputs[0], &outputs[2]), (&undisturbed[0], &undisturbed[2]));
    assert_eq!(outputs[1].finish_reason, FinishReason::Stop);
    assert_eq!(outputs[1].tokens, undisturbed[1].tokens[..4]);
}

#[test]
fn stopping_the_last_sequence_finishes_even_before_the_first_step() {
    let params = json!({"do_sample": true, "num_return_sequences": 2, "max_new_tokens": 5});
    let mut generation = Generation::new(vec![1], resolve(params.as_object().unwrap(), 1, 24));
    assert_eq!(generation.stop_sequence(0), Stopped::NoRow, "the row is still the other's");
    assert_eq!((generation.rows(), generation.is_finished()), (1, false));
    assert_eq!(generation.stop_sequence(1), Stopped::Row(0));
    assert!(generation.is_finished());
    assert!(generation.outputs().iter().all(|output| output.finish_reason == FinishReason::Stop));
}

fn advance_once(params: Value, scores: &[f32]) -> Result<Advance, GenerateError> {
    let params = resolve(params.as_object().unwrap(), 2, scores.len());
    let mut advance = Advance::default();
    Generation::new(vec![0, 1], params).advance(&mut [&mut scores.to_vec()], &mut advance).map(|()| advance)
}

#[test]
fn scores_that_are_not_numbers_fail_unless_they_are_removed() {
    let invalid = Err(GenerateError::InvalidScores { position: 2 });
    for bad in [f32::NAN, f32::INFINITY] {
        for params in [
            json!({"do_sample": false}),
            json!({"do_sample": true}),
            json!({"do_sample": false, "num_beams": 2}),
            json!({"do_sample": true, "num_beams": 2}),
        ] {
            assert_eq!(advance_once(params.clone(), &[0.0, bad, 1.0, 2.0, 0.5, 0.1, 0.2]), invalid, "{bad} {params}");
            let mut params = params;
            params["remove_invalid_values"] = true.into();
            assert!(advance_once(params.clone(), &[0.0, bad, 1.0, 2.0, 0.5, 0.1, 0.2]).is_ok(), "{bad} {params}");
        }
    }
}

#[test]
fn a_request_that_bans_every_token_fails() {
    for params in [json!({"do_sample": false}), json!({"do_sample": true}), json!({"do_sample": false, "num_beams": 2})]
    {
        let mut params = params;
        params["bad_words_ids"] = json!([[0], [1], [2]]);
        assert_eq!(
            advance_once(params.clone(), &[1.0, 2.0, 3.0]),
            Err(GenerateError::NothingAllowed { position: 2 }),
            "{params}"
        );
    }
}

#[test]
fn the_number_of_rows_is_checked() {
    let mut generation = Generation::new(vec![1], GenerationParams::meta(0.0, 0.9, 5, vec![], None));
    assert_eq!(
        generation.advance(&mut [], &mut Advance::default()),
        Err(GenerateError::WrongRows { expected: 1, got: 0 })
    );
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
fn a_prompt_as_long_as_metas_longest_sequence_is_finished_at_once() {
    let generation = Generation::new(vec![1, 2, 3], GenerationParams::meta(0.6, 0.9, 3, vec![2], None));
    assert!(generation.is_finished());
    assert_eq!(generation.outputs()[0].tokens, [1, 2, 3]);
    assert_eq!(generation.outputs()[0].finish_reason, FinishReason::Length);
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

fn context(prompt_len: usize) -> ResolveContext<'static> {
    ResolveContext {
        prompt_len,
        prefix_len: 0,
        vocab_size: 100,
        max_seq_len: 64,
        eos_token_ids: &[2],
        pad_token_id: None,
    }
}

fn error_of(params: Value) -> String {
    let resolved = GenerateOptions::from_json(params.as_object().unwrap())
        .and_then(|options| GenerationParams::resolve(&options.over_model(GenerateOptions::default()), &context(10)));
    match resolved {
        Ok(_) => format!("{params} is accepted"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn bad_parameters_are_named_with_their_value_and_what_is_allowed() {
    let words = "a list of words, each a list of one or more token ids (integers of at least 0), not empty and of at most \
                 131072 ids in all";
    let cases = [
        (json!({"max_length": 0}), "`max_length` is 0: it must be an integer of at least 1"),
        (json!({"max_length": "20"}), "`max_length` is \"20\": it must be an integer of at least 1"),
        (json!({"max_length": 20.5}), "`max_length` is 20.5: it must be an integer of at least 1"),
        (json!({"max_length": 1e300}), "`max_length` is 1e+300: it must be an integer of at least 1"),
        (json!({"max_new_tokens": -1}), "`max_new_tokens` is -1: it must be an integer of at least 1"),
        (json!({"min_length": -1}), "`min_length` is -1: it must be an integer of at least 0"),
        (json!({"do_sample": 1}), "`do_sample` is 1: it must be true or false"),
        (json!({"early_stopping": "soon"}), "`early_stopping` is \"soon\": it must be true, false or \"never\""),
        (json!({"num_beams": 0}), "`num_beams` is 0: it must be an integer from 1 to 256"),
        (json!({"num_beams": 257}), "`num_beams` is 257: it must be an integer from 1 to 256"),
        (json!({"temperature": -0.5}), "`temperature` is -0.5: it must be a number of at least 0"),
        (json!({"temperature": [1]}), "`temperature` is [1]: it must be a number of at least 0"),
        (json!({"top_k": -5}), "`top_k` is -5: it must be an integer of at least 0"),
        (json!({"top_p": 1.01}), "`top_p` is 1.01: it must be a number from 0 to 1"),
        (json!({"typical_p": 0}), "`typical_p` is 0: it must be a number greater than 0 and at most 1"),
        (json!({"repetition_penalty": 0.0}), "`repetition_penalty` is 0.0: it must be a number greater than 0"),
        (json!({"length_penalty": 1e9}), "`length_penalty` is 1000000000.0: it must be a number from -1000 to 1000"),
        (json!({"bad_words_ids": []}), &format!("`bad_words_ids` is []: it must be {words}")),
        (json!({"bad_words_ids": [1, 2]}), &format!("`bad_words_ids` is [1,2]: it must be {words}")),
        (json!({"bad_words_ids": [[]]}), &format!("`bad_words_ids` is [[]]: it must be {words}")),
        (json!({"bad_words_ids": [[1, -2]]}), &format!("`bad_words_ids` is [[1,-2]]: it must be {words}")),
        (
            json!({"bad_words_ids": [[3], [4, 100]]}),
            "`bad_words_ids` has the token id 100: this model's ids are 0 to 99",
        ),
        (
            json!({"eos_token_id": [1, "x"]}),
            "`eos_token_id` is [1,\"x\"]: it must be a token id (an integer of at least 0) or a list of at most 256 token ids",
        ),
        (json!({"eos_token_id": 100}), "`eos_token_id` has the token id 100: this model's ids are 0 to 99"),
        (json!({"pad_token_id": -1}), "`pad_token_id` is -1: it must be a token id (an integer of at least 0)"),
        (
            json!({"forced_eos_token_id": [1, 200]}),
            "`forced_eos_token_id` has the token id 200: this model's ids are 0 to 99",
        ),
        (json!({"seed": -1}), "`seed` is -1: it must be an integer from 0 to 18446744073709551615"),
        (
            json!({"temperature": 0}),
            "`temperature` is 0: it must be greater than 0 when `do_sample` is true; set `do_sample` to false for the \
             likeliest tokens",
        ),
        (
            json!({"num_beams": 4, "num_beam_groups": 3, "do_sample": false, "diversity_penalty": 1.0}),
            "`num_beam_groups` is 3: it must divide `num_beams`, which is 4",
        ),
        (json!({"num_beam_groups": 2}), "`num_beam_groups` is 2: it must divide `num_beams`, which is 1"),
        (
            json!({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0}),
            "`num_beam_groups` is 2 and `do_sample` is true: group beam search needs `do_sample` false",
        ),
        (
            json!({"num_beams": 4, "num_beam_groups": 2, "do_sample": false}),
            "`diversity_penalty` is 0 and `num_beam_groups` is 2: it must be greater than 0, for otherwise all groups \
             are the same",
        ),
        (
            json!({"num_beams": 4, "do_sample": false, "diversity_penalty": 0.5}),
            "`diversity_penalty` is 0.5 and `num_beam_groups` is 1: a penalty needs at least 2 groups",
        ),
        (
            json!({"do_sample": false, "num_return_sequences": 2}),
            "`num_return_sequences` is 2: it must be 1 when `do_sample` is false and `num_beams` is 1",
        ),
        (
            json!({"num_beams": 2, "num_return_sequences": 3}),
            "`num_return_sequences` is 3: it must be at most `num_beams`, which is 2",
        ),
        (
            json!({"max_length": 10}),
            "the prompt has 10 tokens, but `max_length` is 10: at least one token must be left for the answer",
        ),
        (json!({"tempratur": 1}), "unknown parameter `tempratur`; did you mean `temperature`?"),
        (json!({"max_lenght": null}), "unknown parameter `max_lenght`; did you mean `max_length`?"),
        (json!({"TOP_K": 3}), "unknown parameter `TOP_K`; did you mean `top_k`?"),
        (json!({"qqqqqqqq": 3}), "unknown parameter `qqqqqqqq`"),
    ];
    for (params, expected) in cases {
        assert_eq!(error_of(params), expected);
    }
    let long = json!({"max_length": "x".repeat(5000), });
    assert!(error_of(long).len() < 200);
    assert!(error_of(json!({"y".repeat(5000): 1})).len() < 200);
}

#[test]
fn a_prompt_longer_than_the_model_can_hold_is_refused_with_both_lengths() {
    let error = GenerationParams::resolve(&GenerateOptions::documented_defaults(), &context(64)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the prompt has 64 tokens, but this model's longest sequence is 64: at least one token must be left for the answer"
    );
}

#[test]
fn documented_defaults_stand_between_the_request_and_the_model() {
    let model = json!({
        "max_length": 4096, "do_sample": false, "temperature": 0.6, "top_p": 0.9, "no_repeat_ngram_size": 3,
        "eos_token_id": [2, 3], "max_new_tokens": 7, "bos_token_id": 1, "transformers_version": "4.46.3",
        "num_beams": "many", "output_scores": true,
    });
    let model = GenerateOptions::from_generation_config(model.as_object().unwrap());
    let request = |params: Value| GenerateOptions::from_json(params.as_object().unwrap()).unwrap();
    let options = request(json!({"top_k": 5, "temperature": null})).over_model(model.clone());
    assert_eq!(options.temperature, Some(1.0));
    assert_eq!((options.top_k, options.top_p, options.do_sample), (Some(5), Some(1.0), Some(true)));
    assert_eq!(options.no_repeat_ngram_size, Some(3));
    assert_eq!(options.eos_token_id, Some(vec![2, 3]));
    assert_eq!((options.max_length, options.max_new_tokens), (Some(200), Some(7)));
    assert_eq!((options.num_beams, options.output_scores), (Some(1), None));
    let options = request(json!({"max_length": 50, "eos_token_id": 9})).over_model(model);
    assert_eq!((options.max_length, options.max_new_tokens), (Some(50), Some(7)));
    assert_eq!(options.eos_token_id, Some(vec![9]));
}

#[test]
fn a_null_switches_off_what_the_model_sets() {
    let model = json!({
        "no_repeat_ngram_size": 3, "max_new_tokens": 7, "forced_eos_token_id": 2, "eos_token_id": 5, "pad_token_id": 6, "top_k": 3,
    });
    let model = GenerateOptions::from_generation_config(model.as_object().unwrap());
    let names =
        ["no_repeat_ngram_size", "max_new_tokens", "forced_eos_token_id", "eos_token_id", "pad_token_id", "top_k"];
    let nulls = names.map(|name| (name.to_owned(), Value::Null)).into_iter().collect();
    let options = GenerateOptions::from_json(&nulls).unwrap().over_model(model);
    assert_eq!((options.no_repeat_ngram_size, options.max_new_tokens), (None, None));
    assert_eq!((options.forced_eos_token_id, options.top_k), (None, Some(10)));
    assert_eq!((options.eos_token_id, options.pad_token_id), (Some(vec![5]), Some(6)));
}

#[test]
fn a_prefix_extends_the_lengths() {
    let options = GenerateOptions { max_length: Some(20), min_length: Some(12), ..GenerateOptions::default() };
    let context = ResolveContext { prefix_len: 5, ..context(10) };
    let params = GenerationParams::resolve(&options, &context).unwrap();
    assert_eq!((params.max_total_len, params.processors.min_length), (25, 17));
    let options = GenerateOptions { max_new_tokens: Some(3), min_new_tokens: Some(2), ..options };
    let params = GenerationParams::resolve(&options, &context).unwrap();
    assert_eq!((params.max_total_len, params.processors.min_length), (13, 12));
}

#[test]
fn lengths_are_cut_to_what_the_model_can_hold() {
    let options =
        GenerateOptions { max_length: Some(500), forced_eos_token_id: Some(vec![2]), ..GenerateOptions::default() };
    let params = GenerationParams::resolve(&options, &context(10)).unwrap();
    assert_eq!(params.max_total_len, 64);
    assert_eq!(params.processors.forced_eos.unwrap().length, 63);
}
