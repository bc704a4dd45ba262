//! What the engine makes of its kernels: `cargo run --release -p kaito-engine --example engine_speed -- MODEL WHAT [int8|int4]`.
//!
//! MODEL is a directory of weights; WHAT is one of `start`, `prefix`, `speculation`, `choosing`, `sharing` and `budgets`. What is
//! compared runs interleaved, and medians are printed; the figures of different runs should not be compared.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a measurement that fails has nothing better to do than to stop"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use kaito_engine::{
    GenerateOptions, LanguageModel, LoadOptions, Quantization, Request, StepBudget, Stream, StreamEvent, devices,
};
use serde_json::{Value, json};

const ROUNDS: usize = 5;

#[tokio::main]
async fn main() {
    let began = Instant::now();
    let mut arguments = std::env::args().skip(1);
    let usage = "arguments: MODEL start|prefix|speculation|choosing|sharing|budgets [int8|int4]";
    let (directory, what) = (PathBuf::from(arguments.next().expect(usage)), arguments.next().expect(usage));
    let options = LoadOptions {
        quantize: arguments.next().map(|name| if name == "int4" { Quantization::Int4 } else { Quantization::Int8 }),
        quantized_cache: Some(std::env::temp_dir().join("kaito-engine-speed")),
        kv_cache_memory: Some(1 << 30),
        max_seq_len: Some(1024),
        max_batch_size: 16,
        ..LoadOptions::default()
    };
    match what.as_str() {
        "start" => start(&directory, &options, began).await,
        "prefix" => prefix(&load(&directory, &options)).await,
        "speculation" => speculation(&directory, &options).await,
        "choosing" => choosing(&load(&directory, &options)).await,
        "sharing" => sharing(&load(&directory, &options)).await,
        "budgets" => budgets(&directory, &options).await,
        _ => eprintln!("{usage}"),
    }
}

fn load(directory: &Path, options: &LoadOptions) -> LanguageModel {
    LanguageModel::load(directory, options, &|_| {}).expect("the model loads")
}

fn submit(model: &LanguageModel, prompt: &str, tokens: usize, options: Value) -> Stream {
    let mut options = options.as_object().unwrap().clone();
    options.extend([("max_new_tokens".to_owned(), tokens.into()), ("min_new_tokens".to_owned(), tokens.into())]);
    let options = GenerateOptions::from_json(&options).unwrap();
    let request = Request { prompt: prompt.into(), options, ..Request::default() };
    model.generate(request).expect("the request is served")
}

fn greedy() -> Value {
    json!({"do_sample": false})
}

/// When each token came, and how many tokens the prompt had.
async fn times(mut stream: Stream) -> (Vec<Instant>, usize) {
    let mut times = Vec::new();
    while let Some(event) = stream.next().await {
        match event.expect("the request ends well") {
            StreamEvent::Started | StreamEvent::PromptScored(_) => {}
            StreamEvent::Delta(delta) => times.extend(delta.token.map(|_| Instant::now())),
            StreamEvent::Finished(output) => return (times, output.usage.prompt_tokens),
        }
    }
    unreachable!("a stream ends with its last event")
}

async fn first_token(model: &LanguageModel, prompt: &str) -> (f64, usize) {
    let began = Instant::now();
    let (times, prompt_tokens) = times(submit(model, prompt, 1, greedy())).await;
    ((times[0] - began).as_secs_f64(), prompt_tokens)
}

/// Tokens a second of `requests` requests for `tokens` tokens each, without the time of their prompts.
async fn decode(model: &LanguageModel, requests: usize, tokens: usize, options: &Value) -> f64 {
    let streams: Vec<_> =
        (0..requests).map(|at| tokio::spawn(times(submit(model, &words(at, 8), tokens, options.clone())))).collect();
    let mut all = Vec::new();
    for stream in streams {
        all.push(stream.await.unwrap().0);
    }
    let began = all.iter().map(|times| times[0]).max().unwrap();
    let ended = all.iter().map(|times| times[times.len() - 1]).max().unwrap();
    let counted = all.iter().flatten().filter(|&&at| at > began).count();
    counted as f64 / (ended - began).as_secs_f64()
}

/// A text of `count` words that none of another `seed` begins like.
fn words(seed: usize, count: usize) -> String {
    const WORDS: [&str; 8] = ["river", "stone", "light", "garden", "winter", "paper", "song", "market"];
    let mut state = seed as u64 + 1;
    let mut text = format!("{seed}");
    for _ in 0..count {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text = text + " " + WORDS[(state >> 61) as usize];
    }
    text
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn status(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0) << 10
}

async fn start(directory: &Path, options: &LoadOptions, began: Instant) {
    let model = load(directory, options);
    let loaded = began.elapsed().as_secs_f64();
    let (_, prompt_tokens) = first_token(&model, "river").await;
    let first = began.elapsed().as_secs_f64();
    let (short, again) = first_token(&model, "stone").await;
    let weights = model.info().weights_bytes as f64;
    println!("loaded after {loaded:.2} s, first token of a prompt of {prompt_tokens} after {first:.2} s");
    println!("a prompt of {again} afterwards takes {short:.3} s");
    println!(
        "weights {:.0} MiB, peak resident memory {:.0} MiB, {:.3} of the weights",
        weights / f64::from(1 << 20),
        status("VmHWM") as f64 / f64::from(1 << 20),
        status("VmHWM") as f64 / weights
    );
}

