//! A pod as processes of this machine.
//!
//! Programs and arguments are the pod's own. Two things differ from a container: a process has no network of its own, so it gets
//! a loopback address or a port of its own; and it has no files of an image, so the weights have to be named.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use k8s_openapi::api::core::v1::{Container, EnvVar, PodSpec, Probe, Volume};

use super::{UpError, expand::expand};
use crate::runtime::PORT;

/// What Kubernetes waits between asking a pod to end and killing it, unless the pod says otherwise.
const DEFAULT_GRACE_PERIOD: i64 = 30;
/// The label with a pod's number in its StatefulSet.
const POD_INDEX: &str = "metadata.labels['apps.kubernetes.io/pod-index']";

/// What takes the place of images.
#[derive(Clone)]
pub struct Local<'a> {
    /// The program to start where a command is `kaito`.
    pub kaito: &'a Path,
    /// What an image would have set in the environment of `kaito`.
    pub image_env: BTreeMap<String, String>,
    /// Finds a free address of this machine, with this port if one is given.
    pub free_address: &'a dyn Fn(Option<u16>) -> Result<SocketAddr, UpError>,
    /// The pod's name and namespace, for containers that ask.
    pub pod: &'a str,
    /// The workspace's namespace.
    pub namespace: &'a str,
    /// The pod's own address.
    pub address: Ipv4Addr,
    /// Its number among the pods that serve one model together.
    pub rank: u32,
}

/// A container as a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// The container's name.
    pub container: String,
    /// What is started.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Variables that are added to this program's environment.
    pub env: BTreeMap<String, String>,
    /// Where it runs, if not here.
    pub working_directory: Option<PathBuf>,
}

/// A pod as processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodPlan {
    /// One for each container.
    pub processes: Vec<Process>,
    /// Where the pod serves on this machine.
    pub address: SocketAddr,
    /// The path of its readiness check; where there is none, an open port is enough.
    pub health_path: Option<String>,
    /// Time between SIGTERM and SIGKILL.
    pub grace_period: Duration,
}

/// Plans a pod's processes.
///
/// # Errors
///
/// Where the pod needs something that only a cluster has.
pub fn plan(pod: &PodSpec, local: &Local<'_>) -> Result<PodPlan, UpError> {
    for volume in pod.volumes.iter().flatten() {
        if let Some(kind) = only_in_a_cluster(volume) {
            return Err(UpError::Volume { name: volume.name.clone(), kind });
        }
    }
    if let Some(container) = pod.init_containers.iter().flatten().next() {
        return Err(UpError::InitContainer { name: container.name.clone() });
    }
    let mut processes = processes(pod, local)?;
    let serves =
        |container: &Container| container.ports.iter().flatten().any(|port| port.container_port == i32::from(PORT));
    let serving = pod.containers.iter().position(serves).unwrap_or_default();
    let (container, process) =
        pod.containers.get(serving).zip(processes.get_mut(serving)).ok_or(UpError::NoContainers)?;
    let is_kaito = process.program == local.kaito;
    let port = port_of(process);
    let address = if is_kaito {
        let address = (local.free_address)(port)?;
        process.env.insert("KAITO_HOST".to_owned(), address.ip().to_string());
        if port.is_none() {
            process.env.insert("KAITO_PORT".to_owned(), address.port().to_string());
        }
        address
    } else {
        SocketAddr::from((Ipv4Addr::LOCALHOST, port.unwrap_or(PORT)))
    };
    let health_path =
        container.readiness_probe.as_ref().and_then(path).or_else(|| is_kaito.then(|| "/healthz".to_owned()));
    let grace_period = pod.termination_grace_period_seconds.unwrap_or(DEFAULT_GRACE_PERIOD);
    let grace_period = Duration::from_secs(u64::try_from(grace_period).unwrap_or_default());
    Ok(PodPlan { processes, address, health_path, grace_period })
}

