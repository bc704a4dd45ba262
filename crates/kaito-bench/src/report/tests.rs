//! What a report looks like, for one that was made up.

use std::time::Duration;

use kaito_kernels::{Operands, TileElements, Unit};

use super::*;
use crate::{Table, limits::TileLimits};

fn summary(median: f64) -> Option<Summary> {
    Some(Summary {
        count: 40,
        min: median / 2.0,
        mean: median * 1.1,
        median,
        p95: median * 2.0,
        p99: median * 3.0,
        max: median * 4.0,
    })
}

fn load(rate: f64, failures: Vec<FailureCount>) -> Load {
    let failed: usize = failures.iter().map(|failure| failure.count).sum();
    Load {
        requests: 40,
        completed: 40 - failed,
        input_tokens: 40 * 128,
        output_tokens: 40 * 128,
        seconds: 20.0,
        tokens_per_second: Some(rate * 256.0),
        output_tokens_per_second: Some(rate * 128.0),
        time_to_first_token: summary(0.045 * rate),
        between_tokens: summary(0.0123),
        request_seconds: summary(1.9),
        others: Some(0.02),
        failures,
    }
}

pub(crate) fn model() -> Model {
    Model {
        family: "llama".to_owned(),
        parameters: 1_100_048_384,
        layer_parameters: 968_884_224,
        head_parameters: 65_536_000,
        precision: "int8".to_owned(),
        activations: "int8".to_owned(),
        kernels: "avx512".to_owned(),
        weights_bytes: 1_234_567_890,
        step_bytes: 1_100_000_000,
        kv_dtype: "f32".to_owned(),
        kv_bytes_per_token: 45_056,
        attention_window: None,
        max_seq_len: 2048,
        threads: 2,
    }
}

fn report() -> Report {
    Report {
        schema: SCHEMA,
        version: "0.1.0",
        started: "2026-01-02T03:04:05Z".to_owned(),
        interrupted: false,
        target: TargetInfo {
            kind: TargetKind::Engine,
            url: None,
            api: Api::Kaito,
            name: "a <model> & more".to_owned(),
            prompts: "random token ids",
            token_counts: TokenCounts::Exact,
        },
        model: Some(model()),
        machine: Machine { cpu: Some("A Processor @ 2 GHz".to_owned()), cores: 2, instruction_set: "avx512" },
        settings: Settings {
            measure: vec![Table::Prefill, Table::Decode, Table::Rates, Table::Clients],
            prompt_lengths: vec![16, 512, 4096],
            batch_sizes: vec![1, 16],
            context: 128,
            decode_tokens: 32,
            request_rates: vec![0.5, 4.0],
            rate_duration: Duration::from_secs(20),
            clients: vec![16],
            requests_per_client: 2,
            input_tokens: 128,
            output_tokens: 128,
            repetitions: 5,
            time_limit: Duration::from_secs(120),
            seed: 0,
            temperature: 0.0,
            speculate: Some(false),
        },
        limits: Some(Limits {
            threads: 2,
            read_bytes_per_second: 32.5e9,
            operations_per_second: 1508e9,
            unit: Unit::Int8,
            tiles: None,
        }),
        prefill: [(16, Some(180.5)), (512, Some(420.25))]
            .into_iter()
            .map(|(prompt_tokens, rate)| PrefillRow {
                prompt_tokens,
                measured_tokens: Some(prompt_tokens as f64),
                tokens_per_second: rate,
                samples: rate.into_iter().flat_map(|rate| [rate * 0.95, rate, rate * 1.02]).collect(),
                seconds: rate.and_then(|rate| summary(prompt_tokens as f64 / rate)),
                fraction_of_peak: Some(0.6),
                others: Some(0.12),
                failures: Vec::new(),
            })
            .chain([PrefillRow {
                prompt_tokens: 4096,
                failures: vec![FailureCount { cause: "not done within the time limit of 120s".to_owned(), count: 1 }],
                ..PrefillRow::default()
            }])
            .collect(),
        decode: [(1, 24.6), (16, 210.0)]
            .map(|(batch_size, rate)| DecodeRow {
                batch_size,
                context: 128,
                tokens_per_second: Some(rate),
                samples: vec![rate * 0.9, rate, rate * 1.1],
                between_tokens: summary(batch_size as f64 / rate),
                fraction_of_bandwidth: Some(0.83),
                others: None,
                failures: Vec::new(),
            })
            .into(),
        rates: vec![
            RateRow { requests_per_second: 0.5, load: load(0.5, Vec::new()) },
            RateRow {
                requests_per_second: 4.0,
                load: load(
                    4.0,
                    vec![FailureCount { cause: "status 429: 256 requests wait already".to_owned(), count: 7 }],
                ),
            },
        ],
        clients: vec![ClientsRow { clients: 16, load: load(1.0, Vec::new()) }],
        notes: vec!["Other processes used up to 12% of the cores <column OTHERS>.".to_owned()],
    }
}

