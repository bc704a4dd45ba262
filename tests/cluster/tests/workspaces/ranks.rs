//! A model over two nodes, with real programs in the pods: the manifest of examples/, our server and supervisor, and vLLM's build
//! for CPUs, which computes the demo model in place of Llama's weights.

use std::{
    env, fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    core::v1::{Pod, Service},
    networking::v1::NetworkPolicy,
};
use kaito_cluster_tests::{
    control_plane::repository,
    eventually::within,
    kubelet::{Behaviour, Image, Listener, containers_need},
};
use kube::ResourceExt;
use serde_json::{Value, json};
use tokio::{process::Command, sync::oneshot, task::JoinHandle};

use crate::case::{Case, ONE_A100};

/// Two ranks with one GPU each.
const MANIFEST: &str = "examples/kaito_workspace_llama2_13b-chat.yaml";
const NAME: &str = "workspace-llama-2-13b-chat";
/// What vLLM may take to start, on a busy machine.
const LOADING: Duration = Duration::from_secs(400);
/// Enough that a stream is not over before something is done to it.
const TOKENS: u32 = 400;
/// Context lengths of which both hold that many.
const LONGER: u32 = 512;
const SHORTER: u32 = 500;
const PROMPT: &str = "A workspace is";

/// The Python of vLLM's build for CPUs, which `VLLM_PYTHON` names or `tests/vllm/run --prepare` has installed, if it has.
async fn vllm() -> Option<PathBuf> {
    if let Some(python) = env::var_os("VLLM_PYTHON") {
        return Some(PathBuf::from(python));
    }
    let script = "from comparison import programs; print(programs.vllm(None, False) or '')";
    let mut command = Command::new("python3");
    let output = command.args(["-c", script]).current_dir(repository().join("bench")).output().await.ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    Some(path.trim()).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// The manifest, for nodes of this case.
fn manifest(case: &Case) -> Value {
    let text = fs::read_to_string(repository().join(MANIFEST)).unwrap();
    let mut workspace: Value = serde_saphyr::from_str(&text).unwrap();
    workspace["resource"]["labelSelector"]["matchLabels"]["apps"] = json!(case.namespace);
    workspace["inference"]["config"] = json!("flags");
    workspace
}

/// What vLLM must be told where it computes on CPUs: they lack float16, and its build for them fails with layers that are divided
/// among nodes.
fn flags(max_model_len: u32) -> Value {
    let flags = json!({"vllm": {
        "dtype": "float32",
        "enforce-eager": true,
        "max-model-len": max_model_len,
        "tensor-parallel-size": 2,
        "pipeline-parallel-size": 1,
    }});
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "flags"},
        "data": {"inference_config.yaml": flags.to_string()},
    })
}

/// What answers at the workspace's Service.
#[derive(Clone)]
struct Server {
    url: String,
    client: reqwest::Client,
}

/// A text that comes in parts.
struct Stream {
    begun: oneshot::Receiver<()>,
    text: JoinHandle<Result<String, String>>,
}

impl Server {
    async fn of(case: &Case) -> Self {
        let service: Service = case.exists(NAME).await;
        let url = format!("http://{}", case.network.forward(&service, 80).await);
        // A connection kept open would not follow the service to another pod.
        let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap();
        Self { url, client }
    }

    async fn post(&self, path: &str, body: &Value) -> reqwest::Result<reqwest::Response> {
        self.client.post(format!("{}{path}", self.url)).json(body).send().await
    }

    fn body(stream: bool) -> Value {
        json!({
            "model": "llama-2-13b-chat", "prompt": PROMPT, "temperature": 0, "max_tokens": TOKENS, "ignore_eos": true, "stream": stream,
        })
    }

