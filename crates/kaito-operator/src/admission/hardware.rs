use std::num::NonZeroU32;

use kaito_presets::{InstanceType, InstanceTypes, Load, Shortfall, gib, gib_needed};

use super::{Verdict, inference, syntax};
use crate::{
    layout,
    workspace::{ANNOTATION_BYPASS_RESOURCE_CHECKS, MOST_NODES, Runtime, RuntimeChoice, Workspace},
};

const PATH: &str = "resource.instanceType";

/// The type of the nodes that are asked for, where it is known.
pub fn instance_type<'a>(workspace: &Workspace, instance_types: &'a InstanceTypes) -> Option<&'a InstanceType> {
    instance_types.find(workspace.resource.instance_type.as_deref()?).ok()
}

/// Whether a preset fits on the nodes that are asked for, where both are known.
pub fn check(workspace: &Workspace, instance_types: &InstanceTypes, verdict: &mut Verdict) {
    let resource = &workspace.resource;
    // A value that cannot be a label is refused by the checks of `resource`.
    let Some(name) = resource.instance_type.as_deref().filter(|name| syntax::is_label_value(name)) else { return };
    let instance_type = match instance_types.find(name) {
        Ok(instance_type) => instance_type,
        Err(unknown) => {
            let unknown = unknown.to_string();
            let stop = if unknown.ends_with('?') { "" } else { "." };
            verdict.warn(PATH, format!("{unknown}{stop} Whether the model fits it is not checked"));
            return;
        }
    };
    let preset = workspace.preset().and_then(|preset| kaito_presets::find(&preset.name).ok());
    let count = u32::try_from(resource.count).ok().filter(|_| resource.count <= MOST_NODES).and_then(NonZeroU32::new);
    let (Some(preset), Some(count)) = (preset, count) else { return };
    let choice = workspace.runtime().ok();
    let runtime = choice.zip(workspace.inference.as_ref()).map(|(choice, asked)| match choice {
        RuntimeChoice::Fixed(runtime) => runtime,
        RuntimeChoice::Auto => inference::by_hardware(workspace, asked, preset, instance_type),
    });
    let adapters = workspace.inference.as_ref().map_or(0, |inference| inference.adapters.len() as u64);
    let load = Load::from(preset).adapters(adapters);
    // The runtime kaito has adapters in main memory.
    let on_gpus = if runtime == Some(Runtime::Kaito) { load.adapters(0) } else { load };
    let plan = instance_types.plan(&on_gpus, instance_type, Some(count));
    for (shortfall, problem) in plan.shortfalls.iter().zip(plan.problems()) {
        if runs_all_the_same(shortfall) {
            verdict.warn(PATH, problem);
        } else if workspace.bypasses_resource_checks() {
            verdict.warn(PATH, format!("{problem}. {ANNOTATION_BYPASS_RESOURCE_CHECKS} lets it in all the same"));
        } else {
            verdict.refuse(PATH, problem);
        }
    }
    if let Some(note) = plan.surplus_nodes() {
        verdict.warn("resource.count", note);
    }
    let has_ranks = layout::ranks(workspace, preset).is_some();
    match (runtime, plan.precision_problem(), instance_type.memory) {
        // Who leaves the runtime to the hardware leaves the precision to it, too.
        (Some(Runtime::Vllm), Some(note), _) if choice != Some(RuntimeChoice::Auto) => verdict.warn(PATH, note),
        // With several ranks the runtime kaito does not serve, which is said elsewhere.
        (Some(Runtime::Kaito), _, Some(memory)) if !has_ranks => {
            let needed = load.on_cpus().memory.total();
            if needed > memory {
                verdict.warn(
                    PATH,
                    format!(
                        "the runtime kaito computes on CPUs, and preset {} needs {} of main memory for it, but a node of {name} \
                         has {}",
                        preset.name,
                        gib_needed(needed),
                        gib(memory)
                    ),
                );
            }
        }
        _ => {}
    }
}

/// Whether the model runs, but not with the context length that it was published with.
fn runs_all_the_same(shortfall: &Shortfall) -> bool {
    matches!(shortfall, Shortfall::UsableGpuMemory { longest, .. } if *longest > 0)
}
