//! Snapshots of the objects of every preset, to be reviewed when they change.

use kaito_presets::PRESETS;
use serde_json::json;

use super::fixtures::{OTHER_TYPE, karpenter, node, now, observed, options, preset, with, workspace};
use crate::{
    decide::{Claims, Config, ObjectKind, Observed, Options, decide},
    workspace::Workspace,
};

/// All objects as YAML, as they would be applied.
pub fn objects(workspace: &Workspace, observed: &Observed, options: &Options) -> String {
    let decision = decide(workspace, observed, options, now());
    let documents = decision.objects.iter().map(|object| {
        let mut json = object.to_json();
        // These change with every field, so they would only repeat the difference.
        let annotations = json["metadata"]["annotations"].as_object_mut().unwrap();
        annotations.shift_remove("kaito.sh/applied").unwrap();
        annotations.retain(|key, _| !["kaito.sh/made-from", "kaito.sh/pod-template"].contains(&key.as_str()));
        if json["metadata"]["annotations"] == json!({}) {
            json["metadata"].as_object_mut().unwrap().shift_remove("annotations");
        }
        serde_saphyr::to_string(&json).unwrap()
    });
    documents.collect::<Vec<_>>().join("---\n")
}

fn two_nodes() -> Observed {
    observed([node("a"), node("b")])
}

fn annotated(mut workspace: Workspace, annotations: &[(&str, &str)]) -> Workspace {
    let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    workspace.metadata.annotations.get_or_insert_default().extend(annotations);
    workspace
}

const KAITO: (&str, &str) = ("kaito.sh/runtime", "kaito");
const VLLM: (&str, &str) = ("kaito.sh/runtime", "vllm");
const AUTO: (&str, &str) = ("kaito.sh/runtime", "auto");

/// A workspace for a preset on one node of a type, with what its access needs.
fn of_any_access(preset: &kaito_presets::Preset, instance: &str) -> Workspace {
    let access = match preset.workload.image {
        kaito_presets::ImageAccess::Public => "{name: NAME}",
        kaito_presets::ImageAccess::Private => {
            "{name: NAME, accessMode: private, presetOptions: {image: 'registry.example/mine:1', imagePullSecrets: [pull]}}"
        }
    };
    workspace(&format!(
        "resource: {{instanceType: {instance}, labelSelector: {{matchLabels: {{apps: llm}}}}}}\n\
         inference: {{preset: {}}}",
        access.replace("NAME", preset.name)
    ))
}

#[test]
fn every_preset_on_one_node() {
    for preset in PRESETS {
        let instance = "Standard_ND96asr_v4";
        let workspace = annotated(of_any_access(preset, instance), &[KAITO]);
        let big = with(
            with(node("a"), "/metadata/labels/node.kubernetes.io~1instance-type", json!(instance)),
            "/status/allocatable",
            json!({"nvidia.com/gpu": "8"}),
        );
        insta::assert_snapshot!(format!("one node {}", preset.name), objects(&workspace, &observed([big]), &options()));
    }
}

/// With the hardware to decide, GPUs are vLLM's; without the annotation, the hardware decides.
#[test]
fn the_hardware_decides_on_the_runtime() {
    for preset in PRESETS {
        let without_type = |mut workspace: Workspace| {
            workspace.resource.instance_type = None;
            workspace
        };
        let cpus = || {
            let node = with(node("a"), "/metadata/labels", json!({"apps": "llm"}));
            observed([with(node, "/status/allocatable", json!({"cpu": "64"}))])
        };
        let gpus = "Standard_ND96amsr_A100_v4";
        for (workspace, observed, fixed) in [
            (of_any_access(preset, gpus), nodes_of(gpus, "8"), VLLM),
            // Its device plugin does not run yet.
            (of_any_access(preset, gpus), nodes_of(gpus, "0"), VLLM),
            (without_type(of_any_access(preset, gpus)), nodes_of(gpus, "8"), VLLM),
            (without_type(of_any_access(preset, gpus)), cpus(), KAITO),
            (without_type(of_any_access(preset, gpus)), self::observed([]), KAITO),
        ] {
            let expected = objects(&annotated(workspace.clone(), &[fixed]), &observed, &options());
            assert_eq!(objects(&workspace, &observed, &options()), expected, "{}", preset.name);
            assert_eq!(objects(&annotated(workspace, &[AUTO]), &observed, &options()), expected, "{}", preset.name);
        }
    }
}

/// One node of two is too few.
#[test]
fn as_many_nodes_as_asked_for_must_have_gpus() {
    let instance_type = "Standard_NC96ads_A100_v4";
    let workspace = |count| {
        let mut workspace = annotated(preset("falcon-7b", count), &[AUTO]);
        workspace.resource.instance_type = None;
        workspace
    };
    let mut observed = nodes_of(instance_type, "4");
    let bare = with(node("b"), "/metadata/labels", json!({"apps": "llm"}));
    observed.nodes[1] =
        std::sync::Arc::new(serde_json::from_value(with(bare, "/status/allocatable", json!({"cpu": "64"}))).unwrap());
    let first = |count| {
        let decision = decide(&workspace(count), &observed, &options(), now());
        let object = decision.objects.iter().find(|object| object.kind() == ObjectKind::Deployment).unwrap();
        object.to_json()["spec"]["template"]["spec"]["containers"].as_array().unwrap().len()
    };
    assert_eq!((first(1), first(2)), (2, 1));
}

