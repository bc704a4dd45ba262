use std::{io, net::SocketAddr, path::PathBuf};

use crate::reason::Reason;

/// Why a workspace cannot run on this machine, or has stopped.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    /// The service cannot listen on its address.
    #[error("the service cannot listen on {address}: {source}; --port takes another port, --port 0 any that is free")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// The pod's port is taken.
    #[error(
        "port {port}, which the pod serves on, is taken on this machine; end what listens there or change the pod's arguments"
    )]
    PortTaken {
        /// The port.
        port: u16,
    },
    /// More than one rank.
    #[error(
        "{preset} runs as {ranks} ranks here, one for each of `resource.count` nodes, which kaito's own engine does not serve: apply \
         the manifest to a cluster, take a model that one node serves, or install vLLM and set the annotation kaito.sh/runtime to vllm"
    )]
    SeveralRanks {
        /// The preset.
        preset: String,
        /// How many.
        ranks: u32,
    },
    /// The directory of the weights is not there.
    #[error("there is no directory {}; --weights names the one that holds the model's files", path.display())]
    WeightsMissing {
        /// The directory.
        path: PathBuf,
    },
    /// `--weights` for a workspace without a preset.
    #[error(
        "--weights says where a preset's weights are, and this workspace has a template; name them in its arguments"
    )]
    WeightsOfTemplate,
    /// A volume that is not simply a directory.
    #[error("the volume {name:?} is {kind}, which this machine does not have; apply the manifest to a cluster")]
    Volume {
        /// The volume.
        name: String,
        /// What it is.
        kind: &'static str,
    },
    /// An init container.
    #[error(
        "the init container {name:?} needs its image, and images are not run here; apply the manifest to a cluster"
    )]
    InitContainer {
        /// The container.
        name: String,
    },
    /// vLLM is asked for, and not there.
    #[error(
        "the annotation kaito.sh/runtime asks for vLLM, and there is no program {program}; install it (`pip install vllm`), name it \
         with --vllm, or leave the annotation out"
    )]
    VllmMissing {
        /// Where it was looked for.
        program: String,
    },
    /// vLLM is built for GPUs, and there are none.
    #[error(
        "the annotation kaito.sh/runtime asks for vLLM, {} is built for GPUs, and this machine has no GPUs that its drivers know; \
         the annotation kaito.sh/runtime: kaito computes on CPUs, and so does vLLM's build for them",
        program.display()
    )]
    GpusMissing {
        /// vLLM's program.
        program: PathBuf,
    },
    /// Fewer GPUs than ranks.
    #[error(
        "{preset} runs as {ranks} ranks here, one for each of `resource.count` nodes and each with GPUs of its own, and this machine \
         has {gpus} GPU{}; lower resource.count, or apply the manifest to a cluster",
        if *gpus == 1 { "" } else { "s" }
    )]
    RanksDoNotFit {
        /// The preset.
        preset: String,
        /// How many.
        ranks: u32,
        /// GPUs of this machine.
        gpus: u32,
    },
    /// GPUs that models are not divided among.
    #[error("the GPUs of this machine: {message}")]
    Gpus {
        /// What is wrong with them.
        message: String,
    },
    /// vLLM's files of the model.
    #[error("vLLM reads the weights of {preset} from a directory: --weights names it")]
    WeightsUnknown {
        /// The preset.
        preset: String,
    },
    /// Too many local ranks.
    #[error("this machine has no loopback address on which ports {} are free", ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", "))]
    NoAddress {
        /// The ports of a pod.
        ports: Vec<u16>,
    },
    /// The ConfigMap that `inference.config` names.
    #[error("inference.config names the ConfigMap {name:?}; put it into the same file, as a document of its own")]
    ConfigMissing {
        /// The ConfigMap.
        name: String,
    },
    /// The controller would make no pod either.
    #[error("{reason}: {message}")]
    NoPod {
        /// The cause.
        reason: Reason,
        /// The cause, for people.
        message: String,
    },
    /// An adapter that was not fetched.
    #[error("the adapter {name:?} is not there; `kaito serve --adapter {name}=FOLDER` serves it from a folder")]
    Adapter {
        /// The adapter.
        name: String,
    },
    /// An adapter in a volume.
    #[error(
        "the adapter {name:?} comes in a volume, which this machine does not have; apply the manifest to a cluster, or serve the \
         model with `kaito serve --adapter {name}=FOLDER`"
    )]
    AdapterVolume {
        /// The adapter.
        name: String,
    },
    /// A pod without containers.
    #[error("the pod has no containers")]
    NoContainers,
    /// A container without a command: only its image knows what it starts.
    #[error(
        "the container {container:?} has no command; what the image {image} starts is known only inside it: name the program \
         in `command`"
    )]
    NoCommand {
        /// The container.
        container: String,
        /// Its image.
        image: String,
    },
    /// A variable whose value only a cluster knows.
    #[error("{what} of the container {container:?} comes from the cluster; give a `value` to run it here")]
    Environment {
        /// The container.
        container: String,
        /// What comes from there.
        what: String,
    },
    /// The program could not be started.
    #[error("{}: {source}{}", program.display(), if source.kind() == io::ErrorKind::NotFound { "; install it, or have it in PATH" } else { "" })]
    Start {
        /// The program.
        program: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A process ended.
    #[error("{container} {how}")]
    Ended {
        /// The container.
        container: String,
        /// How, and what it said last.
        how: String,
    },
    /// What SIGKILL does not end: it waits for a driver.
    #[error("processes that do not end, although they were killed: {}", processes.join(", "))]
    Left {
        /// Their numbers and names.
        processes: Vec<String>,
    },
    /// The system refused something else.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}
