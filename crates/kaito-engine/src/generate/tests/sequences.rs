//! How sequences go on, are stopped, end and fail.

use serde_json::{Value, json};

use super::*;

#[test]
fn what_a_sequence_draws_does_not_depend_on_when_another_is_stopped() {
    let tables = tables();
    let params = json!({"do_sample": true, "num_return_sequences": 3, "max_new_tokens": 12, "top_k": 0, "seed": 4});
    let params = resolve(params.as_object().unwrap(), 1, 24);
    let undisturbed = run(&tables["flat"], &[1], params.clone());
    let mut generation = Generation::new(vec![1], params);
    for step in 0.. {
        if step == 3 {
            assert_eq!(generation.stop_sequence(1), Stopped::Live(1));
            assert_eq!(generation.stop_sequence(1), Stopped::None);
            assert_eq!(generation.live_sequences(), 2);
        }
        let mut scores: Vec<Vec<f32>> =
            (0..generation.live_sequences()).map(|live| table_row(&tables["flat"], generation.tokens(live))).collect();
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
    assert_eq!(generation.stop_sequence(0), Stopped::None, "the prompt is still the other's");
    assert_eq!((generation.live_sequences(), generation.is_finished()), (1, false));
    assert_eq!(generation.stop_sequence(1), Stopped::Live(0));
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
fn a_prompt_as_long_as_metas_longest_sequence_is_finished_at_once() {
    let generation = Generation::new(vec![1, 2, 3], GenerationParams::meta(0.6, 0.9, 3, vec![2], None));
    assert!(generation.is_finished());
    assert_eq!(generation.outputs()[0].tokens, [1, 2, 3]);
    assert_eq!(generation.outputs()[0].finish_reason, FinishReason::Length);
}
