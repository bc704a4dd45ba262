//! Constraints: in every kind of generation, on drafts, and against everything else that changes scores.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use serde_json::json;

use super::{
    super::example_constraints::{Example, FIXED},
    *,
};

/// The model's table, tokens of its vocabulary, and a prompt.
const TABLE: &str = "flat";
const VOCAB: usize = 24;
const PROMPT: [u32; 3] = [1, 5, 1];
const END: u32 = 6;

fn constrained(options: Value, example: Example) -> GenerationParams {
    let params = resolve(options.as_object().unwrap(), PROMPT.len(), VOCAB);
    GenerationParams { constraint: Some(example.constraint()), ..params }
}

/// Every kind of generation.
fn kinds() -> [Value; 6] {
    [
        json!({"do_sample": false}),
        json!({"do_sample": true, "seed": 1, "top_k": 0}),
        json!({"do_sample": true, "seed": 2, "top_p": 0.7, "num_return_sequences": 5}),
        json!({"do_sample": false, "num_beams": 4, "num_return_sequences": 4}),
        json!({"do_sample": true, "seed": 3, "num_beams": 3, "num_return_sequences": 3}),
        json!({"do_sample": false, "num_beams": 4, "num_beam_groups": 2, "num_return_sequences": 4, "diversity_penalty": 0.7}),
    ]
}

#[test]
fn every_sequence_of_every_kind_of_generation_keeps_its_constraint() {
    let tables = tables();
    let (mut ended, mut different) = (0, 0);
    for example in Example::ALL {
        for mut options in kinds() {
            // An end token that an example has a use for would be missing there.
            options["eos_token_id"] = json!([END]);
            options["max_new_tokens"] = json!(40);
            let outputs = run(&tables[TABLE], &PROMPT, constrained(options.clone(), example));
            assert_eq!(outputs.len(), options["num_return_sequences"].as_u64().unwrap_or(1) as usize);
            for output in &outputs {
                let new = &output.tokens[PROMPT.len()..];
                assert!(!new.is_empty() && example.holds(new, Some(END)), "{example:?} {options}: {new:?}");
                ended += usize::from(output.finish_reason == FinishReason::EndToken);
                if example == Example::Fixed {
                    assert_eq!((new, output.finish_reason), (&FIXED[..], FinishReason::Stop), "{options}");
                }
            }
            different += usize::from(outputs.windows(2).any(|pair| pair[0].tokens != pair[1].tokens));
        }
    }
    assert!(ended > 10 && different >= 6, "{ended} ended by the end token, {different} had different sequences");
}

#[test]
fn a_constraint_has_the_last_word_over_bans_forced_tokens_and_replaced_scores() {
    let tables = tables();
    for options in [
        json!({"remove_invalid_values": true}),
        json!({"repetition_penalty": 5.0, "no_repeat_ngram_size": 3}),
        json!({"num_beams": 3, "remove_invalid_values": true}),
    ] {
        let mut options = options;
        options["do_sample"] = json!(false);
        options["max_new_tokens"] = json!(12);
        let outputs = run(&tables[TABLE], &PROMPT, constrained(options, Example::Even));
        assert!(Example::Even.holds(&outputs[0].tokens[PROMPT.len()..], None), "{outputs:?}");
    }
    // Each of these leaves no token that both allow.
    for options in [
        json!({"bad_words_ids": [[FIXED[0]]]}),
        json!({"forced_eos_token_id": END, "eos_token_id": END, "max_new_tokens": 1}),
        json!({"eos_token_id": FIXED[0]}),
        json!({"eos_token_id": FIXED[0], "num_beams": 2}),
    ] {
        let mut options = options;
        options["do_sample"] = json!(false);
        let mut generation = Generation::new(PROMPT.to_vec(), constrained(options.clone(), Example::Fixed));
        let failed = generation.advance(&mut [&mut [0.5; VOCAB]], &mut Advance::default());
        assert_eq!(failed, Err(GenerateError::NothingAllowed { position: PROMPT.len() }), "{options}");
    }
}

