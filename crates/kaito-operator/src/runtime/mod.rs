//! What runs in a workspace's pods: the container of each runtime, with its command line, probes, resources and volumes.

mod config;
mod kaito;
mod server_config;
mod vllm;
mod vllm_config;

use std::collections::BTreeMap;

pub use server_config::{ServerConfig, Sizes, WeightBytes, does_not_fit};

use k8s_openapi::{
    api::core::v1::{
        Capabilities, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EnvVarSource, ExecAction, HTTPGetAction,
        ImageVolumeSource, ObjectFieldSelector, Probe, ResourceRequirements, SecurityContext, Volume, VolumeMount,
    },
    apimachinery::pkg::{api::resource::Quantity, util::intstr::IntOrString},
};
use kaito_presets::{GIB, Load, Precision, Preset};

use crate::{
    layout::{Division, GPU, Hardware},
    reason::Problem,
    workspace::{AdapterSpec, Runtime},
};

/// The port that servers listen on in pods.
pub const PORT: u16 = 5000;
/// The port of the ranks' headless service.
pub const RANK_PORT: u16 = 29500;
/// The name of the server's container.
pub const CONTAINER: &str = "server";
/// The folder of adapters: each has a folder of its name in it.
pub const ADAPTERS: &str = "/mnt/adapter";
/// The folder of the weights in a preset's image.
pub const IMAGE_WEIGHTS: &str = "/weights";
/// Where the image with the weights is mounted, unless it is the server's own image.
pub const WEIGHTS: &str = "/mnt/weights";

/// A server to start in a pod.
#[derive(Debug, Clone)]
pub struct Launch<'a> {
    /// The model.
    pub preset: &'static Preset,
    /// The image that holds the server.
    pub image: &'a str,
    /// The image that holds the weights, to be mounted; none where the server's own holds them.
    pub weights: Option<&'a str>,
    /// GPUs of the pod; none to compute on the node's CPUs.
    pub gpus: u32,
    /// How GPUs divide the model among them.
    pub division: Division,
    /// What the pod's node has, if known.
    pub hardware: Option<Hardware>,
    /// CPUs of the nodes that the workspace asks for, if known.
    pub cpus: Option<u32>,
    /// The pods that serve one model together.
    pub ranks: Option<Ranks>,
    /// Adapters, which lie in [`ADAPTERS`].
    pub adapters: &'a [AdapterSpec],
    /// What the user's own ConfigMap says, from [`config`].
    pub config: &'a ServerConfig,
}

/// Pods that serve one model together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranks {
    /// How many.
    pub pods: u32,
    /// Host name of the first.
    pub master: String,
}

/// A flag of a server, and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    /// Without the dashes before it.
    pub name: String,
    /// Its value.
    pub value: FlagValue,
}

/// The value of a flag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FlagValue {
    /// The flag stands alone, or, where false, its negation does.
    Switch(bool),
    /// A value follows.
    Text(String),
}

/// A server's container, and the volumes that it mounts.
#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    /// The container.
    pub container: Container,
    /// The volumes.
    pub volumes: Vec<Volume>,
}

/// The images of a preset.
#[derive(Debug, Clone, Copy)]
pub struct Images<'a> {
    /// The one with our server.
    pub server: Option<&'a str>,
    /// One of weights alone.
    pub weights: Option<&'a str>,
    /// The one with vLLM.
    pub vllm: &'a str,
}

impl<'a> Images<'a> {
    /// The image that a runtime's server is in, and the one of the weights where that is another. Whatever else is in an
    /// image with weights, they lie in the same folder of it.
    pub fn of(self, runtime: Runtime) -> (Option<&'a str>, Option<&'a str>) {
        match runtime {
            Runtime::Kaito => (self.server, self.weights),
            Runtime::Vllm => (Some(self.vllm), self.weights.or(self.server)),
        }
    }
}

/// The server of a preset in a pod.
///
/// # Errors
///
/// Where this runtime cannot serve that.
pub fn server(runtime: Runtime, launch: &Launch<'_>) -> Result<Server, Problem> {
    let mut server = match runtime {
        Runtime::Kaito => kaito::server(launch)?,
        Runtime::Vllm => vllm::server(launch)?,
    };
    complete(&mut server, launch);
    Ok(server)
}

/// Why the adapters of a workspace do not act as it says, if they do not.
pub fn adapters_problem(runtime: Runtime, preset: &Preset, adapters: &[AdapterSpec]) -> Option<Problem> {
    match runtime {
        Runtime::Kaito => None,
        Runtime::Vllm => vllm::adapters_problem(preset, adapters),
    }
}

/// Why several pods cannot serve one model together, if they cannot.
pub fn ranks_problem(runtime: Runtime) -> Option<Problem> {
    match runtime {
        Runtime::Kaito => Some(kaito::no_ranks()),
        Runtime::Vllm => None,
    }
}

/// Whether a runtime computes on GPUs. What does not must not hold any.
pub fn uses_gpus(runtime: Runtime) -> bool {
    match runtime {
        Runtime::Kaito => false,
        Runtime::Vllm => true,
    }
}

/// What a ConfigMap says for a runtime.
///
/// # Errors
///
/// Where the data are of another form, or set what is not the user's to set.
pub fn config(runtime: Runtime, preset: &Preset, data: &BTreeMap<String, String>) -> Result<ServerConfig, Problem> {
    config::read(runtime, preset, data)
}

impl Flag {
    fn is(&self, name: &str, value: &str) -> bool {
        self.name == name && matches!(&self.value, FlagValue::Text(text) if text.trim() == value)
    }

