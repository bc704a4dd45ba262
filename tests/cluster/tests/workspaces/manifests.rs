//! Every manifest of examples/ and of the documents, as a user applies it.

use std::fs;

use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::Service,
};
use kaito_cluster_tests::{control_plane::repository, kubelet::Node};
use kube::ResourceExt;
use serde_json::Value;

use crate::case::Case;

/// GPUs of the instance types that manifests name, as the clouds document them.
const GPUS: [(&str, u32); 12] = [
    ("Standard_NC4as_T4_v3", 1),
    ("Standard_NC6s_v3", 1),
    ("Standard_NC12s_v3", 2),
    ("Standard_NC24s_v3", 4),
    ("Standard_NC24ads_A100_v4", 1),
    ("Standard_NC48ads_A100_v4", 2),
    ("Standard_NC96ads_A100_v4", 4),
    ("Standard_ND96asr_v4", 8),
    ("Standard_ND96amsr_A100_v4", 8),
    ("g5.xlarge", 1),
    ("a2-ultragpu-2g", 2),
    // The document says so of its own nodes.
    ("rack-a", 4),
];

fn parsed(file: &str, text: &str) -> Vec<Value> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).unwrap_or_else(|error| panic!("{file}: {error}"));
    documents.into_iter().filter(|document| document["kind"] == "Workspace").collect()
}

/// The workspaces of a folder's YAML files and of its Markdown files' blocks, each with the file's name.
fn workspaces(folder: &str) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    let mut paths: Vec<_> =
        fs::read_dir(repository().join(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths.iter().filter(|path| path.is_file()) {
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(path).unwrap_or_default();
        let blocks = match path.extension().and_then(|extension| extension.to_str()) {
            Some("yaml") => vec![text],
            Some("md") => {
                text.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
            }
            _ => continue,
        };
        for block in blocks.iter().filter(|block| block.contains("kind: Workspace")) {
            found.extend(parsed(&file, block).into_iter().map(|workspace| (file.clone(), workspace)));
        }
    }
    found
}

/// The nodes that a manifest describes.
async fn add_nodes(case: &Case, file: &str, workspace: &Value) {
    let resource = &workspace["resource"];
    let instance_type = resource["instanceType"].as_str();
    let gpus = match instance_type {
        None => 1,
        Some(wanted) => {
            let known = GPUS.iter().find(|(name, _)| *name == wanted);
            known.unwrap_or_else(|| panic!("{file}: how many GPUs has {wanted}?")).1
        }
    };
    for number in 0..resource["count"].as_u64().unwrap_or(1) {
        let name = format!("{}-{}", case.namespace, workspace["metadata"]["name"].as_str().unwrap());
        let mut node = Node::new(format!("{name}-{number}")).gpus(gpus).for_gpu_work_alone();
        if let Some(instance_type) = instance_type {
            node = node.instance_type(instance_type);
        }
        for (key, value) in resource["labelSelector"]["matchLabels"].as_object().into_iter().flatten() {
            node = node.label(key, value.as_str().unwrap());
        }
        for term in resource["labelSelector"]["matchExpressions"].as_array().into_iter().flatten() {
            node = node.label(term["key"].as_str().unwrap(), term["values"][0].as_str().unwrap());
        }
        case.kubelet.add(node).await;
    }
}

async fn become_ready(case: &Case, manifests: Vec<(String, Value)>) {
    assert!(!manifests.is_empty());
    for (file, workspace) in &manifests {
        add_nodes(case, file, workspace).await;
        case.apply(workspace).await;
    }
    for (file, workspace) in &manifests {
        let name = workspace["metadata"]["name"].as_str().unwrap();
        println!("{file}: {name}");
        let ready = case.is_ready(name).await;
        let count = workspace["resource"]["count"].as_u64().unwrap_or(1);
        assert_eq!(ready.data["status"]["workerNodes"].as_array().unwrap().len() as u64, count, "{file}");
        right_objects(case, file, workspace, name).await;
    }
}

/// Owned, labelled, and of the kind that the preset asks for.
async fn right_objects(case: &Case, file: &str, workspace: &Value, name: &str) {
    let preset = workspace["inference"]["preset"]["name"].as_str().unwrap_or_default().replace('_', "-");
    let count = workspace["resource"]["count"].as_u64().unwrap_or(1);
    let ranks = if preset.contains("70b") {
        8
    } else if preset.contains("13b") {
        2
    } else {
        1
    };
    let vllm = workspace["metadata"]["annotations"]["kaito.sh/runtime"] == "vllm";
    let distributed = if vllm { count > 1 } else { ranks > 1 || count > 1 };
    let owners = if distributed {
        let set: StatefulSet = case.exists(name).await;
        case.exists::<Service>(&format!("{name}-headless")).await;
        assert_eq!(set.labels()["kaito.sh/workspace"], name, "{file}");
        set.owner_references().to_vec()
    } else {
        let deployment: Deployment = case.exists(name).await;
        assert_eq!(deployment.labels()["kaito.sh/workspace"], name, "{file}");
        deployment.owner_references().to_vec()
    };
    let service: Service = case.exists(name).await;
    for owners in [&owners, service.owner_references()] {
        let owner = &owners[0];
        assert_eq!((owner.kind.as_str(), owner.name.as_str()), ("Workspace", name), "{file}");
        assert_eq!(owner.controller, Some(true), "{file}");
    }
    for adapter in workspace["inference"]["adapters"].as_array().into_iter().flatten() {
        let image = adapter["source"]["image"].as_str().unwrap();
        for pod in case.pods_of(name).await {
            let init = pod.spec.unwrap().init_containers.unwrap();
            assert!(init.iter().any(|container| container.image.as_deref() == Some(image)), "{file}: {image}");
        }
    }
}

pub async fn examples(case: Case) {
    become_ready(&case, workspaces("examples")).await;
}

pub async fn documentation(case: Case) {
    let (refused, admitted): (Vec<_>, Vec<_>) = workspaces("docs").into_iter().partition(|(file, workspace)| {
        let text = fs::read_to_string(repository().join("docs").join(file)).unwrap();
        text.contains(&format!("Workspace {}: refused", workspace["metadata"]["name"].as_str().unwrap()))
    });
    for (file, workspace) in refused {
        let refusal = case.try_apply(&workspace).await.error();
        let text = fs::read_to_string(repository().join("docs").join(&file)).unwrap();
        let errors: Vec<&str> = text.lines().filter_map(|line| line.trim().strip_prefix("error: ")).collect();
        assert!(errors.iter().any(|error| refusal.contains(error)), "{file}: {refusal}");
    }
    become_ready(&case, admitted).await;
}
