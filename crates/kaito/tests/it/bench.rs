//! `kaito bench` from outside: what it measures of an engine, of our server and of one that speaks OpenAI's API.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    fs,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
    serve::ListenerExt,
};
use kaito_testing::{
    background::Background,
    process::{Serving, free_port, output, text},
};
use serde_json::{Value, json};

use crate::{
    documents::{blocks_of, read},
    program::kaito,
};

/// Small enough for a busy machine.
const SMALL: [&str; 18] = [
    "--prompt-lengths",
    "16,40",
    "--batch-sizes",
    "1,3",
    "--context",
    "16",
    "--decode-tokens",
    "8",
    "--repetitions",
    "2",
    "--request-rates",
    "20",
    "--rate-duration",
    "1s",
    "--clients",
    "3",
    "--input-tokens=16",
    "--output-tokens=8",
];

fn bench(args: &[&str]) -> Command {
    kaito(&["bench"].iter().chain(&SMALL).chain(args).copied().collect::<Vec<_>>())
}

/// The report of a run that goes well.
fn report(args: &[&str]) -> Value {
    let output = output(bench(args).args(["--json", "-"]));
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// The shape that docs/bench.md describes, and figures that agree with each other.
fn check(report: &Value) {
    let document = read("docs/bench.md");
    let described = |table: &str| -> BTreeSet<String> {
        let section = document.split(&format!("### `{table}`")).nth(1).unwrap_or_else(|| panic!("no section {table}"));
        let lines = section.lines().skip(1).take_while(|line| !line.starts_with('#'));
        lines.filter_map(|line| Some(line.strip_prefix("| `")?.split('`').next()?.to_owned())).collect()
    };
    let same = |value: &Value, table: &str| {
        let expected = described(table);
        assert_eq!(keys(value), expected.iter().map(String::as_str).collect(), "{table}");
    };
    same(report, "report");
    same(&report["target"], "target");
    same(&report["settings"], "settings");
    same(&report["machine"], "machine");
    let tiles = &report["limits"]["tiles"];
    for (optional, name) in [(&report["limits"], "limits"), (&report["model"], "model"), (tiles, "tiles")] {
        if !optional.is_null() {
            same(optional, name);
        }
    }
    assert_eq!(report["schema"], "kaito-bench/1");
    let rows = |table: &str| report[table].as_array().unwrap().clone();
    let ordered = |summary: &Value| {
        same(summary, "summary");
        let figures: Vec<f64> =
            ["min", "median", "p95", "p99", "max"].iter().map(|name| summary[name].as_f64().unwrap()).collect();
        assert!(figures.is_sorted() && figures[0] >= 0.0, "{summary}");
    };
    for row in rows("prefill") {
        same(&row, "prefill");
        assert!(row["tokens_per_second"].as_f64().unwrap() > 0.0, "{row}");
        ordered(&row["seconds"]);
        assert_eq!(row["seconds"]["count"], row["samples"].as_array().unwrap().len());
    }
    for row in rows("decode") {
        same(&row, "decode");
        assert!(row["tokens_per_second"].as_f64().unwrap() > 0.0, "{row}");
        ordered(&row["between_tokens"]);
    }
    for row in rows("rates").iter().chain(&rows("clients")) {
        same(row, if row["clients"].is_null() { "rates" } else { "clients" });
        for figure in ["time_to_first_token", "between_tokens", "request_seconds"] {
            ordered(&row[figure]);
        }
        assert!(row["tokens_per_second"].as_f64() > row["output_tokens_per_second"].as_f64(), "{row}");
    }
}

#[test]
fn a_model_in_this_process() {
    let folder = tempfile::tempdir().unwrap();
    let (json, html) = (folder.path().join("report.json"), folder.path().join("report.html"));
    let output = output(bench(&[]).arg("--json").arg(&json).arg("--html").arg(&html));
    let tables = text(&output.stdout);
    assert!(output.status.success(), "{tables}{}", text(&output.stderr));
    for part in
        ["model     demo (llama, 3.", "limits    reading memory", "Prompts:", "Decoding after 16", "CLIENTS", "OF P"]
    {
        assert!(tables.contains(part), "{part}: {tables}");
    }

    let report: Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    check(&report);
    assert_eq!((&report["target"]["kind"], &report["target"]["name"]), (&json!("engine"), &json!("demo")));
    assert_eq!(report["target"]["token_counts"], "exact");
    assert_eq!(report["interrupted"], false);
    let lengths: Vec<&Value> = report["prefill"].as_array().unwrap().iter().map(|row| &row["prompt_tokens"]).collect();
    assert_eq!(lengths, [16, 40]);
    for row in report["prefill"].as_array().unwrap() {
        assert_eq!(row["measured_tokens"].as_f64(), row["prompt_tokens"].as_f64());
        assert_eq!(row["samples"].as_array().unwrap().len(), 2);
        assert!(row["fraction_of_peak"].as_f64().unwrap() > 0.0);
    }
    let batches: Vec<&Value> = report["decode"].as_array().unwrap().iter().map(|row| &row["batch_size"]).collect();
    assert_eq!(batches, [1, 3]);
    assert!(report["decode"][0]["fraction_of_bandwidth"].as_f64().unwrap() > 0.0);
    // Three clients with two requests each, all of full length.
    let clients = &report["clients"][0];
    assert_eq!((&clients["requests"], &clients["completed"]), (&json!(6), &json!(6)));
    assert_eq!((&clients["output_tokens"], &clients["failures"]), (&json!(48), &json!([])));
    let input = clients["input_tokens"].as_u64().unwrap();
    assert!((48..=192).contains(&input), "about 16 tokens each, counted by the server: {input}");
    let rates = &report["rates"][0];
    assert_eq!(rates["requests"], rates["completed"]);
    assert_eq!(rates["output_tokens"].as_u64().unwrap(), 8 * rates["completed"].as_u64().unwrap());

    let page = fs::read_to_string(html).unwrap();
    assert_eq!(page.matches("<svg").count(), 8);
    assert!(page.contains("<h1>demo</h1>"));
}

#[test]
fn our_server_from_outside() {
    let serving = Serving::start(&mut kaito(&["serve", "--speculate", "false"]));
    let url = format!("http://{}", serving.address);
    for (api, counts) in [("auto", "as the server reports"), ("generate", "estimated")] {
        let report = report(&["--url", &url, "--api", api]);
        check(&report);
        assert_eq!(report["target"]["kind"], "server");
        assert_eq!(report["target"]["api"], if api == "auto" { "kaito" } else { api });
        assert_eq!((&report["target"]["name"], &report["target"]["token_counts"]), (&json!("demo"), &json!(counts)));
        assert_eq!(report["prefill"].as_array().unwrap().len(), 2);
        assert_eq!(report["decode"].as_array().unwrap().len(), 2);
        let clients = &report["clients"][0];
        assert_eq!((&clients["completed"], &clients["failures"]), (&json!(6), &json!([])));
        if api == "auto" {
            assert_eq!(clients["output_tokens"], 48, "its answers cannot end early");
            let measured = report["prefill"][1]["measured_tokens"].as_f64().unwrap();
            assert!((20.0..=80.0).contains(&measured), "about 40 tokens: {measured}");
        }
        // Its metrics describe the model, and it runs here.
        assert_eq!(report["model"]["precision"], "bf16");
        assert!(report["prefill"][0]["fraction_of_peak"].as_f64() > Some(0.0), "{report}");
    }
    assert_eq!(serving.terminate().code(), Some(0));
}

/// A key that is missing is told apart from a server that is missing.
#[test]
fn a_server_that_asks_for_a_key() {
    let serving = Serving::start(kaito(&["serve"]).env("KAITO_API_KEY", "not-to-be-printed"));
    let url = format!("http://{}", serving.address);
    let refused = output(&mut bench(&["--url", &url]));
    assert_eq!(refused.status.code(), Some(1));
    for part in ["status 401", "--api-key"] {
        assert!(text(&refused.stderr).contains(part), "{part}: {}", text(&refused.stderr));
    }
    let output = output(bench(&["--url", &url, "--measure", "prefill"]).env("KAITO_API_KEY", "not-to-be-printed"));
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(!text(&output.stdout).contains("not-to-be-printed"));
}

#[test]
fn what_cannot_be_measured_says_why() {
    let nobody = format!("http://127.0.0.1:{}", free_port());
    for (args, parts) in [
        (&["--url", &nobody][..], &[nobody.as_str(), "refused", "is the server running there?"][..]),
        (&["--prompt-lengths", "0"], &["--prompt-lengths has 0"]),
        (&["--request-rates=-1"], &["--request-rates has -1"]),
        (&["--clients", "1000", "--requests-per-client", "1000"], &["at most 100000"]),
    ] {
        let output = output(&mut kaito(&["bench"].iter().chain(args).copied().collect::<Vec<_>>()));
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {message}");
        assert!(output.stdout.is_empty());
        for part in parts {
            assert!(message.contains(part), "{args:?} lacks {part:?}: {message}");
        }
    }
}

/// Speaks OpenAI's completions as llama-server does; what it is asked for decides what it does.
struct OpenAi {
    url: String,
    requests: Arc<AtomicUsize>,
    _background: Background,
}

/// What becomes of the requests after the first one, which tries the server out.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Well,
    /// Every third request of several tokens fails, each time in another way.
    Badly,
    /// From the sixth request on nothing comes any more.
    Hanging,
}

