use super::*;
use crate::{GIB, PRESETS, find, find_instance_type};

fn count(nodes: u32) -> Option<NonZeroU32> {
    NonZeroU32::new(nodes)
}

fn planned(preset: &str, instance_type: &str, nodes: Option<NonZeroU32>) -> Plan {
    let load = Load::from(find(preset).unwrap());
    InstanceTypes::built_in().plan(&load, find_instance_type(instance_type).unwrap(), nodes)
}

/// What the Kaito project's own example manifests ask for, releases 0.1 to 0.3.
#[test]
fn the_published_examples_fit() {
    for (preset, instance_type, nodes) in [
        ("falcon-7b", "Standard_NC12s_v3", 1),
        ("falcon-7b-instruct", "Standard_NC12s_v3", 1),
        ("falcon-40b", "Standard_NC96ads_A100_v4", 1),
        ("falcon-40b-instruct", "Standard_NC96ads_A100_v4", 1),
        ("llama-2-7b", "Standard_NC12s_v3", 1),
        ("llama-2-7b-chat", "Standard_NC12s_v3", 1),
        ("llama-2-13b", "Standard_NC12s_v3", 1),
        ("llama-2-13b-chat", "Standard_NC12s_v3", 1),
        ("llama-2-70b", "Standard_NC96ads_A100_v4", 2),
        ("llama-2-70b-chat", "Standard_NC96ads_A100_v4", 2),
        ("mistral-7b", "Standard_NC12s_v3", 1),
        ("mistral-7b-instruct", "Standard_NC24ads_A100_v4", 1),
        ("phi-3-mini-4k-instruct", "Standard_NC6s_v3", 1),
        ("phi-3-mini-128k-instruct", "Standard_NC6s_v3", 1),
    ] {
        let plan = planned(preset, instance_type, count(nodes));
        assert!(plan.fits, "{preset}: {:?}", plan.problems().collect::<Vec<_>>());
        assert_eq!(plan.nodes_used, nodes, "{preset}");
        assert_eq!(planned(preset, instance_type, None).nodes, nodes, "{preset}");
    }
}

/// Ranks go on as few nodes as do; layers on as few GPUs as do.
#[test]
fn models_are_divided() {
    for (preset, instance_type, cut, gpus_per_node, nodes) in [
        ("llama-2-70b", "Standard_NC96ads_A100_v4", Cut::Ranks(8), 4, 2),
        ("llama-2-70b", "Standard_ND96amsr_A100_v4", Cut::Ranks(8), 8, 1),
        ("llama-2-70b", "a2-megagpu-16g", Cut::Ranks(8), 8, 1),
        ("llama-2-70b-chat", "Standard_NV72ads_A10_v5", Cut::Ranks(8), 2, 4),
        ("llama-2-70b", "g5.xlarge", Cut::Ranks(8), 1, 8),
        ("llama-2-13b", "Standard_NC6s_v3", Cut::Ranks(2), 1, 2),
        ("llama-2-13b", "Standard_NC24s_v3", Cut::Ranks(2), 2, 1),
        ("falcon-40b", "Standard_NC96ads_A100_v4", Cut::Layers(2), 2, 1),
        // 38 GiB of weights and the rest are more than a GPU of 40 GiB leaves.
        ("falcon-40b", "p4d.24xlarge", Cut::Layers(4), 4, 1),
        ("mistral-7b", "g5.48xlarge", Cut::Layers(1), 1, 1),
    ] {
        let plan = planned(preset, instance_type, None);
        assert!(plan.fits, "{preset} {instance_type} {:?}", plan.shortfalls);
        assert_eq!((plan.cut, plan.gpus_per_node, plan.nodes), (cut, gpus_per_node, nodes), "{preset} {instance_type}");
    }
}

