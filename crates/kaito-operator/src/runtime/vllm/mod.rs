//! The runtime `vllm`: vLLM's own image, with Ray where several pods serve one model.

use std::fmt::Write;

use k8s_openapi::api::core::v1::Container;
use kaito_presets::{ComputeCapability, DType, GIB, Preset};

use super::{
    ADAPTERS, Check, Flag, IMAGE_WEIGHTS, Launch, PORT, Ranks, Server, WEIGHTS, WeightBytes, does_not_fit, field,
    pod_index, probes, strings, variable,
};
use crate::{
    layout::{Division, GPU},
    reason::{Problem, Reason},
    text,
    workspace::AdapterSpec,
};

/// The part of a GPU's memory that vLLM takes unless told otherwise.
const GPU_MEMORY_UTILISATION: f64 = 0.9;
/// Computed context lengths are multiples of this many tokens.
const CONTEXT_STEP: u64 = 256;
const RAY_PORT: u16 = 6379;

pub fn server(launch: &Launch<'_>) -> Result<Server, Problem> {
    if launch.gpus == 0 {
        return Err(Problem {
            reason: Reason::GpusMissing,
            message: format!(
                "vLLM's image needs GPUs, and no node that matches offers {}. Use nodes with GPUs and a running device \
                 plugin, or the runtime kaito, which computes on CPUs too",
                GPU
            ),
        });
    }
    let mut env = vec![
        // The image's root is read-only, and the user has no home in it.
        variable("HOME", "/tmp"),
        variable("USER", "kaito"),
        variable("XDG_CACHE_HOME", "/tmp/cache"),
        variable("XDG_CONFIG_HOME", "/tmp/config"),
        variable("TRITON_CACHE_DIR", "/tmp/cache/triton"),
        variable("TORCHINDUCTOR_CACHE_DIR", "/tmp/cache/inductor"),
        // The weights are mounted, so nothing is downloaded.
        variable("HF_HUB_OFFLINE", "1"),
        variable("VLLM_NO_USAGE_STATS", "1"),
    ];
    let mut container = Container::default();
    let serve = arguments(launch)?;
    match &launch.ranks {
        None => {
            container.command = Some(strings(&["vllm"]));
            container.args = Some(serve);
            probes(&mut container, launch.preset, &Check::Http("/health"));
        }
        Some(ranks) => {
            env.extend([pod_index(), field("VLLM_HOST_IP", "status.podIP"), variable("RAY_USAGE_STATS_ENABLED", "0")]);
            container.command = Some(strings(&["/bin/sh", "-c", &script(ranks), "vllm"]));
            container.args = Some(serve);
            let check = strings(&["/bin/sh", "-c", &health(ranks)]);
            probes(&mut container, launch.preset, &Check::Exec(check));
            slow_probes(&mut container);
        }
    }
    container.env = Some(env);
    Ok(Server { container, volumes: Vec::new() })
}

/// What follows `vllm` on the command line.
fn arguments(launch: &Launch<'_>) -> Result<Vec<String>, Problem> {
    let preset = launch.preset;
    let pods = launch.ranks.as_ref().map_or(1, |ranks| ranks.pods);
    let given = |name: &str| launch.config.flags.iter().any(|flag| flag.name == name);
    let Division { tensor, pipeline, data } = launch.division;
    let mut arguments = strings(&["serve", &format!("{WEIGHTS}{IMAGE_WEIGHTS}")]);
    let mut add = |name: &str, value: &str| arguments.extend(strings(&[&format!("--{name}"), value]));
    if !given("served-model-name") {
        add("served-model-name", preset.name);
    }
    add("port", &PORT.to_string());
    if !given("dtype") {
        add("dtype", dtype(launch));
    } else if launch.config.flags.iter().any(|flag| flag.is("dtype", "bfloat16")) && !has_bf16(launch) {
        return Err(does_not_fit(format!(
            "dtype is bfloat16, but the GPUs are of a compute capability below {}, and vLLM refuses bfloat16 on them: \
             leave it out, and float16 is used",
            ComputeCapability::BF16
        )));
    }
    add("tensor-parallel-size", &tensor.to_string());
    if pipeline > 1 || pods > 1 {
        add("pipeline-parallel-size", &pipeline.to_string());
    }
    if data > 1 {
        add("data-parallel-size", &data.to_string());
    }
    if pods > 1 {
        if let Some(flag) = launch.config.flags.iter().find(|flag| flag.name == "distributed-executor-backend") {
            if !flag.is("distributed-executor-backend", "ray") {
                return Err(does_not_fit(format!(
                    "distributed-executor-backend is another than ray, but {pods} pods serve {} together, over Ray",
                    preset.name
                )));
            }
        } else {
            add("distributed-executor-backend", "ray");
        }
    }
    add("max-model-len", &context(launch)?.to_string());
    if !launch.adapters.is_empty() && applies_adapters(preset) {
        arguments.extend(strings(&["--enable-lora", "--lora-modules"]));
        arguments.extend(launch.adapters.iter().map(|adapter| format!("{0}={ADAPTERS}/{0}", adapter.source.name)));
    }
    arguments.extend(Flag::arguments(&launch.config.flags));
    Ok(arguments)
}

