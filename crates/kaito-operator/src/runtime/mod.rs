//! What runs in a workspace's pods: the containers of each runtime, with their command lines, probes, resources and volumes.

mod choice;
mod config;
mod kaito;
mod program;
mod server_config;
mod vllm;
mod vllm_config;
pub mod weights;

use std::collections::BTreeMap;

pub use choice::{Chosen, Circumstances, choose};
pub use server_config::{ServerConfig, Sizes, WeightBytes, does_not_fit};
pub use vllm::GRACE_SECONDS as ENGINE_GRACE_SECONDS;
pub use vllm::{ENGINE_PORT, SCRATCH};
pub use weights::Weights;

use k8s_openapi::{
    api::core::v1::{
        Capabilities, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EnvVarSource, HTTPGetAction,
        ObjectFieldSelector, Probe, ResourceRequirements, SecurityContext, Volume, VolumeMount,
    },
    apimachinery::pkg::{api::resource::Quantity, util::intstr::IntOrString},
};
use kaito_presets::{GpuVendor, Preset};

use crate::{
    layout::{Division, Hardware},
    reason::Problem,
    workspace::{AdapterSpec, Runtime},
};

/// The port that servers listen on in pods.
pub const PORT: u16 = 5000;
/// The port of the ranks' headless service.
pub const RANK_PORT: u16 = 29500;
/// The port of an engine's supervisor.
pub const SUPERVISOR_PORT: u16 = 5001;
/// The name of the server's container.
pub const SERVER: &str = "server";
/// The name of the container of an engine that computes for the server, where that does not compute itself.
pub const ENGINE: &str = "engine";
/// The folder of adapters: each has a folder of its name in it.
pub const ADAPTERS: &str = "/mnt/adapter";
/// The folder of the weights in a preset's image.
pub const IMAGE_WEIGHTS: &str = "/weights";
/// Where the weights are mounted, unless they are in the server's own image.
pub const WEIGHTS: &str = "/mnt/weights";

/// A server to start in a pod.
#[derive(Debug, Clone)]
pub struct Launch<'a> {
    /// The model.
    pub preset: &'static Preset,
    /// The image that holds our server.
    pub image: &'a str,
    /// The image that holds vLLM, as it is built for the vendor's GPUs.
    pub vllm_image: &'a str,
    /// Where the weights come from.
    pub weights: Weights<'a>,
    /// GPUs of the pod; none to compute on the node's CPUs.
    pub gpus: u32,
    /// Who makes them.
    pub vendor: GpuVendor,
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

/// A server's containers, and the volumes that they mount.
#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    /// What runs before the containers, in this order.
    pub init_containers: Vec<Container>,
    /// The containers; the one that computes is the last.
    pub containers: Vec<Container>,
    /// The volumes.
    pub volumes: Vec<Volume>,
}

impl Server {
    /// Mounts what the container that computes needs besides.
    pub fn mount(&mut self, mounts: Vec<VolumeMount>) {
        if let Some(container) = self.containers.last_mut() {
            container.volume_mounts.get_or_insert_default().extend(mounts);
        }
    }
}

/// The images of a preset. Whatever else is in an image with weights, they lie in the same folder of it.
#[derive(Debug, Clone, Copy)]
pub enum Images<'a> {
    /// One with server and weights.
    Together(&'a str),
    /// One of weights alone, and perhaps one with a server.
    Apart {
        /// The one with a server.
        server: Option<&'a str>,
        /// The one of weights alone.
        weights: &'a str,
    },
}

impl<'a> Images<'a> {
    /// The image that our server is in, where there is one, and where the weights come from. `own` is the installation's image of the
    /// server, `secrets` are those to pull the images with, and `mounts` says whether the cluster mounts images.
    pub fn of(
        self,
        runtime: Runtime,
        own: Option<&'a str>,
        secrets: &'a [String],
        mounts: bool,
    ) -> (Option<&'a str>, Weights<'a>) {
        match (self, runtime) {
            (Self::Together(image), Runtime::Kaito) => (Some(image), Weights::Inside),
            // The engine reads the weights too; the server that knows the engine is that of this release.
            (Self::Together(image), Runtime::Vllm) => {
                (own.or(Some(image)), if mounts { Weights::Mounted(image) } else { Weights::Copied(image) })
            }
            (Self::Apart { server, weights }, _) => {
                let pulled = Weights::Pulled { image: weights, secrets };
                (server.or(own), if mounts { Weights::Mounted(weights) } else { pulled })
            }
        }
    }
}