    fn arguments(flags: &[Self]) -> impl Iterator<Item = String> {
        flags.iter().map(|flag| match &flag.value {
            FlagValue::Switch(true) => format!("--{}", flag.name),
            FlagValue::Switch(false) => format!("--no-{}", flag.name),
            FlagValue::Text(text) => format!("--{}={text}", flag.name),
        })
    }
}

/// The security context that the restricted Pod Security Standard asks of a container.
pub fn restricted() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), ..Capabilities::default() }),
        read_only_root_filesystem: Some(true),
        ..SecurityContext::default()
    }
}

/// Adds what does not depend on the runtime.
fn complete(server: &mut Server, launch: &Launch<'_>) {
    let container = &mut server.container;
    container.image = Some(launch.image.to_owned());
    container.name = CONTAINER.to_owned();
    container.ports = Some(vec![ContainerPort {
        name: Some("http".to_owned()),
        container_port: PORT.into(),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }]);
    container.security_context = Some(restricted());
    // The status quotes why a server ended.
    container.termination_message_policy = Some("FallbackToLogsOnError".to_owned());
    container.resources = Some(resources(launch));
    let mounts = container.volume_mounts.get_or_insert_default();
    if let Some(weights) = launch.weights {
        mounts.push(VolumeMount { read_only: Some(true), ..mount("weights", WEIGHTS) });
        server.volumes.push(Volume {
            name: "weights".to_owned(),
            image: Some(ImageVolumeSource { reference: Some(weights.to_owned()), pull_policy: None }),
            ..Volume::default()
        });
    }
    // The root is read-only.
    mounts.push(mount("tmp", "/tmp"));
    server.volumes.push(empty_dir("tmp", None));
    if launch.gpus > 1 {
        // GPUs with tensor parallelism exchange partial sums through shared memory; the default of 64 MiB is too small.
        mounts.push(mount("shm", "/dev/shm"));
        server.volumes.push(empty_dir("shm", Some("Memory")));
    }
}

fn resources(launch: &Launch<'_>) -> ResourceRequirements {
    if launch.gpus > 0 {
        let gpus = BTreeMap::from([(GPU.to_owned(), Quantity(launch.gpus.to_string()))]);
        // Kubernetes does not overcommit extended resources: requests must equal limits.
        return ResourceRequirements { limits: Some(gpus.clone()), requests: Some(gpus), ..Default::default() };
    }
    let flag = |name: &str| launch.config.flags.iter().find(|flag| flag.name == name).map(|flag| &flag.value);
    let load = Load::from(launch.preset).adapters(launch.adapters.len() as u64);
    let load = match flag("quantize") {
        Some(FlagValue::Text(bits)) if bits == "int8" => load.weights(Precision::Int8),
        Some(FlagValue::Text(bits)) if bits == "int4" => load.weights(Precision::Int4),
        _ => load,
    };
    let needs = load.on_cpus();
    // No limits: with what else the node has, the server answers faster, and has room for longer and more sequences.
    let most = launch.cpus.map_or(CPUS_OF_UNKNOWN_NODES, |cpus| cpus / 2);
    let requests = BTreeMap::from([
        ("cpu".to_owned(), Quantity(needs.cpus.min(most).max(1).to_string())),
        ("memory".to_owned(), Quantity(format!("{}Gi", needs.memory.total().div_ceil(GIB)))),
    ]);
    ResourceRequirements { requests: Some(requests), ..Default::default() }
}

/// The most CPUs that a pod requests of a node with an unknown number of them.
const CPUS_OF_UNKNOWN_NODES: u32 = 4;

fn mount(volume: &str, path: &str) -> VolumeMount {
    VolumeMount { name: volume.to_owned(), mount_path: path.to_owned(), ..VolumeMount::default() }
}

/// An emptyDir volume, which lives as long as its pod.
pub fn empty_dir(name: &str, medium: Option<&str>) -> Volume {
    Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource { medium: medium.map(str::to_owned), size_limit: None }),
        ..Volume::default()
    }
}

fn variable(name: &str, value: &str) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(value.to_owned()), value_from: None }
}

/// A variable with a field of the pod itself.
fn field(name: &str, path: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector { api_version: Some("v1".to_owned()), field_path: path.to_owned() }),
            ..EnvVarSource::default()
        }),
    }
}

/// The pod's number in its StatefulSet.
fn pod_index() -> EnvVar {
    field("POD_INDEX", "metadata.labels['apps.kubernetes.io/pod-index']")
}

fn strings(items: &[&str]) -> Vec<String> {
    items.iter().map(|item| (*item).to_owned()).collect()
}

enum Check {
    Http(&'static str),
    Exec(Vec<String>),
}

/// Seconds between probes while a model loads.
const STARTUP_PERIOD: i32 = 10;

/// A startup probe for as long as the preset may take to load, then readiness and liveness probes.
fn probes(container: &mut Container, preset: &Preset, check: &Check) {
    let probe = |period, failures| {
        let mut probe = Probe {
            period_seconds: Some(period),
            failure_threshold: Some(failures),
            timeout_seconds: Some(5),
            ..Probe::default()
        };
        match check {
            Check::Http(path) => {
                probe.http_get = Some(HTTPGetAction {
                    path: Some((*path).to_owned()),
                    port: IntOrString::Int(PORT.into()),
                    ..HTTPGetAction::default()
                });
            }
            Check::Exec(command) => probe.exec = Some(ExecAction { command: Some(command.clone()) }),
        }
        probe
    };
    let limit = i32::try_from(preset.workload.ready_within.as_secs()).unwrap_or(i32::MAX);
    container.startup_probe = Some(probe(STARTUP_PERIOD, limit / STARTUP_PERIOD));
    container.readiness_probe = Some(probe(10, 3));
    // Two minutes: a busy server may not answer for one, and a restart costs minutes of loading.
    container.liveness_probe = Some(probe(20, 6));
}
