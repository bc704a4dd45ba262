//! No number in a request decides how much memory is asked for: each is clamped or refused before.
//!
//! All parameters take their extremes, alone and several together, in every kind of generation, under an allocator that
//! watches what is asked for.

#![allow(clippy::unwrap_used, clippy::panic, reason = "the lints spare test functions, but not their helpers")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    num::NonZeroUsize,
    path::Path,
    ptr,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
};

use kaito_engine::{
    Cancel, Decoding, Error, ErrorKind, GenerateOptions, LanguageModel, LoadOptions, PARAMETER_NAMES, Prepared,
    Request, StopStrings, StreamEvent,
    dialects::{
        meta::{CompletionRequest, MetaOptions},
        openai::{BeamOptions, SamplingOptions},
    },
    testing::{MAX_BAD_WORD_IDS, MAX_END_TOKENS, MAX_SEQUENCES},
};
use serde_json::{Map, Value, json};

/// Most bytes that may be asked for at once, and that a request may hold: little more than the largest lists that are allowed.
const MOST_AT_ONCE: usize = 4 << 20;
const MOST_HELD: usize = 24 << 20;
/// What is not even tried.
const TOO_MUCH: usize = 1 << 30;

/// Notes what is asked for while a request is served.
struct Watching;

static WATCHED: AtomicBool = AtomicBool::new(false);
static LARGEST: AtomicUsize = AtomicUsize::new(0);
static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

fn take(size: usize) -> bool {
    if WATCHED.load(Relaxed) {
        LARGEST.fetch_max(size, Relaxed);
    }
    let held = HELD.fetch_add(size, Relaxed) + size;
    MOST.fetch_max(held, Relaxed);
    size < TOO_MUCH
}

// SAFETY: every call is passed on to the system's allocator as it came, or refused.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        if take(layout.size()) { unsafe { System.alloc(layout) } } else { ptr::null_mut() }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        if take(layout.size()) { unsafe { System.alloc_zeroed(layout) } } else { ptr::null_mut() }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !take(size) {
            return ptr::null_mut();
        }
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(place, layout, size) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// What is held is all that this process holds.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Runs `work` and checks how much memory it asks for.
async fn watched<T>(what: &str, work: impl Future<Output = T>) -> T {
    let before = HELD.load(Relaxed);
    MOST.store(before, Relaxed);
    LARGEST.store(0, Relaxed);
    WATCHED.store(true, Relaxed);
    let done = work.await;
    WATCHED.store(false, Relaxed);
    let (largest, held) = (LARGEST.load(Relaxed), MOST.load(Relaxed).saturating_sub(before));
    assert!(largest <= MOST_AT_ONCE, "{what}: {largest} bytes at once");
    assert!(held <= MOST_HELD, "{what}: {held} bytes");
    done
}

fn model() -> LanguageModel {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/fixtures/mistral-window");
    let options = LoadOptions {
        threads: NonZeroUsize::new(2),
        max_seq_len: Some(128),
        max_batch_size: 8,
        kv_cache_memory: Some(16 << 20),
        ..LoadOptions::default()
    };
    LanguageModel::load(&directory, &options, &|_| ()).unwrap()
}

/// Numbers at the edges of what numbers can be, and what is not one.
fn extremes() -> Vec<Value> {
    let integers =
        [0, 1, 2, 255, 256, 257, 1 << 31, (1 << 31) - 1, (1 << 32) - 1, 1 << 32, 1_000_000_000, 1 << 53, u64::MAX];
    let numbers =
        [-1.0, -0.0, 1e-320, 1e-38, 1e-7, 0.5, 0.999_999_99, 1.000_000_1, 1e10, 3.4e38, 1e39, 1.7e308, 4_294_967_296.5];
    let negative = [i64::MIN, -1];
    let others = [json!(true), json!(false), json!("never"), json!("NaN"), json!([]), json!([[]])];
    let numbers: Vec<Value> = integers
        .map(Value::from)
        .into_iter()
        .chain(numbers.map(Value::from))
        .chain(negative.map(Value::from))
        .collect();
    let lists = numbers.iter().flat_map(|number| [json!([number]), json!([[number]]), json!([[1, number], [number]])]);
    let long = [
        json!([MAX_SEQUENCES, MAX_SEQUENCES + 1]),
        json!(MAX_SEQUENCES),
        json!(vec![7; MAX_END_TOKENS]),
        json!(vec![7; MAX_END_TOKENS + 1]),
        json!(vec![[7]; MAX_BAD_WORD_IDS]),
        json!([vec![7; MAX_BAD_WORD_IDS]]),
        json!(vec![[7]; MAX_BAD_WORD_IDS + 1]),
        json!([vec![7; 200_000]]),
    ];
    numbers.iter().cloned().chain(lists).chain(others).chain(long).collect()
}

