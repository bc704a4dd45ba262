use kube::Resource;
use serde_json::{Value, json};

use super::*;

/// Every field that the contract names, in v1alpha1.
fn whole() -> Value {
    json!({
        "apiVersion": "kaito.sh/v1alpha1",
        "kind": "Workspace",
        "metadata": {
            "name": "llama",
            "namespace": "models",
            "annotations": {"kaito.sh/enablelb": "True", "kaito.sh/runtime": "vllm"}
        },
        "resource": {
            "count": 2,
            "instanceType": "Standard_NC96ads_A100_v4",
            "labelSelector": {
                "matchLabels": {"apps": "llama"},
                "matchExpressions": [{"key": "pool", "operator": "In", "values": ["a", "b"]}]
            },
            "preferredNodes": ["node-1"]
        },
        "inference": {
            "preset": {
                "name": "llama-2-70b-chat",
                "accessMode": "private",
                "presetOptions": {
                    "image": "registry.example/llama:1",
                    "weightsImage": "registry.example/llama-weights:1",
                    "imagePullSecrets": ["pull"],
                    "modelAccessSecret": "hub-token",
                    "weightsClaim": "models"
                }
            },
            "adapters": [{
                "source": {
                    "name": "style",
                    "image": "registry.example/style:1",
                    "imagePullSecrets": ["pull"],
                    "urls": ["https://files.example/adapter.safetensors"],
                    "volumeSource": {"persistentVolumeClaim": {"claimName": "style"}}
                },
                "strength": "0.5"
            }],
            "config": "flags"
        },
        "status": {
            "workerNodes": ["node-1", "node-2"],
            "conditions": [{
                "type": "WorkspaceReady",
                "status": "True",
                "reason": "Ready",
                "message": "the model answers",
                "lastTransitionTime": "2026-01-02T03:04:05Z",
                "observedGeneration": 3
            }],
            "state": "Ready",
            "targetNodeCount": 2
        }
    })
}

fn small() -> Value {
    json!({"resource": {"labelSelector": {}}, "inference": {"preset": {"name": "falcon-7b"}}})
}

fn read(value: Value) -> Workspace {
    let read = strict::read(&value).unwrap();
    assert_eq!(read.unknown_fields, [""; 0]);
    read.object
}

#[test]
fn every_field_is_read_and_written_back() {
    assert_eq!(serde_json::to_value(read(whole())).unwrap(), whole());
}

#[test]
fn what_is_left_out_has_the_documented_default() {
    let workspace = read(small());
    let preset = workspace.preset().unwrap();
    assert_eq!((workspace.api_version, workspace.resource.count), (ApiVersion::V1Beta1, 1));
    assert_eq!((&workspace.resource.instance_type, preset.access_mode), (&None, AccessMode::Public));
    assert!(!workspace.wants_load_balancer() && !workspace.bypasses_resource_checks());
    assert_eq!(workspace.runtime(), Ok(RuntimeChoice::Auto));
}

#[test]
fn empty_strings_and_nulls_mean_left_out() {
    let value = json!({
        "resource": {"instanceType": "", "labelSelector": {"matchLabels": null}, "preferredNodes": null},
        "inference": {
            "preset": {"name": "falcon-7b", "accessMode": null, "presetOptions": null},
            "adapters": null,
            "config": "",
            "template": null
        },
        "status": null
    });
    assert_eq!(read(value), read(small()));
}

#[test]
fn a_state_of_another_release_is_no_error() {
    for (state, expected) in [
        (json!("Ready"), Some(WorkspaceState::Ready)),
        (json!("NotReady"), Some(WorkspaceState::NotReady)),
        (json!("Succeeded"), None),
        (json!(""), None),
        (json!(null), None),
    ] {
        let mut value = small();
        value["status"] = json!({"state": state});
        assert_eq!(read(value).status.unwrap().state, expected, "{state}");
    }
}

#[test]
fn fields_that_nobody_knows_are_named_with_their_path() {
    let value = json!({
        "apiVersion": "kaito.sh/v1beta1",
        "kind": "Workspace",
        "metadata": {"name": "x", "label": {}},
        "resource": {"instancetype": "A", "labelSelector": {"matchLabel": {}}},
        "inference": {
            "preset": {"name": "falcon-7b", "presetOptions": {"img": "a:1"}},
            "adapters": [{"source": {"name": "a", "volumeSource": {"hostpath": {}}}}, {"source": {"name": "b"}, "weight": 1}],
            "template": {"spec": {"containers": [{"name": "a", "imagee": "b"}], "toleration": []}}
        },
        "tuning": {"method": "lora"},
        "status": {"performance": {}}
    });
    assert_eq!(
        strict::read(&value).unwrap().unknown_fields,
        [
            "inference.adapters[0].source.volumeSource.hostpath",
            "inference.adapters[1].weight",
            "inference.preset.presetOptions.img",
            "inference.template.spec.containers[0].imagee",
            "inference.template.spec.toleration",
            "metadata.label",
            "resource.instancetype",
            "resource.labelSelector.matchLabel",
            "status.performance",
            "tuning",
        ]
    );
}

