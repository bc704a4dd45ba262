use serde_json::Value;

use super::*;

fn options() -> InstallOptions {
    InstallOptions {
        namespace: "kaito-system".to_owned(),
        registry: "registry.example.com/team".to_owned(),
        preset_registry: None,
        preset_tag: None,
        rollouts: RolloutPolicy::default(),
        provisioner: Provisioner::None,
        vllm_image: None,
        vllm_rocm_image: None,
        instance_types: None,
        replicas: InstallOptions::DEFAULT_REPLICAS,
    }
}

fn karpenter() -> Provisioner {
    Provisioner::Karpenter("EC2NodeClass.karpenter.k8s.aws/gpu".parse().unwrap())
}

fn documents(options: &InstallOptions) -> Vec<Value> {
    yaml::documents(&manifests(options).unwrap()).unwrap()
}

fn named<'a>(documents: &'a [Value], kind: &str) -> Vec<&'a str> {
    let of_kind = documents.iter().filter(|document| document["kind"] == kind);
    of_kind.map(|document| document["metadata"]["name"].as_str().unwrap()).collect()
}

#[test]
fn everything_is_there_and_no_placeholder_is_left() {
    let documents = documents(&options());
    for (kind, names) in [
        ("Namespace", &["kaito-system"][..]),
        ("CustomResourceDefinition", &["workspaces.kaito.sh"]),
        ("ServiceAccount", &["kaito"]),
        ("ClusterRole", &["kaito"]),
        ("Role", &["kaito"]),
        ("Deployment", &["kaito"]),
        ("Service", &["kaito-webhook", "kaito-metrics"]),
        ("MutatingWebhookConfiguration", &["kaito-webhook"]),
        ("ValidatingWebhookConfiguration", &["kaito-webhook"]),
        ("PodDisruptionBudget", &["kaito"]),
        ("NetworkPolicy", &["kaito"]),
        ("Secret", &["kaito-webhook-tls"]),
        ("ConfigMap", &["kaito-instance-types"]),
    ] {
        assert_eq!(named(&documents, kind), names, "{kind}");
    }
    assert_eq!(documents[0]["kind"], "Namespace", "what stands in it comes after it");
    let text = manifests(&options()).unwrap();
    for placeholder in ["KAITO_", "KAITO."] {
        assert!(!text.contains(placeholder), "{placeholder}");
    }
}

#[test]
fn options_go_where_they_belong() {
    let options = InstallOptions {
        namespace: "models".to_owned(),
        registry: "localhost:5000".to_owned(),
        preset_registry: Some("other.example.com/presets/".to_owned()),
        preset_tag: Some("0.2.0".to_owned()),
        rollouts: RolloutPolicy {
            at_once: 3,
            windows: vec!["Sat,Sun 02:00-06:00".parse().unwrap(), "03:00-04:00".parse().unwrap()],
            pause: std::time::Duration::from_secs(300),
        },
        provisioner: karpenter(),
        vllm_image: Some("other.example.com/vllm:1".to_owned()),
        vllm_rocm_image: Some("other.example.com/vllm-rocm:1".to_owned()),
        instance_types: Some("[{name: rack-7, gpus: 4, gpuMemory: 24Gi, computeCapability: '8.9'}]".to_owned()),
        replicas: 3,
    };
    let documents = documents(&options);
    let deployment = documents.iter().find(|document| document["kind"] == "Deployment").unwrap();
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], concat!("localhost:5000/kaito:", env!("CARGO_PKG_VERSION")));
    let args: Vec<_> = container["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap()).collect();
    for arg in [
        "--preset-registry=other.example.com/presets",
        "--node-provisioner=karpenter",
        "--node-class=EC2NodeClass.karpenter.k8s.aws/gpu",
        "--vllm-image=other.example.com/vllm:1",
        "--vllm-rocm-image=other.example.com/vllm-rocm:1",
        "--preset-tag=0.2.0",
        "--max-rollouts=3",
        "--maintenance-window=Sat,Sun 02:00-06:00",
        "--maintenance-window=03:00-04:00",
        "--rollout-pause=300s",
    ] {
        assert!(args.contains(&arg), "{arg}: {args:?}");
    }
    assert_eq!(deployment["spec"]["replicas"], 3);
    let types = documents.iter().find(|document| document["kind"] == "ConfigMap").unwrap();
    let types = instance_types::read(types["data"][instance_types::KEY].as_str().unwrap()).unwrap();
    assert_eq!(types.find("rack-7").unwrap().gpus, 4);
    assert!(named(&documents, "ClusterRole").contains(&"kaito-karpenter"));
    for document in &documents {
        if let Some(namespace) = document["metadata"]["namespace"].as_str() {
            assert_eq!(namespace, "models", "{}", document["kind"]);
        }
    }
}

