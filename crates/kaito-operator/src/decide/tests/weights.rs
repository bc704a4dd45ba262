//! How weights reach the pods: by a mounted image, and by init containers where none can be mounted or the hub has them.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::fixtures::{condition, node, now, observed, on_gpus, options, pod, preset, settle, with, workspace};
use crate::{
    decide::{ObjectKind, Observed, Options, WeightsClaim, decide},
    workspace::{ConditionType, Workspace},
};

/// A workspace of a preset with these options on the nodes that there are.
fn with_options(name: &str, count: i32, access: &str, options: &str) -> Workspace {
    let mut workspace = preset(name, count);
    let fields = format!("preset: {{name: {name}, accessMode: {access}, presetOptions: {{{options}}}}}");
    workspace.inference = Some(serde_saphyr::from_str(&fields).unwrap());
    workspace
}

fn without_image_volumes() -> Observed {
    Observed { without_image_volumes: true, ..observed(["a", "b"].map(node)) }
}

/// The specification of the pods that a workspace gets.
fn pods(workspace: &Workspace, observed: &Observed, options: &Options) -> Value {
    let decision = decide(workspace, observed, options, now());
    let is_workload = |kind: ObjectKind| matches!(kind, ObjectKind::Deployment | ObjectKind::StatefulSet);
    let workload = decision.objects.iter().find(|object| is_workload(object.kind()));
    workload.unwrap_or_else(|| panic!("{decision:#?}")).to_json()["spec"]["template"]["spec"].clone()
}

fn named<'a>(items: &'a Value, name: &str) -> &'a Value {
    items.as_array().unwrap().iter().find(|item| item["name"] == name).unwrap_or_else(|| panic!("{name}: {items:#}"))
}

/// That every container has the weights read-only in this folder, which its arguments name, and the fetcher may write.
fn assert_mounted(pod: &Value, folder: &str) {
    for container in pod["containers"].as_array().unwrap() {
        let mount = named(&container["volumeMounts"], "weights");
        assert_eq!(*mount, json!({"name": "weights", "mountPath": "/mnt/weights", "readOnly": true}));
        assert!(container["args"].as_array().unwrap().contains(&json!(folder)), "{container:#}");
    }
    let fetcher = named(&pod["initContainers"], "weights");
    assert_eq!(*named(&fetcher["volumeMounts"], "weights"), json!({"name": "weights", "mountPath": "/mnt/weights"}));
    assert!(fetcher["args"].as_array().unwrap().contains(&json!(folder)), "{fetcher:#}");
    assert_eq!(fetcher["securityContext"]["allowPrivilegeEscalation"], false);
    assert_eq!(fetcher["terminationMessagePolicy"], "FallbackToLogsOnError");
}

#[test]
fn an_image_with_a_server_is_run_to_copy_its_weights_with_a_program_that_needs_nothing_of_it() {
    let workspace = on_gpus(preset("falcon-7b", 1));
    let pod = pods(&workspace, &without_image_volumes(), &options());
    assert_mounted(&pod, "/mnt/weights/weights");
    assert_eq!(*named(&pod["volumes"], "weights"), json!({"name": "weights", "emptyDir": {}}));
    let order: Vec<_> =
        pod["initContainers"].as_array().unwrap().iter().filter_map(|one| one["name"].as_str()).collect();
    assert!(order.ends_with(&["weights-tool", "weights"]), "{order:?}");
    let tool = named(&pod["initContainers"], "weights-tool");
    assert_eq!(tool["image"], "registry.example/kaito:1");
    assert_eq!(tool["args"], json!(["image", "program", "--to", "/mnt/weights-tool"]));
    let fetcher = named(&pod["initContainers"], "weights");
    assert_eq!(fetcher["image"], "registry.example/mine:1");
    assert_eq!(
        fetcher["command"],
        json!(["/mnt/weights-tool/ld.so", "--library-path", "/mnt/weights-tool/lib", "/mnt/weights-tool/kaito"])
    );
    assert_eq!(fetcher["args"], json!(["image", "extract", "/", "--path", "/weights", "--to", "/mnt/weights/weights"]));
    // 12.9 GiB of weights in bf16.
    assert_eq!(fetcher["resources"]["requests"], json!({"ephemeral-storage": "14Gi"}));
    // The server of this image has them beside it.
    let pod = pods(&preset("falcon-7b", 1), &without_image_volumes(), &options());
    assert_eq!(
        (&pod["initContainers"], &pod["containers"][0]["image"]),
        (&Value::Null, &json!("registry.example/mine:1"))
    );
}

