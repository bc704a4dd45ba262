use serde_json::{Value, json};

use super::*;

const KAITO: &str = "/usr/local/bin/kaito";

fn local() -> Local<'static> {
    Local {
        kaito: Path::new(KAITO),
        image_env: BTreeMap::new(),
        free_address: &|port| Ok(SocketAddr::from(([127, 0, 0, 7], port.unwrap_or(41000)))),
        pod: "demo-0",
        namespace: "models",
        address: Ipv4Addr::LOCALHOST,
        rank: 3,
    }
}

fn planned(pod: Value) -> Result<PodPlan, UpError> {
    plan(&serde_json::from_value(pod).unwrap(), &local())
}

fn containers(container: Value) -> Value {
    json!({ "containers": [container] })
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn a_kaito_container_runs_this_program_on_a_port_of_its_own() {
    let pod = containers(json!({
        "name": "server",
        "command": ["kaito"],
        "args": ["serve", "--max-batch-size", "8"],
        "ports": [{"containerPort": 5000}],
    }));
    let process = Process {
        container: "server".to_owned(),
        program: KAITO.into(),
        args: ["serve", "--max-batch-size", "8"].map(String::from).to_vec(),
        env: map(&[("KAITO_HOST", "127.0.0.7"), ("KAITO_PORT", "41000")]),
        working_directory: None,
    };
    let plan = PodPlan {
        processes: vec![process],
        address: "127.0.0.7:41000".parse().unwrap(),
        health_path: Some("/healthz".to_owned()),
        grace_period: Duration::from_secs(30),
    };
    assert_eq!(planned(pod).unwrap(), plan);
}

#[test]
fn a_port_that_the_manifest_names_is_kept() {
    for (container, address) in [
        (json!({"name": "a", "command": ["kaito", "serve", "--port", "5001"]}), "127.0.0.7:5001"),
        (json!({"name": "a", "command": ["/bin/kaito", "serve"], "args": ["--port=5001"]}), "127.0.0.7:5001"),
        (
            json!({"name": "a", "command": ["kaito", "serve"], "env": [{"name": "KAITO_PORT", "value": "5001"}]}),
            "127.0.0.7:5001",
        ),
        // Where another program listens is its own affair.
        (json!({"name": "a", "command": ["vllm", "serve"], "args": ["--port", "5001"]}), "127.0.0.1:5001"),
    ] {
        let plan = planned(containers(container.clone())).unwrap();
        assert_eq!(plan.address.to_string(), address, "{container}");
        assert_ne!(plan.processes[0].env.get("KAITO_PORT").map(String::as_str), Some("41000"), "{container}");
    }
    let other = planned(containers(json!({"name": "a", "command": ["my-server"]}))).unwrap();
    assert_eq!(other.address.to_string(), "127.0.0.1:5000", "the service asks port 5000 of a pod");
    assert_eq!(other.health_path, None);
    assert_eq!(other.processes[0].program, Path::new("my-server"));
}

#[test]
fn the_environment_is_the_containers_and_then_the_images() {
    let container = json!({
        "name": "server",
        "command": ["kaito"],
        "args": ["serve", "--rank=$(POD)", "$(NOBODY)", "$$(POD)"],
        "env": [
            {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "POD_INDEX", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['apps.kubernetes.io/pod-index']"}}},
            {"name": "WHERE", "value": "$(NAMESPACE)/$(POD)"},
            {"name": "EMPTY"},
            {"name": "KAITO_DTYPE", "value": "f32"},
        ],
    });
    let image_env = map(&[("KAITO_WEIGHTS", "/models/falcon"), ("KAITO_DTYPE", "bf16")]);
    let pod = serde_json::from_value(containers(container)).unwrap();
    let process = plan(&pod, &Local { image_env, ..local() }).unwrap().processes.remove(0);
    let expected = map(&[
        ("POD", "demo-0"),
        ("NAMESPACE", "models"),
        ("IP", "127.0.0.1"),
        ("POD_INDEX", "3"),
        ("WHERE", "models/demo-0"),
        ("EMPTY", ""),
        ("KAITO_DTYPE", "f32"),
        ("KAITO_WEIGHTS", "/models/falcon"),
        ("KAITO_HOST", "127.0.0.7"),
        ("KAITO_PORT", "41000"),
    ]);
    assert_eq!(process.env, expected);
    assert_eq!(process.args, ["serve", "--rank=demo-0", "$(NOBODY)", "$(POD)"]);
}

#[test]
fn the_container_with_the_port_serves() {
    let pod = json!({
        "terminationGracePeriodSeconds": 5,
        "containers": [
            {"name": "proxy", "command": ["proxy"], "workingDir": "/srv"},
            {
                "name": "server",
                "command": ["python3", "server.py"],
                "ports": [{"containerPort": 5000}],
                "readinessProbe": {"httpGet": {"path": "/ready", "port": 5000}},
            },
        ],
        "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "models", "hostPath": {"path": "/models"}}],
    });
    let plan = planned(pod).unwrap();
    assert_eq!(plan.health_path.as_deref(), Some("/ready"));
    assert_eq!(plan.grace_period, Duration::from_secs(5));
    let names: Vec<_> = plan.processes.iter().map(|process| process.container.as_str()).collect();
    assert_eq!(names, ["proxy", "server"]);
    assert_eq!(plan.processes[0].working_directory.as_deref(), Some(Path::new("/srv")));
}

#[test]
fn what_only_a_cluster_has_is_refused_by_name() {
    let with = |extra: Value| {
        let mut container =
            json!({"name": "server", "command": ["kaito", "serve"], "image": "registry.example.com/m:1"});
        container.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        containers(container)
    };
    let volume = |source: Value| {
        let mut volume = json!({"name": "data"});
        volume.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
        json!({"containers": [{"name": "server", "command": ["kaito"]}], "volumes": [volume]})
    };
    let secret = json!({"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}});
    let label = json!({"name": "I", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a']"}}});
    for (pod, parts) in [
        (json!({"containers": []}), &["no containers"][..]),
        (with(json!({"command": []})), &["\"server\"", "no command", "registry.example.com/m:1"]),
        (with(json!({"envFrom": [{"configMapRef": {"name": "c"}}]})), &["envFrom", "\"server\""]),
        (with(json!({"env": [secret]})), &["KEY", "\"server\"", "value"]),
        (with(json!({"env": [label]})), &["variable I"]),
        (volume(json!({"configMap": {"name": "c"}})), &["\"data\"", "ConfigMap"]),
        (volume(json!({"secret": {"secretName": "s"}})), &["\"data\"", "Secret"]),
        (volume(json!({"persistentVolumeClaim": {"claimName": "p"}})), &["\"data\"", "PersistentVolumeClaim"]),
        (volume(json!({"image": {"reference": "i"}})), &["\"data\"", "image"]),
        (volume(json!({"nfs": {"server": "s", "path": "/"}})), &["\"data\"", "cluster"]),
        (
            json!({"initContainers": [{"name": "fetch"}], "containers": [{"name": "server", "command": ["kaito"]}]}),
            &["\"fetch\"", "image"],
        ),
    ] {
        let error = planned(pod.clone()).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{pod} lacks {part:?}: {error}");
        }
    }
}