/// In brackets, which begin a list in YAML.
#[test]
fn a_registry_may_be_an_ipv6_address() {
    let options = InstallOptions {
        registry: "[2001:db8::5]:5000/team".to_owned(),
        vllm_image: Some("[::1]:5000/vllm:1".to_owned()),
        ..options()
    };
    let documents = documents(&options);
    let deployment = documents.iter().find(|document| document["kind"] == "Deployment").unwrap();
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    let image = concat!("[2001:db8::5]:5000/team/kaito:", env!("CARGO_PKG_VERSION"));
    assert_eq!(container["image"], image);
    let args: Vec<_> = container["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap()).collect();
    let server = format!("--server-image={image}");
    for arg in ["--preset-registry=[2001:db8::5]:5000/team", "--vllm-image=[::1]:5000/vllm:1", &server] {
        assert!(args.contains(&arg), "{arg}: {args:?}");
    }
}

/// A disruption budget would keep its node from ever being drained.
#[test]
fn one_replica_has_no_disruption_budget() {
    let documents = documents(&InstallOptions { replicas: 1, ..options() });
    assert_eq!(named(&documents, "PodDisruptionBudget"), [""; 0]);
    let deployment = documents.iter().find(|document| document["kind"] == "Deployment").unwrap();
    assert_eq!(deployment["spec"]["replicas"], 1);
    let args = deployment["spec"]["template"]["spec"]["containers"][0]["args"].to_string();
    assert!(args.contains("--max-rollouts=1\"") && args.contains("--rollout-pause=60s"), "{args}");
    for flag in ["vllm", "preset-tag", "maintenance-window"] {
        assert!(!args.contains(flag), "{flag}: {args}");
    }
}

/// No pod of the installation may need more than the namespace's label allows.
#[test]
fn the_pod_keeps_to_the_restricted_standard() {
    let documents = documents(&options());
    let deployment = documents.iter().find(|document| document["kind"] == "Deployment").unwrap();
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    let container = &pod["containers"][0]["securityContext"];
    assert_eq!(container["allowPrivilegeEscalation"], false);
    assert_eq!(container["readOnlyRootFilesystem"], true);
    assert_eq!(container["capabilities"], serde_json::json!({"drop": ["ALL"]}));
    for key in ["hostNetwork", "hostPID", "hostIPC", "volumes"] {
        assert!(pod[key].is_null(), "{key}");
    }
}

/// What a rule grants is written out: a verb or kind that is added has to be added in sight.
#[test]
fn no_rule_uses_a_wildcard_or_reads_all_secrets() {
    for provisioner in [Provisioner::None, karpenter()] {
        let documents = documents(&InstallOptions { provisioner, ..options() });
        for role in documents.iter().filter(|document| document["rules"].is_array() && document["kind"] != "Namespace")
        {
            for rule in role["rules"].as_array().unwrap() {
                assert!(!rule.to_string().contains('*'), "{rule}");
                let secrets = rule["resources"].as_array().unwrap().iter().any(|resource| resource == "secrets");
                assert!(!secrets || role["kind"] == "Role" && rule["resourceNames"].is_array(), "{rule}");
            }
        }
    }
}

#[test]
fn values_that_cannot_stand_in_a_manifest_are_refused() {
    let long = "a".repeat(64);
    for namespace in ["", "Kaito", "a.b", "-a", "a-", "a\nb", "a: b", long.as_str()] {
        let error =
            manifests(&InstallOptions { namespace: namespace.to_owned(), ..options() }).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{namespace:?} cannot be a namespace")), "{error}");
    }
    for registry in [
        "",
        "https://registry.example.com",
        "registry.example.com/team:latest",
        "a b",
        "a\nb",
        "a//b",
        "/a",
        "host:port",
        "host:70000/a",
        "registry.example.com/kaito@sha256:0",
        "\"a\"",
        "2001:db8::5",
        "[2001:db8::5",
        "[2001:db8::5]5000/a",
        "[fe80::1%eth0]/a",
        "[a.b]:5000",
    ] {
        let preset_registry = Some(registry.to_owned());
        for options in [
            InstallOptions { registry: registry.to_owned(), ..options() },
            InstallOptions { preset_registry, ..options() },
        ] {
            let error = manifests(&options).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{registry:?} is no container registry")), "{error}");
        }
    }
    for image in ["", "a b", "a\nb", "\"a\"", "-a", "a: b"] {
        let given = Some(image.to_owned());
        for options in [
            InstallOptions { vllm_image: given.clone(), ..options() },
            InstallOptions { vllm_rocm_image: given, ..options() },
        ] {
            let error = manifests(&options).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{image:?} is no image")), "{error}");
        }
    }
    for tag in ["", "a b", "-a", "a\nb", "a:1"] {
        let error =
            manifests(&InstallOptions { preset_tag: Some(tag.to_owned()), ..options() }).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{tag:?} is no tag")), "{error}");
    }
    let types = Some("[{name: rack-7, gpus: none}]".to_owned());
    let error = manifests(&InstallOptions { instance_types: types, ..options() }).unwrap_err().to_string();
    assert!(error.starts_with("the instance types: "), "{error}");
}

/// The rendering names the image by the chart's version.
#[test]
fn the_chart_is_of_this_version() {
    let chart: Value = serde_saphyr::from_str(include_str!("../../../../charts/kaito/Chart.yaml")).unwrap();
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
}