    async fn whole(&self) -> String {
        let answer = self.post("/v1/completions", &Self::body(false)).await.unwrap().text().await.unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        answer["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    /// Begins to ask for the same text.
    fn stream(&self) -> Stream {
        let (server, (begins, begun)) = (self.clone(), oneshot::channel());
        let text = tokio::spawn(async move {
            let failed = |error: reqwest::Error| format!("{error:?}");
            let mut answer = server.post("/v1/completions", &Self::body(true)).await.map_err(failed)?;
            let (mut bytes, mut begins, mut text) = (Vec::new(), Some(begins), String::new());
            while let Some(chunk) = answer.chunk().await.map_err(failed)? {
                bytes.extend_from_slice(&chunk);
                while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
                    let line = String::from_utf8_lossy(&bytes.drain(..=end).collect::<Vec<_>>()).into_owned();
                    let Some(data) = line.trim().strip_prefix("data: ") else { continue };
                    if data == "[DONE]" {
                        return Ok(text);
                    }
                    let event: Value = serde_json::from_str(data).map_err(|error| format!("{error}: {data}"))?;
                    let part = event["choices"][0]["text"].as_str().ok_or_else(|| event.to_string())?;
                    text += part;
                    begins.take().map(|begins| begins.send(()));
                }
            }
            Err(format!("the stream has no end: {text:?} {}", String::from_utf8_lossy(&bytes)))
        });
        Stream { begun, text }
    }
}

impl Stream {
    async fn begins(&mut self) {
        if (&mut self.begun).await.is_err() {
            panic!("the stream does not begin: {:?}", (&mut self.text).await);
        }
        assert!(!self.text.is_finished(), "the stream is over before anything is done to it");
    }

