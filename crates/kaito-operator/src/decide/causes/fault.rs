//! Why engines end, by what they say: phrases of vLLM, torch, CUDA, ROCm, NCCL and gloo.

/// Why an engine ended, as far as its words tell. What decides more stands first: where several match, the first is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum EngineFault {
    /// The GPU's driver is too old for the engine's build, or does not fit to its libraries or to this GPU.
    GpuDriver,
    /// There is no GPU that the engine sees.
    GpuMissing,
    /// A GPU failed: it left the bus, or its memory has errors.
    GpuLost,
    /// The memory of the GPU does not suffice for the weights.
    OutOfGpuMemory,
    /// It does not suffice for the KV cache of one sequence of the longest length.
    KvCacheTooSmall,
    /// Memory of the machine or the container ran out.
    OutOfMemory,
    /// Shared memory (`/dev/shm`) ran out.
    OutOfSharedMemory,
    /// The engine's version does not know the model.
    ModelUnsupported,
    /// The weights are missing or damaged.
    WeightsUnreadable,
    /// A flag or a value of one was refused.
    ArgumentRefused,
    /// Somebody else listens where the engine is to.
    PortTaken,
    /// Another rank does not answer, or was lost.
    RankUnreachable,
}

/// Each fault with the phrases that tell of it, without regard to case.
const PHRASES: [(EngineFault, &[&str]); 12] = [
    (
        EngineFault::GpuDriver,
        &[
            "driver version is insufficient",
            "driver on your system is too old",
            "driver/library version mismatch",
            "no kernel image is available",
            "forward compatibility was attempted on non supported hw",
            "system not yet initialized",
            "system has unsupported display driver",
            "ptx was compiled with an unsupported toolchain",
            "invalid device function",
            "hiperrornobinaryforgpu",
            "unable to find code object for all current devices",
            "rock module is not loaded",
            "gpu is not supported by this build",
        ],
    ),
    (
        EngineFault::GpuMissing,
        &[
            "no cuda gpus are available",
            "no hip gpus are available",
            "no cuda-capable device",
            "no rocm-capable device",
            "found no nvidia driver",
            "hiperrornodevice",
            "libcuda.so.1: cannot open shared object file",
            "failed to infer device type",
            "unable to open /dev/kfd",
        ],
    ),
    (
        EngineFault::GpuLost,
        &[
            "fallen off the bus",
            "gpu is lost",
            "uncorrectable ecc error",
            "uncorrectable nvlink error",
            "hiperroreccnotcorrectable",
            "unspecified launch failure",
            "memory access fault by gpu",
            "hw exception by gpu",
            "device(s) is/are busy or unavailable",
            "cudaerrordevicesunavailable",
        ],
    ),
    (
        EngineFault::OutOfGpuMemory,
        &[
            "cuda out of memory",
            "hip out of memory",
            "torch.outofmemoryerror",
            "cuda.outofmemoryerror",
            "cuda error: out of memory",
            "hip error: out of memory",
            "hiperroroutofmemory",
            "cudaerrormemoryallocation",
            "cublas_status_alloc_failed",
            "is less than desired gpu memory utilization",
            "no available memory for the cache blocks",
        ],
    ),
    (
        EngineFault::KvCacheTooSmall,
        &[
            "larger than the available kv cache memory",
            "larger than the maximum number of tokens that can be stored in kv cache",
        ],
    ),
    (
        EngineFault::OutOfSharedMemory,
        &[
            "unable to allocate shared memory",
            "no space left on device: '/psm_",
            "insufficient shared memory (shm)",
            "bus error",
        ],
    ),
    (
        EngineFault::OutOfMemory,
        &[
            "defaultcpuallocator: can't allocate memory",
            "defaultcpuallocator: not enough memory",
            "cannot allocate memory",
            "std::bad_alloc",
            "memoryerror",
            "memory ran out",
        ],
    ),
    (
        EngineFault::ModelUnsupported,
        &[
            "are not supported for now",
            "has no vllm implementation",
            "failed to be inspected",
            "does not recognize this architecture",
            "unknown quantization method",
        ],
    ),
    (
        EngineFault::WeightsUnreadable,
        &[
            "safetensorerror",
            "error while deserializing header",
            "cannot find any model weights",
            "invalid repository id or local directory",
            "pytorchstreamreader failed",
        ],
    ),
    (
        EngineFault::ArgumentRefused,
        &["error: unrecognized arguments", "error: argument ", "error: the following arguments are required"],
    ),
    (EngineFault::PortTaken, &["address already in use", "eaddrinuse"]),
    (
        EngineFault::RankUnreachable,
        &[
            "connection closed by peer",
            "connection reset by peer",
            "remote process exited or there was a network error",
            "ncclremoteerror",
            "nccl timeout",
            "watchdog caught collective operation timeout",
            "distnetworkerror",
            "client socket has timed out",
            "client socket has failed to connect",
            "no route to host",
            "timed out waiting for clients",
            "clients joined",
            "gloo connectfullmesh failed",
        ],
    ),
];

impl EngineFault {
    /// The fault that a line of an engine tells of; `None` where it tells of none that is known.
    pub fn of(words: &str) -> Option<Self> {
        let words = words.to_lowercase();
        PHRASES.iter().find(|(_, phrases)| phrases.iter().any(|phrase| words.contains(phrase))).map(|(fault, _)| *fault)
    }
}
