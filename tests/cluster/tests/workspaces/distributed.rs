//! Models across nodes.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::{apps::v1::StatefulSet, core::v1::Service, discovery::v1::EndpointSlice, networking::v1::NetworkPolicy},
    apimachinery::pkg::{api::resource::Quantity, util::intstr::IntOrString},
};
use kaito_cluster_tests::{audit, eventually::eventually, kubelet::Behaviour};
use kube::{ResourceExt, api::ListParams};
use serde_json::{Value, json};

use crate::case::Case;

const TWO_V100: &str = "Standard_NC12s_v3";

/// Two ranks, which vLLM serves.
fn llama(case: &Case) -> Value {
    let preset = json!({"preset": {
        "name": "llama-2-13b-chat",
        "accessMode": "private",
        "presetOptions": {"image": "registry.example.com/llama-2-13b-chat:1", "imagePullSecrets": ["registry"]},
    }});
    let mut workspace = case.workspace("llama", 2, TWO_V100, preset);
    workspace["metadata"]["annotations"] = json!({"kaito.sh/runtime": "vllm"});
    workspace
}

async fn two_nodes(case: &Case) {
    for number in 0..2 {
        case.kubelet.add(case.node(number, TWO_V100, 2)).await;
    }
}

pub async fn two_ranks_on_two_nodes(case: Case) {
    two_nodes(&case).await;
    case.apply(llama(&case)).await;
    case.is_ready("llama").await;

    let set: StatefulSet = case.exists("llama").await;
    let spec = set.spec.unwrap();
    assert_eq!(spec.replicas, Some(2));
    assert_eq!(spec.pod_management_policy.as_deref(), Some("Parallel"));
    assert_eq!(spec.service_name.as_deref(), Some("llama-headless"));
    let headless: Service = case.exists("llama-headless").await;
    let headless = headless.spec.unwrap();
    assert_eq!(headless.cluster_ip.as_deref(), Some("None"));
    assert_eq!(headless.publish_not_ready_addresses, Some(true));
    assert!(headless.ports.unwrap().iter().any(|port| port.port == 29500));

    // One rank on each node, with the one GPU that it needs of the node's two.
    let pods = case.pods_of("llama").await;
    let mut nodes: Vec<_> = pods.iter().map(|pod| pod.spec.as_ref().unwrap().node_name.clone().unwrap()).collect();
    nodes.sort();
    assert_eq!(nodes, [0, 1].map(|number| format!("{}-{number}", case.namespace)));
    for pod in &pods {
        let spec = pod.spec.as_ref().unwrap();
        let names: Vec<_> = spec.containers.iter().map(|container| container.name.as_str()).collect();
        assert_eq!(names, ["server", "engine"]);
        let limits = spec.containers[1].resources.as_ref().unwrap().limits.clone().unwrap();
        assert_eq!(limits["nvidia.com/gpu"], Quantity("1".to_owned()));
        assert_eq!(spec.image_pull_secrets.as_ref().unwrap()[0].name, "registry");
    }

    // Requests go only to the first rank.
    let service: Service = case.exists("llama").await;
    let port = service.spec.unwrap().ports.unwrap().remove(0);
    assert_eq!((port.name.as_deref(), port.port), (Some("http"), 80));
    assert!(matches!(port.target_port, Some(IntOrString::Int(5000) | IntOrString::String(_))));
    eventually("the service's only endpoint is llama-0", || async {
        let label = ListParams::default().labels("kubernetes.io/service-name=llama");
        let slices = case.api::<EndpointSlice>().list(&label).await.map_err(|error| error.to_string())?;
        let targets: Vec<_> = slices
            .iter()
            .flat_map(|slice| &slice.endpoints)
            .map(|endpoint| endpoint.target_ref.clone().unwrap_or_default().name.unwrap_or_default())
            .collect();
        if targets == ["llama-0"] { Ok(()) } else { Err(format!("{targets:?}")) }
    })
    .await;

    // Ranks reach each other, and clients the server. What others open is closed again.
    let ingress = |policy: &NetworkPolicy| serde_json::to_value(&policy.spec.as_ref().unwrap().ingress).unwrap();
    let wanted = json!([
        {"from": [{"podSelector": {"matchLabels": {"kaito.sh/workspace": "llama"}}}]},
        {"ports": [{"port": 5000, "protocol": "TCP"}]},
    ]);
    assert_eq!(ingress(&case.exists("llama").await), wanted);
    let open = r#"{"spec": {"ingress": [{}]}}"#;
    case.kubectl(&["patch", "networkpolicy", "llama", "--type=merge", "--patch", open]).await.stdout();
    case.settles("llama", |policy: &NetworkPolicy| {
        let found = ingress(policy);
        if found == wanted { Ok(()) } else { Err(found.to_string()) }
    })
    .await;
    case.delete_and_leave_nothing("llama").await;
}

