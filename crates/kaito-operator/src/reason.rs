//! The reasons that conditions and events give: one list, which the table in docs/kubernetes.md is checked against.
//!
//! What Kubernetes, Karpenter and clouds give as reasons of their own stays text; conditions quote it in their messages.

use crate::named::named;

named! {
    /// The cause of a condition's status or of an event, for programs.
    pub enum Reason {
        /// As many nodes as asked for match and are ready.
        NodesReady,
        /// Too few nodes match.
        NodesMissing,
        /// Every node claim became a ready node.
        NodeClaimsReady,
        /// Karpenter works on node claims.
        NodeClaimsPending,
        /// Karpenter cannot fulfil a node claim, for a cause that has no reason of its own here.
        NodeClaimFailed,
        /// Another object has the name that a node claim would get.
        NodeClaimNameTaken,
        /// The node class that node claims refer to is not ready.
        NodeClassNotReady,
        /// The cloud has no machine of the instance type.
        InsufficientCapacity,
        /// A quota, of the cloud or of the namespace, is used up.
        QuotaExceeded,
        /// The cluster does not have Karpenter's kinds.
        KarpenterMissing,

        /// The pods are created once the nodes are ready.
        WaitingForNodes,
        /// The pods do not exist yet, or wait for the scheduler.
        PodsPending,
        /// Images are pulled, init containers run.
        PodsStarting,
        /// An init container copies or downloads the weights.
        WeightsFetching,
        /// The server loads the model.
        ModelLoading,
        /// An engine loads the model for longer than that may take.
        ModelLoadingTooLong,
        /// A rank has no pod, or its pod no node.
        RankMissing,
        /// A rank's node has gone, or is not ready.
        RankLost,
        /// Every pod answers its health check.
        InferenceReady,
        /// A server that was ready no longer is.
        ServerUnhealthy,
        /// An image cannot be pulled.
        ImagePullError,
        /// A container cannot be created from what its pod says.
        ContainerConfigError,
        /// An engine ran out of GPU memory.
        GpuOutOfMemory,
        /// The driver of the node's GPUs does not suit the engine.
        GpuDriverUnsuitable,
        /// A GPU failed.
        GpuLost,
        /// An engine ran out of shared memory.
        SharedMemoryExhausted,
        /// The engine's version does not know the model.
        ModelUnsupported,
        /// The engine cannot read the weights.
        WeightsUnreadable,
        /// The engine refuses a flag that the ConfigMap gives.
        FlagsRefused,
        /// A rank's engine ended, since another one does not answer.
        RankUnreachable,
        /// A container ran out of memory.
        ContainerOomKilled = "ContainerOOMKilled",
        /// A container ends again and again.
        ContainerCrashLoopBackOff,
        /// The kubelet evicted a pod.
        PodEvicted,
        /// A pod has ended and is not restarted.
        PodFailed,
        /// The scheduler finds no node for a pod.
        Unschedulable,
        /// The API server refuses the pods, for another cause than a quota.
        PodsForbidden,
        /// The API server refuses an object.
        ApplyRefused,
        /// The cluster does not support image volumes, and the workspace asks for one in its template or for an adapter.
        ImageVolumesUnsupported,

        /// No preset has the name in `inference.preset.name`.
        PresetUnknown,
        /// No runtime has the name in the annotation `kaito.sh/runtime`.
        RuntimeUnknown,
        /// A private preset without an image.
        ImageMissing,
        /// An image of weights without an image of a server.
        ServerImageMissing,
        /// A public preset, and the installation names no registry.
        RegistryMissing,
        /// The claim for the weights does not exist, or not all pods can use it.
        WeightsClaimUnsuitable,
        /// There is no ConfigMap of the name in `inference.config`.
        ConfigMissing,
        /// The ConfigMap cannot be read, or sets a flag that is not the user's to set.
        ConfigInvalid,
        /// The ConfigMap asks for what the model or the nodes do not have.
        ConfigDoesNotFit,
        /// An adapter without a valid name or source.
        AdapterInvalid,
        /// Neither preset nor template.
        InferenceEmpty,
        /// A model over several nodes, which the runtime `kaito` does not serve.
        RanksUnsupported,
        /// vLLM on nodes without GPUs.
        GpusMissing,
        /// The weights leave no GPU memory for a KV cache.
        GpuMemoryTooSmall,
        /// A field has the wrong type, or is missing.
        ManifestUnreadable,

        /// The server loads the adapters.
        AdaptersLoaded,
        /// The server does not apply adapters to this model.
        AdaptersNotApplied,
        /// The server applies adapters at full strength only.
        AdapterStrengthIgnored,
        /// All of the ConfigMap has an effect.
        FlagsApplied,
        /// Some of the ConfigMap has no effect.
        FlagsIgnored,
        /// The pods are to be replaced because the installation changed, and wait for their rollout.
        RolloutDue,
        /// That rollout is under way.
        RolloutUnderWay,
        /// Nodes and model are ready.
        WorkspaceReady,
        /// The workspace is being deleted.
        Deleting,

        /// Objects were created; an event only, as those that follow.
        Created,
        /// Objects were updated.
        Updated,
        /// Fields that somebody else had changed were set back.
        Repaired,
        /// Objects were deleted.
        Deleted,
        /// Pods of several ranks were deleted, so that pods of a changed template take their places.
        PodsReplaced,
        /// The workspace is gone, and node claims of it are left.
        NodeClaimsLeft,

        /// `kaito up`: this machine is the node. Those that follow are of `kaito up` too.
        ThisMachine,
        /// The process ended.
        ContainerTerminated,
        /// The process was asked to end.
        Terminating,
        /// The process was killed.
        Killed,
    }
}

/// Why something that a workspace asks for cannot be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The cause, for programs.
    pub reason: Reason,
    /// The cause and what to do, for people.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::workspace::ConditionType;

    const GUIDE: &str = include_str!("../../../docs/kubernetes.md");

    /// The words in backquotes of the first column of the table with this head.
    fn first_column(head: &str) -> BTreeSet<&'static str> {
        let (_, table) = GUIDE.split_once(head).unwrap();
        let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
        rows.flat_map(|row| row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2)).collect()
    }

    #[test]
    fn the_guide_has_every_reason_and_no_other() {
        let reasons = Reason::ALL.iter().map(|reason| reason.as_str()).collect::<BTreeSet<_>>();
        assert_eq!(first_column("| reason | cause | what to do |"), reasons);
        assert!(reasons.len() > 30, "{reasons:?}");
    }

    #[test]
    fn the_guide_has_every_condition_and_no_other() {
        let types = ConditionType::ALL.iter().map(|type_| type_.as_str()).collect::<BTreeSet<_>>();
        assert_eq!(first_column("| condition | what it says |"), types);
    }

    /// By the schema of `metav1.Condition` in Kubernetes' API reference.
    #[test]
    fn the_api_server_takes_every_reason() {
        for reason in Reason::ALL {
            let name = reason.as_str();
            assert!(name.len() <= 1024 && name.starts_with(|c: char| c.is_ascii_alphabetic()), "{name}");
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric()), "{name}");
        }
    }
}