#[test]
fn the_tables() {
    insta::assert_snapshot!(tables(&report()));
}

#[test]
fn tiles_have_limits_of_their_own() {
    let mut report = report();
    let tiles = TileLimits { in_registers: 7887e9, from_first_level_cache: 2062e9, plain_product: 1049e9 };
    let unit = Unit::Tiles(TileElements::Int8, Operands::SecondLevelCache);
    report.limits = report.limits.map(|limits| Limits { unit, tiles: Some(tiles), ..limits });
    let text = tables(&report);
    for part in [
        "int8 tile product, operands from the second level cache 1508 G operations/s, with 2 threads\n",
        "tiles     7887 G operations/s in registers, 2062 G from the first level cache; a plain product reaches 1049 G\n",
        "OF PRODUCT",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("OF PEAK"), "{text}");
}

#[test]
fn a_server_without_anything_known_of_it() {
    let mut report = report();
    report.model = None;
    report.limits = None;
    report.machine.cpu = None;
    report.target.kind = TargetKind::Server;
    report.target.url = Some("http://10.0.0.1:8080/".to_owned());
    report.target.token_counts = TokenCounts::Estimated;
    report.prefill.truncate(1);
    report.prefill[0].fraction_of_peak = None;
    report.decode.clear();
    report.rates.clear();
    report.clients.clear();
    report.notes.clear();
    insta::assert_snapshot!(tables(&report));
    assert_eq!(page(&report).unwrap().matches("<svg").count(), 1);
}

#[test]
fn failures_are_counted_over_all_tables() {
    let mut report = report();
    assert_eq!(report.failed_requests(), 8);
    assert!(!report.is_complete());
    report.prefill.pop();
    report.rates.pop();
    assert!(report.is_complete());
    report.interrupted = true;
    assert!(!report.is_complete());
}

#[test]
fn the_page_is_well_formed_and_stands_alone() {
    let page = page(&report()).unwrap();
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..roxmltree::ParsingOptions::default() };
    let document = roxmltree::Document::parse_with_options(&page, options).unwrap();
    let count = |name: &str| document.descendants().filter(|node| node.has_tag_name(name)).count();
    // Prompts and decoding have a plot each, rates and clients three.
    assert_eq!((count("svg"), count("table"), count("section")), (8, 4, 4));
    assert_eq!(count("script") + count("link") + count("img") + count("iframe"), 0);
    for node in document.descendants() {
        for attribute in node.attributes() {
            assert!(!["src", "href", "style", "onload"].contains(&attribute.name()), "{attribute:?}");
        }
    }
    for reference in ["http://", "https://", "url(", "@import"] {
        assert!(!page.contains(reference), "{reference}");
    }
    let heading = document.descendants().find(|node| node.has_tag_name("h1")).unwrap();
    assert_eq!(heading.text(), Some("a <model> & more"));
    let cells: Vec<&str> =
        document.descendants().filter(|node| node.has_tag_name("td")).filter_map(|node| node.text()).collect();
    assert!(cells.contains(&"420") && cells.contains(&"83%"), "{cells:?}");
}