#[test]
fn what_cannot_be_read_is_named_with_its_path() {
    for (pointer, replacement, expected) in [
        ("/resource/count", json!("two"), "resource.count: is string \"two\", but must be a whole number of 32 bits"),
        ("/resource", json!({}), "resource.labelSelector: is missing"),
        ("/kind", json!("Pod"), "kind: is `Pod`, but must be `Workspace`"),
        (
            "/apiVersion",
            json!("kaito.sh/v1"),
            "apiVersion: is `kaito.sh/v1`, but must be `kaito.sh/v1alpha1` or `kaito.sh/v1beta1`",
        ),
        (
            "/inference/preset/accessMode",
            json!("Public"),
            "inference.preset.accessMode: is `Public`, but must be `public` or `private`",
        ),
        (
            "/inference/adapters/0/strength",
            json!(0.5),
            "inference.adapters[0].strength: is floating point `0.5`, but must be a string",
        ),
        (
            "/inference/adapters/0/source/volumeSource",
            json!({"name": "style", "emptyDir": {}}),
            "inference.adapters[0].source.volumeSource: a volume source has no name; the volume is named for you",
        ),
        ("/inference/adapters/0", json!({}), "inference.adapters[0].source: is missing"),
        (
            "/inference/preset/presetOptions/imagePullSecrets",
            json!("pull"),
            "inference.preset.presetOptions.imagePullSecrets: is string \"pull\", but must be a list",
        ),
        ("", json!([]), "a workspace is an object, with fields"),
    ] {
        let mut value = whole();
        *value.pointer_mut(pointer).unwrap() = replacement;
        assert_eq!(strict::read(&value).unwrap_err().to_string(), expected);
    }
}

#[test]
fn annotations_are_read_in_any_case_but_runtimes_by_name() {
    for (value, expected) in
        [("True", true), ("true", true), ("TRUE", true), ("False", false), ("1", false), ("", false)]
    {
        let mut workspace = read(small());
        workspace.metadata.annotations = Some(
            [ANNOTATION_ENABLE_LB, ANNOTATION_BYPASS_RESOURCE_CHECKS].map(|name| (name.into(), value.into())).into(),
        );
        assert_eq!(workspace.wants_load_balancer(), expected, "{value:?}");
        assert_eq!(workspace.bypasses_resource_checks(), expected, "{value:?}");
    }
    for (name, expected) in [
        ("auto", Some(RuntimeChoice::Auto)),
        ("kaito", Some(RuntimeChoice::Fixed(Runtime::Kaito))),
        ("transformers", Some(RuntimeChoice::Fixed(Runtime::Kaito))),
        ("vllm", Some(RuntimeChoice::Fixed(Runtime::Vllm))),
        ("tgi", None),
    ] {
        let mut workspace = read(small());
        workspace.metadata.annotations = Some([(ANNOTATION_RUNTIME.into(), name.into())].into());
        assert_eq!(workspace.runtime().ok(), expected, "{name:?}");
    }
    assert_eq!(
        "tgi".parse::<RuntimeChoice>().unwrap_err().to_string(),
        "there is no runtime \"tgi\"; there are kaito (also written transformers), vllm, and auto"
    );
}

/// The terms are those of `kubectl get nodes --selector`.
#[test]
fn a_selector_matches_as_kubernetes_does() {
    let labels: BTreeMap<String, String> =
        [("pool".to_owned(), "a".to_owned()), ("zone".to_owned(), "1".to_owned())].into();
    for (selector, expected) in [
        (json!({}), true),
        (json!({"matchLabels": {"pool": "a"}}), true),
        (json!({"matchLabels": {"pool": "a", "zone": "1"}}), true),
        (json!({"matchLabels": {"pool": "a", "zone": "2"}}), false),
        (json!({"matchLabels": {"rack": "1"}}), false),
        (json!({"matchExpressions": [{"key": "pool", "operator": "In", "values": ["b", "a"]}]}), true),
        (json!({"matchExpressions": [{"key": "pool", "operator": "In", "values": ["b"]}]}), false),
        (json!({"matchExpressions": [{"key": "rack", "operator": "In", "values": ["a"]}]}), false),
        (json!({"matchExpressions": [{"key": "pool", "operator": "In"}]}), false),
        (json!({"matchExpressions": [{"key": "pool", "operator": "NotIn", "values": ["a"]}]}), false),
        (json!({"matchExpressions": [{"key": "rack", "operator": "NotIn", "values": ["a"]}]}), true),
        (json!({"matchExpressions": [{"key": "pool", "operator": "Exists"}]}), true),
        (json!({"matchExpressions": [{"key": "rack", "operator": "Exists"}]}), false),
        (json!({"matchExpressions": [{"key": "rack", "operator": "DoesNotExist"}]}), true),
        (json!({"matchExpressions": [{"key": "pool", "operator": "Gt", "values": ["0"]}]}), false),
        (
            json!({"matchLabels": {"pool": "a"}, "matchExpressions": [{"key": "zone", "operator": "In", "values": ["2"]}]}),
            false,
        ),
    ] {
        let mut value = small();
        value["resource"]["labelSelector"] = selector.clone();
        assert_eq!(read(value).resource.selects(&labels), expected, "{selector}");
    }
}

#[test]
fn the_api_server_finds_it_at_its_address() {
    assert_eq!(Workspace::url_path(&(), Some("models")), "/apis/kaito.sh/v1beta1/namespaces/models/workspaces");
    assert_eq!(Workspace::api_version(&()), "kaito.sh/v1beta1");
    for version in ApiVersion::ALL {
        assert_eq!(serde_json::to_value(version).unwrap(), format!("{GROUP}/{}", version.version()));
    }
}
