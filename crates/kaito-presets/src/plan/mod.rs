//! Which hardware a model fits on, how many nodes it needs, and, where it does not fit, why.
//!
//! The admission webhook, the controller and `kaito plan` all ask here. A model fits if two comparisons hold: of the catalogue's
//! published requirement with the published GPU memory, as the Kaito project compares them, and of the estimate of
//! [`crate::memory`] with the GPU memory that a program can really use.

mod shortfall;

use std::num::NonZeroU32;

use serde::Serialize;
pub use shortfall::{Enough, Shortfall};

use crate::{
    GIB, InstanceType, InstanceTypes, Preset,
    instance_types::ComputeCapability,
    memory::{Cut, Estimate, PAGE_TOKENS, Precision, adapter_bytes, adapter_bytes_on_cpus, estimate, estimate_on_cpus},
};

/// The least context that must fit where nobody asks for one, in tokens: what the models' documentation promises.
pub const MIN_CONTEXT: u64 = 2048;

/// Most sequences at once: a larger number is taken for a mistake.
const MOST_SEQUENCES: u64 = 1 << 20;

/// A model and the load that it must hold at once: sequences, their length, adapters, and precisions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    preset: &'static Preset,
    context: Option<u64>,
    batch: u64,
    adapters: u64,
    weights: Precision,
    kv_cache: Precision,
}

/// What a server that computes on CPUs needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct OnCpus {
    /// Main memory.
    pub memory: Estimate,
    /// CPUs that it makes use of.
    pub cpus: u32,
}

/// Bytes of weights for each CPU. Each token reads all weights once, and a core of today's servers reads some 8 GiB a second: so a
/// token takes a quarter of a second.
const WEIGHTS_OF_A_CPU: u64 = 2 * GIB;

/// A load that is refused whatever the hardware.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// Longer than the model was made for.
    #[error(
        "a context of {context} tokens was asked for, but must be from 1 to {limit}, the length {preset} was made for"
    )]
    Context {
        /// Asked for.
        context: u64,
        /// The model's.
        limit: u64,
        /// The model.
        preset: &'static str,
    },
    /// None, or absurdly many.
    #[error("a batch of {batch} sequences was asked for, but must be from 1 to {MOST_SEQUENCES}")]
    Batch {
        /// Asked for.
        batch: u64,
    },
}

impl From<&'static Preset> for Load {
    /// The model as published, one sequence, of at least [`MIN_CONTEXT`] tokens.
    fn from(preset: &'static Preset) -> Self {
        let weights = Precision::from(preset.dtype);
        Self { preset, context: None, batch: 1, adapters: 0, weights, kv_cache: weights }
    }
}

impl Load {
    /// With sequences of this length.
    ///
    /// # Errors
    /// Where the model was not made for it.
    pub fn context(self, context: u64) -> Result<Self, LoadError> {
        let limit = self.limit();
        if context == 0 || context > limit {
            return Err(LoadError::Context { context, limit, preset: self.preset.name });
        }
        Ok(Self { context: Some(context), ..self })
    }

    /// With so many sequences at once.
    ///
    /// # Errors
    /// Where it is none, or absurdly many.
    pub fn batch(self, batch: u64) -> Result<Self, LoadError> {
        if batch == 0 || batch > MOST_SEQUENCES {
            return Err(LoadError::Batch { batch });
        }
        Ok(Self { batch, ..self })
    }

    /// With so many adapters, each counted with rank [`crate::ADAPTER_RANK`] on all matrices.
    #[must_use]
    pub fn adapters(self, adapters: u64) -> Self {
        Self { adapters, ..self }
    }

    /// With weights in this precision; the KV cache is in 32 bits beside 32-bit weights, else in 16.
    #[must_use]
    pub fn weights(self, weights: Precision) -> Self {
        let kv_cache = match weights {
            Precision::F32 | Precision::Bf16 | Precision::F16 => weights,
            Precision::Fp8 | Precision::Int8 | Precision::Int4 => self.preset.dtype.into(),
        };
        Self { weights, kv_cache, ..self }
    }

    /// With the KV cache in this precision.
    #[must_use]
    pub fn kv_cache(self, kv_cache: Precision) -> Self {
        Self { kv_cache, ..self }
    }

    fn limit(&self) -> u64 {
        self.preset.shape.max_position_embeddings as u64
    }

    /// The context that must fit.
    fn least_context(&self) -> u64 {
        self.context.unwrap_or_else(|| self.limit().min(MIN_CONTEXT))
    }

    fn estimate(&self, context: u64, batch: u64, cut: Cut) -> Estimate {
        let adapters = adapter_bytes(&self.preset.shape, self.weights, self.adapters, cut);
        estimate(&self.preset.shape, self.weights, self.kv_cache, context, batch, cut).with_adapters(adapters)
    }

    /// What a server that computes on CPUs needs for it.
    pub fn on_cpus(&self) -> OnCpus {
        let adapters = adapter_bytes_on_cpus(&self.preset.shape, self.adapters);
        let memory = estimate_on_cpus(&self.preset.shape, self.weights, self.least_context(), self.batch)
            .with_adapters(adapters);
        let cpus = memory.weights.div_ceil(WEIGHTS_OF_A_CPU).max(1);
        OnCpus { memory, cpus: u32::try_from(cpus).unwrap_or(u32::MAX) }
    }