fn has_bf16(launch: &Launch<'_>) -> bool {
    launch.hardware.is_none_or(|hardware| hardware.has_bf16)
}

/// The dtype of the weight files, unless the GPUs are too old for bf16, which vLLM then refuses.
fn dtype(launch: &Launch<'_>) -> &'static str {
    match launch.preset.dtype {
        DType::F32 => "float32",
        DType::Bf16 if has_bf16(launch) => "bfloat16",
        DType::Bf16 | DType::F16 => "float16",
    }
}

/// The context length that the user asks for, or the longest for which the GPUs have KV cache memory, up to the model's own
/// limit. vLLM refuses to start with more.
fn context(launch: &Launch<'_>) -> Result<u64, Problem> {
    let Preset { shape, name, .. } = launch.preset;
    let sizes = &launch.config.sizes;
    let limit = shape.max_position_embeddings as u64;
    if let Some(asked) = sizes.context.filter(|asked| *asked > limit && !sizes.scales_positions) {
        return Err(does_not_fit(format!("max-model-len is {asked}, but {name} was made for {limit} tokens at most")));
    }
    let wanted = sizes.context.unwrap_or(limit);
    let Some(room) = room(launch) else { return Ok(wanted) };
    let Room { tokens, gpus, gpu_memory, weights } = room;
    let gib = |bytes: u64| bytes as f64 / GIB as f64;
    let is_guess = sizes.weight_bytes == Some(WeightBytes::Unknown);
    if let (true, Some(asked)) = (is_guess, sizes.context) {
        // The size of quantised weights is not known here, so the user's word is taken.
        return Ok(asked);
    }
    if tokens < CONTEXT_STEP && (sizes.context.is_none() || tokens == 0) {
        return Err(Problem {
            reason: Reason::GpuMemoryTooSmall,
            message: format!(
                "{name} has {:.1} GiB of weights, and {gpus} GPUs of {:.0} GiB leave no memory for the KV cache. Use \
                 more or larger GPUs",
                gib(weights),
                gib(gpu_memory),
            ),
        });
    }
    match sizes.context {
        Some(asked) if asked > tokens => Err(does_not_fit(format!(
            "max-model-len is {asked}, but beside {:.1} GiB of weights {} of {:.0} GiB {} memory for {tokens} tokens. \
             Ask for fewer, or use more or larger GPUs",
            gib(weights),
            text::count(usize::try_from(gpus).unwrap_or(usize::MAX), "GPU"),
            gib(gpu_memory),
            if gpus == 1 { "has" } else { "have" },
        ))),
        Some(asked) => Ok(asked),
        None => Ok(limit.min(tokens - tokens % CONTEXT_STEP)),
    }
}

/// The KV cache memory of the GPUs that hold one copy of the model.
struct Room {
    /// For a sequence of this many tokens.
    tokens: u64,
    gpus: u64,
    gpu_memory: u64,
    weights: u64,
}

/// The memory for the KV cache, where the GPUs are known.
fn room(launch: &Launch<'_>) -> Option<Room> {
    let Preset { shape, dtype, .. } = launch.preset;
    let sizes = &launch.config.sizes;
    let gpu_memory = launch.hardware?.gpu_memory;
    let Division { tensor, pipeline, .. } = launch.division;
    let gpus = u64::from(tensor) * u64::from(pipeline);
    let published = shape.weights_bytes(*dtype);
    let weights = match sizes.weight_bytes {
        // Quantised weights take less, so this is the most.
        None | Some(WeightBytes::Known(2) | WeightBytes::Unknown) => published,
        Some(WeightBytes::Known(bytes)) => published.saturating_mul(bytes) / 2,
    };
    let part = sizes.gpu_memory_utilisation.unwrap_or(GPU_MEMORY_UTILISATION);
    let usable = ((gpu_memory as f64 * part) as u64).saturating_mul(gpus);
    let held = weights.saturating_sub(sizes.offloaded.saturating_mul(gpus));
    let free = usable.saturating_sub(held).saturating_sub(gpus.saturating_mul(GIB));
    let token = shape.kv_cache_bytes_per_token(*dtype);
    // The published number is for elements of two bytes.
    let token = match (sizes.kv_bytes, sizes.weight_bytes) {
        (Some(bytes), _) => token.saturating_mul(bytes) / 2,
        (None, Some(WeightBytes::Known(bytes))) => token.saturating_mul(bytes) / 2,
        _ => token,
    };
    Some(Room { tokens: free / token.max(1), gpus, gpu_memory, weights })
}

/// The start script: rank 0 starts Ray's head, waits until all ranks have joined, and serves; the others join. `$@` are
/// vLLM's arguments.
fn script(ranks: &Ranks) -> String {
    let Ranks { pods, master } = ranks;
    let mut script = String::new();
    let _ = write!(
        script,
        r#"set -eu
if [ "$POD_INDEX" != 0 ]; then
  until ray start --address={master}:{RAY_PORT} --node-ip-address="$VLLM_HOST_IP" --block; do sleep 5; done
  exit 1
fi
ray start --head --port={RAY_PORT} --node-ip-address="$VLLM_HOST_IP" --disable-usage-stats
until python3 -c 'import ray, sys; ray.init(address="auto", log_to_driver=False); sys.exit(sum(n["Alive"] for n in ray.nodes()) < {pods})'; do sleep 5; done
exec vllm "$@"
"#
    );
    script
}

/// The probe's script: rank 0 must answer over HTTP; the other ranks must reach Ray's head.
fn health(ranks: &Ranks) -> String {
    let Ranks { master, .. } = ranks;
    format!(
        r#"if [ "$POD_INDEX" = 0 ]; then exec python3 -c 'import urllib.request; urllib.request.urlopen("http://127.0.0.1:{PORT}/health", timeout=10)'; fi
exec ray health-check --address {master}:{RAY_PORT}"#
    )
}

/// Probes that start Python, which takes seconds on a busy node, need longer timeouts and periods.
fn slow_probes(container: &mut Container) {
    let probes = [&mut container.startup_probe, &mut container.readiness_probe, &mut container.liveness_probe];
    for probe in probes.into_iter().flatten() {
        probe.timeout_seconds = Some(20);
        if probe.period_seconds.is_none_or(|period| period < 30) {
            let whole = probe.period_seconds.unwrap_or(10) * probe.failure_threshold.unwrap_or(3);
            probe.period_seconds = Some(30);
            probe.failure_threshold = Some((whole / 30).max(3));
        }
    }
}

/// Whether vLLM can apply adapters to a model: not to each family.
pub fn applies_adapters(preset: &Preset) -> bool {
    preset.shape.family.vllm_applies_adapters
}

pub fn adapters_problem(preset: &Preset, adapters: &[AdapterSpec]) -> Option<Problem> {
    if !adapters.is_empty() && !applies_adapters(preset) {
        return Some(Problem {
            reason: Reason::AdaptersNotApplied,
            message: format!(
                "the adapters lie in {ADAPTERS}, but vLLM applies none to {} models: the base model answers",
                preset.shape.family
            ),
        });
    }
    let weakened: Vec<_> = adapters
        .iter()
        .filter(|adapter| {
            adapter
                .strength
                .as_deref()
                .and_then(|strength| strength.parse::<f64>().ok())
                .is_some_and(|strength| strength != 1.0)
        })
        .map(|adapter| adapter.source.name.as_str())
        .collect();
    (!weakened.is_empty()).then(|| Problem {
        reason: Reason::AdapterStrengthIgnored,
        message: format!("vLLM applies every adapter at full strength, {} too", weakened.join(", ")),
    })
}