/// Every kind of generation.
fn kinds() -> Vec<Value> {
    vec![
        json!({"do_sample": false}),
        json!({"do_sample": true, "seed": 1}),
        json!({"do_sample": true, "seed": 1, "num_return_sequences": 5, "output_scores": true}),
        json!({"do_sample": false, "num_beams": 4}),
        json!({"do_sample": true, "seed": 1, "num_beams": 3, "num_return_sequences": 2}),
        json!({"do_sample": false, "num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}),
    ]
}

/// Asks for text and takes it, or as much as is enough to see what the request holds.
async fn ask(model: &LanguageModel, options: &Map<String, Value>) -> Result<(), Error> {
    let mut stream = model.generate(Request {
        prompt: "a b c a b c".into(),
        options: GenerateOptions::from_json(options)?,
        stop: vec!["never seen".to_owned()],
        ..Request::default()
    })?;
    let mut events = 0;
    while let Some(event) = stream.next().await {
        events += 1;
        if matches!(event?, StreamEvent::Finished(_)) || events > 40 {
            break;
        }
    }
    Ok(())
}

/// A request is served or refused as a bad one; `what` it was stands in the failure.
fn judge(what: &str, answer: Result<(), Error>) -> bool {
    if let Err(error) = &answer {
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{what}: {error}");
        assert!(error.to_string().len() < 1200, "{what}: {error}");
    }
    answer.is_ok()
}

fn short(value: &Value) -> String {
    value.to_string().chars().take(60).collect()
}

fn with(kind: &Value, changes: &[(&str, &Value)]) -> Map<String, Value> {
    let mut options = json!({"max_new_tokens": 3}).as_object().unwrap().clone();
    options.extend(kind.as_object().unwrap().clone());
    for (name, value) in changes {
        if ["max_length", "min_length"].contains(name) {
            options.remove("max_new_tokens");
        }
        options.insert((*name).to_owned(), (*value).clone());
    }
    options
}

#[tokio::test]
async fn no_parameter_of_text_generation_decides_how_much_memory_is_asked_for() {
    let _turn = TURN.lock().await;
    let model = model();
    let (extremes, kinds) = (extremes(), kinds());
    let mut served = 0;
    for name in PARAMETER_NAMES {
        for value in &extremes {
            let mut refused = 0;
            for kind in &kinds {
                let options = with(kind, &[(name, value)]);
                let what = format!("{name} {} in {kind}", short(value));
                let answer = watched(&what, ask(&model, &options)).await;
                served += usize::from(judge(&what, answer));
                // What no kind takes is wrong by itself.
                refused += usize::from(GenerateOptions::from_json(&options).is_err());
                if refused > 0 {
                    break;
                }
            }
        }
    }
    assert!(served > 500, "{served} were served");
    // Several at a time, drawn by a linear congruential generator.
    let mut state = 7u64;
    let mut draw = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let allowed: Vec<(&str, &Value)> = PARAMETER_NAMES
        .iter()
        .flat_map(|name| extremes.iter().map(move |value| (*name, value)))
        .filter(|change| GenerateOptions::from_json(&with(&json!({}), &[*change])).is_ok())
        .collect();
    for _ in 0..400 {
        let changes: Vec<_> = (0..2 + draw(4)).map(|_| allowed[draw(allowed.len())]).collect();
        let options = with(&kinds[draw(kinds.len())], &changes);
        let what = short(&Value::Object(options.clone()));
        let answer = watched(&what, ask(&model, &options)).await;
        judge(&what, answer);
    }
    model.drained().await;
    assert_eq!(model.stats().pages_used, 0);
}

#[tokio::test]
async fn no_parameter_of_metas_completions_decides_how_much_memory_is_asked_for() {
    let _turn = TURN.lock().await;
    let model = model();
    let counts = [0, 1, 2, 8, 9, 128, 129, (1 << 31) - 1, 1_000_000_000, (1 << 32) - 1, 1 << 53, usize::MAX];
    let numbers = [
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        -1.0,
        -0.0,
        0.0,
        1e-320,
        1e-50,
        1e-38,
        0.5,
        1.0,
        1.5,
        1e38,
        1e39,
        f64::MAX,
    ];
    let base = || MetaOptions { max_gen_len: Some(3), seed: Some(1), ..MetaOptions::default() };
    let all = counts.iter().flat_map(|&count| {
        [
            MetaOptions { max_gen_len: Some(count), ..base() },
            MetaOptions { max_seq_len: Some(count), ..base() },
            MetaOptions { max_seq_len: Some(count), max_gen_len: Some(usize::MAX), ..base() },
            MetaOptions { max_batch_size: Some(count), ..base() },
            MetaOptions { seed: Some(count as u64), ..base() },
        ]
    });
    let all = all.chain(numbers.iter().flat_map(|&number| {
        [
            MetaOptions { temperature: Some(number), ..base() },
            MetaOptions { top_p: Some(number), ..base() },
            MetaOptions { temperature: Some(number), top_p: Some(number), ..base() },
        ]
    }));
    let mut served = 0;
    for options in all {
        let what = format!("{options:?}");
        let prompts = vec!["a b c".to_owned(), "d e".to_owned()];
        let answer = watched(&what, async {
            let request = CompletionRequest { prompts, options };
            let prompts = request.prepare(model.context(), &Cancel::default())?;
            model.start(prompts)?.output().await.map(drop)
        });
        served += usize::from(judge(&what, answer.await));
    }
    assert!(served > 20, "{served} were served");
    model.drained().await;
    assert_eq!(model.stats().pages_used, 0);
}

#[tokio::test]
async fn no_parameter_of_openais_decides_how_much_memory_is_asked_for() {
    let _turn = TURN.lock().await;
    let model = model();
    let counts = [0, 1, 2, 8, 9, 20, 21, 128, 129, (1 << 31) - 1, 1 << 32, 1 << 53, usize::MAX];
    let numbers =
        [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, -0.0, 0.0, 1e-320, 1e-38, 0.5, 1.0, 2.0, 1e38, f64::MAX];
    let lists = [vec![], vec![u32::MAX], vec![0], vec![7; 256], vec![7; 257], vec![7; 100_000], (0..300).collect()];
    let base = || SamplingOptions { max_tokens: Some(3), seed: Some(1), ..SamplingOptions::default() };
    let all = counts.iter().flat_map(|&count| {
        [
            SamplingOptions { max_tokens: Some(count), ..base() },
            SamplingOptions { max_tokens: Some(count), n: 8, logprobs: Some(20), ..base() },
            SamplingOptions { min_tokens: count, max_tokens: None, ..base() },
            SamplingOptions { n: count, ..base() },
            SamplingOptions { best_of: Some(count), ..base() },
            SamplingOptions { n: count, temperature: Some(0.0), ..base() },
            SamplingOptions { n: count, beams: Some(BeamOptions::default()), ..base() },
            SamplingOptions { logprobs: Some(count), ..base() },
            SamplingOptions { prompt_logprobs: Some(count), max_tokens: Some(0), ..base() },
            SamplingOptions { seed: Some(count as i64), ..base() },
            SamplingOptions { top_k: Some(count as i64), ..base() },
        ]
    });
    let all = all.chain(numbers.iter().flat_map(|&number| {
        [
            SamplingOptions { temperature: Some(number), ..base() },
            SamplingOptions { top_p: Some(number), ..base() },
            SamplingOptions { min_p: Some(number), ..base() },
            SamplingOptions { repetition_penalty: Some(number), ..base() },
            SamplingOptions { presence_penalty: number, ..base() },
            SamplingOptions { frequency_penalty: number, ..base() },
            SamplingOptions { logit_bias: vec![(7, number as f32)], ..base() },
        ]
    }));
    let all = all.chain(lists.iter().flat_map(|list| {
        [
            SamplingOptions { stop_token_ids: list.clone(), ..base() },
            SamplingOptions { allowed_token_ids: Some(list.clone()), ..base() },
            SamplingOptions { logit_bias: list.iter().map(|&token| (token, 1.0)).collect(), ..base() },
            SamplingOptions { bad_words: list.iter().map(|token| token.to_string()).collect(), ..base() },
            SamplingOptions { bad_words: vec!["a b ".repeat(list.len())], ..base() },
        ]
    }));
    let mut served = 0;
    for options in all {
        let what: String = format!("{options:?}").chars().take(600).collect();
        let answer = watched(&what, async {
            let prompt: Vec<u32> = vec![1, 261, 287, 302, 261, 287];
            let params = options.resolve(model.context(), &prompt)?;
            let decoding = Decoding { by_token: true, token_bytes: true, ..Decoding::default() };
            let prompt = Prepared::new(model.context(), prompt, params, decoding, StopStrings::default());
            model.start(vec![prompt])?.output().await.map(drop)
        });
        served += usize::from(judge(&what, answer.await));
    }
    assert!(served > 80, "{served} were served");
    model.drained().await;
    assert_eq!(model.stats().pages_used, 0);
}
