//! The report in a terminal.

use super::{Load, Report};
use crate::{client::TokenCounts, failure::FailureCount, statistics::Summary};

/// All tables, one below the other, then the notes.
pub fn tables(report: &Report) -> String {
    let mut text = heading(report);
    for section in sections(report) {
        text.push_str(&format!("\n{}\n\n{}", section.title, section.text()));
    }
    if !report.notes.is_empty() {
        text.push('\n');
        for note in &report.notes {
            text.push_str(&wrapped(note));
        }
    }
    text
}

/// A table with its title; numbers as people read them.
#[derive(serde::Serialize)]
pub(super) struct Section {
    pub(super) id: &'static str,
    pub(super) title: String,
    pub(super) header: Vec<String>,
    pub(super) rows: Vec<Vec<String>>,
    /// What went wrong, with the row it belongs to.
    pub(super) failures: Vec<String>,
}

impl Section {
    /// Columns aligned to the right, since they are numbers.
    fn text(&self) -> String {
        let lines = || std::iter::once(&self.header).chain(&self.rows);
        let mut widths = vec![0; self.header.len()];
        for line in lines() {
            for (width, cell) in widths.iter_mut().zip(line) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        for line in lines() {
            let cells: Vec<String> = line.iter().zip(&widths).map(|(cell, &width)| format!("{cell:>width$}")).collect();
            text.push_str(cells.join("  ").trim_end());
            text.push('\n');
        }
        for failure in &self.failures {
            text.push_str(&wrapped(failure));
        }
        text
    }
}

/// What was measured, on what.
pub(super) fn heading(report: &Report) -> String {
    let target = &report.target;
    let model = report.model.as_ref().map_or_else(String::new, |model| {
        format!(
            " ({}, {} parameters in {}, activations in {}, {}; KV cache in {})",
            model.family,
            count(model.parameters as f64),
            model.precision,
            model.activations,
            mebibytes(model.weights_bytes),
            model.kv_dtype
        )
    });
    let place = target.url.as_ref().map_or_else(String::new, |url| format!("server    {url}\n"));
    let machine = &report.machine;
    let cpu = machine.cpu.as_deref().unwrap_or("an unknown processor");
    let limits = report.limits.map_or_else(String::new, |limits| {
        format!(
            "limits    reading memory {:.1} GB/s, {} {} operations/s, with {} threads\n",
            limits.read_bytes_per_second / 1e9,
            limits.unit,
            giga(limits.operations_per_second),
            limits.threads
        ) + &limits.tiles.map_or_else(String::new, |tiles| {
            format!(
                "tiles     {} operations/s in registers, {} from the first level cache; a plain product reaches {}\n",
                giga(tiles.in_registers),
                giga(tiles.from_first_level_cache),
                giga(tiles.plain_product)
            )
        })
    });
    let counts = match target.token_counts {
        TokenCounts::Exact => "",
        TokenCounts::Reported => ", counted by the server",
        TokenCounts::Estimated => ", their tokens estimated",
    };
    format!(
        "model     {}{model}\n{place}machine   {cpu}, {} cores, {}\n{limits}prompts   {}{counts}\n",
        target.name, machine.cores, machine.instruction_set, target.prompts
    )
}

/// The tables that have rows.
pub(super) fn sections(report: &Report) -> Vec<Section> {
    let settings = &report.settings;
    let mut sections = Vec::new();
    if !report.prefill.is_empty() {
        let with_tiles = report.limits.is_some_and(|limits| limits.tiles.is_some());
        let of_limit = if with_tiles { "OF PRODUCT" } else { "OF PEAK" };
        sections.push(Section {
            id: "prefill",
            title: format!("Prompts: tokens/s, median of {}", settings.repetitions),
            header: header(&["PROMPT", "TOKENS/S", "MIN", "MAX", "MS", of_limit, "OTHERS"]),
            rows: report
                .prefill
                .iter()
                .map(|row| {
                    let spread = Summary::of(&row.samples);
                    vec![
                        row.measured_tokens
                            .map_or_else(|| row.prompt_tokens.to_string(), |tokens| format!("{tokens:.0}")),
                        number(row.tokens_per_second),
                        number(spread.map(|spread| spread.min)),
                        number(spread.map(|spread| spread.max)),
                        milliseconds(row.seconds.map(|seconds| seconds.median)),
                        percent(row.fraction_of_peak),
                        percent(row.others),
                    ]
                })
                .collect(),
            failures: report
                .prefill
                .iter()
                .flat_map(|row| failures(&format!("{} tokens", row.prompt_tokens), &row.failures))
                .collect(),
        });
    }
    if !report.decode.is_empty() {
        sections.push(Section {
            id: "decode",
            title: format!(
                "Decoding after {} tokens: tokens/s of all sequences, median of {}",
                settings.context, settings.repetitions
            ),
            header: header(&["SEQUENCES", "TOKENS/S", "MIN", "MAX", "EACH", "MS/TOKEN", "OF BANDWIDTH", "OTHERS"]),
            rows: report
                .decode
                .iter()
                .map(|row| {
                    let spread = Summary::of(&row.samples);
                    vec![
                        row.batch_size.to_string(),
                        number(row.tokens_per_second),
                        number(spread.map(|spread| spread.min)),
                        number(spread.map(|spread| spread.max)),
                        number(row.tokens_per_second.map(|all| all / row.batch_size as f64)),
                        milliseconds(row.tokens_per_second.map(|all| row.batch_size as f64 / all)),
                        percent(row.fraction_of_bandwidth),
                        percent(row.others),
                    ]
                })
                .collect(),
            failures: report
                .decode
                .iter()
                .flat_map(|row| failures(&format!("{} sequences", row.batch_size), &row.failures))
                .collect(),
        });
    }
    let asked = format!("{} tokens in, {} out", settings.input_tokens, settings.output_tokens);
    if !report.rates.is_empty() {
        let rows = report.rates.iter().map(|row| (format!("{}", row.requests_per_second), &row.load));
        sections.push(loads(
            "rates",
            format!("Server under requests that arrive at random for {:?}, {asked}", settings.rate_duration),
            "REQUESTS/S",
            " requests/s",
            rows.collect(),
        ));
    }
    if !report.clients.is_empty() {
        let rows = report.clients.iter().map(|row| (row.clients.to_string(), &row.load));
        let each = match settings.requests_per_client {
            1 => "1 request each".to_owned(),
            n => format!("{n} requests each, one after the other"),
        };
        sections.push(loads(
            "clients",
            format!("Server with clients that wait for their answers, {each}, {asked}"),
            "CLIENTS",
            " clients",
            rows.collect(),
        ));
    }
    sections
}

fn loads(id: &'static str, title: String, what: &str, unit: &str, rows: Vec<(String, &Load)>) -> Section {
    Section {
        id,
        title,
        header: header(&[
            what,
            "DONE",
            "FAILED",
            "TOKENS/S",
            "OUT/S",
            "FIRST TOKEN MS",
            "P95",
            "P99",
            "BETWEEN MS",
            "P95",
            "P99",
            "OTHERS",
        ]),
        failures: rows.iter().flat_map(|(name, load)| failures(&format!("{name}{unit}"), &load.failures)).collect(),
        rows: rows
            .into_iter()
            .map(|(name, load)| {
                let failed = load.failures.iter().map(|failure| failure.count).sum::<usize>();
                let mut cells = vec![
                    name,
                    load.completed.to_string(),
                    failed.to_string(),
                    number(load.tokens_per_second),
                    number(load.output_tokens_per_second),
                ];
                for summary in [load.time_to_first_token, load.between_tokens] {
                    cells.push(milliseconds(summary.map(|summary| summary.median)));
                    cells.push(milliseconds(summary.map(|summary| summary.p95)));
                    cells.push(milliseconds(summary.map(|summary| summary.p99)));
                }
                cells.push(percent(load.others));
                cells
            })
            .collect(),
    }
}

fn header(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn failures(row: &str, failures: &[FailureCount]) -> Vec<String> {
    failures.iter().map(|failure| format!("{row}: {} x {}", failure.count, failure.cause)).collect()
}

const UNKNOWN: &str = "-";

/// Three significant digits or more.
pub(super) fn number(value: Option<f64>) -> String {
    match value {
        None => UNKNOWN.to_owned(),
        Some(value) if value >= 100.0 => format!("{value:.0}"),
        Some(value) if value >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

fn milliseconds(seconds: Option<f64>) -> String {
    number(seconds.map(|seconds| 1e3 * seconds))
}

fn percent(fraction: Option<f64>) -> String {
    fraction.map_or_else(|| UNKNOWN.to_owned(), |fraction| format!("{:.0}%", 100.0 * fraction))
}

fn giga(value: f64) -> String {
    format!("{:.0} G", value / 1e9)
}

fn mebibytes(bytes: u64) -> String {
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    if mebibytes >= 1024.0 { format!("{:.1} GiB", mebibytes / 1024.0) } else { format!("{mebibytes:.1} MiB") }
}

/// `6.74 B`.
pub(super) fn count(value: f64) -> String {
    for (size, unit) in [(1e9, " B"), (1e6, " M"), (1e3, " k")] {
        if value >= size {
            return number(Some(value / size)) + unit;
        }
    }
    format!("{value:.0}")
}

/// At most 100 characters a line; what follows the first is indented.
fn wrapped(text: &str) -> String {
    const WIDTH: usize = 100;
    let mut lines = String::new();
    let mut width = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if width > 0 && width + 1 + length > WIDTH {
            lines.push_str("\n  ");
            width = 2;
        } else if width > 0 {
            lines.push(' ');
            width += 1;
        }
        lines.push_str(word);
        width += length;
    }
    lines.push('\n');
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        for (value, text) in [(0.0, "0.00"), (1.234, "1.23"), (12.34, "12.3"), (123.4, "123"), (12345.6, "12346")] {
            assert_eq!(number(Some(value)), text);
        }
        assert_eq!(
            (number(None), percent(Some(0.123)), milliseconds(Some(0.0123))),
            ("-".into(), "12%".into(), "12.3".into())
        );
        assert_eq!(
            (count(6_738_415_616.0), count(3_800_000.0), count(12.0)),
            ("6.74 B".into(), "3.80 M".into(), "12".into())
        );
        assert_eq!((mebibytes(7_700_000), mebibytes(13_476_831_232)), ("7.3 MiB".into(), "12.6 GiB".into()));
    }

    #[test]
    fn long_notes_are_wrapped() {
        let text = wrapped(&"word ".repeat(50));
        assert!(text.lines().count() == 3 && text.lines().all(|line| line.chars().count() <= 100), "{text}");
        assert!(text.lines().skip(1).all(|line| line.starts_with("  ")), "{text}");
    }
}
