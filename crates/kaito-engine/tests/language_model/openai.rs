//! Parameters with the semantics of OpenAI's API, and what comes back with them.

#[path = "openai/endings.rs"]
mod endings;
#[path = "openai/scores.rs"]
mod scores;

use kaito_engine::{
    Cancel, Decoding, Delta, Error, GenerateOptions, LanguageModel, Output, OutputSequence, Prepared, StopStrings,
    StreamEvent, Token, TokenScore,
    dialects::openai::{BeamOptions, SamplingOptions},
};
use kaito_model::tokenizer::Special;
use serde_json::json;

use super::{PROMPT, answer, copy_with, load, load_for, load_from, request, tokens};

/// How the OpenAI dialects have it.
pub(super) const DECODING: Decoding = Decoding {
    skip_special_tokens: true,
    clean_up_tokenization_spaces: false,
    skip_end_tokens: true,
    after_prompt: true,
    token_bytes: true,
    by_token: true,
    include_stop_string: false,
};

pub(super) fn encode(model: &LanguageModel, text: &str) -> Vec<u32> {
    let request = request(text, json!({"max_new_tokens": 1}));
    request.prepare(model.context(), &Cancel::default()).unwrap().prompt().to_vec()
}

pub(super) fn prepare(
    model: &LanguageModel,
    prompt: Vec<u32>,
    options: SamplingOptions,
    stop: &[&str],
    decoding: Decoding,
) -> Prepared {
    let stop: Vec<String> = stop.iter().map(|&stop| stop.to_owned()).collect();
    let params = options.resolve(model.context(), &prompt).unwrap();
    Prepared::new(model.context(), prompt, params, decoding, StopStrings::new(&stop).unwrap())
}

/// The answer and the deltas before it, which must tell the same.
pub(super) async fn ask(model: &LanguageModel, prompt: Prepared) -> (Output, Vec<Delta>) {
    let sequences = prompt.sequences();
    let mut stream = model.start(vec![prompt]).unwrap();
    let mut deltas = Vec::new();
    let output = loop {
        match stream.next().await.unwrap().unwrap() {
            StreamEvent::Started | StreamEvent::PromptScored(_) => {}
            StreamEvent::Delta(delta) => deltas.push(delta),
            StreamEvent::Finished(output) => break output,
        }
    };
    assert_eq!((output.sequences.len(), output.prompts.len()), (sequences, 1));
    for (index, sequence) in output.sequences.iter().enumerate() {
        let own: Vec<&Delta> = deltas.iter().filter(|delta| delta.sequence == index).collect();
        let Some((last, before)) = own.split_last() else { continue };
        assert_eq!(own.iter().map(|delta| delta.text.as_str()).collect::<String>(), sequence.text);
        let tokens: Vec<&Token> = own.iter().filter_map(|delta| delta.token.as_ref()).collect();
        assert_eq!(tokens.iter().map(|token| token.id).collect::<Vec<_>>(), sequence.tokens);
        assert_eq!((last.finish_reason, &last.stop_reason), (Some(sequence.finish_reason), &sequence.stop_reason));
        assert!(last.token.is_none());
        assert!(before.iter().all(|delta| delta.finish_reason.is_none() && delta.stop_reason.is_none()));
        if let Some(scores) = &sequence.scores {
            let ranks = scores.iter().map(|score| score.rank);
            let scored =
                tokens.into_iter().cloned().zip(ranks).map(|(Token { id, text, log_prob, bytes, top }, rank)| {
                    TokenScore { id, text, log_prob: log_prob.unwrap(), rank, bytes, top }
                });
            assert_eq!(&scored.collect::<Vec<_>>(), scores);
        }
    }
    (output, deltas)
}

async fn complete(model: &LanguageModel, text: &str, options: SamplingOptions, stop: &[&str]) -> Output {
    ask(model, prepare(model, encode(model, text), options, stop, DECODING)).await.0
}

pub(super) fn greedy(max_tokens: usize) -> SamplingOptions {
    SamplingOptions { max_tokens: Some(max_tokens), temperature: Some(0.0), ..SamplingOptions::default() }
}

