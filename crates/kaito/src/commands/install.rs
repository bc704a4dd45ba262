//! `kaito install`: what a cluster needs to run the controller.

use std::fs;

use anyhow::{Context, bail};
use kaito_operator::{
    decide::{Provisioner, RolloutPolicy},
    install::{InstallOptions, manifests},
};

use crate::{
    args::{InstallArgs, NodeProvisioner},
    output::print,
};

pub fn run(args: InstallArgs) -> anyhow::Result<()> {
    let provisioner = match (args.nodes.node_provisioner, args.nodes.node_class) {
        (NodeProvisioner::Karpenter, Some(class)) => Provisioner::Karpenter(class),
        _ => Provisioner::None,
    };
    let read =
        |path: &std::path::PathBuf| fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    let options = InstallOptions {
        namespace: args.namespace,
        registry: args.registry,
        preset_registry: args.preset_registry,
        preset_tag: args.preset_tag,
        rollouts: RolloutPolicy {
            at_once: args.rollouts.max_rollouts.get(),
            windows: args.rollouts.maintenance_window,
            pause: args.rollouts.rollout_pause,
        },
        provisioner,
        vllm_image: args.vllm_image,
        vllm_rocm_image: args.vllm_rocm_image,
        instance_types: args.instance_types.as_ref().map(read).transpose()?,
        replicas: args.replicas,
    };
    let manifests = manifests(&options)?;
    if !args.print {
        bail!(
            "nothing is changed in a cluster from here; add --print, and pipe it to kubectl apply --server-side -f -"
        );
    }
    print(&manifests)
}
