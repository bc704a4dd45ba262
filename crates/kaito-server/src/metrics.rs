//! Metrics for Prometheus: requests are counted here, the engine's own numbers are read at each scrape.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use kaito_metrics::Format;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::model::SharedModel;

/// Seconds, from a tiny model's first token to that of a large model behind a queue.
const FIRST_TOKEN_BUCKETS: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];
/// Seconds, from a tiny model to a large one on a slow machine.
const TOKEN_BUCKETS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0];
/// Seconds, up to beyond the usual limit of a request.
const REQUEST_BUCKETS: [f64; 13] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 240.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: &'static str,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: &'static str,
}

/// The metrics of one server.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    durations: Family<RouteLabels, Histogram, fn() -> Histogram>,
    first_token: Histogram,
    between_tokens: Histogram,
}

impl Metrics {
    pub(crate) fn new(model_name: &str, model: Arc<OnceLock<SharedModel>>, dropped_log_lines: Arc<AtomicU64>) -> Self {
        let mut registry = Registry::with_prefix("kaito");
        let requests = Family::default();
        registry.register(
            "requests",
            "Requests by route and status; 499 stands for clients that went away",
            requests.clone(),
        );
        let durations: Family<RouteLabels, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(REQUEST_BUCKETS));
        registry.register_with_unit(
            "request_duration",
            "From a request's head to the end of its answer",
            Unit::Seconds,
            durations.clone(),
        );
        let first_token = Histogram::new(FIRST_TOKEN_BUCKETS);
        registry.register_with_unit(
            "time_to_first_token",
            "From a request's head to its first token, beam search aside",
            Unit::Seconds,
            first_token.clone(),
        );
        let between_tokens = Histogram::new(TOKEN_BUCKETS);
        registry.register_with_unit(
            "time_per_output_token",
            "Between one token of a sequence and the next, beam search aside",
            Unit::Seconds,
            between_tokens.clone(),
        );
        registry.register("build", "The server", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        kaito_metrics::count_dropped_log_lines(&mut registry, dropped_log_lines);
        registry.register_collector(Box::new(EngineMetrics { model_name: model_name.to_owned(), model }));
        Self { registry, requests, durations, first_token, between_tokens }
    }

    /// Counts a request that is over.
    pub(crate) fn count_request(&self, route: &'static str, status: u16, duration: Duration) {
        self.requests.get_or_create(&RequestLabels { route, status }).inc();
        self.durations.get_or_create(&RouteLabels { route }).observe(duration.as_secs_f64());
    }

    /// All metrics as text.
    pub(crate) fn encode(&self, format: Format) -> Result<String, fmt::Error> {
        format.encode(&self.registry)
    }
}

/// Times one request's tokens.
#[derive(Debug)]
pub(crate) struct TokenClock {
    started: Instant,
    /// When each sequence had its latest token.
    latest: Vec<Option<Instant>>,
}

impl TokenClock {
    pub(crate) fn new(started: Instant) -> Self {
        Self { started, latest: Vec::new() }
    }

    /// Notes that a token of `sequence` arrives now.
    pub(crate) fn tick(&mut self, sequence: usize, metrics: &Metrics) {
        let now = Instant::now();
        if self.latest.is_empty() {
            metrics.first_token.observe((now - self.started).as_secs_f64());
        }
        if self.latest.len() <= sequence {
            self.latest.resize(sequence + 1, None);
        }
        if let Some(latest) = self.latest.get_mut(sequence)
            && let Some(before) = latest.replace(now)
        {
            metrics.between_tokens.observe((now - before).as_secs_f64());
        }
    }
}

/// Reads the engine's own counts at each scrape.
struct EngineMetrics {
    model_name: String,
    model: Arc<OnceLock<SharedModel>>,
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
        let labels = [
            ("name", self.model_name.clone()),
            ("family", info.family.to_string()),
            ("dtype", info.precision()),
            ("parameters", info.parameters.to_string()),
            ("kv_dtype", info.kv_dtype.to_string()),
            ("max_seq_len", info.max_seq_len.to_string()),
        ];
        write("model", "The model.", &Info::new(labels))?;
        let sizes = [
            ("model_weights_bytes", "Bytes of the weights.", info.weights_bytes),
            ("model_step_bytes", "Bytes of weights that each step reads.", info.step_bytes),
            ("model_kv_bytes_per_token", "Bytes of the keys and values of a token.", info.kv_bytes_per_token),
            ("engine_threads", "Threads that compute.", info.threads as u64),
        ];
        for (name, help, value) in sizes {
            write(name, help, &ConstGauge::new(value))?;
        }
        let stats = model.stats();
        let gauges = [
            ("requests_waiting", "Requests in the queue.", stats.waiting),
            ("sequences_running", "Sequences that take part in the engine's steps.", stats.running),
            ("kv_cache_pages_used", "Pages of keys and values in use.", stats.pages_used),
            (
                "kv_cache_pages_free",
                "Pages of keys and values left.",
                stats.pages_total.saturating_sub(stats.pages_used),
            ),
            (
                "kv_cache_pages_known",
                "Free pages that still hold a text, for prompts that begin like it.",
                stats.pages_known,
            ),
        ];
        for (name, help, value) in gauges {
            write(name, help, &ConstGauge::new(value as u64))?;
        }
        let counters = [
            ("prompt_tokens", "Tokens of prompts taken in.", stats.prompt_tokens_total),
            (
                "prompt_tokens_reused",
                "Tokens of prompts that were not computed, since an earlier text began alike.",
                stats.prompt_tokens_reused_total,
            ),
            ("generated_tokens", "Tokens generated.", stats.generated_tokens_total),
            ("proposed_tokens", "Tokens proposed, to be verified several at once.", stats.proposed_tokens_total),
            ("accepted_tokens", "Proposed tokens that were right.", stats.accepted_tokens_total),
            (
                "preemptions",
                "Requests that gave their pages to older ones and were computed again.",
                stats.preemptions_total,
            ),
            ("engine_steps", "Steps of the engine.", stats.steps_total),
        ];
        for (name, help, value) in counters {
            write(name, help, &ConstCounter::new(value))?;
        }
        Ok(())
    }
}
