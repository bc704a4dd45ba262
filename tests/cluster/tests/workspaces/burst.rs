//! Many workspaces at once.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use kaito_cluster_tests::{
    audit,
    eventually::{eventually, within},
    workspace::condition,
};
use kube::{ResourceExt, api::ListParams};
use serde_json::json;

use crate::{case::Case, installation::METRICS};

const WORKSPACES: usize = 500;
const EIGHT_A100: &str = "Standard_ND96asr_v4";

/// `get 3.0, list 0.1`: how often each was asked, for each workspace.
fn per_workspace(requests: &[audit::Request]) -> String {
    let mut counts = BTreeMap::<String, usize>::new();
    for request in requests.iter().filter(|request| !request.resource.starts_with("leases")) {
        *counts.entry(format!("{} {}", request.verb, request.resource)).or_default() += 1;
    }
    let counts = counts.into_iter().map(|(what, count)| format!("{what} {:.2}", count as f64 / WORKSPACES as f64));
    counts.collect::<Vec<_>>().join(", ")
}

pub async fn five_hundred_workspaces(case: Case) {
    for number in 0..WORKSPACES.div_ceil(8) {
        case.kubelet.add(case.node(number, EIGHT_A100, 8)).await;
    }
    let folder = &case.plane.folder;
    let asked_before = audit::requests(folder).len();
    let begin = Instant::now();
    let preset = json!({"preset": {"name": "phi-3-mini-4k-instruct"}});
    let items: Vec<_> =
        (0..WORKSPACES).map(|number| case.workspace(&format!("phi-{number}"), 1, EIGHT_A100, preset.clone())).collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    let arguments = ["create", "--namespace", &case.namespace, "--filename", "-"];
    case.plane.kubectl_with(&arguments, &list.to_string()).await.stdout();
    let made = begin.elapsed();

    let ready = |workspace: &kube::api::DynamicObject| {
        condition(workspace, "WorkspaceReady").is_some_and(|condition| condition.status == "True")
    };
    within(Duration::from_secs(300), "all settle", || async {
        let all = case.workspaces().list(&ListParams::default()).await.map_err(|error| error.to_string())?;
        let waiting: Vec<_> = all.iter().filter(|workspace| !ready(workspace)).collect();
        match waiting.first() {
            None if all.items.len() == WORKSPACES => Ok(()),
            None => Err(format!("{} workspaces", all.items.len())),
            Some(first) => Err(format!(
                "{} are not ready; {}: {:?}",
                waiting.len(),
                first.name_any(),
                condition(first, "WorkspaceReady")
            )),
        }
    })
    .await;
    let settled = begin.elapsed();
    let asked = audit::requests(folder).split_off(asked_before);
    let (leader, process) = case.leading().await;
    println!(
        "{WORKSPACES} workspaces: made in {:.1} s, all ready after {:.1} s; {:.2} requests a workspace ({}); memory of the \
         controller {leader}: {} MiB, at most {} MiB",
        made.as_secs_f64(),
        settled.as_secs_f64(),
        asked.len() as f64 / WORKSPACES as f64,
        per_workspace(&asked),
        process.memory("VmRSS") >> 20,
        process.memory("VmHWM") >> 20,
    );

    println!("{}", admission(&case).await);
    println!("{}", reviews(&case).await);
    // The leader counts what its watch has told it, which may be a moment behind; and another one may lead by now.
    eventually("the leader counts them as ready", || async {
        let (leader, process) = case.leading().await;
        let metrics = process.get(METRICS, "/metrics").await.map_err(|error| format!("{leader}: {error}"))?;
        let count = |line: &str| line.strip_prefix(r#"kaito_workspaces{phase="Ready"} "#)?.parse::<usize>().ok();
        let ready = metrics.lines().find_map(count);
        if ready >= Some(WORKSPACES) { Ok(()) } else { Err(format!("{leader}: {metrics}")) }
    })
    .await;

    // A reconcile that changes nothing writes nothing.
    eventually("three seconds without a write", || async {
        let before = audit::requests(folder).len();
        tokio::time::sleep(Duration::from_secs(3)).await;
        let writes: Vec<_> =
            audit::requests(folder).split_off(before).into_iter().filter(audit::Request::writes).collect();
        if writes.is_empty() { Ok(()) } else { Err(format!("{} writes, as {:?}", writes.len(), writes[0])) }
    })
    .await;

    case.kubectl(&["delete", "workspaces", "--all", "--wait=false"]).await.stdout();
    within(Duration::from_secs(300), "all are gone", || async {
        let left = case.workspaces().list(&ListParams::default()).await.map_err(|error| error.to_string())?.items.len();
        if left == 0 { Ok(()) } else { Err(format!("{left} left")) }
    })
    .await;
    println!("all gone after another {:.1} s", (begin.elapsed() - settled).as_secs_f64());
}

/// How long the webhook took to answer, by the API server's clock.
async fn admission(case: &Case) -> String {
    let metrics = case.plane.kubectl(&["get", "--raw", "/metrics"]).await.stdout();
    let ours = |name: &str| {
        let name = format!("apiserver_admission_webhook_admission_duration_seconds_{name}{{");
        let lines = metrics.lines().filter(move |line| line.starts_with(&name) && line.contains("kaito.sh"));
        lines.filter_map(|line| Some((line, line.rsplit_once(' ')?.1.parse::<f64>().ok()?))).collect::<Vec<_>>()
    };
    let sum = |found: &[(&str, f64)]| found.iter().map(|(_, value)| value).sum::<f64>();
    let within: Vec<_> = ours("bucket").into_iter().filter(|(line, _)| line.contains(r#"le="0.1""#)).collect();
    let (count, seconds) = (sum(&ours("count")), sum(&ours("sum")));
    assert!(count > 0.0, "the webhook was never asked");
    format!(
        "the webhook answered {count} times, in {:.1} ms on average; {} answers took longer than 100 ms",
        1000.0 * seconds / count,
        count - sum(&within)
    )
}

/// How long reviews took by the controllers' own metrics.
async fn reviews(case: &Case) -> String {
    const NAME: &str = "kaito_webhook_review_duration_seconds_";
    let mut sums = BTreeMap::<String, f64>::new();
    for (_, process) in case.controllers().await {
        let metrics = process.get(METRICS, "/metrics").await.unwrap();
        for line in metrics.lines().filter_map(|line| line.strip_prefix(NAME)) {
            let (name, value) = line.rsplit_once(' ').unwrap();
            *sums.entry(name.to_owned()).or_default() += value.parse::<f64>().unwrap();
        }
    }
    let count = sums["count"];
    assert!(count >= 2.0 * WORKSPACES as f64, "{sums:?}");
    let mut within: Vec<(f64, f64)> = sums
        .iter()
        .filter_map(|(name, count)| {
            Some((name.strip_prefix("bucket{le=\"")?.strip_suffix("\"}")?.parse().ok()?, *count))
        })
        .filter(|(limit, _): &(f64, f64)| limit.is_finite())
        .collect();
    within.sort_by(|a, b| a.0.total_cmp(&b.0));
    let within = within.iter().map(|(limit, within)| format!("{within} in {} ms", 1000.0 * limit));
    format!(
        "reviews: {count}, {:.2} ms on average; {}",
        1000.0 * sums["sum"] / count,
        within.collect::<Vec<_>>().join(", ")
    )
}
