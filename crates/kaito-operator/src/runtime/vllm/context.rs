//! The context length that vLLM is started with.

use kaito_presets::{ADAPTER_RANK, Cut, GIB, Precision, Preset, adapter_bytes};

use super::{
    super::{FlagValue, Launch, WeightBytes, does_not_fit},
    applies_adapters,
};
use crate::{
    layout::{Division, can_share},
    reason::{Problem, Reason},
    text,
};

/// The part of a GPU's memory that vLLM takes unless told otherwise.
const GPU_MEMORY_UTILISATION: f64 = 0.9;
/// Computed context lengths are multiples of this many tokens.
const CONTEXT_STEP: u64 = 256;

/// The context length that the user asks for, or the longest for which the GPUs have KV cache memory, up to the model's own
/// limit. vLLM refuses to start with more.
pub fn context(launch: &Launch<'_>) -> Result<u64, Problem> {
    let Preset { shape, name, .. } = launch.preset;
    let sizes = &launch.config.sizes;
    let limit = shape.max_position_embeddings as u64;
    if let Some(asked) = sizes.context.filter(|asked| *asked > limit && !sizes.scales_positions) {
        return Err(does_not_fit(format!("max-model-len is {asked}, but {name} was made for {limit} tokens at most")));
    }
    let wanted = sizes.context.unwrap_or(limit);
    let Some(room) = room(launch) else { return Ok(wanted) };
    let Room { tokens, gpus, gpu_memory, weights, adapters } = room;
    let gib = |bytes: u64| bytes as f64 / GIB as f64;
    let held = match adapters {
        0 => format!("{:.1} GiB of weights", gib(weights)),
        _ => format!("{:.1} GiB of weights and {:.2} GiB for adapters", gib(weights), gib(adapters)),
    };
    let is_guess = sizes.weight_bytes == Some(WeightBytes::Unknown);
    if let (true, Some(asked)) = (is_guess, sizes.context) {
        // The size of quantised weights is not known here, so the user's word is taken.
        return Ok(asked);
    }
    if tokens < CONTEXT_STEP && (sizes.context.is_none() || tokens == 0) {
        return Err(Problem {
            reason: Reason::GpuMemoryTooSmall,
            message: format!(
                "{name} has {held}, and {gpus} GPUs of {:.0} GiB leave no memory for the KV cache. Use more or larger GPUs",
                gib(gpu_memory),
            ),
        });
    }
    match sizes.context {
        Some(asked) if asked > tokens => Err(does_not_fit(format!(
            "max-model-len is {asked}, but beside {held} {} of {:.0} GiB {} memory for {tokens} tokens. Ask for fewer, or \
             use more or larger GPUs",
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
    adapters: u64,
}

/// What is left of these GPUs' memory, of which vLLM takes a part, beside what they hold.
fn free(gpus: u64, gpu_memory: u64, part: f64, held: u64) -> u64 {
    let usable = ((gpu_memory as f64 * part) as u64).saturating_mul(gpus);
    usable.saturating_sub(held).saturating_sub(gpus.saturating_mul(GIB))
}

/// As many of a node's GPUs as hold a model as it was published, and a KV cache that is worth it: those that the preset asks for, or
/// more where those are too small; `None` where all of them are.
pub fn gpus_that_hold(preset: &Preset, offered: u32, gpu_memory: u64) -> Option<u32> {
    let Preset { shape, dtype, workload, .. } = preset;
    let is_room = |gpus: u32| {
        let free = free(gpus.into(), gpu_memory, GPU_MEMORY_UTILISATION, shape.weights_bytes(*dtype));
        free / shape.kv_cache_bytes_per_token(*dtype).max(1) >= CONTEXT_STEP
    };
    let asked = workload.gpus.min(offered);
    let more = (asked.saturating_add(1)..=offered).filter(|gpus| can_share(preset, *gpus));
    std::iter::once(asked).chain(more).filter(|gpus| *gpus > 0).find(|gpus| is_room(*gpus))
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
    let adapters = adapters(launch);
    let held = weights.saturating_sub(sizes.offloaded.saturating_mul(gpus)).saturating_add(adapters);
    let free = free(gpus, gpu_memory, part, held);
    let token = shape.kv_cache_bytes_per_token(*dtype);
    // The published number is for elements of two bytes.
    let token = match (sizes.kv_bytes, sizes.weight_bytes) {
        (Some(bytes), _) => token.saturating_mul(bytes) / 2,
        (None, Some(WeightBytes::Known(bytes))) => token.saturating_mul(bytes) / 2,
        _ => token,
    };
    Some(Room { tokens: free / token.max(1), gpus, gpu_memory, weights, adapters })
}

/// What vLLM sets aside for adapters on these GPUs together. It makes room for `max-loras` of them at the same time, each of rank
/// `max-lora-rank` on every matrix, however many there are and whatever their ranks; others wait in main memory.
fn adapters(launch: &Launch<'_>) -> u64 {
    /// vLLM's own values.
    const AT_ONCE: u64 = 1;
    const RANK: u64 = 16;
    let Launch { preset, adapters, division, config, .. } = launch;
    if adapters.is_empty() || !applies_adapters(preset) {
        return 0;
    }
    let flag = |name: &str| {
        let flag = config.flags.iter().find(|flag| flag.name == name)?;
        let FlagValue::Text(text) = &flag.value else { return None };
        text.trim().parse::<u64>().ok().filter(|number| *number > 0)
    };
    let precision = match config.sizes.weight_bytes {
        Some(WeightBytes::Known(4)) => Precision::F32,
        _ => preset.dtype.into(),
    };
    let at_once = flag("max-loras").unwrap_or(AT_ONCE);
    // Of each layer every GPU of a group holds a part; the groups have different layers.
    let each = adapter_bytes(&preset.shape, precision, at_once, Cut::Ranks(division.tensor));
    let all = u128::from(each) * u128::from(division.tensor) * u128::from(flag("max-lora-rank").unwrap_or(RANK));
    u64::try_from(all / u128::from(ADAPTER_RANK)).unwrap_or(u64::MAX)
}
