//! The runtime `vllm`: vLLM's own image computes, and `kaito serve` stands in front of it in the same pod.
//!
//! Where several pods serve one model, each runs vLLM as one rank, and the first one's server answers. A StatefulSet has one
//! template for all its pods, so the others have a server too: it waits for an engine that never answers there, and no Service
//! leads to it. In each pod a supervisor starts the engine and ends it; those of the ranks do so together.

mod arguments;
mod context;
mod supervisor;

use std::collections::BTreeMap;

pub use context::gpus_that_hold;
use k8s_openapi::{
    api::core::v1::{Container, EmptyDirVolumeSource, ResourceRequirements, Volume, VolumeMount},
    apimachinery::pkg::api::resource::Quantity,
};
use kaito_presets::{GpuVendor, Preset};
pub use supervisor::{GRACE_SECONDS, SCRATCH};

use super::{
    ADAPTERS, Check, ENGINE, Launch, PORT, SERVER, SUPERVISOR_PORT, Server, container, container_port, field, folder,
    mount, pod_index, ports, requests, strings, variable,
};
use crate::{
    reason::{Problem, Reason},
    workspace::AdapterSpec,
};

/// Where vLLM listens: nobody but the server in the same pod is to reach it.
const LOOPBACK: &str = "127.0.0.1";
/// The port that it listens on.
pub const ENGINE_PORT: u16 = 8000;
/// What the server in front requests: it holds a tokenizer, and the texts of requests.
const CPU: &str = "250m";
const MEMORY: &str = "512Mi";

pub fn server(launch: &Launch<'_>) -> Result<Server, Problem> {
    if launch.gpus == 0 {
        return Err(Problem {
            reason: Reason::GpusMissing,
            message: format!(
                "vLLM's image needs GPUs, and no node that matches offers {}. Use nodes with GPUs and a running device \
                 plugin, or the runtime kaito, which computes on CPUs too",
                GpuVendor::ALL.map(GpuVendor::resource).join(" or ")
            ),
        });
    }
    let (mut volumes, weights): (Vec<_>, Vec<_>) = launch.weights.mounted().into_iter().unzip();
    // The roots are read-only.
    let (tmp, of_server) = folder("tmp", "/tmp");
    let (engine_tmp, of_engine) = folder("engine-tmp", "/tmp");
    volumes.extend([tmp, engine_tmp]);
    let (shared, of_shared) = shared_memory(launch.gpus);
    let program = supervisor::carried(launch.image);
    volumes.extend([shared, program.volume]);
    let engine = engine(launch, [weights.clone(), vec![of_engine, of_shared, program.mount]].concat())?;
    let front = front(launch, [weights, vec![of_server]].concat());
    Ok(Server { init_containers: vec![program.carrier], containers: vec![front, engine], volumes })
}

/// The folder through which the processes of an engine hand each other tokens and partial sums. Container runtimes make it of 64
/// MiB, which is too little: vLLM has queues of up to 240 MiB there, one for all its processes and one for those of each GPU,
/// and NCCL takes some for each pair of GPUs that cannot reach each other's memory. With one GPU, several nodes or another flag of
/// the user's make such processes as well. Without a limit, engines that leave their parts behind when they are killed would
/// take all memory of their node.
fn shared_memory(gpus: u32) -> (Volume, VolumeMount) {
    const NAME: &str = "shm";
    let limit = Quantity(format!("{}Gi", gpus.saturating_add(1)));
    let source = EmptyDirVolumeSource { medium: Some("Memory".to_owned()), size_limit: Some(limit) };
    let volume = Volume { name: NAME.to_owned(), empty_dir: Some(source), ..Volume::default() };
    (volume, mount(NAME, supervisor::SHARED_MEMORY))
}

