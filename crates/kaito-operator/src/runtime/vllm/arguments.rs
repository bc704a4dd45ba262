//! What follows `vllm` on the command line.

use kaito_presets::{ComputeCapability, DType};

use super::{
    super::{ADAPTERS, Flag, Launch, POD_INDEX, RANK_PORT, Ranks, does_not_fit, strings},
    ENGINE_PORT, LOOPBACK, applies_adapters,
    context::context,
};
use crate::{layout::Division, reason::Problem};

/// The flag that says how the processes of an engine find each other.
const BACKEND: &str = "distributed-executor-backend";

/// What follows `vllm` on the command line.
pub fn arguments(launch: &Launch<'_>) -> Result<Vec<String>, Problem> {
    let preset = launch.preset;
    let pods = launch.ranks.as_ref().map_or(1, |ranks| ranks.pods);
    let given = |name: &str| launch.config.flags.iter().any(|flag| flag.name == name);
    let Division { tensor, pipeline, data } = launch.division;
    let mut arguments = strings(&["serve"]);
    arguments.extend(launch.weights.folder(preset));
    let mut add = |name: &str, value: &str| arguments.extend(strings(&[&format!("--{name}"), value]));
    // Clients know the model by the names that the server in front has.
    add("served-model-name", preset.name);
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
    match &launch.ranks {
        None => {
            add("host", LOOPBACK);
            add("port", &ENGINE_PORT.to_string());
        }
        // Where the first rank listens, its supervisor says.
        Some(Ranks { pods, master }) => {
            if !launch.config.flags.iter().all(|flag| flag.name != BACKEND || flag.is(BACKEND, "mp")) {
                return Err(does_not_fit(format!(
                    "{BACKEND} is another than mp, by which {pods} pods serve {} together",
                    preset.name
                )));
            }
            if !given(BACKEND) {
                add(BACKEND, "mp");
            }
            add("nnodes", &pods.to_string());
            add("node-rank", &format!("$({POD_INDEX})"));
            add("master-addr", master);
            add("master-port", &RANK_PORT.to_string());
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