#[test]
fn why_not_and_what_would_be_enough() {
    for (preset, instance_type, nodes, problems) in [
        (
            "llama-2-13b",
            "Standard_NC6s_v3",
            1,
            &[
                "Insufficient number of GPUs: 1 node of Standard_NC6s_v3 has 1 GPU, but preset llama-2-13b needs 2; 2 nodes of \
               Standard_NC6s_v3 or 1 node of Standard_NC12s_v3 would be enough",
                "Insufficient total GPU memory: 1 node of Standard_NC6s_v3 has 16 GiB, but preset llama-2-13b needs 30 GiB; 2 \
               nodes of Standard_NC6s_v3 or 1 node of Standard_NC12s_v3 would be enough",
            ][..],
        ),
        (
            "llama-2-70b",
            "Standard_NC64as_T4_v3",
            2,
            &[
                "Insufficient per GPU memory: Standard_NC64as_T4_v3 has 16 GiB per GPU, but preset llama-2-70b needs 19 GiB per \
               GPU; 4 nodes of Standard_NV72ads_A10_v5 or 8 nodes of Standard_NV36ads_A10_v5 would be enough",
                "Insufficient total GPU memory: 2 nodes of Standard_NC64as_T4_v3 have 128 GiB, but preset llama-2-70b needs 152 \
               GiB; 4 nodes of Standard_NV72ads_A10_v5 or 8 nodes of Standard_NV36ads_A10_v5 would be enough",
            ],
        ),
        (
            "falcon-40b",
            "Standard_NC24ads_A100_v4",
            2,
            &[
                "Insufficient number of GPUs: 1 node of Standard_NC24ads_A100_v4 has 1 GPU, but preset falcon-40b needs 2 on \
               one node, for it does not spread over nodes; 1 node of Standard_NC48ads_A100_v4 or 1 node of \
               Standard_NC80adis_H100_v5 would be enough",
                "Insufficient total GPU memory: 1 node of Standard_NC24ads_A100_v4 has 80 GiB, but preset falcon-40b needs 90 \
               GiB on one node, for it does not spread over nodes; 1 node of Standard_NC48ads_A100_v4 or 1 node of \
               Standard_NC80adis_H100_v5 would be enough",
            ],
        ),
    ] {
        let plan = planned(preset, instance_type, count(nodes));
        assert_eq!(plan.problems().collect::<Vec<_>>(), problems, "{preset} {instance_type} {nodes}");
        assert!(!plan.fits);
    }
}

/// The catalogue's 16 GiB for Llama 2 7B chat are there, but not for a program, and not for a long context.
#[test]
fn the_memory_that_a_program_has_is_what_counts() {
    let load = Load::from(find("llama-2-7b-chat").unwrap());
    let t4 = find_instance_type("g4dn.xlarge").unwrap();
    let types = InstanceTypes::built_in();
    let short = types.plan(&load, t4, None);
    assert!(short.fits, "{:?}", short.shortfalls);
    assert_eq!(short.context, MIN_CONTEXT);
    // 12.55 GiB of weights, 0.85 besides: of 14.56 GiB 1.15 are left, at half a MiB a token.
    let longest = short.capacity.unwrap().context;
    assert!((2300..2400).contains(&longest), "{longest}");
    assert!(types.plan(&load.context(longest).unwrap(), t4, None).fits);

    let long = types.plan(&load.context(4096).unwrap(), t4, None);
    assert_eq!(
        long.problems().collect::<Vec<_>>(),
        [format!(
            "Insufficient per GPU memory: of its 16 GiB per GPU g4dn.xlarge leaves a program 14.56 GiB, but preset \
             llama-2-7b-chat needs 15.42 GiB for 1 sequence of 4096 tokens (12.56 GiB of weights, 2 GiB of KV cache, \
             0.87 GiB besides); 1 sequence of {longest} tokens would fit; 1 node of p3.2xlarge or 1 node of g5.xlarge would be \
             enough"
        )]
    );
}