impl OpenAi {
    fn start(manner: Manner) -> Self {
        let requests = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&requests);
        let complete = move |Json(body): Json<Value>| {
            let number = counter.fetch_add(1, SeqCst);
            async move { complete(manner, number, &body) }
        };
        let models = || async { Json(json!({"data": [{"id": "tiny", "meta": {"n_vocab": 100}}]})) };
        let router = Router::new().route("/v1/completions", post(complete)).route("/v1/models", get(models));
        let background = Background::new();
        let address = background.listen(|listener| async {
            // Small pieces are sent as they come.
            axum::serve(listener.tap_io(|stream| stream.set_nodelay(true).unwrap()), router).await
        });
        Self { url: format!("http://{address}"), requests, _background: background }
    }
}

fn complete(manner: Manner, number: usize, body: &Value) -> Response {
    let prompt = body["prompt"].as_array().unwrap();
    assert!(prompt.iter().all(|id| id.as_u64().unwrap() < 100));
    assert_eq!((&body["stream"], &body["ignore_eos"], &body["own"]), (&json!(true), &json!(true), &json!(1)));
    let output = body["max_tokens"].as_u64().unwrap();
    let event = |value: &Value| format!("data: {value}\n\n");
    let token = event(&json!({"choices": [{"index": 0, "text": "x", "finish_reason": null}]}));
    let usage = json!({"prompt_tokens": prompt.len(), "completion_tokens": output});
    let end = event(&json!({"choices": [{"index": 0, "text": "", "finish_reason": "length"}], "usage": usage}));
    let done = "data: [DONE]\n\n".to_owned();
    let tokens: Vec<String> = (0..output).map(|_| token.clone()).collect();
    let pieces: Vec<String> = match (manner, number) {
        (Manner::Hanging, 6..) => return stream(Vec::new(), true),
        (Manner::Badly, number) if output > 1 && number % 9 == 0 => {
            return (StatusCode::TOO_MANY_REQUESTS, Json(json!({"error": {"message": "all slots are busy"}})))
                .into_response();
        }
        (Manner::Badly, number) if output > 1 && number % 9 == 3 => vec![token],
        (Manner::Badly, number) if output > 1 && number % 9 == 6 => {
            vec![token, event(&json!({"error": {"code": 500, "message": "out of slots"}}))]
        }
        _ => tokens.into_iter().chain([end, done]).collect(),
    };
    stream(pieces, false)
}