fn sampled(max_tokens: usize, seed: i64) -> SamplingOptions {
    SamplingOptions {
        max_tokens: Some(max_tokens),
        temperature: Some(1.5),
        top_p: Some(1.0),
        seed: Some(seed),
        ..SamplingOptions::default()
    }
}

/// The model's own defaults: of generation_config.json, and where it says nothing those of OpenAI.
#[tokio::test]
async fn what_a_request_leaves_open_is_the_models_to_say() {
    const NAME: &str = "llama-multi-head";
    let with = |text: &str| load_from(copy_with(NAME, &[("generation_config.json", text)]).path(), None, 8).unwrap();
    let prompt = |model: &LanguageModel| encode(model, PROMPT);
    let drawn = async |model: &LanguageModel, options: SamplingOptions| {
        let options = SamplingOptions { max_tokens: Some(24), seed: Some(11), ..options };
        ask(model, prepare(model, prompt(model), options, &[], DECODING)).await.0.sequences.remove(0).tokens
    };
    let silent = with(r#"{"eos_token_id": 2}"#);
    let spoken = with(
        r#"{"eos_token_id": 2, "temperature": 0.6, "top_p": 0.5, "top_k": 7, "min_p": 0.02, "repetition_penalty": 1.2,
            "max_length": 4096, "max_new_tokens": 3, "do_sample": false, "num_beams": 1}"#,
    );
    let explicit = |temperature, top_p, top_k, min_p, repetition_penalty| SamplingOptions {
        temperature: Some(temperature),
        top_p: Some(top_p),
        top_k: Some(top_k),
        min_p: Some(min_p),
        repetition_penalty: Some(repetition_penalty),
        ..SamplingOptions::default()
    };
    let openais = explicit(1.0, 1.0, -1, 0.0, 1.0);
    let models = explicit(0.6, 0.5, 7, 0.02, 1.2);
    let none = SamplingOptions::default();
    assert_eq!(drawn(&silent, none.clone()).await, drawn(&silent, openais.clone()).await);
    assert_eq!(drawn(&spoken, none.clone()).await, drawn(&silent, models.clone()).await);
    assert_eq!(drawn(&spoken, openais.clone()).await, drawn(&silent, openais.clone()).await);
    assert_ne!(drawn(&spoken, none.clone()).await, drawn(&silent, none.clone()).await);
    // Each of them counts by itself.
    for other in [
        SamplingOptions { temperature: Some(1.0), ..none.clone() },
        SamplingOptions { top_k: Some(1), ..none.clone() },
        SamplingOptions { min_p: Some(1.0), ..none.clone() },
        SamplingOptions { repetition_penalty: Some(3.0), ..none.clone() },
    ] {
        assert_ne!(drawn(&spoken, other.clone()).await, drawn(&spoken, none.clone()).await, "{other:?}");
    }
}

#[tokio::test]
async fn temperature_0_is_greedy_and_as_long_as_there_is_room() {
    let model = load("llama-multi-head", Some(64));
    let expected = request(PROMPT, json!({"do_sample": false, "max_new_tokens": 300}));
    let expected = answer(&model, expected).await.unwrap().0.sequences.remove(0);
    for max_tokens in [None, Some(4096)] {
        for temperature in [0.0, 1e-7] {
            let options = SamplingOptions {
                max_tokens,
                temperature: Some(temperature),
                top_k: Some(0),
                ..SamplingOptions::default()
            };
            let found = complete(&model, PROMPT, options, &[]).await.sequences.remove(0);
            assert_eq!((found.tokens, found.finish_reason), (expected.tokens.clone(), expected.finish_reason));
        }
    }
}

