//! A model that is loaded and runs: what a server, a terminal or a test talks to.

use std::{
    fs::File,
    io::{self, Read},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use kaito_kernels::{DType, FileChange, KvDType, MappedFile, Quantization, ThreadPool};
use serde_json::{Map, Value};

use crate::{
    Cancel, Error,
    backend::cpu::CpuBackend,
    capacity::{self, Capacity, PAGE_SIZE},
    decoder::{Decoder, DecoderLimits},
    engine::{Engine, EngineStats, GenerationRequest, GenerationStream},
    generate::{GenerateOptions, PARAMETER_NAMES},
    kv_cache::KvCache,
    quantized::Quantize,
    request::{Prepared, Request, RequestContext},
    rope::RopeTable,
    scheduler::{Scheduler, SchedulerLimits},
    stream::Stream,
};
use kaito_model::{
    config::ModelConfig,
    family, json,
    tokenizer::Tokenizer,
    weights::{Linear, ModelWeights, Weight},
};

/// How far the load is when configuration and tokenizer are read, when weights are quantised, and when they are in memory.
const LOADED_CONFIGURATION: f32 = 0.1;
const QUANTIZED: f32 = 0.9;
const LOADED_WEIGHTS: f32 = 0.95;
/// Largest `generation_config.json` or `config.json` that is read.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// Element type of the weights. All arithmetic is in 32-bit floats, whichever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DTypeChoice {
    /// The checkpoint's own.
    #[default]
    Auto,
    /// 32-bit floats. Narrower weights stay where they are: each is widened, exactly, as it is used, which gives the same
    /// bits as a widened copy of them.
    F32,
    /// The upper half of 32-bit floats.
    Bf16,
    /// 16-bit floats.
    F16,
}

/// How much a step computes at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepBudget {
    /// Tokens where nobody waits for a next token; bounds how long a step is.
    pub tokens: usize,
    /// Tokens of prompts beside sequences that wait for their next token. A step reads all weights once for some tokens
    /// too, so it takes little longer than a step without them.
    pub tokens_beside_streams: usize,
    /// Proposed tokens: more of them would cost what they bring, since a step of some twenty tokens is bound by arithmetic.
    pub drafts: usize,
}

impl Default for StepBudget {
    fn default() -> Self {
        Self { tokens: 256, tokens_beside_streams: 32, drafts: 16 }
    }
}

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Element type of the weights; one that is neither the checkpoint's own nor f32 costs a copy of them.
    pub dtype: DTypeChoice,
    /// Whether and how the matrices of the layers are quantised; the output head is in 8 bits then.
    pub quantize: Option<Quantization>,
    /// Folder in which quantised weights are kept for the next start; they are made at every start where it is `None`.
    pub quantized_cache: Option<PathBuf>,
    /// Element type of keys and values.
    pub kv_dtype: KvDType,
    /// Threads that compute; all cores where it is `None`.
    pub threads: Option<NonZeroUsize>,
    /// Longest sequence, in tokens; the model's own where it is `None`.
    pub max_seq_len: Option<usize>,
    /// Most sequences that run at the same time.
    pub max_batch_size: usize,
    /// Bytes for keys and values; a share of the free memory where it is `None`.
    pub kv_cache_memory: Option<u64>,
    /// Most requests that wait.
    pub max_waiting: usize,
    /// Whether tokens may be proposed and verified several at once where that is expected to be faster. What comes out
    /// is the same.
    pub speculate: bool,
    /// How much a step computes at most.
    pub step_budget: StepBudget,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            dtype: DTypeChoice::Auto,
            quantize: None,
            quantized_cache: None,
            kv_dtype: KvDType::F32,
            threads: None,
            max_seq_len: None,
            max_batch_size: 32,
            kv_cache_memory: None,
            max_waiting: 256,
            speculate: true,
            step_budget: StepBudget::default(),
        }
    }
}

