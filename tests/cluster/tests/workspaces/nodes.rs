//! Nodes: how many are missing, why a node is not used, and what happens once it can be.

use kaito_cluster_tests::{eventually::eventually, kubelet::Behaviour};
use kube::ResourceExt;
use serde_json::json;

use crate::case::{Case, ONE_A100};

pub async fn missing_nodes_are_counted_and_explained(case: Case) {
    let namespace = &case.namespace;
    let mut workspace = case.workspace("falcon", 1, ONE_A100, json!({"preset": {"name": "falcon-7b"}}));
    workspace["metadata"]["annotations"] = json!({"kaito.sh/runtime": "vllm"});
    case.apply(workspace).await;
    case.says(
        "falcon",
        "ResourceReady",
        "False",
        "NodesMissing",
        &["1 of 1 node missing", &format!("apps={namespace}")],
    )
    .await;
    case.says("falcon", "WorkspaceReady", "False", "NodesMissing", &[]).await;
    case.tells("falcon", "Warning", "NodesMissing", &["1 of 1 node missing"]).await;

    // Each candidate, with its own reason.
    case.kubelet.add(case.node(0, "Standard_NC6s_v3", 1)).await;
    case.kubelet.add(case.node(1, ONE_A100, 1).not_ready()).await;
    case.kubelet.add(case.node(2, ONE_A100, 0)).await;
    let [other_type, unready, without_gpu] = [0, 1, 2].map(|number| format!("{namespace}-{number}"));
    let words = [&other_type, "Standard_NC6s_v3", &unready, "not ready", &without_gpu, "nvidia.com/gpu"];
    case.says("falcon", "ResourceReady", "False", "NodesMissing", &words).await;

    case.kubelet.set_ready(&unready, true).await;
    let ready = case.is_ready("falcon").await;
    assert_eq!(ready.data["status"]["workerNodes"], json!([unready]));
    let pod = case.pods_of("falcon").await.remove(0);
    assert_eq!(pod.spec.unwrap().node_name, Some(unready));
}

pub async fn preferred_nodes_come_first(case: Case) {
    for number in 0..3 {
        case.kubelet.add(case.node(number, ONE_A100, 1)).await;
    }
    let preferred = format!("{}-2", case.namespace);
    let mut workspace = case.falcon("falcon");
    workspace["resource"]["preferredNodes"] = json!([preferred]);
    case.apply(workspace).await;
    let ready = case.is_ready("falcon").await;
    assert_eq!(ready.data["status"]["workerNodes"], json!([preferred]));
}

pub async fn a_node_that_fails_and_returns(case: Case) {
    case.add_node().await;
    case.apply(case.falcon("falcon")).await;
    case.is_ready("falcon").await;
    let node = format!("{}-0", case.namespace);
    case.kubelet.set_ready(&node, false).await;
    eventually("the workspace names the node that failed", || async {
        let object = case.workspaces().get("falcon").await.map_err(|error| error.to_string())?;
        let found = kaito_cluster_tests::workspace::condition(&object, "ResourceReady").ok_or("no condition")?;
        if found.status == "False" && found.message.contains(&node) { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    let before = case.pods_of("falcon").await.remove(0).name_any();
    case.kubelet.set_ready(&node, true).await;
    case.is_ready("falcon").await;
    // The model was not restarted.
    assert_eq!(case.pods_of("falcon").await.remove(0).name_any(), before);
}

/// Without a word about it, a workspace on GPUs has vLLM behind its server; told otherwise, it computes on their node's CPUs.
pub async fn gpus_decide_on_the_runtime(case: Case) {
    case.add_node().await;
    let mut workspace = case.falcon("falcon");
    workspace["metadata"]["annotations"] = json!({});
    let log = "torch.OutOfMemoryError: CUDA out of memory";
    case.kubelet.pods_of(&case.namespace, Behaviour::Exits { code: 1, reason: "Error", log });
    case.apply(&workspace).await;
    let words = ["container engine ended with exit status 1", log];
    case.says("falcon", "InferenceReady", "False", "GpuOutOfMemory", &words).await;
    case.kubelet.pods_of(&case.namespace, Behaviour::Ready);
    case.is_ready("falcon").await;
    let containers = async || -> Vec<String> {
        let pods = case.pods_of("falcon").await;
        let live = pods.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        live.flat_map(|pod| pod.spec.unwrap().containers).map(|container| container.name).collect()
    };
    assert_eq!(containers().await, ["server", "engine"]);
    case.kubectl(&["annotate", "workspace", "falcon", "kaito.sh/runtime=kaito"]).await.stdout();
    eventually("our own engine takes over", || async {
        let names = containers().await;
        if names == ["server"] { Ok(()) } else { Err(format!("{names:?}")) }
    })
    .await;
    case.is_ready("falcon").await;
}