async fn prefix(model: &LanguageModel) {
    let (mut fresh, mut known, mut tokens) = (Vec::new(), Vec::new(), 0);
    for round in 0..ROUNDS {
        let begin = words(100 + round, 300);
        let (seconds, count) = first_token(model, &format!("{begin} and so")).await;
        fresh.push(seconds);
        tokens = count;
        known.push(first_token(model, &format!("{begin} but then")).await.0);
    }
    let reused = model.stats().prompt_tokens_reused_total / ROUNDS as u64;
    let (fresh, known) = (median(fresh), median(known));
    println!(
        "first token of {tokens}: {fresh:.3} s; with {reused} of them known {known:.3} s, {:.1} times as fast",
        fresh / known
    );
}

async fn speculation(directory: &Path, options: &LoadOptions) {
    let models = [false, true].map(|speculate| load(directory, &LoadOptions { speculate, ..options.clone() }));
    let mut speeds = [Vec::new(), Vec::new()];
    let steps = models.each_ref().map(|model| model.stats().steps_total);
    for round in 0..ROUNDS {
        for (model, speeds) in models.iter().zip(&mut speeds) {
            let text = [words(round, 20), words(round, 20), words(round, 10)].join(". ");
            let (times, _) = times(submit(model, &text, 64, greedy())).await;
            speeds.push(63.0 / (times[63] - times[0]).as_secs_f64());
        }
    }
    for ((model, speeds), (before, name)) in models.iter().zip(speeds).zip(steps.iter().zip(["off", "on"])) {
        let stats = model.stats();
        println!(
            "{name}: {:.2} tokens/s, {} steps for {} tokens, {} of {} draft tokens right",
            median(speeds),
            stats.steps_total - before,
            stats.generated_tokens_total,
            stats.accepted_tokens_total,
            stats.proposed_tokens_total
        );
    }
}

async fn choosing(model: &LanguageModel) {
    let ways = [
        ("greedy", greedy()),
        ("top-k 50", json!({"do_sample": true, "seed": 1, "top_k": 50})),
        ("top-p 0.9", json!({"do_sample": true, "seed": 1, "top_k": 0, "top_p": 0.9})),
        (
            "top-p 0.9, penalty",
            json!({"do_sample": true, "seed": 1, "top_k": 0, "top_p": 0.9, "repetition_penalty": 1.1}),
        ),
    ];
    for requests in [1, 16] {
        let mut speeds = vec![Vec::new(); ways.len()];
        for _ in 0..ROUNDS {
            for ((_, options), speeds) in ways.iter().zip(&mut speeds) {
                speeds.push(decode(model, requests, 24, options).await);
            }
        }
        for ((name, _), speeds) in ways.iter().zip(speeds) {
            println!("{requests} sequences, {name}: {:.2} tokens/s", median(speeds));
        }
    }
}

/// A process that keeps one core busy until this is dropped.
struct Busy(Child);

impl Busy {
    fn on_core(core: usize) -> Self {
        let script = "while :; do :; done";
        Self(Command::new("taskset").args(["-c", &core.to_string(), "sh", "-c", script]).spawn().expect("taskset runs"))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn sharing(model: &LanguageModel) {
    let (mut quiet, mut shared) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        quiet.push(decode(model, 1, 32, &greedy()).await);
        let _busy = Busy::on_core(0);
        shared.push(decode(model, 1, 32, &greedy()).await);
    }
    let (quiet, shared) = (median(quiet), median(shared));
    println!("quiet {quiet:.2} tokens/s, beside a busy process on core 0 {shared:.2}: {:.2} of it", shared / quiet);
}

/// How long a running stream waits between two tokens while a long prompt comes, and how long that prompt takes.
async fn budgets(directory: &Path, options: &LoadOptions) {
    let default = devices().first().expect("a device").0.step_budget;
    println!("{:>8} {:>8} {:>12} {:>12} {:>12}", "tokens", "beside", "alone, s", "beside, s", "longest gap");
    for tokens in [128, 256, 512] {
        for beside in [16, 32, 64, 128] {
            let step_budget = StepBudget { tokens, tokens_beside_streams: beside, ..default };
            let model = load(directory, &LoadOptions { step_budget: Some(step_budget), ..options.clone() });
            let (alone, _) = first_token(&model, &words(1, 300)).await;
            let stream = tokio::spawn(times(submit(&model, "river", 64, greedy())));
            tokio::time::sleep(Duration::from_millis(500)).await;
            let began = Instant::now();
            let (together, _) = first_token(&model, &words(2, 300)).await;
            let ended = Instant::now();
            let (times, _) = stream.await.unwrap();
            let gaps = times.windows(2).filter(|pair| pair[1] > began && pair[0] < ended);
            let longest = gaps.map(|pair| (pair[1] - pair[0]).as_secs_f64()).fold(0.0, f64::max);
            println!("{tokens:>8} {beside:>8} {alone:>12.3} {together:>12.3} {longest:>12.3}");
        }
    }
}
