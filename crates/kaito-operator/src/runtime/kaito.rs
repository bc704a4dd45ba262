//! The runtime `kaito`: our own server, `kaito serve`.

use k8s_openapi::api::core::v1::{Container, EnvVar};

use super::{ADAPTERS, Check, Flag, IMAGE_WEIGHTS, Launch, PORT, Server, WEIGHTS, probes, strings, variable};
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
        env: Some(std::iter::once(variable("HF_HOME", "/tmp/huggingface")).chain(strengths(launch.adapters)).collect()),
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
    if !launch.adapters.is_empty() {
        arguments.extend(strings(&["--adapters", ADAPTERS]));
    }
    arguments.extend(Flag::arguments(&launch.config.flags));
    arguments
}

/// How strongly each adapter counts, in a variable of its name; 1 where there is none.
fn strengths(adapters: &[AdapterSpec]) -> impl Iterator<Item = EnvVar> {
    adapters.iter().filter_map(|adapter| Some(variable(&adapter.source.name, adapter.strength.as_deref()?)))
}