#[tokio::test]
async fn each_sequence_draws_from_a_stream_of_its_own_of_the_seed() {
    let model = load("llama-grouped-sharded", None);
    let drawn =
        async |n: usize, seed: i64| complete(&model, PROMPT, SamplingOptions { n, ..sampled(12, seed) }, &[]).await;
    let (five, three) = (drawn(5, -7).await, drawn(3, -7).await);
    assert_eq!(five, drawn(5, -7).await);
    assert_eq!(tokens(&five)[..3], tokens(&three));
    assert_ne!(tokens(&drawn(3, 7).await), tokens(&three));
    assert_ne!(tokens(&drawn(3, i64::MIN).await), tokens(&drawn(3, i64::MAX).await));
    let different: std::collections::BTreeSet<_> = tokens(&five).into_iter().collect();
    assert_eq!(different.len(), 5);
    assert_eq!(five.usage.generated_tokens, tokens(&five).concat().len());
}

#[tokio::test]
async fn greedy_sequences_are_all_the_same() {
    let model = load("llama-multi-head", None);
    let one = complete(&model, PROMPT, SamplingOptions { logprobs: Some(2), ..greedy(9) }, &[]).await;
    let steps = model.stats().steps_total;
    let options = SamplingOptions { logprobs: Some(2), n: 4, best_of: Some(6), ..greedy(9) };
    let (four, deltas) = ask(&model, prepare(&model, encode(&model, PROMPT), options, &[], DECODING)).await;
    assert_eq!(four.sequences, vec![one.sequences[0].clone(); 4]);
    assert_eq!(four.usage.generated_tokens, 4 * one.usage.generated_tokens);
    assert_eq!(four.usage.prompt_tokens, one.usage.prompt_tokens);
    assert!((0..4).all(|index| deltas.iter().filter(|delta| delta.sequence == index).count() == 10));
    assert!(model.stats().steps_total - steps <= 9, "they are computed once");
}

#[tokio::test]
async fn the_best_are_those_whose_tokens_are_likeliest_on_average() {
    let model = load("llama-grouped-sharded", None);
    let mean = |sequence: &OutputSequence| {
        let scores = sequence.scores.as_ref().unwrap();
        scores.iter().map(|score| f64::from(score.log_prob)).sum::<f64>() / scores.len() as f64
    };
    let all = complete(&model, PROMPT, SamplingOptions { n: 6, logprobs: Some(0), ..sampled(8, 3) }, &[]).await;
    let mut expected = all.sequences.clone();
    expected.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
    expected.truncate(2);
    for logprobs in [None, Some(0)] {
        let options = SamplingOptions { n: 2, best_of: Some(6), logprobs, ..sampled(8, 3) };
        let (best, deltas) = ask(&model, prepare(&model, encode(&model, PROMPT), options, &[], DECODING)).await;
        assert!(deltas.is_empty(), "which are the best is known at the end");
        assert_eq!(best.usage.generated_tokens, all.usage.generated_tokens);
        for (best, expected) in best.sequences.iter().zip(&expected) {
            assert_eq!((&best.tokens, &best.text), (&expected.tokens, &expected.text));
            assert_eq!(best.scores, expected.scores.clone().filter(|_| logprobs.is_some()));
        }
    }
}

#[tokio::test]
async fn bias_penalties_and_lists_of_tokens_change_what_is_chosen() {
    let model = load("llama-multi-head", None);
    let plain = complete(&model, PROMPT, greedy(20), &[]).await.sequences.remove(0);
    let banned = plain.tokens[0];
    let bias = SamplingOptions { logit_bias: vec![(banned, -100.0)], ..greedy(20) };
    assert!(!complete(&model, PROMPT, bias, &[]).await.sequences[0].tokens.contains(&banned));
    let wanted = SamplingOptions { logit_bias: vec![(300, 100.0)], ..greedy(20) };
    assert_eq!(complete(&model, PROMPT, wanted, &[]).await.sequences[0].tokens, [300; 20]);
    let allowed = SamplingOptions { allowed_token_ids: Some(vec![270, 280, 290]), ..greedy(20) };
    let allowed = complete(&model, PROMPT, allowed, &[]).await.sequences.remove(0);
    assert!(allowed.tokens.iter().all(|token| [270, 280, 290].contains(token)));
    // A penalty on repetition leaves no token more often than it would be, and here none twice in a row of the likeliest.
    let often = SamplingOptions { logit_bias: vec![(300, 30.0), (301, 29.0)], ..greedy(20) };
    let repeated = complete(&model, PROMPT, often.clone(), &[]).await.sequences.remove(0).tokens;
    assert_eq!(repeated, [300; 20]);
    let penalised = SamplingOptions { frequency_penalty: 2.0, ..often };
    let penalised = complete(&model, PROMPT, penalised, &[]).await.sequences.remove(0).tokens;
    assert!(penalised.contains(&301), "{penalised:?}");
}

