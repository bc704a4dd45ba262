//! Flags of a server from a ConfigMap.
//!
//! There are two forms, which may be mixed. One key for each flag:
//!
//! ```yaml
//! data:
//!   max-batch-size: "8"
//! ```
//!
//! and the Kaito project's file, with a section for each runtime:
//!
//! ```yaml
//! data:
//!   inference_config.yaml: |
//!     vllm:
//!       gpu-memory-utilization: 0.95
//! ```

use std::collections::BTreeMap;

use kaito_presets::Preset;
use serde_json::Value;

use super::{
    Flag, FlagValue,
    server_config::{ServerConfig, invalid},
    vllm_config,
};
use crate::{reason::Problem, workspace::Runtime};

const FILE: &str = "inference_config.yaml";

/// Longest file that is read. A ConfigMap can hold 1 MiB, but no list of flags is nearly that long.
const MOST_BYTES: usize = 256 << 10;

/// Flags that the controller itself sets, or that no ConfigMap should hold.
const RESERVED: &[&str] = &[
    "api-key",
    "headless",
    "master",
    "master-addr",
    "master-port",
    "nnodes",
    "node-rank",
    "rank",
    "weights",
    "world-size",
];
/// Further reserved names for the runtime `kaito`: flags that the controller sets, or that its server does not have.
const RESERVED_OF_KAITO: &[&str] = &[
    "distributed-executor-backend",
    "host",
    "model",
    "pipeline-parallel-size",
    "port",
    "served-model-name",
    "tensor-parallel-size",
];

/// Further reserved names for the runtime `vllm`: the server in front reaches it at its loopback address, over plain HTTP.
const RESERVED_OF_VLLM: &[&str] = &["root-path", "ssl-ca-certs", "ssl-cert-reqs", "ssl-certfile", "ssl-keyfile", "uds"];

/// What a ConfigMap says for a runtime.
///
/// # Errors
///
/// Where the data are of another form, or set what is not the user's to set.
pub fn read(runtime: Runtime, preset: &Preset, data: &BTreeMap<String, String>) -> Result<ServerConfig, Problem> {
    let mut config = ServerConfig::default();
    let mut values = BTreeMap::new();
    if let Some(text) = data.get(FILE) {
        for (name, value) in section(runtime, text, &mut config)? {
            values.insert(flag_name(&name)?, value_of(&name, value)?);
        }
    }
    for (name, text) in data.iter().filter(|(name, _)| *name != FILE) {
        values.insert(flag_name(name)?, FlagValue::Text(text.trim().to_owned()));
    }
    let of_runtime = match runtime {
        Runtime::Kaito => RESERVED_OF_KAITO,
        Runtime::Vllm => RESERVED_OF_VLLM,
    };
    let is_reserved = |name: &str| RESERVED.contains(&name) || of_runtime.contains(&name);
    if let Some(name) = values.keys().find(|name| is_reserved(name)) {
        return Err(invalid(format!("the flag {name} cannot be set here; the controller sets it")));
    }
    if runtime == Runtime::Vllm {
        vllm_config::take(&mut values, preset, &mut config)?;
    }
    config.flags = values.into_iter().map(|(name, value)| Flag { name, value }).collect();
    Ok(config)
}

fn section(runtime: Runtime, text: &str, config: &mut ServerConfig) -> Result<Vec<(String, Value)>, Problem> {
    if text.len() > MOST_BYTES {
        return Err(invalid(format!("{FILE} has {} bytes, more than {MOST_BYTES}", text.len())));
    }
    let document: Option<BTreeMap<String, Value>> =
        serde_saphyr::from_str(text).map_err(|error| invalid(format!("{FILE} is not a mapping in YAML: {error}")))?;
    let mut document = document.unwrap_or_default();
    let own = document.remove(&runtime.to_string());
    for (key, value) in document {
        match key.as_str() {
            "kaito" | "vllm" | "transformers" if value == Value::Null => {}
            "kaito" | "vllm" => config.ignored.push(format!(
                "the section {key} of {FILE} is for another runtime: this workspace's is {runtime}, and the annotation \
                 kaito.sh/runtime: {key} chooses the other"
            )),
            "transformers" => config.ignored.push(format!(
                "the section {key} of {FILE} is for another runtime: this workspace's is {runtime}, whose section is \
                 {runtime}"
            )),
            "max_probe_steps" => {
                config.needless.push("max_probe_steps: the context that fits is computed, not probed for".to_owned());
            }
            "kv_cache_cpu_memory_utilization" => {
                config.ignored.push(format!("{key} of {FILE} has no effect: the KV cache is not moved to main memory"))
            }
            _ => {
                let key: String = key.chars().take(100).collect();
                config.ignored.push(format!("{key:?} of {FILE} is unknown and has no effect"));
            }
        }
    }
    match own {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Object(mut section)) => {
            // Of two spellings of a flag the same one counts, wherever it stands.
            section.sort_keys();
            Ok(section.into_iter().collect())
        }
        Some(other) => {
            let other: String = other.to_string().chars().take(100).collect();
            Err(invalid(format!("{FILE} has {other} for {runtime}; expected a mapping of flags to values")))
        }
    }
}

