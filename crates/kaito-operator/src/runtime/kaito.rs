//! Our own server.

use k8s_openapi::api::core::v1::Container;

use kaito_presets::Preset;

use super::{
    ADAPTERS, Check, Flag, IMAGE_WEIGHTS, Launch, PORT, RANK_PORT, Server, WEIGHTS, pod_index, probes, strings,
    variable, vllm,
};
use crate::{decide::Problem, workspace::AdapterSpec};

/// Said of pods with ranks while they do not answer.
pub const NO_RANKS: &str = "kaito serve of this release computes on one node only and refuses --world-size: use one node \
     with enough GPUs, or the annotation kaito.sh/runtime: vllm";

pub fn server(launch: &Launch<'_>) -> Server {
    let mut container = Container {
        command: Some(strings(&["kaito"])),
        args: Some(arguments(launch)),
        // A server without weights in its image downloads them to the one place that can be written to.
        env: Some(vec![variable("HF_HOME", "/tmp/huggingface")]),
        ..Container::default()
    };
    if launch.ranks.is_some() {
        container.env.get_or_insert_default().push(pod_index());
    }
    probes(&mut container, launch.preset, &Check::Http("/healthz"));
    Server { container, volumes: Vec::new() }
}

/// What follows `kaito` on the command line. Where the weights of its own image are, the image says by its environment.
fn arguments(launch: &Launch<'_>) -> Vec<String> {
    let mut arguments = strings(&["serve", launch.preset.name, "--port", &PORT.to_string()]);
    if launch.weights.is_some() {
        arguments.extend(strings(&["--weights", &format!("{WEIGHTS}{IMAGE_WEIGHTS}")]));
    }
    if let Some(ranks) = &launch.ranks {
        arguments.extend(strings(&["--world-size", &ranks.pods.to_string(), "--rank", "$(POD_INDEX)", "--master"]));
        arguments.push(format!("{}:{RANK_PORT}", ranks.master));
    }
    arguments.extend(Flag::arguments(launch.flags));
    arguments
}

pub fn adapters_problem(preset: &Preset, adapters: &[AdapterSpec]) -> Option<Problem> {
    let other = if vllm::applies_adapters(preset) {
        "The annotation kaito.sh/runtime: vllm chooses a server that does".to_owned()
    } else {
        format!("Nor does vLLM to {} models", preset.shape.family)
    };
    (!adapters.is_empty()).then(|| Problem {
        reason: "AdaptersNotApplied",
        message: format!(
            "the adapters lie in {ADAPTERS}, but kaito serve of this release does not apply adapters: the base model \
             answers. {other}"
        ),
    })
}