#[test]
fn replicas_on_two_nodes() {
    insta::assert_snapshot!(objects(&preset("falcon-40b", 2), &two_nodes(), &options()));
}

/// Nodes of another type than the usual one.
fn nodes_of(instance_type: &str, gpus: &str) -> Observed {
    observed(["a", "b"].map(|name| {
        with(
            with(node(name), "/metadata/labels/node.kubernetes.io~1instance-type", json!(instance_type)),
            "/status/allocatable",
            json!({"nvidia.com/gpu": gpus}),
        )
    }))
}

fn on(instance_type: &str, mut workspace: Workspace) -> Workspace {
    workspace.resource.instance_type = Some(instance_type.to_owned());
    workspace
}

#[test]
fn vllm_on_one_node() {
    for (name, instance_type, gpus) in [
        ("falcon-40b-instruct", "Standard_NC96ads_A100_v4", "4"),
        ("phi-3-mini-128k-instruct", "Standard_NC24ads_A100_v4", "1"),
        // GPUs too old for bf16, and too small for the whole context.
        ("mistral-7b", "Standard_NC6s_v3", "1"),
    ] {
        let workspace = on(instance_type, annotated(preset(name, 1), &[VLLM]));
        insta::assert_snapshot!(
            format!("vllm {name}"),
            objects(&workspace, &nodes_of(instance_type, gpus), &options())
        );
    }
}