pub async fn ranks_of_our_own_server_are_refused(case: Case) {
    two_nodes(&case).await;
    let mut workspace = llama(&case);
    workspace["metadata"]["annotations"] = json!({"kaito.sh/runtime": "kaito"});
    let printed = case.apply(workspace).await;
    assert!(printed.contains("computes on one node only"), "{printed}");
    let words = ["computes on one node only", "kaito.sh/runtime: vllm"];
    case.says("llama", "InferenceReady", "False", "RanksUnsupported", &words).await;
    case.says("llama", "ResourceReady", "True", "NodesReady", &[]).await;
    assert_eq!(case.owned("llama").await, [""; 0]);
    // With the other runtime, it starts.
    case.kubectl(&["annotate", "workspace", "llama", "kaito.sh/runtime=vllm", "--overwrite"]).await.stdout();
    case.is_ready("llama").await;
}

pub async fn one_rank_fails(case: Case) {
    two_nodes(&case).await;
    let log = "error: rank 1 has no shard";
    case.kubelet.pod(&case.namespace, "llama-1", Behaviour::Exits { code: 2, reason: "Error", log });
    case.apply(llama(&case)).await;
    let words = ["llama-1", "container engine", log];
    case.says("llama", "InferenceReady", "False", "ContainerCrashLoopBackOff", &words).await;
    case.kubelet.pod(&case.namespace, "llama-1", Behaviour::Ready);
    case.is_ready("llama").await;
}

/// An engine's own words, as its supervisor says them last.
pub async fn engines_that_end_say_why(case: Case) {
    two_nodes(&case).await;
    case.apply(llama(&case)).await;
    for (log, reason) in [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "GpuOutOfMemory"),
        ("RuntimeError: The NVIDIA driver on your system is too old (found version 12020)", "GpuDriverUnsuitable"),
    ] {
        let said: &'static str = format!("INFO starting\nerror: the engine ended with exit status 1: {log}\n").leak();
        case.kubelet.pod(&case.namespace, "llama-1", Behaviour::Exits { code: 1, reason: "Error", log: said });
        case.says("llama", "InferenceReady", "False", reason, &["llama-1", "container engine", log]).await;
        case.tells("llama", "Warning", reason, &[log]).await;
    }
    case.kubelet.pod(&case.namespace, "llama-1", Behaviour::Ready);
    case.is_ready("llama").await;
}

pub async fn a_rank_that_is_lost_with_its_node_is_named(case: Case) {
    two_nodes(&case).await;
    case.apply(llama(&case)).await;
    case.is_ready("llama").await;
    let pods = case.pods_of("llama").await;
    let second = pods.iter().find(|pod| pod.name_any() == "llama-1").unwrap();
    let node = second.spec.as_ref().unwrap().node_name.clone().unwrap();
    case.kubelet.set_ready(&node, false).await;
    // Without that rank the model does not answer.
    case.kubelet.pod(&case.namespace, "llama-0", Behaviour::Loading);
    let words = [&format!("rank 1 is lost with its node {node}, which is not ready"), "Get the node ready"];
    case.says("llama", "InferenceReady", "False", "RankLost", &words).await;
    case.tells("llama", "Warning", "RankLost", &words).await;
    case.kubelet.set_ready(&node, true).await;
    case.says("llama", "InferenceReady", "False", "ModelLoading", &["llama-0"]).await;
    case.kubelet.pod(&case.namespace, "llama-0", Behaviour::Ready);
    case.is_ready("llama").await;
}

/// Names and uids of the ranks' pods.
async fn uids(case: &Case) -> BTreeMap<String, String> {
    case.pods_of("llama").await.iter().map(|pod| (pod.name_any(), pod.uid().unwrap())).collect()
}

/// The pods that the controllers deleted in this case's namespace, in their order.
fn deleted_pods(case: &Case) -> Vec<String> {
    let requests = audit::requests(&case.plane.folder);
    let deletions = requests.into_iter().filter(|request| {
        (request.verb.as_str(), request.resource.as_str()) == ("delete", "pods") && request.namespace == case.namespace
    });
    deletions.map(|request| request.name).collect()
}

