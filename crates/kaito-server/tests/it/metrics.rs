//! The metrics that vLLM's dashboards and autoscalers read: names, types, labels and buckets are vLLM's.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use kaito_engine::LoadOptions;
use kaito_engine::testing::NullModel;
use kaito_server::ServerOptions;
use kaito_testing::files::letters;
use kaito_testing::server::{CHAT_MODEL, TestServer, load, options};
use kaito_testing::wait::eventually;
use serde_json::{Value, json};

use crate::null_model::{serve, stream, tokens};

/// `vllm/v1/metrics/loggers.py`.
const FIRST_TOKEN: &str = "0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1.0 2.5 5.0 7.5 10.0 20.0 40.0 80.0 160.0 \
                           640.0 2560.0";
const PER_TOKEN: &str = "0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1.0 2.5 5.0 7.5 10.0 20.0 40.0 80.0";
const PHASE: &str =
    "0.3 0.5 0.8 1.0 1.5 2.0 2.5 5.0 10.0 15.0 20.0 30.0 40.0 50.0 60.0 120.0 240.0 480.0 960.0 1920.0 7680.0";
/// `build_1_2_5_buckets` for a model of 512 tokens.
const TOKENS: &str = "1.0 2.0 5.0 10.0 20.0 50.0 100.0 200.0 500.0";
const SAMPLES: &str = "1.0 2.0 5.0 10.0 20.0";

const GAUGES: [(&str, &str); 5] = [
    ("vllm:num_requests_running", ""),
    ("vllm:num_requests_waiting", ""),
    ("vllm:kv_cache_usage_perc", ""),
    ("vllm:cache_config_info", "block_size num_gpu_blocks"),
    ("vllm:lora_requests_info", "max_lora running_lora_adapters waiting_lora_adapters"),
];
const COUNTERS: [(&str, &str); 8] = [
    ("vllm:prompt_tokens_total", ""),
    ("vllm:generation_tokens_total", ""),
    ("vllm:num_preemptions_total", ""),
    ("vllm:prefix_cache_queries_total", ""),
    ("vllm:prefix_cache_hits_total", ""),
    ("vllm:request_success_total", "finished_reason"),
    ("vllm:spec_decode_num_draft_tokens_total", ""),
    ("vllm:spec_decode_num_accepted_tokens_total", ""),
];
const HISTOGRAMS: [(&str, &str); 14] = [
    ("vllm:time_to_first_token_seconds", FIRST_TOKEN),
    ("vllm:inter_token_latency_seconds", PER_TOKEN),
    ("vllm:time_per_output_token_seconds", PER_TOKEN),
    ("vllm:request_time_per_output_token_seconds", PER_TOKEN),
    ("vllm:e2e_request_latency_seconds", PHASE),
    ("vllm:request_queue_time_seconds", PHASE),
    ("vllm:request_inference_time_seconds", PHASE),
    ("vllm:request_prefill_time_seconds", PHASE),
    ("vllm:request_decode_time_seconds", PHASE),
    ("vllm:request_prompt_tokens", TOKENS),
    ("vllm:request_generation_tokens", TOKENS),
    ("vllm:request_max_num_generation_tokens", TOKENS),
    ("vllm:request_params_n", SAMPLES),
    ("vllm:request_params_max_tokens", TOKENS),
];

/// A sample: its labels and its value.
type Sample = (BTreeMap<String, String>, f64);

/// What a scrape says.
#[derive(Debug, Default)]
struct Scrape {
    types: BTreeMap<String, String>,
    samples: BTreeMap<String, Vec<Sample>>,
}

