//! A loaded model from end to end, on the tiny models of the parity fixtures: what their cases do not ask.
#![allow(clippy::unwrap_used, clippy::panic, reason = "the lints spare test functions, but not their helpers")]

#[path = "language_model/compute.rs"]
mod compute;
#[path = "language_model/meta.rs"]
mod meta;
#[path = "language_model/openai.rs"]
mod openai;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use kaito_engine::dialects::transformers::TextRequest;
use kaito_engine::{
    Cancel, ChatMessage, ComputeChoice, Decoding, Error, ErrorKind, FinishReason, GenerateOptions, LanguageModel,
    LoadOptions, Output, Prompt, Request, Stream, StreamEvent,
};
use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/fixtures").join(name)
}

/// A copy of a model, with each of `files` replaced by another text or, where it is empty, gone.
fn copy_with(name: &str, files: &[(&str, &str)]) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fixture(name).read_dir().unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    for (file, text) in files {
        let path = copy.path().join(file);
        if text.is_empty() { std::fs::remove_file(path).unwrap() } else { std::fs::write(path, text).unwrap() }
    }
    copy
}

fn load(name: &str, max_seq_len: Option<usize>) -> LanguageModel {
    load_for(name, max_seq_len, 8)
}

fn load_for(name: &str, max_seq_len: Option<usize>, max_batch_size: usize) -> LanguageModel {
    load_from(&fixture(name), max_seq_len, max_batch_size).unwrap()
}

fn load_from(directory: &Path, max_seq_len: Option<usize>, max_batch_size: usize) -> Result<LanguageModel, Error> {
    let options = LoadOptions {
        threads: NonZeroUsize::new(2),
        max_seq_len,
        max_batch_size,
        kv_cache_memory: Some(64 << 20),
        compute: ComputeChoice::Exact,
        ..LoadOptions::default()
    };
    let told = std::sync::Mutex::new(Vec::new());
    let model = LanguageModel::load(directory, &options, &|part| told.lock().unwrap().push(part))?;
    let told = told.into_inner().unwrap();
    assert!(told.is_sorted() && told.first() == Some(&0.0) && told.last() == Some(&1.0), "{told:?}");
    Ok(model)
}

fn options_of(options: &Value) -> GenerateOptions {
    GenerateOptions::from_json(options.as_object().unwrap()).unwrap()
}

fn request(prompt: &str, options: Value) -> Request {
    Request { prompt: prompt.into(), options: options_of(&options), ..Request::default() }
}

fn tokens(output: &Output) -> Vec<&[u32]> {
    output.sequences.iter().map(|sequence| sequence.tokens.as_slice()).collect()
}

/// The answer, and what was streamed of each sequence.
async fn answer(model: &LanguageModel, request: Request) -> Result<(Output, BTreeMap<usize, String>), Error> {
    answer_of(model.generate(request)?).await
}

/// The same for a request whose prompts are ready.
async fn answer_of(mut stream: Stream) -> Result<(Output, BTreeMap<usize, String>), Error> {
    let mut streamed: BTreeMap<usize, String> = BTreeMap::new();
    let mut ended = BTreeMap::new();
    let mut started = false;
    while let Some(event) = stream.next().await {
        match event? {
            StreamEvent::PromptScored(_) => {}
            StreamEvent::Started => assert!(!std::mem::replace(&mut started, true), "a request starts once"),
            StreamEvent::Delta(delta) => {
                assert!(started, "nothing comes before the start");
                streamed.entry(delta.sequence).or_default().push_str(&delta.text);
                if let Some(reason) = delta.finish_reason {
                    assert_eq!(ended.insert(delta.sequence, reason), None, "a sequence ends once");
                }
            }
            StreamEvent::Finished(output) => {
                assert!(started && stream.next().await.is_none());
                for (sequence, reason) in ended {
                    assert_eq!(output.sequences[sequence].finish_reason, reason);
                }
                return Ok((output, streamed));
            }
        }
    }
    panic!("the stream ended without an answer")
}