/// What a loaded model is.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// Name of the family.
    pub family: &'static str,
    /// Directory of the weights.
    pub directory: PathBuf,
    /// Number of parameters, tied ones once.
    pub parameters: u64,
    /// Bytes of the weight matrices as they are computed with.
    pub weights_bytes: u64,
    /// Element type of the weight matrices that are not quantised.
    pub dtype: DType,
    /// How the matrices of the layers are quantised.
    pub quantization: Option<Quantization>,
    /// Element type of keys and values.
    pub kv_dtype: KvDType,
    /// Rows of the output head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_layers: usize,
    /// Bytes of the weight matrices that every step reads: all but the embedding, of which it takes rows.
    pub step_bytes: u64,
    /// Bytes of the keys and values of one token.
    pub kv_bytes_per_token: u64,
    /// How many tokens back a token looks, where that is bounded.
    pub attention_window: Option<usize>,
    /// Threads that compute.
    pub threads: usize,
    /// Longest sequence, in tokens.
    pub max_seq_len: usize,
    /// Most sequences that run at the same time.
    pub max_batch_size: usize,
    /// Whether conversations can be rendered by a chat template of the model's.
    pub chat_template: bool,
}

impl ModelInfo {
    /// What most of the weights are held in, for people: `int4` or `bf16`, say.
    pub fn precision(&self) -> String {
        self.quantization.map_or_else(|| self.dtype.to_string(), |quantization| quantization.to_string())
    }
}

/// A running model; cheap to clone. The last clone that is dropped ends its thread.
#[derive(Clone)]
pub struct LanguageModel(Arc<Inner>);

struct Inner {
    engine: Engine,
    info: ModelInfo,
    context: RequestContext,
    /// Those that the weights are read from at every step.
    mapped_files: Vec<Arc<MappedFile>>,
}

impl LanguageModel {
    /// Loads a model's directory and starts its engine. `progress` is told the part that is done, from 0 to 1.
    ///
    /// # Errors
    /// Files that are missing, damaged or of a kind that isn't supported, and settings that do not fit this machine.
    pub fn load(directory: &Path, options: &LoadOptions, progress: &(dyn Fn(f32) + Sync)) -> Result<Self, Error> {
        progress(0.0);
        if options.max_batch_size == 0 || options.max_waiting == 0 {
            let name = if options.max_batch_size == 0 { "max_batch_size" } else { "max_waiting" };
            return Err(Error::Load(format!("{name} is 0: it must be at least 1")));
        }
        let (config, mut weights) = family::load(directory)?;
        progress(0.05);
        let tokenizer = Tokenizer::open(directory)?;
        let ModelDefaults { options: mut defaults, bos_token_id } = ModelDefaults::read(directory)?;
        keep_known_tokens(&mut defaults, config.vocab_size);
        progress(LOADED_CONFIGURATION);
        let threads = options.threads.unwrap_or_else(|| thread::available_parallelism().unwrap_or(NonZeroUsize::MIN));
        // Asked before the weights are mapped in, which makes them memory in use.
        let available = capacity::available_memory();
        let pool = ThreadPool::new(threads);
        let mut done = LOADED_CONFIGURATION;
        if let Some(quantization) = options.quantize {
            let quantize = Quantize {
                quantization,
                cache: options.quantized_cache.as_deref(),
                family: config.family,
                pool: &pool,
                fits: Quantize::bytes(quantization, &mut weights) <= available,
                progress: &|part| progress(LOADED_CONFIGURATION + part * (QUANTIZED - LOADED_CONFIGURATION)),
            };
            quantize.apply(&mut weights)?;
            done = QUANTIZED;
        }
        let progress_from = |part: f32| progress(done + part * (LOADED_WEIGHTS - done));
        let (dtype, mapped_bytes) = prepare_weights(&mut weights, options.dtype, &pool, available, &progress_from);
        let counted = count(&weights);
        let available = available.saturating_sub(mapped_bytes);
        let capacity = Capacity::plan(
            &config,
            options.kv_dtype,
            options.max_seq_len,
            options.max_batch_size,
            options.kv_cache_memory,
            available,
        )?;
        let rows = options.max_batch_size;
        let info = ModelInfo {
            family: config.family,
            directory: directory.to_owned(),
            parameters: counted.parameters,
            weights_bytes: counted.bytes,
            dtype,
            quantization: options.quantize,
            kv_dtype: options.kv_dtype,
            vocab_size: config.vocab_size,
            hidden_size: config.hidden_size,
            num_layers: config.num_layers,
            step_bytes: counted.step_bytes,
            kv_bytes_per_token: capacity::bytes_per_token(&config, options.kv_dtype),
            attention_window: config.sliding_window,
            threads: threads.get(),
            max_seq_len: capacity.max_seq_len,
            max_batch_size: rows,
            chat_template: tokenizer.has_chat_template(),
        };
        let mapped_files = weights.mapped_files();
        let engine = start_engine(config, weights, capacity, pool, options)?;
        let end_tokens =
            defaults.eos_token_id.clone().unwrap_or_else(|| tokenizer.eos_token_id().into_iter().collect());
        tracing::info!(
            family = info.family, directory = %directory.display(), parameters = info.parameters,
            precision = info.precision(),
            weights_mib = info.weights_bytes >> 20, kv_cache_mib = capacity.bytes >> 20, kv_dtype = %info.kv_dtype, pages = capacity.pages,
            max_seq_len = info.max_seq_len, max_batch_size = rows, threads, "the model is loaded"
        );
        progress(1.0);
        let context = RequestContext {
            tokenizer,
            defaults,
            bos_token_id,
            end_tokens,
            vocab_size: info.vocab_size,
            max_seq_len: info.max_seq_len,
            max_batch_size: info.max_batch_size,
        };
        Ok(Self(Arc::new(Inner { engine, info, context, mapped_files })))
    }

