//! The kinds of causes: how bad each is, its reason, and what to do about it.

use crate::reason::Reason;

/// Kinds of causes, the worst first: where pods have different ones, the status names the worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CauseKind {
    /// The namespace's quota allows no more pods.
    QuotaExceeded,
    /// The API server refuses the pods for another reason.
    PodsForbidden,
    /// A rank's node has gone, or is not ready.
    RankLost,
    /// An image cannot be pulled.
    ImagePullError,
    /// A container cannot be created from what the pod says.
    ContainerConfigError,
    /// A GPU failed.
    GpuLost,
    /// The GPU's driver does not suit the engine.
    GpuDriverUnsuitable,
    /// The engine sees no GPU.
    GpusMissing,
    /// The engine ran out of GPU memory.
    GpuOutOfMemory,
    /// The GPUs have too little memory for the KV cache of a sequence.
    GpuMemoryTooSmall,
    /// The engine ran out of shared memory.
    SharedMemoryExhausted,
    /// The engine's version does not know the model.
    ModelUnsupported,
    /// The engine cannot read the weights.
    WeightsUnreadable,
    /// The engine refuses a flag.
    FlagsRefused,
    /// A container ran out of memory.
    ContainerOomKilled,
    /// A container ends again and again.
    ContainerCrashLoopBackOff,
    /// The kubelet evicted the pod.
    PodEvicted,
    /// The pod has ended and is not restarted.
    PodFailed,
    /// A rank's engine ended, since another one does not answer.
    RankUnreachable,
    /// The scheduler finds no node for a rank.
    RankUnschedulable,
    /// The scheduler finds no node for the pod.
    Unschedulable,
    /// A rank has no pod, though others have.
    RankMissing,
    /// The server answered before and does not now.
    ServerUnhealthy,
    /// The engine loads the model for longer than that may take.
    ModelLoadingTooLong,
    /// An init container copies or downloads the weights.
    WeightsFetching,
    /// The server loads the model.
    ModelLoading,
    /// Images are pulled, init containers run.
    PodsStarting,
    /// The pods do not exist yet, or wait for the scheduler.
    PodsPending,
}

impl CauseKind {
    /// The reason of a condition with this cause.
    pub fn reason(self) -> Reason {
        match self {
            Self::QuotaExceeded => Reason::QuotaExceeded,
            Self::PodsForbidden => Reason::PodsForbidden,
            Self::RankLost => Reason::RankLost,
            Self::ImagePullError => Reason::ImagePullError,
            Self::ContainerConfigError => Reason::ContainerConfigError,
            Self::GpuLost => Reason::GpuLost,
            Self::GpuDriverUnsuitable => Reason::GpuDriverUnsuitable,
            Self::GpusMissing => Reason::GpusMissing,
            Self::GpuOutOfMemory => Reason::GpuOutOfMemory,
            Self::GpuMemoryTooSmall => Reason::GpuMemoryTooSmall,
            Self::SharedMemoryExhausted => Reason::SharedMemoryExhausted,
            Self::ModelUnsupported => Reason::ModelUnsupported,
            Self::WeightsUnreadable => Reason::WeightsUnreadable,
            Self::FlagsRefused => Reason::FlagsRefused,
            Self::ContainerOomKilled => Reason::ContainerOomKilled,
            Self::ContainerCrashLoopBackOff => Reason::ContainerCrashLoopBackOff,
            Self::PodEvicted => Reason::PodEvicted,
            Self::PodFailed => Reason::PodFailed,
            Self::RankUnreachable => Reason::RankUnreachable,
            Self::Unschedulable => Reason::Unschedulable,
            Self::RankUnschedulable | Self::RankMissing => Reason::RankMissing,
            Self::ServerUnhealthy => Reason::ServerUnhealthy,
            Self::ModelLoadingTooLong => Reason::ModelLoadingTooLong,
            Self::WeightsFetching => Reason::WeightsFetching,
            Self::ModelLoading => Reason::ModelLoading,
            Self::PodsStarting => Reason::PodsStarting,
            Self::PodsPending => Reason::PodsPending,
        }
    }

    /// Whether something is wrong, rather than not ready yet.
    pub fn is_failure(self) -> bool {
        !matches!(
            self,
            Self::RankMissing | Self::WeightsFetching | Self::ModelLoading | Self::PodsStarting | Self::PodsPending
        )
    }

    /// What to do about it.
    pub fn next_step(self) -> &'static str {
        match self {
            Self::QuotaExceeded => "Raise the namespace's ResourceQuota or free some of it",
            Self::PodsForbidden => "See what the namespace admits",
            Self::RankLost => "Get the node ready, or delete it: only then is the rank started elsewhere",
            Self::ImagePullError => {
                "Check the image's name and tag; a private registry needs inference.preset.presetOptions.imagePullSecrets"
            }
            Self::ContainerConfigError => "See that the ConfigMaps and Secrets that the pod names exist",
            Self::GpuLost => "Replace the node; the log of its kernel says what its GPU has",
            Self::GpuDriverUnsuitable => {
                "Install a driver on the nodes that suits the image, or give the controller an image that suits their driver \
                 (--vllm-image, --vllm-rocm-image)"
            }
            Self::GpusMissing => "See that the driver and the device plugin of the node run",
            Self::GpuOutOfMemory => {
                "Use more or larger GPUs, or a shorter max-model-len or fewer max-num-seqs by inference.config, and see that \
                 nobody else uses these GPUs"
            }
            Self::GpuMemoryTooSmall => "Use more or larger GPUs, or a shorter max-model-len by inference.config",
            Self::SharedMemoryExhausted => "Delete the pod: what engines have left in /dev/shm goes with it",
            Self::ModelUnsupported => {
                "Give the controller an image of vLLM that knows the model (--vllm-image), or use the runtime kaito"
            }
            Self::WeightsUnreadable => "See that the weights are whole, and in the hub's format",
            Self::FlagsRefused => "Correct the flag in the ConfigMap that inference.config names",
            Self::RankUnreachable => {
                "See what the other ranks' engines say, and that nothing between the nodes keeps them apart"
            }
            Self::ContainerOomKilled => "Use a larger instance type, or a shorter context by inference.config",
            Self::ContainerCrashLoopBackOff => "See kubectl logs --previous of the pod",
            Self::PodEvicted => "Free resources of the node, or use a larger instance type",
            Self::PodFailed => "See kubectl describe pod",
            Self::Unschedulable | Self::RankUnschedulable => {
                "Free a node that resource.labelSelector matches, or add one"
            }
            Self::ServerUnhealthy => "See kubectl logs of the pod",
            Self::ModelLoadingTooLong => {
                "The server's /healthz says how far it has come, and kubectl logs of the container engine the rest"
            }
            Self::RankMissing | Self::WeightsFetching | Self::ModelLoading | Self::PodsStarting | Self::PodsPending => {
                ""
            }
        }
    }
}