async fn refusal_of_text(model: &LanguageModel, request: TextRequest) -> String {
    let error = request.prepare(model.context(), &Cancel::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    error.to_string()
}

async fn refusal(model: &LanguageModel, request: Request) -> String {
    let error = answer(model, request).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    error.to_string()
}

const PROMPT: &str = "a b c a b c a b";

/// transformers makes its generation config of config.json then, with all that is in it.
#[tokio::test]
async fn generation_fields_of_config_json_count_where_there_is_no_generation_config() {
    const NAME: &str = "llama-tied-bin-f16";
    let greedy = || request("the same the same", json!({"do_sample": false, "max_new_tokens": 24}));
    let copy = copy_with(NAME, &[("generation_config.json", "{\"eos_token_id\": 2, \"no_repeat_ngram_size\": 1}")]);
    let model = load_from(copy.path(), None, 8).unwrap();
    let expected = answer(&model, greedy()).await.unwrap().0.sequences;
    let text = std::fs::read_to_string(fixture(NAME).join("config.json")).unwrap();
    let config = text.replacen('{', "{\"no_repeat_ngram_size\": 1, \"seed\": 7, \"repetition_penalty\": 2.5,", 1);
    let copy = copy_with(NAME, &[("generation_config.json", ""), ("config.json", &config)]);
    let model = load_from(copy.path(), None, 8).unwrap();
    assert_eq!(answer(&model, greedy()).await.unwrap().0.sequences, expected);
    let copy = copy_with(NAME, &[("generation_config.json", "")]);
    let model = load_from(copy.path(), None, 8).unwrap();
    assert_ne!(answer(&model, greedy()).await.unwrap().0.sequences, expected, "the field does nothing for this prompt");
}

#[tokio::test]
async fn numbers_that_json_has_not_matter_only_where_they_count() {
    const NAME: &str = "falcon-7b-type";
    let with = |file: &str, field: &str| {
        let text = std::fs::read_to_string(fixture(NAME).join(file)).unwrap();
        // The tokenizer's own reader takes unknown fields in few places only.
        let place = if file == "tokenizer.json" { "\"special\": true" } else { "{" };
        let field = if file == "tokenizer.json" { format!("{place}, {field}") } else { format!("{{{field},") };
        assert!(text.contains(place));
        copy_with(NAME, &[(file, &text.replacen(place, &field, 1))])
    };
    let greedy = || request("Say NaN and Infinity", json!({"do_sample": false, "max_new_tokens": 8}));
    let expected = answer(&load(NAME, None), greedy()).await.unwrap().0;
    for (file, field) in [
        ("config.json", "\"summary_range\": [0.0, Infinity]"),
        ("generation_config.json", "\"eta_cutoff\": NaN, \"temperature\": Infinity"),
        ("tokenizer_config.json", "\"of nobody\": -Infinity, \"name\": \"NaN\""),
        ("tokenizer.json", "\"of nobody\": [NaN, {\"a\": -Infinity}]"),
        ("special_tokens_map.json", "\"of nobody\": NaN"),
    ] {
        let copy = with(file, field);
        let output = answer(&load_from(copy.path(), None, 8).unwrap(), greedy()).await.unwrap().0;
        assert_eq!(output, expected, "{file}");
    }
    for (file, field, expected) in [
        (
            "generation_config.json",
            "\"length_penalty\": -Infinity",
            "length_penalty is -Infinity, expected a finite number",
        ),
        ("config.json", "\"layer_norm_epsilon_\": 1, \"rope_theta\": NaN", "rope_theta is NaN, expected a number"),
        ("tokenizer_config.json", "\"unk_token\": NaN", "unk_token is neither a text nor a token"),
    ] {
        let copy = with(file, field);
        let error = load_from(copy.path(), None, 8).err().unwrap().to_string();
        assert!(error.contains(expected) && error.contains(file), "{error}");
    }
}

#[tokio::test]
async fn a_stop_string_ends_the_text_before_it() {
    let model = load("llama-multi-head", None);
    let greedy = json!({"do_sample": false, "max_new_tokens": 20});
    let plain = request(PROMPT, greedy.clone());
    let (whole, streamed) = answer(&model, plain.clone()).await.unwrap();
    let whole = &whole.sequences[0];
    assert_eq!(streamed[&0], whole.text);
    // Some characters from the middle, which span tokens.
    let middle: Vec<char> = whole.text.chars().collect();
    let stop: String = middle[middle.len() / 2..middle.len() / 2 + 5].iter().collect();
    let expected = &whole.text[..whole.text.find(&stop).unwrap()];
    for options in [greedy, json!({"do_sample": false, "max_new_tokens": 20, "num_beams": 1, "output_scores": true})] {
        let stopping = Request { stop: vec![stop.clone()], options: options_of(&options), ..plain.clone() };
        let (output, streamed) = answer(&model, stopping).await.unwrap();
        let cut = &output.sequences[0];
        assert_eq!((cut.text.as_str(), streamed[&0].as_str()), (expected, expected), "stop at {stop:?}");
        assert_eq!(cut.finish_reason, FinishReason::Stop);
        assert!(cut.tokens.len() < whole.tokens.len() && whole.tokens.starts_with(&cut.tokens));
        assert_eq!(output.usage.generated_tokens, cut.tokens.len());
        assert_eq!(cut.scores.as_ref().map_or(cut.tokens.len(), Vec::len), cut.tokens.len());
        assert_eq!(cut.scores.is_some(), options.get("output_scores").is_some());
    }
}

#[tokio::test]
async fn tokens_come_with_their_log_probabilities_as_they_are_chosen() {
    let model = load("llama-multi-head", None);
    let options = json!({"seed": 3, "max_new_tokens": 8, "num_return_sequences": 2, "output_scores": true});
    let mut stream = model.generate(request(PROMPT, options)).unwrap();
    let mut streamed: BTreeMap<usize, Vec<(u32, Option<f32>)>> = BTreeMap::new();
    let output = loop {
        match stream.next().await.unwrap().unwrap() {
            StreamEvent::Started | StreamEvent::PromptScored(_) => {}
            StreamEvent::Delta(delta) => {
                let token = delta.token.map(|token| (token.id, token.log_prob));
                streamed.entry(delta.sequence).or_default().extend(token);
            }
            StreamEvent::Finished(output) => break output,
        }
    };
    for (index, sequence) in output.sequences.iter().enumerate() {
        let scores: Vec<_> = sequence.scores.iter().flatten().map(|score| (score.id, Some(score.log_prob))).collect();
        assert!(!scores.is_empty());
        assert_eq!(streamed[&index], scores);
    }
}

#[tokio::test]
async fn beams_are_cut_at_stop_strings_too_and_come_without_deltas() {
    let model = load("llama-multi-head", None);
    let options = json!({"do_sample": false, "max_new_tokens": 12, "num_beams": 3, "num_return_sequences": 2});
    let plain = request(PROMPT, options);
    let (whole, streamed) = answer(&model, plain.clone()).await.unwrap();
    assert!(streamed.is_empty());
    assert_eq!(whole.sequences.iter().filter(|sequence| sequence.beam_score.is_some()).count(), 2);
    let whole = &whole.sequences[0].text;
    let stop: String = whole.chars().skip(4).take(3).collect();
    let (cut, _) = answer(&model, Request { stop: vec![stop.clone()], ..plain }).await.unwrap();
    let cut = &cut.sequences[0];
    assert_eq!(cut.text, whole[..whole.find(&stop).unwrap()]);
    assert_eq!(cut.finish_reason, FinishReason::Stop);
}

#[tokio::test]
async fn a_seed_makes_sampling_repeatable_alone_and_in_company() {
    let model = load("llama-grouped-sharded", None);
    let drawn = |seed: u64| {
        let options =
            json!({"max_new_tokens": 16, "top_k": 0, "temperature": 1.5, "num_return_sequences": 3, "seed": seed});
        answer(&model, request(PROMPT, options))
    };
    let alone = drawn(1).await.unwrap().0;
    let (together, other) = tokio::join!(drawn(1), drawn(2));
    assert_eq!(together.unwrap().0.sequences, alone.sequences);
    assert_ne!(other.unwrap().0.sequences, alone.sequences);
    assert_eq!(alone.sequences.len(), 3);
}

#[tokio::test]
async fn more_sequences_than_run_together_are_those_that_would() {
    let drawn = async |max_batch_size: usize| {
        let model = load_for("llama-grouped-sharded", None, max_batch_size);
        let options =
            json!({"max_new_tokens": 9, "top_k": 0, "temperature": 1.5, "num_return_sequences": 20, "seed": 6});
        let (output, streamed) = answer(&model, request(PROMPT, options)).await.unwrap();
        assert_eq!(streamed.len(), 20);
        output
    };
    let (together, waves) = (drawn(20).await, drawn(3).await);
    assert_eq!(together, waves);
    assert_eq!(waves.usage.generated_tokens, tokens(&waves).concat().len());
}

/// Whatever is there to be done when a client comes back, or at the end of beams, whose texts come whole: other tasks of the
/// same thread get their turns.
#[tokio::test]
async fn long_answers_let_other_tasks_go_on() {
    let model = load("llama-multi-head", None);
    let turns = Arc::new(AtomicUsize::new(0));
    let counted = turns.clone();
    let other = tokio::spawn(async move {
        loop {
            counted.fetch_add(1, Relaxed);
            tokio::task::yield_now().await;
        }
    });
    for options in [
        json!({"do_sample": false, "num_beams": 4, "num_return_sequences": 4, "max_length": 450, "eos_token_id": []}),
        json!({"do_sample": true, "num_return_sequences": 4, "max_length": 450, "eos_token_id": []}),
    ] {
        let mut stream = model.generate(request(PROMPT, options)).unwrap();
        model.drained().await;
        let before = turns.load(Relaxed);
        while stream.next().await.is_some() {}
        // Some 1700 tokens, in pieces of 512.
        let turns = turns.load(Relaxed) - before;
        assert!(turns >= 3, "{turns} turns");
    }
    other.abort();
}

#[tokio::test]
async fn requests_that_cannot_be_served_are_refused_with_a_reason() {
    let model = load("llama-multi-head", Some(64));
    let prompt = |prompt: &str| request(prompt, json!({}));
    let long = "word ".repeat(200);
    let message = refusal(&model, prompt(&long)).await;
    assert!(message.starts_with("the prompt has ") && message.contains("longest sequence is 64"), "{message}");
    let text = |input: Prompt, options| TextRequest { input, options: options_of(&options), ..TextRequest::default() };
    let hole = |options| TextRequest {
        handle_long_generation: Some("hole".into()),
        ..text(Prompt::Text(long.clone()), options)
    };
    let prepared = hole(json!({"max_new_tokens": 4, "do_sample": false}));
    let prepared = prepared.prepare(model.context(), &Cancel::default()).unwrap();
    let (output, _) = answer_of(model.start(vec![prepared.prompt]).unwrap()).await.unwrap();
    assert_eq!(output.usage.prompt_tokens, 60);
    assert_eq!(
        refusal_of_text(&model, hole(json!({"max_new_tokens": 64}))).await,
        "`max_new_tokens` is 64, which asks for 64 new tokens: with `handle_long_generation` \"hole\" they must be fewer \
         than this model's longest sequence, 64"
    );
    let other = TextRequest { handle_long_generation: Some("cut".into()), ..text("x".into(), json!({})) };
    assert_eq!(
        refusal_of_text(&model, other).await,
        "`handle_long_generation` is \"cut\": it must be \"hole\" or null"
    );
    let messages = |messages: Vec<ChatMessage>| text(messages.into(), json!({}));
    assert_eq!(
        refusal_of_text(&model, messages(vec![])).await,
        "`messages` is empty: it must hold at least one message"
    );
    let hello = || ChatMessage { role: "user".into(), content: "hello".into() };
    assert_eq!(
        refusal_of_text(&model, TextRequest { prefix: Some("x".into()), ..messages(vec![hello()]) }).await,
        "`prefix` can't stand beside `messages`: put its text into a message"
    );
    let message = refusal(&model, request("x", json!({"num_beams": 9}))).await;
    assert_eq!(message, "the request asks for 9 beams, but at most 8 run here (`max_batch_size`)");
    for (options, expected) in [
        (json!({"num_beams": 8, "max_new_tokens": 60, "output_scores": true, "num_return_sequences": 2}), None),
        (
            json!({"num_return_sequences": 4000, "max_new_tokens": 20, "output_scores": true}),
            Some(
                "`output_scores` is true: with it, the request may ask for at most 65536 new tokens, but it asks for up to \
                 80000",
            ),
        ),
    ] {
        let answer = answer(&model, request("x", options)).await;
        assert_eq!(answer.map(drop).map_err(|error| error.to_string()).err().as_deref(), expected);
    }
    let stop = |stop: Vec<String>| Request { stop, ..prompt("x") };
    assert_eq!(
        refusal(&model, stop(vec!["x".repeat(70_000)])).await,
        "`stop` has 70000 bytes in all: it must have at most 65536"
    );
    // The model is none the worse for it.
    assert!(answer(&model, request("x", json!({"max_new_tokens": 2}))).await.is_ok());
}

#[tokio::test]
async fn a_dropped_stream_frees_its_pages() {
    let model = load("llama-multi-head", None);
    let mut stream = model.generate(request(PROMPT, json!({"max_length": 2000}))).unwrap();
    assert!(stream.next().await.is_some());
    drop(stream);
    model.drained().await;
    assert_eq!((model.stats().pages_used, model.stats().running), (0, 0));
    model.stop_accepting();
    assert_eq!(refusal_kind(&model).await, ErrorKind::ShuttingDown);
}

#[tokio::test]
async fn drafts_change_no_text_only_the_number_of_steps() {
    // Its greedy text soon repeats one token: drafts are right whenever one is made, and a busy machine, where they seldom
    // pay, makes one in sixteen steps all the same.
    let directory = fixture("falcon-rw-type");
    let mut outcomes = Vec::new();
    for speculate in [false, true] {
        let threads = NonZeroUsize::new(2);
        let options = LoadOptions { speculate, threads, compute: ComputeChoice::Exact, ..LoadOptions::default() };
        let model = LanguageModel::load(&directory, &options, &|_| ()).unwrap();
        let options = json!({"do_sample": false, "max_length": 500, "min_length": 500});
        let (output, streamed) = answer(&model, request(PROMPT, options)).await.unwrap();
        model.drained().await;
        let stats = model.stats();
        assert_eq!(stats.generated_tokens_total, output.usage.generated_tokens as u64);
        outcomes.push(((output, streamed), stats));
    }
    let (plain, drafted) = (&outcomes[0], &outcomes[1]);
    assert_eq!(plain.0, drafted.0);
    assert_eq!((plain.1.proposed_tokens_total, plain.1.accepted_tokens_total), (0, 0));
    assert!(drafted.1.accepted_tokens_total > 0, "{:?}", drafted.1);
    assert_eq!(drafted.1.steps_total, plain.1.steps_total - drafted.1.accepted_tokens_total);
}

#[tokio::test]
async fn a_prompt_that_was_there_before_is_not_computed_again() {
    let model = load("llama-multi-head", None);
    let prompt = "one two three four five six seven eight nine ten ".repeat(4);
    let options = json!({"do_sample": false, "max_new_tokens": 4});
    let first = answer(&model, request(&prompt, options.clone())).await.unwrap();
    assert_eq!(model.stats().prompt_tokens_reused_total, 0);
    let second = answer(&model, request(&prompt, options)).await.unwrap();
    assert_eq!((&first.0.sequences, &first.1), (&second.0.sequences, &second.1));
    let (stats, page) = (model.stats(), 16);
    let pages = (first.0.usage.prompt_tokens - 1) / page;
    assert!(pages > 1);
    assert_eq!(stats.prompt_tokens_reused_total, (pages * page) as u64);
    assert_eq!((first.0.usage.cached_tokens, second.0.usage.cached_tokens), (0, pages * page));
    assert_eq!(stats.prompt_tokens_total, 2 * first.0.usage.prompt_tokens as u64);
    assert!(stats.pages_used == 0 && stats.pages_known >= pages, "{stats:?}");
}

async fn refusal_kind(model: &LanguageModel) -> ErrorKind {
    answer(model, request("x", json!({}))).await.unwrap_err().kind()
}

/// Prompts that were made in several ways are one request, each with its sequences in its place.
#[tokio::test]
async fn prompts_of_one_request_keep_their_order() {
    let model = load("llama-multi-head", None);
    let options = json!({"seed": 1, "max_new_tokens": 6, "num_return_sequences": 3});
    let prepare = |prompt: &str, options: &Value| {
        request(prompt, options.clone()).prepare(model.context(), &Cancel::default()).unwrap()
    };
    let greedy = json!({"do_sample": false, "max_new_tokens": 6});
    let alone = [answer(&model, request(PROMPT, options.clone())).await.unwrap().0, {
        let tokens = prepare("Kaito runs", &greedy).prompt().to_vec();
        let request = Request { prompt: tokens.into(), options: options_of(&greedy), ..Request::default() };
        answer(&model, request).await.unwrap().0
    }];
    let prompts = vec![prepare(PROMPT, &options), prepare("Kaito runs", &greedy)];
    assert_eq!(prompts.iter().map(kaito_engine::Prepared::sequences).collect::<Vec<_>>(), [3, 1]);
    let (output, streamed) = answer_of(model.start(prompts).unwrap()).await.unwrap();
    assert_eq!(tokens(&output), [tokens(&alone[0]), tokens(&alone[1])].concat());
    assert_eq!(
        streamed.into_values().collect::<Vec<_>>(),
        output.sequences.iter().map(|s| s.text.clone()).collect::<Vec<_>>()
    );
    let sum = |count: fn(&kaito_engine::Usage) -> usize| alone.iter().map(|output| count(&output.usage)).sum::<usize>();
    assert_eq!(output.usage.prompt_tokens, sum(|usage| usage.prompt_tokens));
    assert_eq!(output.usage.generated_tokens, sum(|usage| usage.generated_tokens));
    // An answer of one's own is as an answer of the model's.
    let whole = model.start(vec![prepare("Kaito runs", &greedy)]).unwrap().output().await.unwrap();
    assert_eq!(whole.sequences, alone[1].sequences);
    let decoding = Decoding { after_prompt: false, ..Decoding::default() };
    let by_itself = Request { decoding, ..request("Kaito runs", greedy) };
    let (by_itself, streamed) = answer(&model, by_itself).await.unwrap();
    assert_eq!(by_itself.sequences[0].tokens, whole.sequences[0].tokens);
    assert_eq!(by_itself.sequences[0].text, streamed[&0]);
}

/// Also those of tokens that are a part of a character, of which an answer at a high temperature is full.
#[tokio::test]
async fn tokens_come_with_the_bytes_of_the_text_where_they_are_asked_for() {
    let model = load("falcon-7b-type", None);
    let options = json!({
        "do_sample": true, "temperature": 9.0, "top_k": 0, "seed": 3, "max_new_tokens": 60, "output_scores": true,
    });
    for token_bytes in [true, false] {
        let decoding = Decoding { skip_special_tokens: false, token_bytes, ..Decoding::default() };
        let mut stream = model.generate(Request { decoding, ..request(PROMPT, options.clone()) }).unwrap();
        let mut streamed = Vec::new();
        let sequence = loop {
            match stream.next().await.unwrap().unwrap() {
                StreamEvent::Started | StreamEvent::PromptScored(_) => {}
                StreamEvent::Delta(delta) => streamed.extend(delta.token.map(|token| token.bytes)),
                StreamEvent::Finished(mut output) => break output.sequences.remove(0),
            }
        };
        let scores = sequence.scores.unwrap();
        assert!(scores.len() > 20, "{} tokens", scores.len());
        assert_eq!(scores.iter().map(|score| score.bytes.clone()).collect::<Vec<_>>(), streamed);
        let likely = scores.iter().flat_map(|score| &score.top);
        assert!(likely.map(|likely| &likely.bytes).chain(&streamed).all(|bytes| bytes.is_some() == token_bytes));
        if token_bytes {
            let tokens: Vec<Vec<u8>> = streamed.into_iter().flatten().collect();
            assert!(tokens.iter().any(|bytes| str::from_utf8(bytes).is_err()), "no token is a part of a character");
            assert_eq!(String::from_utf8_lossy(&tokens.concat()), sequence.text);
        }
    }
}
