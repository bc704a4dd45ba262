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

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines as these programs write them.
    #[test]
    fn faults_are_known_by_the_words_of_their_programs() {
        for (line, fault) in [
            (
                "(EngineCore_DP0 pid=71) ERROR 11-28 [core.py:842] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. \
                 GPU 0 has a total capacity of 23.64 GiB",
                EngineFault::OutOfGpuMemory,
            ),
            (
                "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 896.00 MiB. GPU 0 has a total capacity of 63.98 GiB",
                EngineFault::OutOfGpuMemory,
            ),
            (
                "ValueError: Free memory on device cuda:0 (6.92/8.0 GiB) on startup is less than desired GPU memory utilization (0.9, \
                 7.2 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.",
                EngineFault::OutOfGpuMemory,
            ),
            (
                "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the \
                 engine.",
                EngineFault::OutOfGpuMemory,
            ),
            (
                "ValueError: To serve at least one request with the models's max seq len (131072), (4.00 GiB KV cache is needed, which \
                 is larger than the available KV cache memory (0.65 GiB).",
                EngineFault::KvCacheTooSmall,
            ),
            (
                "RuntimeError: The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver",
                EngineFault::GpuDriver,
            ),
            (
                "RuntimeError: CUDA error: no kernel image is available for execution on the device",
                EngineFault::GpuDriver,
            ),
            ("CUDA driver version is insufficient for CUDA runtime version", EngineFault::GpuDriver),
            ("Failed to initialize NVML: Driver/library version mismatch", EngineFault::GpuDriver),
            ("RuntimeError: HIP error: invalid device function", EngineFault::GpuDriver),
            ("RuntimeError: No CUDA GPUs are available", EngineFault::GpuMissing),
            ("RuntimeError: No HIP GPUs are available", EngineFault::GpuMissing),
            ("RuntimeError: Failed to infer device type, please set the environment variable", EngineFault::GpuMissing),
            ("torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered", EngineFault::GpuLost),
            (
                "Memory access fault by GPU node-2 (Agent handle: 0x5581) on address 0x7f. Reason: Page not present",
                EngineFault::GpuLost,
            ),
            (
                "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:544] Connection closed by peer [192.0.2.2]:4711",
                EngineFault::RankUnreachable,
            ),
            (
                "torch.distributed.DistNetworkError: The client socket has failed to connect to any network address of (pod-0, 29500).",
                EngineFault::RankUnreachable,
            ),
            (
                "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.",
                EngineFault::RankUnreachable,
            ),
            (
                "ValueError: Model architectures ['LettersForCausalLM'] are not supported for now.",
                EngineFault::ModelUnsupported,
            ),
            (
                "safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge",
                EngineFault::WeightsUnreadable,
            ),
            ("vllm: error: unrecognized arguments: --no-such-flag", EngineFault::ArgumentRefused),
            ("OSError: [Errno 98] Address already in use", EngineFault::PortTaken),
            (
                "RuntimeError: [enforce fail at alloc_cpu.cpp:114] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to \
                 allocate 8388608 bytes.",
                EngineFault::OutOfMemory,
            ),
            ("RuntimeError: unable to allocate shared memory(shm) for file </torch_7>", EngineFault::OutOfSharedMemory),
        ] {
            assert_eq!(EngineFault::of(line), Some(fault), "{line}");
        }
        for line in [
            "",
            "INFO: Application startup complete.",
            "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
        ] {
            assert_eq!(EngineFault::of(line), None, "{line}");
        }
    }

    #[test]
    fn phrases_are_written_as_they_are_compared() {
        for (fault, phrases) in PHRASES {
            for phrase in phrases {
                assert_eq!(*phrase, phrase.to_lowercase(), "{fault:?}");
            }
        }
    }
}
