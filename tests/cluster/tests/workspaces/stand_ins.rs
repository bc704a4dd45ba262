//! Tests the simulated kubelet itself, with a Deployment that is no workspace's.

use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kaito_cluster_tests::{eventually::eventually, kubelet::Behaviour};
use kube::ResourceExt;
use serde_json::json;

use crate::case::Case;

fn deployment() -> String {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "plain"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "plain"}},
            "template": {
                "metadata": {"labels": {"app": "plain"}},
                "spec": {
                    "initContainers": [{"name": "before", "image": "registry.example.com/before:1"}],
                    "containers": [{
                        "name": "main",
                        "image": "registry.example.com/plain:1",
                        "terminationMessagePolicy": "FallbackToLogsOnError",
                    }],
                },
            },
        },
    })
    .to_string()
}

/// What `kubectl get pods` shows under STATUS, READY and RESTARTS, which is kubectl's own reading of a pod's status.
async fn shown(case: &Case) -> String {
    let arguments = ["get", "pods", "--namespace", &case.namespace, "--no-headers"];
    let line = case.plane.kubectl(&arguments).await.stdout();
    let columns: Vec<&str> = line.split_whitespace().skip(1).take(2).collect();
    columns.join(" ")
}

async fn shows(case: &Case, wanted: &str) {
    eventually(&format!("{}: {wanted}", case.namespace), || async {
        let shown = shown(case).await;
        if shown == wanted { Ok(()) } else { Err(shown) }
    })
    .await;
}

pub async fn becomes_ready(case: Case) {
    case.kubelet.pods_of(&case.namespace, Behaviour::Pulling);
    case.apply(&deployment()).await;
    shows(&case, "0/1 ContainerCreating").await;
    case.kubelet.pods_of(&case.namespace, Behaviour::Loading);
    shows(&case, "0/1 Running").await;
    case.kubelet.pods_of(&case.namespace, Behaviour::Ready);
    shows(&case, "1/1 Running").await;
    case.settles("plain", |deployment: &Deployment| {
        let available = deployment.status.as_ref().and_then(|status| status.available_replicas);
        if available == Some(1) { Ok(()) } else { Err(format!("{available:?}")) }
    })
    .await;

    // A pod that is deleted ends, and another takes its place.
    let first = case.pods("app=plain").await.remove(0).name_any();
    case.plane.kubectl(&["delete", "pod", &first, "--namespace", &case.namespace, "--timeout=60s"]).await.stdout();
    let second: Pod = eventually("another pod", || async {
        let pod = case.pods("app=plain").await.pop().ok_or("no pod")?;
        if pod.name_any() == first { Err("the first") } else { Ok(pod) }
    })
    .await;
    assert_ne!(second.name_any(), first);
    shows(&case, "1/1 Running").await;
}

pub async fn tells_failures_as_a_kubelet_does(case: Case) {
    let namespace = &case.namespace;
    case.kubelet.pods_of(namespace, Behaviour::ImageMissing);
    case.apply(&deployment()).await;
    shows(&case, "0/1 ErrImagePull").await;
    shows(&case, "0/1 ImagePullBackOff").await;
    case.kubelet.pods_of(namespace, Behaviour::OUT_OF_MEMORY);
    shows(&case, "0/1 OOMKilled").await;
    shows(&case, "0/1 CrashLoopBackOff").await;
    case.kubelet.pods_of(namespace, Behaviour::Exits { code: 3, reason: "Error", log: "no weights" });
    shows(&case, "0/1 Error").await;
    let described = eventually("the log's end in the description", || async {
        let text = case.plane.kubectl(&["describe", "pods", "--namespace", namespace]).await.stdout();
        let told = ["CrashLoopBackOff", "Exit Code:    3", "Message:      no weights"];
        if told.iter().all(|words| text.contains(words)) { Ok(text) } else { Err(text) }
    })
    .await;
    assert!(described.contains("Initialized                 True"), "{described}");
    case.kubelet.container_of(namespace, "before", Behaviour::Exits { code: 1, reason: "Error", log: "" });
    shows(&case, "0/1 Init:Error").await;
    shows(&case, "0/1 Init:CrashLoopBackOff").await;
    case.kubelet.pods_of(namespace, Behaviour::Ready);
    shows(&case, "1/1 Running").await;
}

pub async fn really_runs(case: Case) {
    let namespace = &case.namespace;
    case.kubelet.pods_of(namespace, Behaviour::Process);
    let probe = json!({"httpGet": {"path": "/healthz", "port": "http"}});
    case.apply(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "demo"},
        "spec": {
            "serviceAccountName": "default",
            "containers": [{
                "name": "demo",
                "image": "registry.example.com/kaito:1",
                "command": ["kaito", "serve"],
                "args": ["--port=5000"],
                "ports": [{"name": "http", "containerPort": 5000}],
                "readinessProbe": probe,
            }],
        },
    }))
    .await;
    shows(&case, "1/1 Running").await;
    let first = case.kubelet.process(namespace, "demo").unwrap();
    assert!(first.get(5000, "/healthz").await.is_ok());
    first.kill();
    let second = eventually("another process", || async {
        let process = case.kubelet.process(namespace, "demo").ok_or("none")?;
        if process.pid == first.pid { Err("the first") } else { Ok(process) }
    })
    .await;
    shows(&case, "1/1 Running").await;
    assert!(second.get(5000, "/healthz").await.is_ok());
    let restarts =
        case.api::<Pod>().get("demo").await.unwrap().status.unwrap().container_statuses.unwrap()[0].restart_count;
    assert_eq!(restarts, 1);
    case.kubectl(&["delete", "pod", "demo", "--timeout=60s"]).await.stdout();
    assert!(case.kubelet.process(namespace, "demo").is_none());
}
