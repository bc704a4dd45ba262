//! The processor as a device.

mod buffer;
mod linear;
mod low_rank;
mod memory;
mod operations;
mod pack;

use std::{fs, num::NonZeroUsize, sync::Arc, thread};

use kaito_kernels::{Compute, DType, KernelLevel, KvDType, Quantization, ThreadPool, instruction_set};
use kaito_model::{config::ModelConfig, weights::ModelWeights};

pub use self::{memory::memory, operations::CpuOperations};
use super::{Device, DeviceError, DeviceMemory, DeviceProperties, Packed, Packing, Precisions, StepBudget};
use crate::{
    Error,
    decoder::Decoder,
    executor::{Executor, ExecutorLimits},
    parallel::Parallel,
};

/// The device's name.
pub const NAME: &str = "cpu";

/// Tokens in a page: small enough that a short answer wastes little, large enough that a page is worth a loop.
pub const PAGE_SIZE: usize = 16;

/// Share of the memory beside the weights that the KV cache may take where nobody says how much.
const KV_CACHE_SHARE: f64 = 0.6;

/// More drafts would cost what they bring, since a step of some twenty tokens is bound by arithmetic.
const STEP_BUDGET: StepBudget = StepBudget { tokens: 256, tokens_beside_streams: 32, drafts: 16 };

/// Tile registers multiply some hundred tokens in the time in which vectors multiply twenty, so that more tokens share a reading of the
/// weights.
const STEP_BUDGET_OF_TILES: StepBudget = StepBudget { tokens: 512, tokens_beside_streams: 128, ..STEP_BUDGET };

/// What this processor is and has, with `threads` threads that compute, one for each core where that is `None`.
pub fn properties(threads: Option<NonZeroUsize>) -> DeviceProperties {
    let cores = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    DeviceProperties {
        name: NAME.to_owned(),
        model: model(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
        instruction_set: instruction_set(),
        cores: cores.get(),
        threads: threads.unwrap_or(cores).get(),
        page_size: PAGE_SIZE,
        step_budget: if KernelLevel::chosen() == KernelLevel::Amx { STEP_BUDGET_OF_TILES } else { STEP_BUDGET },
        precisions: Precisions {
            weights: &[DType::F32, DType::Bf16, DType::F16],
            compute: match (Compute::has_fast_bf16(), Compute::has_fast_int8()) {
                (true, true) => &[Compute::Bf16, Compute::Int8, Compute::Exact],
                (true, false) => &[Compute::Bf16, Compute::Exact, Compute::Int8],
                (false, true) => &[Compute::Int8, Compute::Exact, Compute::Bf16],
                (false, false) => &[Compute::Exact, Compute::Bf16, Compute::Int8],
            },
            kv_cache: &[KvDType::F32, KvDType::Bf16, KvDType::Int8],
            quantized: &[Quantization::Int8, Quantization::Int4],
        },
    }
}

/// The processor's name in the text of `/proc/cpuinfo`.
fn model(cpuinfo: &str) -> Option<String> {
    let name = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'))?.1;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

/// The processor, with threads of its own.
pub struct CpuDevice {
    properties: DeviceProperties,
    threads: Arc<ThreadPool>,
    /// Memory beside the packed weights, once there are some.
    left: Option<DeviceMemory>,
    /// What packing the weights came to.
    packed: Packed,
}

impl CpuDevice {
    /// Starts `threads` threads, the calling one included; one for each core where that is `None`.
    pub fn open(threads: Option<NonZeroUsize>) -> Self {
        let properties = properties(threads);
        let threads = NonZeroUsize::new(properties.threads).unwrap_or(NonZeroUsize::MIN);
        Self { properties, threads: Arc::new(ThreadPool::new(threads)), left: None, packed: Packed::F32 }
    }
}

impl Device for CpuDevice {
    fn properties(&self) -> &DeviceProperties {
        &self.properties
    }

    fn memory(&self) -> DeviceMemory {
        self.left.unwrap_or_else(memory)
    }

    fn kv_cache_memory(&self) -> u64 {
        (self.memory().free as f64 * KV_CACHE_SHARE) as u64
    }

    fn host_threads(&self) -> Arc<dyn Parallel> {
        self.threads.clone()
    }

    fn pack(
        &mut self,
        weights: &mut ModelWeights,
        packing: &Packing,
        progress: &(dyn Fn(f32) + Sync),
    ) -> Result<Packed, Error> {
        // Asked before the weights are mapped in, which makes them memory in use.
        let DeviceMemory { total, free } = memory();
        let packed = pack::pack(weights, packing, &self.threads, free, progress)?;
        self.left = Some(DeviceMemory { total, free: free.saturating_sub(packed.mapped_bytes) });
        self.packed = packed.packed;
        Ok(self.packed)
    }

    fn executor(
        self: Box<Self>,
        config: ModelConfig,
        weights: ModelWeights,
        limits: ExecutorLimits,
    ) -> Result<Box<dyn Executor>, DeviceError> {
        let operations = CpuOperations::new(self.threads, self.packed);
        Ok(Box::new(Decoder::new(operations, config, weights, limits)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_has_the_name_that_the_system_gives_it() {
        let text = "processor\t: 0\nmodel\t\t: 106\nmodel name\t: Intel(R) Xeon(R) @ 2.60GHz\nmodel name\t: other\n";
        assert_eq!(model(text).as_deref(), Some("Intel(R) Xeon(R) @ 2.60GHz"));
        assert_eq!(model("model name\t: \n"), None);
        assert_eq!(model("CPU part\t: 0xd0c\n"), None);
    }
}
