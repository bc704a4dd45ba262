//! `kaito image` from outside: what it prints, what it refuses.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    path::Path,
    process::{Child, Output, Stdio},
};

use kaito_testing::{
    files::{parity_model, tiny_model},
    process::{Serving, output, output_with_input, signal, text},
};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::program::kaito;

fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// Digests depend on the version of kaito.
fn without_digests(text: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    for word in text.split_inclusive([' ', '\n']) {
        let (bare, end) = word.split_at(word.trim_end().len());
        let hex = |text: &str| text.len() >= 12 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let digest = hex(bare.strip_prefix("sha256:").unwrap_or(bare));
        words.push(if digest { format!("DIGEST{end}") } else { word.to_owned() });
    }
    words.concat()
}

#[test]
fn weights_become_an_image_that_can_be_looked_at_and_compared() {
    let at = tempfile::tempdir().unwrap();
    let weights = tiny_model();
    let weights = weights.to_str().unwrap();
    let path = at.path().join("tiny.tar");
    let path = path.to_str().unwrap();
    let tag = "registry.example.com/models/tiny:v1";
    let build = [
        "image",
        "build",
        "tiny",
        "--no-preset",
        "--weights",
        weights,
        "--weights-only",
        "--platform",
        "linux/amd64",
        "--tag",
        tag,
        "--output",
        path,
    ];
    let built = succeeded(&output(&mut kaito(&build)));
    insta::assert_snapshot!("build", without_digests(&built).replace(path, "tiny.tar"));
    let inspected = succeeded(&output(&mut kaito(&["image", "inspect", path, "--platform", "linux/amd64"])));
    insta::assert_snapshot!("inspect", without_digests(&inspected).replace(path, "tiny.tar"));
    let json: Value =
        serde_json::from_str(&succeeded(&output(&mut kaito(&["image", "inspect", "--json", path])))).unwrap();
    assert!(built.contains(json["digest"].as_str().unwrap()), "{built}");
    assert_eq!(json["layers"].as_array().unwrap().len(), 2);

    let verified = succeeded(&output(&mut kaito(&["image", "verify", path, "--weights", weights])));
    assert_eq!(verified, "same  configuration and tokenizer\nsame  model.safetensors\n");
    let other = parity_model("llama-multi-head");
    let differs = output(&mut kaito(&["image", "verify", path, "--weights", other.to_str().unwrap()]));
    assert_eq!(differs.status.code(), Some(1));
    assert!(text(&differs.stdout).contains("differs  configuration and tokenizer"), "{}", text(&differs.stdout));
    assert!(text(&differs.stderr).contains("does not hold the weights of"), "{}", text(&differs.stderr));
}

#[test]
fn what_cannot_be_done_is_refused_with_what_can() {
    let at = tempfile::tempdir().unwrap();
    let weights = tiny_model();
    let weights = weights.to_str().unwrap();
    let out = at.path().join("out");
    let out = out.to_str().unwrap();
    let build = ["image", "build", "tiny", "--no-preset", "--weights", weights];
    for (args, status, parts) in [
        (&[&build[..]].concat()[..], 2, &["--output", "--push"][..]),
        (&[&build[..], &["--push"]].concat(), 2, &["--tag"]),
        (&["image", "build", "tiny", "--no-preset", "--output", out], 2, &["--weights"]),
        (&[&build[..], &["--output", out, "--platform", "plan9/mips"]].concat(), 2, &["plan9/mips", "linux/amd64"]),
        (&[&build[..], &["--output", out, "--base", "x", "--weights-only"]].concat(), 2, &["--base", "--weights-only"]),
        (&["image", "build", "tiny", "--weights", weights, "--output", out], 1, &["there is no preset", "--no-preset"]),
        (
            &["image", "build", "falcon-7b", "--weights", weights, "--output", out],
            1,
            &["does not hold falcon-7b", "the family is mistral instead of falcon"],
        ),
        (&[&build[..], &["--output", out, "--base", "scratch"]].concat(), 1, &["libc.so.6", "--base scratch"]),
        (
            &[&build[..], &["--output", out, "--base", "/no/such"]].concat(),
            1,
            &["there is no file or directory /no/such"],
        ),
        (&[&build[..], &["--output", out, "--tag", "Not A Name"]].concat(), 1, &["Not A Name"]),
        (&[&build[..], &["--output", weights]].concat(), 1, &["is no OCI layout", weights]),
        (&["image", "push", "/no/such.tar", "localhost:1/x:y"], 1, &["/no/such.tar"]),
        (&["image", "inspect", weights], 1, &["is no OCI layout", "oci-layout"]),
        (&[&build[..], &["--output", out, "--username", "alice"]].concat(), 1, &["--username", "--password-stdin"]),
        (&[&build[..], &["--output", out, "--authfile", "/no/such.json"]].concat(), 1, &["--authfile /no/such.json"]),
    ] {
        let output = output(&mut kaito(args));
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {message}");
        for part in parts {
            assert!(message.contains(part), "{args:?} lacks {part:?}: {message}");
        }
        assert!(!Path::new(out).exists(), "{args:?}");
        assert_eq!(fs::read_dir(at.path()).unwrap().count(), 0, "{args:?}");
    }
    let empty = output_with_input(
        &mut kaito(&[&build[..], &["--output", out, "--username", "alice", "--password-stdin"]].concat()),
        "\n",
    );
    assert!(text(&empty.stderr).contains("no password on standard input"), "{}", text(&empty.stderr));
}

