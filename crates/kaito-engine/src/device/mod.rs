//! What models are computed on.
//!
//! [`open`] opens a [`Device`], which says what it is and what it has before anything is read: memory, page size, precisions, how
//! much a step computes. It packs a model's weights in its own way and makes the [`Executor`] that computes with them.
//! [`Operations`] is what a device of this kind does of a forward pass.
//!
//! A GPU will be one more [`DeviceChoice`], one more arm of [`open`], and one more entry of [`list`].

mod adapted;
mod compute;
pub mod cpu;
mod error;
mod operations;

use std::{fmt, num::NonZeroUsize, path::Path, str::FromStr, sync::Arc};

use kaito_kernels::{Compute, DType, KvDType, Quantization};
use kaito_model::{
    config::{AttentionSpec, ModelConfig},
    weights::ModelWeights,
};

pub(crate) use self::adapted::Adapters;
use self::cpu::CpuDevice;
pub use self::{
    adapted::Adapted,
    compute::{ComputeChoice, Held},
    error::{DeviceError, DeviceErrorKind},
    operations::{BufferKind, Epilogue, Operations},
};
use crate::{
    Error,
    executor::{Executor, ExecutorLimits},
    parallel::Parallel,
};

/// Which device to open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The fastest that is there.
    #[default]
    Auto,
    /// The processor.
    Cpu,
}

impl DeviceChoice {
    /// All there are in this build.
    pub const ALL: [Self; 2] = [Self::Auto, Self::Cpu];

    /// Its name on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cpu => cpu::NAME,
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;

    fn from_str(name: &str) -> Result<Self, DeviceError> {
        Self::ALL.into_iter().find(|choice| choice.name() == name).ok_or_else(|| {
            let cause = "this build computes on cpu only; give auto or cpu";
            DeviceError::new(DeviceErrorKind::Unsupported, name, cause)
        })
    }
}

/// How much a step computes at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepBudget {
    /// Tokens where nobody waits for a next token; bounds how long a step is.
    pub tokens: usize,
    /// Tokens of prompts beside sequences that wait for their next token. A step reads all weights once for some tokens
    /// too, so it takes little longer than a step without them.
    pub tokens_beside_streams: usize,
    /// Draft tokens of speculative decoding.
    pub drafts: usize,
}

/// In which element types a device can hold what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Precisions {
    /// Weights that are not quantised.
    pub weights: &'static [DType],
    /// How products treat activations, what [`ComputeChoice::Auto`] prefers first.
    pub compute: &'static [Compute],
    /// The KV cache.
    pub kv_cache: &'static [KvDType],
    /// Quantised weights.
    pub quantized: &'static [Quantization],
}

/// What a device is and has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceProperties {
    /// Its name on a command line.
    pub name: String,
    /// What it is sold as, where the system tells.
    pub model: Option<String>,
    /// What the kernels use of it: an instruction set of a processor, say.
    pub instruction_set: &'static str,
    /// Cores that this process may use.
    pub cores: usize,
    /// Threads of the host that compute.
    pub threads: usize,
    /// Tokens in a page of the KV cache.
    pub page_size: usize,
    /// How much a step computes at most where nobody says otherwise.
    pub step_budget: StepBudget,
    /// In which element types it can hold what.
    pub precisions: Precisions,
}

impl DeviceProperties {
    /// Checks that the device can hold a model as it is asked for.
    ///
    /// # Errors
    /// [`DeviceErrorKind::Unsupported`], with what it has instead.
    pub(crate) fn check(&self, packing: &Packing) -> Result<(), DeviceError> {
        let Precisions { weights, kv_cache, quantized, .. } = self.precisions;
        self.check_one("weights", packing.dtype, weights)?;
        self.check_one("quantised weights", packing.quantization, quantized)?;
        self.check_one("a KV cache", packing.kv_dtype, kv_cache)
    }

    fn check_one<T: PartialEq + fmt::Display>(
        &self,
        what: &str,
        asked: Option<T>,
        has: &[T],
    ) -> Result<(), DeviceError> {
        match asked.filter(|asked| !has.contains(asked)) {
            None => Ok(()),
            Some(asked) => {
                let has: Vec<String> = has.iter().map(T::to_string).collect();
                let has = if has.is_empty() { "none".to_owned() } else { has.join(", ") };
                let cause = format!("{what} in {asked} can't be used here; there is {has}");
                Err(DeviceError::new(DeviceErrorKind::Unsupported, &self.name, cause))
            }
        }
    }
}

/// A device's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// All of it.
    pub total: u64,
    /// What this process can still take.
    pub free: u64,
}

