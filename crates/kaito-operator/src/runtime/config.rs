//! Flags of a server from a ConfigMap.
//!
//! Two forms, which may stand beside each other. A key of its own for each flag:
//!
//! ```yaml
//! data:
//!   max-batch-size: "8"
//! ```
//!
//! and the Kaito project's file with a section for each runtime:
//!
//! ```yaml
//! data:
//!   inference_config.yaml: |
//!     vllm:
//!       gpu-memory-utilization: 0.95
//! ```

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Flag, FlagValue};
use crate::{decide::Problem, workspace::Runtime};

const FILE: &str = "inference_config.yaml";

/// Flags that the controller itself sets, or that no ConfigMap should hold.
const RESERVED: &[&str] = &[
    "api-key",
    "distributed-executor-backend",
    "host",
    "master",
    "model",
    "pipeline-parallel-size",
    "port",
    "rank",
    "served-model-name",
    "tensor-parallel-size",
    "weights",
    "world-size",
];

pub fn flags(runtime: Runtime, data: &BTreeMap<String, String>) -> Result<Vec<Flag>, Problem> {
    let mut flags = BTreeMap::new();
    if let Some(text) = data.get(FILE) {
        for (name, value) in section(runtime, text)? {
            flags.insert(name.clone(), value_of(&name, value)?);
        }
    }
    for (name, text) in data.iter().filter(|(name, _)| *name != FILE) {
        flags.insert(name.clone(), FlagValue::Text(text.trim().to_owned()));
    }
    flags.into_iter().map(|(name, value)| flag(name, value)).collect()
}

fn section(runtime: Runtime, text: &str) -> Result<Vec<(String, Value)>, Problem> {
    let document: BTreeMap<String, Value> =
        serde_saphyr::from_str(text).map_err(|error| invalid(format!("{FILE} is not a mapping in YAML: {error}")))?;
    match document.get(&runtime.to_string()) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Object(section)) => Ok(section.iter().map(|(name, value)| (name.clone(), value.clone())).collect()),
        Some(other) => Err(invalid(format!("{FILE} has {other} for {runtime}; expected a mapping of flags to values"))),
    }
}

fn value_of(name: &str, value: Value) -> Result<FlagValue, Problem> {
    Ok(match value {
        Value::Bool(switch) => FlagValue::Switch(switch),
        Value::String(text) => FlagValue::Text(text),
        Value::Number(number) => FlagValue::Text(number.to_string()),
        // vLLM takes JSON for what has parts.
        Value::Array(_) | Value::Object(_) => FlagValue::Text(value.to_string()),
        Value::Null => return Err(invalid(format!("the flag {name} has no value"))),
    })
}

fn flag(name: String, value: FlagValue) -> Result<Flag, Problem> {
    let is_name =
        !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c));
    if !is_name || name.starts_with('-') {
        return Err(invalid(format!(
            "{name:?} is not a flag; flags are lower-case words with dashes, like max-batch-size"
        )));
    }
    let name = name.replace('_', "-");
    if RESERVED.contains(&name.as_str()) {
        return Err(invalid(format!("the flag {name} cannot be set here; the controller sets it")));
    }
    Ok(Flag { name, value })
}

fn invalid(message: String) -> Problem {
    Problem { reason: "ConfigInvalid", message: format!("in the ConfigMap that inference.config names: {message}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn arguments(runtime: Runtime, pairs: &[(&str, &str)]) -> Vec<String> {
        Flag::arguments(&flags(runtime, &data(pairs)).unwrap()).collect()
    }

    const UPSTREAM: &str = "
# Maximum number of steps to find the max available seq len fitting in the GPU memory.
max_probe_steps: 6
vllm:
  cpu-offload-gb: 0
  gpu-memory-utilization: 0.95
  swap-space: 4
  enable-prefix-caching: true
  enable-log-requests: false
  rope-scaling: {factor: 2.0}
";

    #[test]
    fn the_file_of_the_kaito_project_is_read() {
        assert_eq!(
            arguments(Runtime::Vllm, &[(FILE, UPSTREAM)]),
            [
                "--cpu-offload-gb=0",
                "--no-enable-log-requests",
                "--enable-prefix-caching",
                "--gpu-memory-utilization=0.95",
                "--rope-scaling={\"factor\":2.0}",
                "--swap-space=4"
            ]
        );
        assert!(arguments(Runtime::Kaito, &[(FILE, UPSTREAM)]).is_empty());
    }

    #[test]
    fn plain_keys_are_flags_and_win() {
        assert_eq!(
            arguments(Runtime::Kaito, &[(FILE, "kaito: {max-batch-size: 4, threads: 2}"), ("max-batch-size", "8\n")]),
            ["--max-batch-size=8", "--threads=2"]
        );
    }

    #[test]
    fn what_is_no_flag_is_refused_by_name() {
        for (pairs, part) in [
            (&[("port", "80")][..], "the flag port cannot be set here"),
            (&[("world_size", "8")], "the flag world-size cannot be set here"),
            (&[("api-key", "x")], "the flag api-key"),
            (&[("--threads", "1")], "\"--threads\" is not a flag"),
            (&[("a b", "1")], "\"a b\" is not a flag"),
            (&[(FILE, "kaito: [1]")], "expected a mapping"),
            (&[(FILE, "- 1")], "is not a mapping in YAML"),
            (&[(FILE, "kaito: {threads: }")], "the flag threads has no value"),
        ] {
            let problem = flags(Runtime::Kaito, &data(pairs)).unwrap_err();
            assert_eq!(problem.reason, "ConfigInvalid");
            assert!(problem.message.contains(part), "{pairs:?}: {}", problem.message);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_gets_an_answer(text in ".*") {
            let _ = flags(Runtime::Kaito, &data(&[(FILE, &text)]));
            let _ = flags(Runtime::Kaito, &data(&[("key", &text)]));
        }
    }
}