/// Ranks of different templates cannot compute together.
pub async fn ranks_of_a_changed_template_are_replaced_together(case: Case) {
    two_nodes(&case).await;
    case.apply(llama(&case)).await;
    case.is_ready("llama").await;
    let before = uids(&case).await;
    let set: StatefulSet = case.exists("llama").await;
    assert_eq!(set.spec.unwrap().update_strategy.unwrap().type_.as_deref(), Some("OnDelete"));

    // What somebody else makes of the template is set back, and replaces nothing.
    let patch = r#"{"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 7}}}}"#;
    case.kubectl(&["patch", "statefulset", "llama", "--type=merge", "--patch", patch]).await.stdout();
    case.settles("llama", |set: &StatefulSet| {
        let spec = set.spec.as_ref().unwrap().template.spec.as_ref().unwrap();
        let status = set.status.as_ref().unwrap();
        let is_seen = status.observed_generation == set.metadata.generation;
        let found = (spec.termination_grace_period_seconds, is_seen);
        if found == (Some(200), true) { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    case.is_ready("llama").await;
    assert_eq!(uids(&case).await, before);
    assert_eq!(deleted_pods(&case), [""; 0]);

    let mut changed = llama(&case);
    changed["resource"]["preferredNodes"] = json!([format!("{}-1", case.namespace)]);
    case.apply(changed).await;
    eventually("the pods of both ranks are others, and of one template", || async {
        let set: StatefulSet = case.exists("llama").await;
        let revision = set.status.and_then(|status| status.update_revision);
        let pods = case.pods_of("llama").await;
        let revisions: BTreeSet<_> =
            pods.iter().map(|pod| pod.labels().get("controller-revision-hash").cloned()).collect();
        let now = uids(&case).await;
        let are_others = now.len() == 2 && before.iter().all(|(name, uid)| now.get(name).is_some_and(|it| it != uid));
        if are_others && revisions == BTreeSet::from([revision]) {
            Ok(())
        } else {
            Err(format!("{now:?} {revisions:?}"))
        }
    })
    .await;
    case.is_ready("llama").await;
    // The first one's first, and none twice.
    eventually("the audit log has both deletions", || async {
        let deleted = deleted_pods(&case);
        if deleted == ["llama-0", "llama-1"] { Ok(()) } else { Err(format!("{deleted:?}")) }
    })
    .await;
    for pod in ["llama-0", "llama-1"] {
        case.tells("llama", "Normal", "PodsReplaced", &[&format!("deleted Pod {pod}, which")]).await;
    }
    case.delete_and_leave_nothing("llama").await;
}

pub async fn one_node_of_two_is_missing(case: Case) {
    case.kubelet.add(case.node(0, TWO_V100, 2)).await;
    case.apply(llama(&case)).await;
    case.says("llama", "ResourceReady", "False", "NodesMissing", &["1 of 2 nodes missing"]).await;
    case.kubelet.add(case.node(1, TWO_V100, 2)).await;
    let ready = case.is_ready("llama").await;
    let nodes = [0, 1].map(|number| format!("{}-{number}", case.namespace));
    assert_eq!(ready.data["status"]["workerNodes"], json!(nodes));
    assert_eq!(ready.data["status"]["targetNodeCount"], 2);
    assert_eq!(
        case.pods_of("llama").await.iter().map(ResourceExt::name_any).collect::<Vec<_>>(),
        ["llama-0", "llama-1"]
    );
}

pub async fn vllm_across_nodes(case: Case) {
    let type_ = "Standard_NC96ads_A100_v4";
    for number in 0..2 {
        case.kubelet.add(case.node(number, type_, 4)).await;
    }
    let preset = json!({"preset": {
        "name": "llama-2-70b-chat",
        "accessMode": "private",
        "presetOptions": {"image": "registry.example.com/llama-2-70b-chat:1"},
    }});
    let mut workspace = case.workspace("llama", 2, type_, preset);
    workspace["metadata"]["annotations"] = json!({"kaito.sh/runtime": "vllm"});
    case.apply(workspace).await;
    case.is_ready("llama").await;
    let pods = case.pods_of("llama").await;
    assert_eq!(pods.len(), 2);
    for pod in pods {
        let limits = pod.spec.unwrap().containers[1].resources.clone().unwrap().limits.unwrap();
        assert_eq!(limits["nvidia.com/gpu"], Quantity("4".to_owned()));
    }
    // The API server has kept the volume with the weights.
    let set: StatefulSet = case.exists("llama").await;
    let volumes = set.spec.unwrap().template.spec.unwrap().volumes.unwrap();
    let mut images = volumes.iter().filter_map(|volume| volume.image.as_ref()?.reference.as_deref());
    assert_eq!(images.next(), Some("registry.example.com/llama-2-70b-chat:1"));
}
