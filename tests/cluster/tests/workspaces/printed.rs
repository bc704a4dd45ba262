//! What kubectl prints, as docs/kubernetes-outputs.md has it.
//!
//! `KAITO_UPDATE=1 tests/cluster/run` rewrites the document; otherwise the test fails where it differs.

use std::{env, fs};

use kaito_cluster_tests::{
    control_plane::repository,
    eventually::eventually,
    kubelet::{Behaviour, Node},
};
use serde_json::{Value, json};

use crate::case::{Case, ONE_A100};

const DOCUMENT: &str = "docs/kubernetes-outputs.md";
const HEAD: &str = "\
# What kubectl shows

The output of kubectl 1.34 for three workspaces: `falcon` serves, the image of `phi` is not in the registry, and `mistral` has no
node. Times, and the random parts of names, are replaced by `...`.
";
const COMMANDS: [&[&str]; 6] = [
    &["explain", "workspace.inference.preset"],
    &["explain", "workspace.resource"],
    &["get", "wk"],
    &["describe", "wk", "falcon"],
    &["describe", "wk", "phi"],
    &["describe", "wk", "mistral"],
];

/// Runs alone, since messages count the nodes of the cluster.
pub async fn as_in_the_documentation(case: Case) {
    let workspace = |name: &str, preset: &str| {
        let mut workspace = case.workspace(name, 1, ONE_A100, json!({"preset": {"name": preset}}));
        workspace["resource"]["labelSelector"] = json!({"matchLabels": {"apps": name}});
        workspace
    };
    let add_node = async |name: &str, app: &str| {
        let node = Node::new(name).instance_type(ONE_A100).label("apps", app).gpus(1).for_gpu_work_alone();
        case.kubelet.add(node).await;
    };
    // Step by step, so that the events are the same each time.
    let starts = async |name: &str, manifest: Value| {
        case.kubelet.pods_of(&case.namespace, Behaviour::Pulling);
        case.apply(manifest).await;
        case.says(name, "InferenceReady", "False", "PodsStarting", &["fetches and starts image"]).await;
    };
    add_node("gpu-node-1", "falcon").await;
    add_node("gpu-node-2", "phi").await;
    starts("falcon", workspace("falcon", "falcon-7b-instruct")).await;
    case.kubelet.pods_of(&case.namespace, Behaviour::Loading);
    case.says("falcon", "InferenceReady", "False", "ModelLoading", &[]).await;
    case.kubelet.pods_of(&case.namespace, Behaviour::Ready);
    case.is_ready("falcon").await;
    let falcon = case.pods_of("falcon").await[0].metadata.name.clone().unwrap();
    case.kubelet.pod(&case.namespace, &falcon, Behaviour::Ready);

    starts("phi", workspace("phi", "phi-3-mini-4k-instruct")).await;
    case.kubelet.pods_of(&case.namespace, Behaviour::ImageMissing);
    case.says("phi", "InferenceReady", "False", "ImagePullError", &["ImagePullBackOff: Back-off"]).await;
    case.apply(workspace("mistral", "mistral-7b-instruct")).await;
    case.says("mistral", "ResourceReady", "False", "NodesMissing", &[]).await;
    case.says("mistral", "InferenceReady", "False", "WaitingForNodes", &[]).await;

    let path = repository().join(DOCUMENT);
    if env::var_os("KAITO_UPDATE").is_some() {
        fs::write(&path, document(&case).await).unwrap();
    }
    let documented = fs::read_to_string(&path).unwrap_or_default();
    // Events come a moment after the changes that they report.
    eventually(&format!("{DOCUMENT} is what is printed; KAITO_UPDATE=1 tests/cluster/run writes it anew"), || async {
        let printed = document(&case).await;
        if printed == documented { Ok(()) } else { Err(printed) }
    })
    .await;
}

async fn document(case: &Case) -> String {
    let mut text = HEAD.to_owned();
    for arguments in COMMANDS {
        let printed = case.kubectl(arguments).await.stdout().replace(&case.namespace, "default");
        let command = arguments.join(" ");
        text += &format!("\n```console\n$ kubectl {command}\n{}\n```\n", normalised(printed.trim_end()));
    }
    text
}

