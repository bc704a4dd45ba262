//! Tensor, pipeline and data parallelism of vLLM, where a ConfigMap asks for sizes of its own.

use kaito_presets::{Preset, Shape};

use crate::{
    layout::{Division, can_share},
    reason::Problem,
    runtime::{Sizes, does_not_fit},
    text,
};

/// Nodes to divide a model among.
#[derive(Debug, Clone, Copy)]
pub struct Among {
    /// Pods that serve one model together.
    pub pods: u32,
    /// GPUs that each pod has by default.
    pub usual: u32,
    /// GPUs of a node, where known.
    pub offered: Option<u32>,
}

/// The division that a ConfigMap asks for, and the GPUs that each pod needs for it.
///
/// # Errors
///
/// Where the model cannot be divided so, or the nodes have too few GPUs.
pub fn divide(preset: &Preset, sizes: &Sizes, among: Among) -> Result<(Division, u32), Problem> {
    let Among { pods, usual, offered } = among;
    let pods = pods.max(1);
    if let (None, None, None) = (sizes.tensor, sizes.pipeline, sizes.data) {
        return Ok((Division::usual(usual, pods), usual));
    }
    let data = sizes.data.unwrap_or(1);
    if data > 1 && pods > 1 {
        return Err(does_not_fit(format!(
            "data-parallel-size is {data}, but {pods} pods serve {} together: copies are made within one pod only",
            preset.name
        )));
    }
    let fits = |gpus: u32| offered.is_none_or(|offered| gpus <= offered);
    let (tensor, pipeline) = match (sizes.tensor, sizes.pipeline) {
        (Some(tensor), Some(pipeline)) => (tensor, pipeline),
        // Each pod has a group of layers, unless one pod has too few GPUs for a layer: then all pods share every layer.
        (Some(tensor), None) if !fits(tensor) && tensor.is_multiple_of(pods) => (tensor, 1),
        (Some(tensor), None) => (tensor, pods),
        (None, Some(pipeline)) => ((usual.saturating_mul(pods) / pipeline).max(1), pipeline),
        (None, None) => (usual.max(1), pods),
    };
    let division = Division { tensor, pipeline, data };
    check_model(preset, division)?;
    let asked = product(division);
    let all = division.gpus();
    if !all.is_multiple_of(u64::from(pods)) {
        return Err(does_not_fit(format!("{asked} are {all} GPUs, which {pods} pods cannot share evenly")));
    }
    let gpus = u32::try_from(all / u64::from(pods)).unwrap_or(u32::MAX);
    match offered.filter(|offered| gpus > *offered) {
        Some(offered) => Err(does_not_fit(format!(
            "{asked} need {} of each node, but the nodes have {offered}",
            text::count(gpus as usize, "GPU")
        ))),
        None => Ok((division, gpus)),
    }
}

/// Refuses what the model's own numbers do not allow.
fn check_model(preset: &Preset, division: Division) -> Result<(), Problem> {
    let Division { tensor, pipeline, .. } = division;
    let Shape { num_heads, num_layers, .. } = preset.shape;
    if !can_share(preset, tensor) {
        let most = u32::try_from(num_heads).unwrap_or(u32::MAX);
        let can: Vec<_> = (1..=most).filter(|gpus| can_share(preset, *gpus)).map(|gpus| gpus.to_string()).collect();
        return Err(does_not_fit(format!(
            "tensor-parallel-size is {tensor}, but each layer of {} has {num_heads} attention heads, {} and an MLP \
             of width {}, which {tensor} GPUs cannot share evenly; {} can",
            preset.name,
            text::count(preset.shape.num_kv_heads, "KV head"),
            preset.shape.intermediate_size,
            text::list(&can)
        )));
    }
    if pipeline as usize > num_layers {
        let name = preset.name;
        return Err(does_not_fit(format!("pipeline-parallel-size is {pipeline}, but {name} has {num_layers} layers")));
    }
    Ok(())
}

