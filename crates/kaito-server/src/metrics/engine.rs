//! The engine's own counts, read at each scrape.

use std::fmt;
use std::sync::{Arc, OnceLock};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;

use crate::model::SharedModel;

/// Shows what the engine counts and what the model is.
pub(super) struct EngineMetrics {
    pub(super) model_name: String,
    pub(super) model: Arc<OnceLock<SharedModel>>,
}

impl fmt::Debug for EngineMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineMetrics").field("model_name", &self.model_name).finish_non_exhaustive()
    }
}

impl Collector for EngineMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let mut write = |name: &str, help: &str, metric: &dyn EncodeMetric| {
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        let Some(model) = self.model.get() else {
            return write("model_loaded", "Whether the model is loaded.", &ConstGauge::new(0u64));
        };
        write("model_loaded", "Whether the model is loaded.", &ConstGauge::new(1u64))?;
        let info = model.info();
        // What an engine elsewhere holds and does, its own metrics say.
        let own = info.upstream.is_none();
        let labels = [
            ("name", self.model_name.clone()),
            ("family", info.family.to_string()),
            ("dtype", info.precision()),
            ("activations", info.activations().to_owned()),
            ("kernels", info.instruction_set.to_owned()),
            ("parameters", info.parameters.to_string()),
            ("kv_dtype", if own { info.kv_dtype.to_string() } else { info.precision() }),
            ("max_seq_len", info.max_seq_len.to_string()),
        ];
        write("model", "The model.", &Info::new(labels))?;
        let sizes = [
            ("model_weights_bytes", "Bytes of the weights.", info.weights_bytes),
            ("model_step_bytes", "Bytes of weights that each step reads.", info.step_bytes),
            ("model_layer_parameters", "Weights in the matrices of all layers.", info.layer_parameters),
            ("model_head_parameters", "Weights of the output head.", info.head_parameters),
            ("model_kv_bytes_per_token", "Bytes of the KV cache that a token takes.", info.kv_bytes_per_token),
            ("engine_threads", "Threads that compute.", info.threads as u64),
        ];
        for (name, help, value) in sizes.into_iter().filter(|_| own) {
            write(name, help, &ConstGauge::new(value))?;
        }
        let stats = model.stats();
        let gauges = [
            ("requests_waiting", "Requests in the queue.", stats.waiting),
            ("sequences_running", "Sequences that take part in the engine's steps.", stats.running),
        ];
        let pages = [
            ("kv_cache_pages_used", "Pages of the KV cache in use.", stats.pages_used),
            (
                "kv_cache_pages_free",
                "Pages of the KV cache that are free.",
                stats.pages_total.saturating_sub(stats.pages_used),
            ),
            ("kv_cache_pages_known", "Free pages that the prefix cache still holds.", stats.pages_known),
        ];
        for (name, help, value) in gauges.into_iter().chain(pages.into_iter().filter(|_| own)) {
            write(name, help, &ConstGauge::new(value as u64))?;
        }
        let counters = [
            ("prompt_tokens", "Tokens of prompts of requests that left the queue.", stats.prompt_tokens_total),
            (
                "prompt_tokens_reused",
                "Tokens of prompts that were found in the prefix cache, and not computed.",
                stats.prompt_tokens_reused_total,
            ),
            ("generated_tokens", "Tokens generated.", stats.generated_tokens_total),
        ];
        let steps = [
            ("proposed_tokens", "Draft tokens that speculative decoding proposed.", stats.proposed_tokens_total),
            ("accepted_tokens", "Draft tokens that were accepted.", stats.accepted_tokens_total),
            (
                "preemptions",
                "Requests that were preempted: older ones got their pages, and they were computed again.",
                stats.preemptions_total,
            ),
            ("engine_steps", "Steps of the engine, each a forward pass.", stats.steps_total),
        ];
        for (name, help, value) in counters.into_iter().chain(steps.into_iter().filter(|_| own)) {
            write(name, help, &ConstCounter::new(value))?;
        }
        Ok(())
    }
}