    /// What the model is.
    pub fn info(&self) -> &ModelInfo {
        &self.0.info
    }

    /// A snapshot of the engine for health checks and metrics.
    pub fn stats(&self) -> EngineStats {
        self.0.engine.stats()
    }

    /// What happened to the files that the weights are read from since they were loaded: as a rule nothing. After a change
    /// the model's answers mean nothing, and the process may end when it reads what is no longer there.
    pub fn changed_files(&self) -> Vec<FileChange> {
        self.0.mapped_files.iter().filter_map(|file| file.change()).collect()
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.0.context.tokenizer
    }

    /// Refuses requests from now on; those that were accepted run to their end.
    pub fn stop_accepting(&self) {
        self.0.engine.stop_accepting();
    }

    /// Waits until no request is open.
    pub async fn drained(&self) {
        self.0.engine.drained().await;
    }

    /// What of the model decides how a request becomes tokens.
    pub fn context(&self) -> &RequestContext {
        &self.0.context
    }

    /// Answers a request.
    ///
    /// # Errors
    /// A request that can't be served as it stands, a full queue, an engine that shuts down.
    pub fn generate(&self, request: Request) -> Result<Stream, Error> {
        self.start(vec![request.prepare(self.context(), &Cancel::default())?])
    }

    /// Queues the prompts of one request, whatever made them; if one is refused, none runs.
    ///
    /// # Errors
    /// As for [`Self::generate`].
    pub fn start(&self, prompts: Vec<Prepared>) -> Result<Stream, Error> {
        Stream::start(prompts, |request| self.0.engine.submit(request))
    }

    /// Generates tokens from tokens, without text.
    ///
    /// # Errors
    /// As for [`Self::generate`].
    #[doc(hidden)]
    pub fn generate_tokens(&self, request: GenerationRequest) -> Result<GenerationStream, Error> {
        self.0.engine.submit(request)
    }
}

fn start_engine(
    config: ModelConfig,
    weights: ModelWeights,
    capacity: Capacity,
    pool: ThreadPool,
    options: &LoadOptions,
) -> Result<Engine, Error> {
    let rows = options.max_batch_size;
    let budget = options.step_budget;
    let step_tokens = budget.tokens.max(rows);
    let step_drafts = if options.speculate { budget.drafts } else { 0 };
    let limits = SchedulerLimits {
        rows,
        step_tokens,
        step_tokens_beside_streams: budget.tokens_beside_streams.clamp(rows, step_tokens),
        step_drafts,
        long_above: RopeTable::of(&config).and_then(|rope| rope.long_above()),
    };
    let pages = u32::try_from(capacity.pages).unwrap_or(u32::MAX);
    let step_logits = rows + step_drafts;
    let decoder_limits = DecoderLimits { pages: capacity.pages, page_size: PAGE_SIZE, step_tokens, step_logits };
    let backend = CpuBackend::on(pool).with_kv_dtype(options.kv_dtype);
    let decoder = Decoder::new(backend, config, weights, decoder_limits)?;
    Engine::start(decoder, Scheduler::new(limits, KvCache::new(pages, PAGE_SIZE)), options.max_waiting)
}