    async fn whole(self) -> String {
        self.text.await.unwrap().unwrap_or_else(|error| panic!("{error}"))
    }
}

/// The pods of both ranks, once there are two.
async fn ranks(case: &Case) -> [Pod; 2] {
    within(LOADING, "two ranks", || async {
        let mut pods = case.pods_of(NAME).await;
        pods.sort_by_key(ResourceExt::name_any);
        <[Pod; 2]>::try_from(pods).map_err(|pods| format!("{} pods", pods.len()))
    })
    .await
}

fn node_of(pod: &Pod) -> String {
    pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default()
}

/// The pod of a rank, once it is another one than before.
async fn successor(case: &Case, before: &Pod) -> Pod {
    let name = before.name_any();
    within(LOADING, &format!("another {name}"), || async {
        let pod = case.api::<Pod>().get(&name).await.map_err(|error| error.to_string())?;
        if pod.uid() == before.uid() { Err("the one before".to_owned()) } else { Ok(pod) }
    })
    .await
}

pub async fn two_nodes_serve_one_model(case: Case) {
    let python = match (containers_need(), vllm().await) {
        (None, Some(python)) => python,
        (Some(missing), _) => return println!("NOT CHECKED: ranks with real programs: {missing}"),
        (None, None) => {
            return println!("NOT CHECKED: ranks with real programs: vLLM is not installed (tests/vllm/run)");
        }
    };
    let begin = Instant::now();
    let step = |what: &str| println!("{:4} s  {what}", begin.elapsed().as_secs());
    case.kubelet.image("/vllm-openai", Image::vllm(&python).await);
    case.kubelet.image("/kaito-llama-2-13b-chat", Image::of_files(&repository().join("models/demo"), "/weights"));
    // vLLM is slower on two busy processors than on a node with GPUs.
    let patient = [("KAITO_UPSTREAM_WAIT", "15m"), ("KAITO_REQUEST_TIMEOUT", "20m"), ("KAITO_STALL_LIMIT", "5m")];
    case.kubelet.image("/kaito:", Image::kaito().with_environment(&patient));
    case.kubelet.pods_of(&case.namespace, Behaviour::Containers);
    for number in 0..2 {
        case.kubelet.add(case.node(number, ONE_A100, 1)).await;
    }

    case.apply(flags(LONGER)).await;
    case.apply(manifest(&case)).await;
    case.is_ready_within(LOADING, NAME).await;
    step("the workspace is ready");
    let server = Server::of(&case).await;
    answers_as_the_readme_says(&server).await;
    let undisturbed = server.whole().await;
    step("an answer through the Service");
    nothing_listens_that_strangers_reach(&case).await;

    a_worker_is_deleted(&case, &server, &undisturbed).await;
    step("a worker was deleted in a stream");
    a_node_is_lost(&case, &server, &undisturbed).await;
    step("the first rank's node was lost");
    the_configuration_is_another_one(&case, &server, &undisturbed).await;
    step("the configuration was changed");
    it_is_deleted_while_it_answers(&case, &server, &undisturbed).await;
    step("the workspace was deleted");
}

/// The first request of README.md, whose answer stands there.
async fn answers_as_the_readme_says(server: &Server) {
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    let request = readme.lines().find(|line| line.starts_with("curl ")).unwrap();
    let (_, body) = request.split_once(" -d '").unwrap();
    let body = serde_json::from_str(body.trim_end_matches('\'')).unwrap();
    let answer = server.post("/chat", &body).await.unwrap().text().await.unwrap();
    assert!(readme.lines().any(|line| line == answer.trim()), "{answer}");
}

/// Our simulated network enforces no policy, so the policy is held against what listens: whoever is no rank may reach port 5000
/// alone, and the engine's API is on loopback.
async fn nothing_listens_that_strangers_reach(case: &Case) {
    let policy: NetworkPolicy = case.exists(NAME).await;
    let spec = policy.spec.unwrap();
    let rules = spec.ingress.unwrap_or_default();
    let for_all = rules.iter().filter(|rule| rule.from.is_none());
    let open: Vec<_> = for_all.map(|rule| serde_json::to_value(&rule.ports).unwrap()).collect();
    assert_eq!(open, [json!([{"port": 5000, "protocol": "TCP"}])]);
    for pod in ranks(case).await {
        let selected = spec.pod_selector.clone().unwrap_or_default().match_labels.unwrap_or_default();
        assert!(!selected.is_empty() && selected.iter().all(|(key, value)| pod.labels().get(key) == Some(value)));
        let listeners = case.kubelet.listeners(&case.namespace, &pod.name_any());
        let reached = |port: u16| listeners.iter().filter(|it| it.port == port).any(|it| !it.address.is_loopback());
        assert!(reached(5000), "{listeners:?}");
        assert!(!reached(8000), "the engine's API: {listeners:?}");
        let engine = |it: &Listener| it.port == 8000 && it.address.is_loopback();
        assert_eq!(listeners.iter().any(engine), pod.name_any().ends_with("-0"), "{listeners:?}");
    }
}

async fn a_worker_is_deleted(case: &Case, server: &Server, undisturbed: &str) {
    let [_, worker] = ranks(case).await;
    let mut stream = server.stream();
    stream.begins().await;
    case.kubectl(&["delete", "pod", &worker.name_any(), "--wait=false"]).await.stdout();
    assert_eq!(stream.whole().await, undisturbed);
    successor(case, &worker).await;
    case.is_ready_within(LOADING, NAME).await;
}

/// A machine that loses its power, after which somebody says that it is out of service: that lets its pods go.
async fn a_node_is_lost(case: &Case, server: &Server, undisturbed: &str) {
    let [first, _] = ranks(case).await;
    let node = node_of(&first);
    case.kubelet.add(case.node(2, ONE_A100, 1)).await;
    case.kubelet.lose(&node).await;
    let taint = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute";
    case.plane.kubectl(&["taint", "node", &node, taint]).await.stdout();
    let second = successor(case, &first).await;
    case.is_ready_within(LOADING, NAME).await;
    let second = case.api::<Pod>().get(&second.name_any()).await.unwrap();
    assert_eq!(node_of(&second), format!("{}-2", case.namespace));
    assert_eq!(server.whole().await, undisturbed);
}

/// Ranks of different templates cannot compute together: the first one makes way, and then the others do.
async fn the_configuration_is_another_one(case: &Case, server: &Server, undisturbed: &str) {
    let before = ranks(case).await;
    case.apply(flags(SHORTER)).await;
    let mut after = Vec::new();
    for pod in &before {
        after.push(successor(case, pod).await);
    }
    assert!(after[0].creation_timestamp() <= after[1].creation_timestamp(), "{after:#?}");
    for pod in &after {
        let engine = pod.spec.as_ref().unwrap().containers.iter().find(|container| container.name == "engine").unwrap();
        let arguments = engine.args.clone().unwrap_or_default();
        let length = arguments.windows(2).find(|pair| pair[0] == "--max-model-len").map(|pair| pair[1].as_str());
        assert_eq!(length, Some(SHORTER.to_string().as_str()), "{}", pod.name_any());
    }
    case.is_ready_within(LOADING, NAME).await;
    assert_eq!(server.whole().await, undisturbed);
}

async fn it_is_deleted_while_it_answers(case: &Case, server: &Server, undisturbed: &str) {
    let mut stream = server.stream();
    stream.begins().await;
    case.kubectl(&["delete", "workspace", NAME, "--timeout=200s"]).await.stdout();
    assert_eq!(stream.whole().await, undisturbed);
    within(LOADING, "nothing is left", || async {
        let left = [case.owned(NAME).await, case.kubelet.left_behind()].concat();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:#?}")) }
    })
    .await;
}