fn product(division: Division) -> String {
    let sizes = [
        ("tensor-parallel-size", division.tensor),
        ("pipeline-parallel-size", division.pipeline),
        ("data-parallel-size", division.data),
    ];
    let sizes = sizes.iter().enumerate().filter(|(place, (_, size))| *place == 0 || *size > 1);
    sizes.map(|(_, (name, size))| format!("{name} {size}")).collect::<Vec<_>>().join(" times ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn divided(
        name: &str,
        (tensor, pipeline, data): (u32, u32, u32),
        (pods, usual, offered): (u32, u32, u32),
    ) -> Result<(Division, u32), String> {
        let given = |size: u32| (size > 0).then_some(size);
        let sizes = Sizes { tensor: given(tensor), pipeline: given(pipeline), data: given(data), ..Sizes::default() };
        let among = Among { pods, usual, offered: given(offered) };
        divide(kaito_presets::find(name).unwrap(), &sizes, among).map_err(|problem| {
            assert_eq!(problem.reason.as_str(), "ConfigDoesNotFit");
            problem.message.trim_start_matches("in the ConfigMap that inference.config names: ").to_owned()
        })
    }

    /// Sizes asked for, 0 for none, and pods, usual GPUs of each and GPUs of a node, 0 for unknown.
    #[test]
    fn a_division_that_fits_is_taken() {
        for (name, sizes, among, (tensor, pipeline, data, gpus)) in [
            ("llama-2-70b", (0, 0, 0), (2, 4, 8), (4, 2, 1, 4)),
            ("llama-2-70b", (8, 0, 0), (2, 4, 8), (8, 2, 1, 8)),
            ("llama-2-70b", (4, 2, 0), (2, 4, 8), (4, 2, 1, 4)),
            // One layer across nodes.
            ("llama-2-70b", (8, 0, 0), (2, 4, 4), (8, 1, 1, 4)),
            ("llama-2-70b", (8, 1, 0), (2, 4, 4), (8, 1, 1, 4)),
            ("llama-2-70b", (0, 4, 0), (2, 4, 8), (2, 4, 1, 4)),
            ("llama-2-70b", (0, 1, 0), (2, 4, 8), (8, 1, 1, 4)),
            ("mistral-7b", (2, 0, 0), (1, 1, 4), (2, 1, 1, 2)),
            ("mistral-7b", (0, 2, 0), (1, 1, 4), (1, 2, 1, 2)),
            ("mistral-7b", (0, 0, 4), (1, 1, 4), (1, 1, 4, 4)),
            ("mistral-7b", (2, 1, 2), (1, 1, 4), (2, 1, 2, 4)),
            ("mistral-7b", (32, 0, 0), (1, 1, 0), (32, 1, 1, 32)),
            ("falcon-7b", (1, 4, 0), (1, 1, 4), (1, 4, 1, 4)),
        ] {
            assert_eq!(
                divided(name, sizes, among),
                Ok((Division { tensor, pipeline, data }, gpus)),
                "{name} {sizes:?} {among:?}"
            );
        }
    }

    #[test]
    fn a_division_that_does_not_fit_is_told_with_numbers() {
        for (name, sizes, among, words) in [
            (
                "mistral-7b",
                (8, 0, 0),
                (1, 1, 4),
                "tensor-parallel-size 8 need 8 GPUs of each node, but the nodes have 4",
            ),
            (
                "mistral-7b",
                (2, 2, 2),
                (1, 1, 4),
                "tensor-parallel-size 2 times pipeline-parallel-size 2 times data-parallel-size 2 need 8 GPUs of each node, but \
                 the nodes have 4",
            ),
            (
                "falcon-7b",
                (2, 0, 0),
                (1, 1, 4),
                "tensor-parallel-size is 2, but each layer of falcon-7b has 71 attention heads, 1 KV head and an MLP of \
                 width 18176, which 2 GPUs cannot share evenly; 1, 71 can",
            ),
            (
                "llama-2-13b",
                (3, 0, 0),
                (1, 2, 4),
                "tensor-parallel-size is 3, but each layer of llama-2-13b has 40 attention heads, 40 KV heads and an MLP of \
                 width 13824, which 3 GPUs cannot share evenly; 1, 2, 4, 8 can",
            ),
            ("mistral-7b", (1, 33, 0), (1, 1, 64), "pipeline-parallel-size is 33, but mistral-7b has 32 layers"),
            (
                "llama-2-70b",
                (1, 3, 0),
                (2, 4, 8),
                "tensor-parallel-size 1 times pipeline-parallel-size 3 are 3 GPUs, which 2 pods cannot share evenly",
            ),
            (
                "llama-2-70b",
                (0, 0, 2),
                (2, 4, 8),
                "data-parallel-size is 2, but 2 pods serve llama-2-70b together: copies are made within one pod only",
            ),
        ] {
            assert_eq!(divided(name, sizes, among), Err(words.to_owned()));
        }
    }
}
