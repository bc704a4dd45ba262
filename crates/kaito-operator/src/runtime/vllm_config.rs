//! The flags of vLLM that the controller computes or checks itself, where a ConfigMap gives them.

use std::collections::BTreeMap;

use kaito_presets::{GIB, Preset};

use super::{
    FlagValue, PORT,
    server_config::{ServerConfig, WeightBytes, does_not_fit, invalid},
};
use crate::reason::Problem;

/// Flags of older releases of vLLM. What they asked for, newer releases do without being asked, so they are left out.
const GONE: &[(&str, &str)] = &[
    ("max-seq-len-to-capture", "CUDA graphs are captured by batch size"),
    ("num-lookahead-slots", "its scheduler asks for no slots ahead"),
    ("num-scheduler-steps", "its engine schedules every step while the last one runs"),
    ("tokenizer-pool-size", "it tokenizes in a process of its own"),
    ("tokenizer-pool-type", "it tokenizes in a process of its own"),
    ("use-v2-block-manager", "there is no other"),
];

/// Flags of vLLM's own API. Clients do not reach it: `kaito serve` answers them, and asks vLLM for tokens alone.
const OF_ITS_API: &[&str] = &[
    "allowed-headers",
    "allowed-methods",
    "allowed-origins",
    "chat-template",
    "chat-template-content-format",
    "default-chat-template-kwargs",
    "enable-auto-tool-choice",
    "enable-request-id-headers",
    "reasoning-parser",
    "response-role",
    "return-tokens-as-token-ids",
    "tool-call-parser",
    "tool-parser-plugin",
    "trust-request-chat-template",
];

/// The largest size of a parallelism that is accepted.
const MOST: u32 = 4096;

type Values = BTreeMap<String, FlagValue>;

/// Takes the flags that are not simply passed on out of `values`.
pub fn take(values: &mut Values, preset: &Preset, config: &mut ServerConfig) -> Result<(), Problem> {
    check_identity(values, preset)?;
    for (name, instead) in GONE {
        if values.remove(*name).is_some() {
            config.needless.push(format!("{name}, which vLLM has no longer: {instead}"));
        }
    }
    if let Some(value) = values.remove("served-model-name") {
        config.served_names = names(&text(&value))?;
    }
    for name in OF_ITS_API.iter().filter(|name| values.contains_key(**name)) {
        config
            .ignored
            .push(format!("{name} is about vLLM's own API, but kaito serve in front of it answers the clients"));
    }
    // It is passed on, too.
    config.sequences = values.get("max-num-seqs").and_then(|value| text(value).parse().ok()).filter(|most| *most > 0);
    let sizes = &mut config.sizes;
    sizes.tensor = number(values, "tensor-parallel-size")?;
    sizes.pipeline = number(values, "pipeline-parallel-size")?;
    sizes.data = number(values, "data-parallel-size")?;
    if let Some(value) = values.remove("max-model-len") {
        sizes.context = context(&text(&value))?;
    }
    // These are passed on, but what they mean for GPU memory is read here too.
    if let Some(value) = values.get("gpu-memory-utilization") {
        let said = text(value);
        let part = said.parse::<f64>().ok().filter(|part| *part > 0.0 && *part <= 1.0);
        sizes.gpu_memory_utilisation = Some(part.ok_or_else(|| {
            invalid(format!("gpu-memory-utilization is {said:?}; expected a number above 0 and at most 1, like 0.9"))
        })?);
    }
    if let Some(value) = values.get("cpu-offload-gb") {
        let said = text(value);
        let gib = said.parse::<f64>().ok().filter(|gib| (0.0..1e6).contains(gib)).ok_or_else(|| {
            invalid(format!("cpu-offload-gb is {said:?}; expected a number of GiB that is not negative, like 4"))
        })?;
        sizes.offloaded = (gib * GIB as f64) as u64;
    }
    let is_quantised = values.get("quantization").is_some_and(|value| !matches!(text(value).as_str(), "none" | "None"));
    let dtype = values.get("dtype").map(text);
    sizes.weight_bytes = match dtype.as_deref() {
        _ if is_quantised => Some(WeightBytes::Unknown),
        Some("float" | "float32") => Some(WeightBytes::Known(4)),
        Some("half" | "float16" | "bfloat16") => Some(WeightBytes::Known(2)),
        Some("auto") | None => None,
        Some(_) => Some(WeightBytes::Unknown),
    };
    sizes.kv_bytes = values.get("kv-cache-dtype").map(text).filter(|dtype| dtype.starts_with("fp8")).map(|_| 1);
    sizes.scales_positions = ["rope-scaling", "hf-overrides"].iter().any(|name| values.contains_key(*name));
    Ok(())
}

