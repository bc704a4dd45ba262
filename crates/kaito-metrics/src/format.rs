//! The two formats that scrapers read, and which of them one gets.

use std::fmt;

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

use crate::accept::{Accept, Offer};

/// How metrics are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format 0.0.4, which every scraper reads.
    Text,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

const TEXT: Offer = Offer { kind: "text", subtype: "plain", parameters: &[("version", "0.0.4"), ("charset", "utf-8")] };
const OPEN_METRICS: [Offer; 2] = [open_metrics(&[("version", "1.0.0"), ("charset", "utf-8")]), {
    // Older scrapers name the draft, of which all that is written here is part.
    open_metrics(&[("version", "0.0.1"), ("charset", "utf-8")])
}];

const fn open_metrics(parameters: &'static [(&'static str, &'static str)]) -> Offer {
    Offer { kind: "application", subtype: "openmetrics-text", parameters }
}

impl Format {
    /// What the headers Accept of a request ask for: OpenMetrics where it is wanted more than text, or is named and wanted as
    /// much; text for all others, also for those who accept neither.
    pub fn negotiate<'a>(accept: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let accept = Accept::parse(accept);
        let text = accept.wish(&TEXT).quality;
        let wanted = |offer: &Offer| {
            let wish = accept.wish(offer);
            wish.quality > text || (wish.quality == text && wish.quality > 0 && wish.named)
        };
        if OPEN_METRICS.iter().any(wanted) { Self::OpenMetrics } else { Self::Text }
    }

    /// The value of Content-Type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// All metrics of `registry`.
    ///
    /// # Errors
    /// Those of a metric that cannot be written.
    pub fn encode(self, registry: &Registry) -> Result<String, fmt::Error> {
        let mut written = String::new();
        text::encode(&mut written, registry)?;
        Ok(match self {
            Self::OpenMetrics => written,
            Self::Text => to_text(&written),
        })
    }
}

/// In OpenMetrics a family has a name and its samples have suffixes; the text format knows samples alone, and a type belongs to
/// what the sample is called. What else differs, units and the end, are comments there.
fn to_text(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        let Some(comment) = line.strip_prefix("# ") else {
            text.push_str(line);
            text.push('\n');
            continue;
        };
        match comment.split_once(' ') {
            Some(("HELP", rest)) => help = rest.split_once(' '),
            Some(("TYPE", rest)) => {
                let Some((name, kind)) = rest.split_once(' ') else { continue };
                let (suffix, kind) = match kind {
                    "counter" => ("_total", "counter"),
                    "info" => ("_info", "gauge"),
                    "unknown" => ("", "untyped"),
                    kind => ("", kind),
                };
                if let Some((_, help)) = help.take().filter(|(of, _)| *of == name) {
                    text.push_str(&format!("# HELP {name}{suffix} {help}\n"));
                }
                text.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
            }
            _ => {}
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::family::Family;
    use prometheus_client::metrics::gauge::Gauge;
    use prometheus_client::metrics::histogram::Histogram;
    use prometheus_client::metrics::info::Info;
    use prometheus_client::registry::Unit;

    use super::*;

    #[test]
    fn who_gets_which_format() {
        use Format::{OpenMetrics, Text};
        for (accept, format) in [
            (&[][..], Text),
            (&[""], Text),
            (&["*/*"], Text),
            (&["text/plain"], Text),
            (&["text/plain; version=0.0.4"], Text),
            (&["application/json"], Text),
            (&["application/openmetrics-text"], OpenMetrics),
            (&["application/openmetrics-text; version=1.0.0; charset=utf-8"], OpenMetrics),
            (&["application/openmetrics-text; version=0.0.1"], OpenMetrics),
            (&["application/openmetrics-text; version=2.0.0"], Text),
            (&["application/*"], OpenMetrics),
            (&["application/openmetrics-text;q=0, */*"], Text),
            (&["text/plain;q=0, */*"], OpenMetrics),
            (&["text/plain;q=0.5, application/openmetrics-text;q=0.4"], Text),
            (&["text/plain;q=0.5, application/openmetrics-text;q=0.5"], OpenMetrics),
            (&["text/plain;q=0.5", "application/openmetrics-text"], OpenMetrics),
            (&["application/openmetrics-text", "text/plain;q=0.5"], OpenMetrics),
            (&["text/*, application/*"], Text),
            (&["text/plain;q=0, application/openmetrics-text;q=0"], Text),
            // Prometheus 2 and 3, vmagent, Telegraf, a browser.
            (
                &["application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                   text/plain;version=0.0.4;q=0.5,*/*;q=0.1"],
                OpenMetrics,
            ),
            (
                &["application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                   application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
                   text/plain;version=0.0.4;q=0.3,*/*;q=0.2"],
                OpenMetrics,
            ),
            (&["text/plain;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"], Text),
            (&["text/plain;version=0.0.4;q=1,*/*;q=0.1"], Text),
            (
                &["application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7,\
                   text/plain;version=0.0.4;q=0.3"],
                Text,
            ),
            (&["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"], Text),
        ] {
            assert_eq!(Format::negotiate(accept.iter().map(|value| value.as_bytes())), format, "{accept:?}");
        }
    }

    /// As the exposition formats are specified: OpenMetrics 1.0.0, and Prometheus' text format 0.0.4.
    #[test]
    fn counters_have_their_type_under_the_name_of_their_samples_in_the_text_format() {
        let mut registry = Registry::with_prefix("kaito");
        let requests = Family::<[(&str, &str); 1], Counter>::default();
        requests.get_or_create(&[("route", "a\"b\\c\nd")]).inc();
        registry.register("requests", "Requests", requests);
        registry.register("waiting", "In the queue", Gauge::<i64>::default());
        registry.register("build", "The server", Info::new([("version", "1")]));
        let histogram = Histogram::new([0.5]);
        histogram.observe(0.25);
        registry.register_with_unit("duration", "A # in help", Unit::Seconds, histogram);
        crate::count_dropped_log_lines(&mut registry, Arc::new(AtomicU64::new(7)));
        let text = Format::Text.encode(&registry).unwrap();
        assert_eq!(
            text,
            "# HELP kaito_requests_total Requests.\n\
             # TYPE kaito_requests_total counter\n\
             kaito_requests_total{route=\"a\\\"b\\\\c\\nd\"} 1\n\
             # HELP kaito_waiting In the queue.\n\
             # TYPE kaito_waiting gauge\n\
             kaito_waiting 0\n\
             # HELP kaito_build_info The server.\n\
             # TYPE kaito_build_info gauge\n\
             kaito_build_info{version=\"1\"} 1\n\
             # HELP kaito_duration_seconds A # in help.\n\
             # TYPE kaito_duration_seconds histogram\n\
             kaito_duration_seconds_sum 0.25\n\
             kaito_duration_seconds_count 1\n\
             kaito_duration_seconds_bucket{le=\"0.5\"} 1\n\
             kaito_duration_seconds_bucket{le=\"+Inf\"} 1\n\
             # HELP kaito_log_lines_dropped_total Lines of the log that were dropped, since its reader did not keep up or \
             is gone.\n\
             # TYPE kaito_log_lines_dropped_total counter\n\
             kaito_log_lines_dropped_total 7\n"
        );
        let open_metrics = Format::OpenMetrics.encode(&registry).unwrap();
        for line in ["# TYPE kaito_requests counter", "# UNIT kaito_duration_seconds seconds", "# EOF"] {
            assert!(open_metrics.lines().any(|other| other == line), "no {line} in\n{open_metrics}");
        }
    }
}