    /// The published requirement is about 16-bit weights, and says nothing of narrower ones.
    fn published_requirement_holds(&self) -> bool {
        self.weights.bits() >= 16
    }

    /// The fewest GPUs that may hold the model.
    fn least_gpus(&self) -> u32 {
        let workload = &self.preset.workload;
        if workload.ranks > 1 {
            workload.ranks
        } else if self.published_requirement_holds() {
            workload.gpus
        } else {
            1
        }
    }
}

/// How much fits at once, each of them while the other is as asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Capacity {
    /// Longest sequences, in tokens.
    pub context: u64,
    /// Most sequences.
    pub batch: u64,
}

/// How a model would run on nodes of one type.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// The preset's name.
    pub preset: &'static str,
    /// The nodes' type.
    pub instance_type: InstanceType,
    /// Whether it fits: whether there are no shortfalls.
    pub fits: bool,
    /// Nodes: as many as were asked for, else as are needed.
    pub nodes: u32,
    /// Nodes that hold a part of the model, or a copy of it.
    pub nodes_used: u32,
    /// GPUs that the pod on each node asks for.
    pub gpus_per_node: u32,
    /// How the model is divided among all GPUs.
    pub cut: Cut,
    /// How the weights are held.
    pub weights: Precision,
    /// Precision of the KV cache.
    pub kv_cache: Precision,
    /// Tokens of each sequence.
    pub context: u64,
    /// Sequences at once.
    pub batch: u64,
    /// Adapters.
    pub adapters: u64,
    /// What the GPU that holds most of the model needs.
    pub per_gpu: Estimate,
    /// How much would fit; `None` where not even one short sequence does.
    pub capacity: Option<Capacity>,
    /// Why it does not fit.
    pub shortfalls: Vec<Shortfall>,
    /// What would be enough instead; empty where it fits.
    pub enough: Vec<Enough>,
}

impl Plan {
    /// Why it does not fit, a sentence each, with what would be enough.
    pub fn problems(&self) -> impl Iterator<Item = String> {
        self.shortfalls.iter().map(|shortfall| format!("{shortfall}; {}", Enough::sentence(&self.enough)))
    }

    /// What happens with more nodes than the model needs, where the user may not have meant it.
    pub fn surplus_nodes(&self) -> Option<String> {
        let (preset, nodes) = (self.preset, self.nodes);
        match self.cut {
            Cut::Layers(_) if nodes > 1 => {
                Some(format!("preset {preset} runs on one node: each of the {nodes} serves a copy of it"))
            }
            Cut::Ranks(ranks) if nodes > ranks => {
                let idle = nodes - ranks;
                Some(format!("preset {preset} has {ranks} ranks; of the {nodes} nodes asked for, {idle} would be idle"))
            }
            Cut::Ranks(ranks) if !ranks.is_multiple_of(nodes.max(1)) => Some(format!(
                "preset {preset} has {ranks} ranks, which {nodes} nodes cannot share evenly; {} can",
                divisors(ranks)
            )),
            Cut::Ranks(_) | Cut::Layers(_) => None,
        }
    }

    /// Why these GPUs do not compute in the precision of the weights, if they do not.
    pub fn precision_problem(&self) -> Option<String> {
        let capability = self.instance_type.gpu.compute_capability?;
        let needed = ComputeCapability::BF16;
        (self.weights == Precision::Bf16 && capability < needed).then(|| {
            format!(
                "{} has compute capability {capability}, and bf16 needs {needed}: the server must compute in f16 there",
                self.instance_type.gpu.model
            )
        })
    }
}

impl InstanceTypes {
    /// How a model would run on `nodes` nodes of this type, or on as many as it needs.
    pub fn plan(&self, load: &Load, instance_type: &InstanceType, nodes: Option<NonZeroU32>) -> Plan {
        let mut plan = plan(load, instance_type, nodes);
        if !plan.fits {
            plan.enough = self.enough(load, instance_type);
        }
        plan
    }

    /// Every type that it fits on, the smallest first.
    pub fn plans(&self, load: &Load, nodes: Option<NonZeroU32>) -> Vec<Plan> {
        let mut plans: Vec<Plan> = self.iter().map(|one| plan(load, one, nodes)).filter(|plan| plan.fits).collect();
        plans.sort_by(|left, right| expense(left).cmp(&expense(right)));
        plans
    }

    /// Two alternatives: more nodes of this type, if that helps, and the smallest types of the same cloud.
    fn enough(&self, load: &Load, instance_type: &InstanceType) -> Vec<Enough> {
        let more = plan(load, instance_type, None);
        let others = self.plans(load, None).into_iter().filter(|other| {
            other.instance_type.cloud == instance_type.cloud && other.instance_type.name != instance_type.name
        });
        std::iter::once(more)
            .filter(|more| more.fits)
            .chain(others)
            .take(2)
            .map(|plan| Enough { nodes: plan.nodes, instance_type: plan.instance_type.name.into_owned() })
            .collect()
    }
}