/// The server that clients talk to. It says that it is healthy while the engine is; it lives as long as it answers at all, since
/// requests wait in it for an engine that restarts.
fn front(launch: &Launch<'_>, mounts: Vec<VolumeMount>) -> Container {
    let name = launch.preset.name;
    let mut arguments = strings(&["serve", name, "--port", &PORT.to_string()]);
    if let Some(folder) = launch.weights.folder(launch.preset) {
        arguments.extend(["--weights".to_owned(), folder]);
    }
    arguments.extend(strings(&["--upstream", &format!("http://{LOOPBACK}:{ENGINE_PORT}"), "--upstream-model", name]));
    arguments.extend(strings(&["--upstream-supervisor", &format!("http://{LOOPBACK}:{SUPERVISOR_PORT}")]));
    let config = launch.config;
    if !config.served_names.is_empty() {
        arguments.extend(strings(&["--served-model-name", &config.served_names.join(",")]));
    }
    if let Some(sequences) = config.sequences {
        // What does not run waits in the server's queue, where it is counted.
        let all = sequences.saturating_mul(u64::from(launch.division.data));
        arguments.extend(strings(&["--max-batch-size", &all.to_string()]));
    }
    Container {
        command: Some(strings(&["kaito"])),
        args: Some(arguments),
        env: Some(vec![variable("HF_HOME", "/tmp/huggingface")]),
        ports: Some(ports()),
        resources: Some(requests([("cpu", CPU.to_owned()), ("memory", MEMORY.to_owned())])),
        // With ranks the supervisor says whether its pod is ready: it can tell the first pod from the others.
        readiness_probe: launch.ranks.is_none().then(|| Check::Http("/healthz").readiness()),
        liveness_probe: Some(Check::Http("/").liveness()),
        volume_mounts: Some(mounts),
        ..container(SERVER, launch.image)
    }
}

fn engine(launch: &Launch<'_>, mounts: Vec<VolumeMount>) -> Result<Container, Problem> {
    let ranks = launch.ranks.as_ref();
    let mut env = vec![
        // The image's root is read-only, and the user has no home in it.
        variable("HOME", "/tmp"),
        variable("USER", "kaito"),
        variable("XDG_CACHE_HOME", "/tmp/cache"),
        variable("XDG_CONFIG_HOME", "/tmp/config"),
        variable("TRITON_CACHE_DIR", "/tmp/cache/triton"),
        variable("TORCHINDUCTOR_CACHE_DIR", "/tmp/cache/inductor"),
        // The weights are mounted, so nothing is downloaded.
        variable("HF_HUB_OFFLINE", "1"),
        variable("VLLM_NO_USAGE_STATS", "1"),
    ];
    if ranks.is_some() {
        env.extend([pod_index(), field("VLLM_HOST_IP", "status.podIP")]);
    }
    // Kubernetes does not overcommit extended resources: requests must equal limits.
    let gpus = BTreeMap::from([(launch.vendor.resource().to_owned(), Quantity(launch.gpus.to_string()))]);
    // The supervisor lives whatever its engine does: it ends one that hangs, by the server's word, and starts the next.
    let alive = Check::Supervisor("/livez");
    Ok(Container {
        command: Some(supervisor::command(ranks)),
        args: Some(arguments::arguments(launch)?),
        env: Some(env),
        ports: Some(vec![container_port("supervisor", SUPERVISOR_PORT)]),
        resources: Some(ResourceRequirements { limits: Some(gpus.clone()), requests: Some(gpus), claims: None }),
        startup_probe: Some(alive.prompt_startup()),
        readiness_probe: ranks.map(|_| Check::Supervisor("/readyz").readiness()),
        liveness_probe: Some(alive.liveness()),
        volume_mounts: Some(mounts),
        ..container(ENGINE, launch.vllm_image)
    })
}

/// Whether vLLM can apply adapters to a model: not to each family.
pub fn applies_adapters(preset: &Preset) -> bool {
    preset.shape.family.vllm_applies_adapters
}

pub fn adapters_problem(preset: &Preset, adapters: &[AdapterSpec]) -> Option<Problem> {
    if !adapters.is_empty() && !applies_adapters(preset) {
        return Some(Problem {
            reason: Reason::AdaptersNotApplied,
            message: format!(
                "the adapters lie in {ADAPTERS}, but vLLM applies none to {} models: the base model answers",
                preset.shape.family
            ),
        });
    }
    let weakened: Vec<_> = adapters
        .iter()
        .filter(|adapter| {
            adapter
                .strength
                .as_deref()
                .and_then(|strength| strength.parse::<f64>().ok())
                .is_some_and(|strength| strength != 1.0)
        })
        .map(|adapter| adapter.source.name.as_str())
        .collect();
    (!weakened.is_empty()).then(|| Problem {
        reason: Reason::AdapterStrengthIgnored,
        message: format!("vLLM applies every adapter at full strength, {} too", weakened.join(", ")),
    })
}