/// The published requirement is about 16-bit weights: in four bits Llama 2 7B fits 8 GiB, and Falcon 40B one GPU.
#[test]
fn narrow_weights_need_less() {
    let types = InstanceTypes::built_in();
    let int4 = |name: &str| Load::from(find(name).unwrap()).weights(Precision::Int4);
    assert!(types.plan(&int4("llama-2-7b"), find_instance_type("Standard_NV12ads_A10_v5").unwrap(), None).fits);
    let falcon = types.plan(&int4("falcon-40b"), find_instance_type("Standard_NC24ads_A100_v4").unwrap(), None);
    assert!(falcon.fits && falcon.cut == Cut::Layers(1), "{falcon:?}");
    let f32 = Load::from(find("mistral-7b").unwrap()).weights(Precision::F32);
    assert_eq!(types.plan(&f32, find_instance_type("p3.8xlarge").unwrap(), None).cut, Cut::Layers(2));
}

#[test]
fn what_a_user_should_know_although_it_fits() {
    for (preset, nodes, note) in [
        ("llama-2-70b", 2, None),
        ("llama-2-70b", 4, None),
        ("llama-2-70b", 3, Some("preset llama-2-70b has 8 ranks, which 3 nodes cannot share evenly; 1, 2, 4 or 8 can")),
        ("llama-2-70b", 10, Some("preset llama-2-70b has 8 ranks; of the 10 nodes asked for, 2 would be idle")),
        ("mistral-7b", 1, None),
        ("mistral-7b", 2, Some("preset mistral-7b runs on one node: each of the 2 serves a copy of it")),
    ] {
        let plan = planned(preset, "Standard_NC96ads_A100_v4", count(nodes));
        assert!(plan.fits);
        assert_eq!(plan.surplus_nodes().as_deref(), note, "{preset} {nodes}");
    }
    let four = planned("llama-2-70b", "Standard_NC96ads_A100_v4", count(4));
    assert_eq!((four.nodes_used, four.gpus_per_node), (4, 2));
    assert_eq!(
        planned("mistral-7b", "g4dn.xlarge", None).precision_problem().as_deref(),
        Some("NVIDIA T4 has compute capability 7.5, and bf16 needs 8.0: the server must compute in f16 there")
    );
    assert_eq!(planned("llama-2-7b", "g4dn.xlarge", None).precision_problem(), None);
    assert_eq!(planned("mistral-7b", "g5.xlarge", None).precision_problem(), None);
}

#[test]
fn the_smallest_comes_first() {
    let types = InstanceTypes::built_in();
    let names = |preset: &str, nodes| -> Vec<String> {
        let plans = types.plans(&Load::from(find(preset).unwrap()), nodes);
        plans.into_iter().take(4).map(|plan| format!("{} {}", plan.nodes, plan.instance_type.name)).collect()
    };
    assert_eq!(
        names("phi-3-mini-4k-instruct", None),
        ["1 Standard_NV18ads_A10_v5", "1 g4dn.xlarge", "1 Standard_NC4as_T4_v3", "1 g4dn.2xlarge"]
    );
    assert_eq!(
        names("llama-2-70b", count(1)),
        ["1 g2-standard-96", "1 g5.48xlarge", "1 g6.48xlarge", "1 Standard_ND40rs_v2"]
    );
}

#[test]
fn impossible_loads_are_refused() {
    let load = Load::from(find("llama-2-7b").unwrap());
    for (result, message) in [
        (
            load.context(4097),
            "a context of 4097 tokens was asked for, but must be from 1 to 4096, the length llama-2-7b was made for",
        ),
        (
            load.context(0),
            "a context of 0 tokens was asked for, but must be from 1 to 4096, the length llama-2-7b was made for",
        ),
        (load.batch(0), "a batch of 0 sequences was asked for, but must be from 1 to 1048576"),
        (
            load.batch(u64::MAX),
            "a batch of 18446744073709551615 sequences was asked for, but must be from 1 to 1048576",
        ),
    ] {
        assert_eq!(result.unwrap_err().to_string(), message);
    }
}

