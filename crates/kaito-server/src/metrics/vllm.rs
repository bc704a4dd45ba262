//! The metrics of vLLM that dashboards and autoscalers read, by vLLM's names, labels and buckets.
//!
//! There, a request is one sequence: a prompt with `n` samples counts as `n` requests.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kaito_engine::FinishReason;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::model::SharedModel;

/// Seconds to a first token.
const FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
/// Seconds for each token after the first.
const PER_TOKEN: &[f64] =
    &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];
/// Seconds that a request takes, or a phase of it.
const PHASE: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];
/// Samples of a prompt.
const SAMPLES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];

/// Numbers of tokens up to the longest sequence: 1, 2, 5, 10, 20, ...
fn token_buckets(longest: usize) -> Vec<f64> {
    let powers = std::iter::successors(Some(1usize), |power| power.checked_mul(10));
    let steps = powers.flat_map(|power| [1usize, 2, 5].map(|step| step.saturating_mul(power)));
    steps.take_while(|step| *step <= longest).map(|step| step as f64).collect()
}

/// How a sequence ended, in vLLM's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Stop,
    Length,
    Abort,
    Error,
}

impl Ending {
    const ALL: [Self; 4] = [Self::Stop, Self::Length, Self::Abort, Self::Error];

    fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Error => "error",
        }
    }
}

impl From<FinishReason> for Ending {
    fn from(reason: FinishReason) -> Self {
        match reason {
            FinishReason::Length => Self::Length,
            FinishReason::EndToken | FinishReason::Stop => Self::Stop,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndingLabels {
    finished_reason: &'static str,
}

/// Histograms whose buckets reach to the longest sequence of the model, which is known once that is loaded.
#[derive(Debug)]
struct TokenHistograms {
    prompt_tokens: Histogram,
    generation_tokens: Histogram,
    longest_generation: Histogram,
    params_max_tokens: Histogram,
}

impl TokenHistograms {
    fn new(longest: usize) -> Self {
        let histogram = || Histogram::new(token_buckets(longest));
        Self {
            prompt_tokens: histogram(),
            generation_tokens: histogram(),
            longest_generation: histogram(),
            params_max_tokens: histogram(),
        }
    }

    fn named(&self) -> [(&'static str, &'static str, &Histogram); 4] {
        [
            ("vllm:request_prompt_tokens", "Tokens of a request's prompt.", &self.prompt_tokens),
            ("vllm:request_generation_tokens", "Tokens that a request generated.", &self.generation_tokens),
            (
                "vllm:request_max_num_generation_tokens",
                "Tokens of the longest of a prompt's samples.",
                &self.longest_generation,
            ),
            (
                "vllm:request_params_max_tokens",
                "The most tokens that a request might generate.",
                &self.params_max_tokens,
            ),
        ]
    }
}

/// What is observed of requests.
pub(super) struct VllmMetrics {
    success: Family<EndingLabels, Counter>,
    first_token: Histogram,
    between_tokens: Histogram,
    /// The name that the one before had until vLLM 0.11; dashboards have either.
    per_output_token: Histogram,
    mean_per_output_token: Histogram,
    end_to_end: Histogram,
    queue: Histogram,
    inference: Histogram,
    prefill: Histogram,
    decode: Histogram,
    params_n: Histogram,
    tokens: OnceLock<TokenHistograms>,
    model: Arc<OnceLock<SharedModel>>,
}

/// When a sequence passed from one phase to the next.
#[derive(Debug, Clone, Copy)]
pub(super) struct Phases {
    pub(super) end_to_end: Duration,
    /// `None` where it is not known when the request left the queue.
    pub(super) queue: Option<Duration>,
    /// From the queue to the first token, and from there to the last; `None` for beams, whose tokens come at the end.
    pub(super) computing: Option<(Duration, Duration)>,
}

impl fmt::Debug for VllmMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VllmMetrics").field("success", &self.success).finish_non_exhaustive()
    }
}

impl VllmMetrics {
    /// Registers all of them with the labels that vLLM gives each.
    pub(super) fn register(root: &mut Registry, model_name: &str, model: Arc<OnceLock<SharedModel>>) -> Arc<Self> {
        let labels = [("model_name".into(), model_name.to_owned().into()), ("engine".into(), "0".into())];
        let registry = root.sub_registry_with_labels(labels.into_iter());
        let mut histogram = |name: &str, help: &str, buckets: &[f64]| {
            let histogram = Histogram::new(buckets.iter().copied());
            registry.register(format!("vllm:{name}"), help, histogram.clone());
            histogram
        };
        let metrics = Arc::new(Self {
            first_token: histogram("time_to_first_token_seconds", "From a request to its first token", FIRST_TOKEN),
            between_tokens: histogram("inter_token_latency_seconds", "Between one token and the next", PER_TOKEN),
            per_output_token: histogram("time_per_output_token_seconds", "Between one token and the next", PER_TOKEN),
            mean_per_output_token: histogram(
                "request_time_per_output_token_seconds",
                "A request's mean time between one token and the next",
                PER_TOKEN,
            ),
            end_to_end: histogram("e2e_request_latency_seconds", "From a request to the end of its answer", PHASE),
            queue: histogram("request_queue_time_seconds", "In the queue", PHASE),
            inference: histogram("request_inference_time_seconds", "From the queue to the last token", PHASE),
            prefill: histogram("request_prefill_time_seconds", "From the queue to the first token", PHASE),
            decode: histogram("request_decode_time_seconds", "From the first token to the last", PHASE),
            params_n: histogram("request_params_n", "Samples of a prompt", SAMPLES),
            success: Family::default(),
            tokens: OnceLock::new(),
            model,
        });
        registry.register("vllm:request_success", "Requests that ended, and how", metrics.success.clone());
        for ending in Ending::ALL {
            drop(metrics.success.get_or_create(&EndingLabels { finished_reason: ending.name() }));
        }
        registry.register_collector(Box::new(VllmCollector(Arc::clone(&metrics))));
        metrics
    }

