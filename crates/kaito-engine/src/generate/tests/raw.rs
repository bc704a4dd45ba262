//! Processors of raw scores, log-probabilities of raw scores, and what ends a sequence beside the model's end tokens. Expected values
//! are computed from the definitions: OpenAI's penalties as its API reference has them, the others as vLLM documents them.

use proptest::prelude::*;
use serde_json::json;

use super::{
    super::{Strategy, example_constraints::Example},
    *,
};

const VOCAB: usize = 24;
const PROMPT: [u32; 3] = [1, 5, 1];
/// A token that comes often in the texts of the table.
const TABLE: &str = "flat";

fn greedy(new_tokens: usize, raw: RawProcessors) -> GenerationParams {
    GenerationParams {
        raw_processors: Some(Box::new(raw)),
        ..GenerationParams::meta(0.0, 1.0, PROMPT.len() + new_tokens, Vec::new(), None)
    }
}

fn processed(
    raw: &RawProcessors,
    tokens: &[u32],
    prompt_len: usize,
    scores: &[f32],
    scratch: &mut Scratch,
) -> Vec<f32> {
    let params = greedy(9, raw.clone());
    let mut scores = scores.to_vec();
    raw.apply(&params, tokens, prompt_len, None, &mut scores, scratch).unwrap();
    scores
}

/// Log-softmax of a row.
fn log_softmax(scores: &[f32]) -> Vec<f64> {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = scores.iter().map(|&score| f64::from(score - max).exp()).sum();
    scores.iter().map(|&score| f64::from(score - max) - sum.ln()).collect()
}

/// Checks a token's score against its definition.
fn check_score(score: &TokenScore, row: &[f32], likeliest: usize) {
    let expected = log_softmax(row);
    let near = |token: u32, log_prob: f32| {
        let expected = expected[token as usize];
        expected == f64::from(log_prob) || (expected - f64::from(log_prob)).abs() < 1e-5
    };
    assert!(near(score.token, score.log_prob), "{score:?}");
    let mut order: Vec<u32> = (0..).take(row.len()).collect();
    order.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b)));
    assert_eq!(score.rank, order.iter().position(|&token| token == score.token).map(|place| place + 1));
    assert_eq!(score.top.len(), likeliest.min(row.len()));
    assert!(score.top.iter().all(|&(token, log_prob)| near(token, log_prob)), "{score:?}");
    assert!(score.top.is_sorted_by(|a, b| a.1 > b.1 || a.1 == b.1 && a.0 < b.0), "{score:?}");
    let least = score.top.last().map_or(f32::INFINITY, |least| least.1);
    let above = expected.iter().filter(|&&p| p > f64::from(least) + 1e-5).count();
    assert!(above <= likeliest, "{above} are likelier than the last of {likeliest}");
}

#[test]
fn masks_come_first_then_bias_then_penalties() {
    let raw = RawProcessors {
        allowed: Some(TokenMask::of(6, &[0, 1, 2, 3, 4])),
        logit_bias: vec![(0, 1.0), (4, -2.0), (5, 100.0)],
        repetition_penalty: 2.0,
        frequency_penalty: 0.5,
        presence_penalty: 0.25,
        ..RawProcessors::default()
    };
    // By hand: 0: (1 + 1) / 2. 1: -1 * 2. 2: 2 / 2 - 2 * 0.5 - 0.25. 3: 0.5 / 2 - 0.5 - 0.25. 4: 0.25 - 2. 5: not allowed.
    let expected = [1.0, -2.0, -0.25, -0.5, -1.75, f32::NEG_INFINITY];
    let mut scratch = Scratch::default();
    for _ in 0..2 {
        let scores = processed(&raw, &[0, 1, 2, 2, 3], 2, &[1.0, -1.0, 2.0, 0.5, 0.25, 0.0], &mut scratch);
        assert_eq!(scores, expected);
    }
    let none = processed(&RawProcessors::default(), &[0, 1, 2], 1, &[1.0, -1.0, 2.0], &mut scratch);
    assert_eq!(none, [1.0, -1.0, 2.0]);
}

#[test]
fn penalties_count_generated_tokens_and_not_the_prompts() {
    let raw = RawProcessors { frequency_penalty: 1.0, presence_penalty: -0.5, ..RawProcessors::default() };
    let scores = processed(&raw, &[0, 0, 1, 2, 1], 3, &[0.0; 4], &mut Scratch::default());
    assert_eq!(scores, [0.0, -0.5, -0.5, 0.0]);
}

