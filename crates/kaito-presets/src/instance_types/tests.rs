use std::collections::BTreeSet;

use super::{custom::quantity, *};

#[test]
fn no_two_share_a_name() {
    let names: BTreeSet<_> = built_in().map(|known| known.name.as_ref()).collect();
    assert_eq!(names.len(), built_in().count());
    assert_eq!(names.len(), 92);
}

/// GPU memory of a node as the clouds publish it, in their GB: Azure's "Accelerator-Memory", Google's "GPU memory".
#[test]
fn nodes_have_the_published_memory() {
    for (name, gpus, published) in [
        ("Standard_NC64as_T4_v3", 4, 64),
        ("Standard_NC12s_v3", 2, 32),
        ("Standard_ND40rs_v2", 8, 256),
        ("Standard_NV72ads_A10_v5", 2, 48),
        ("Standard_NV12ads_A10_v5", 1, 8),
        ("Standard_NC96ads_A100_v4", 4, 320),
        ("Standard_ND96asr_v4", 8, 320),
        ("Standard_ND96amsr_A100_v4", 8, 640),
        ("Standard_NC80adis_H100_v5", 2, 188),
        ("Standard_ND96isr_H200_v5", 8, 1128),
        ("g4dn.12xlarge", 4, 64),
        ("p3dn.24xlarge", 8, 256),
        ("p4d.24xlarge", 8, 320),
        ("p5en.48xlarge", 8, 1128),
        ("a2-megagpu-16g", 16, 640),
        ("a3-ultragpu-8g", 8, 1128),
        ("g2-standard-24", 2, 48),
    ] {
        let node = find_instance_type(name).unwrap();
        assert_eq!((node.gpus, node.gpu_memory() / GIB), (gpus, published), "{name}");
    }
}

#[test]
fn a_program_never_sees_more_memory_than_is_published() {
    for node in built_in() {
        assert!(node.gpu.usable_memory <= node.gpu.memory, "{}", node.name);
        assert!(node.gpu.usable_memory * 100 >= node.gpu.memory * 90, "{}", node.name);
        assert!(node.gpus > 0 && node.cpus.is_some() && node.memory.is_some(), "{}", node.name);
    }
}

#[test]
fn a_wrong_name_is_answered_with_the_one_that_may_be_meant() {
    for (name, nearest) in [
        ("standard_nc24ads_a100_v4", Some("Standard_NC24ads_A100_v4")),
        ("Standard_NC24ads_A100_v5", Some("Standard_NC24ads_A100_v4")),
        ("Standard_ND96asr_A100_v4", Some("Standard_ND96amsr_A100_v4")),
        ("g5.12xlrage", Some("g5.12xlarge")),
        ("a2-highgpu-3g", Some("a2-highgpu-1g")),
        ("Standard_D8s_v5", None),
        ("my-pool", None),
        ("Standard_", None),
        ("", None),
    ] {
        let error = find_instance_type(name).unwrap_err();
        assert_eq!(error.nearest.as_deref(), nearest, "{name:?}");
        assert!(error.to_string().starts_with(&format!("there is no instance type {name:?} in the table")), "{error}");
    }
    assert_eq!(
        find_instance_type("G5.XLARGE").unwrap_err().to_string(),
        "there is no instance type \"G5.XLARGE\" in the table; did you mean g5.xlarge? The case of its letters counts"
    );
}

fn described(json: serde_json::Value) -> Result<InstanceTypes, String> {
    let all: Vec<CustomInstanceType> = serde_json::from_value(json).map_err(|error| error.to_string())?;
    InstanceTypes::with_custom(all).map_err(|error| error.to_string())
}

#[test]
fn a_user_describes_node_pools() {
    let types = described(serde_json::json!([
        { "name": "rack-7", "gpus": 4, "gpuMemory": "23034Mi", "gpuModel": "NVIDIA L4", "computeCapability": "8.9",
          "cpus": 48, "memory": "192Gi" },
        { "name": "g5.xlarge", "gpus": 2, "gpuMemory": "22.5Gi" },
    ]))
    .unwrap();
    let rack = types.find("rack-7").unwrap();
    assert_eq!((rack.gpus, rack.gpu.memory, rack.gpu.usable_memory), (4, 23034 << 20, 23034 << 20));
    assert_eq!(rack.gpu.compute_capability.map(|capability| capability.to_string()).as_deref(), Some("8.9"));
    assert_eq!((rack.cloud, rack.cpus, rack.memory), (Cloud::Custom, Some(48), Some(192 * GIB)));
    assert_eq!(types.find("g5.xlarge").unwrap().gpus, 2, "the user's stands in the built-in one's place");
    assert_eq!(types.iter().count(), InstanceTypes::built_in().iter().count() + 1);
    assert_eq!(types.find("rack-8").unwrap_err().nearest.as_deref(), Some("rack-7"));
}

