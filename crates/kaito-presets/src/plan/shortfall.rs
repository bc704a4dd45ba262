use std::fmt;

use serde::Serialize;

use super::Load;
use crate::{
    InstanceType,
    memory::{Cut, Estimate},
    size::{gib, gib_needed},
};

/// A resource that there is too little of. The messages begin as the Kaito project's do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Shortfall {
    /// Too few GPUs.
    Gpus {
        /// What there is.
        nodes: Nodes,
        /// GPUs of the nodes that can be used together.
        provided: u32,
        /// GPUs of the preset.
        needed: u32,
        /// Which preset.
        preset: &'static str,
    },
    /// The published memory of one GPU is less than the published requirement.
    GpuMemory {
        /// What there is.
        nodes: Nodes,
        /// Bytes.
        provided: u64,
        /// Bytes.
        needed: u64,
        /// Which preset.
        preset: &'static str,
    },
    /// The memory of one GPU that a program can use is less than the estimate of weights, KV cache and the rest.
    UsableGpuMemory {
        /// What there is.
        nodes: Nodes,
        /// Bytes as published.
        published: u64,
        /// Bytes of it that a program can have.
        provided: u64,
        /// What it must hold.
        needed: Estimate,
        /// GPUs that share the model.
        gpus: u32,
        /// Tokens of each sequence.
        context: u64,
        /// Sequences at once.
        batch: u64,
        /// Tokens of each sequence that would fit; 0 where none would.
        longest: u64,
        /// Which preset.
        preset: &'static str,
    },
    /// The published memory of all GPUs is less than the published requirement.
    TotalGpuMemory {
        /// What there is.
        nodes: Nodes,
        /// Bytes of the nodes that can be used together.
        provided: u64,
        /// Bytes.
        needed: u64,
        /// Which preset.
        preset: &'static str,
    },
}

/// Nodes of one type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Nodes {
    /// Their type.
    pub instance_type: String,
    /// How many.
    pub count: u32,
    /// How many of them one copy of the model can be spread over.
    pub usable: u32,
}

/// Nodes that would be enough.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Enough {
    /// Their type.
    pub instance_type: String,
    /// How many.
    pub nodes: u32,
}

impl Enough {
    pub(super) fn sentence(ways: &[Self]) -> String {
        if ways.is_empty() {
            return "no instance type of this cloud in the table would be enough".to_owned();
        }
        let ways: Vec<String> = ways.iter().map(Self::to_string).collect();
        format!("{} would be enough", ways.join(" or "))
    }
}

impl fmt::Display for Enough {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", plural(self.nodes.into(), "node"), self.instance_type)
    }
}

/// All shortfalls of these nodes.
pub(super) fn find(
    load: &Load,
    instance_type: &InstanceType,
    count: u32,
    cut: Cut,
    gpus_per_node: u32,
) -> Vec<Shortfall> {
    let workload = &load.preset.workload;
    let preset = load.preset.name;
    let usable = if workload.ranks > 1 { count } else { 1 };
    let nodes = || Nodes { instance_type: instance_type.name.clone().into_owned(), count, usable };
    let mut shortfalls = Vec::new();

    // Equal parts: of a node's GPUs only those count that a pod asks for.
    let provided = usable.saturating_mul(gpus_per_node.min(instance_type.gpus));
    if provided < cut.gpus() {
        shortfalls.push(Shortfall::Gpus { nodes: nodes(), provided, needed: cut.gpus(), preset });
    }
    let published = instance_type.gpu.memory;
    let needed = load.estimate(load.least_context(), load.batch, cut);
    let fits = |context| load.estimate(context, load.batch, cut).total() <= instance_type.gpu.usable_memory;
    match workload.gpu_memory_each.filter(|_| load.published_requirement_holds()) {
        Some(each) if published < each => {
            shortfalls.push(Shortfall::GpuMemory { nodes: nodes(), provided: published, needed: each, preset });
        }
        _ if needed.total() > instance_type.gpu.usable_memory => shortfalls.push(Shortfall::UsableGpuMemory {
            nodes: nodes(),
            published,
            provided: instance_type.gpu.usable_memory,
            needed,
            gpus: cut.gpus(),
            context: load.least_context(),
            batch: load.batch,
            longest: super::longest_context(load, fits),
            preset,
        }),
        _ => {}
    }
    let provided = instance_type.gpu_memory().saturating_mul(usable.into());
    if load.published_requirement_holds() && provided < workload.gpu_memory {
        let needed = workload.gpu_memory;
        shortfalls.push(Shortfall::TotalGpuMemory { nodes: nodes(), provided, needed, preset });
    }
    shortfalls
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Shortfall::Gpus { nodes, provided, needed, preset } => {
                let has = if nodes.usable == 1 { "has" } else { "have" };
                write!(f, "Insufficient number of GPUs: {nodes} {has} {}", plural(u64::from(*provided), "GPU"))?;
                write!(f, ", but preset {preset} needs {needed}{}", nodes.together())
            }
            Shortfall::GpuMemory { nodes, provided, needed, preset } => write!(
                f,
                "Insufficient per GPU memory: {} has {} per GPU, but preset {preset} needs {} per GPU",
                nodes.instance_type,
                gib(*provided),
                gib_needed(*needed)
            ),
            Shortfall::UsableGpuMemory {
                nodes,
                published,
                provided,
                needed,
                gpus,
                context,
                batch,
                longest,
                preset,
            } => {
                let load = |tokens: u64| format!("{} of {tokens} tokens", plural(*batch, "sequence"));
                let (name, has) = (&nodes.instance_type, gib(*provided));
                f.write_str("Insufficient per GPU memory: ")?;
                match gib(*published) {
                    published if published == has => write!(f, "{name} has {has} per GPU")?,
                    published => write!(f, "of its {published} per GPU {name} leaves a program {has}")?,
                }
                write!(f, ", but preset {preset} needs {} for {}", gib_needed(needed.total()), load(*context))?;
                if *gpus > 1 {
                    write!(f, " on each of {gpus} GPUs")?;
                }
                let besides = needed.activations.saturating_add(needed.adapters).saturating_add(needed.runtime);
                write!(f, " ({} of weights, ", gib_needed(needed.weights))?;
                write!(f, "{} of KV cache, {} besides)", gib_needed(needed.kv_cache), gib_needed(besides))?;
                if *longest > 0 { write!(f, "; {} would fit", load(*longest)) } else { Ok(()) }
            }
            Shortfall::TotalGpuMemory { nodes, provided, needed, preset } => {
                let has = if nodes.usable == 1 { "has" } else { "have" };
                write!(f, "Insufficient total GPU memory: {nodes} {has} {}", gib(*provided))?;
                write!(f, ", but preset {preset} needs {}{}", gib_needed(*needed), nodes.together())
            }
        }
    }
}

impl Nodes {
    /// Why not all of them count.
    fn together(&self) -> &'static str {
        if self.usable < self.count { " on one node, for it does not spread over nodes" } else { "" }
    }
}

impl fmt::Display for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", plural(self.usable.into(), "node"), self.instance_type)
    }
}

fn plural(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
