//! Metrics for Prometheus, in the format that it asks for, as the server and the controller publish them.
#![forbid(unsafe_code)]

mod accept;
mod format;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use format::Format;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Registry;

/// Adds the number of log lines that nobody read, which the log counts itself.
pub fn count_dropped_log_lines(registry: &mut Registry, dropped: Arc<AtomicU64>) {
    registry.register_collector(Box::new(DroppedLogLines(dropped)));
}

#[derive(Debug)]
struct DroppedLogLines(Arc<AtomicU64>);

impl Collector for DroppedLogLines {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let metric = ConstCounter::new(self.0.load(Ordering::Relaxed));
        let help = "Lines of the log that were dropped, since its reader did not keep up or is gone.";
        metric.encode(encoder.encode_descriptor("log_lines_dropped", help, None, metric.metric_type())?)
    }
}
