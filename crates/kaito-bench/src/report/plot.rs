//! Plots as SVG, drawn with the page's own colours so that they follow light and dark.

use std::fmt::Write;

use super::{Load, Report, table::number};
use crate::statistics::Summary;

const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 44.0;

/// A plot below its title.
#[derive(serde::Serialize)]
pub(super) struct Plot {
    /// The section it belongs to.
    pub(super) section: &'static str,
    pub(super) title: String,
    pub(super) svg: String,
}

/// A line through points. Categories stand side by side on the x axis, whatever their distance.
struct Series {
    name: String,
    /// One for each category, where there is one.
    values: Vec<Option<f64>>,
    /// Least and greatest of each.
    spread: Vec<Option<(f64, f64)>>,
    /// How it is drawn.
    class: &'static str,
}

impl Series {
    fn new(class: &'static str, name: &str, values: Vec<Option<f64>>) -> Self {
        Self { name: name.to_owned(), spread: vec![None; values.len()], values, class }
    }
}

struct Axes<'a> {
    categories: Vec<String>,
    x: &'a str,
    y: &'a str,
    /// A limit, where it is the same for all categories.
    limit: Option<(f64, &'a str)>,
}

pub(super) fn plots(report: &Report) -> Vec<Plot> {
    let mut plots = Vec::new();
    let spread = |samples: &[f64]| Summary::of(samples).map(|summary| (summary.min, summary.max));
    if !report.prefill.is_empty() {
        let peak = report.limits.zip(report.model.as_ref());
        // That of long prompts, which the head, once a prompt, does not slow down.
        let peak = peak.map(|(limits, model)| limits.of_prompts() / (2.0 * model.layer_parameters as f64));
        let mut series =
            Series::new("s0", "tokens/s", report.prefill.iter().map(|row| row.tokens_per_second).collect());
        series.spread = report.prefill.iter().map(|row| spread(&row.samples)).collect();
        let axes = Axes {
            categories: report.prefill.iter().map(|row| row.prompt_tokens.to_string()).collect(),
            x: "tokens of the prompt",
            y: "tokens/s",
            limit: peak.map(|peak| (peak, "arithmetic limit")),
        };
        plots.push(Plot { section: "prefill", title: "Prompt tokens per second".into(), svg: draw(&axes, &[series]) });
    }
    if !report.decode.is_empty() {
        let mut all =
            Series::new("s0", "all sequences", report.decode.iter().map(|row| row.tokens_per_second).collect());
        all.spread = report.decode.iter().map(|row| spread(&row.samples)).collect();
        let each = report.decode.iter().map(|row| Some(row.tokens_per_second? / row.batch_size as f64)).collect();
        let axes = Axes {
            categories: report.decode.iter().map(|row| row.batch_size.to_string()).collect(),
            x: "sequences at once",
            y: "tokens/s",
            limit: None,
        };
        let mut series = vec![all, Series::new("s1", "each of them", each)];
        let limit: Vec<Option<f64>> =
            report.decode.iter().map(|row| Some(row.tokens_per_second? / row.fraction_of_bandwidth?)).collect();
        if limit.iter().any(Option::is_some) {
            series.push(Series::new("bound", "bandwidth limit", limit));
        }
        plots.push(Plot { section: "decode", title: "Decoded tokens per second".into(), svg: draw(&axes, &series) });
    }
    let rates: Vec<(String, &Load)> =
        report.rates.iter().map(|row| (row.requests_per_second.to_string(), &row.load)).collect();
    let clients: Vec<(String, &Load)> = report.clients.iter().map(|row| (row.clients.to_string(), &row.load)).collect();
    for (section, x, rows) in [("rates", "requests/s", &rates), ("clients", "clients", &clients)] {
        if rows.is_empty() {
            continue;
        }
        let axes = |y| Axes { categories: rows.iter().map(|(name, _)| name.clone()).collect(), x, y, limit: None };
        let mut latency = |title: &str, of: fn(&Load) -> Option<Summary>| {
            type Figure = fn(&Summary) -> f64;
            let figures: [(&str, &str, Figure); 3] =
                [("s0", "median", |s| s.median), ("s1", "95%", |s| s.p95), ("s2", "99%", |s| s.p99)];
            let series: Vec<Series> = figures
                .iter()
                .map(|(class, name, figure)| {
                    Series::new(class, name, rows.iter().map(|(_, load)| Some(1e3 * figure(&of(load)?))).collect())
                })
                .collect();
            plots.push(Plot { section, title: title.to_owned(), svg: draw(&axes("ms"), &series) });
        };
        latency("Time to the first token", |load| load.time_to_first_token);
        latency("Time between tokens", |load| load.between_tokens);
        let through = |of: fn(&Load) -> Option<f64>| rows.iter().map(|(_, load)| of(load)).collect();
        let series = [
            Series::new("s0", "prompts and answers", through(|load| load.tokens_per_second)),
            Series::new("s1", "answers", through(|load| load.output_tokens_per_second)),
        ];
        plots.push(Plot { section, title: "Tokens per second".into(), svg: draw(&axes("tokens/s"), &series) });
    }
    plots
}

/// Round steps of the y axis that reach `most`: a few of them, each 1, 2 or 5 times a power of ten.
fn ticks(most: f64) -> Vec<f64> {
    const STEPS: f64 = 5.0;
    if !(most.is_finite() && most > 0.0) {
        return vec![0.0, 1.0];
    }
    let rough = most / STEPS;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * power).find(|step| *step >= rough).unwrap_or(10.0 * power);
    let count = (most / step - 1e-9).ceil().max(1.0) as usize;
    (0..=count).map(|i| i as f64 * step).collect()
}