/// The weights of [`tiny_model`] as an image in one file.
fn tiny_archive(at: &TempDir) -> String {
    let path = at.path().join("tiny.tar").to_str().unwrap().to_owned();
    let weights = tiny_model();
    let build = ["image", "build", "tiny", "--no-preset", "--weights-only", "--weights", weights.to_str().unwrap()];
    succeeded(&output(&mut kaito(&[&build[..], &["--output", path.as_str()]].concat())));
    path
}

#[track_caller]
fn assert_ends_as_interrupted(push: Child) {
    let ended = push.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    assert_eq!(text(&ended.stderr), "error: interrupted; layers that have arrived whole are not sent again\n");
}

#[test]
fn a_push_that_is_interrupted_says_what_becomes_of_what_was_sent() {
    let at = tempfile::tempdir().unwrap();
    let path = tiny_archive(&at);
    // It asks, and gets no answer.
    let registry = TcpListener::bind("127.0.0.1:0").unwrap();
    let reference = format!("{}/tiny:v1", registry.local_addr().unwrap());
    let mut push = kaito(&["image", "push", path.as_str(), reference.as_str()]);
    let child = push.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut connection, _) = registry.accept().unwrap();
    connection.read_exact(&mut [0; 4]).unwrap();
    signal(&child, Signal::INT);
    assert_ends_as_interrupted(child);
}

#[test]
fn an_interrupt_before_the_first_request_is_not_lost() {
    let at = tempfile::tempdir().unwrap();
    let path = tiny_archive(&at);
    let authfile = at.path().join("auth.json");
    rustix::fs::mknodat(rustix::fs::CWD, &authfile, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    // It takes a connection, and never answers.
    let registry = TcpListener::bind("127.0.0.1:0").unwrap();
    let reference = format!("{}/tiny:v1", registry.local_addr().unwrap());
    let mut push =
        kaito(&["image", "push", path.as_str(), reference.as_str(), "--authfile", authfile.to_str().unwrap()]);
    let child = push.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Opens when the push is about to read its credentials, and lets it go on only after the signal.
    let mut credentials = fs::OpenOptions::new().write(true).open(&authfile).unwrap();
    signal(&child, Signal::INT);
    credentials.write_all(b"{}").unwrap();
    drop(credentials);
    assert_ends_as_interrupted(child);
}

/// An image volume is a folder that nobody can write to.
#[test]
fn mounted_weights_are_served_like_a_directory() {
    let at = tempfile::tempdir().unwrap();
    let path = at.path().join("layout");
    let weights = tiny_model();
    succeeded(&output(&mut kaito(&[
        "image",
        "build",
        "tiny",
        "--no-preset",
        "--weights-only",
        "--weights",
        weights.to_str().unwrap(),
        "--output",
        path.to_str().unwrap(),
    ])));
    let image = kaito_image::Layout::open(&path)
        .and_then(|layout| layout.image(None, &kaito_image::Platform::of_this_machine()))
        .unwrap();
    let volume = at.path().join("volume");
    for layer in &image.layers {
        tar::Archive::new(layer.open_at(0).unwrap()).unpack(&volume).unwrap();
    }
    let served = volume.join("weights");
    for entry in fs::read_dir(&served).unwrap() {
        let path = entry.unwrap().path();
        let mut permissions = fs::metadata(&path).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&path, permissions).unwrap();
    }
    let serving = Serving::start(&mut kaito(&["serve", "--weights", served.to_str().unwrap()]));
    let (status, answer) = serving.post("/chat", r#"{"prompt":"x","max_new_tokens":3,"do_sample":false}"#);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(serving.terminate().code(), Some(0));
}
