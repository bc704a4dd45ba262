//! Disruptions of the installation and the control plane.

use k8s_openapi::api::{
    admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
    apps::v1::Deployment,
    core::v1::Secret,
};
use kaito_cluster_tests::{eventually::eventually, kubelet::Behaviour};
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;

use crate::{
    case::Case,
    installation::{CONTROLLERS, METRICS},
    suite::SYSTEM,
};

pub async fn the_leader_dies(case: Case) {
    case.add_node().await;
    case.controllers_run(CONTROLLERS).await;
    case.apply(case.falcon("before")).await;
    case.is_ready("before").await;
    let (first, process) = case.leading().await;
    one_leads(&case, &first).await;
    case.delete_and_leave_nothing("before").await;
    process.kill();
    // The other replica answers the admission webhook meanwhile.
    case.apply(case.falcon("falcon")).await;
    case.is_ready("falcon").await;
    let (second, _) = case.leading().await;
    println!("{first} led, now {second}");
    case.rolled_out().await;
}

/// By the metrics of both replicas: which one says that it is the leader, and which one has reconciled anything.
async fn one_leads(case: &Case, leader: &str) {
    for (name, process) in case.controllers().await {
        let metrics = process.get(METRICS, "/metrics").await.unwrap();
        let value = |line: &str| metrics.lines().find_map(|found| found.strip_prefix(line)?.trim().parse::<u32>().ok());
        assert_eq!(value("kaito_leader "), Some(u32::from(name == leader)), "{name}: {metrics}");
        let has_reconciled = metrics.lines().any(|line| line.starts_with("kaito_reconciles_total{"));
        assert_eq!(has_reconciled, name == leader, "{name}: {metrics}");
    }
}

pub async fn the_leader_is_asked_to_go(case: Case) {
    case.add_node().await;
    let (first, _) = case.leading().await;
    case.plane.kubectl(&["delete", "pod", &first, "--namespace", SYSTEM, "--timeout=60s"]).await.stdout();
    case.apply(case.falcon("falcon")).await;
    case.is_ready("falcon").await;
    assert_ne!(case.leading().await.0, first);
    case.rolled_out().await;
}

async fn restart_the_api_server(case: &Case) {
    let before = case.plane.pid("kube-apiserver");
    let pid = rustix::process::Pid::from_raw(before).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    eventually("the API server is back", || async {
        if case.plane.pid("kube-apiserver") == before {
            return Err("it has not ended".to_owned());
        }
        let printed = case.plane.kubectl(&["get", "--raw", "/readyz"]).await;
        if printed.success { Ok(()) } else { Err(printed.stderr) }
    })
    .await;
    case.rolled_out().await;
}

/// The schema of pod templates is open: where the webhook does not check, the API server takes what no pod can have.
pub async fn what_cannot_be_read_says_so(case: Case) {
    let webhooks = |selector: serde_json::Value| {
        let patch = json!([{"op": "add", "path": "/webhooks/0/namespaceSelector", "value": selector}]).to_string();
        let plane = case.plane.clone();
        async move {
            for kind in ["mutatingwebhookconfiguration", "validatingwebhookconfiguration"] {
                let arguments = ["patch", kind, "kaito-webhook", "--type=json", "--patch", &patch];
                plane.kubectl(&arguments).await.stdout();
            }
        }
    };
    let expression = json!({"key": "unchecked", "operator": "DoesNotExist"});
    webhooks(json!({"matchExpressions": [expression]})).await;
    case.plane.kubectl(&["label", "namespace", &case.namespace, "unchecked=yes"]).await.stdout();
    case.add_node().await;
    let own = |ports: serde_json::Value| {
        let container = json!({"name": "server", "image": "registry.example.com/own:1", "ports": ports});
        case.workspace("own", 1, crate::case::ONE_A100, json!({"template": {"spec": {"containers": [container]}}}))
    };
    let right = json!([{"containerPort": 5000}]);
    let words = ["inference.template.spec.containers[0].ports", "5000"];

    // Other workspaces are not affected. It takes a moment until the API server no longer calls the webhook.
    eventually("the API server does not ask the webhook", || async {
        let printed = case.try_apply(own(json!(5000))).await;
        if printed.success { Ok(()) } else { Err(printed.stderr) }
    })
    .await;
    case.says("own", "WorkspaceReady", "False", "ManifestUnreadable", &words).await;
    case.tells("own", "Warning", "ManifestUnreadable", &words).await;
    case.apply(case.falcon("falcon")).await;
    case.is_ready("falcon").await;
    case.delete_and_leave_nothing("falcon").await;

    // Corrected, it serves; broken again, its pods stay.
    case.apply(own(right.clone())).await;
    case.is_ready("own").await;
    let before = case.pods_of("own").await.remove(0).name_any();
    case.apply(own(json!(5000))).await;
    case.says("own", "WorkspaceReady", "False", "ManifestUnreadable", &words).await;
    assert_eq!(case.pods_of("own").await.remove(0).name_any(), before);
    // It can be deleted as it is.
    case.delete_and_leave_nothing("own").await;
    webhooks(json!({})).await;
}