#[test]
fn bad_words_are_sequences_of_generated_tokens() {
    let raw = RawProcessors { bad_words: vec![vec![3], vec![1, 2], vec![0, 1, 0]], ..RawProcessors::default() };
    let banned = |tokens: &[u32], prompt_len: usize| -> Vec<usize> {
        let scores = processed(&raw, tokens, prompt_len, &[0.0; 4], &mut Scratch::default());
        (0..4).filter(|&token| scores[token] == f32::NEG_INFINITY).collect()
    };
    assert_eq!(banned(&[0, 1], 2), [3], "the prompt begins no bad word");
    assert_eq!(banned(&[0, 1], 1), [2, 3]);
    assert_eq!(banned(&[0, 1], 0), [0, 2, 3]);
    assert_eq!(banned(&[9, 9, 1, 2], 2), [3]);
}

#[test]
fn min_p_keeps_what_is_likely_enough_beside_the_likeliest() {
    let scores: Vec<f32> = [0.5f32, 0.25, 0.125, 0.0625, 0.0625].iter().map(|p| p.ln()).collect();
    for (min_p, kept) in [(0.01, 5), (0.2, 3), (0.3, 2), (0.6, 1), (1.0, 1)] {
        let warpers = Warpers { steps: vec![Warper::MinP(min_p)], min_tokens_to_keep: 1 };
        let params = GenerationParams { warpers, ..greedy(1, RawProcessors::default()) };
        assert_eq!(warped(&params, &mut scores.clone()).len(), kept, "{min_p}");
    }
}

proptest! {
    /// Whatever is ruled out stays so.
    #[test]
    fn no_bias_and_no_penalty_makes_a_forbidden_token_possible(
        scores in prop::collection::vec(-50.0..50.0f32, VOCAB),
        bias in prop::collection::vec((0..VOCAB as u32, -100.0..100.0f32), 0..30),
        allowed in prop::collection::vec(0..VOCAB as u32, 1..8),
        tokens in prop::collection::vec(0..VOCAB as u32, 3..20),
        (repetition_penalty, frequency_penalty, presence_penalty) in (0.01..10.0f32, -2.0..2.0f32, -2.0..2.0f32),
        example in prop::option::of(prop::sample::select(&Example::ALL[..])),
    ) {
        let raw = RawProcessors {
            allowed: Some(TokenMask::of(VOCAB, &allowed)),
            bad_words: vec![vec![allowed[0]]],
            logit_bias: bias,
            repetition_penalty,
            frequency_penalty,
            presence_penalty,
            ..RawProcessors::default()
        };
        let params = greedy(9, raw.clone());
        let mut mask = TokenMask::of(VOCAB, &(0..VOCAB as u32).collect::<Vec<u32>>());
        let mut constraint = example.map(Example::constraint);
        if let Some(constraint) = &mut constraint {
            mask = TokenMask::of(VOCAB, &[]);
            constraint.mask(&mut mask);
        }
        let mut expected = vec![0.0; VOCAB];
        mask.apply(&mut expected);
        let mut found = scores.clone();
        raw.apply(&params, &tokens, 3, constraint.as_deref_mut(), &mut found, &mut Scratch::default()).unwrap();
        for token in 0..VOCAB {
            let possible =
                expected[token] == 0.0 && allowed.contains(&(token as u32)) && allowed[0] != token as u32;
            prop_assert_eq!(found[token] > f32::NEG_INFINITY, possible, "{}", token);
        }
    }
}

#[test]
fn log_probabilities_are_those_of_the_raw_scores_whatever_is_chosen_by() {
    let tables = tables();
    let table = &tables[TABLE];
    let raw = RawProcessors {
        logit_bias: vec![(3, 5.0), (7, -100.0)],
        frequency_penalty: 2.0,
        repetition_penalty: 1.3,
        ..RawProcessors::default()
    };
    let sampled = GenerationParams {
        strategy: Strategy::Sample { sequences: 3 },
        warpers: Warpers { steps: vec![Warper::Temperature(0.7), Warper::TopK(3)], min_tokens_to_keep: 1 },
        seed: Some(9),
        ..greedy(12, raw.clone())
    };
    for params in [greedy(12, raw), sampled] {
        for likeliest in [0, 1, 20, 30] {
            let plain = run(table, &PROMPT, params.clone());
            let scored = run(table, &PROMPT, GenerationParams { log_probs: Some(likeliest), ..params.clone() });
            for (plain, scored) in plain.iter().zip(&scored) {
                assert_eq!(plain.tokens, scored.tokens);
                let scores = scored.scores.as_ref().unwrap();
                assert_eq!(scores.len(), 12);
                for (at, score) in scores.iter().enumerate() {
                    let position = PROMPT.len() + at;
                    assert_eq!(score.token, scored.tokens[position]);
                    check_score(score, &table_row(table, &scored.tokens[..position]), likeliest);
                }
            }
        }
    }
}