/// Pieces that come one after the other, some time apart, and then an end or none.
fn stream(pieces: Vec<String>, hangs: bool) -> Response {
    let mut pieces = pieces.into_iter();
    let stream = futures_util::stream::poll_fn({
        let mut sleep = Box::pin(tokio::time::sleep(Duration::from_millis(2)));
        move |context| {
            if hangs {
                return std::task::Poll::Pending;
            }
            std::task::ready!(std::future::Future::poll(sleep.as_mut(), context));
            sleep = Box::pin(tokio::time::sleep(Duration::from_millis(2)));
            std::task::Poll::Ready(pieces.next().map(|piece| Ok::<_, Infallible>(Bytes::from(piece))))
        }
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(stream)).into_response()
}

#[test]
fn a_server_with_openais_api() {
    let server = OpenAi::start(Manner::Well);
    let report = report(&["--url", &server.url, "--body", r#"{"own": 1}"#]);
    check(&report);
    assert_eq!((&report["target"]["api"], &report["target"]["name"]), (&json!("openai"), &json!("tiny")));
    assert_eq!(
        (&report["target"]["token_counts"], &report["target"]["prompts"]),
        (&json!("exact"), &json!("random token ids"))
    );
    assert_eq!((&report["model"], &report["limits"]), (&Value::Null, &Value::Null));
    assert_eq!(
        (&report["prefill"][1]["measured_tokens"], &report["prefill"][1]["fraction_of_peak"]),
        (&json!(40.0), &Value::Null)
    );
    let clients = &report["clients"][0];
    assert_eq!((&clients["input_tokens"], &clients["output_tokens"]), (&json!(96), &json!(48)));
}

#[test]
fn failed_requests_are_counted_with_their_causes() {
    let server = OpenAi::start(Manner::Badly);
    let args = ["--url", &server.url, "--body", r#"{"own": 1}"#, "--measure", "clients", "--requests-per-client", "6"];
    let output = output(bench(&args).args(["--json", "-"]));
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let clients = &report["clients"][0];
    assert_eq!((&clients["requests"], &clients["completed"]), (&json!(18), &json!(12)));
    let failures: BTreeSet<String> = clients["failures"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| format!("{} {}", f["count"], f["cause"].as_str().unwrap()))
        .collect();
    let expected = [
        "2 error within the stream: out of slots",
        "2 status 429: all slots are busy",
        "2 the stream was cut before the end of the answer",
    ];
    assert_eq!(failures.iter().map(String::as_str).collect::<Vec<_>>(), expected);
}

#[test]
fn an_interrupt_ends_it_with_what_there_is() {
    let server = OpenAi::start(Manner::Hanging);
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("report.json");
    let mut command = bench(&["--url", &server.url, "--body", r#"{"own": 1}"#, "--measure", "prefill"]);
    let child = command.arg("--json").arg(&json).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // One to try the server out, three of the first row, and two of the second, whose third one hangs.
    let deadline = Instant::now() + Duration::from_secs(60);
    while server.requests.load(SeqCst) < 7 {
        assert!(Instant::now() < deadline, "only {} requests came", server.requests.load(SeqCst));
        std::thread::sleep(Duration::from_millis(5));
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("Interrupted"), "{}", text(&output.stdout));
    let report: Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    assert_eq!(report["interrupted"], true);
    let samples: Vec<usize> =
        report["prefill"].as_array().unwrap().iter().map(|row| row["samples"].as_array().unwrap().len()).collect();
    assert_eq!(samples, [2, 1]);
}

#[test]
fn a_row_ends_at_its_time_limit() {
    let server = OpenAi::start(Manner::Hanging);
    let args = ["--url", &server.url, "--body", r#"{"own": 1}"#, "--measure", "prefill,clients", "--time-limit", "5s"];
    let output = output(bench(&args).args(["--json", "-"]));
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let samples = |row: usize| report["prefill"][row]["samples"].as_array().unwrap().len();
    assert_eq!((samples(0), samples(1)), (2, 1));
    let notes = report["notes"].as_array().unwrap();
    let cut = "Broken off at the time limit of 5s: prompts of 40 tokens, after 1 of 2 repetitions.";
    assert!(notes.contains(&json!(cut)), "{notes:?}");
    let clients = &report["clients"][0];
    assert_eq!((&clients["requests"], &clients["completed"]), (&json!(3), &json!(0)));
    assert_eq!(clients["failures"], json!([{"cause": "not done within the time limit of 5s", "count": 3}]));
    assert_eq!(clients["tokens_per_second"], Value::Null);
}

#[test]
fn everything_ends_at_the_total_time_limit() {
    let server = OpenAi::start(Manner::Hanging);
    let args = ["--url", &server.url, "--body", r#"{"own": 1}"#, "--total-time-limit", "5s", "--json", "-"];
    let output = output(&mut bench(&args));
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["interrupted"], true);
    assert_eq!((report["prefill"].as_array().unwrap().len(), &report["clients"]), (2, &json!([])));
    // Without a terminal each row is told when it begins.
    let told = text(&output.stderr);
    assert!(told.contains("% prompts of 16 tokens\n") && told.contains("% prompts of 40 tokens\n"), "{told}");
    assert!(!told.contains("clients"), "{told}");
}

/// The commands of docs/bench.md, with fewer and smaller measurements by their variables.
#[test]
fn every_command_of_the_document_runs() {
    let document = read("docs/bench.md");
    let folder = tempfile::tempdir().unwrap();
    let ours = Serving::start(&mut kaito(&["serve"]));
    let openai = OpenAi::start(Manner::Well);
    let blocks = blocks_of(&document, "sh").into_iter();
    let lines: Vec<&str> = blocks.flat_map(str::lines).filter(|line| !line.trim().is_empty()).collect();
    assert!(lines.len() >= 4, "{lines:?}");
    for line in lines {
        let arguments = line.strip_prefix("kaito bench").unwrap_or_else(|| panic!("not a measurement: {line}"));
        let address = openai.url.strip_prefix("http://").unwrap();
        let arguments = arguments.replace("localhost:5000", &ours.address).replace("localhost:8080", address);
        let mut words: Vec<String> = shell_words(&format!("bench{arguments}"));
        if arguments.contains(address) {
            words.extend(["--body", r#"{"own": 1}"#].map(String::from));
        }
        let mut command = kaito(&words);
        for (name, value) in [
            ("PROMPT_LENGTHS", "16"),
            ("BATCH_SIZES", "1,2"),
            ("CONTEXT", "16"),
            ("DECODE_TOKENS", "8"),
            ("REPETITIONS", "1"),
            ("REQUEST_RATES", "10"),
            ("RATE_DURATION", "1s"),
            ("CLIENTS", "2"),
            ("INPUT_TOKENS", "16"),
            ("OUTPUT_TOKENS", "8"),
        ] {
            command.env(format!("KAITO_{name}"), value);
        }
        let output = output(command.current_dir(folder.path()).env("XDG_CACHE_HOME", folder.path()));
        assert!(output.status.success(), "{line}\n{}{}", text(&output.stdout), text(&output.stderr));
    }
    assert!(fs::read_to_string(folder.path().join("report.html")).unwrap().contains("<svg"));
    let report = fs::read_to_string(folder.path().join("report.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&report).unwrap()["schema"], "kaito-bench/1");
}

/// Words of a line without quotes.
fn shell_words(line: &str) -> Vec<String> {
    assert!(!line.contains(['\'', '"', '$', '|']), "{line}");
    line.split_whitespace().map(String::from).collect()
}