/// Equal parts: of three GPUs a node two can serve eight ranks.
#[test]
fn ranks_are_spread_in_equal_numbers() {
    let described = serde_json::json!([{ "name": "odd", "gpus": 3, "gpuMemory": "40Gi" }]);
    let types = InstanceTypes::with_custom(serde_json::from_value::<Vec<_>>(described).unwrap()).unwrap();
    let load = Load::from(find("llama-2-70b").unwrap());
    let plan = types.plan(&load, types.find("odd").unwrap(), None);
    assert_eq!((plan.fits, plan.nodes, plan.gpus_per_node), (true, 4, 2));
    let three = types.plan(&load, types.find("odd").unwrap(), count(3));
    assert_eq!(
        three.problems().collect::<Vec<_>>(),
        [
            "Insufficient number of GPUs: 3 nodes of odd have 6 GPUs, but preset llama-2-70b needs 8; 4 nodes of odd would be enough"
        ]
    );
}

proptest::proptest! {
    #[test]
    fn what_is_said_to_fit_fits(
        preset in 0..PRESETS.len(),
        instance_type in 0..92_usize,
        nodes in 0..20_u32,
        context in 1..131_073_u64,
        batch in 1..500_u64,
        precision in 0..6_usize,
    ) {
        let preset = &PRESETS[preset];
        let types = InstanceTypes::built_in();
        let instance_type = types.iter().nth(instance_type).unwrap();
        let limit = preset.shape.max_position_embeddings as u64;
        let precisions =
            [Precision::F32, Precision::Bf16, Precision::F16, Precision::Fp8, Precision::Int8, Precision::Int4];
        let load = Load::from(preset).weights(precisions[precision]).batch(batch).unwrap();
        let asked = load.context(context.min(limit)).unwrap();
        let plan = types.plan(&asked, instance_type, count(nodes));
        proptest::prop_assert_eq!(plan.fits, plan.shortfalls.is_empty());
        if plan.fits {
            let workload = &preset.workload;
            proptest::prop_assert!(plan.per_gpu.total() <= instance_type.gpu.usable_memory);
            proptest::prop_assert!(plan.gpus_per_node <= instance_type.gpus);
            proptest::prop_assert!(plan.nodes_used <= plan.nodes);
            proptest::prop_assert!(plan.nodes_used * plan.gpus_per_node >= plan.cut.gpus());
            if precisions[precision].bits() >= 16 {
                proptest::prop_assert!(u64::from(plan.nodes) * instance_type.gpu_memory() >= workload.gpu_memory);
                proptest::prop_assert!(instance_type.gpu.memory >= workload.gpu_memory_each.unwrap_or(0));
            }
            // All parts together are the whole, and no less.
            let whole = estimate(&preset.shape, plan.weights, plan.kv_cache, plan.context, plan.batch, Cut::Layers(1));
            proptest::prop_assert!(plan.per_gpu.weights * u64::from(plan.cut.gpus()) >= whole.weights);
            proptest::prop_assert!(
                plan.per_gpu.kv_cache * u64::from(plan.cut.gpus()) >= whole.kv_cache
            );
            // Less fits too.
            let less = load.context(context.min(limit).div_ceil(2)).unwrap().batch(batch.div_ceil(2)).unwrap();
            proptest::prop_assert!(types.plan(&less, instance_type, count(nodes)).fits);
            // What capacity says, holds, and one page or one sequence more does not.
            let capacity = plan.capacity.unwrap();
            let per_gpu = |context, batch| asked.estimate(context, batch, plan.cut).total();
            let usable = instance_type.gpu.usable_memory;
            proptest::prop_assert!(per_gpu(capacity.context, batch) <= usable);
            proptest::prop_assert!(capacity.context == limit || per_gpu(capacity.context + PAGE_TOKENS, batch) > usable);
            proptest::prop_assert!(per_gpu(plan.context, capacity.batch) <= usable);
            proptest::prop_assert!(
                capacity.batch == MOST_SEQUENCES || per_gpu(plan.context, capacity.batch + 1) > usable
            );
        } else {
            for enough in &plan.enough {
                let other = types.find(&enough.instance_type).unwrap();
                proptest::prop_assert!(types.plan(&asked, other, count(enough.nodes)).fits, "{enough}");
            }
            for problem in plan.problems() {
                proptest::prop_assert!(problem.starts_with("Insufficient "), "{problem}");
            }
        }
    }

    #[test]
    fn more_nodes_never_hurt(preset in 0..PRESETS.len(), instance_type in 0..92_usize, nodes in 1..20_u32) {
        let types = InstanceTypes::built_in();
        let instance_type = types.iter().nth(instance_type).unwrap();
        let load = Load::from(&PRESETS[preset]);
        let fits = |nodes| types.plan(&load, instance_type, nodes).fits;
        proptest::prop_assert!(!fits(count(nodes)) || fits(count(nodes + 1)));
        proptest::prop_assert!(!fits(count(nodes)) || fits(None));
        // As many as are said to be needed are needed.
        let needed = types.plan(&load, instance_type, None);
        if needed.fits && needed.nodes > 1 {
            proptest::prop_assert!(!fits(count(needed.nodes - 1)));
        }
    }
}

