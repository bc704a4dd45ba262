//! The engine's thread asks for no memory while it generates.
//!
//! Steady state is every step between the second token of the request that was admitted last and the first one that ends:
//! pages of the KV cache are filled, taken from the free ones and evicted from the prefix cache; drafts are proposed, accepted
//! and rejected; tokens are chosen, counted and handed to their clients. Memory is taken where a request is submitted (by the
//! thread that submits it), where it is admitted, where it ends, where its next wave of sequences begins, and where a client
//! is more than a thousand tokens behind. Beams, which are copied at every step, constraints, which bring code of their own,
//! and scores of tokens, whose clients are handed vectors, are not steady in this sense.

#![allow(clippy::unwrap_used, clippy::panic, reason = "the lints spare test functions, but not their helpers")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    pin::pin,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use kaito_engine::{
    Decoding, GenerateOptions, KvDType, LanguageModel, LoadOptions, Prepared, Quantization, Request, StopStrings,
    Stream, StreamEvent, dialects::openai::SamplingOptions,
};
use kaito_model::tokenizer::Special;
use serde_json::{Value, json};

/// Counts what each thread asks for.
struct Counting;

thread_local! {
    static ASKED: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that ends may free and ask when its own variables are gone.
    let _ = ASKED.try_with(|asked| asked.set(asked.get() + 1));
}

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.realloc(place, layout, size) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Tokens of each request.
const TOKENS: usize = 180;
/// Tokens of each request before the steady state.
const WARM_UP: usize = 3;
/// Most tokens that a step adds to a request.
const STEP: usize = 9;
const PAGE: usize = 16;
/// Much longer than anything takes; without an end a deadlock would hang the test.
const LIMIT: Duration = Duration::from_secs(60);

/// Wakes the client, and blocks the engine's thread, which calls it, until the client has taken all there is. So the client
/// knows how often the engine had asked for memory at each token.
#[derive(Default)]
struct Rendezvous {
    /// Whether the engine waits in [`Wake::wake`]; `None` when the client has left.
    engine_waits: Mutex<Option<bool>>,
    changed: Condvar,
    asked: AtomicU64,
}

impl Wake for Rendezvous {
    fn wake(self: Arc<Self>) {
        self.asked.store(ASKED.get(), SeqCst);
        let mut waits = self.engine_waits.lock().unwrap();
        if waits.is_some() {
            *waits = Some(true);
            self.changed.notify_all();
            let left = self.changed.wait_timeout_while(waits, LIMIT, |waits| *waits == Some(true)).unwrap();
            assert!(!left.1.timed_out(), "the client does not answer");
        }
    }
}

impl Rendezvous {
    fn let_engine_go(&self, client_stays: bool) {
        *self.engine_waits.lock().unwrap() = client_stays.then_some(false);
        self.changed.notify_all();
    }

    fn wait_for_engine(&self) {
        let waits = self.engine_waits.lock().unwrap();
        let came = self.changed.wait_timeout_while(waits, LIMIT, |waits| *waits == Some(false)).unwrap();
        assert!(!came.1.timed_out(), "the engine gives no tokens");
    }
}

/// A stream and how many tokens came.
struct Client {
    stream: Stream,
    tokens: usize,
}

impl Client {
    /// Takes all that is there.
    fn poll(&mut self, context: &mut Context) {
        while let Poll::Ready(event) = pin!(self.stream.next()).poll(context) {
            match event.unwrap().unwrap() {
                StreamEvent::Started | StreamEvent::PromptScored(_) => {}
                StreamEvent::Delta(delta) => self.tokens += usize::from(delta.token.is_some()),
                StreamEvent::Finished(_) => panic!("a request ended after {} tokens", self.tokens),
            }
        }
    }
}

fn prompt(request: usize) -> String {
    // Some two pages that all prompts begin with, and an end of its own. Short, since the first request goes on generating
    // while the others' prompts are computed.
    format!("Over the lazy dog, and over it once more: {request}")
}

/// How tokens are chosen.
#[derive(Debug)]
enum Options {
    Transformers(Value),
    OpenAi(Box<SamplingOptions>),
}

impl From<Value> for Options {
    fn from(options: Value) -> Self {
        Self::Transformers(options)
    }
}

fn submit(model: &LanguageModel, prompt: String, options: &Options) -> Stream {
    let options = match options {
        Options::Transformers(options) => options,
        Options::OpenAi(options) => {
            let options = SamplingOptions { max_tokens: Some(TOKENS), min_tokens: TOKENS, ..(**options).clone() };
            let prompt = model.tokenizer().encode(&prompt, Special::Add).unwrap();
            let params = options.resolve(model.context(), &prompt).unwrap();
            let decoding = Decoding { by_token: true, ..Decoding::default() };
            let prompt = Prepared::new(model.context(), prompt, params, decoding, StopStrings::default());
            return model.start(vec![prompt]).unwrap();
        }
    };
    let mut options = options.as_object().unwrap().clone();
    // End tokens are banned up to the end.
    options.extend([("max_new_tokens".to_owned(), TOKENS.into()), ("min_new_tokens".to_owned(), TOKENS.into())]);
    let options = GenerateOptions::from_json(&options).unwrap();
    model.generate(Request { prompt: prompt.into(), options, ..Request::default() }).unwrap()
}

fn load(directory: &Path, options: &LoadOptions) -> LanguageModel {
    LanguageModel::load(directory, options, &|_| {}).unwrap()
}

