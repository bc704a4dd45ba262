//! Long-running commands do not wait until somebody reads their log.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read},
    path::Path,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
};

use kaito_testing::{
    files::{copy_files, tiny_model},
    http::Client,
    process::{Group, free_port, output, text},
    wait::{LIMIT, wait_for},
};
use serde_json::Value;

use crate::program::kaito;

fn client(port: u16) -> Client {
    Client { address: format!("127.0.0.1:{port}") }
}

fn until_healthy(client: &Client) {
    wait_for("a healthy server", || client.try_get("/healthz").ok().filter(|(status, _)| *status == 200));
}

fn chat(client: &Client) -> u16 {
    client.post("/chat", r#"{"prompt":"a","max_new_tokens":1}"#).0
}

fn dropped(client: &Client) -> u64 {
    let (_, metrics) = client.get("/metrics");
    let line = metrics.lines().find_map(|line| line.strip_prefix("kaito_log_lines_dropped_total "));
    line.unwrap().parse().unwrap()
}

fn serve(port: u16, model: &Path) -> Command {
    let mut command = kaito(&["serve", "--host", "127.0.0.1", "--threads", "1", "--kv-cache-memory", "16MiB"]);
    command.arg("--port").arg(port.to_string()).arg("--weights").arg(model);
    command
}

/// /chat was broken while /healthz said 200.
#[test]
fn a_server_whose_log_has_no_reader_any_more_answers_and_counts() {
    let port = free_port();
    let (reader, writer) = io::pipe().unwrap();
    let mut server = Group::start(serve(port, &tiny_model()).stdout(writer.try_clone().unwrap()).stderr(writer));
    let client = client(port);
    until_healthy(&client);
    assert_eq!((chat(&client), dropped(&client)), (200, 0));
    drop(reader);
    assert_eq!(chat(&client), 200);
    wait_for("a count", || (chat(&client) == 200 && dropped(&client) > 0).then_some(()));
    assert_eq!(client.get("/healthz").0, 200);
    assert_eq!(server.terminate().code(), Some(0));
}

/// The whole server stopped.
#[test]
fn a_server_whose_log_nobody_drains_answers_and_says_later_what_was_dropped() {
    let port = free_port();
    let (reader, writer) = io::pipe().unwrap();
    let mut command = serve(port, &tiny_model());
    command.args(["--log", "trace"]);
    let mut server = Group::start(command.stdout(writer.try_clone().unwrap()).stderr(writer));
    drop(command);
    let client = client(port);
    until_healthy(&client);
    wait_for("a dropped line", || {
        (0..50).for_each(|_| drop(client.get("/")));
        (dropped(&client) > 0).then_some(())
    });
    assert_eq!(chat(&client), 200);
    // Somebody reads again, and hears of it.
    let (sender, told) = mpsc::channel();
    thread::spawn(move || {
        let mut lines = BufReader::new(reader).lines().map_while(Result::ok);
        sender.send(lines.find(|line| line.contains("lines of the log were dropped"))).unwrap();
        lines.for_each(drop);
    });
    let line = told.recv_timeout(LIMIT).unwrap();
    assert!(line.as_ref().is_some_and(|line| line.contains("WARN")), "{line:?}");
    assert_eq!(chat(&client), 200);
    assert_eq!(server.terminate().code(), Some(0));
}

/// A newline in the name of a model's directory forged lines of the log.
#[test]
fn a_name_from_outside_forges_no_line_of_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model\n2099-01-01T00:00:00Z ERROR forged\u{1b}[2J\rforged");
    fs::create_dir(&model).unwrap();
    copy_files(&tiny_model(), &model);
    let weights = model.join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    for format in ["text", "json"] {
        fs::write(&weights, &bytes).unwrap();
        let port = free_port();
        let mut command = serve(port, &model);
        command.args(["--log-format", format]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut server = Group::start(&mut command);
        let client = client(port);
        until_healthy(&client);
        // What the health check says of a file has its name too.
        fs::write(&weights, [&bytes[..], &[0]].concat()).unwrap();
        wait_for("the change", || Some(client.get("/healthz")).filter(|(status, _)| *status == 503));
        server.terminate();
        let (mut printed, mut log) = (String::new(), String::new());
        server.0.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
        server.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        assert!(log.contains("the model is loaded") && log.contains("changed in place"), "{log}{printed}");
        for line in log.lines().chain(printed.lines()) {
            assert!(!line.starts_with("2099") && !line.contains(['\u{1b}', '\r']), "{line:?}");
        }
        if format == "json" {
            assert!(log.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{log}");
        } else {
            assert!(printed.contains("serves model\\n2099"), "{printed}");
        }
    }

    let missing = folder.path().join("missing\nerror: forged");
    let output = output(&mut serve(free_port(), &missing));
    let said = text(&output.stderr);
    assert!(said.contains("missing") && !said.contains("\nerror: forged"), "{said}");
}

/// One script's log went through the task that also carries the connections.
#[test]
fn a_workspace_runs_on_though_nobody_reads_what_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let counted = folder.path().join("counted");
    let script = format!(
        "i=0; while :; do i=$((i+1)); echo line $i of a log that nobody reads; [ $((i%1000)) != 0 ] || echo $i > {}; done",
        counted.display()
    );
    let manifest = folder.path().join("workspace.yaml");
    let text = format!(
        "apiVersion: kaito.sh/v1beta1\nkind: Workspace\nmetadata: {{name: script}}\n\
         resource: {{labelSelector: {{matchLabels: {{a: b}}}}}}\n\
         inference:\n  template:\n    spec:\n      terminationGracePeriodSeconds: 1\n      containers:\n        \
         - name: script\n          image: registry.example.com/script:1\n          command: [sh, -c, {script:?}]\n          \
         args: [--port={}]\n",
        free_port()
    );
    fs::write(&manifest, text).unwrap();
    // More than a pipe has room for, by far.
    const LINES: u64 = 50_000;
    for closed in [false, true] {
        let _ = fs::remove_file(&counted);
        let (reader, writer) = io::pipe().unwrap();
        let unread = (!closed).then_some(reader);
        let mut command = kaito(&["up", "--port", "0", "-f", manifest.to_str().unwrap()]);
        let mut up = Group::start(command.stdout(writer.try_clone().unwrap()).stderr(writer));
        drop(command);
        wait_for("so many lines", || {
            let lines: u64 = fs::read_to_string(&counted).ok()?.trim().parse().ok()?;
            (lines >= LINES).then_some(())
        });
        up.terminate();
        drop(unread);
    }
}
