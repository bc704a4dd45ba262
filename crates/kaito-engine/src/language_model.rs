//! A model that is loaded and runs: what a server, a terminal or a test talks to.

mod generation_defaults;
mod load_options;
mod model_files;
mod model_info;

use std::{path::Path, sync::Arc};

use kaito_kernels::{FileChange, MappedFile};

use self::generation_defaults::ModelDefaults;
pub use self::{load_options::LoadOptions, model_files::ModelFiles, model_info::ModelInfo};
use crate::{
    Cancel, Error,
    adapters::{self, Adapter, AdapterMemory, AdapterSource, Adapters, NamedAdapter},
    capacity::{self, Capacity, STEP_SCORES},
    device::{self, Device, Packed, Packing},
    engine::{Engine, EngineStats},
    executor::ExecutorLimits,
    kv_cache::KvCache,
    request::{Prepared, Request, RequestContext},
    rope::RopeTable,
    scheduler::{Scheduler, SchedulerLimits},
    stream::Stream,
};
use kaito_model::{
    adapter::AdapterWeights, checkpoint::CheckpointError, config::ModelConfig, family, tokenizer::Tokenizer,
    weights::ModelWeights,
};

/// How far the load is when configuration and tokenizer are read, and when the weights are packed.
const LOADED_CONFIGURATION: f32 = 0.1;
const LOADED_WEIGHTS: f32 = 0.95;

/// A running model; cheap to clone. The last clone that is dropped ends its thread.
#[derive(Clone)]
pub struct LanguageModel(Arc<Inner>);

struct Inner {
    engine: Engine,
    info: ModelInfo,
    context: RequestContext,
    adapters: Adapters,
    /// For adapters to come: what they are read for, and the memory for them.
    config: Option<ModelConfig>,
    adapter_memory: AdapterMemory,
    /// Those that the weights are read from at every step.
    mapped_files: Vec<Arc<MappedFile>>,
}

impl LanguageModel {
    /// Loads a model's directory, or a GGUF file, and starts its engine. `progress` is told the part that is done, from 0 to 1.
    ///
    /// # Errors
    /// Files that are missing, damaged or of a kind that isn't supported, and settings that do not fit this machine.
    pub fn load(directory: &Path, options: &LoadOptions, progress: &(dyn Fn(f32) + Sync)) -> Result<Self, Error> {
        progress(0.0);
        if options.max_batch_size == 0 || options.max_waiting == 0 {
            let name = if options.max_batch_size == 0 { "max_batch_size" } else { "max_waiting" };
            return Err(Error::Load(format!("{name} is 0: it must be at least 1")));
        }
        let mut device = device::open(options.device, options.threads)?;
        let (config, mut weights) = family::load(directory)?;
        let packing = Packing {
            dtype: options.dtype,
            compute: options.compute,
            quantization: options.quantize,
            kv_dtype: options.kv_dtype,
            attention: config.layer.attention,
            cache: options.quantized_cache.as_deref(),
            family: config.family,
        };
        device.properties().check(&packing)?;
        progress(0.05);
        let tokenizer = open_tokenizer(directory, options.chat_template.as_deref())?;
        // A file stands alone, whatever lies beside it.
        let defaults = match directory.is_dir() {
            true => ModelDefaults::read(directory, config.vocab_size)?,
            false => ModelDefaults::default(),
        };
        // In memory before the device looks at what is free, which the KV cache gets its share of.
        let read = read_adapters(options, &config)?;
        progress(LOADED_CONFIGURATION);
        // A head that is the embedding may become a matrix of its own.
        let parameters = weights.count().parameters;
        let Packed { dtype, compute, kv_dtype, .. } = device.pack(&mut weights, &packing, &|part| {
            progress(LOADED_CONFIGURATION + part * (LOADED_WEIGHTS - LOADED_CONFIGURATION));
        })?;
        let counted = weights.count();
        let capacity = Capacity::plan(
            &config,
            kv_dtype,
            device.properties().page_size,
            options.max_seq_len,
            options.max_batch_size,
            options.kv_cache_memory.unwrap_or_else(|| device.kv_cache_memory().saturating_sub(options.adapter_memory)),
        )?;
        let info = ModelInfo {
            family: config.family,
            directory: directory.to_owned(),
            parameters,
            layer_parameters: config.layer_parameters(),
            head_parameters: config.head_parameters(),
            weights_bytes: counted.bytes,
            dtype,
            compute,
            quantization: options.quantize,
            blocks: weights.block_formats(),
            kv_dtype,
            vocab_size: config.vocab_size,
            hidden_size: config.hidden_size,
            num_layers: config.num_layers,
            step_bytes: counted.step_bytes,
            kv_bytes_per_token: capacity::bytes_per_token(&config, kv_dtype),
            attention_window: config.layer.attention.sliding_window,
            dialog_format: config.dialog_format,
            instruction_set: device.properties().instruction_set,
            threads: device.properties().threads,
            max_seq_len: capacity.max_seq_len,
            max_batch_size: options.max_batch_size,
            chat_template: tokenizer.has_chat_template(),
            upstream: None,
        };
        let mapped_files = weights.mapped_files();
        let (kept, adapter_memory) = (Some(config.clone()), AdapterMemory::new(options.adapter_memory));
        let engine = start_engine(device, config, weights, capacity, options)?;
        let (adapters, adapter) = load_adapters(&engine, read, options)?;
        tracing::info!(
            family = info.family, directory = %directory.display(), parameters = info.parameters,
            precision = info.precision(), activations = info.activations(), kernels = info.instruction_set,
            weights_mib = info.weights_bytes >> 20, kv_cache_mib = capacity.bytes >> 20, kv_dtype = %info.kv_dtype, pages = capacity.pages,
            max_seq_len = info.max_seq_len, max_batch_size = info.max_batch_size, threads = info.threads,
            adapters = options.adapters.len(), adapters_mib = adapters.bytes() >> 20, "the model is loaded"
        );
        progress(1.0);
        Ok(Self::new(engine, info, tokenizer, defaults, mapped_files, (adapters, adapter), (kept, adapter_memory)))
    }