fn linears(weights: &mut ModelWeights) -> impl Iterator<Item = &mut Linear> {
    let layers = weights
        .layers
        .iter_mut()
        .flat_map(|layer| [&mut layer.qkv, &mut layer.attention_output, &mut layer.mlp_in, &mut layer.mlp_out]);
    [&mut weights.embedding, &mut weights.head].into_iter().chain(layers)
}

/// Gives all matrices the type that is asked for, and brings those that stay mapped into memory where `available` bytes are
/// enough for it. Returns that type and the bytes that stay mapped or are quantised.
fn prepare_weights(
    weights: &mut ModelWeights,
    choice: DTypeChoice,
    pool: &ThreadPool,
    available: u64,
    progress: &dyn Fn(f32),
) -> (DType, u64) {
    let needed = count(weights).bytes;
    if needed > available {
        tracing::warn!(
            weights_mib = needed >> 20,
            available_mib = available >> 20,
            "the weights are larger than the free memory: parts of them will be read from disk again at every step"
        );
    }
    let stored = weights.embedding.parts.iter().find_map(|part| match &part.weight {
        Weight::Plain(tensor) => Some(tensor.dtype()),
        Weight::Quantized(_) => None,
    });
    let stored = stored.unwrap_or(DType::F32);
    let dtype = match choice {
        DTypeChoice::Auto => stored,
        DTypeChoice::F32 => DType::F32,
        DTypeChoice::Bf16 => DType::Bf16,
        DTypeChoice::F16 => DType::F16,
    };
    let tied = is_tied(weights);
    let total = linears(weights).count();
    let (mut copied, mut mapped) = (0u64, 0u64);
    for (done, linear) in linears(weights).enumerate() {
        // A tied head, which comes second, is the embedding once more.
        let parts = if tied && done == 1 { &mut [] } else { linear.parts.as_mut_slice() };
        for part in parts {
            let tensor = match &mut part.weight {
                Weight::Plain(tensor) => tensor,
                Weight::Quantized(_) => {
                    mapped += part.weight.bytes().len() as u64;
                    continue;
                }
            };
            // Types are mixed in a checkpoint at times; `Auto` leaves them as they are, and so does `F32`, since narrower
            // weights are widened exactly in the kernels.
            if matches!(choice, DTypeChoice::Auto | DTypeChoice::F32) || tensor.dtype() == dtype {
                if tensor.is_mapped() {
                    mapped += tensor.bytes().len() as u64;
                    if needed <= available {
                        tensor.populate(pool);
                    }
                }
            } else {
                *tensor = tensor.cast(dtype, pool);
                copied += tensor.bytes().len() as u64;
            }
        }
        progress((done + 1) as f32 / total as f32);
    }
    if tied {
        weights.head = weights.embedding.clone();
    }
    if choice == DTypeChoice::F32 && stored != DType::F32 {
        tracing::info!(stored = %stored, "the weights are used as they are stored and widened to f32 as they are read");
    }
    if copied > 0 {
        tracing::warn!(
            from = %stored, to = %dtype, mib = copied >> 20,
            "the weights are copied into memory, since another element type than the checkpoint's is asked for"
        );
    }
    (dtype, mapped)
}

/// Whether the output head is the embedding.
fn is_tied(weights: &ModelWeights) -> bool {
    let place = |linear: &Linear| linear.parts.iter().map(|part| part.weight.bytes().as_ptr()).collect::<Vec<_>>();
    place(&weights.embedding) == place(&weights.head)
}

struct Count {
    parameters: u64,
    bytes: u64,
    step_bytes: u64,
}