#[test]
fn a_mask_leaves_the_probabilities_among_the_allowed_tokens() {
    let params = constrained(json!({"do_sample": true, "top_k": 0, "output_scores": true, "seed": 1}), Example::Even);
    let mut generation = Generation::new(vec![0], params);
    // Half of the mass is on odd tokens.
    let mut scores = [f32::NEG_INFINITY; VOCAB];
    for (token, p) in [(1, 0.5f32), (2, 0.125), (4, 0.375)] {
        scores[token] = p.ln();
    }
    let mut advance = Advance::default();
    generation.advance(&mut [&mut scores], &mut advance).unwrap();
    let score = advance.chosen[0].score.as_ref().unwrap();
    let found: Vec<(u32, f32)> = score.top.iter().map(|&(token, log_prob)| (token, log_prob.exp())).collect();
    assert!(matches!(found[..], [(4, a), (2, b)] if (a - 0.75).abs() < 1e-6 && (b - 0.25).abs() < 1e-6), "{found:?}");
}

#[test]
fn a_draft_is_allowed_up_to_its_first_token_that_is_refused_and_nothing_has_changed_then() {
    let cases = [
        (Example::Even, None, &[2, 4, 5, 6][..], 2),
        (Example::Even, None, &[], 0),
        (Example::Even, Some(END), &[2, END, 4], 2),
        (Example::Even, Some(7), &[2, 7, 4], 2),
        (Example::Fixed, None, &[7, 3, 7, 3, 10, 2, 2], 6),
        (Example::Fixed, Some(END), &[7, 3, END], 2),
        (Example::Brackets, None, &[0, 0, 9, 1, 1, 1, 9], 5),
        (Example::Brackets, Some(END), &[0, 1, END], 3),
        (Example::Brackets, Some(END), &[0, END], 1),
    ];
    for (example, end, draft, expected) in cases {
        let params =
            constrained(json!({"do_sample": false, "eos_token_id": end.map_or(json!([]), |end| json!(end))}), example);
        let mut generation = Generation::new(PROMPT.to_vec(), params);
        for _ in 0..2 {
            assert_eq!(generation.allowed(draft), expected, "{example:?} {end:?} {draft:?}");
        }
    }
    let plain = resolve(json!({"do_sample": false}).as_object().unwrap(), PROMPT.len(), VOCAB);
    assert_eq!(Generation::new(PROMPT.to_vec(), plain).allowed(&[1, 2, 3]), 3);
}

#[test]
fn drafts_between_tokens_change_nothing() {
    let tables = tables();
    let (mut allowed, mut refused) = (0, 0);
    for example in Example::ALL {
        let params = constrained(json!({"do_sample": true, "seed": 8, "top_k": 0, "max_new_tokens": 30}), example);
        let expected = run(&tables[TABLE], &PROMPT, params.clone());
        let mut generation = Generation::new(PROMPT.to_vec(), params);
        while !generation.is_finished() {
            let draft: Vec<u32> = generation.tokens(0).iter().rev().take(5).copied().collect();
            let count = generation.allowed(&draft);
            (allowed, refused) = (allowed + count, refused + draft.len() - count);
            let mut scores = table_row(&tables[TABLE], generation.tokens(0));
            generation.advance(&mut [&mut scores], &mut Advance::default()).unwrap();
        }
        assert_eq!(generation.outputs(), expected);
    }
    assert!(allowed > 20 && refused > 20, "{allowed} allowed, {refused} refused");
}

/// Allows what it then refuses.
#[derive(Debug)]
struct Broken;

impl Constraint for Broken {
    fn mask(&mut self, allowed: &mut TokenMask) {
        allowed.words_mut().fill(u64::MAX);
    }

    fn accept(&mut self, _: u32) -> bool {
        false
    }

    fn rollback(&mut self, _: usize) {}

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(Self)
    }

    fn may_end(&self) -> bool {
        false
    }
}

#[test]
fn a_constraint_that_contradicts_itself_fails_its_request() {
    for beams in [1, 2] {
        let mut params = constrained(json!({"do_sample": false, "num_beams": beams}), Example::Even);
        params.constraint = Some(Box::new(Broken));
        let mut generation = Generation::new(PROMPT.to_vec(), params);
        let failed = generation.advance(&mut [&mut [0.5; VOCAB]], &mut Advance::default());
        assert_eq!(failed, Err(GenerateError::ConstraintBroken { position: PROMPT.len() }));
    }
}

/// Gives up at the second token.
#[derive(Debug, Clone, Default)]
struct Exhausted {
    tokens: usize,
}

impl Constraint for Exhausted {
    fn mask(&mut self, allowed: &mut TokenMask) {
        (0..VOCAB as u32).filter(|_| self.tokens == 0).for_each(|token| allowed.set(token, true));
    }

    fn accept(&mut self, _: u32) -> bool {
        self.tokens += 1;
        true
    }

