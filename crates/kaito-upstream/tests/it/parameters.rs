//! What becomes of each parameter, as docs/runtimes.md has it.

use std::{collections::BTreeSet, fs};

use kaito_testing::files::repository;
use kaito_upstream::{PARAMETERS, Treatment};
use serde_json::{Value, json};

use crate::front::{COMPLETIONS, Front, error, own, with};

fn in_code(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

#[test]
fn the_document_has_the_table_of_the_code() {
    let document = fs::read_to_string(repository().join("docs/runtimes.md")).unwrap();
    let table = document.split("\n## ").find(|section| section.starts_with("Parameters\n")).unwrap();
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| `")).collect();
    let expected: Vec<String> = PARAMETERS
        .iter()
        .map(|parameter| {
            let here = match parameter.treatment {
                Treatment::Engine(fields, _) => in_code(fields),
                Treatment::Front => "the front".to_owned(),
                Treatment::Refused(_) => "400".to_owned(),
            };
            format!("| {} | yes | {here} |", in_code(parameter.names))
        })
        .collect();
    assert_eq!(rows, expected);
}

/// What a request comes to.
enum Comes {
    /// The engine gets this.
    Engine(Value),
    /// The engine does not hear of it, and the answer is that of our own engine.
    Front,
    /// It is refused by this name.
    Refused(&'static str),
}

/// A request for each parameter: the name of its row, how it is asked for, what comes of it.
fn requests() -> Vec<(&'static str, &'static str, Value, Comes)> {
    use Comes::{Engine, Front, Refused};
    let openai = |row, more: Value, comes| {
        let body = with(json!({ "prompt": "Hello", "temperature": 0, "max_tokens": 4, "ignore_eos": true }), more);
        (row, COMPLETIONS, body, comes)
    };
    let kaito = |row, more: Value, comes| {
        let body = with(
            json!({ "prompt": "Hello", "do_sample": false, "max_new_tokens": 4, "return_full_text": false }),
            more,
        );
        (row, "/chat", body, comes)
    };
    let all: Vec<u32> = (0..64).collect();
    let without = |token: u32| all.iter().copied().filter(|id| *id != token).collect::<Vec<u32>>();
    vec![
        openai(
            "temperature",
            json!({ "temperature": 0.5 }),
            Engine(json!({ "temperature": 0.5, "top_p": 1.0, "top_k": 0, "min_p": 0.0 })),
        ),
        kaito("temperature", json!({}), Engine(json!({ "temperature": 0.0, "top_p": 1.0, "top_k": 0 }))),
        kaito("temperature", json!({ "do_sample": true }), Engine(json!({ "temperature": 1.0, "top_k": 10 }))),
        openai("temperature", json!({ "temperature": 0.005 }), Refused("temperature")),
        openai("top_k", json!({ "temperature": 1, "top_k": 5 }), Engine(json!({ "top_k": 5 }))),
        openai("top_p", json!({ "temperature": 1, "top_p": 0.75 }), Engine(json!({ "top_p": 0.75 }))),
        (
            "top_p",
            "/generate",
            json!({ "prompts": ["Hello"], "parameters": { "temperature": 0.5, "top_p": 0.5, "max_gen_len": 4 } }),
            Engine(json!({ "temperature": 0.5, "top_p": 0.5, "top_k": 0 })),
        ),
        openai("min_p", json!({ "temperature": 1, "min_p": 0.25 }), Engine(json!({ "min_p": 0.25 }))),
        openai(
            "repetition_penalty",
            json!({ "repetition_penalty": 1.5 }),
            Engine(json!({ "repetition_penalty": 1.5 })),
        ),
        kaito("repetition_penalty", json!({ "repetition_penalty": 1.5 }), Engine(json!({ "repetition_penalty": 1.5 }))),
        openai("presence_penalty", json!({ "presence_penalty": -1.5 }), Engine(json!({ "presence_penalty": -1.5 }))),
        openai("frequency_penalty", json!({ "frequency_penalty": 0.5 }), Engine(json!({ "frequency_penalty": 0.5 }))),
        openai(
            "logit_bias",
            json!({ "logit_bias": { "9": -100, "4": 1.5 } }),
            Engine(json!({ "logit_bias": { "4": 1.5, "9": -100.0 } })),
        ),
        openai(
            "allowed_token_ids",
            json!({ "allowed_token_ids": [4, 5] }),
            Engine(json!({ "allowed_token_ids": [4, 5] })),
        ),
        openai("bad_words", json!({ "bad_words": ["ab", "c"] }), Engine(json!({ "bad_words": ["ab", "c"] }))),
        kaito("bad_words", json!({ "bad_words_ids": [[4, 5], [6]] }), Engine(json!({ "bad_words": ["ab", "c"] }))),
        // A text of spaces alone says nothing to vLLM.
        kaito("bad_words", json!({ "bad_words_ids": [[3]] }), Engine(json!({ "allowed_token_ids": without(3) }))),
        kaito("bad_words", json!({ "bad_words_ids": [[3, 4]] }), Refused("bad_words_ids")),
        // The prompt ends with an o.
        kaito("bad_words", json!({ "bad_words_ids": [[18, 4]] }), Refused("bad_words_ids")),
        openai("max_tokens", json!({ "max_tokens": 3 }), Engine(json!({ "max_tokens": 3 }))),
        kaito("max_tokens", json!({ "max_new_tokens": null, "max_length": 8 }), Engine(json!({ "max_tokens": 2 }))),
        openai("min_tokens", json!({ "min_tokens": 2, "ignore_eos": false }), Engine(json!({ "min_tokens": 2 }))),
        // Nothing ends it before.
        openai("min_tokens", json!({ "min_tokens": 2 }), Engine(json!({ "min_tokens": 0 }))),
        openai("min_tokens", json!({ "min_tokens": 2, "stop_token_ids": [9] }), Refused("min_tokens")),
        openai(
            "min_tokens",
            json!({ "min_tokens": 2, "ignore_eos": false, "guided_choice": ["a"] }),
            Refused("min_tokens"),
        ),
        kaito("min_tokens", json!({ "min_length": 8 }), Engine(json!({ "min_tokens": 2 }))),
        openai(
            "stop_token_ids",
            json!({ "stop_token_ids": [9, 7], "ignore_eos": false }),
            Engine(json!({ "stop_token_ids": [2, 7, 9], "ignore_eos": true })),
        ),
        openai("stop_token_ids", json!({}), Engine(json!({ "stop_token_ids": [], "ignore_eos": true }))),
        kaito("stop_token_ids", json!({ "eos_token_id": [5, 6] }), Engine(json!({ "stop_token_ids": [5, 6] }))),
        openai("seed", json!({ "temperature": 1, "seed": -7 }), Engine(json!({ "seed": -7 }))),
        openai(
            "logprobs",
            json!({ "logprobs": 3 }),
            Engine(json!({ "logprobs": 3, "return_tokens_as_token_ids": true })),
        ),
        openai(
            "prompt_logprobs",
            json!({ "prompt_logprobs": 2 }),
            Engine(json!({ "prompt_logprobs": 2, "max_tokens": 1 })),
        ),
        openai("cache_salt", json!({ "cache_salt": "pepper" }), Engine(json!({}))),
        openai(
            "response_format",
            json!({ "ignore_eos": false, "guided_choice": ["a", "b"] }),
            Engine(json!({ "structured_outputs": { "choice": ["a", "b"] } })),
        ),
        openai(
            "response_format",
            json!({ "ignore_eos": false, "structured_outputs": { "regex": "^[ab]+$" } }),
            Engine(json!({ "structured_outputs": { "regex": "[ab]+" } })),
        ),
        openai(
            "response_format",
            json!({ "ignore_eos": false, "guided_json": { "type": "boolean" } }),
            Engine(json!({ "structured_outputs": { "json": { "type": "boolean" } } })),
        ),
        openai(
            "response_format",
            json!({ "ignore_eos": false, "guided_grammar": "start: \"a\"" }),
            Engine(json!({ "structured_outputs": { "grammar": "start: \"a\"" } })),
        ),
        openai("response_format", json!({ "guided_choice": ["a"] }), Refused("structured_outputs")),
        openai("n", json!({ "n": 2 }), Front),
        openai("stop", json!({ "stop": ["a", "e", "i", "o", "u"] }), Front),
        openai("skip_special_tokens", json!({ "echo": true, "skip_special_tokens": false }), Front),
        openai("use_beam_search", json!({ "use_beam_search": true, "n": 2 }), Refused("use_beam_search")),
        kaito("use_beam_search", json!({ "num_beams": 2 }), Refused("num_beams")),
        kaito(
            "use_beam_search",
            json!({ "num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 0.5 }),
            Refused("num_beam_groups"),
        ),
        kaito("typical_p", json!({ "do_sample": true, "typical_p": 0.5 }), Refused("typical_p")),
        kaito("no_repeat_ngram_size", json!({ "no_repeat_ngram_size": 2 }), Refused("no_repeat_ngram_size")),
        kaito(
            "encoder_no_repeat_ngram_size",
            json!({ "encoder_no_repeat_ngram_size": 2 }),
            Refused("encoder_no_repeat_ngram_size"),
        ),
        kaito("forced_bos_token_id", json!({ "forced_bos_token_id": 4 }), Refused("forced_bos_token_id")),
        kaito("forced_eos_token_id", json!({ "forced_eos_token_id": 4 }), Refused("forced_eos_token_id")),
        kaito("remove_invalid_values", json!({ "remove_invalid_values": true }), Refused("remove_invalid_values")),
        kaito(
            "output_scores",
            json!({ "output_scores": true, "return_dict_in_generate": true }),
            Refused("output_scores"),
        ),
        ("embeddings", "/v1/embeddings", json!({ "input": "Hello" }), Refused("embeddings")),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn each_parameter_comes_to_what_its_row_says() {
    let options = kaito_server::ServerOptions {
        embeddings: Some(kaito_engine::Pooling::Mean),
        ..kaito_testing::server::options()
    };
    let (front, own) = (Front::with(options, |upstream| upstream).await, own().await);
    let mut seen = BTreeSet::new();
    for (row, path, body, comes) in requests() {
        seen.insert(row);
        let asked = front.engine.requests().len();
        let response = front.server.post(path, &body).await;
        let requests = front.engine.requests();
        let told = requests.get(asked);
        match comes {
            Comes::Engine(fields) => {
                let told = told.unwrap_or_else(|| panic!("{path} {body}: nothing was asked"));
                for (name, value) in fields.as_object().unwrap() {
                    assert_eq!(&told[name], value, "{path} {body}: {name} in {told}");
                }
            }
            Comes::Front => {
                let answer: Value = response.json().await.unwrap();
                assert_eq!(answer["choices"], own.ask(path, &body).await["choices"], "{path} {body}");
            }
            Comes::Refused(name) => {
                let (status, said) = error(response).await;
                assert_eq!((status, told), (400, None), "{path} {body}: {said}");
                assert!(said.starts_with(&format!("`{name}` can't be used here: ")), "{said}");
                assert!(said.ends_with("Kaito's own engine (the runtime kaito) has it."), "{said}");
            }
        }
    }
    let rows: BTreeSet<&str> = PARAMETERS.iter().map(|parameter| parameter.names[0]).collect();
    assert_eq!(seen, rows, "each row has a request, and each request a row");
    own.stop().await;
    front.server.stop().await;
}

/// Requests of one salt share the engine's prefix cache with each other, and with no others; the salt itself is nobody's business.
#[tokio::test(flavor = "multi_thread")]
async fn a_salt_is_the_same_for_those_who_share_it() {
    let front = Front::start().await;
    for salt in ["a", "b", "a"] {
        let body = json!({ "prompt": "Hello", "temperature": 0, "max_tokens": 1, "cache_salt": salt });
        front.server.ask(COMPLETIONS, &body).await;
    }
    let salts: Vec<Value> = front.engine.requests().iter().map(|request| request["cache_salt"].clone()).collect();
    assert!(salts[0] == salts[2] && salts[0] != salts[1] && salts[0] != "a", "{salts:?}");
    front.server.stop().await;
}