#[test]
fn tokens_of_probability_zero_have_a_log_probability_too() {
    let mut generation =
        Generation::new(vec![0], GenerationParams { log_probs: Some(3), ..greedy(1, RawProcessors::default()) });
    let mut advance = Advance::default();
    let row = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY];
    generation.advance(&mut [&mut row.clone()], &mut advance).unwrap();
    let score = advance.chosen[0].score.as_ref().unwrap();
    assert_eq!((score.token, score.log_prob), (1, 0.0));
    assert_eq!(score.top, [(1, 0.0), (0, f32::NEG_INFINITY), (2, f32::NEG_INFINITY)]);
}

#[test]
fn scores_without_probabilities_fail() {
    let unusable = Err(GenerateError::UnusableScores { position: 1 });
    for log_probs in [None, Some(0)] {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut generation =
                Generation::new(vec![0], GenerationParams { log_probs, ..greedy(1, RawProcessors::default()) });
            let failed = generation.advance(&mut [&mut [0.0, bad, 1.0]], &mut Advance::default());
            assert_eq!(failed, unusable);
        }
    }
    let mut generation = Generation::new(
        vec![0, 1],
        GenerationParams { prompt_log_probs: Some(0), ..greedy(1, RawProcessors::default()) },
    );
    assert_eq!(generation.score_prompt(&[&mut [0.0, f32::NAN]]), unusable);
}

/// The tokens of a text of the table, and why it ended.
fn text(params: GenerationParams) -> (Vec<u32>, FinishReason) {
    let mut outputs = run(&tables()[TABLE], &PROMPT, params);
    let output = outputs.remove(0);
    (output.tokens[PROMPT.len()..].to_vec(), output.finish_reason)
}

#[test]
fn stop_tokens_end_a_sequence_and_a_minimum_bans_them() {
    let (plain, _) = text(greedy(12, RawProcessors::default()));
    let stop = plain[3];
    let first = plain.iter().position(|&token| token == stop).unwrap() + 1;
    let stopping = GenerationParams { stop_tokens: vec![stop], ..greedy(12, RawProcessors::default()) };
    assert_eq!(text(stopping.clone()), (plain[..first].to_vec(), FinishReason::Stop));
    let ending = GenerationParams { end_tokens: vec![stop], stop_tokens: vec![stop], ..stopping.clone() };
    assert_eq!(text(ending).1, FinishReason::EndToken, "the model's own reason comes first");
    for (end_tokens, stop_tokens) in [(vec![stop], vec![]), (vec![], vec![stop])] {
        let raw = RawProcessors { min_new_tokens: 8, ..RawProcessors::default() };
        let (found, reason) = text(GenerationParams { end_tokens, stop_tokens, ..greedy(12, raw) });
        let at = found.iter().position(|&token| token == stop);
        assert!(at.is_none_or(|at| at >= 8), "{found:?}");
        assert_eq!(reason == FinishReason::Length, at.is_none());
    }
}

/// Lets one token come so many times, and then nothing but the end, without saying that it is finished.
#[derive(Debug, Clone)]
struct Times(u32, usize);

impl Constraint for Times {
    fn mask(&mut self, allowed: &mut TokenMask) {
        // Grammars know the model's end tokens and allow them; what they say of these does not count.
        allowed.set(END, true);
        allowed.set(self.0, self.1 > 0);
    }

    fn accept(&mut self, token: u32) -> bool {
        let may = token == self.0 && self.1 > 0;
        self.1 -= usize::from(may);
        may
    }

    fn rollback(&mut self, tokens: usize) {
        self.1 += tokens;
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }

    fn may_end(&self) -> bool {
        self.1 <= 2
    }
}

const END: u32 = 6;

#[test]
fn a_minimum_and_ignored_end_tokens_yield_to_a_constraint_that_lets_nothing_follow() {
    let constrained = |min_new_tokens: usize, ignored: bool| {
        let ignored_end_tokens = if ignored { vec![END] } else { Vec::new() };
        let raw = RawProcessors {
            min_new_tokens,
            ignored_end_tokens,
            // The end is as likely as can be.
            logit_bias: vec![(END, 100.0)],
            ..RawProcessors::default()
        };
        GenerationParams {
            end_tokens: if ignored { Vec::new() } else { vec![END] },
            constraint: Some(Box::new(Times(9, 4))),
            ..greedy(12, raw)
        }
    };
    assert_eq!(text(constrained(0, false)), (vec![9, 9, END], FinishReason::EndToken));
    assert_eq!(text(constrained(3, false)), (vec![9, 9, 9, END], FinishReason::EndToken));
    assert_eq!(text(constrained(10, false)), (vec![9, 9, 9, 9, END], FinishReason::EndToken));
    assert_eq!(text(constrained(0, true)), (vec![9, 9, 9, 9], FinishReason::Stop));
    assert_eq!(text(constrained(10, true)), (vec![9, 9, 9, 9], FinishReason::Stop));
    // Where the end is not among the tokens that may be chosen, the sequence ends without it.
    let mut params = constrained(0, false);
    params.raw_processors.as_mut().unwrap().allowed = Some(TokenMask::of(VOCAB, &[9]));
    assert_eq!(text(params), (vec![9, 9, 9, 9], FinishReason::Stop));
    // What the constraint would let follow and the parameters do not is an error, and no end.
    let mut params = constrained(0, false);
    params.raw_processors.as_mut().unwrap().allowed = Some(TokenMask::of(VOCAB, &[8]));
    let failed = Generation::new(PROMPT.to_vec(), params).advance(&mut [&mut [0.0; VOCAB]], &mut Advance::default());
    assert_eq!(failed, Err(GenerateError::NothingAllowed { position: PROMPT.len() }));
}