/// Refuses other values of the flags that the pod and its Service depend on; the one value that they have anyway is accepted.
fn check_identity(values: &mut Values, preset: &Preset) -> Result<(), Problem> {
    if let Some(value) = values.remove("port").map(|value| text(&value))
        && value != PORT.to_string()
    {
        return Err(does_not_fit(format!(
            "port is {value}, but the workspace's Service leads to port {PORT} of its pods"
        )));
    }
    if let Some(value) = values.remove("host").map(|value| text(&value))
        && !["0.0.0.0", "::", "[::]"].contains(&value.as_str())
    {
        let message = format!("host is {value}, but the server must answer at its pod's address: leave it out");
        return Err(does_not_fit(message));
    }
    if let Some(value) = values.remove("model").map(|value| text(&value)) {
        let is_preset = kaito_presets::find(&value).is_ok_and(|named| named.name == preset.name);
        // The path of the weights in the Kaito project's images.
        if !is_preset && value != "/workspace/vllm/weights" {
            let message = format!("model is {value}, but the workspace's is {}: leave it out", preset.name);
            return Err(does_not_fit(message));
        }
    }
    Ok(())
}

/// A name, or a list of them.
fn names(said: &str) -> Result<Vec<String>, Problem> {
    let names: Vec<String> = if said.starts_with('[') {
        serde_json::from_str(said).map_err(|error| invalid(format!("served-model-name is {said}: {error}")))?
    } else {
        vec![said.to_owned()]
    };
    match names.iter().find(|name| name.trim().is_empty() || name.contains(',')) {
        Some(name) => Err(invalid(format!("served-model-name is {name:?}; expected a name without a comma"))),
        None => Ok(names),
    }
}

/// The size of a parallelism.
fn number(values: &mut Values, name: &str) -> Result<Option<u32>, Problem> {
    let Some(value) = values.remove(name).map(|value| text(&value)) else { return Ok(None) };
    match value.parse().ok().filter(|number| (1..=MOST).contains(number)) {
        Some(number) => Ok(Some(number)),
        None => Err(invalid(format!("{name} is {value:?}; expected a whole number from 1 to {MOST}"))),
    }
}

/// A context length as vLLM reads it: `4096`, `4k` for 4000, `4K` for 4096; `auto` and `-1` mean that it is computed.
fn context(said: &str) -> Result<Option<u64>, Problem> {
    if ["auto", "-1"].contains(&said) {
        return Ok(None);
    }
    let unit = match said.chars().next_back() {
        Some('k') => 1000,
        Some('K') => 1024,
        Some('m') => 1_000_000,
        Some('M') => 1 << 20,
        _ => 1,
    };
    let digits = if unit == 1 { said } else { said.get(..said.len() - 1).unwrap_or_default() };
    // vLLM allows decimals with powers of ten only.
    let tokens = match digits.parse::<u64>() {
        Ok(number) => number.checked_mul(unit),
        Err(_) if unit == 1000 || unit == 1_000_000 => digits
            .parse::<f64>()
            .ok()
            .filter(|number| (0.0..1e9).contains(number))
            .map(|number| (number * unit as f64) as u64),
        Err(_) => None,
    };
    match tokens.filter(|tokens| *tokens > 0) {
        Some(tokens) => Ok(Some(tokens)),
        None => Err(invalid(format!("max-model-len is {said:?}; expected a number of tokens, like 4096 or 32k"))),
    }
}

