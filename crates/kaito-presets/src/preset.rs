use std::time::Duration;

use kaito_spec::DType;
use serde::{Serialize, Serializer};

use crate::{
    family::Dialect,
    shape::{Shape, text},
};

/// Bytes of one gibibyte.
pub const GIB: u64 = 1 << 30;

/// A model of the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Preset {
    /// The canonical name, hyphenated: `llama-2-7b-chat`.
    pub name: &'static str,
    /// Other names in common use. [`crate::find`] accepts more spellings of each: it ignores case, `_` and `-`.
    pub aliases: &'static [&'static str],
    /// Repository of the published weights on the hub, `organisation/name`.
    pub hub_id: &'static str,
    /// Repository of the same model in GGUF files, one for each precision, where one is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gguf: Option<&'static str>,
    /// What the model was tuned for.
    pub kind: PresetKind,
    /// Element type in which the weights are published.
    #[serde(serialize_with = "text")]
    pub dtype: DType,
    /// The published dimensions.
    pub shape: Shape,
    /// What a cluster must offer to run it.
    pub workload: Workload,
}

impl Preset {
    /// In which form the model's documentation sends requests to it.
    pub fn dialect(&self) -> Dialect {
        match self.kind {
            PresetKind::Completion => self.shape.family.completion_dialect,
            PresetKind::Chat => self.shape.family.chat_dialect,
        }
    }

    /// Path of the route of OpenAI's API for it.
    pub fn openai_endpoint(&self) -> &'static str {
        match self.kind {
            PresetKind::Completion => "/v1/completions",
            PresetKind::Chat => "/v1/chat/completions",
        }
    }

    /// Path of the HTTP route that the model's documentation names for it.
    pub fn endpoint(&self) -> &'static str {
        self.dialect().endpoint()
    }
}

/// What a model was tuned for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PresetKind {
    /// Continues a text.
    Completion,
    /// Follows instructions or holds a dialogue.
    Chat,
}

/// What a cluster must offer to run a preset. Sizes are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Workload {
    /// Kubernetes workload when one node is enough for all ranks.
    pub kind: WorkloadKind,
    /// Whether a ready image may be published under the model's licence.
    pub image: ImageAccess,
    /// Disk for image and weights.
    pub disk: u64,
    /// GPUs, all ranks together.
    pub gpus: u32,
    /// GPU memory, all GPUs together.
    pub gpu_memory: u64,
    /// GPU memory that every single GPU must have; `None` where layers may be divided unevenly.
    pub gpu_memory_each: Option<u64>,
    /// Tensor-parallel ranks: the number of shards in which Meta publishes the checkpoint, else 1.
    pub ranks: u32,
    /// How long a pod may take from start to ready.
    #[serde(rename = "ready_within_seconds", serialize_with = "seconds")]
    pub ready_within: Duration,
}

fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(duration.as_secs())
}

/// Kubernetes workload of a preset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum WorkloadKind {
    /// One pod stands for all: no rank needs a stable name.
    Deployment,
    /// Tensor-parallel ranks address each other by pod name.
    StatefulSet,
}

/// Whether a ready image may be published under the model's licence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageAccess {
    /// Anyone may pull it.
    Public,
    /// Users build and keep their own.
    Private,
}

#[cfg(test)]
mod tests {
    use crate::{PRESETS, find};

    #[test]
    fn there_are_fifteen_and_no_two_share_a_name_or_a_repository() {
        let names: std::collections::BTreeSet<_> = PRESETS.iter().map(|preset| preset.name).collect();
        let repositories: std::collections::BTreeSet<_> =
            PRESETS.iter().flat_map(|preset| [Some(preset.hub_id), preset.gguf]).flatten().collect();
        assert_eq!((PRESETS.len(), names.len(), repositories.len()), (15, 15, 16));
    }

    #[test]
    fn endpoints_are_the_documented_ones() {
        for (name, endpoint) in [
            ("llama-2-7b", "/generate"),
            ("llama-2-7b-chat", "/chat"),
            ("falcon-7b", "/chat"),
            ("mistral-7b", "/chat"),
            ("phi-3-mini-4k-instruct", "/chat"),
            ("smollm2", "/chat"),
        ] {
            assert_eq!(find(name).unwrap().endpoint(), endpoint, "{name}");
        }
    }

    /// The published 16-bit weights must fit the GPU memory that the table asks for.
    #[test]
    fn every_workload_holds_its_weights() {
        for preset in PRESETS {
            let weights = preset.shape.weights_bytes(preset.dtype);
            assert!(weights < preset.workload.gpu_memory, "{}: {weights} bytes of weights", preset.name);
            assert!(weights < preset.workload.disk, "{}: {weights} bytes of weights", preset.name);
        }
    }
}