#[tokio::test]
async fn bad_words_are_not_generated_at_the_beginning_of_a_text_nor_inside() {
    for name in ["falcon-7b-type", "llama-multi-head"] {
        let model = load(name, None);
        let encode = |text: &str| model.tokenizer().encode(text, Special::Skip).unwrap();
        let words = ["dog", "the", "a b", "lazy"];
        // As vLLM has it: the word alone, and behind a space where that makes other tokens, as many of them.
        let expected: Vec<Vec<u32>> = words
            .iter()
            .flat_map(|word| {
                let (alone, behind) = (encode(word), encode(&format!(" {word}")));
                let both = alone.len() == behind.len() && alone[0] != behind[0];
                if both { vec![alone, behind] } else { vec![alone] }
            })
            .collect();
        assert_eq!(expected.len() > words.len(), name == "falcon-7b-type", "{expected:?}");
        let bad_words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        // The last token of each is by far the likeliest.
        for word in &expected {
            let bias: Vec<(u32, f32)> = word.iter().map(|&token| (token, 100.0)).collect();
            let liked = SamplingOptions { logit_bias: bias, ..greedy(12) };
            let contains =
                |output: &Output| output.sequences[0].tokens.windows(word.len()).any(|tokens| tokens == word);
            let plain = complete(&model, PROMPT, liked.clone(), &[]).await;
            assert!(word.len() > 1 || contains(&plain), "{word:?} {plain:?}");
            let banned = SamplingOptions { bad_words: bad_words.clone(), ..liked };
            assert!(!contains(&complete(&model, PROMPT, banned, &[]).await), "{word:?}");
        }
        let params = SamplingOptions { bad_words, ..greedy(1) }.resolve(model.context(), &[1]).unwrap();
        assert_eq!(params.raw_processors.unwrap().bad_words, expected);
    }
}

