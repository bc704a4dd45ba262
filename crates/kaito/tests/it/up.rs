//! `kaito up` from outside: the real program runs a manifest, and a real client asks it.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
};

use kaito_testing::{
    files::{repository, tiny_model},
    process::{free_port, output, signal, text},
    wait::LIMIT,
};
use rustix::process::Signal;
use serde_json::Value;

use crate::program::{kaito, path};

fn example(name: &str) -> PathBuf {
    repository().join("examples").join(name)
}

/// A file with this manifest.
struct File(tempfile::TempDir);

impl File {
    fn new(manifest: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("workspace.yaml"), manifest).unwrap();
        Self(folder)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("workspace.yaml")
    }
}

/// A template that runs a shell script; its arguments name a port, so that it does not matter who has port 5000.
fn script(script: &str) -> File {
    let port = free_port();
    File::new(&format!(
        "apiVersion: kaito.sh/v1beta1\nkind: Workspace\nmetadata: {{name: script}}\n\
         resource: {{labelSelector: {{matchLabels: {{a: b}}}}}}\n\
         inference:\n  template:\n    spec:\n      terminationGracePeriodSeconds: 1\n      containers:\n        \
         - name: script\n          image: registry.example.com/script:1\n          command: [sh, -c, {script:?}]\n          \
         args: [--port={port}]\n"
    ))
}

/// A `kaito up` on a port of the system's choice.
pub struct Up {
    pub child: Child,
    lines: Receiver<String>,
    printed: Vec<String>,
}

impl Up {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines, printed: Vec::new() }
    }

    /// The first line, of those not seen yet, with all of these words.
    pub fn wait_for(&mut self, words: &[&str]) -> String {
        loop {
            let line = self.lines.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("no {words:?} in {:#?}", self.printed));
            self.printed.push(line.clone());
            if words.iter().all(|word| line.contains(word)) {
                return line;
            }
        }
    }

    /// The service's address.
    pub fn ready(&mut self) -> String {
        let line = self.wait_for(&["InferenceReady", "True", "http://"]);
        self.wait_for(&["WorkspaceReady", "True"]);
        line.split("http://").nth(1).unwrap().split(' ').next().unwrap().to_owned()
    }

    pub fn ended(mut self) -> (ExitStatus, Vec<String>) {
        let status = self.child.wait().unwrap();
        self.printed.extend(self.lines.iter());
        (status, self.printed)
    }
}

pub fn up(file: &Path) -> Command {
    kaito(&["up", "--port", "0", "-f", file.to_str().unwrap()])
}