impl Scrape {
    async fn of(server: &TestServer) -> Self {
        let text = server.get("/metrics").await.text().await.unwrap();
        let mut scrape = Self::default();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(scrape.types.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} twice");
            } else if !line.starts_with('#') {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let (name, labels) = series.split_once('{').unwrap_or((series, ""));
                let labels = labels.trim_end_matches('}').split("\",").filter(|label| !label.is_empty());
                let label = |label: &str| {
                    let (name, value) = label.split_once("=\"").unwrap();
                    (name.to_owned(), value.trim_end_matches('"').to_owned())
                };
                let sample = (labels.map(label).collect(), value.parse().unwrap());
                scrape.samples.entry(name.to_owned()).or_default().push(sample);
            }
        }
        scrape
    }

    fn samples(&self, name: &str) -> &[Sample] {
        self.samples.get(name).map_or(&[], Vec::as_slice)
    }

    /// The value of the only sample of a name, or of the one whose label is `(name, value)`.
    fn value(&self, name: &str, label: Option<(&str, &str)>) -> f64 {
        let wanted = |(labels, _): &&Sample| label.is_none_or(|(name, value)| labels[name] == value);
        let mut found = self.samples(name).iter().filter(wanted);
        match (found.next(), found.next()) {
            (Some((_, value)), None) => *value,
            found => panic!("{name}: {found:?}"),
        }
    }

    fn endings(&self) -> [f64; 4] {
        ["stop", "length", "abort", "error"]
            .map(|ending| self.value("vllm:request_success_total", Some(("finished_reason", ending))))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_types_labels_and_buckets_are_those_of_vllm() {
    let server = TestServer::start(CHAT_MODEL).await;
    let scrape = Scrape::of(&server).await;
    let table = GAUGES.iter().map(|row| (row, "gauge")).chain(COUNTERS.iter().map(|row| (row, "counter")));
    for ((name, labels), kind) in table {
        assert_eq!(scrape.types.get(*name).map(String::as_str), Some(kind), "{name}");
        let samples = scrape.samples(name);
        assert!(!samples.is_empty(), "{name}");
        for (has, _) in samples {
            assert_eq!((has["model_name"].as_str(), has["engine"].as_str()), ("tiny", "0"), "{name}");
            assert!(labels.split(' ').all(|label| label.is_empty() || has.contains_key(label)), "{name} {has:?}");
        }
    }
    for (name, buckets) in HISTOGRAMS {
        assert_eq!(scrape.types.get(name).map(String::as_str), Some("histogram"), "{name}");
        let has = scrape.samples(&format!("{name}_bucket"));
        let bounds: Vec<_> = has.iter().map(|(labels, _)| labels["le"].as_str()).collect();
        assert_eq!(bounds.join(" "), format!("{buckets} +Inf"), "{name}");
        for part in ["bucket", "sum", "count"] {
            let samples = scrape.samples(&format!("{name}_{part}"));
            assert!(!samples.is_empty() && samples.iter().all(|(labels, _)| labels["model_name"] == "tiny"), "{name}");
        }
    }
    let (cache, _) = &scrape.samples("vllm:cache_config_info")[0];
    let stats = server.model.stats();
    assert_eq!((cache["block_size"].as_str(), &cache["num_gpu_blocks"]), ("16", &stats.pages_total.to_string()));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_sequence_is_a_request_and_its_phases_add_up() {
    let server = TestServer::start(CHAT_MODEL).await;
    // One sequence, then three of one prompt, then two prompts, then beams.
    let one = json!({ "prompt": "Hello", "do_sample": false, "max_new_tokens": 7, "min_new_tokens": 7 });
    let mut three = one.clone();
    three["do_sample"] = true.into();
    three["num_return_sequences"] = 3.into();
    let two = json!({ "prompts": ["One", "Two words"], "parameters": { "temperature": 0, "max_gen_len": 4 } });
    let mut beams = one.clone();
    beams["num_beams"] = 2.into();
    for (path, body) in [("/chat", one), ("/chat", three), ("/generate", two)] {
        server.ask(path, &body).await;
    }
    let before = Scrape::of(&server).await;
    let generated = before.value("vllm:request_generation_tokens_sum", None);
    assert_eq!(generated, before.value("vllm:generation_tokens_total", None));
    server.ask("/chat", &beams).await;
    let scrape = Scrape::of(&server).await;
    let count = |name: &str| scrape.value(&format!("vllm:{name}_count"), None);
    let sum = |name: &str| scrape.value(&format!("vllm:{name}_sum"), None);
    let [stop, length, abort, error] = scrape.endings();
    assert_eq!((stop + length, abort, error), (7.0, 0.0, 0.0));
    for name in ["e2e_request_latency_seconds", "request_queue_time_seconds", "request_prompt_tokens"] {
        assert_eq!(count(name), 7.0, "{name}");
    }
    // All but the beams, whose tokens come at the end.
    for name in ["time_to_first_token_seconds", "request_prefill_time_seconds", "request_decode_time_seconds"] {
        assert_eq!(count(name), 6.0, "{name}");
    }
    let (inference, parts) = (
        sum("request_inference_time_seconds"),
        sum("request_prefill_time_seconds") + sum("request_decode_time_seconds"),
    );
    assert!((inference - parts).abs() < 1e-6 && inference > 0.0, "{inference} {parts}");
    assert!(sum("e2e_request_latency_seconds") >= inference);
    assert_eq!((count("request_params_n"), sum("request_params_n")), (5.0, 1.0 + 3.0 + 1.0 + 1.0 + 1.0));
    assert_eq!(sum("request_params_max_tokens"), 7.0 + 7.0 + 4.0 + 4.0 + 7.0);
    assert_eq!(sum("request_generation_tokens"), generated + 7.0, "of the beams, the one that is answered");
    assert_eq!(sum("inter_token_latency_seconds"), sum("time_per_output_token_seconds"));
    assert_eq!(scrape.value("vllm:prefix_cache_queries_total", None), scrape.value("vllm:prompt_tokens_total", None));
    assert_eq!(scrape.value("vllm:kv_cache_usage_perc", None), 0.0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_leave_are_aborts_and_the_queue_is_seen() {
    let (server, null) = serve(1, options()).await;
    null.device.allow(0);
    let runs = tokio::spawn(server.request("/chat", &stream(3)).send());
    null.device.waits().await;
    let waits = tokio::spawn(server.request("/chat", &tokens(2)).send());
    eventually("it waits", async || server.model.stats().waiting == 1).await;
    let scrape = Scrape::of(&server).await;
    assert_eq!(scrape.value("vllm:num_requests_running", None), 1.0);
    assert_eq!(scrape.value("vllm:num_requests_waiting", None), 1.0);
    let (used, total) = (server.model.stats().pages_used as f64, server.model.stats().pages_total as f64);
    assert_eq!(scrape.value("vllm:kv_cache_usage_perc", None), used / total);
    assert!(used > 0.0);
    waits.abort();
    eventually("it is an abort", async || Scrape::of(&server).await.endings()[2] == 1.0).await;
    null.device.release();
    assert_eq!(runs.await.unwrap().unwrap().text().await.unwrap().matches("event: result").count(), 1);
    eventually("the other one ended", async || Scrape::of(&server).await.endings() == [0.0, 1.0, 1.0, 0.0]).await;
    server.stop().await;
}

/// All texts of a JSON document that stand at `key`.
fn all<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                if let (true, Value::String(text)) = (name == key, value) {
                    found.push(text);
                }
                all(value, key, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| all(item, key, found)),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dashboard_asks_for_metrics_that_there_are() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let text = read("docs/grafana-dashboard.json");
    assert_eq!(text, read("charts/kaito/files/dashboard.json"), "the one in docs is a link to that of the chart");
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut queries = Vec::new();
    all(&dashboard, "expr", &mut queries);
    let panels = queries.len();
    all(&dashboard["templating"], "query", &mut queries);
    assert!(panels > 20 && queries.len() > panels, "{panels} {}", queries.len());

    let server = TestServer::with(load(CHAT_MODEL, &LoadOptions::default()), ServerOptions { ..options() }).await;
    server.ask("/chat", &json!({ "prompt": "Hello", "max_new_tokens": 2 })).await;
    let scrape = Scrape::of(&server).await;
    let is_part_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut names = 0;
    for query in queries {
        let words = query.split(|c| !is_part_of_name(c));
        for name in words.filter(|word| word.starts_with("kaito_") || word.starts_with("vllm:")) {
            names += 1;
            assert!(scrape.samples.contains_key(name), "{name} in {query}");
        }
    }
    assert!(names > 40, "{names}");
    // What a query sums by, or shows in a legend, is a label.
    for label in ["route", "status", "finished_reason", "model_name"] {
        assert!(scrape.samples.values().flatten().any(|(labels, _)| labels.contains_key(label)), "{label}");
    }
    server.stop().await;
}

/// An adapter whose requests wait is not among those that run.
#[tokio::test(flavor = "multi_thread")]
async fn adapters_of_requests_that_wait_are_told_apart_from_those_that_run() {
    let names = ["idle", "runs", "waits"];
    let null = NullModel::with_adapters(&letters(), 400, 1, &names).unwrap();
    let server = TestServer::with(null.model.clone(), options()).await;
    let expect = async |running: &str, waiting: &str| {
        let scrape = Scrape::of(&server).await;
        let (labels, at) = &scrape.samples("vllm:lora_requests_info")[0];
        let label = |name: &str| labels[name].as_str();
        assert_eq!((label("running_lora_adapters"), label("waiting_lora_adapters")), (running, waiting));
        assert_eq!(label("max_lora"), "3");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((now - 60.0..=now).contains(at), "{at}");
    };
    let ask = |adapter: &str| {
        let request = json!({ "model": adapter, "prompt": "Hello", "temperature": 0, "max_tokens": 2 });
        tokio::spawn(server.request("/v1/completions", &request).send())
    };
    expect("", "").await;
    null.device.allow(0);
    let runs = ask("runs");
    null.device.waits().await;
    expect("runs", "").await;
    let waits = ask("waits");
    eventually("it waits", async || server.model.stats().waiting == 1).await;
    expect("runs", "waits").await;
    let waits_too = ask("runs");
    eventually("another waits", async || server.model.stats().waiting == 2).await;
    expect("runs", "runs,waits").await;
    null.device.release();
    for request in [runs, waits, waits_too] {
        assert_eq!(request.await.unwrap().unwrap().status(), 200);
    }
    eventually("nothing is left", async || server.model.adapters().running().is_empty()).await;
    expect("", "").await;
    server.stop().await;
}