#[tokio::test]
async fn beams_are_those_of_transformers() {
    let model = load("llama-multi-head", None);
    let expected = json!({"do_sample": false, "num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 12});
    let expected = answer(&model, request(PROMPT, expected)).await.unwrap().0;
    let options = SamplingOptions { n: 3, beams: Some(BeamOptions::default()), ..greedy(12) };
    let found = complete(&model, PROMPT, options, &[]).await;
    assert_eq!(tokens(&found), tokens(&expected));
}

#[test]
fn parameters_out_of_their_range_are_refused_by_name() {
    let model = load_for("llama-multi-head", Some(512), 8);
    let none = SamplingOptions::default;
    let vocab = model.info().vocab_size;
    let cases: Vec<(SamplingOptions, &str, String)> = vec![
        (
            SamplingOptions { temperature: Some(2.5), ..none() },
            "temperature",
            "is 2.5: it must be a number from 0 to 2".into(),
        ),
        (SamplingOptions { temperature: Some(-0.1), ..none() }, "temperature", "is -0.1".into()),
        (SamplingOptions { temperature: Some(f64::NAN), ..none() }, "temperature", "is NaN".into()),
        (
            SamplingOptions { top_p: Some(0.0), ..none() },
            "top_p",
            "is 0: it must be a number greater than 0 and at most 1".into(),
        ),
        (SamplingOptions { top_p: Some(1.1), ..none() }, "top_p", "is 1.1".into()),
        (
            SamplingOptions { top_k: Some(-2), ..none() },
            "top_k",
            "is -2: it must be an integer of at least 1, or 0 or -1".into(),
        ),
        (SamplingOptions { min_p: Some(1.5), ..none() }, "min_p", "is 1.5".into()),
        (SamplingOptions { repetition_penalty: Some(0.0), ..none() }, "repetition_penalty", "greater than 0".into()),
        (SamplingOptions { repetition_penalty: Some(f64::NAN), ..none() }, "repetition_penalty", "is NaN".into()),
        (SamplingOptions { repetition_penalty: Some(1e300), ..none() }, "repetition_penalty", "greater than 0".into()),
        (
            SamplingOptions { presence_penalty: 2.1, ..none() },
            "presence_penalty",
            "is 2.1: it must be a number from -2 to 2".into(),
        ),
        (SamplingOptions { frequency_penalty: -3.0, ..none() }, "frequency_penalty", "is -3".into()),
        (
            SamplingOptions { logit_bias: vec![(1, 101.0)], ..none() },
            "logit_bias",
            "adds 101 to the token id 1: it must be a number from -100 to 100".into(),
        ),
        (SamplingOptions { logit_bias: vec![(1, f32::NAN)], ..none() }, "logit_bias", "adds NaN".into()),
        (
            SamplingOptions { logit_bias: vec![(vocab as u32, 1.0)], ..none() },
            "logit_bias",
            format!("has the token id {vocab}: this model's ids are 0 to {}", vocab - 1),
        ),
        (SamplingOptions { logit_bias: vec![(1, 1.0); 1025], ..none() }, "logit_bias", "has 1025 tokens".into()),
        (SamplingOptions { n: 9, ..none() }, "n", "is 9: it must be an integer from 1 to 8".into()),
        (
            SamplingOptions { n: 3, best_of: Some(2), ..none() },
            "best_of",
            "is 2: it must be an integer from 3 to 8".into(),
        ),
        (SamplingOptions { best_of: Some(9), ..none() }, "best_of", "is 9".into()),
        (
            SamplingOptions { logprobs: Some(21), ..none() },
            "logprobs",
            "is 21: it must be an integer from 0 to 20".into(),
        ),
        (SamplingOptions { prompt_logprobs: Some(21), ..none() }, "prompt_logprobs", "is 21".into()),
        (
            SamplingOptions { allowed_token_ids: Some(vec![]), ..none() },
            "allowed_token_ids",
            "at least one token id".into(),
        ),
        (
            SamplingOptions { allowed_token_ids: Some(vec![9999]), ..none() },
            "allowed_token_ids",
            "has the token id 9999".into(),
        ),
        (
            SamplingOptions { stop_token_ids: vec![1; 257], ..none() },
            "stop_token_ids",
            "has 257 ids: it must have at most 256".into(),
        ),
        (SamplingOptions { bad_words: vec![" ".into()], ..none() }, "bad_words", "has a word without text".into()),
        (SamplingOptions { bad_words: vec!["x".into(); 1025], ..none() }, "bad_words", "has 1025 words".into()),
        (
            SamplingOptions { bad_words: vec!["x".repeat(70_000)], ..none() },
            "bad_words",
            "has 70000 bytes in all".into(),
        ),
        (
            SamplingOptions { max_tokens: Some(3), min_tokens: 4, ..none() },
            "min_tokens",
            "is 4: it must be an integer of at most `max_tokens`, which is 3".into(),
        ),
        (
            SamplingOptions { n: 2, logprobs: Some(1), beams: Some(BeamOptions::default()), ..none() },
            "logprobs",
            "can't stand beside `use_beam_search`".into(),
        ),
    ];
    for (options, name, expected) in cases {
        let what = format!("{options:?}");
        let error = options.resolve(model.context(), &[1, 300]).unwrap_err();
        let sentence = error.to_string();
        assert_eq!(error.parameter(), Some(name), "{what}: {sentence}");
        assert!(sentence.starts_with(&format!("`{name}` ")) && sentence.contains(&expected), "{what}: {sentence}");
        assert_eq!(Error::from(error).kind(), kaito_engine::ErrorKind::InvalidRequest);
    }
    let unknown = GenerateOptions::from_json(json!({"no_such": 1}).as_object().unwrap()).unwrap_err();
    assert_eq!(unknown.parameter(), Some("no_such"));
}