#[test]
fn every_preset_fits_somewhere_in_every_cloud() {
    let types = InstanceTypes::built_in();
    for preset in PRESETS {
        let plans = types.plans(&Load::from(preset), None);
        for cloud in ["Azure", "AWS", "Google"] {
            assert!(plans.iter().any(|plan| plan.instance_type.cloud.to_string() == cloud), "{} {cloud}", preset.name);
        }
        assert!(plans.iter().all(|plan| plan.per_gpu.total() <= plan.instance_type.gpu.usable_memory));
        assert!(plans[0].instance_type.gpu_memory() <= 256 * GIB);
    }
}

#[test]
fn on_cpus_a_model_needs_its_weights_in_memory_and_a_core_for_each_two_gibibytes() {
    for (name, gib, cpus) in [
        ("phi-3-mini-4k-instruct", 10, 4),
        ("falcon-7b", 15, 7),
        ("mistral-7b", 16, 7),
        ("llama-2-7b", 16, 7),
        ("llama-2-70b", 132, 65),
    ] {
        let needs = Load::from(find(name).unwrap()).on_cpus();
        assert_eq!((needs.memory.total().div_ceil(GIB), needs.cpus), (gib, cpus), "{name}");
        assert!(needs.memory.weights < find(name).unwrap().workload.gpu_memory);
    }
}

/// In GiB: 12.56 of weights, 1 of KV cache, 0.24 of activations, 0.63 of the runtime are 14.42 of the 14.56 that a T4 leaves; three
/// adapters are 0.89, in 16 bits.
#[test]
fn adapters_count_on_cpus_and_on_gpus() {
    let load = Load::from(find("llama-2-7b").unwrap());
    let total = |adapters| load.adapters(adapters).on_cpus().memory.total();
    let each = 4 * 32 * 64 * (4 * (4096 + 4096) + 3 * (4096 + 11008));
    assert_eq!(total(3) - total(0), 3 * each);
    assert_eq!(load.adapters(3).on_cpus().cpus, load.on_cpus().cpus);
    let types = InstanceTypes::built_in();
    let plan = |adapters| types.plan(&load.adapters(adapters), types.find("g4dn.xlarge").unwrap(), None);
    assert!(plan(0).fits && !plan(3).fits);
    assert_eq!((plan(3).adapters, plan(3).per_gpu.adapters), (3, 3 * each / 2));
    let problem = plan(3).problems().next().unwrap();
    assert!(problem.contains("needs 15.31 GiB") && problem.contains("1.76 GiB besides"), "{problem}");
}
