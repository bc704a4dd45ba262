//! README.md keeps its word: every command in it is run.
//!
//! A block of shell commands is run line by line. A server is started on a port of its own, asked by the `curl` lines
//! that follow and ended like a container. Weights come from a hub on this machine that has a tiny model under every
//! name. What builds or tests the workspace itself cannot run inside a test: CI does.

use std::process::Command;

use kaito_testing::{
    files::{parity_model, tiny_model},
    hub::TestHub,
    process::{Serving, output_with_input, text},
};

use crate::{
    documents::{blocks_of, read},
    program::{kaito, path},
};

/// Lines, with those that end in a backslash joined to the next.
fn commands(block: &str) -> Vec<String> {
    block.replace("\\\n", " ").lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from).collect()
}

#[test]
fn every_command_runs() {
    let readme = read("README.md");
    let ci = read(".ci/run");
    let hub = TestHub::of_folder(&tiny_model());
    let cache = tempfile::tempdir().unwrap();
    let meta = parity_model("meta-llama-7b-type");
    let path = path();
    let shell = |line: &str| {
        let line = line.replace("/models/llama-2-7b-chat", meta.to_str().unwrap());
        let mut command = Command::new("sh");
        // The environment of a run of the binary, but the shell's program.
        for (name, value) in kaito(&[""]).get_envs().filter_map(|(name, value)| Some((name, value?))) {
            command.env(name, value);
        }
        command.args(["-c", &line]).env("PATH", &path).env("HF_ENDPOINT", &hub.url).env("HF_HUB_CACHE", cache.path());
        command
    };
    let mut run = 0;
    for block in blocks_of(&readme, "sh") {
        let mut serving: Option<Serving> = None;
        for line in commands(block) {
            run += 1;
            if line.starts_with("cargo ") {
                assert!(ci.lines().any(|ci| ci.trim().starts_with(&line)), "CI does not run {line:?}");
            }
            if let Some(arguments) = line.strip_prefix("cargo run --release -- ") {
                serving = Some(Serving::start(&mut shell(&format!("exec kaito {arguments}"))));
            } else if line.contains("kaito serve") {
                serving = Some(Serving::start(&mut shell(&line.replace("kaito serve", "exec kaito serve"))));
            } else if line.starts_with("curl ") {
                let serving = serving.as_ref().unwrap_or_else(|| panic!("no server for {line}"));
                assert!(line.contains("localhost:5000"), "{line}");
                let output = shell(&line.replace("localhost:5000", &serving.address)).output().unwrap();
                let answer = text(&output.stdout);
                assert!(output.status.success() && !answer.contains(r#""detail""#), "{line}\n{answer}");
            } else if !line.starts_with("cargo ") {
                let output = output_with_input(&mut shell(&line), "");
                assert!(output.status.success(), "{line}\n{}", text(&output.stderr));
            }
        }
        if let Some(serving) = serving {
            assert_eq!(serving.terminate().code(), Some(0));
        }
    }
    assert!(run > 10, "only {run} commands were found");
    assert!(hub.asked().len() > 1, "presets were downloaded: {:?}", hub.asked());
}

/// What README prints below its first request is what the demo answers.
#[test]
fn the_first_answer_is_a_real_one() {
    let readme = read("README.md");
    let request = commands(blocks_of(&readme, "sh")[0]).into_iter().find(|line| line.starts_with("curl ")).unwrap();
    let body = request.split('\'').find(|part| part.starts_with('{')).unwrap();
    let serving = Serving::start(&mut kaito(&["serve"]));
    let (status, answer) = serving.post("/chat", body);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(blocks_of(&readme, "json")[0].trim(), answer.trim());
}
