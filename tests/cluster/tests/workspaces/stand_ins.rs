//! Tests the simulated kubelet itself, with a Deployment that is no workspace's.

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Pod, Service},
};
use kaito_cluster_tests::{
    eventually::eventually,
    kubelet::{Behaviour, Image, containers_need},
};
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

/// Two pods of a StatefulSet, each with an init container, our server, and a container that needs its own volumes, the other pod's
/// name and its own index, and that fails when it is told to.
fn set() -> serde_json::Value {
    let works = r#"
        [ "$(cat /shared/word)" = "from the first" ] || { echo "the init container has left nothing"; exit 4; }
        [ "$(id -u):$(id -g)" = 65532:65532 ] || { id; exit 4; }
        ! touch /usr/anything 2>/dev/null || { echo "the root can be written to"; exit 4; }
        ! command -v kaito || { echo "the image has the other one's program"; exit 4; }
        [ "$(df --output=fstype /dev/shm | tail -n 1)" = tmpfs ] || exit 4
        [ "$(hostname)" = "set-$INDEX" ] || { hostname; exit 4; }
        trap 'echo told to end >/shared/last; exit 0' TERM
        touch /tmp/works
        until [ -e /tmp/fail ]; do sleep 0.1; done
        echo "what it said last"
        exit 3
    "#;
    let other = "getent hosts set-$((1 - INDEX)).sets.$NAMESPACE.svc >/tmp/other";
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let shared = json!({"name": "shared", "mountPath": "/shared"});
    json!({
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "set"},
        "spec": {
            "replicas": 2,
            "serviceName": "sets",
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": {"app": "set"}},
            "template": {
                "metadata": {"labels": {"app": "set"}},
                "spec": {
                    "automountServiceAccountToken": false,
                    "securityContext": {"runAsUser": 65532, "runAsGroup": 65532},
                    "terminationGracePeriodSeconds": 20,
                    "initContainers": [{
                        "name": "before",
                        "image": "registry.example.com/plain:1",
                        "command": ["bash", "-c", "echo from the first >/shared/word"],
                        "volumeMounts": [shared],
                    }],
                    "containers": [
                        {
                            "name": "server",
                            "image": "registry.example.com/served:1",
                            "args": ["serve", "--port=$(PORT)"],
                            "env": [{"name": "PORT", "value": "5000"}],
                            "ports": [{"name": "http", "containerPort": 5000}],
                            "readinessProbe": {"httpGet": {"path": "/healthz", "port": "http"}},
                        },
                        {
                            "name": "worker",
                            "image": "registry.example.com/plain:1",
                            "command": ["bash", "-c", works],
                            "env": [
                                field("INDEX", "metadata.labels['apps.kubernetes.io/pod-index']"),
                                field("NAMESPACE", "metadata.namespace"),
                            ],
                            "securityContext": {"readOnlyRootFilesystem": true},
                            "startupProbe": {"exec": {"command": ["test", "-e", "/tmp/works"]}, "failureThreshold": 30},
                            "readinessProbe": {"exec": {"command": ["bash", "-c", other]}},
                            "terminationMessagePolicy": "FallbackToLogsOnError",
                            "volumeMounts": [
                                shared,
                                {"name": "tmp", "mountPath": "/tmp"},
                                {"name": "memory", "mountPath": "/dev/shm"},
                            ],
                        },
                    ],
                    "volumes": [
                        {"name": "shared", "emptyDir": {}},
                        {"name": "tmp", "emptyDir": {}},
                        {"name": "memory", "emptyDir": {"medium": "Memory"}},
                    ],
                },
            },
        },
    })
}

pub async fn runs_all_containers(case: Case) {
    if let Some(missing) = containers_need() {
        return println!("NOT CHECKED: all containers of a pod: {missing}");
    }
    let namespace = &case.namespace;
    case.kubelet.image("/plain:1", Image::default());
    case.kubelet.image("/served:1", Image::kaito());
    case.kubelet.pods_of(namespace, Behaviour::Containers);
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "sets"},
        "spec": {"selector": {"app": "set"}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
    });
    case.apply(service).await;
    case.apply(set()).await;
    let pod = |name: &'static str| {
        case.settles(name, |pod: &Pod| {
            let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.clone()).unwrap_or_default();
            let ready = statuses.len() == 2 && statuses.iter().all(|status| status.ready);
            if ready { Ok(()) } else { Err(format!("{statuses:#?}")) }
        })
    };
    let (first, second) = (pod("set-0").await, pod("set-1").await);
    let ip = |pod: &Pod| pod.status.as_ref().unwrap().pod_ip.clone().unwrap();
    assert_ne!(ip(&first), ip(&second));
    assert_eq!(case.kubelet.address_of(namespace, "set-0"), Some(ip(&first)));

    // Through the Service, whose endpoints have the same port.
    let service: Service = case.exists("sets").await;
    let address = case.network.forward(&service, 80).await;
    eventually("an answer through the Service", || async {
        let answer = reqwest::get(format!("http://{address}/healthz")).await.map_err(|error| error.to_string())?;
        if answer.status().is_success() { Ok(()) } else { Err(answer.status().to_string()) }
    })
    .await;
    let listens: Vec<_> = case.kubelet.listeners(namespace, "set-1").iter().map(|listener| listener.port).collect();
    assert_eq!(listens, [5000]);

    // A container that fails is started again, and its last words are told; the others go on.
    let failed = case.kubelet.exec(namespace, "set-1", "worker", &["touch", "/tmp/fail"]).await;
    assert!(failed.success, "{}", failed.stderr);
    case.settles("set-1", |pod: &Pod| {
        let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.clone()).unwrap_or_default();
        let [server, worker] = statuses.as_slice() else { return Err("not two".to_owned()) };
        let ended = worker.last_state.as_ref().and_then(|last| last.terminated.clone()).unwrap_or_default();
        let message = ended.message.clone().unwrap_or_default();
        let told = ended.exit_code == 3 && message == "what it said last";
        if told && worker.restart_count >= 2 && server.restart_count == 0 {
            Ok(())
        } else {
            Err(format!("{statuses:#?}"))
        }
    })
    .await;
    shows_set(&case, "CrashLoopBackOff").await;
    let failing = case.kubelet.exec(namespace, "set-0", "worker", &["cat", "/tmp/other"]).await.stdout();
    assert!(failing.starts_with(&ip(&second)), "{failing}");

    case.kubectl(&["delete", "statefulset", "set", "--timeout=60s"]).await.stdout();
    eventually("nothing is left", || async {
        let left = [case.pods("app=set").await.iter().map(ResourceExt::name_any).collect(), case.kubelet.left_behind()]
            .concat();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}

/// STATUS of one of the pods.
async fn shows_set(case: &Case, wanted: &str) {
    eventually(wanted, || async {
        let shown = case.kubectl(&["get", "pods", "--no-headers"]).await.stdout();
        if shown.contains(wanted) { Ok(()) } else { Err(shown) }
    })
    .await;
}