/// What the engine's thread asks for from the end of the warm-up on, while `requests` are generated together: each count
/// that a client saw there.
fn steady_counts(model: &LanguageModel, requests: usize, options: &Options) -> Vec<u64> {
    let stats = model.stats();
    assert!(stats.pages_known > stats.pages_total / 2, "most pages are in the prefix cache: {stats:?}");
    let rendezvous = Arc::new(Rendezvous { engine_waits: Mutex::new(Some(false)), ..Rendezvous::default() });
    let waker = Waker::from(rendezvous.clone());
    let mut context = Context::from_waker(&waker);
    // However long this thread is kept from running, no request gets ahead of those that are not submitted yet.
    let keeps_engine = keep_engine(model, &prompt(requests), options, &mut context);
    rendezvous.wait_for_engine();
    let mut clients: Vec<Client> =
        (0..requests).map(|at| Client { stream: submit(model, prompt(at), options), tokens: 0 }).collect();
    clients.iter_mut().for_each(|client| client.poll(&mut context));
    drop(keeps_engine);
    rendezvous.let_engine_go(true);
    let mut counts = Vec::new();
    while clients.iter().all(|client| client.tokens + 2 * STEP < TOKENS) {
        rendezvous.wait_for_engine();
        clients.iter_mut().for_each(|client| client.poll(&mut context));
        if clients.iter().all(|client| client.tokens >= WARM_UP) {
            counts.push(rendezvous.asked.load(SeqCst));
        }
        rendezvous.let_engine_go(true);
    }
    rendezvous.let_engine_go(false);
    drop(clients);
    runtime().block_on(model.drained());
    counts
}

/// A request whose next token wakes the client. The first pages of its prompt are in the prefix cache from then on.
fn keep_engine(model: &LanguageModel, prompt: &str, options: &Options, context: &mut Context) -> Stream {
    loop {
        let mut stream = submit(model, prompt.to_owned(), options);
        loop {
            let event = pin!(stream.next()).poll(context);
            match event {
                Poll::Pending => return stream,
                Poll::Ready(Some(Ok(StreamEvent::Finished(_)))) => break,
                Poll::Ready(event) => _ = event.unwrap().unwrap(),
            }
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/fixtures").join(name)
}

/// A model with pages for `requests` requests and few more, most of which are in the prefix cache.
fn used_model(directory: &Path, requests: usize, options: LoadOptions) -> LanguageModel {
    let options = LoadOptions {
        threads: NonZeroUsize::new(2),
        max_seq_len: Some(256),
        max_batch_size: requests,
        kv_cache_memory: Some(64 << 20),
        ..options
    };
    let large = load(directory, &options);
    let page = (64 << 20) / large.stats().pages_total as u64;
    let pages = requests * 256usize.div_ceil(PAGE);
    let model = load(directory, &LoadOptions { kv_cache_memory: Some(page * (pages as u64 + 1)), ..options });
    for text in 0..2 * requests {
        let mut stream =
            submit(&model, format!("{text} is where another text begins"), &json!({"do_sample": false}).into());
        runtime().block_on(async { while stream.next().await.is_some() {} });
    }
    model
}

fn asks_for_nothing(name: &str, options: LoadOptions) {
    let sampled = json!({
        "do_sample": true, "seed": 5, "temperature": 0.9, "top_k": 40, "top_p": 0.95, "repetition_penalty": 1.1,
    });
    let unwarped = json!({"do_sample": true, "seed": 6, "top_k": 0, "no_repeat_ngram_size": 4, "typical_p": 0.9});
    let raw = SamplingOptions {
        temperature: Some(0.8),
        top_p: Some(0.9),
        min_p: Some(0.01),
        repetition_penalty: Some(1.1),
        presence_penalty: 0.5,
        frequency_penalty: 0.5,
        logit_bias: vec![(270, 1.0), (280, -100.0)],
        allowed_token_ids: Some((3..290).collect()),
        bad_words: vec!["dog".to_owned(), "the lazy".to_owned()],
        stop_token_ids: vec![7],
        seed: Some(-5),
        ..SamplingOptions::default()
    };
    let all: [Options; 4] =
        [json!({"do_sample": false}).into(), sampled.into(), unwarped.into(), Options::OpenAi(Box::new(raw))];
    let mut accepted = 0;
    for requests in [1, 16] {
        let model = used_model(&fixture(name), requests, options.clone());
        for options in &all {
            let reused = model.stats().prompt_tokens_reused_total;
            let counts = steady_counts(&model, requests, options);
            assert!(counts.len() > 5, "{} tokens were watched", counts.len());
            assert!(counts[0] > 0, "what is asked for on the engine's thread is counted: its start asks for much");
            let at = counts.windows(2).position(|pair| pair[0] != pair[1]);
            assert_eq!(
                at,
                None,
                "{name}, {requests} requests, {options:?}: {} asked for",
                counts[counts.len() - 1] - counts[0]
            );
            assert!(
                model.stats().prompt_tokens_reused_total > reused,
                "no prompt began with pages of the prefix cache"
            );
        }
        accepted += model.stats().accepted_tokens_total;
    }
    assert!(accepted > 0, "{name}: no tokens were proposed and right");
}

#[test]
fn plain_weights() {
    asks_for_nothing("mistral-window", LoadOptions::default());
}

#[test]
fn weights_of_8_bits_and_keys_of_8_bits() {
    let options =
        LoadOptions { quantize: Some(Quantization::Int8), kv_dtype: Some(KvDType::Int8), ..LoadOptions::default() };
    asks_for_nothing("llama-multi-head", options);
}

#[test]
fn weights_of_4_bits() {
    asks_for_nothing(
        "falcon-40b-type-bf16",
        LoadOptions { quantize: Some(Quantization::Int4), ..LoadOptions::default() },
    );
}
