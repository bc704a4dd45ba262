use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// Upper bounds of the histogram in seconds. The API server waits ten; a tenth is what users begin to notice.
const BUCKETS: [f64; 10] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 1.0, 10.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    webhook: &'static str,
    operation: &'static str,
    outcome: &'static str,
}

/// What Prometheus reads of the webhook.
#[derive(Debug, Clone)]
pub struct Metrics {
    reviews: Family<Labels, Counter>,
    durations: Histogram,
    certificate_end: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { reviews: Family::default(), durations: Histogram::new(BUCKETS), certificate_end: Gauge::default() }
    }
}

impl Metrics {
    /// Adds them to `registry`, whose prefix is expected to be `kaito`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "webhook_reviews",
            "Reviews by webhook, operation and outcome: allowed, refused, or failed for what is no review",
            self.reviews.clone(),
        );
        registry.register_with_unit(
            "webhook_review_duration",
            "How long a review takes, from the head of the request to the end of the answer",
            Unit::Seconds,
            self.durations.clone(),
        );
        registry.register_with_unit(
            "webhook_certificate_end_timestamp",
            "When the serving certificate expires unless it is renewed",
            Unit::Seconds,
            self.certificate_end.clone(),
        );
    }

    pub(super) fn count(
        &self,
        webhook: &'static str,
        operation: &'static str,
        outcome: &'static str,
        duration: Duration,
    ) {
        self.reviews.get_or_create(&Labels { webhook, operation, outcome }).inc();
        self.durations.observe(duration.as_secs_f64());
    }

    pub(super) fn set_certificate_end(&self, end: SystemTime) {
        let seconds = end.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.certificate_end.set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }
}