    fn new(
        engine: Engine,
        info: ModelInfo,
        tokenizer: Tokenizer,
        defaults: ModelDefaults,
        mapped_files: Vec<Arc<MappedFile>>,
        (adapters, adapter): (Adapters, Option<Adapter>),
        (config, adapter_memory): (Option<ModelConfig>, AdapterMemory),
    ) -> Self {
        let context = RequestContext { adapter, ..defaults.context(tokenizer, &info) };
        Self(Arc::new(Inner { engine, info, context, adapters, config, adapter_memory, mapped_files }))
    }

    /// A model of parts that a test puts together.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn of_parts(engine: Engine, tokenizer: Tokenizer, info: ModelInfo, adapters: Adapters) -> Self {
        let defaults = ModelDefaults::default();
        Self::new(engine, info, tokenizer, defaults, Vec::new(), (adapters, None), Default::default())
    }

    /// What the model is.
    pub fn info(&self) -> &ModelInfo {
        &self.0.info
    }

    /// A snapshot of the engine for health checks and metrics.
    pub fn stats(&self) -> EngineStats {
        self.0.engine.stats()
    }

    /// The adapters that requests may name.
    pub fn adapters(&self) -> &Adapters {
        &self.0.adapters
    }

    /// Loads the adapter in `directory` while requests run. It has strength 1, and only requests that name it run with it. If it may
    /// `replace` one of that name, requests that run with the other one go on with it. Waits for the adapter to be loaded, so call it
    /// where blocking is allowed.
    ///
    /// # Errors
    /// A name that is in use, files that can't be loaded, and more than the memory that the model was loaded with for adapters, which
    /// counts those that were unloaded and that requests still run with.
    pub fn load_adapter(&self, name: &str, directory: &Path, replace: bool) -> Result<(), Error> {
        let Inner { engine, adapters, config, adapter_memory, .. } = &*self.0;
        let _one_at_a_time = adapter_memory.lock();
        if !replace && adapters.find(name).is_some() {
            return Err(adapters::in_use(name));
        }
        let config =
            config.as_ref().ok_or_else(|| Error::Load(format!("adapter {name:?}: this model has no adapters")))?;
        let weights =
            AdapterWeights::open_within(directory, config, adapter_memory.left()).map_err(|error| match error {
                CheckpointError::AdapterTooLarge { found, limit, .. } => Error::OverLimit {
                    what: format!(
                        "adapter {name:?} takes {found} bytes, and {limit} of the memory for adapters are left"
                    ),
                    setting: "adapter_memory",
                },
                error => adapters::named(name, &error),
            })?;
        let held = adapter_memory.take(weights.bytes());
        let adapter = engine.add_adapter(weights)?.holding(held);
        adapters.insert(NamedAdapter { name: name.to_owned(), directory: directory.to_owned(), adapter }, replace)
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
        let engine = &self.0.engine;
        Stream::start(prompts, |request, is_first| match is_first {
            true => engine.submit(request),
            false => engine.submit_further(request),
        })
    }
}