/// A process for each container of a pod.
///
/// # Errors
/// Where a container needs something that only a cluster has.
pub fn processes(pod: &PodSpec, local: &Local<'_>) -> Result<Vec<Process>, UpError> {
    pod.containers.iter().map(|container| process(container, local)).collect()
}

fn process(container: &Container, local: &Local<'_>) -> Result<Process, UpError> {
    let name = &container.name;
    let mut env = environment(container, local)?;
    let words = |words: &Option<Vec<String>>| words.clone().unwrap_or_default();
    let (command, args) = (words(&container.command), words(&container.args));
    let mut line = command.iter().chain(&args).map(|word| expand(word, &env)).collect::<Vec<_>>().into_iter();
    let program = line.next().filter(|_| !command.is_empty()).ok_or_else(|| UpError::NoCommand {
        container: name.clone(),
        image: container.image.clone().unwrap_or_default(),
    })?;
    let program = if Path::new(&program).file_name().is_some_and(|name| name == "kaito") {
        // The manifest wins over the image.
        for (name, value) in &local.image_env {
            env.entry(name.clone()).or_insert_with(|| value.clone());
        }
        local.kaito.to_owned()
    } else {
        program.into()
    };
    let working_directory = container.working_dir.as_deref().filter(|path| !path.is_empty()).map(PathBuf::from);
    Ok(Process { container: name.clone(), program, args: line.collect(), env, working_directory })
}

fn environment(container: &Container, local: &Local<'_>) -> Result<BTreeMap<String, String>, UpError> {
    let needs_cluster = |what: String| UpError::Environment { container: container.name.clone(), what };
    if container.env_from.iter().flatten().next().is_some() {
        return Err(needs_cluster("`envFrom`".to_owned()));
    }
    let mut env = BTreeMap::new();
    for EnvVar { name, value, value_from } in container.env.iter().flatten() {
        let value = match value_from {
            None => expand(value.as_deref().unwrap_or_default(), &env),
            Some(source) => {
                let field = source.field_ref.as_ref().map(|field| field.field_path.as_str());
                match field {
                    Some("metadata.name") => local.pod.to_owned(),
                    Some("metadata.namespace") => local.namespace.to_owned(),
                    Some("status.podIP" | "status.hostIP") => local.address.to_string(),
                    Some(POD_INDEX) => local.rank.to_string(),
                    Some("spec.nodeName") => "localhost".to_owned(),
                    _ => return Err(needs_cluster(format!("the variable {name}"))),
                }
            }
        };
        env.insert(name.clone(), value);
    }
    Ok(env)
}

/// The port that the manifest asks for.
fn port_of(process: &Process) -> Option<u16> {
    let mut args = process.args.iter();
    while let Some(arg) = args.next() {
        let value = match arg.strip_prefix("--port=") {
            Some(value) => Some(value),
            None if arg == "--port" => args.next().map(String::as_str),
            None => None,
        };
        if let Some(value) = value {
            return value.parse().ok();
        }
    }
    process.env.get("KAITO_PORT")?.parse().ok()
}

fn path(probe: &Probe) -> Option<String> {
    let get = probe.http_get.as_ref()?;
    Some(get.path.clone().filter(|path| path.starts_with('/')).unwrap_or_else(|| "/".to_owned()))
}

/// The kind of a volume that is not simply a directory.
fn only_in_a_cluster(volume: &Volume) -> Option<&'static str> {
    if volume.empty_dir.is_some() || volume.host_path.is_some() {
        return None;
    }
    Some(if volume.config_map.is_some() {
        "a ConfigMap"
    } else if volume.secret.is_some() {
        "a Secret"
    } else if volume.persistent_volume_claim.is_some() {
        "a PersistentVolumeClaim"
    } else if volume.image.is_some() {
        "an image"
    } else {
        "something that only a cluster has"
    })
}

#[cfg(test)]
mod tests;