#[test]
fn a_constraint_that_is_finished_from_the_start_ends_at_once() {
    #[derive(Debug)]
    struct Finished;
    impl Constraint for Finished {
        fn mask(&mut self, _: &mut TokenMask) {}
        fn accept(&mut self, _: u32) -> bool {
            false
        }
        fn rollback(&mut self, _: usize) {}
        fn fork(&self) -> Box<dyn Constraint> {
            Box::new(Self)
        }
        fn may_end(&self) -> bool {
            true
        }
        fn is_finished(&self) -> bool {
            true
        }
    }
    let params = GenerationParams { constraint: Some(Box::new(Finished)), ..greedy(5, RawProcessors::default()) };
    let generation = Generation::new(PROMPT.to_vec(), params);
    assert!(generation.is_finished());
    let output = &generation.outputs()[0];
    assert_eq!((output.tokens.as_slice(), output.finish_reason), (&PROMPT[..], FinishReason::Stop));
}

#[test]
fn the_tokens_of_a_prompt_are_scored_in_pieces_before_anything_is_chosen() {
    let tables = tables();
    let table = &tables[TABLE];
    let prompt = [1, 5, 1, 9, 2, 2, 7];
    for (new_tokens, sequences) in [(0, 1), (2, 1), (2, 3)] {
        let params = GenerationParams {
            strategy: if sequences > 1 { Strategy::Sample { sequences } } else { Strategy::Greedy },
            prompt_log_probs: Some(4),
            warpers: Warpers::default(),
            max_total_len: prompt.len() + new_tokens,
            seed: Some(2),
            ..greedy(0, RawProcessors::default())
        };
        let mut generation = Generation::new(prompt.to_vec(), params);
        let mut scored = 0;
        for piece in [2, 1, 3] {
            assert_eq!(generation.unscored(), Some(scored..6));
            assert_eq!((generation.live_sequences(), generation.tokens(0)), (1, &prompt[..]));
            let mut rows: Vec<Vec<f32>> = (scored..scored + piece).map(|at| table_row(table, &prompt[..=at])).collect();
            let rows: Vec<&mut [f32]> = rows.iter_mut().map(Vec::as_mut_slice).collect();
            assert_eq!(generation.take_prompt_numbers(), None);
            generation.score_prompt(&rows).unwrap();
            scored += piece;
        }
        assert_eq!(generation.unscored(), None);
        let mut chosen = 0;
        while !generation.is_finished() {
            let mut rows: Vec<Vec<f32>> =
                (0..generation.live_sequences()).map(|live| table_row(table, generation.tokens(live))).collect();
            let mut rows: Vec<&mut [f32]> = rows.iter_mut().map(Vec::as_mut_slice).collect();
            let mut advance = Advance::default();
            generation.advance(&mut rows, &mut advance).unwrap();
            chosen += advance.chosen.len();
            assert_eq!(advance.finished, generation.is_finished());
        }
        assert_eq!(chosen, new_tokens * sequences);
        let scores = generation.take_prompt_numbers().unwrap().scores;
        assert_eq!(scores.iter().map(|score| score.token).collect::<Vec<_>>(), prompt[1..]);
        for (at, score) in scores.iter().enumerate() {
            check_score(score, &table_row(table, &prompt[..=at]), 4);
        }
        assert!(generation.outputs().iter().all(|output| output.finish_reason == FinishReason::Length));
    }
    // Nothing stands before the only token.
    let alone = GenerationParams { prompt_log_probs: Some(4), max_total_len: 1, ..greedy(0, RawProcessors::default()) };
    let mut generation = Generation::new(vec![3], alone);
    assert_eq!((generation.unscored(), generation.is_finished()), (None, true));
    assert_eq!(generation.take_prompt_numbers(), None);
    let plain = resolve(json!({"do_sample": false}).as_object().unwrap(), 3, VOCAB);
    assert_eq!(Generation::new(PROMPT.to_vec(), plain).take_prompt_numbers(), None);
}