/// The `curl` lines of the documents, with the service's address in place of `<SERVICE>:80`.
#[test]
fn the_demo_answers_the_documents_curl_until_it_is_interrupted() {
    let mut up = Up::start(&mut up(&example("kaito_workspace_demo.yaml")));
    let started = up.wait_for(&["InferenceReady", "False", "PodsStarting", "kaito serve"]);
    let pid: i32 = started.split("process ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    let address = up.ready();

    let curl = |line: &str| {
        let line = line.replace("<SERVICE>:80", &address).replace("<CLUSTERIP>:80", &address);
        let output = Command::new("sh").args(["-c", &format!("{line} --silent --show-error --fail")]).output().unwrap();
        assert!(output.status.success(), "{line}\n{}", text(&output.stderr));
        text(&output.stdout)
    };
    let answer = curl(
        r#"curl -X POST "http://<SERVICE>:80/chat" -H "accept: application/json" -H "Content-Type: application/json" -d '{"prompt":"YOUR_PROMPT_HERE"}'"#,
    );
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert!(answer["Result"].as_str().unwrap().starts_with("YOUR_PROMPT_HERE"), "{answer}");
    let answer = curl(
        r#"curl -X POST -H "Content-Type: application/json" -d '{"prompts":["I believe the meaning of life is","Simply put, the theory of relativity states that "],"parameters":{"max_gen_len":16}}' http://<CLUSTERIP>:80/generate"#,
    );
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["results"].as_array().unwrap().len(), 2, "{answer}");
    assert_eq!(curl("curl http://<CLUSTERIP>:80/healthz"), r#"{"status":"Healthy"}"#);

    signal(&up.child, Signal::INT);
    let (status, printed) = up.ended();
    assert_eq!(status.code(), Some(0), "{printed:#?}");
    assert!(printed.iter().any(|line| line.contains("Terminating")), "{printed:#?}");
    let of_the_pod = fs::read_to_string(format!("/proc/{pid}/stat"));
    assert!(of_the_pod.map_or(true, |stat| stat.contains(") Z ")), "process {pid} is still there");
}

#[test]
fn a_preset_is_served_with_the_arguments_of_its_pod() {
    let mut command = up(&example("kaito_workspace_mistral_7b-instruct.yaml"));
    // Variables of this command are not those of the pod.
    command.env("KAITO_WEIGHTS", tiny_model()).env("KAITO_API_KEY", "secret").env("KAITO_MAX_BATCH_SIZE", "1");
    let mut up = Up::start(&mut command);
    up.wait_for(&["InferenceReady", "PodsStarting", "kaito serve mistral-7b-instruct"]);
    let address = up.ready();
    let example = up.wait_for(&["curl", &address]);
    let output = Command::new("sh").args(["-c", &format!("{example} --silent --fail")]).output().unwrap();
    assert!(text(&output.stdout).contains("Result"), "{example}");
    signal(&up.child, Signal::TERM);
    assert_eq!(up.ended().0.code(), Some(0));
}

#[test]
fn an_end_names_its_cause() {
    for (manifest, reason, words) in [
        (
            "echo 'error: the weights are missing' >&2; exit 3",
            "ContainerTerminated",
            &["exit status 3", "the weights are missing"][..],
        ),
        // A container's command has $$ for a dollar sign.
        ("kill -9 $$$$", "ContainerTerminated", &["signal 9"]),
        ("exit 1", "ContainerTerminated", &["exit status 1"]),
    ] {
        let file = script(manifest);
        let output = output(&mut up(&file.path()));
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(1), "{stdout}{stderr}");
        let condition = stdout.lines().find(|line| line.contains(reason)).unwrap_or_else(|| panic!("{stdout}{stderr}"));
        for word in words {
            assert!(condition.contains(word), "{word}: {stdout}");
            assert!(stderr.contains(word), "{word}: {stderr}");
        }
    }
}

#[test]
fn who_does_not_end_is_killed() {
    let file = script("trap '' TERM; while :; do sleep 0.1; done");
    let mut up = Up::start(&mut up(&file.path()));
    up.wait_for(&["PodsStarting"]);
    // Until the shell has come to the trap, the request ends it.
    signal(&up.child, Signal::TERM);
    let (status, printed) = up.ended();
    assert_eq!(status.code(), Some(0), "{printed:#?}");
}

/// As an engine has one, whose supervisor was killed.
#[test]
fn what_made_a_session_of_its_own_is_ended_too() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid");
    let file = file.to_str().unwrap();
    let file = script(&format!("setsid sleep 1000 & echo $! > {file}; echo \"error: it has $(cat {file})\"; exit 3"));
    let output = output(&mut up(&file.path()));
    assert_eq!(output.status.code(), Some(1));
    let stderr = text(&output.stderr);
    let pid = stderr.split("it has ").nth(1).unwrap().split_whitespace().next().unwrap();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    assert!(stat.map_or(true, |stat| stat.contains(") Z ")), "process {pid} is still there");
}

/// A folder with programs of these names, which are scripts.
fn programs(scripts: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, script) in scripts {
        let file = folder.path().join(name);
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    folder
}

/// A driver and an engine that are scripts: the engine says its arguments and its GPUs, and that their memory ran out.
#[test]
fn where_there_are_gpus_and_vllm_it_computes_and_its_end_has_the_reason_of_a_cluster() {
    let folder = programs(&[
        ("nvidia-smi", "echo '0, 81920, 8.0'; echo '1, 81920, 8.0'"),
        (
            "vllm",
            "echo \"started with $* on $CUDA_VISIBLE_DEVICES\"; echo 'torch.OutOfMemoryError: CUDA out of memory.' >&2; exit 1",
        ),
    ]);
    let manifest = fs::read_to_string(example("kaito_workspace_mistral_7b-instruct_vllm.yaml")).unwrap();
    let auto = File::new(&manifest.replace("  annotations:\n    kaito.sh/runtime: vllm\n", ""));
    let tiny = tiny_model().canonicalize().unwrap();
    let mut command = up(&auto.path());
    command.args(["--weights", tiny.to_str().unwrap()]);
    command.env("PATH", format!("{}:{}", folder.path().display(), path())).env_remove("CUDA_VISIBLE_DEVICES");
    let output = output(&mut command);
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{stdout}{stderr}");
    assert!(stdout.contains("2 GPUs of NVIDIA with 80 GiB"), "{stdout}");
    let started = stderr.lines().find(|line| line.contains("started with serve")).unwrap_or_else(|| panic!("{stderr}"));
    assert!(started.contains(tiny.to_str().unwrap()) && started.ends_with(" on 0"), "{started}");
    let condition = stdout.lines().find(|line| line.contains("GpuOutOfMemory")).unwrap_or_else(|| panic!("{stdout}"));
    assert!(condition.contains("InferenceReady") && condition.contains("CUDA out of memory"), "{condition}");
}