fn value_of(name: &str, value: Value) -> Result<FlagValue, Problem> {
    Ok(match value {
        Value::Bool(switch) => FlagValue::Switch(switch),
        Value::String(text) => FlagValue::Text(text),
        Value::Number(number) => FlagValue::Text(number.to_string()),
        // vLLM's flags take lists and mappings as JSON.
        Value::Array(_) | Value::Object(_) => FlagValue::Text(value.to_string()),
        Value::Null => return Err(invalid(format!("the flag {name} has no value"))),
    })
}

fn flag_name(name: &str) -> Result<String, Problem> {
    let is_name =
        !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c));
    if !is_name || name.starts_with('-') {
        return Err(invalid(format!(
            "{name:?} is not a flag; flags are lower-case words with dashes, like max-batch-size"
        )));
    }
    Ok(name.replace('_', "-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn read_for(runtime: Runtime, pairs: &[(&str, &str)]) -> Result<ServerConfig, Problem> {
        read(runtime, kaito_presets::find("mistral-7b").unwrap(), &data(pairs))
    }

    fn arguments(runtime: Runtime, pairs: &[(&str, &str)]) -> Vec<String> {
        Flag::arguments(&read_for(runtime, pairs).unwrap().flags).collect()
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
        let config = read_for(Runtime::Vllm, &[(FILE, UPSTREAM)]).unwrap();
        assert!(config.ignored.is_empty(), "{:?}", config.ignored);
        assert!(config.needless[0].starts_with("max_probe_steps"));
        assert!(arguments(Runtime::Kaito, &[(FILE, UPSTREAM)]).is_empty());
    }

    #[test]
    fn what_is_for_another_runtime_or_for_nobody_is_named() {
        for (runtime, text, parts) in [
            (
                Runtime::Kaito,
                UPSTREAM,
                &["the section vllm", "this workspace's is kaito", "kaito.sh/runtime: vllm"][..],
            ),
            (Runtime::Vllm, "kaito: {threads: 2}", &["the section kaito", "this workspace's is vllm"]),
            (Runtime::Vllm, "transformers: {torch_dtype: float16}", &["the section transformers"]),
            (Runtime::Kaito, "transformers: {torch_dtype: float16}", &["the section transformers"]),
            (Runtime::Vllm, "kv_cache_cpu_memory_utilization: 0.5", &["kv_cache_cpu_memory_utilization"]),
            (Runtime::Vllm, "vlm: {max-model-len: 5}", &["\"vlm\"", "is unknown and has no effect"]),
        ] {
            let config = read_for(runtime, &[(FILE, text)]).unwrap();
            let [ignored] = config.ignored.as_slice() else { panic!("{text}: {:?}", config.ignored) };
            for part in parts {
                assert!(ignored.contains(part), "{text}: {ignored}");
            }
        }
        assert_eq!(read_for(Runtime::Kaito, &[(FILE, "vllm:\nkaito:\n")]).unwrap(), ServerConfig::default());
        assert_eq!(read_for(Runtime::Kaito, &[(FILE, "# nothing\n")]).unwrap(), ServerConfig::default());
    }

    #[test]
    fn plain_keys_are_flags_and_win() {
        assert_eq!(
            arguments(Runtime::Kaito, &[(FILE, "kaito: {max-batch-size: 4, threads: 2}"), ("max-batch-size", "8\n")]),
            ["--max-batch-size=8", "--threads=2"]
        );
        assert_eq!(
            arguments(Runtime::Kaito, &[(FILE, "kaito: {max_batch_size: 4}"), ("max-batch-size", "8")]),
            ["--max-batch-size=8"]
        );
    }

    #[test]
    fn what_is_no_flag_is_refused_by_name() {
        let long = format!("kaito: {{}}\n# {}", "x".repeat(MOST_BYTES));
        for (pairs, part) in [
            (&[("port", "80")][..], "the flag port cannot be set here"),
            (&[("world_size", "8")], "the flag world-size cannot be set here"),
            (&[("tensor-parallel-size", "8")], "the flag tensor-parallel-size cannot be set here"),
            (&[("api-key", "x")], "the flag api-key"),
            (&[("--threads", "1")], "\"--threads\" is not a flag"),
            (&[("a b", "1")], "\"a b\" is not a flag"),
            (&[(FILE, "kaito: [1]")], "expected a mapping"),
            (&[(FILE, "- 1")], "is not a mapping in YAML"),
            (&[(FILE, "kaito: {threads: }")], "the flag threads has no value"),
            (&[(FILE, &long)], "bytes, more than 262144"),
        ] {
            let problem = read_for(Runtime::Kaito, pairs).unwrap_err();
            assert_eq!(problem.reason.as_str(), "ConfigInvalid");
            assert!(problem.message.contains(part), "{}", problem.message);
        }
        for name in ["api-key", "nnodes", "node-rank", "master-addr", "headless", "ssl-keyfile"] {
            let problem = read_for(Runtime::Vllm, &[(FILE, &format!("vllm: {{{name}: 1}}"))]).unwrap_err();
            assert!(problem.message.contains(&format!("the flag {name} cannot be set here")), "{}", problem.message);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_gets_an_answer(text in ".*", name in "[a-z]{1,8}(-[a-z]{1,8}){0,3}") {
            for runtime in [Runtime::Kaito, Runtime::Vllm] {
                let _ = read_for(runtime, &[(FILE, &text)]);
                let _ = read_for(runtime, &[("key", &text)]);
                let _ = read_for(runtime, &[(&name, &text)]);
            }
        }
    }
}
