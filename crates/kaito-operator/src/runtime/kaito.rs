//! The runtime `kaito`: our own server, `kaito serve`.

use k8s_openapi::api::core::v1::{Container, EnvVar, ResourceRequirements};
use kaito_presets::{GIB, Load, Precision};

use super::{
    ADAPTERS, Check, Flag, FlagValue, Launch, PORT, SERVER, Server, container, folder, ports, requests, strings,
    variable,
};
use crate::{
    reason::{Problem, Reason},
    workspace::AdapterSpec,
};

/// The most CPUs that a pod requests of a node with an unknown number of them.
const CPUS_OF_UNKNOWN_NODES: u32 = 4;

/// Why the server does not serve a model over several nodes.
pub fn no_ranks() -> Problem {
    Problem {
        reason: Reason::RanksUnsupported,
        message: "kaito serve of this release computes on one node only, so nothing is started: use one node, or the annotation \
                  kaito.sh/runtime: vllm on nodes with GPUs"
            .to_owned(),
    }
}

pub fn server(launch: &Launch<'_>) -> Result<Server, Problem> {
    if launch.ranks.is_some() {
        return Err(no_ranks());
    }
    let healthy = Check::Http("/healthz");
    // The root is read-only.
    let mounted = launch.weights.mounted().into_iter().chain([folder("tmp", "/tmp")]);
    let (volumes, mounts) = mounted.unzip();
    let container = Container {
        command: Some(strings(&["kaito"])),
        args: Some(arguments(launch)),
        // A server without weights in its image downloads them; /tmp is the one place that it can write to.
        env: Some(std::iter::once(variable("HF_HOME", "/tmp/huggingface")).chain(strengths(launch.adapters)).collect()),
        ports: Some(ports()),
        resources: Some(resources(launch)),
        startup_probe: Some(healthy.startup(launch.preset)),
        readiness_probe: Some(healthy.readiness()),
        liveness_probe: Some(healthy.liveness()),
        volume_mounts: Some(mounts),
        ..container(SERVER, launch.image)
    };
    Ok(Server { init_containers: Vec::new(), containers: vec![container], volumes })
}

/// What follows `kaito` on the command line. An image with weights says by its environment where they are.
fn arguments(launch: &Launch<'_>) -> Vec<String> {
    let mut arguments = strings(&["serve", launch.preset.name, "--port", &PORT.to_string()]);
    if let Some(folder) = launch.weights.folder(launch.preset) {
        arguments.extend(["--weights".to_owned(), folder]);
    }
    if !launch.adapters.is_empty() {
        arguments.extend(strings(&["--adapters", ADAPTERS]));
    }
    arguments.extend(Flag::arguments(&launch.config.flags));
    arguments
}

/// How strongly each adapter counts, in a variable of its name; 1 where there is none.
fn strengths(adapters: &[AdapterSpec]) -> impl Iterator<Item = EnvVar> {
    adapters.iter().filter_map(|adapter| Some(variable(&adapter.source.name, adapter.strength.as_deref()?)))
}

fn resources(launch: &Launch<'_>) -> ResourceRequirements {
    let flag = |name: &str| launch.config.flags.iter().find(|flag| flag.name == name).map(|flag| &flag.value);
    let load = Load::from(launch.preset).adapters(launch.adapters.len() as u64);
    let load = match flag("quantize") {
        Some(FlagValue::Text(bits)) if bits == "int8" => load.weights(Precision::Int8),
        Some(FlagValue::Text(bits)) if bits == "int4" => load.weights(Precision::Int4),
        _ => load,
    };
    let needs = load.on_cpus();
    let most = launch.cpus.map_or(CPUS_OF_UNKNOWN_NODES, |cpus| cpus / 2);
    requests([
        ("cpu", needs.cpus.min(most).max(1).to_string()),
        ("memory", format!("{}Gi", needs.memory.total().div_ceil(GIB))),
    ])
}
