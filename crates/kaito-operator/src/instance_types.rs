//! Instance types that users describe: node pools that are not in the built-in table.
//!
//! They stand in a ConfigMap, under the key [`KEY`], as a list in YAML or JSON:
//!
//! ```yaml
//! - name: rack-7              # what the nodes' label node.kubernetes.io/instance-type says
//!   gpus: 4
//!   gpuMemory: 23034Mi        # of one GPU, as nvidia-smi or the label nvidia.com/gpu.memory tells it
//!   gpuVendor: nvidia         # or amd; the rest may be left out
//!   gpuModel: NVIDIA L4
//!   computeCapability: "8.9"
//!   cpus: 48
//!   memory: 192Gi
//! ```

use std::{borrow::Cow, collections::BTreeMap};

use kaito_presets::{CustomInstanceType, InstanceTypes, InvalidInstanceType};
use serde_json::Value;

/// Key of the ConfigMap under which the list stands.
pub const KEY: &str = "instance-types.yaml";

/// Largest list that is read: a ConfigMap holds no more.
const MOST_BYTES: usize = 1 << 20;

/// Why a list of instance types cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not YAML, or not such a list.
    #[error("{KEY} cannot be read: {0}")]
    Syntax(String),
    /// An instance type with an impossible field.
    #[error("{KEY}: {0}")]
    Invalid(#[from] InvalidInstanceType),
    /// A ConfigMap without the key.
    #[error("the ConfigMap has no key {KEY}, but {}", if .0.is_empty() { "none at all".to_owned() } else { .0.join(", ") })]
    NoKey(Vec<String>),
}

/// The built-in instance types and those of the list.
///
/// # Errors
///
/// [`Error`], with the name of the instance type and its field where there is one.
pub fn read(list: &str) -> Result<InstanceTypes, Error> {
    if list.len() > MOST_BYTES {
        return Err(too_long(list));
    }
    let described: Option<Vec<CustomInstanceType>> =
        serde_saphyr::from_str(list).map_err(|error| Error::Syntax(error.to_string()))?;
    Ok(InstanceTypes::with_custom(described.unwrap_or_default())?)
}

/// The built-in instance types and those of a ConfigMap.
///
/// # Errors
///
/// As [`read`], and where the key is missing.
pub fn from_config_map(data: &BTreeMap<String, String>) -> Result<InstanceTypes, Error> {
    match data.get(KEY) {
        Some(list) => read(list),
        None => Err(Error::NoKey(data.keys().cloned().collect())),
    }
}

/// The built-in instance types and those of a file: a list, or the manifest of a ConfigMap.
///
/// # Errors
///
/// As [`from_config_map`].
pub fn from_file(text: &str) -> Result<InstanceTypes, Error> {
    read(&list_in(text)?)
}

/// The instance types that a file describes, checked, each with its fields as they were written.
///
/// # Errors
///
/// As [`from_config_map`].
pub fn described(text: &str) -> Result<Vec<BTreeMap<String, Value>>, Error> {
    let list = list_in(text)?;
    read(&list)?;
    let described: Option<Vec<BTreeMap<String, Value>>> =
        serde_saphyr::from_str(&list).map_err(|error| Error::Syntax(error.to_string()))?;
    let mut described = described.unwrap_or_default();
    described.iter_mut().flat_map(BTreeMap::values_mut).for_each(Value::sort_all_objects);
    Ok(described)
}

/// The list, or what the manifest of a ConfigMap has under [`KEY`].
fn list_in(text: &str) -> Result<Cow<'_, str>, Error> {
    if text.len() > MOST_BYTES {
        return Err(too_long(text));
    }
    let manifest = serde_saphyr::from_str::<Value>(text).ok().filter(|value| value["kind"] == "ConfigMap");
    let Some(manifest) = manifest else { return Ok(text.into()) };
    let data = manifest["data"].as_object();
    match data.and_then(|data| data.get(KEY)?.as_str()) {
        Some(list) => Ok(list.to_owned().into()),
        None => {
            let mut keys: Vec<String> = data.into_iter().flatten().map(|(key, _)| key.clone()).collect();
            keys.sort();
            Err(Error::NoKey(keys))
        }
    }
}

fn too_long(text: &str) -> Error {
    Error::Syntax(format!("it has {} bytes, more than {MOST_BYTES}", text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "- {name: rack-7, gpus: 4, gpuMemory: 23034Mi, computeCapability: '8.9'}\n";

    #[test]
    fn a_list_is_read_wherever_it_stands() {
        let config_map = format!("apiVersion: v1\nkind: ConfigMap\ndata:\n  {KEY}: |\n    {LIST}");
        let json = r#"[{"name": "rack-7", "gpus": 4, "gpuMemory": "23034Mi"}]"#;
        for types in [read(LIST), from_file(LIST), from_file(&config_map), read(json), from_file(json)] {
            assert_eq!(types.unwrap().find("rack-7").unwrap().gpus, 4);
        }
        for nothing in ["", "# none yet\n", "[]"] {
            assert_eq!(read(nothing).unwrap(), InstanceTypes::built_in(), "{nothing:?}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let config_map = |data: &str| from_file(&format!("{{kind: ConfigMap, data: {data}}}")).unwrap_err().to_string();
        assert_eq!(config_map("{}"), "the ConfigMap has no key instance-types.yaml, but none at all");
        assert_eq!(config_map("{types: '', x: ''}"), "the ConfigMap has no key instance-types.yaml, but types, x");
        for (list, parts) in [
            ("- {name: rack-7, gpus: four, gpuMemory: 1Gi}", &["instance-types.yaml cannot be read", "line 1"][..]),
            ("- {name: rack-7, gpus: 4, memoryOfGpu: 1Gi}", &["memoryOfGpu", "gpuMemory"]),
            ("- {name: rack-7, gpus: 4}", &["gpuMemory"]),
            ("rack-7: 4", &["instance-types.yaml cannot be read"]),
            (
                "- {name: rack-7, gpus: 0, gpuMemory: 24Gi}",
                &["instance-types.yaml: instance type \"rack-7\": gpus is 0"],
            ),
            ("- [", &["instance-types.yaml cannot be read"]),
        ] {
            let message = read(list).unwrap_err().to_string();
            for part in parts {
                assert!(message.contains(part), "{list}: {message}");
            }
        }
        assert!(read(&"#".repeat(MOST_BYTES + 1)).unwrap_err().to_string().contains("1048577 bytes"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_gets_an_answer(text in ".{0,200}") {
            let _ = (read(&text), from_file(&text));
        }
    }
}
