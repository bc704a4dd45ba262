//! Which runtime serves a model, where the workspace leaves that to the hardware.

use kaito_presets::Preset;

use super::vllm;
use crate::workspace::{AdapterSpec, Runtime, RuntimeChoice};

/// What a choice depends on.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances<'a> {
    /// The model.
    pub preset: &'static Preset,
    /// The adapters that are asked for.
    pub adapters: &'a [AdapterSpec],
    /// How many pods are to serve one model together.
    pub ranks: u32,
    /// GPUs of each node.
    pub gpus: u32,
    /// Bytes of memory of each that a program can have, where it is known.
    pub gpu_memory: Option<u64>,
}

/// A runtime, and why it is this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chosen {
    /// The runtime.
    pub runtime: Runtime,
    /// The reason, as the end of a sentence.
    pub why: &'static str,
}

/// The runtime that a workspace gets.
pub fn choose(choice: RuntimeChoice, circumstances: Circumstances<'_>) -> Chosen {
    let Circumstances { preset, adapters, ranks, gpus, gpu_memory } = circumstances;
    let (runtime, why) = match choice {
        RuntimeChoice::Fixed(runtime) => (runtime, "the annotation kaito.sh/runtime says so"),
        RuntimeChoice::Auto if gpus == 0 => (Runtime::Kaito, "its nodes have no GPUs"),
        // Our own engine does not serve ranks, whatever else is asked for.
        RuntimeChoice::Auto if ranks > 1 => (Runtime::Vllm, "its nodes have GPUs"),
        RuntimeChoice::Auto
            if gpu_memory.is_some_and(|memory| vllm::gpus_that_hold(preset, gpus, memory).is_none()) =>
        {
            (Runtime::Kaito, "its GPUs have too little memory for vLLM")
        }
        RuntimeChoice::Auto if vllm::adapters_problem(preset, adapters).is_some() => {
            (Runtime::Kaito, "vLLM does not apply its adapters as it asks for them")
        }
        RuntimeChoice::Auto => (Runtime::Vllm, "its nodes have GPUs"),
    };
    Chosen { runtime, why }
}

#[cfg(test)]
mod tests {
    use kaito_presets::GIB;

    use super::*;

    fn adapters(strength: &str) -> Vec<AdapterSpec> {
        serde_saphyr::from_str(&format!("- {{source: {{name: poet, image: 'a/poet:1'}}, strength: '{strength}'}}"))
            .unwrap()
    }

    #[test]
    fn the_hardware_decides_unless_the_workspace_does_or_asks_for_what_vllm_lacks() {
        const AUTO: RuntimeChoice = RuntimeChoice::Auto;
        let fixed = RuntimeChoice::Fixed;
        for (choice, preset, adapters, ranks, gpus, gib, expected) in [
            (AUTO, "mistral-7b", vec![], 1, 1, Some(24), Runtime::Vllm),
            (AUTO, "mistral-7b", vec![], 1, 1, None, Runtime::Vllm),
            (AUTO, "mistral-7b", vec![], 1, 0, None, Runtime::Kaito),
            // 13.5 GiB of weights.
            (AUTO, "mistral-7b", vec![], 1, 1, Some(15), Runtime::Kaito),
            (AUTO, "mistral-7b", vec![], 1, 2, Some(15), Runtime::Vllm),
            (AUTO, "falcon-40b", vec![], 1, 2, Some(40), Runtime::Kaito),
            (AUTO, "falcon-40b", vec![], 1, 3, Some(40), Runtime::Kaito),
            (AUTO, "falcon-40b", vec![], 1, 8, Some(40), Runtime::Vllm),
            // Its 71 heads cannot be shared.
            (AUTO, "falcon-7b", vec![], 1, 8, Some(14), Runtime::Kaito),
            (AUTO, "llama-2-13b", vec![], 1, 2, Some(16), Runtime::Vllm),
            (AUTO, "llama-2-13b", vec![], 1, 1, Some(16), Runtime::Kaito),
            (AUTO, "llama-2-70b", vec![], 2, 4, Some(80), Runtime::Vllm),
            (AUTO, "llama-2-70b", vec![], 2, 0, None, Runtime::Kaito),
            (AUTO, "mistral-7b", adapters("1.0"), 1, 1, Some(24), Runtime::Vllm),
            (AUTO, "mistral-7b", adapters("0.5"), 1, 1, Some(24), Runtime::Kaito),
            (AUTO, "falcon-7b", adapters("1.0"), 1, 1, Some(24), Runtime::Kaito),
            (AUTO, "llama-2-70b", adapters("0.5"), 2, 4, Some(80), Runtime::Vllm),
            (fixed(Runtime::Kaito), "mistral-7b", vec![], 1, 1, Some(24), Runtime::Kaito),
            (fixed(Runtime::Vllm), "mistral-7b", vec![], 1, 0, None, Runtime::Vllm),
            (fixed(Runtime::Vllm), "falcon-7b", adapters("0.5"), 1, 1, Some(8), Runtime::Vllm),
        ] {
            let preset = kaito_presets::find(preset).unwrap();
            let gpu_memory = gib.map(|gib| gib * GIB);
            let circumstances = Circumstances { preset, adapters: &adapters, ranks, gpus, gpu_memory };
            assert_eq!(choose(choice, circumstances).runtime, expected, "{choice:?} {circumstances:?}");
        }
    }
}