#[test]
fn a_user_says_who_makes_the_gpus() {
    let described = |one| described(serde_json::json!([one])).map(|types| types.find("rack").unwrap().gpu.vendor);
    let base = serde_json::json!({ "name": "rack", "gpus": 8, "gpuMemory": "192Gi" });
    assert_eq!(described(base.clone()), Ok(GpuVendor::Nvidia));
    let mut of_amd = base;
    of_amd["gpuVendor"] = "amd".into();
    assert_eq!(described(of_amd.clone()), Ok(GpuVendor::Amd));
    of_amd["computeCapability"] = "9.4".into();
    assert_eq!(
        described(of_amd),
        Err("instance type \"rack\": computeCapability is given, but GPUs of AMD have none: leave it out".to_owned())
    );
    assert_eq!(GpuVendor::ALL.map(GpuVendor::resource), ["nvidia.com/gpu", "amd.com/gpu"]);
}

#[test]
fn a_description_that_cannot_be_is_refused_with_its_field() {
    let base = || serde_json::json!({ "name": "rack", "gpus": 4, "gpuMemory": "24Gi" });
    for (field, value, message) in [
        ("gpus", serde_json::json!(0), "instance type \"rack\": gpus is 0, but must be from 1 to 64"),
        ("gpus", serde_json::json!(65), "instance type \"rack\": gpus is 65, but must be from 1 to 64"),
        ("gpus", serde_json::json!(-1), "invalid value: integer `-1`, expected u32"),
        (
            "gpuMemory",
            serde_json::json!("24GB"),
            "instance type \"rack\": gpuMemory is \"24GB\", but must be a quantity like 24Gi",
        ),
        ("gpuMemory", serde_json::json!("24"), "instance type \"rack\": gpuMemory is \"24\", which is less than 1Gi"),
        (
            "gpuMemory",
            serde_json::json!("9999Gi"),
            "instance type \"rack\": gpuMemory is \"9999Gi\", which is more than 1024Gi",
        ),
        (
            "memory",
            serde_json::json!("lots"),
            "instance type \"rack\": memory is \"lots\", but must be a quantity like 24Gi",
        ),
        (
            "computeCapability",
            serde_json::json!("eight"),
            "instance type \"rack\": computeCapability is \"eight\", but must be two numbers like \"8.9\", in quotes",
        ),
        ("cpus", serde_json::json!(0), "instance type \"rack\": cpus is 0"),
        ("gpuVendor", serde_json::json!("AMD"), "unknown variant `AMD`, expected `nvidia` or `amd`"),
        (
            "name",
            serde_json::json!("a rack"),
            "instance type \"a rack\": name must be the value of a label: 1 to 63 letters, digits, '-', '_' and '.', \
             beginning and ending with a letter or a digit",
        ),
        (
            "gpuCount",
            serde_json::json!(4),
            "unknown field `gpuCount`, expected one of `name`, `gpus`, `gpuMemory`, `gpuVendor`, `gpuModel`, \
             `computeCapability`, `cpus`, `memory`",
        ),
    ] {
        let mut one = base();
        one[field] = value;
        assert_eq!(described(serde_json::json!([one])).unwrap_err(), message, "{field}");
    }
    assert_eq!(
        described(serde_json::json!([base(), base()])).unwrap_err(),
        "instance type \"rack\": name is given twice"
    );
}

#[test]
fn quantities_are_those_of_kubernetes() {
    for (text, bytes) in [
        ("1", Some(1)),
        ("24Gi", Some(24 << 30)),
        ("24G", Some(24_000_000_000)),
        ("1.5Gi", Some(3 << 29)),
        (".5Ki", Some(512)),
        ("1.Ki", Some(1024)),
        ("512Mi", Some(512 << 20)),
        ("2Ti", Some(2 << 40)),
        ("100k", Some(100_000)),
        ("24GB", None),
        ("24gi", None),
        ("24 Gi", None),
        ("-1Gi", None),
        ("+1Gi", None),
        ("1e9", None),
        ("1.2.3", None),
        (".", None),
        ("", None),
        ("Gi", None),
        ("99999999999999999999Gi", None),
        ("999999999999999999Ti", None),
    ] {
        assert_eq!(quantity(text), bytes, "{text:?}");
    }
}

proptest::proptest! {
    #[test]
    fn any_text_gets_an_answer(text in ".*") {
        let _ = (quantity(&text), find_instance_type(&text));
    }
}