/// The server of a preset in a pod.
///
/// # Errors
///
/// Where this runtime cannot serve that.
pub fn server(runtime: Runtime, launch: &Launch<'_>) -> Result<Server, Problem> {
    match runtime {
        Runtime::Kaito => kaito::server(launch),
        Runtime::Vllm => vllm::server(launch),
    }
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

/// Whether a runtime's pods listen on ports that only pods of the same workspace may reach, if anybody.
pub fn is_reached_within(runtime: Runtime) -> bool {
    match runtime {
        Runtime::Kaito => false,
        Runtime::Vllm => true,
    }
}

/// As many of a node's GPUs as vLLM needs for a model, if they are enough.
pub fn gpus_that_hold(preset: &Preset, offered: u32, gpu_memory: u64) -> Option<u32> {
    vllm::gpus_that_hold(preset, offered, gpu_memory)
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

/// A container with what does not depend on the runtime.
fn container(name: &str, image: &str) -> Container {
    Container {
        name: name.to_owned(),
        image: Some(image.to_owned()),
        security_context: Some(restricted()),
        // The status quotes why a container ended.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..Container::default()
    }
}

/// The port that a server answers on.
fn ports() -> Vec<ContainerPort> {
    vec![container_port("http", PORT)]
}

fn container_port(name: &str, port: u16) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: port.into(),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

/// A volume, and where a container has it.
type Mounted = (Volume, VolumeMount);

/// A folder that can be written to, at `path`.
fn folder(volume: &str, path: &str) -> Mounted {
    (empty_dir(volume), mount(volume, path))
}

fn mount(volume: &str, path: &str) -> VolumeMount {
    VolumeMount { name: volume.to_owned(), mount_path: path.to_owned(), ..VolumeMount::default() }
}

/// An emptyDir volume, which lives as long as its pod.
pub fn empty_dir(name: &str) -> Volume {
    Volume { name: name.to_owned(), empty_dir: Some(EmptyDirVolumeSource::default()), ..Volume::default() }
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

/// The variable with the pod's number in its StatefulSet.
const POD_INDEX: &str = "POD_INDEX";

fn pod_index() -> EnvVar {
    field(POD_INDEX, "metadata.labels['apps.kubernetes.io/pod-index']")
}

/// Resources to request. There are no limits: with what else the node has, a server answers faster.
fn requests(requests: [(&str, String); 2]) -> ResourceRequirements {
    let requests = requests.map(|(name, quantity)| (name.to_owned(), Quantity(quantity)));
    ResourceRequirements { requests: Some(requests.into()), ..ResourceRequirements::default() }
}

fn strings(items: &[&str]) -> Vec<String> {
    items.iter().map(|item| (*item).to_owned()).collect()
}

/// What a probe asks.
enum Check {
    /// The server's answer at a path.
    Http(&'static str),
    /// The answer of the engine's supervisor at a path.
    Supervisor(&'static str),
}

impl Check {
    /// Once in `period` seconds; it counts after so many `failures`.
    fn every(&self, period: i32, failures: i32) -> Probe {
        let (port, path) = match self {
            Self::Http(path) => (PORT, path),
            Self::Supervisor(path) => (SUPERVISOR_PORT, path),
        };
        Probe {
            http_get: Some(HTTPGetAction {
                path: Some((*path).to_owned()),
                port: IntOrString::Int(port.into()),
                ..HTTPGetAction::default()
            }),
            period_seconds: Some(period),
            failure_threshold: Some(failures),
            timeout_seconds: Some(5),
            ..Probe::default()
        }
    }

    /// While the model loads, for as long as the preset may take.
    fn startup(&self, preset: &Preset) -> Probe {
        /// Seconds between two checks.
        const PERIOD: i32 = 10;
        let limit = i32::try_from(preset.workload.ready_within.as_secs()).unwrap_or(i32::MAX);
        self.every(PERIOD, limit / PERIOD)
    }

    /// While a program starts that answers at once, whatever it waits for then: a minute.
    fn prompt_startup(&self) -> Probe {
        self.every(2, 30)
    }

    fn readiness(&self) -> Probe {
        self.every(10, 3)
    }

    /// Two minutes: a busy server may not answer for one, and a restart costs minutes of loading.
    fn liveness(&self) -> Probe {
        self.every(20, 6)
    }
}