/// Without what differs from run to run.
fn normalised(printed: &str) -> String {
    let (before, events) =
        printed.split_once("\nEvents:\n").map_or((printed, None), |(before, rest)| (before, Some(rest)));
    let mut lines: Vec<String> = before.lines().map(line).collect();
    if let Some(events) = events {
        lines.push("Events:".to_owned());
        lines.extend(table(events));
    }
    lines.join("\n")
}

fn line(line: &str) -> String {
    for field in ["UID:", "Resource Version:", "Creation Timestamp:", "Last Transition Time:"] {
        if let Some(at) = line.find(field) {
            let value = line[at + field.len()..].trim();
            return line.replace(value, "...");
        }
    }
    words(line).trim_end().to_owned()
}

/// The columns of events, aligned anew: the width of ages differs.
fn table(events: &str) -> Vec<String> {
    let rows: Vec<Vec<String>> = events
        .lines()
        .map(|row| {
            let cells = row.split("  ").map(str::trim).filter(|cell| !cell.is_empty());
            let mut cells: Vec<String> = cells.map(|cell| image_named(words(cell))).collect();
            if let Some(age) = cells.get_mut(2).filter(|age| age.contains("...")) {
                "...".clone_into(age);
            }
            cells
        })
        .collect();
    let width = |column: usize| rows.iter().filter_map(|row| Some(row.get(column)?.len())).max().unwrap_or(0);
    let widths: Vec<usize> = (0..4).map(width).collect();
    let aligned = |row: &Vec<String>| {
        let cells = row
            .iter()
            .enumerate()
            .map(|(column, cell)| format!("  {cell:width$}", width = widths.get(column).copied().unwrap_or(0)));
        cells.collect::<String>().trim_end().to_owned()
    };
    rows.iter().map(aligned).collect()
}

/// A controller may see a pod before the kubelet's first word about it, and then tells of its start without the image.
fn image_named(cell: String) -> String {
    let images = [("gpu-node-1", "kaito-falcon-7b-instruct"), ("gpu-node-2", "kaito-phi-3-mini-4k-instruct")];
    for (node, image) in images {
        if let Some(before) = cell.strip_suffix(&format!("node {node} starts it")) {
            return format!("{before}node {node} fetches and starts image registry.example.com/team/{image}:0.1.0");
        }
    }
    cell
}

/// Durations, times and the ends of pods' names become dots.
fn words(line: &str) -> String {
    let mut out = String::new();
    for word in line.split_inclusive(' ') {
        let bare = word.trim_end_matches([' ', ')', ',', '.', ';', ':']);
        let rest = &word[bare.len()..];
        let inner = bare.trim_start_matches('(');
        let opening = &bare[..bare.len() - inner.len()];
        if is_duration(inner) || is_time(inner) {
            out += &format!("{opening}...{rest}");
        } else if let Some(pods) = workload_of(inner) {
            out += &format!("{opening}{pods}-...{rest}");
        } else {
            out += word;
        }
    }
    out
}

/// `12s`, `3m4s`, `1.5s`.
fn is_duration(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_digit())
        && word.ends_with(['s', 'm', 'h', 'd'])
        && word.chars().all(|c| c.is_ascii_digit() || ".msdh".contains(c))
}

/// `2026-01-02T03:04:05Z`
fn is_time(word: &str) -> bool {
    word.len() >= 20 && word.ends_with('Z') && word.as_bytes().get(10) == Some(&b'T')
}

/// The Deployment of a pod, by its name: `falcon` of `falcon-86dd898cc6-b5b4g`.
fn workload_of(word: &str) -> Option<&str> {
    let (rest, pod) = word.rsplit_once('-')?;
    let (deployment, template) = rest.rsplit_once('-')?;
    let made_up = |part: &str| part.chars().all(|c| "bcdfghjklmnpqrstvwxz2456789".contains(c));
    (pod.len() == 5 && (8..=10).contains(&template.len()) && made_up(pod) && made_up(template)).then_some(deployment)
}
