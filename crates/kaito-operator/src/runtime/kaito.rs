//! The runtime `kaito`: our own server, `kaito serve`.

use k8s_openapi::api::core::v1::Container;

use kaito_presets::Preset;

use super::{ADAPTERS, Check, Flag, IMAGE_WEIGHTS, Launch, PORT, Server, WEIGHTS, probes, strings, variable, vllm};
use crate::{
    reason::{Problem, Reason},
    workspace::AdapterSpec,
};

/// Why the server does not serve a model over several nodes.
pub fn no_ranks() -> Problem {
    Problem {
        reason: Reason::RanksUnsupported,
        message: "kaito serve of this release computes on one node only, so nothing is started: use one node, or the annotation \
                  kaito.sh/runtime: vllm on nodes with GPUs"
            .to_owned(),
    }
}

pub fn server(launch: &Launch<'_>) -> Result<Server, Problem> {
    if launch.ranks.is_some() {
        return Err(no_ranks());
    }
    let mut container = Container {
        command: Some(strings(&["kaito"])),
        args: Some(arguments(launch)),
        // A server without weights in its image downloads them; /tmp is the one place that it can write to.
        env: Some(vec![variable("HF_HOME", "/tmp/huggingface")]),
        ..Container::default()
    };
    probes(&mut container, launch.preset, &Check::Http("/healthz"));
    Ok(Server { container, volumes: Vec::new() })
}

/// What follows `kaito` on the command line. An image with weights says by its environment where they are.
fn arguments(launch: &Launch<'_>) -> Vec<String> {
    let mut arguments = strings(&["serve", launch.preset.name, "--port", &PORT.to_string()]);
    if launch.weights.is_some() {
        arguments.extend(strings(&["--weights", &format!("{WEIGHTS}{IMAGE_WEIGHTS}")]));
    }
    arguments.extend(Flag::arguments(&launch.config.flags));
    arguments
}

pub fn adapters_problem(preset: &Preset, adapters: &[AdapterSpec]) -> Option<Problem> {
    let other = if vllm::applies_adapters(preset) {
        "The annotation kaito.sh/runtime: vllm chooses a server that does".to_owned()
    } else {
        format!("Nor does vLLM to {} models", preset.shape.family)
    };
    (!adapters.is_empty()).then(|| Problem {
        reason: Reason::AdaptersNotApplied,
        message: format!(
            "the adapters lie in {ADAPTERS}, but kaito serve of this release does not apply adapters: the base model \
             answers. {other}"
        ),
    })
}