/// The tokenizer of a model, with the chat template in a file in place of its own, if there is one.
fn open_tokenizer(model: &Path, chat_template: Option<&Path>) -> Result<Tokenizer, Error> {
    let tokenizer = Tokenizer::open(model)?;
    Ok(match chat_template {
        Some(file) => tokenizer.with_chat_template_file(file)?,
        None => tokenizer,
    })
}

/// Reads the adapters that are to be loaded with a model, each at strength 1.
fn read_adapters(options: &LoadOptions, config: &ModelConfig) -> Result<Vec<AdapterWeights>, Error> {
    let read = |source: &AdapterSource| {
        adapters::check_strength(source)?;
        AdapterWeights::open(&source.directory, config).map_err(|error| adapters::named(&source.name, &error))
    };
    options.adapters.iter().map(read).collect()
}

/// Loads what [`read_adapters`] read: all of them under their names, and what prompts are continued with that name none.
fn load_adapters(
    engine: &Engine,
    read: Vec<AdapterWeights>,
    options: &LoadOptions,
) -> Result<(Adapters, Option<Adapter>), Error> {
    let (adapters, mut all) = (Adapters::default(), AdapterWeights::default());
    for (source, weights) in options.adapters.iter().zip(read) {
        let AdapterSource { name, directory, strength } = source;
        let scaled = weights.scaled(*strength);
        let alone = if options.combine_adapters { weights } else { scaled.clone() };
        let adapter = engine.add_adapter(alone).map_err(|error| adapters::named(name, &error))?;
        adapters.insert(NamedAdapter { name: name.clone(), directory: directory.clone(), adapter }, false)?;
        all.add(scaled);
    }
    let combined = options.combine_adapters && !all.terms.is_empty();
    Ok((adapters, if combined { Some(engine.add_adapter(all)?) } else { None }))
}

fn start_engine(
    device: Box<dyn Device>,
    config: ModelConfig,
    weights: ModelWeights,
    capacity: Capacity,
    options: &LoadOptions,
) -> Result<Engine, Error> {
    let sequences = options.max_batch_size;
    let budget = options.step_budget.unwrap_or(device.properties().step_budget);
    let step_tokens = budget.tokens.max(sequences);
    let step_scores = STEP_SCORES.min(step_tokens);
    let step_drafts = if options.speculate { budget.drafts } else { 0 };
    let scheduler_limits = SchedulerLimits {
        sequences,
        step_tokens,
        step_tokens_beside_streams: budget.tokens_beside_streams.clamp(sequences, step_tokens),
        step_drafts,
        step_scores,
        long_above: RopeTable::of(&config).and_then(|rope| rope.long_above()),
    };
    let limits = ExecutorLimits {
        pages: capacity.pages,
        page_size: capacity.page_size,
        step_tokens,
        step_logits: sequences + step_drafts + step_scores,
        sequences,
        sequence_pages: capacity.max_seq_len.div_ceil(capacity.page_size),
    };
    let host = device.host_threads();
    let executor = device.executor(config, weights, limits)?;
    let pages = u32::try_from(capacity.pages).unwrap_or(u32::MAX);
    let scheduler = Scheduler::new(scheduler_limits, KvCache::new(pages, capacity.page_size));
    Engine::start(executor, host, scheduler, options.max_waiting)
}