    fn rollback(&mut self, tokens: usize) {
        self.tokens -= tokens;
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }

    fn may_end(&self) -> bool {
        false
    }

    fn fault(&self) -> Option<&str> {
        (self.tokens > 0).then_some("too many states")
    }
}

#[test]
fn a_constraint_that_gives_up_fails_its_request_with_its_reason() {
    let mut params = constrained(json!({"do_sample": false}), Example::Even);
    params.constraint = Some(Box::new(Exhausted::default()));
    let mut generation = Generation::new(PROMPT.to_vec(), params);
    let mut advance = |advance: &mut Advance| generation.advance(&mut [&mut [0.5; VOCAB]], advance);
    assert_eq!(advance(&mut Advance::default()), Ok(()));
    let failed = GenerateError::ConstraintFailed { position: PROMPT.len() + 1, reason: "too many states".to_owned() };
    assert_eq!(advance(&mut Advance::default()), Err(failed));
}

#[test]
fn a_mask_has_a_bit_for_each_token_and_passes_over_others() {
    let mut generation = Generation::new(
        vec![0],
        GenerationParams {
            constraint: Some(Example::Even.constraint()),
            ..GenerationParams::meta(0.0, 1.0, 9, vec![], None)
        },
    );
    // More than one word of bits, and a last one that is not full.
    for best in [0usize, 1, 63, 64, 65, 128, 129] {
        let mut scores = vec![0.0; 130];
        scores[best] = 2.0;
        scores[126] = 1.0;
        let mut advance = Advance::default();
        generation.advance(&mut [&mut scores], &mut advance).unwrap();
        let expected = if best % 2 == 0 { best as u32 } else { 126 };
        assert_eq!(advance.chosen[0].token, expected);
    }
}

/// An example that counts how often it is asked.
#[derive(Debug)]
struct Counting(Box<dyn Constraint>, Arc<AtomicUsize>);

impl Constraint for Counting {
    fn mask(&mut self, allowed: &mut TokenMask) {
        self.1.fetch_add(1, Relaxed);
        self.0.mask(allowed);
    }

    fn accept(&mut self, token: u32) -> bool {
        self.0.accept(token)
    }

    fn rollback(&mut self, tokens: usize) {
        self.0.rollback(tokens);
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(Self(self.0.fork(), self.1.clone()))
    }

    fn may_end(&self) -> bool {
        self.0.may_end()
    }

    fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

#[test]
fn a_constraint_that_is_asked_ahead_is_asked_once_and_nothing_else_changes() {
    let tables = tables();
    let raw = Some(Box::new(RawProcessors::default()));
    for (example, raw_processors) in [(Example::Even, None), (Example::Brackets, None), (Example::Brackets, raw)] {
        let options =
            json!({"do_sample": true, "seed": 2, "top_k": 0, "num_return_sequences": 5, "max_new_tokens": 12});
        let run = |ahead: bool| {
            let asked = Arc::new(AtomicUsize::new(0));
            let constraint: Box<dyn Constraint> = Box::new(Counting(example.constraint(), asked.clone()));
            let params = GenerationParams {
                constraint: Some(constraint),
                raw_processors: raw_processors.clone(),
                ..constrained(options.clone(), example)
            };
            let mut generation = Generation::new(PROMPT.to_vec(), params);
            let (mut advance, mut several) = (Advance::default(), 0);
            while !generation.is_finished() {
                let mut scores: Vec<Vec<f32>> = (0..generation.live_sequences())
                    .map(|live| table_row(&tables[TABLE], generation.tokens(live)))
                    .collect();
                if ahead {
                    let live = generation.live_sequences();
                    let mut sequences: Vec<AskAhead<'_>> = generation.ask_ahead().collect();
                    // In any order, since each is asked on whatever thread is free.
                    sequences.iter_mut().rev().for_each(|sequence| sequence.ask(VOCAB));
                    assert_eq!(sequences.len(), if live > 1 { live } else { 0 });
                    several += sequences.len();
                }
                let mut rows: Vec<&mut [f32]> = scores.iter_mut().map(Vec::as_mut_slice).collect();
                generation.advance(&mut rows, &mut advance).unwrap();
            }
            (generation.outputs(), asked.load(Relaxed), several)
        };
        let (plain, ahead) = (run(false), run(true));
        assert_eq!((&plain.0, plain.1), (&ahead.0, ahead.1), "{example:?}");
        assert!(ahead.2 >= 5 * 11, "{example:?}: {} were asked ahead", ahead.2);
    }
}
