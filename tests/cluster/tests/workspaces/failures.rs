//! Workspaces that cannot serve say why, and serve once the cause is gone.

use k8s_openapi::api::apps::v1::Deployment;
use kaito_cluster_tests::kubelet::Behaviour;
use serde_json::json;

use crate::case::{Case, ONE_A100};

pub async fn an_image_that_cannot_be_pulled(case: Case) {
    case.kubelet.pods_of(&case.namespace, Behaviour::ImageMissing);
    case.add_node().await;
    case.apply(case.falcon("falcon")).await;
    let image = "registry.example.com/team/kaito-falcon-7b-instruct:";
    case.says("falcon", "InferenceReady", "False", "ImagePullError", &[image, "not found"]).await;
    case.says("falcon", "WorkspaceReady", "False", "ImagePullError", &[]).await;
    case.says("falcon", "ResourceReady", "True", "NodesReady", &[]).await;
    case.tells("falcon", "Warning", "ImagePullError", &[image]).await;
    case.kubelet.pods_of(&case.namespace, Behaviour::Ready);
    case.is_ready("falcon").await;
}

pub async fn a_server_that_crashes(case: Case) {
    let log = "error: /weights has no tokenizer.json";
    case.kubelet.pods_of(&case.namespace, Behaviour::Exits { code: 1, reason: "Error", log });
    case.add_node().await;
    case.apply(case.falcon("falcon")).await;
    case.says("falcon", "InferenceReady", "False", "ContainerCrashLoopBackOff", &["exit status 1", log]).await;
    case.tells("falcon", "Warning", "ContainerCrashLoopBackOff", &[log]).await;
    case.kubelet.pods_of(&case.namespace, Behaviour::Ready);
    case.is_ready("falcon").await;
}

pub async fn a_server_that_runs_out_of_memory(case: Case) {
    case.kubelet.pods_of(&case.namespace, Behaviour::OUT_OF_MEMORY);
    case.add_node().await;
    case.apply(case.falcon("falcon")).await;
    case.says("falcon", "InferenceReady", "False", "ContainerOOMKilled", &["ran out of memory"]).await;
    case.tells("falcon", "Warning", "ContainerOOMKilled", &[]).await;
    case.kubelet.pods_of(&case.namespace, Behaviour::Ready);
    case.is_ready("falcon").await;
}

pub async fn a_pod_that_no_node_takes(case: Case) {
    // Too little memory for the model.
    case.kubelet.add(case.node(0, ONE_A100, 1).memory("1Gi")).await;
    case.apply(case.falcon("falcon")).await;
    // The scheduler's own words.
    let words = ["Insufficient memory"];
    case.says("falcon", "InferenceReady", "False", "Unschedulable", &words).await;
    case.tells("falcon", "Warning", "Unschedulable", &words).await;
    case.kubelet.add(case.node(1, ONE_A100, 1)).await;
    case.is_ready("falcon").await;
}

pub async fn a_node_that_others_keep_for_themselves(case: Case) {
    let node = format!("{}-0", case.namespace);
    case.add_node().await;
    case.plane.kubectl(&["taint", "node", &node, "team=other:NoSchedule"]).await.stdout();
    case.apply(case.falcon("falcon")).await;
    let words =
        ["1 of 1 node missing", &node, "has the taint team=other:NoSchedule", "no pod of the workspace tolerates"];
    case.says("falcon", "ResourceReady", "False", "NodesMissing", &words).await;
    case.tells("falcon", "Warning", "NodesMissing", &words).await;
    case.plane.kubectl(&["taint", "node", &node, "team-"]).await.stdout();
    case.is_ready("falcon").await;
}

pub async fn a_quota_for_pods(case: Case) {
    case.apply(json!({
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "no-memory"},
        "spec": {"hard": {"requests.memory": "1Gi"}},
    }))
    .await;
    case.add_node().await;
    case.apply(case.falcon("falcon")).await;
    let words = ["exceeded quota: no-memory", "requests.memory"];
    case.says("falcon", "InferenceReady", "False", "QuotaExceeded", &words).await;
    case.tells("falcon", "Warning", "QuotaExceeded", &words).await;
    case.kubectl(&["delete", "resourcequota", "no-memory"]).await.stdout();
    // The controller of Deployments tries again at growing intervals.
    case.is_ready("falcon").await;
}

pub async fn a_quota_for_services(case: Case) {
    case.apply(json!({
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "no-services"},
        "spec": {"hard": {"services": "0"}},
    }))
    .await;
    case.settles("no-services", |quota: &k8s_openapi::api::core::v1::ResourceQuota| {
        if quota.status.as_ref().is_some_and(|status| status.hard.is_some()) {
            Ok(())
        } else {
            Err("not at work yet".into())
        }
    })
    .await;
    case.add_node().await;
    case.apply(case.falcon("falcon")).await;
    case.says("falcon", "InferenceReady", "False", "QuotaExceeded", &["exceeded quota: no-services"]).await;
    case.kubectl(&["delete", "resourcequota", "no-services"]).await.stdout();
    case.is_ready("falcon").await;
}

pub async fn a_model_that_loads(case: Case) {
    case.kubelet.pods_of(&case.namespace, Behaviour::Pulling);
    case.add_node().await;
    case.apply(case.falcon("falcon")).await;
    case.says("falcon", "InferenceReady", "False", "PodsStarting", &["kaito-falcon-7b-instruct"]).await;
    case.kubelet.pods_of(&case.namespace, Behaviour::Loading);
    case.says("falcon", "InferenceReady", "False", "ModelLoading", &[]).await;
    case.kubelet.pods_of(&case.namespace, Behaviour::Ready);
    case.is_ready("falcon").await;
    // How long each phase took.
    case.tells("falcon", "Normal", "InferenceReady", &["ready after"]).await;
}

