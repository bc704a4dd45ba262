//! The exact distributions that Meta's code draws from. Its answers carry no probabilities, so these come from the engine.

use std::{path::Path, sync::Arc};

use kaito_engine::{
    GenerationParams,
    remote::{GenerationEvent, GenerationRequest},
    testing::{CpuOperations, Decoder, Engine, ExecutorLimits, KvCache, Packed, Scheduler, SchedulerLimits},
};
use kaito_kernels::ThreadPool;
use kaito_model::family;
use serde_json::{Map, Value};

use super::case::{Case, Expectation, PromptIds, check_probabilities};

/// What Meta's code takes where a request is silent.
const DEFAULT_TEMPERATURE: f64 = 0.6;
const DEFAULT_TOP_P: f64 = 0.9;

const PAGES: usize = 64;
const PAGE_SIZE: usize = 16;
const SEQUENCES: usize = 4;

/// An engine for the model alone, without tokenizer or requests around it.
pub fn engine(directory: &Path) -> Engine {
    let (config, weights) = family::load(directory).unwrap();
    let threads = Arc::new(ThreadPool::new(2.try_into().unwrap()));
    let limits = ExecutorLimits {
        pages: PAGES,
        page_size: PAGE_SIZE,
        step_tokens: 32,
        step_logits: SEQUENCES,
        sequences: SEQUENCES,
        sequence_pages: PAGES,
    };
    let operations = CpuOperations::new(threads.clone(), Packed::F32);
    let decoder = Decoder::new(operations, config, weights, limits).unwrap();
    let limits = SchedulerLimits {
        sequences: SEQUENCES,
        step_tokens: 32,
        step_tokens_beside_streams: 8,
        step_drafts: 0,
        step_scores: 0,
        long_above: None,
    };
    let scheduler = Scheduler::new(limits, KvCache::new(PAGES as u32, PAGE_SIZE));
    Engine::start(Box::new(decoder), threads, scheduler, 1).unwrap()
}

/// Checks the probabilities of the case's next token, and says what is wrong. Cases that draw nothing are passed over.
pub async fn check(engine: &Engine, case: &Case) -> Result<(), String> {
    let Expectation::Draw { prompt_ids: PromptIds::List([prompt]), distribution } = &case.expect else { return Ok(()) };
    let parameters: Map<String, Value> = case.field("parameters").unwrap_or_default();
    let number = |name: &str, default| parameters.get(name).and_then(Value::as_f64).unwrap_or(default);
    let (temperature, top_p) = (number("temperature", DEFAULT_TEMPERATURE), number("top_p", DEFAULT_TOP_P));
    let mut params = GenerationParams::meta(temperature, top_p, prompt.len() + 1, Vec::new(), Some(1));
    params.output_scores = true;
    let request = GenerationRequest { prompt: prompt.clone(), params };
    let mut stream = engine.submit(request).map_err(|error| error.to_string())?;
    while let Some(event) = stream.next().await {
        match event {
            GenerationEvent::Failed(error) => return Err(error.to_string()),
            GenerationEvent::Finished(outputs) => {
                let score = &outputs[0].scores.as_ref().ok_or("no scores")?[0];
                return check_probabilities(&score.top, &distribution.iter().copied().collect());
            }
            GenerationEvent::Started | GenerationEvent::Chosen(_) => {}
        }
    }
    Err("the stream ended without an answer".to_owned())
}