/// How a model's weights are packed, and what its KV cache holds.
#[derive(Debug, Clone, Copy)]
pub struct Packing<'a> {
    /// Element type of those that are not quantised.
    pub dtype: Option<DType>,
    /// How products are to treat activations.
    pub compute: ComputeChoice,
    /// Whether and how the matrices of the layers are quantised.
    pub quantization: Option<Quantization>,
    /// Element type of the KV cache, what suits the device and the rest of this where it is `None`.
    pub kv_dtype: Option<KvDType>,
    /// The attention of the layers, which says where values are, that matter more.
    pub attention: AttentionSpec,
    /// Folder in which quantised weights are kept for the next start.
    pub cache: Option<&'a Path>,
    /// The model's family, for the names of files in that folder.
    pub family: &'static str,
}

/// What packing came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    /// Element type of the weights that are not quantised.
    pub dtype: DType,
    /// How products treat activations.
    pub compute: Compute,
    /// Element type of the KV cache.
    pub kv_dtype: KvDType,
    /// Whether attention may round queries and the exponentials of scores to bf16: products round activations, and nobody asked for exact ones.
    pub rounds_attention: bool,
}

impl Packed {
    /// Everything in f32: narrower weights are widened as they are used.
    pub const F32: Self =
        Self { dtype: DType::F32, compute: Compute::Exact, kv_dtype: KvDType::F32, rounds_attention: false };
}

/// An opened device.
pub trait Device: Send {
    /// What it is and has.
    fn properties(&self) -> &DeviceProperties;

    /// Its memory. Once weights are packed, what they come to take counts as taken, though it may not be yet.
    fn memory(&self) -> DeviceMemory;

    /// Bytes for a KV cache where nobody says how many: a share of the free memory.
    fn kv_cache_memory(&self) -> u64;

    /// Threads of the host beside the device, for work that is not the device's.
    fn host_threads(&self) -> Arc<dyn Parallel>;

    /// Gives a model's weights the form that the device computes with, and brings them near. `progress` hears the part that is done, from 0 to 1.
    ///
    /// # Errors
    /// Weights that can't be packed so.
    fn pack(
        &mut self,
        weights: &mut ModelWeights,
        packing: &Packing,
        progress: &(dyn Fn(f32) + Sync),
    ) -> Result<Packed, Error>;

    /// An executor for a model whose weights this device has packed.
    ///
    /// # Errors
    /// Too little memory, or weights of a form that the device can't compute with.
    fn executor(
        self: Box<Self>,
        config: ModelConfig,
        weights: ModelWeights,
        limits: ExecutorLimits,
    ) -> Result<Box<dyn Executor>, DeviceError>;
}

/// Opens a device. `threads` threads of the host compute, one for each core where that is `None`.
///
/// # Errors
/// A device that is not there or does not work.
pub fn open(choice: DeviceChoice, threads: Option<NonZeroUsize>) -> Result<Box<dyn Device>, DeviceError> {
    match choice {
        DeviceChoice::Auto | DeviceChoice::Cpu => Ok(Box::new(CpuDevice::open(threads))),
    }
}

/// The devices of this machine, those that `auto` takes first coming first. None is opened.
pub fn list() -> Vec<(DeviceProperties, DeviceMemory)> {
    vec![(cpu::properties(None), cpu::memory())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_chosen_by_name() {
        for choice in DeviceChoice::ALL {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        let error = "cuda:1".parse::<DeviceChoice>().unwrap_err();
        assert_eq!(error.kind, DeviceErrorKind::Unsupported);
        assert_eq!(error.to_string(), "cuda:1: this build computes on cpu only; give auto or cpu");
    }

    #[test]
    fn what_a_device_does_not_have_is_refused_by_name() {
        let mut properties = cpu::properties(None);
        let mut packing = Packing {
            dtype: Some(DType::F16),
            compute: ComputeChoice::Auto,
            quantization: Some(Quantization::Int4),
            kv_dtype: Some(KvDType::Int8),
            attention: AttentionSpec::new(4, 2, 8),
            cache: None,
            family: "llama",
        };
        assert_eq!(properties.check(&packing), Ok(()));
        properties.name = "small:0".to_owned();
        properties.precisions = Precisions {
            weights: &[DType::Bf16, DType::F32],
            kv_cache: &[KvDType::F32],
            quantized: &[],
            ..properties.precisions
        };
        let refusal = |packing: &Packing| properties.check(packing).unwrap_err().to_string();
        assert_eq!(refusal(&packing), "small:0: weights in f16 can't be used here; there is bf16, f32");
        packing.dtype = None;
        assert_eq!(refusal(&packing), "small:0: quantised weights in int4 can't be used here; there is none");
        packing.quantization = None;
        assert_eq!(refusal(&packing), "small:0: a KV cache in int8 can't be used here; there is f32");
    }

    #[test]
    fn an_open_device_knows_what_packed_weights_leave() {
        let device = open(DeviceChoice::Auto, NonZeroUsize::new(3)).unwrap();
        let properties = device.properties();
        assert_eq!((properties.name.as_str(), properties.threads), ("cpu", 3));
        let DeviceMemory { total, free } = device.memory();
        assert!(0 < free && free <= total, "{free} of {total}");
        assert!(device.kv_cache_memory() < free);
    }
}