#[test]
fn what_cannot_run_here_is_refused_with_the_next_step() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let demo = fs::read_to_string(example("kaito_workspace_demo.yaml")).unwrap();
    let llama = fs::read_to_string(example("kaito_workspace_llama2_7b-chat.yaml")).unwrap();
    let ranks = ["13b-chat", "70b-chat"].map(|model| {
        let text = fs::read_to_string(example(&format!("kaito_workspace_llama2_{model}.yaml"))).unwrap();
        let text = text.replace("  annotations:\n    kaito.sh/runtime: vllm\n", "").replace("  count: 2\n", "");
        File::new(&text.replace("  instanceType", "  count: 2\n  instanceType"))
    });
    let no_program = File::new(&demo.replace("[kaito, serve]", "[no-such-program]"));
    let no_command = File::new(&demo.replace("          command: [kaito, serve]\n", ""));
    let invalid = File::new(&demo.replace("labelSelector", "labelSelektor"));
    let config = File::new(&llama.replace("inference:\n", "inference:\n  config: flags\n"));
    // Nobody is a registry there.
    let nowhere = format!("127.0.0.1:{}", free_port());
    let adapters = fs::read_to_string(example("kaito_workspace_falcon_7b_with_adapters.yaml")).unwrap();
    let adapters = File::new(&adapters.replace("registry.example.com", &nowhere));
    let tiny = tiny_model();
    // A vLLM that is not built for CPUs, for a machine without GPUs.
    let bin = programs(&[("vllm", "")]);
    let vllm = bin.path().join("vllm");
    let vllm = vllm.to_str().unwrap();
    let example = |name: &str| example(name).to_str().unwrap().to_owned();
    let of = |file: &File| file.path().to_str().unwrap().to_owned();
    for (file, args, words) in [
        (example("kaito_workspace_demo.yaml"), &["--port", &port][..], &[&port, "--port 0"][..]),
        (example("kaito_workspace_demo.yaml"), &["--weights", "/no/such/folder"], &["--weights", "template"]),
        (
            example("kaito_workspace_falcon_7b.yaml"),
            &["--weights", "/no/such/folder"],
            &["/no/such/folder", "--weights"],
        ),
        (of(&ranks[0]), &[], &["llama-2-13b-chat", "2 ranks", "cluster"]),
        (of(&ranks[1]), &["--weights", tiny.to_str().unwrap()], &["2 ranks"]),
        (
            example("kaito_workspace_mistral_7b-instruct_vllm.yaml"),
            &["--vllm", "/no/such/vllm"],
            &["/no/such/vllm", "pip install vllm", "--vllm", "kaito.sh/runtime"],
        ),
        (
            example("kaito_workspace_mistral_7b-instruct_vllm.yaml"),
            &["--vllm", vllm],
            &[vllm, "no GPUs", "kaito.sh/runtime: kaito"],
        ),
        (of(&adapters), &[], &["\"dolly-oai\"", "adapters/falcon-7b-dolly:0.1.0", "--adapter dolly-oai=FOLDER"]),
        (
            example("kaito_workspace_template.yaml"),
            &[],
            &["\"server\"", "registry.example.com/my-model:1.0.0", "`command`"],
        ),
        (of(&no_program), &[], &["no-such-program", "PATH"]),
        (of(&no_command), &[], &["\"kaito\"", "`command`"]),
        (of(&invalid), &[], &["workspace-demo", "resource"]),
        (of(&config), &[], &["\"flags\"", "same file"]),
        ("/no/such/file.yaml".to_owned(), &[], &["/no/such/file.yaml"]),
    ] {
        let mut command = kaito(&["up", "-f", &file]);
        if !args.contains(&"--port") {
            command.args(["--port", "0"]);
        }
        let output = output(command.args(args));
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{file}: {message}");
        for word in words {
            assert!(message.contains(word), "{file} {args:?} lacks {word:?}: {message}");
        }
    }
}
