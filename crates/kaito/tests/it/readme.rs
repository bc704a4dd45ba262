//! README.md and the pages about serving, the APIs and their clients keep their word: every command in them is run.
//!
//! Shell commands are run line by line. A server is started on a port of its own, asked by the `curl` lines that follow until
//! the next server, and ended like a container. A block of JSON or text below a request is its answer. Weights come from a hub
//! on this machine that has a tiny model under every name. What builds or tests the workspace itself cannot run inside a test:
//! CI does.

use std::{collections::BTreeSet, process::Command};

use kaito_testing::{
    files::{parity_model, tiny_model},
    hub::TestHub,
    process::{Serving, output_with_input, text},
};
use serde_json::{Map, Value, json};

use crate::{
    documents::{blocks, read},
    program::{kaito, path},
};

/// Lines, with those that end in a backslash joined to the next.
fn commands(block: &str) -> Vec<String> {
    block.replace("\\\n", " ").lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from).collect()
}

/// Where the commands of documents run.
struct Shell {
    hub: TestHub,
    cache: tempfile::TempDir,
}

/// A GGUF file of a tiny model.
fn tiny_gguf() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/gguf/fixtures/models/llama-k.gguf")
}

impl Shell {
    fn new() -> Self {
        Self { hub: TestHub::of_folder(&tiny_model()), cache: tempfile::tempdir().unwrap() }
    }

    fn command(&self, line: &str) -> Command {
        let meta = parity_model("meta-llama-7b-type");
        let line = line.replace("/models/llama-2-7b-chat", meta.to_str().unwrap());
        let line = line.replace("/models/llama-2-7b.Q4_K_M.gguf", tiny_gguf().to_str().unwrap());
        let mut command = Command::new("sh");
        // The environment of a run of the binary, but the shell's program.
        for (name, value) in kaito(&[""]).get_envs().filter_map(|(name, value)| Some((name, value?))) {
            command.env(name, value);
        }
        command.args(["-c", &line]).env("PATH", path());
        command.env("HF_ENDPOINT", &self.hub.url).env("HF_HUB_CACHE", self.cache.path());
        command
    }

