//! Metrics for Prometheus: requests are counted here, the engine's own numbers are read at each scrape. Names that begin with
//! `kaito_` are this server's own; those that begin with `vllm:` are what dashboards and autoscalers know of vLLM.

mod clock;
mod engine;
mod passed_on;
mod vllm;

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub(crate) use clock::RequestClock;
use engine::EngineMetrics;
use kaito_metrics::Format;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use vllm::VllmMetrics;

use crate::model::SharedModel;
use crate::openai::names;
use crate::options::ServerOptions;

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
    vllm: Arc<VllmMetrics>,
}

impl Metrics {
    pub(crate) fn new(options: &ServerOptions, model: Arc<OnceLock<SharedModel>>) -> Self {
        // vLLM's prefix ends with a colon, and this crate puts a low line after a prefix: so the root has none.
        let mut root = Registry::default();
        let vllm = VllmMetrics::register(&mut root, names::canonical(options), Arc::clone(&model));
        let registry = root.sub_registry_with_prefix("kaito");
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
        kaito_metrics::count_dropped_log_lines(registry, Arc::clone(&options.dropped_log_lines));
        registry.register_collector(Box::new(EngineMetrics { model_name: options.model_name.clone(), model }));
        Self { registry: root, requests, durations, first_token, between_tokens, vllm }
    }

    /// Counts a request that is over.
    pub(crate) fn count_request(&self, route: &'static str, status: u16, duration: Duration) {
        self.requests.get_or_create(&RequestLabels { route, status }).inc();
        self.durations.get_or_create(&RouteLabels { route }).observe(duration.as_secs_f64());
    }

    /// All metrics as text, and below them those of an engine elsewhere, if it told `of_engine`.
    pub(crate) fn encode(&self, format: Format, of_engine: Option<&str>) -> Result<String, fmt::Error> {
        let mut text = format.encode(&self.registry)?;
        if let Some(of_engine) = of_engine {
            passed_on::append(&mut text, format, of_engine);
        }
        Ok(text)
    }
}