#[test]
fn an_image_of_weights_alone_is_fetched_from_its_registry_with_the_secrets_to_pull_it() {
    for (secrets, files) in [
        ("", None),
        (
            ", imagePullSecrets: [pull, other]",
            Some("/etc/kaito/pull-secrets/pull.json,/etc/kaito/pull-secrets/other.json"),
        ),
    ] {
        let private = with_options("falcon-7b", 1, "private", &format!("weightsImage: 'w:1'{secrets}"));
        for workspace in [private.clone(), on_gpus(private)] {
            let pod = pods(&workspace, &without_image_volumes(), &options());
            assert_mounted(&pod, "/mnt/weights/weights");
            let fetcher = named(&pod["initContainers"], "weights");
            assert_eq!(
                (&fetcher["image"], &fetcher["command"]),
                (&json!("registry.example/kaito:1"), &json!(["kaito"]))
            );
            let extract = ["image", "extract", "w:1", "--path", "/weights", "--to", "/mnt/weights/weights"];
            let expected: Vec<_> =
                extract.into_iter().chain(files.into_iter().flat_map(|it| ["--authfile", it])).collect();
            assert_eq!(fetcher["args"], json!(expected));
            let Some(_) = files else { continue };
            let mount = named(&fetcher["volumeMounts"], "pull-secrets");
            assert_eq!((&mount["mountPath"], &mount["readOnly"]), (&json!("/etc/kaito/pull-secrets"), &json!(true)));
            let sources = &named(&pod["volumes"], "pull-secrets")["projected"]["sources"];
            assert_eq!(
                sources[0],
                json!({"secret": {"name": "pull", "optional": true,
                                  "items": [{"key": ".dockerconfigjson", "path": "pull.json"}]}})
            );
            assert_eq!(sources.as_array().unwrap().len(), 2);
            assert!(pod["containers"].to_string().find("pull-secrets").is_none(), "servers need no credentials");
        }
    }
}

#[test]
fn weights_of_the_hub_need_no_image_of_them() {
    let hub = Options { hub_endpoint: Some("https://hub.example".to_owned()), ..options() };
    for (access, fields, secret, claim) in [
        ("private", "modelAccessSecret: token", Some("token"), None),
        ("private", "weightsClaim: models", None, Some("models")),
        ("public", "modelAccessSecret: token, weightsClaim: models", Some("token"), Some("models")),
    ] {
        let one = with_options("mistral-7b", 1, access, fields);
        for workspace in [one.clone(), on_gpus(one)] {
            let pod = pods(&workspace, &observed([node("a")]), &hub);
            assert_mounted(&pod, "/mnt/weights/mistral-7b");
            let volume = match claim {
                Some(claim) => json!({"name": "weights", "persistentVolumeClaim": {"claimName": claim}}),
                None => json!({"name": "weights", "emptyDir": {}}),
            };
            assert_eq!(*named(&pod["volumes"], "weights"), volume);
            let fetcher = named(&pod["initContainers"], "weights");
            assert_eq!(fetcher["image"], "registry.example/kaito:1");
            assert_eq!(
                fetcher["args"],
                json!(["download", "mistral-7b", "--link", "/mnt/weights/mistral-7b", "--log", "info"])
            );
            assert_eq!(named(&fetcher["env"], "HF_HUB_CACHE")["value"], "/mnt/weights/hub");
            assert_eq!(named(&fetcher["env"], "HF_ENDPOINT")["value"], "https://hub.example");
            let token = fetcher["env"].as_array().unwrap().iter().find(|variable| variable["name"] == "HF_TOKEN");
            let expected = secret.map(|name| json!({"secretKeyRef": {"name": name, "key": "HF_TOKEN"}}));
            assert_eq!(token.map(|token| token["valueFrom"].clone()), expected);
            assert_eq!(fetcher["resources"].get("requests").is_some(), claim.is_none(), "a claim has its own room");
            assert!(pod["containers"].to_string().find("HF_TOKEN").is_none(), "servers need no token");
        }
    }
}