pub async fn an_adapter_that_cannot_be_pulled(case: Case) {
    case.add_node().await;
    let mut workspace = case.falcon("falcon");
    let image = "registry.example.com/adapters/tickets:0.3.1";
    workspace["inference"]["adapters"] = json!([{"source": {"name": "tickets", "image": image}, "strength": "0.5"}]);
    case.apply(workspace).await;
    let deployment: Deployment = case.exists("falcon").await;
    let pod = deployment.spec.unwrap().template.spec.unwrap();
    let init = pod.init_containers.unwrap().into_iter().find(|container| container.image.as_deref() == Some(image));
    let init = init.expect("an init container fetches the adapter").name;
    case.kubelet.container_of(&case.namespace, &init, Behaviour::ImageMissing);
    case.says("falcon", "InferenceReady", "False", "ImagePullError", &[image]).await;
    case.kubelet.pods_of(&case.namespace, Behaviour::Ready);
    case.is_ready("falcon").await;
}

/// Weights of the hub in a volume, which has to be there first.
pub async fn weights_that_a_claim_keeps(case: Case) {
    case.add_node().await;
    case.kubelet.container_of(&case.namespace, "weights", Behaviour::Loading);
    let mut workspace = case.falcon("falcon");
    workspace["inference"]["preset"]["presetOptions"] = json!({"modelAccessSecret": "hub", "weightsClaim": "models"});
    case.apply(workspace).await;
    let words = ["there is no PersistentVolumeClaim models", &case.namespace];
    case.says("falcon", "InferenceReady", "False", "WeightsClaimUnsuitable", &words).await;
    assert!(case.api::<Deployment>().get_opt("falcon").await.unwrap().is_none());
    let volume = format!("{}-models", case.namespace);
    let modes = ["ReadWriteOnce"];
    case.apply(json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": volume},
        "spec": {
            "capacity": {"storage": "100Gi"}, "accessModes": modes, "hostPath": {"path": "/models"},
            "storageClassName": "", "persistentVolumeReclaimPolicy": "Retain",
        },
    }))
    .await;
    case.apply(json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "models"},
        "spec": {
            "accessModes": modes, "storageClassName": "", "volumeName": volume,
            "resources": {"requests": {"storage": "100Gi"}},
        },
    }))
    .await;
    case.says("falcon", "InferenceReady", "False", "WeightsFetching", &["init container weights"]).await;
    let fetcher = case.pods_of("falcon").await.remove(0).spec.unwrap().init_containers.unwrap().remove(0);
    assert_eq!(fetcher.args.unwrap()[..2], ["download", "falcon-7b-instruct"]);
    case.kubelet.pods_of(&case.namespace, Behaviour::Ready);
    case.is_ready("falcon").await;
    case.delete_and_leave_nothing("falcon").await;
    case.kubectl(&["delete", "persistentvolumeclaim", "models"]).await.stdout();
    case.plane.kubectl(&["delete", "persistentvolume", &volume]).await.stdout();
}

pub async fn flags_that_are_missing(case: Case) {
    case.add_node().await;
    let mut workspace = case.falcon("falcon");
    workspace["inference"]["config"] = json!("flags");
    case.apply(workspace).await;
    let words = ["there is no ConfigMap flags", &case.namespace];
    case.says("falcon", "InferenceReady", "False", "ConfigMissing", &words).await;
    let config_map = |key: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "flags"}, "data": {(key): "8"}});
    case.apply(config_map("world-size")).await;
    case.says("falcon", "InferenceReady", "False", "ConfigInvalid", &["the flag world-size"]).await;
    case.apply(config_map("max-batch-size")).await;
    case.is_ready("falcon").await;
    let arguments = case.pods_of("falcon").await.remove(0).spec.unwrap().containers.remove(0).args.unwrap();
    assert_eq!(arguments.last().map(String::as_str), Some("--max-batch-size=8"), "{arguments:?}");
}

/// As the Kaito project's examples have it.
pub async fn a_configuration_of_the_kaito_project(case: Case) {
    case.add_node().await;
    let config = |section: &str| {
        let text = format!("max_probe_steps: 6\nvllm:\n{section}");
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "params"},
            "data": {"inference_config.yaml": text},
        })
    };
    let mut workspace = case.falcon("falcon");
    workspace["inference"]["config"] = json!("params");
    case.apply(config("  tensor-parallel-size: 2\n")).await;
    case.apply(&workspace).await;
    case.says("falcon", "ConfigApplied", "False", "FlagsIgnored", &["the section vllm", "this workspace's is kaito"])
        .await;
    case.is_ready("falcon").await;
    case.delete_and_leave_nothing("falcon").await;
    workspace["metadata"]["annotations"] = json!({"kaito.sh/runtime": "vllm"});
    case.apply(&workspace).await;
    case.says(
        "falcon",
        "InferenceReady",
        "False",
        "ConfigDoesNotFit",
        &["tensor-parallel-size is 2", "71 attention heads"],
    )
    .await;
    case.apply(config("  gpu-memory-utilization: 0.95\n  max-model-len: 1024\n  tensor-parallel-size: 1\n")).await;
    case.is_ready("falcon").await;
    let arguments = case.pods_of("falcon").await.remove(0).spec.unwrap().containers.remove(1).args.unwrap();
    assert!(arguments.windows(2).any(|pair| pair == ["--max-model-len", "1024"]), "{arguments:?}");
    case.says("falcon", "ConfigApplied", "True", "FlagsApplied", &["3 flags", "max_probe_steps"]).await;
}