/// An API server without the feature takes a workload with an image volume and silently leaves the volume out. So an init container
/// brings the weights.
pub async fn image_volumes_are_switched_off_and_on(case: Case) {
    let switch = |gates: &str| std::fs::write(case.plane.folder.join("feature-gates"), gates).unwrap();
    let image = "registry.example.com/weights/falcon-7b-instruct:1";
    let preset = json!({"preset": {
        "name": "falcon-7b-instruct",
        "accessMode": "private",
        "presetOptions": {"weightsImage": image, "imagePullSecrets": ["pull"]},
    }});
    let falcon = |name: &str| case.workspace(name, 1, crate::case::ONE_A100, preset.clone());
    case.add_node().await;
    switch("ImageVolume=false");
    restart_the_api_server(&case).await;
    case.kubelet.container_of(&case.namespace, "weights", Behaviour::Loading);
    case.apply(falcon("falcon")).await;
    case.says("falcon", "InferenceReady", "False", "WeightsFetching", &["init container weights"]).await;
    let pod = case.pods_of("falcon").await.remove(0);
    let spec = pod.spec.clone().unwrap();
    let fetcher = spec.init_containers.unwrap().into_iter().find(|container| container.name == "weights").unwrap();
    let arguments = fetcher.args.unwrap();
    assert_eq!(arguments[..3], ["image", "extract", image], "{arguments:?}");
    assert_eq!(arguments.last().unwrap(), "/etc/kaito/pull-secrets/pull.json", "{arguments:?}");
    let volumes = spec.volumes.unwrap();
    assert!(volumes.iter().any(|volume| volume.name == "weights" && volume.empty_dir.is_some()), "{volumes:?}");
    let arguments = spec.containers[0].args.clone().unwrap();
    assert!(arguments.windows(2).any(|pair| pair == ["--weights", "/mnt/weights/weights"]), "{arguments:?}");
    case.kubelet.pods_of(&case.namespace, Behaviour::Ready);
    case.is_ready("falcon").await;

    // A volume that the workspace itself asks for is nothing that another way leads to.
    let container = json!({"name": "server", "image": "registry.example.com/own:1"});
    let volume = json!({"name": "data", "image": {"reference": image}});
    let own = json!({"template": {"spec": {"containers": [container], "volumes": [volume]}}});
    case.apply(case.workspace("own", 1, crate::case::ONE_A100, own)).await;
    let words = ["Deployment own", "the image volume data", "feature gate ImageVolume"];
    case.says("own", "InferenceReady", "False", "ImageVolumesUnsupported", &words).await;
    case.tells("own", "Warning", "ImageVolumesUnsupported", &words).await;
    assert!(case.api::<Deployment>().get_opt("own").await.unwrap().is_none(), "nothing starts without its volume");
    case.delete_and_leave_nothing("own").await;

    // Running pods stay as they are; what is made once a leader does not remember mounts its image.
    switch("ImageVolume=true");
    restart_the_api_server(&case).await;
    let (first, _) = case.leading().await;
    case.plane.kubectl(&["delete", "pod", &first, "--namespace", SYSTEM, "--timeout=60s"]).await.stdout();
    case.kubelet.add(case.node(1, crate::case::ONE_A100, 1)).await;
    case.apply(falcon("fresh")).await;
    case.is_ready("fresh").await;
    let volumes = case.pods_of("fresh").await.remove(0).spec.unwrap().volumes.unwrap();
    let mut images = volumes.iter().filter_map(|volume| volume.image.as_ref()?.reference.as_deref());
    assert_eq!(images.next(), Some(image));
    case.is_ready("falcon").await;
    assert_eq!(case.pods_of("falcon").await.remove(0).metadata.uid, pod.metadata.uid);
    case.rolled_out().await;
}