    /// Runs every command of a document. Returns how many there are.
    fn run(&self, document: &str) -> usize {
        let markdown = read(document);
        let ci = read(".ci/run");
        let blocks = blocks(&markdown);
        let mut serving: Option<Serving> = None;
        let mut run = 0;
        for (index, (_, block)) in blocks.iter().enumerate().filter(|(_, (language, _))| *language == "sh") {
            let printed = blocks.get(index + 1).filter(|(language, _)| ["json", "text"].contains(language));
            let mut answer = None;
            for line in commands(block) {
                run += 1;
                if line.starts_with("cargo ") {
                    assert!(ci.lines().any(|ci| ci.trim().starts_with(&line)), "CI does not run {line:?}");
                }
                let server = line.strip_prefix("cargo run --release -- ").map(|arguments| format!("kaito {arguments}"));
                let server = server.or_else(|| line.contains("kaito serve").then(|| line.clone()));
                if let Some(server) = server {
                    if let Some(before) = serving.take() {
                        assert_eq!(before.terminate().code(), Some(0), "{line}");
                    }
                    let server = server.replace("kaito serve", "exec kaito serve");
                    serving = Some(Serving::start(&mut self.command(&server)));
                } else if line.starts_with("curl ") {
                    let serving = serving.as_ref().unwrap_or_else(|| panic!("no server for {line}"));
                    assert!(line.contains("localhost:5000"), "{line}");
                    let line = line.replace("localhost:5000", &serving.address);
                    let output = self.command(&line).output().unwrap();
                    let text = text(&output.stdout);
                    assert!(output.status.success(), "{line}\n{text}");
                    let refused = [r#""detail""#, r#""error":{"#].iter().any(|part| text.contains(part));
                    assert!(printed.is_some() || !refused, "{line}\n{text}");
                    answer = Some((line, text));
                } else if !line.starts_with("cargo ") {
                    let output = output_with_input(&mut self.command(&line), "");
                    assert!(output.status.success(), "{line}\n{}", text(&output.stderr));
                }
            }
            if let (Some((line, answer)), Some((_, printed))) = (answer, printed) {
                assert_eq!(answer.trim(), printed.trim(), "{document} prints another answer to {line}");
            }
        }
        if let Some(serving) = serving {
            assert_eq!(serving.terminate().code(), Some(0));
        }
        run
    }
}

/// Its first request and answer are those of `.ci/run` too.
#[test]
fn the_readme_keeps_its_word() {
    let run = Shell::new().run("README.md");
    assert!(run > 6, "only {run} commands were found");
}

#[test]
fn the_page_about_serving_keeps_its_word() {
    let shell = Shell::new();
    let run = shell.run("docs/serving.md");
    assert!(run > 10, "only {run} commands were found");
    assert!(shell.hub.asked().len() > 1, "presets were downloaded: {:?}", shell.hub.asked());
}

#[test]
fn the_pages_about_other_apis_keep_their_word() {
    for page in ["docs/openai.md", "docs/anthropic.md", "docs/ollama.md"] {
        let run = Shell::new().run(page);
        assert!(run > 1, "only {run} commands were found in {page}");
    }
}

#[test]
fn the_page_about_the_api_keeps_its_word() {
    let run = Shell::new().run("docs/api.md");
    assert!(run > 8, "only {run} commands were found");
}

#[test]
fn the_page_about_gguf_files_keeps_its_word() {
    let model = std::fs::read(tiny_gguf()).unwrap();
    let files = ["llama-2-7b.Q4_K_M.gguf", "llama-2-7b.Q8_0.gguf"].map(|name| (name, model.clone()));
    let shell = Shell { hub: TestHub::start(&files), cache: tempfile::tempdir().unwrap() };
    assert_eq!(shell.run("docs/gguf.md"), 4);
}

/// What is no shell's is run by `tests/clients/run`.
#[test]
fn the_page_about_clients_keeps_its_word() {
    assert_eq!(Shell::new().run("docs/clients.md"), 2);
}

/// What stands in backticks in the first column of the table of docs/api.md below `header`.
fn first_column(header: &str) -> BTreeSet<String> {
    let markdown = read("docs/api.md");
    let (_, table) = markdown.split_once(header).unwrap();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    rows.flat_map(|row| row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2)).map(String::from).collect()
}

/// A null stands for a parameter's default; an unknown parameter is refused.
#[test]
fn every_parameter_of_the_page_about_the_api_exists() {
    let names = first_column("| parameter | default | meaning |");
    assert!(names.len() > 30 && names.contains("num_beams"), "{names:?}");
    let mut body: Map<String, Value> = names.into_iter().map(|name| (name, Value::Null)).collect();
    body.insert("prompt".to_owned(), json!("What is a node?"));
    body.insert("max_length".to_owned(), json!(20));
    let serving = Serving::start(&mut kaito(&["serve"]));
    let (status, answer) = serving.post("/chat", &Value::from(body).to_string());
    assert_eq!(status, 200, "{answer}");
    assert!(serving.terminate().success());
}

#[test]
fn the_page_about_the_api_has_every_metric_and_no_other() {
    let serving = Serving::start(&mut kaito(&["serve"]));
    assert_eq!(serving.post("/chat", r#"{"prompt":"What is a node?","max_new_tokens":2}"#).0, 200);
    let (_, metrics) = serving.get("/metrics");
    let families = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE kaito_")?.split(' ').next());
    let families: BTreeSet<String> =
        families.map(|name| name.strip_suffix("_total").unwrap_or(name).to_owned()).collect();
    assert_eq!(first_column("| metric | what it is |"), families);
    assert!(serving.terminate().success());
}