/// Plans are compared by the published GPU memory of all nodes, and then by the other resources that they occupy.
fn expense(plan: &Plan) -> impl Ord + '_ {
    let (nodes, instance_type) = (u64::from(plan.nodes), &plan.instance_type);
    (
        nodes.saturating_mul(instance_type.gpu_memory()),
        nodes * u64::from(instance_type.gpus),
        nodes,
        instance_type.memory,
        instance_type.cpus,
        &instance_type.name,
    )
}

/// A plan without alternatives.
fn plan(load: &Load, instance_type: &InstanceType, nodes: Option<NonZeroU32>) -> Plan {
    let (context, batch) = (load.least_context(), load.batch);
    let usable = instance_type.gpu.usable_memory;
    let fits = |context, batch, cut| load.estimate(context, batch, cut).total() <= usable;
    let (cut, gpus_per_node) = divide(load, instance_type, nodes, |cut| fits(context, batch, cut));
    let at_least = cut.gpus().div_ceil(gpus_per_node);
    let nodes = match nodes {
        Some(asked) => asked.get(),
        None => at_least.max(nodes_for_published_memory(load, instance_type)),
    };
    let nodes_used = match cut {
        Cut::Ranks(_) => at_least.min(nodes),
        Cut::Layers(_) => nodes,
    };
    let shortfalls = shortfall::find(load, instance_type, nodes, cut, gpus_per_node);
    let capacity = fits(1, 1, cut).then(|| Capacity {
        context: longest_context(load, |context| fits(context, batch, cut)),
        batch: largest(MOST_SEQUENCES, |batch| fits(context, batch, cut)),
    });
    Plan {
        preset: load.preset.name,
        instance_type: instance_type.clone(),
        fits: shortfalls.is_empty(),
        nodes,
        nodes_used,
        gpus_per_node,
        cut,
        weights: load.weights,
        kv_cache: load.kv_cache,
        context,
        batch,
        adapters: load.adapters,
        per_gpu: load.estimate(context, batch, cut),
        capacity,
        shortfalls,
        enough: Vec::new(),
    }
}

/// How the model is divided, and how many GPUs of each node hold a part.
///
/// Tensor-parallel ranks are divided among nodes in equal numbers: among all that are asked for, if the number of ranks is a
/// multiple of theirs, else among as few as suffice. A model without ranks stays on one node and takes as few of its GPUs as
/// suffice, in doublings, so that heads can be divided evenly too.
fn divide(
    load: &Load,
    instance_type: &InstanceType,
    nodes: Option<NonZeroU32>,
    fits: impl Fn(Cut) -> bool,
) -> (Cut, u32) {
    let there = instance_type.gpus.max(1);
    let least = load.least_gpus().max(1);
    if load.preset.workload.ranks > 1 {
        let shared = nodes.filter(|nodes| least.is_multiple_of(nodes.get())).map(|nodes| least / nodes);
        if let Some(share) = shared.filter(|share| *share <= there) {
            return (Cut::Ranks(least), share);
        }
        let on_a_node = (1..=there.min(least)).rev().find(|gpus| least.is_multiple_of(*gpus)).unwrap_or(1);
        return (Cut::Ranks(least), on_a_node);
    }
    let doublings = || std::iter::successors(Some(least), |gpus| gpus.checked_mul(2)).take_while(|gpus| *gpus <= there);
    let gpus = doublings().find(|gpus| fits(Cut::Layers(*gpus))).or_else(|| doublings().last()).unwrap_or(least);
    (Cut::Layers(gpus), gpus)
}

/// `1, 2, 4 or 8`.
fn divisors(number: u32) -> String {
    let all: Vec<String> = (1..number).filter(|one| number.is_multiple_of(*one)).map(|one| one.to_string()).collect();
    format!("{} or {number}", all.join(", "))
}

fn nodes_for_published_memory(load: &Load, instance_type: &InstanceType) -> u32 {
    if load.preset.workload.ranks == 1 || !load.published_requirement_holds() {
        return 1;
    }
    let nodes = load.preset.workload.gpu_memory.div_ceil(instance_type.gpu_memory().max(1));
    u32::try_from(nodes).unwrap_or(u32::MAX)
}

/// The longest sequence that fits, in whole pages unless the model's own limit comes first; 0 where none fits.
fn longest_context(load: &Load, fits: impl Fn(u64) -> bool) -> u64 {
    let tokens = |pages: u64| (pages * PAGE_TOKENS).min(load.limit());
    tokens(largest(load.limit().div_ceil(PAGE_TOKENS), |pages| fits(tokens(pages))))
}

/// The largest number up to `most` that fits, where all that are smaller fit too; 0 where 1 does not.
fn largest(most: u64, fits: impl Fn(u64) -> bool) -> u64 {
    let (mut fitting, mut beyond) = (0, most.saturating_add(1));
    while beyond - fitting > 1 {
        let middle = fitting + (beyond - fitting) / 2;
        if fits(middle) { fitting = middle } else { beyond = middle }
    }
    fitting
}

#[cfg(test)]
mod tests;