pub async fn the_api_server_restarts(case: Case) {
    case.add_node().await;
    case.apply(case.falcon("before")).await;
    case.is_ready("before").await;
    // Without those of an earlier rollout that still end.
    case.controllers_run(CONTROLLERS).await;
    let controllers: Vec<u32> = case.controllers().await.iter().map(|(_, process)| process.pid).collect();
    restart_the_api_server(&case).await;
    // Later changes are carried out, and drift is noticed.
    case.kubelet.add(case.node(1, crate::case::ONE_A100, 1)).await;
    case.apply(case.falcon("after")).await;
    case.is_ready("after").await;
    case.kubectl(&["delete", "service", "before"]).await.stdout();
    case.exists::<k8s_openapi::api::core::v1::Service>("before").await;
    let now: Vec<u32> = case.controllers().await.iter().map(|(_, process)| process.pid).collect();
    assert_eq!(now, controllers, "no controller had to be started anew");
}

/// The authority that API servers trust, as both configurations name it.
async fn authorities(case: &Case) -> Vec<Vec<u8>> {
    let client = case.plane.client.clone();
    let all = ListParams::default();
    let mutating = Api::<MutatingWebhookConfiguration>::all(client.clone()).list(&all).await.unwrap();
    let validating = Api::<ValidatingWebhookConfiguration>::all(client).list(&all).await.unwrap();
    let mutating = mutating.into_iter().flat_map(|object| object.webhooks.unwrap_or_default());
    let validating = validating.into_iter().flat_map(|object| object.webhooks.unwrap_or_default());
    mutating
        .map(|webhook| webhook.client_config)
        .chain(validating.map(|webhook| webhook.client_config))
        .map(|config| config.ca_bundle.map(|bundle| bundle.0).unwrap_or_default())
        .collect()
}

pub async fn the_webhooks_certificate_is_renewed(case: Case) {
    let secrets = Api::<Secret>::namespaced(case.plane.client.clone(), SYSTEM);
    let secret = secrets
        .list(&ListParams::default())
        .await
        .unwrap()
        .into_iter()
        .find(|secret| secret.data.as_ref().is_some_and(|data| data.contains_key("tls.crt")));
    let secret = secret.expect("the certificate is in a Secret");
    let before = secret.data.clone().unwrap();
    let empty = json!({"data": null});
    secrets.patch(&secret.name_any(), &PatchParams::default(), &Patch::Merge(empty)).await.unwrap();
    let after = eventually("another certificate", || async {
        let data = secrets.get(&secret.name_any()).await.map_err(|error| error.to_string())?.data.unwrap_or_default();
        match data.get("tls.crt") {
            Some(certificate) if *certificate != before["tls.crt"] => Ok(data),
            _ => Err("the old one, or none".to_owned()),
        }
    })
    .await;
    eventually("both configurations trust it", || async {
        let authorities = authorities(&case).await;
        let trusted = |bundle: &Vec<u8>| {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            text(bundle).contains(text(&after["ca.crt"].0).trim())
        };
        if authorities.len() == 2 && authorities.iter().all(trusted) { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    case.rolled_out().await;
    case.apply(case.falcon("falcon")).await;
}

pub async fn nothing_is_admitted_unchecked(case: Case) {
    case.scale(0).await;
    let refusal = case.try_apply(case.falcon("falcon")).await.error();
    assert!(refusal.contains("failed calling webhook"), "{refusal}");
    // Running pods go on, and other objects are not held up.
    case.kubectl(&["create", "configmap", "other"]).await.stdout();
    case.scale(CONTROLLERS).await;
    case.rolled_out().await;
    case.apply(case.falcon("falcon")).await;
}