#[test]
fn without_a_registry_of_presets_anybody_may_download_public_ones() {
    let free = Options { preset_registry: None, ..options() };
    let fields = "resource: {labelSelector: {matchLabels: {apps: llm}}}\ninference: {preset: {name: NAME}}";
    let public = workspace(&fields.replace("NAME", "falcon-7b"));
    let pod = pods(&public, &observed([node("a")]), &free);
    assert_mounted(&pod, "/mnt/weights/falcon-7b");
    let mut licensed = workspace(&fields.replace("NAME", "llama-2-7b"));
    let mut observed = observed([node("a")]);
    settle(&mut licensed, &mut observed, &free);
    assert_eq!(condition(&licensed, ConditionType::InferenceReady).1, "RegistryMissing");
}

/// Two nodes of it hold the largest model together.
const LARGE: &str = "Standard_ND96asr_v4";

fn large_nodes() -> Observed {
    let large = |name| with(node(name), "/metadata/labels/node.kubernetes.io~1instance-type", json!(LARGE));
    observed(["a", "b"].map(|name| with(large(name), "/status/allocatable", json!({"nvidia.com/gpu": "8"}))))
}

#[test]
fn each_rank_fetches_for_itself() {
    let ranks = |mut workspace: Workspace| {
        workspace.resource.instance_type = Some(LARGE.to_owned());
        on_gpus(workspace)
    };
    let copying = Observed { without_image_volumes: true, ..large_nodes() };
    assert_mounted(&pods(&ranks(preset("llama-2-70b-chat", 2)), &copying, &options()), "/mnt/weights/weights");
    let by_token = ranks(with_options("llama-2-70b-chat", 2, "private", "modelAccessSecret: token"));
    assert_mounted(&pods(&by_token, &large_nodes(), &options()), "/mnt/weights/llama-2-70b-chat");
    // What they share has to be on both nodes.
    for (claim, is_refused) in [
        (WeightsClaim::Modes(vec!["ReadWriteMany".to_owned()]), false),
        (WeightsClaim::Modes(vec!["ReadWriteOnce".to_owned(), "ReadOnlyMany".to_owned()]), false),
        (WeightsClaim::Modes(vec!["ReadWriteOnce".to_owned()]), true),
        (WeightsClaim::Missing, true),
    ] {
        let mut workspace = ranks(with_options("llama-2-70b-chat", 2, "private", "weightsClaim: models"));
        let mut observed = Observed { weights_claim: claim.clone(), ..large_nodes() };
        settle(&mut workspace, &mut observed, &options());
        assert_eq!(observed.stateful_set.is_none(), is_refused, "{claim:?}");
        let (_, reason, message) = condition(&workspace, ConditionType::InferenceReady);
        if is_refused {
            assert_eq!(reason, "WeightsClaimUnsuitable", "{claim:?}: {message}");
            assert!(message.contains("PersistentVolumeClaim models"), "{message}");
            let again = decide(&workspace, &observed, &options(), now()).requeue.unwrap();
            assert!(again.as_secs() <= 10, "claims are not watched: {again:?}");
        }
    }
    let mut one = with_options("falcon-7b", 1, "public", "weightsClaim: models");
    let once = WeightsClaim::Modes(vec!["ReadWriteOnce".to_owned()]);
    let mut observed = Observed { weights_claim: once, ..observed([node("a")]) };
    settle(&mut one, &mut observed, &options());
    assert!(observed.deployment.is_some(), "one node has it for itself");
}

#[test]
fn pods_that_copy_are_not_restarted_because_the_cluster_has_image_volumes_now() {
    let mut workspace = on_gpus(preset("falcon-7b", 1));
    let mut observed = without_image_volumes();
    settle(&mut workspace, &mut observed, &options());
    let before = observed.deployment.clone().unwrap();
    observed.without_image_volumes = false;
    let decision = decide(&workspace, &observed, &options(), now());
    assert!(decision.writes.is_empty(), "{decision:#?}");
    assert_eq!(observed.deployment, Some(before));
    // One that is made now mounts its image.
    let fresh = pods(&workspace, &super::fixtures::observed([node("a")]), &options());
    assert_eq!(named(&fresh["volumes"], "weights")["image"]["reference"], "registry.example/mine:1");
    assert_eq!(
        fresh["initContainers"].as_array().map_or(0, |all| all.iter().filter(|one| one["name"] == "weights").count()),
        0
    );
}

