//! The binary, run for real.

#![allow(dead_code, reason = "not every test needs every helper")]

pub mod hub;

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// The root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// A tiny model in the hub's format, made by the reference implementation.
pub fn tiny_model() -> PathBuf {
    repository().join("tests/parity/fixtures/mistral-window")
}

/// `kaito` in an environment that holds nothing of this machine's user.
pub fn kaito(args: &[impl AsRef<OsStr>]) -> Command {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("home");
    fs::create_dir_all(&home).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kaito"));
    command.args(args).env_clear().env("HOME", &home).env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.current_dir(home).stdin(Stdio::null());
    command
}

/// Runs to the end.
pub fn output(command: &mut Command) -> Output {
    command.output().unwrap()
}

/// Runs to the end with `input` on stdin.
pub fn output_with_input(command: &mut Command, input: &str) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The fenced blocks of a document: the language of each, and its text.
pub fn blocks(markdown: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    for (index, part) in markdown.split("```").enumerate() {
        if index % 2 == 1 {
            let (language, text) = part.split_once('\n').unwrap();
            blocks.push((language.to_owned(), text.to_owned()));
        }
    }
    blocks
}

/// The names below `Commands:` in a help text.
pub fn commands(help: &str) -> Vec<String> {
    let below = help.split_once("Commands:\n").map_or("", |(_, below)| below);
    let lines = below.lines().take_while(|line| !line.is_empty());
    let names = lines.filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

/// A `kaito serve` that listens on a port of the system's choice.
pub struct Serving {
    child: Child,
    pub address: String,
    /// What it wrote to stdout until it was ready.
    pub summary: String,
}

impl Serving {
    /// Starts `command` and waits until its model is loaded.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.env("KAITO_PORT", "0").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let summary = read_summary(child.stdout.take().unwrap());
        let summary = match summary.recv_timeout(Duration::from_secs(120)) {
            Ok(summary) if summary.contains("address") => summary,
            other => {
                let _ = child.kill();
                let mut log = String::new();
                child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
                panic!("not ready: {other:?}\n{log}");
            }
        };
        // Its log must not fill the pipe.
        let mut log = child.stderr.take().unwrap();
        thread::spawn(move || log.read_to_end(&mut Vec::new()));
        let address = summary.split_whitespace().find_map(|word| word.strip_prefix("http://")).unwrap().to_owned();
        let serving = Self { child, address, summary };
        // The summary comes a moment before the first request can be answered.
        while serving.get("/healthz").0 != 200 {
            thread::sleep(Duration::from_millis(5));
        }
        serving
    }

    pub fn get(&self, path: &str) -> (u16, String) {
        let agent = agent();
        let mut response = agent.get(format!("http://{}{path}", self.address)).call().unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    }

    pub fn post(&self, path: &str, body: &str) -> (u16, String) {
        let request = agent().post(format!("http://{}{path}", self.address)).header("content-type", "application/json");
        let mut response = request.send(body).unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    }

    /// Ends it as a container runtime does.
    pub fn terminate(mut self) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            if Instant::now() > deadline {
                panic!("still running a minute after SIGTERM");
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(120)))
        .build()
        .into()
}

/// Everything up to the example, which comes last.
fn read_summary(stdout: ChildStdout) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut summary = String::new();
        let mut lines = BufReader::new(stdout).lines();
        while let Some(Ok(line)) = lines.next() {
            summary.push_str(&line);
            summary.push('\n');
            if line.trim_start().starts_with("curl ") {
                break;
            }
        }
        let _ = sender.send(summary);
        // Read on, so that the process can write on.
        lines.for_each(drop);
    });
    receiver
}
