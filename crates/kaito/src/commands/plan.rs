//! `kaito plan`: which hardware a model fits on.

use kaito_operator::{
    runtime::{self, Chosen, Circumstances},
    workspace::{AdapterSpec, Runtime, RuntimeChoice},
};
use kaito_presets::{ADAPTER_RANK, Cloud, Cut, GpuVendor, InstanceType, Load, Plan, Preset, gib, gib_needed};
use serde_json::{Value, json};

use super::{Told, pretty};
use crate::{
    args::PlanArgs,
    display::{aligned, count},
    output::print,
};

pub fn run(args: &PlanArgs) -> anyhow::Result<()> {
    let preset = super::preset(&args.preset)?;
    let load = load(preset, args)?;
    let types = super::instance_types(args.instance_types.as_deref())?;
    let (text, fits) = match &args.instance_type {
        Some(name) => {
            let instance_type = super::instance_type(&types, name)?;
            let plan = types.plan(&load, instance_type, args.count);
            (if args.json { pretty(&json_of(preset, &plan))? } else { in_full(preset, &plan) }, plan.fits)
        }
        None => {
            let mut plans = types.plans(&load, args.count);
            if let Some(cloud) = args.cloud.map(Cloud::from) {
                plans.retain(|plan| plan.instance_type.cloud == cloud);
            }
            let text = if args.json {
                pretty(&plans.iter().map(|plan| json_of(preset, plan)).collect::<Vec<_>>())?
            } else {
                table(preset, &plans, args)
            };
            (text, !plans.is_empty())
        }
    };
    print(&text)?;
    if fits { Ok(()) } else { Err(Told.into()) }
}

fn load(preset: &'static Preset, args: &PlanArgs) -> anyhow::Result<Load> {
    let mut load = Load::from(preset).batch(args.batch)?.adapters(args.adapter_count);
    if let Some(context) = args.context {
        load = load.context(context)?;
    }
    if let Some(precision) = args.dtype.precision() {
        load = load.weights(precision);
    }
    if let Some(precision) = args.kv_dtype.precision() {
        load = load.kv_cache(precision);
    }
    Ok(load)
}

fn json_of(preset: &'static Preset, plan: &Plan) -> Value {
    let mut value = json!(plan);
    if let Some(object) = value.as_object_mut() {
        object.insert("served_by".to_owned(), ServedBy::of(preset, plan).json());
        object.insert("problems".to_owned(), plan.problems().collect());
        object.insert("notes".to_owned(), notes(plan).into());
        object.insert("per_gpu_total".to_owned(), plan.per_gpu.total().into());
    }
    value.sort_all_objects();
    value
}

fn notes(plan: &Plan) -> Vec<String> {
    plan.surplus_nodes().into_iter().chain(plan.precision_problem()).collect()
}

/// What a workspace on these nodes is served by, unless it says otherwise.
struct ServedBy {
    chosen: Chosen,
    /// Whose GPUs vLLM's image has to be built for.
    vendor: GpuVendor,
    /// Nodes that serve one model together.
    ranks: u32,
}

impl ServedBy {
    fn of(preset: &'static Preset, plan: &Plan) -> Self {
        let nodes = &plan.instance_type;
        // However many there are: they are all alike.
        let adapters = if plan.adapters > 0 { vec![AdapterSpec::default()] } else { Vec::new() };
        let ranks = if matches!(plan.cut, Cut::Ranks(_)) { plan.nodes } else { 1 };
        let circumstances = Circumstances {
            preset,
            adapters: &adapters,
            ranks,
            gpus: nodes.gpus,
            gpu_memory: Some(nodes.gpu.usable_memory),
        };
        Self { chosen: runtime::choose(RuntimeChoice::Auto, circumstances), vendor: nodes.gpu.vendor, ranks }
    }

    fn is_vllm(&self) -> bool {
        self.chosen.runtime == Runtime::Vllm
    }

    /// The runtime, and why it is this one.
    fn sentence(&self) -> String {
        let image = match self.vendor {
            GpuVendor::Amd if self.is_vllm() => " (its image for ROCm)",
            _ => "",
        };
        let together = match self.ranks {
            ranks if ranks > 1 && self.is_vllm() => format!(", and {ranks} of them serve one model together"),
            _ => String::new(),
        };
        format!("{}{image}, since {}{together}", self.chosen.runtime, self.chosen.why)
    }

    fn json(&self) -> Value {
        json!({
            "runtime": self.chosen.runtime.to_string(),
            "why": self.chosen.why,
            "gpu_vendor": self.is_vllm().then_some(self.vendor),
            "ranks": self.is_vllm().then_some(self.ranks),
        })
    }
}