/// A pod whose init container for the weights is in this state.
fn fetching(state: Value, last: Value, restarts: i32) -> Arc<Pod> {
    let status = json!({
        "phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "True"}],
        "initContainerStatuses": [{
            "name": "weights", "image": "registry.example/kaito:1", "imageID": "", "ready": false,
            "restartCount": restarts, "state": state, "lastState": last,
        }],
        "containerStatuses": [{
            "name": "server", "image": "registry.example/kaito:1", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "PodInitializing"}},
        }],
    });
    let mut pod = pod("ws-1", Some("a"), status);
    Arc::make_mut(&mut pod).spec.as_mut().unwrap().init_containers = serde_json::from_value(json!([{
        "name": "weights",
        "env": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "token", "key": "HF_TOKEN"}}}],
    }]))
    .unwrap();
    pod
}

#[test]
fn the_status_tells_how_far_weights_are_on_their_way() {
    let running = || json!({"running": {"startedAt": "2026-01-01T00:05:00Z"}});
    let refused = "error: meta-llama/Llama-2-7b-hf is gated: accept its terms";
    let crashed = || json!({"terminated": {"reason": "Error", "exitCode": 1, "message": refused}});
    let crash = "container weights ended with exit status 1, was restarted once: error: meta-llama/Llama-2-7b-hf is gated: accept its \
                 terms; its token is HF_TOKEN of the Secret token. See kubectl logs --previous --container weights of the pod";
    for (pod, progress, reason, message) in [
        (fetching(running(), json!({}), 0), None, "WeightsFetching", "init container weights: has begun"),
        (
            fetching(running(), json!({}), 0),
            Some("43 % of 13.5 GiB, 5 minutes left"),
            "WeightsFetching",
            "init container weights: 43 % of 13.5 GiB, 5 minutes left",
        ),
        // What was restarted may end again at once; it gets on where it says so.
        (fetching(running(), crashed(), 1), None, "ContainerCrashLoopBackOff", crash),
        (
            fetching(running(), crashed(), 1),
            Some("44 % of 13.5 GiB"),
            "WeightsFetching",
            "init container weights, was restarted once: 44 % of 13.5 GiB",
        ),
        (
            fetching(json!({"waiting": {"reason": "CrashLoopBackOff"}}), crashed(), 1),
            None,
            "ContainerCrashLoopBackOff",
            crash,
        ),
        (
            fetching(
                json!({"waiting": {"reason": "CreateContainerConfigError", "message": "secret \"token\" not found"}}),
                json!({}),
                0,
            ),
            None,
            "ContainerConfigError",
            "container weights: CreateContainerConfigError: secret \"token\" not found; its token is HF_TOKEN of the Secret token. \
             See that the ConfigMaps and Secrets that the pod names exist",
        ),
    ] {
        let mut workspace = with_options("llama-2-7b", 1, "private", "modelAccessSecret: token");
        let mut observed = observed([node("a")]);
        settle(&mut workspace, &mut observed, &options());
        let is_running = pod.status.as_ref().unwrap().init_container_statuses.as_ref().unwrap()[0]
            .state
            .as_ref()
            .unwrap()
            .running
            .is_some();
        observed.pods = vec![pod];
        observed.weights_progress = progress.map(|it| ("ws-1".to_owned(), it.to_owned())).into_iter().collect();
        settle(&mut workspace, &mut observed, &options());
        let expected = format!("pod ws-1: {message}");
        assert_eq!(condition(&workspace, ConditionType::InferenceReady), ("False", reason, expected.as_str()));
        let again = decide(&workspace, &observed, &options(), now()).requeue;
        assert_eq!(again.is_some_and(|again| again.as_secs() <= 20), is_running, "{again:?}");
    }
}
