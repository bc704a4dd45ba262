//! How a model is spread over pods and GPUs: the types that runtimes, decisions and admission share.

use std::fmt;

use k8s_openapi::api::core::v1::PodSpec;
use kaito_presets::{GpuVendor, Preset, Shape, WorkloadKind};

use crate::workspace::Workspace;

/// How a model is spread over pods and GPUs; computed once a decision.
///
/// A workload's annotation `kaito.sh/made-from` holds a hash of this type's `Debug` text. A field that is renamed changes the
/// hash, and controllers of the same version would restart models for it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// The object that makes the pods.
    pub kind: WorkloadKind,
    /// One for each node.
    pub pods: u32,
    /// GPUs of each pod: what the model needs and a node has; 0 where CPUs compute.
    pub gpus: u32,
    /// Who makes the GPUs of the nodes.
    pub vendor: GpuVendor,
    /// How the GPUs divide the model among them.
    pub division: Division,
    /// What the nodes have, if known.
    pub hardware: Option<Hardware>,
}

// By hand, since workloads of NVIDIA's GPUs hold a hash of a text without the vendor.
impl fmt::Debug for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, pods, gpus, vendor, division, hardware } = self;
        let mut text = f.debug_struct("Layout");
        text.field("kind", kind).field("pods", pods).field("gpus", gpus);
        if *vendor != GpuVendor::default() {
            text.field("vendor", vendor);
        }
        text.field("division", division).field("hardware", hardware).finish()
    }
}

impl Layout {
    /// Whether pods are ranks of one model. This holds for a StatefulSet of one pod too, so that its address stays the same
    /// when it has more.
    pub fn has_ranks(&self) -> bool {
        self.kind == WorkloadKind::StatefulSet
    }
}

/// How a model is divided among GPUs: every layer among `tensor` GPUs (tensor parallelism), the layers among `pipeline` groups
/// of those (pipeline parallelism), and the whole of it `data` times (data parallelism).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Division {
    /// GPUs that share each layer.
    pub tensor: u32,
    /// Groups of layers, one after the other.
    pub pipeline: u32,
    /// Copies of the model.
    pub data: u32,
}

impl Division {
    /// The default: each layer among the GPUs of a pod, the layers among the pods.
    pub fn usual(gpus: u32, pods: u32) -> Self {
        Self { tensor: gpus, pipeline: pods, data: 1 }
    }

    /// GPUs of all pods together.
    pub fn gpus(self) -> u64 {
        u64::from(self.tensor) * u64::from(self.pipeline) * u64::from(self.data)
    }
}

/// What a node of an instance type has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hardware {
    /// GPUs of the node.
    pub gpus: u32,
    /// Bytes of memory of each GPU that a program can have.
    pub gpu_memory: u64,
    /// Whether the GPUs multiply bf16.
    pub has_bf16: bool,
}

/// The object that makes the pods of a preset on that many nodes: checkpoints of Meta's are cut for several.
pub fn workload_kind(preset: &Preset, pods: u32) -> WorkloadKind {
    let is_shardable = preset.shape.family.published_by_meta;
    if is_shardable && pods > 1 { WorkloadKind::StatefulSet } else { preset.workload.kind }
}

/// How many ranks serve a workspace's preset together, if it is more than one.
pub fn ranks(workspace: &Workspace, preset: &Preset) -> Option<u32> {
    let pods = u32::try_from(workspace.resource.count).ok().filter(|pods| *pods > 1)?;
    (workload_kind(preset, pods) == WorkloadKind::StatefulSet).then_some(pods)
}

/// Whether that many GPUs can share each layer evenly: its attention heads, and the rows of its MLP.
pub fn can_share(preset: &Preset, gpus: u32) -> bool {
    let Shape { num_heads, num_kv_heads, intermediate_size, .. } = preset.shape;
    let gpus = gpus as usize;
    num_heads.is_multiple_of(gpus)
        && intermediate_size.is_multiple_of(gpus)
        // Where there are more GPUs than KV heads, vLLM gives several GPUs a copy of the same head.
        && (num_kv_heads.is_multiple_of(gpus) || gpus.is_multiple_of(num_kv_heads))
}

/// GPUs that the containers of a pod hold together.
pub fn gpus_of(pod: &PodSpec) -> u32 {
    GpuVendor::ALL.iter().map(|vendor| held(pod, *vendor)).fold(0, u32::saturating_add)
}

/// Who makes the GPUs that a pod holds; the usual vendor where it holds none.
pub fn vendor_of(pod: &PodSpec) -> GpuVendor {
    GpuVendor::ALL.into_iter().find(|vendor| held(pod, *vendor) > 0).unwrap_or_default()
}

fn held(pod: &PodSpec, vendor: GpuVendor) -> u32 {
    let limits = pod.containers.iter().filter_map(|container| container.resources.as_ref()?.limits.as_ref());
    let counts = limits.filter_map(|limits| limits.get(vendor.resource())?.0.parse::<u32>().ok());
    counts.fold(0, u32::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text that workloads in clusters hold a hash of.
    #[test]
    fn the_text_of_a_layout_stays_what_workloads_were_made_from() {
        let layout = Layout {
            kind: WorkloadKind::StatefulSet,
            pods: 2,
            gpus: 4,
            vendor: GpuVendor::Nvidia,
            division: Division::usual(4, 2),
            hardware: Some(Hardware { gpus: 8, gpu_memory: 5, has_bf16: true }),
        };
        assert_eq!(
            format!("{layout:?}"),
            "Layout { kind: StatefulSet, pods: 2, gpus: 4, division: Division { tensor: 4, pipeline: 2, data: 1 }, hardware: \
             Some(Hardware { gpus: 8, gpu_memory: 5, has_bf16: true }) }"
        );
        let of_another = Layout { vendor: GpuVendor::Amd, ..layout };
        assert_eq!(format!("{of_another:?}"), format!("{layout:?}").replace("gpus: 4,", "gpus: 4, vendor: Amd,"));
    }
}