fn table(preset: &'static Preset, plans: &[Plan], args: &PlanArgs) -> String {
    let Some(first) = plans.first() else {
        let nodes = match args.count {
            None => "any number of nodes".to_owned(),
            Some(one) => plural(one.get().into(), "node"),
        };
        let of = args.cloud.map_or_else(String::new, |cloud| format!(" of {}", Cloud::from(cloud)));
        return format!(
            "{} does not fit on {nodes} of any instance type{of} in the table; --instance-type says why not\n",
            preset.name
        );
    };
    let header = ["INSTANCE TYPE", "CLOUD", "NODES", "GPUS", "USED OF EACH GPU", "CONTEXT", "SEQUENCES"];
    let rows = plans.iter().map(|plan| {
        [
            plan.instance_type.name.clone().into_owned(),
            plan.instance_type.cloud.to_string(),
            plan.nodes.to_string(),
            format!("{} x {}", plan.cut.gpus(), plan.instance_type.gpu.model),
            format!("{} of {}", gib_needed(plan.per_gpu.total()), gib(plan.instance_type.gpu.usable_memory)),
            plan.capacity.map_or_else(String::new, |capacity| capacity.context.to_string()),
            plan.capacity.map_or_else(String::new, |capacity| capacity.batch.to_string()),
        ]
    });
    format!(
        "{}, {}, {}:\n\n{}\n{}\nCONTEXT: the longest sequences that fit, {} at once; SEQUENCES: how many of {} tokens do.\n\
         The order is that of GPU memory in all, then of GPUs, main memory and CPUs: the table of instance types has no \
         prices.\n",
        preset.name,
        weights(preset, first),
        sequences(first),
        recommendation(preset, first, plans.len()),
        aligned(std::iter::once(header.map(String::from)).chain(rows).collect()),
        first.batch,
        first.context,
    )
}

/// The first of the `number` plans that fit, and why it is the one to take.
fn recommendation(preset: &'static Preset, plan: &Plan, number: usize) -> String {
    let one = &plan.instance_type;
    let served_by = ServedBy::of(preset, plan);
    let memory = gib(one.gpu_memory().saturating_mul(plan.nodes.into()));
    let why = match number {
        1 => format!("No other type fits; it has {memory} of GPU memory in all."),
        _ => format!("Of the {number} types that fit it has the least GPU memory, {memory} in all."),
    };
    let mut text = format!(
        "Recommended: {} of {} ({}). {why}\nIn a Workspace: resource.instanceType {}, resource.count {}. The \
         runtime is {}.\n",
        plural(plan.nodes.into(), "node"),
        one.name,
        one.cloud,
        one.name,
        plan.nodes,
        served_by.sentence(),
    );
    for note in notes(plan) {
        text.push_str(&format!("Note: {note}\n"));
    }
    text
}

fn in_full(preset: &'static Preset, plan: &Plan) -> String {
    let served_by = ServedBy::of(preset, plan);
    let nodes = format!("{} of {}", plural(plan.nodes.into(), "node"), plan.instance_type.name);
    let verdict = if plan.fits { "fits on" } else { "does not fit on" };
    let mut text = format!("{} {verdict} {nodes}\n\n", preset.name);
    let requirement = &preset.workload;
    let each = requirement.gpu_memory_each.map_or_else(String::new, |each| format!(", {} each", gib(each)));
    let used = &plan.per_gpu;
    let usable = plan.instance_type.gpu.usable_memory;
    let adapters = format!("{}, each of rank {ADAPTER_RANK} on all matrices", gib_needed(used.adapters));
    let rows = [
        ("model", weights(preset, plan)),
        (
            "published need",
            format!("{}, {} in all{each}", plural(requirement.gpus.into(), "GPU"), gib(requirement.gpu_memory)),
        ),
        ("node", node(&plan.instance_type)),
        ("placement", placement(plan)),
        ("load", sequences(plan)),
        ("served by", served_by.sentence()),
        ("", String::new()),
        ("weights", gib_needed(used.weights)),
        ("KV cache", format!("{}, in {}", gib_needed(used.kv_cache), plan.kv_cache)),
        ("activations", gib_needed(used.activations)),
        ("adapters", adapters),
        ("runtime", gib_needed(used.runtime)),
        ("each GPU", format!("{} of the {} that a program can have", gib_needed(used.total()), gib(usable))),
        (
            "room",
            match plan.capacity {
                None => "for no sequence at all".to_owned(),
                Some(capacity) => format!(
                    "for {} of {} tokens, or {} of {}",
                    plural(plan.batch, "sequence"),
                    capacity.context,
                    plural(capacity.batch, "sequence"),
                    plan.context
                ),
            },
        ),
    ];
    let rows = rows.into_iter().filter(|(key, _)| *key != "adapters" || plan.adapters > 0);
    text.push_str(&aligned(rows.map(|(key, value)| [key.to_owned(), value]).collect()));
    for problem in plan.problems() {
        text.push_str(&format!("\n{problem}\n"));
    }
    for note in notes(plan) {
        text.push_str(&format!("\nNote: {note}\n"));
    }
    text
}

fn weights(preset: &Preset, plan: &Plan) -> String {
    format!("{} parameters in {}", count(preset.shape.parameters()), plan.weights)
}

fn sequences(plan: &Plan) -> String {
    let adapters = match plan.adapters {
        0 => String::new(),
        some => format!(" and {}", plural(some, "adapter")),
    };
    format!("{} of {} tokens{adapters}", plural(plan.batch, "sequence"), plan.context)
}

fn node(one: &InstanceType) -> String {
    let cpus = one.cpus.map_or_else(String::new, |cpus| format!(", {}", plural(cpus.into(), "CPU")));
    let memory = one.memory.map_or_else(String::new, |memory| format!(", {} of memory", gib(memory)));
    format!("{} x {} with {}{cpus}{memory}", one.gpus, one.gpu.model, gib(one.gpu.memory))
}

fn placement(plan: &Plan) -> String {
    let per_node = plan.gpus_per_node;
    match plan.cut {
        Cut::Ranks(ranks) => {
            format!("{ranks} ranks, each with a slice of every layer: {} on a node", plural(per_node.into(), "GPU"))
        }
        Cut::Layers(1) => "on 1 GPU".to_owned(),
        Cut::Layers(gpus) => format!("layers shared out among {gpus} GPUs of one node"),
    }
}

fn plural(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