    pub(super) fn count_ending(&self, ending: Ending) {
        self.success.get_or_create(&EndingLabels { finished_reason: ending.name() }).inc();
    }

    pub(super) fn observe_first_token(&self, after: Duration) {
        self.first_token.observe(after.as_secs_f64());
    }

    pub(super) fn observe_token(&self, after: Duration) {
        self.between_tokens.observe(after.as_secs_f64());
        self.per_output_token.observe(after.as_secs_f64());
    }

    /// A prompt that is answered: how many samples it asked for, of how many tokens at most, and the longest that it got.
    pub(super) fn observe_prompt(&self, samples: usize, max_tokens: usize, longest: usize) {
        self.params_n.observe(samples as f64);
        if let Some(tokens) = self.tokens() {
            tokens.params_max_tokens.observe(max_tokens as f64);
            tokens.longest_generation.observe(longest as f64);
        }
    }

    /// A sequence that is complete.
    pub(super) fn observe_sequence(&self, ending: Ending, prompt: usize, generated: usize, phases: &Phases) {
        self.count_ending(ending);
        self.end_to_end.observe(phases.end_to_end.as_secs_f64());
        if let Some(queue) = phases.queue {
            self.queue.observe(queue.as_secs_f64());
        }
        if let Some((prefill, decode)) = phases.computing {
            self.prefill.observe(prefill.as_secs_f64());
            self.decode.observe(decode.as_secs_f64());
            self.inference.observe((prefill + decode).as_secs_f64());
            if let Some(others) = generated.checked_sub(1).filter(|others| *others > 0) {
                self.mean_per_output_token.observe(decode.as_secs_f64() / others as f64);
            }
        }
        if let Some(tokens) = self.tokens() {
            tokens.prompt_tokens.observe(prompt as f64);
            tokens.generation_tokens.observe(generated as f64);
        }
    }

    fn tokens(&self) -> Option<&TokenHistograms> {
        let longest = self.model.get()?.info().max_seq_len;
        Some(self.tokens.get_or_init(|| TokenHistograms::new(longest)))
    }
}

/// Reads at each scrape what the engine counts itself.
#[derive(Debug)]
struct VllmCollector(Arc<VllmMetrics>);

impl Collector for VllmCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let Self(metrics) = self;
        let Some(model) = metrics.model.get() else { return Ok(()) };
        let mut write = |name: &str, help: &str, metric: &dyn EncodeMetric| {
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        for (name, help, histogram) in metrics.tokens().into_iter().flat_map(TokenHistograms::named) {
            write(name, help, histogram)?;
        }
        let stats = model.stats();
        // An engine elsewhere says these of itself, and they are passed on.
        let own = model.info().upstream.is_none();
        for (name, help, value) in [
            ("vllm:num_requests_running", "Requests that take part in the engine's steps.", stats.running as f64),
            ("vllm:num_requests_waiting", "Requests in the queue.", stats.waiting as f64),
        ] {
            write(name, help, &ConstGauge::new(value))?;
        }
        for (name, help, value) in [
            ("vllm:prompt_tokens", "Tokens of prompts.", stats.prompt_tokens_total),
            ("vllm:generation_tokens", "Tokens generated.", stats.generated_tokens_total),
        ] {
            write(name, help, &ConstCounter::new(value))?;
        }
        if !own {
            return Ok(());
        }
        let used = ConstGauge::new(stats.pages_used as f64 / stats.pages_total.max(1) as f64);
        write("vllm:kv_cache_usage_perc", "The part of the KV cache that is in use; 1 is all of it.", &used)?;
        for (name, help, value) in [
            (
                "vllm:num_preemptions",
                "Requests that lost their pages and were computed again.",
                stats.preemptions_total,
            ),
            ("vllm:prefix_cache_queries", "Tokens looked up in the prefix cache.", stats.prompt_tokens_total),
            ("vllm:prefix_cache_hits", "Tokens found in the prefix cache.", stats.prompt_tokens_reused_total),
            ("vllm:spec_decode_num_draft_tokens", "Tokens drafted.", stats.proposed_tokens_total),
            ("vllm:spec_decode_num_accepted_tokens", "Drafted tokens that were right.", stats.accepted_tokens_total),
        ] {
            write(name, help, &ConstCounter::new(value))?;
        }
        let mut write_info = |name: &str, help: &str, labels: &[(&str, String)], value: f64| {
            let gauge = ConstGauge::new(value);
            let mut metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric.encode_family(&labels)?)
        };
        let cache = [
            ("block_size", stats.page_size.to_string()),
            ("num_gpu_blocks", stats.pages_total.to_string()),
            ("cache_dtype", model.info().kv_dtype.to_string()),
            ("enable_prefix_caching", "True".to_owned()),
        ];
        write_info("vllm:cache_config_info", "The KV cache.", &cache, 1.0)?;
        // The value is when this was so.
        let adapters = model.adapters();
        let labels = [
            ("max_lora", adapters.list().len().to_string()),
            ("running_lora_adapters", adapters.running().join(",")),
            ("waiting_lora_adapters", adapters.waiting().join(",")),
        ];
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        write_info("vllm:lora_requests_info", "Adapters in use, and when that was.", &labels, now.as_secs_f64())
    }
}
