//! Metrics of an engine elsewhere, passed on below our own.
//!
//! What it says is read line by line and taken only where it is what the text format has, so that nothing of it spoils our own
//! metrics for a scraper. A family that is there already, since we count it ourselves, is left out.

use std::collections::HashSet;

use kaito_metrics::Format;

/// What names of an engine's own families begin with.
const PREFIX: &str = "vllm:";
/// The end of OpenMetrics.
const END: &str = "# EOF\n";

/// A family of the engine's.
#[derive(Default)]
struct Family<'a> {
    name: &'a str,
    kind: &'a str,
    help: Option<&'a str>,
    samples: Vec<&'a str>,
}

/// Adds the families of `theirs`, in Prometheus' text format 0.0.4, to `ours`, which are written in `format`.
pub(super) fn append(ours: &mut String, format: Format, theirs: &str) {
    let known: HashSet<String> = types(ours).map(|(name, kind)| family_name(name, kind).to_owned()).collect();
    let ended = ours.ends_with(END);
    if ended {
        ours.truncate(ours.len() - END.len());
    }
    let mut written = HashSet::new();
    for family in families(theirs) {
        let name = family_name(family.name, family.kind);
        // Python's client adds when each series began, as families of their own, which OpenMetrics has as samples.
        let wanted = name.starts_with(PREFIX) && !name.ends_with("_created") && !known.contains(name);
        if !wanted || family.samples.is_empty() || !written.insert(name) {
            continue;
        }
        let shown = match format {
            Format::Text => family.name,
            Format::OpenMetrics => name,
        };
        if let Some(help) = family.help {
            ours.push_str(&format!("# HELP {shown} {help}\n"));
        }
        ours.push_str(&format!("# TYPE {shown} {}\n", family.kind));
        for sample in family.samples {
            ours.push_str(sample);
            ours.push('\n');
        }
    }
    if ended {
        ours.push_str(END);
    }
}

/// The families that a text declares, as it calls them, and their types.
fn types(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
}

/// What OpenMetrics calls a family: there, the suffix of a counter belongs to its samples.
fn family_name<'a>(name: &'a str, kind: &str) -> &'a str {
    name.strip_suffix("_total").filter(|_| kind == "counter").unwrap_or(name)
}

/// The families of a text, each with the samples that follow its type.
fn families(text: &str) -> Vec<Family<'_>> {
    let (mut families, mut help) = (Vec::<Family<'_>>::new(), None);
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').filter(|(_, help)| is_plain(help));
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let help = help.take().filter(|(of, _)| *of == name).map(|(_, help)| help);
            let known = ["counter", "gauge", "histogram", "summary"].contains(&kind) && is_name(name);
            // Samples of a family of another type are passed over with it.
            families.push(Family { name: if known { name } else { "" }, kind, help, samples: Vec::new() });
        } else if let Some(family) = families.last_mut().filter(|family| is_sample(line, family)) {
            family.samples.push(line);
        }
    }
    families
}

/// Whether this is a sample of the family: its name, perhaps labels, and a number.
fn is_sample(line: &str, family: &Family<'_>) -> bool {
    let suffixes: &[&str] = match family.kind {
        "histogram" => &["_bucket", "_sum", "_count"],
        "summary" => &["", "_sum", "_count"],
        _ => &[""],
    };
    let end = line.find(['{', ' ']).unwrap_or(line.len());
    let Some((name, rest)) = line.split_at_checked(end) else { return false };
    let named = name.strip_prefix(family.name).is_some_and(|suffix| suffixes.contains(&suffix));
    let labelled = match rest.rsplit_once(' ') {
        Some((labels, value)) => {
            let labels = labels.trim();
            value.parse::<f64>().is_ok() && (labels.is_empty() || labels.starts_with('{') && labels.ends_with('}'))
        }
        None => false,
    };
    !family.name.is_empty() && named && labelled && is_plain(line)
}

fn is_name(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_:".contains(&byte))
}

fn is_plain(text: &str) -> bool {
    !text.contains(|c: char| c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    const THEIRS: &str = "\
# HELP python_info Python platform information
# TYPE python_info gauge
python_info{version=\"3.12\"} 1.0
# HELP vllm:kv_cache_usage_perc KV-cache usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"m x\"} 0.25
# HELP vllm:num_preemptions_total Preemptions.
# TYPE vllm:num_preemptions_total counter
vllm:num_preemptions_total{engine=\"0\"} 3.0
# TYPE vllm:num_preemptions_created gauge
vllm:num_preemptions_created{engine=\"0\"} 1.7e+09
# TYPE vllm:iteration_tokens histogram
vllm:iteration_tokens_bucket{le=\"1.0\"} 1.0
vllm:iteration_tokens_bucket{le=\"+Inf\"} 2.0
vllm:iteration_tokens_sum 5.0
vllm:iteration_tokens_count 2.0
vllm:other 1
vllm:iteration_tokens_sum no
# TYPE vllm:request_success_total counter
vllm:request_success_total 7.0
# TYPE vllm:odd thing
vllm:odd 1
";

    #[test]
    fn families_that_are_not_ours_are_passed_on_in_the_format_that_was_asked_for() {
        let ours = "# TYPE vllm:request_success counter\nvllm:request_success_total 1\n# EOF\n";
        let expected = "\
# TYPE vllm:request_success counter
vllm:request_success_total 1
# HELP vllm:kv_cache_usage_perc KV-cache usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"m x\"} 0.25
# HELP vllm:num_preemptions Preemptions.
# TYPE vllm:num_preemptions counter
vllm:num_preemptions_total{engine=\"0\"} 3.0
# TYPE vllm:iteration_tokens histogram
vllm:iteration_tokens_bucket{le=\"1.0\"} 1.0
vllm:iteration_tokens_bucket{le=\"+Inf\"} 2.0
vllm:iteration_tokens_sum 5.0
vllm:iteration_tokens_count 2.0
# EOF
";
        let mut text = ours.to_owned();
        append(&mut text, Format::OpenMetrics, THEIRS);
        assert_eq!(text, expected);
        let mut text = ours.replace("success counter", "success_total counter").replace(END, "");
        append(&mut text, Format::Text, THEIRS);
        let in_text = expected
            .replace("success counter", "success_total counter")
            .replace("num_preemptions ", "num_preemptions_total ")
            .replace(END, "");
        assert_eq!(text, in_text);
    }

    #[test]
    fn what_is_no_text_format_is_left_out() {
        for theirs in
            ["", "<html>", "# TYPE vllm:a gauge\n", "# TYPE vllm:a gauge\nvllm:a{x=\"\u{1}\"} 1\n", "# TYPE \n# HELP\n"]
        {
            let mut text = END.to_owned();
            append(&mut text, Format::OpenMetrics, theirs);
            assert_eq!(text, END, "{theirs:?}");
        }
    }
}
