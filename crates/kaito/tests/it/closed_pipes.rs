//! The program that reads the output goes away, as `head` does.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, PipeWriter},
    process::Stdio,
};

use kaito_testing::{
    background::Background,
    files::{repository, tiny_model},
    process::{output, run_with_input, text},
    registry::{Config, Registry},
};

use crate::program::{commands, kaito};

/// A pipe that nobody reads.
fn closed() -> PipeWriter {
    io::pipe().unwrap().1
}

/// Every command that has none below it, by what the help texts themselves list.
fn leaves() -> BTreeSet<String> {
    let (mut left, mut leaves) = (vec![Vec::<String>::new()], BTreeSet::new());
    while let Some(command) = left.pop() {
        let words: Vec<&str> = command.iter().map(String::as_str).chain(["--help"]).collect();
        let below = commands(&text(&output(&mut kaito(&words)).stdout));
        if below.is_empty() {
            leaves.insert(command.join(" "));
        }
        left.extend(below.into_iter().map(|name| [command.clone(), vec![name]].concat()));
    }
    leaves
}

/// What runs until somebody ends it; `unread_logs.rs` has these.
const LONG_RUNNING: [&str; 4] = ["controller", "serve", "supervise", "up"];

/// `kaito chat` and `kaito install` ended with an error, and a closed stderr made a failure a panic.
#[test]
fn a_closed_pipe_ends_every_command_quietly() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let demo = fs::read_to_string(repository().join("examples/kaito_workspace_demo.yaml")).unwrap();
    let (valid, refused) =
        (write("valid.yaml", &demo), write("refused.yaml", &demo.replace("labelSelector", "labelSelektor")));
    let model = tiny_model();
    let model = model.to_str().unwrap();
    let image = folder.path().join("tiny.tar");
    let image = image.to_str().unwrap();
    let build = ["image", "build", "tiny", "--no-preset", "--weights", model, "--weights-only", "--output", image];
    let again = folder.path().join("again.tar");
    let again = again.to_str().unwrap();
    let rebuild = [&build[..build.len() - 1], &[again]].concat();
    assert!(output(&mut kaito(&build)).status.success());
    let background = Background::new();
    let registry = background.block_on(Registry::start(Config::default()));
    let reference = format!("{}/tiny:v1", registry.address);
    let bench = [
        "bench",
        model,
        "--measure",
        "decode",
        "--batch-sizes",
        "1",
        "--context",
        "16",
        "--decode-tokens",
        "4",
        "--repetitions",
        "1",
    ];

    let copies = tempfile::tempdir().unwrap();
    let copied = copies.path().join("copied");
    let copied = copied.to_str().unwrap();
    let chat = ["chat", model, "--max-new-tokens", "40", "--temperature", "0"];
    let cases = [
        (&["presets"][..], "", 0),
        (&["presets", "falcon-7b"], "", 0),
        (&["presets", "--json"], "", 0),
        (&["presets", "no-such-preset"], "", 1),
        (&["devices"], "", 0),
        (&["devices", "--json"], "", 0),
        (&["crd"], "", 0),
        (&["crd", "--json"], "", 0),
        (&["install", "--registry", "registry.example.com", "--print"], "", 0),
        (&["install", "--registry", "registry.example.com"], "", 1),
        (&["instance-types"], "", 0),
        (&["instance-types", "--json"], "", 0),
        (&["plan", "falcon-7b"], "", 0),
        (&["plan", "falcon-7b", "--json"], "", 0),
        (&["plan", "llama-2-70b", "--instance-type", "g4dn.xlarge", "--count", "1"], "", 1),
        (&["validate", "-f", &valid], "", 0),
        (&["validate", "--json", "-f", &valid], "", 0),
        (&["validate", "-f", &refused], "", 1),
        (&bench, "", 0),
        (&chat, "Hello\nHello\nHello\n", 0),
        (&chat, "/help\n", 0),
        (&chat, "/nonsense\n", 0),
        (&rebuild, "", 0),
        (&["download", "no-such-preset"], "", 1),
        (&["image", "extract", "--to", copied, "/no/such/image"], "", 1),
        (&["image", "program", "--to", copied], "", 0),
        (&["image", "inspect", image], "", 0),
        (&["image", "inspect", "--json", image], "", 0),
        (&["image", "inspect", "/no/such/image"], "", 1),
        (&["image", "verify", image, "--weights", model], "", 0),
        (&["image", "push", image, &reference, "--plain-http"], "", 0),
        (&["--help"], "", 0),
        (&["--version"], "", 0),
        (&["plan", "--help"], "", 0),
        (&["no-such-command"], "", 2),
        // These end by themselves.
        (&["serve", "--port", "0", "/no/such/directory"], "", 1),
        (&["controller", "--node-provisioner", "karpenter", "--node-class", "a.b/c"], "", 1),
        (&["up", "-f", "/no/such/file"], "", 1),
    ];
    let covered: BTreeSet<String> =
        leaves().into_iter().filter(|leaf| !LONG_RUNNING.contains(&leaf.as_str())).collect();
    for leaf in covered {
        let words: Vec<&str> = leaf.split(' ').collect();
        assert!(cases.iter().any(|(args, ..)| args.starts_with(&words)), "nothing is asked of kaito {leaf}");
    }
    for (args, input, status) in cases {
        // An image is built into no file that is there.
        let _ = fs::remove_file(again);
        let unread = run_with_input(kaito(args).stdout(closed()).stderr(Stdio::piped()), input);
        let said = text(&unread.stderr);
        assert_eq!(unread.status.code(), Some(status), "{args:?} says {said:?}");
        // Where there is no terminal, a benchmark says how far it is in lines such as `  12 s  34% decode`.
        let is_progress = |line: &str| {
            line.trim_start()
                .split_once(" s ")
                .is_some_and(|(time, rest)| time.parse::<u64>().is_ok() && rest.contains('%'))
        };
        let is_expected = |line: &str| line.contains(" INFO ") || line.starts_with("there is no command");
        let quiet = said.lines().all(|line| is_expected(line) || is_progress(line));
        assert!(quiet || status != 0, "{args:?} says {said:?}");
        assert!(!said.contains("panic") && !said.contains("stdout"), "{args:?} says {said:?}");

        let _ = fs::remove_file(again);
        let unheard = run_with_input(kaito(args).stdout(Stdio::piped()).stderr(closed()), input);
        assert_eq!(unheard.status.code(), Some(status), "{args:?} without a reader of stderr");
    }
}
