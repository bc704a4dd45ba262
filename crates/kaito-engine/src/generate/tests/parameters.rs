//! What parameters come to, and what is said of bad ones.

use serde_json::{Value, json};

use super::*;

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
