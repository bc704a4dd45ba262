//! Runs every command of docs/kubernetes.md, from the first to the last.

use std::{env, fs, os::unix::fs::symlink, process::Stdio, sync::atomic::Ordering, time::Duration};

use kaito_cluster_tests::{
    audit,
    control_plane::{free_port, kaito, printed, repository, spawn},
    eventually::{eventually, within},
    kubelet::Node,
};
use tokio::process::Command;

use crate::{
    case::{Case, ONE_A100},
    installation::{self, CONTROLLERS},
    suite::SYSTEM,
};

const GUIDE: &str = "docs/kubernetes.md";
/// Commands that cannot run here: the simulated kubelet forwards no ports. The requests that need them are sent directly.
const FORWARDS: &str = "port-forward";
/// The request to the first workspace, and to `kaito up`.
const QUESTION: &str = "curl http://localhost:8080/chat ";
/// The other way of installing.
const WITHOUT_HELM: &str = "kaito install ";
const METRICS: &str = "curl http://localhost:8081/metrics";

/// The lines of the blocks of commands.
fn commands(markdown: &str) -> Vec<String> {
    let blocks = markdown.split("\n```sh\n").skip(1).map(|rest| rest.split("\n```").next().unwrap());
    blocks.flat_map(str::lines).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

struct Shell {
    path: String,
    home: String,
}

impl Shell {
    /// A shell that finds `kaito`, in the folder that the guide is read in.
    fn new(case: &Case) -> Self {
        let programs = case.plane.folder.join("guide");
        fs::create_dir(&programs).unwrap();
        symlink(kaito(), programs.join("kaito")).unwrap();
        let path = format!("{}:{}", programs.display(), env::var("PATH").unwrap());
        Self { path, home: programs.display().to_string() }
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("bash");
        command.args(["-o", "pipefail", "-c", line]).current_dir(repository());
        command.env("PATH", &self.path).env("HOME", &self.home);
        command
    }

    async fn run(&self, line: &str) -> String {
        println!("$ {line}");
        let printed = printed(&mut self.command(line), "").await;
        assert!(printed.success, "{line}\n{}{}", printed.stdout, printed.stderr);
        printed.stdout
    }
}

/// Starts before anything is installed, and leaves nothing behind.
pub async fn as_it_is_written(case: Case) {
    let guide = fs::read_to_string(repository().join(GUIDE)).unwrap();
    let chart = fs::read_to_string(repository().join("charts/kaito/README.md")).unwrap();
    let commands = commands(&guide);
    for command in self::commands(&chart) {
        assert!(commands.contains(&command), "{GUIDE} lacks {command}");
    }
    case.kubelet.add(Node::new("gpu-node-1").instance_type(ONE_A100).gpus(1).for_gpu_work_alone()).await;
    let shell = Shell::new(&case);
    without_helm(&case, &shell, &commands).await;
    let mut ran = 0;
    for command in &commands {
        if command.contains(FORWARDS) || command.starts_with(QUESTION) || command.starts_with(WITHOUT_HELM) {
            continue;
        }
        ran += 1;
        if command.starts_with("kaito up ") {
            let question = commands.iter().find(|command| command.starts_with(QUESTION)).unwrap();
            up(&shell, command, question).await;
        } else if command == METRICS {
            metrics(&case, &shell, command).await;
        } else {
            shell.run(command).await;
        }
        if command.ends_with("falcon_7b-instruct.yaml") && command.starts_with("kubectl apply") {
            let wait =
                "kubectl wait --for=condition=WorkspaceReady workspace/workspace-falcon-7b-instruct --timeout=2m";
            shell.run(wait).await;
        }
    }
    assert!(ran >= 20, "{ran} of {} commands", commands.len());
    nothing_is_left(&case).await;
    // While their node is there to end them: the following cases count free GPUs.
    eventually("the pods of the guide have ended", || async {
        let pods = ["get", "pods", "--all-namespaces", "--selector", "kaito.sh/workspace", "--output", "name"];
        let left = case.plane.kubectl(&pods).await.stdout();
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
    // Requests of controllers after their roles had been deleted were rightly forbidden.
    case.audited_from.store(audit::requests(&case.plane.folder).len(), Ordering::Relaxed);
    case.kubelet.remove("gpu-node-1").await;
}

/// Installs the other way, and deletes all of it.
async fn without_helm(case: &Case, shell: &Shell, commands: &[String]) {
    let at = commands.iter().position(|command| command.starts_with(WITHOUT_HELM)).unwrap();
    for command in &commands[at..at + 2] {
        shell.run(command).await;
    }
    let (print, _) = commands[at].split_once(" | ").unwrap();
    shell.run(&format!("{print} | kubectl delete --filename -")).await;
    nothing_is_left(case).await;
}

async fn nothing_is_left(case: &Case) {
    eventually("nothing is left after uninstalling", || async {
        let kinds = "all,secrets,configmaps,roles,rolebindings";
        let left = case.plane.kubectl(&["get", kinds, "--namespace", SYSTEM, "--output", "name"]).await.stdout();
        let ours: Vec<_> = left.lines().filter(|object| *object != "configmap/kube-root-ca.crt").collect();
        if ours.is_empty() { Ok(()) } else { Err(ours.join(" ")) }
    })
    .await;
}

/// Asks whoever leads. The upgrade before it replaces the controllers, so one that was found may end before it is asked.
async fn metrics(case: &Case, shell: &Shell, command: &str) {
    // The Deployment does not count replaced controllers that still end.
    case.rolled_out().await;
    case.controllers_run(CONTROLLERS).await;
    eventually("the leader's metrics count workspaces", || async {
        let (leader, process) = case.leading().await;
        let line = command.replace("localhost:8081", &format!("localhost:{}", process.ports[&installation::METRICS]));
        println!("$ {line}");
        let printed = printed(&mut shell.command(&line), "").await;
        let counts = ["kaito_leader 1", "kaito_workspaces{phase=\"Ready\"} "];
        let is_told = |count: &&str| printed.stdout.lines().any(|line| line.starts_with(*count));
        if printed.success && counts.iter().all(is_told) {
            return Ok(());
        }
        Err(format!("{line} ({leader})\n{}{}", printed.stdout, printed.stderr))
    })
    .await;
}

/// Until it has answered.
async fn up(shell: &Shell, command: &str, question: &str) {
    println!("$ {command}");
    let port = free_port().to_string();
    let mut up = shell.command(&format!("exec {command}"));
    let mut up = spawn(up.env("KAITO_PORT", &port).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()));
    let question =
        format!("{} --silent --show-error --fail", question.replace("localhost:8080", &format!("localhost:{port}")));
    println!("$ {question}");
    let answer = within(Duration::from_secs(180), "kaito up answers", || async {
        let printed = printed(&mut shell.command(&question), "").await;
        if printed.success { Ok(printed.stdout) } else { Err(printed.stderr) }
    })
    .await;
    assert!(answer.contains("\"Result\""), "{answer}");
    let pid = rustix::process::Pid::from_raw(up.id().unwrap().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert!(up.wait().await.unwrap().success());
}