fn text(value: &FlagValue) -> String {
    match value {
        FlagValue::Switch(switch) => switch.to_string(),
        FlagValue::Text(text) => text.trim().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(section: &str) -> Result<(Vec<String>, ServerConfig), Problem> {
        let data = [("inference_config.yaml".to_owned(), format!("vllm: {{{section}}}"))].into();
        let preset = kaito_presets::find("mistral-7b-instruct").unwrap();
        let config = super::super::config::read(crate::workspace::Runtime::Vllm, preset, &data)?;
        Ok((super::super::Flag::arguments(&config.flags).collect(), config))
    }

    /// The published example of a configuration, for another preset.
    #[test]
    fn the_published_example_is_taken() {
        let (arguments, config) = taken(
            "cpu-offload-gb: 0, gpu-memory-utilization: 0.95, swap-space: 4, max-model-len: 131072, tensor-parallel-size: 2, \
             max-seq-len-to-capture: 8192, num-scheduler-steps: 1, enable-chunked-prefill: true",
        )
        .unwrap();
        assert_eq!(
            arguments,
            ["--cpu-offload-gb=0", "--enable-chunked-prefill", "--gpu-memory-utilization=0.95", "--swap-space=4"]
        );
        let sizes = config.sizes;
        assert_eq!((sizes.tensor, sizes.pipeline, sizes.data), (Some(2), None, None));
        assert_eq!((sizes.context, sizes.gpu_memory_utilisation), (Some(131_072), Some(0.95)));
        assert_eq!(config.needless.len(), 2, "{:?}", config.needless);
        assert!(config.ignored.is_empty());
    }

    #[test]
    fn lengths_are_read_as_vllm_reads_them() {
        for (said, tokens) in [
            ("4096", Some(4096)),
            ("'32k'", Some(32_000)),
            ("32K", Some(32_768)),
            ("1.5k", Some(1500)),
            ("1m", Some(1_000_000)),
            ("1M", Some(1_048_576)),
            ("auto", None),
            ("-1", None),
        ] {
            assert_eq!(taken(&format!("max-model-len: {said}")).unwrap().1.sizes.context, tokens, "{said}");
        }
        for said in
            ["0", "-2", "long", "1.5K", "1.5", "k", "99999999999999999999", "''", "true", "18446744073709551615K"]
        {
            let problem = taken(&format!("max-model-len: {said}")).unwrap_err();
            assert!(problem.message.contains("max-model-len is"), "{said}: {}", problem.message);
        }
    }

    #[test]
    fn what_says_what_is_so_anyway_is_let_in() {
        for section in [
            "port: 5000",
            "host: 0.0.0.0",
            "host: '::'",
            "model: mistralai/Mistral-7B-Instruct-v0.2",
            "model: mistral-7b-instruct",
            "model: /workspace/vllm/weights",
        ] {
            assert_eq!(taken(section).unwrap().0, [""; 0], "{section}");
        }
        for (section, part) in [
            ("port: 8000", "port is 8000, but the workspace's Service leads to port 5000"),
            ("host: 127.0.0.1", "host is 127.0.0.1"),
            ("model: mistral-7b", "model is mistral-7b, but the workspace's is mistral-7b-instruct"),
        ] {
            let problem = taken(section).unwrap_err();
            assert_eq!(problem.reason.as_str(), "ConfigDoesNotFit");
            assert!(problem.message.contains(part), "{section}: {}", problem.message);
        }
    }

    /// Both reach the server in front, by whose names and queue clients know the model.
    #[test]
    fn names_and_sequences_are_for_the_server_in_front() {
        for (section, names) in [
            ("served-model-name: poet", &["poet"][..]),
            ("served-model-name: [poet, tutor]", &["poet", "tutor"]),
            ("max-num-seqs: 4", &[]),
        ] {
            assert_eq!(taken(section).unwrap().1.served_names, names, "{section}");
        }
        for section in ["served-model-name: ''", "served-model-name: 'a,b'", "served-model-name: [1]"] {
            let problem = taken(section).unwrap_err();
            assert!(problem.message.contains("served-model-name is"), "{section}: {}", problem.message);
        }
        let (arguments, config) = taken("max-num-seqs: 4, served-model-name: poet").unwrap();
        assert_eq!((arguments, config.sequences), (vec!["--max-num-seqs=4".to_owned()], Some(4)));
        assert_eq!(taken("max-num-seqs: many").unwrap().1.sequences, None);
    }

    #[test]
    fn flags_of_its_own_api_are_named_as_without_effect() {
        let (arguments, config) = taken("chat-template: /mnt/a.jinja").unwrap();
        assert_eq!(arguments, ["--chat-template=/mnt/a.jinja"]);
        let [ignored] = config.ignored.as_slice() else { panic!("{:?}", config.ignored) };
        assert!(ignored.starts_with("chat-template is about vLLM's own API"), "{ignored}");
    }

    #[test]
    fn numbers_that_cannot_be_are_refused() {
        for (section, part) in [
            ("tensor-parallel-size: 0", "tensor-parallel-size is \"0\"; expected a whole number from 1 to 4096"),
            ("tensor-parallel-size: two", "tensor-parallel-size is \"two\""),
            ("tensor_parallel_size: 1.5", "tensor-parallel-size is \"1.5\""),
            ("pipeline-parallel-size: 99999", "pipeline-parallel-size is \"99999\""),
            ("data-parallel-size: -1", "data-parallel-size is \"-1\""),
            ("gpu-memory-utilization: 95", "gpu-memory-utilization is \"95\""),
            ("gpu-memory-utilization: .nan", "gpu-memory-utilization"),
            ("cpu-offload-gb: -1", "cpu-offload-gb is \"-1\""),
        ] {
            let problem = taken(section).unwrap_err();
            assert_eq!(problem.reason.as_str(), "ConfigInvalid");
            assert!(problem.message.contains(part), "{section}: {}", problem.message);
        }
    }
}