fn count(weights: &ModelWeights) -> Count {
    let mut count = Count { parameters: 0, bytes: 0, step_bytes: 0 };
    let mut add = |linear: &Linear| {
        for part in &linear.parts {
            count.parameters += part.weight.elements() as u64;
            count.bytes += part.weight.bytes().len() as u64;
        }
        count.parameters += linear.bias.as_ref().map_or(0, Vec::len) as u64;
    };
    add(&weights.embedding);
    if !is_tied(weights) {
        add(&weights.head);
    }
    for layer in &weights.layers {
        [&layer.qkv, &layer.attention_output, &layer.mlp_in, &layer.mlp_out].into_iter().for_each(&mut add);
    }
    let norms = weights.layers.iter().flat_map(|layer| [Some(&layer.attention_norm), layer.mlp_norm.as_ref()]);
    for norm in norms.flatten().chain([&weights.final_norm]) {
        count.parameters += (norm.weight.len() + norm.bias.as_ref().map_or(0, Vec::len)) as u64;
    }
    let embedding: u64 = weights.embedding.parts.iter().map(|part| part.weight.bytes().len() as u64).sum();
    count.step_bytes = count.bytes - if is_tied(weights) { 0 } else { embedding };
    count
}

/// Fields of `generation_config.json` in whose place the documented defaults of a request always stand.
const OVERRIDDEN: [&str; 10] = [
    "max_length",
    "min_length",
    "do_sample",
    "early_stopping",
    "num_beams",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "repetition_penalty",
];

/// What a model's own files say about generation.
struct ModelDefaults {
    options: GenerateOptions,
    bos_token_id: Option<u32>,
}

impl ModelDefaults {
    /// Reads `generation_config.json`; without one, the fields of `config.json` that it would have, as transformers does.
    fn read(directory: &Path) -> Result<Self, Error> {
        let mut file = directory.join("generation_config.json");
        let mut fields = read_object(&file)?;
        if fields.is_none() {
            file = directory.join("config.json");
            fields = read_object(&file)?;
        }
        let mut fields = fields.unwrap_or_default();
        // A request's word alone: this one is no field of these files, but programs that train leave theirs there.
        fields.remove("seed");
        let has_non_finite = |value: &Value| {
            let mut values = std::slice::from_ref(value).iter().chain(value.as_array().into_iter().flatten());
            values.any(|value| json::non_finite(value).is_some())
        };
        let counts =
            |name: &str| name == "bos_token_id" || PARAMETER_NAMES.contains(&name) && !OVERRIDDEN.contains(&name);
        if let Some((name, value)) = fields.iter().find(|(name, value)| counts(name) && has_non_finite(value)) {
            let value = json::describe(value);
            return Err(Error::Load(format!("{}: {name} is {value}, expected a finite number", file.display())));
        }
        let bos_token_id = fields.get("bos_token_id").and_then(Value::as_u64).and_then(|id| id.try_into().ok());
        Ok(Self { options: GenerateOptions::from_generation_config(&fields), bos_token_id })
    }
}

/// Drops token ids that the model does not have: no request could be served with them.
fn keep_known_tokens(options: &mut GenerateOptions, vocab_size: usize) {
    let keep = |field: &str, tokens: &mut Option<Vec<u32>>| {
        if let Some(tokens) = tokens {
            let before = tokens.len();
            tokens.retain(|&token| (token as usize) < vocab_size);
            if tokens.len() < before {
                tracing::warn!(
                    field,
                    vocab_size,
                    "generation_config.json: token ids outside the vocabulary are ignored"
                );
            }
        }
    };
    keep("eos_token_id", &mut options.eos_token_id);
    keep("forced_eos_token_id", &mut options.forced_eos_token_id);
    options.eos_token_id.take_if(|tokens| tokens.is_empty());
    options.forced_eos_token_id.take_if(|tokens| tokens.is_empty());
    options.pad_token_id.take_if(|token| *token as usize >= vocab_size);
    options.forced_bos_token_id.take_if(|token| *token as usize >= vocab_size);
}

/// The JSON object in a file; `None` if there is no such file.
fn read_object(path: &Path) -> Result<Option<Map<String, Value>>, Error> {
    let failed = |what: &dyn std::fmt::Display| Error::Load(format!("{}: {what}", path.display()));
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(&error)),
    };
    let mut text = Vec::new();
    file.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut text).map_err(|error| failed(&error))?;
    if text.len() as u64 > MAX_CONFIG_BYTES {
        return Err(failed(&format!("the file has more than the {MAX_CONFIG_BYTES} bytes that it may have")));
    }
    json::parse_object(&text).map(Some).map_err(|error| failed(&format!("not a JSON object: {error}")))
}