fn draw(axes: &Axes<'_>, series: &[Series]) -> String {
    let values = series.iter().flat_map(|series| &series.values).flatten().copied();
    let spreads = series.iter().flat_map(|series| &series.spread).flatten().map(|spread| spread.1);
    let greatest = values.chain(spreads).fold(0.0, f64::max);
    // A limit far above everything would leave a flat line: it is named beside the plot then.
    let limit = axes.limit.filter(|(limit, _)| *limit <= 4.0 * greatest);
    let ticks = ticks(limit.map_or(greatest, |(limit, _)| limit.max(greatest)));
    let most = ticks.last().copied().unwrap_or(1.0);
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let y = |value: f64| bottom - value / most * (bottom - TOP);
    let width = (right - LEFT) / axes.categories.len().max(1) as f64;
    let x = |category: usize| LEFT + (category as f64 + 0.5) * width;

    let mut svg = String::new();
    let _ = write!(svg, r#"<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{} by {}">"#, axes.y, axes.x);
    for tick in &ticks {
        let at = y(*tick);
        let label = if *tick == 0.0 { "0".to_owned() } else { trimmed(*tick) };
        let _ = write!(svg, r#"<line class="grid" x1="{LEFT}" y1="{at:.1}" x2="{right}" y2="{at:.1}"/>"#);
        let _ = write!(
            svg,
            r#"<text class="tick" x="{}" y="{:.1}" text-anchor="end">{label}</text>"#,
            LEFT - 8.0,
            at + 4.0
        );
    }
    for (i, category) in axes.categories.iter().enumerate() {
        let _ = write!(
            svg,
            r#"<text class="tick" x="{:.1}" y="{}" text-anchor="middle">{category}</text>"#,
            x(i),
            bottom + 18.0
        );
    }
    let middle = (LEFT + right) / 2.0;
    let _ =
        write!(svg, r#"<text class="axis" x="{middle}" y="{}" text-anchor="middle">{}</text>"#, HEIGHT - 6.0, axes.x);
    let _ = write!(
        svg,
        r#"<text class="axis" transform="translate(14 {:.1}) rotate(-90)" text-anchor="middle">{}</text>"#,
        (TOP + bottom) / 2.0,
        axes.y
    );
    if let Some((limit, name)) = limit {
        let at = y(limit);
        let _ = write!(svg, r#"<line class="limit" x1="{LEFT}" y1="{at:.1}" x2="{right}" y2="{at:.1}"/>"#);
        let _ = write!(svg, r#"<text class="tick" x="{right}" y="{:.1}" text-anchor="end">{name}</text>"#, at - 5.0);
    }
    for series in series {
        let points: Vec<(f64, f64, f64)> =
            series.values.iter().enumerate().filter_map(|(i, value)| Some((x(i), y((*value)?), (*value)?))).collect();
        let _ = write!(svg, r#"<g class="series {}">"#, series.class);
        for (i, spread) in series.spread.iter().enumerate() {
            if let Some((least, greatest)) = spread {
                let (x, from, to) = (x(i), y(*least), y(*greatest));
                let _ = write!(svg, r#"<line class="spread" x1="{x:.1}" y1="{from:.1}" x2="{x:.1}" y2="{to:.1}"/>"#);
            }
        }
        let path: Vec<String> = points.iter().map(|(x, y, _)| format!("{x:.1},{y:.1}")).collect();
        let _ = write!(svg, r#"<polyline points="{}"/>"#, path.join(" "));
        for (x, y, value) in &points {
            let value = number(Some(*value));
            let _ = write!(
                svg,
                r#"<circle cx="{x:.1}" cy="{y:.1}" r="4"><title>{}: {value}</title></circle>"#,
                series.name
            );
        }
        svg.push_str("</g>");
    }
    svg.push_str("</svg>");
    if series.len() > 1 {
        svg.push_str(r#"<p class="legend">"#);
        for series in series {
            let _ = write!(svg, r#"<span class="{}"><i></i>{}</span>"#, series.class, series.name);
        }
        svg.push_str("</p>");
    }
    svg
}

/// A number of an axis without zeros at its end.
fn trimmed(value: f64) -> String {
    let text = if value >= 1.0 { format!("{value:.1}") } else { format!("{value:.4}") };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_reach_the_greatest_value() {
        for (most, expected) in [
            (1.0, vec![0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
            (9.0, vec![0.0, 2.0, 4.0, 6.0, 8.0, 10.0]),
            (130.0, vec![0.0, 50.0, 100.0, 150.0]),
            (0.0, vec![0.0, 1.0]),
            (f64::NAN, vec![0.0, 1.0]),
        ] {
            let ticks = ticks(most);
            assert_eq!(ticks.len(), expected.len(), "{most}: {ticks:?}");
            for (tick, expected) in ticks.iter().zip(expected) {
                assert!((tick - expected).abs() < 1e-9, "{most}: {ticks:?}");
            }
        }
        assert_eq!((trimmed(1500.0), trimmed(2.5), trimmed(0.02)), ("1500".into(), "2.5".into(), "0.02".into()));
    }

    #[test]
    fn values_that_are_missing_leave_gaps() {
        let axes = Axes { categories: vec!["1".into(), "2".into()], x: "x", y: "y", limit: Some((9e9, "limit")) };
        let svg =
            draw(&axes, &[Series::new("s0", "a", vec![None, Some(3.0)]), Series::new("s1", "b", vec![None, None])]);
        assert_eq!(svg.matches("<circle").count(), 1);
        assert!(!svg.contains("NaN") && !svg.contains("limit\""), "{svg}");
    }
}