#[test]
fn weights_alone_are_mounted_beside_a_server() {
    let instance_type = "Standard_NC24ads_A100_v4";
    // What the options name, the annotation, and the images of the containers and of the volume.
    const VLLM_IMAGE: &str = "registry.example/vllm:1";
    for (named, annotations, images, mounted) in [
        ("weightsImage: w:1", &[][..], &["registry.example/kaito:1"][..], Some("w:1")),
        ("weightsImage: w:1, image: ''", &[], &["registry.example/kaito:1"], Some("w:1")),
        ("weightsImage: w:1, image: s:1", &[], &["s:1"], Some("w:1")),
        ("image: s:1", &[], &["s:1"], None),
        ("weightsImage: w:1", &[VLLM], &["registry.example/kaito:1", VLLM_IMAGE], Some("w:1")),
        ("weightsImage: w:1, image: s:1", &[VLLM], &["s:1", VLLM_IMAGE], Some("w:1")),
        ("image: s:1", &[VLLM], &["registry.example/kaito:1", VLLM_IMAGE], Some("s:1")),
    ] {
        let mut workspace = on(instance_type, annotated(preset("falcon-7b", 1), annotations));
        workspace.inference = Some(
            serde_saphyr::from_str(&format!(
                "preset: {{name: falcon-7b, accessMode: private, presetOptions: {{{named}}}}}"
            ))
            .unwrap(),
        );
        let decision = decide(&workspace, &nodes_of(instance_type, "1"), &options(), now());
        let object = decision.objects.iter().find(|object| object.kind() == ObjectKind::Deployment).unwrap();
        let pod = object.to_json()["spec"]["template"]["spec"].clone();
        let containers = pod["containers"].as_array().unwrap();
        assert_eq!(containers.iter().map(|one| one["image"].as_str().unwrap()).collect::<Vec<_>>(), images, "{named}");
        let volume = pod["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == "weights");
        assert_eq!(volume.map(|volume| volume["image"]["reference"].as_str().unwrap()), mounted, "{named}");
        assert_eq!(object.image_volumes(), mounted.map(|_| "weights").into_iter().collect::<Vec<_>>());
        let expected = json!({"name": "weights", "mountPath": "/mnt/weights", "readOnly": true});
        for container in containers {
            let mount = container["volumeMounts"].as_array().unwrap().iter().find(|mount| mount["name"] == "weights");
            assert_eq!(mount, mounted.map(|_| &expected), "{named}");
            let arguments = container["args"].as_array().unwrap();
            assert_eq!(arguments.contains(&json!("/mnt/weights/weights")), mounted.is_some(), "{named}: {arguments:?}");
        }
    }
}

/// Without an image of its own release, the controller takes the server in the preset's image.
#[test]
fn a_front_is_in_the_presets_image_where_there_is_no_other() {
    let instance_type = "Standard_NC24ads_A100_v4";
    let workspace = on(instance_type, annotated(preset("falcon-7b", 1), &[VLLM]));
    let without = Options { server_image: None, ..options() };
    let decision = decide(&workspace, &nodes_of(instance_type, "1"), &without, now());
    let object = decision.objects.iter().find(|object| object.kind() == ObjectKind::Deployment).unwrap();
    assert_eq!(object.to_json()["spec"]["template"]["spec"]["containers"][0]["image"], "registry.example/mine:1");
}

#[test]
fn vllm_across_nodes() {
    let instance_type = "Standard_ND96asr_v4";
    let workspace = on(instance_type, annotated(preset("llama-2-70b-chat", 2), &[VLLM]));
    insta::assert_snapshot!(objects(&workspace, &nodes_of(instance_type, "8"), &options()));
}

#[test]
fn adapters_configuration_and_a_load_balancer() {
    let mut workspace = annotated(preset("mistral-7b-instruct", 1), &[("kaito.sh/enablelb", "True")]);
    let inference = workspace.inference.as_mut().unwrap();
    inference.config = Some("flags".to_owned());
    inference.adapters = serde_saphyr::from_str(
        "- source: {name: poet, image: 'registry.example/poet:1', imagePullSecrets: [adapters]}\n  strength: '0.5'\n\
         - source: {name: tutor, volumeSource: {persistentVolumeClaim: {claimName: tutor}}}\n",
    )
    .unwrap();
    let mut observed = two_nodes();
    observed.config = Config::Data([("max-batch-size".to_owned(), "8".to_owned())].into());
    insta::assert_snapshot!("adapters kaito", objects(&workspace, &observed, &options()));
    workspace.metadata.annotations = Some([(VLLM.0.to_owned(), VLLM.1.to_owned())].into());
    let instance_type = "Standard_NV36ads_A10_v5";
    let observed = Observed { config: observed.config, ..nodes_of(instance_type, "1") };
    insta::assert_snapshot!("adapters vllm", objects(&on(instance_type, workspace), &observed, &options()));
}

#[test]
fn a_template() {
    let workspace = workspace(
        "resource: {count: 2, preferredNodes: [b], labelSelector: {matchExpressions: [{key: zone, operator: In, values: [x, y]}]}}\n\
         inference:\n  template:\n    metadata: {labels: {mine: '1'}}\n    spec:\n      containers:\n      - name: web\n        image: nginx\n        ports: [{containerPort: 8080}]\n        resources: {limits: {nvidia.com/gpu: '1'}}\n",
    );
    let nodes = ["a", "b"].map(|name| with(node(name), "/metadata/labels", json!({"zone": "x"})));
    insta::assert_snapshot!(objects(&workspace, &observed(nodes), &options()));
}

#[test]
fn nodes_without_gpus() {
    let workspace =
        workspace("resource: {labelSelector: {matchLabels: {apps: llm}}}\ninference: {preset: {name: falcon-7b}}");
    let cpu =
        with(with(node("a"), "/metadata/labels", json!({"apps": "llm"})), "/status/allocatable", json!({"cpu": "64"}));
    insta::assert_snapshot!(objects(&workspace, &observed([cpu]), &options()));
}

#[test]
fn claims_of_nodes() {
    let missing = Observed { claims: Claims::Present(Vec::new()), ..observed([]) };
    let mut workspace = preset("falcon-7b", 1);
    workspace.resource.instance_type = Some(OTHER_TYPE.to_owned());
    insta::assert_snapshot!("claim by instance type", objects(&workspace, &missing, &karpenter()));
    workspace.resource.instance_type = None;
    insta::assert_snapshot!("claim by cpus", objects(&workspace, &missing, &karpenter()));
    let on_gpus = annotated(workspace.clone(), &[VLLM]);
    insta::assert_snapshot!("claim by gpus", objects(&on_gpus, &missing, &karpenter()));
    let azure = Options {
        provisioner: crate::decide::Provisioner::Karpenter("AKSNodeClass.karpenter.azure.com/default".parse().unwrap()),
        ..options()
    };
    workspace.resource.instance_type = Some(OTHER_TYPE.to_owned());
    insta::assert_snapshot!("claim on azure", objects(&workspace, &missing, &azure));
}

/// A ConfigMap in the Kaito project's form.
#[test]
fn a_configuration_says_how_vllm_divides_the_model() {
    let written = "max_probe_steps: 6\nvllm:\n  cpu-offload-gb: 0\n  gpu-memory-utilization: 0.95\n  swap-space: 4\n  \
                   max-model-len: 16384\n  tensor-parallel-size: 2\n  pipeline-parallel-size: 2\n";
    let mut workspace = on("Standard_NC24s_v3", annotated(preset("mistral-7b-instruct", 1), &[VLLM]));
    workspace.inference.as_mut().unwrap().config = Some("inference-params".to_owned());
    let observed = Observed {
        config: Config::Data([("inference_config.yaml".to_owned(), written.to_owned())].into()),
        ..nodes_of("Standard_NC24s_v3", "4")
    };
    insta::assert_snapshot!(objects(&workspace, &observed, &options()));
}
