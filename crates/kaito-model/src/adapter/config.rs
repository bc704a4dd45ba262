//! `adapter_config.json`: the rank and the scale of each matrix, and what is refused because it would change the tokens.

use std::path::Path;

use regex::{Regex, RegexBuilder};
use serde_json::Value;

use crate::{checkpoint::CheckpointError, family::config_file::ConfigFile};

/// Largest rank; published adapters have up to 256.
const MAX_RANK: usize = 1 << 12;
/// Largest `lora_alpha`, which is a small multiple of the rank.
const MAX_ALPHA: f64 = 1e9;
/// Most patterns for ranks or scales. Programs that choose a rank for each matrix name them all.
const MAX_PATTERNS: usize = 1 << 14;
/// Most of them that are more than names, and how large one becomes when it is compiled, in bytes.
const MAX_EXPRESSIONS: usize = 64;
const EXPRESSION_BYTES: usize = 1 << 18;

/// Fields that would change what an adapter computes and are not supported: each must be false, null or empty.
const REFUSED: [(&str, &str); 14] = [
    ("use_dora", "DoRA is not supported"),
    ("use_qalora", "QALoRA is not supported"),
    ("lora_bias", "biases in adapters are not supported"),
    ("fan_in_fan_out", "the models here store no transposed matrices"),
    ("modules_to_save", "whole modules in adapters are not supported"),
    ("trainable_token_indices", "adapters of the embedding are not supported"),
    ("layer_replication", "adapters that repeat layers are not supported"),
    ("alora_invocation_tokens", "adapters that begin in the middle of a prompt are not supported"),
    ("megatron_config", "adapters of Megatron's layers are not supported"),
    ("target_parameters", "adapters of parameters that are no linear maps are not supported"),
    ("arrow_config", "routing among adapters (Arrow) is not supported"),
    ("kasa_config", "KaSA is not supported"),
    ("monteclora_config", "MonteCLoRA is not supported"),
    ("use_bdlora", "block-diagonal adapters (BD-LoRA) are not supported"),
];

/// Values of `init_lora_weights` that leave the model's own weights as they are.
const PLAIN_BEGINNINGS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// What an adapter's configuration says of its matrices.
pub(super) struct AdapterConfig {
    file: ConfigFile,
    rank: usize,
    alpha: f64,
    /// Whether the scale is divided by the root of the rank only.
    root_of_rank: bool,
    ranks: Vec<(Pattern, usize)>,
    alphas: Vec<(Pattern, f64)>,
}

/// Which modules a rank or a scale of its own is for.
enum Pattern {
    /// Those whose path ends with these parts.
    Name(String),
    /// Those whose path, or the end of it after a dot, matches.
    Expression(Box<Regex>),
}

impl Pattern {
    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Name(name) => {
                path.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
            Self::Expression(expression) => expression.is_match(path),
        }
    }
}

impl AdapterConfig {
    /// Reads the file.
    ///
    /// # Errors
    /// For what is malformed, out of range or not supported, by its key.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let file = ConfigFile::open(path)?;
        file.choice(&["peft_type"], &["LORA"])?;
        file.choice(&["bias"], &["none"])?;
        for (key, reason) in REFUSED {
            let is_empty = |value: &Value| match value {
                Value::Bool(on) => !on,
                Value::Array(list) => list.is_empty(),
                Value::Object(map) => map.is_empty(),
                _ => false,
            };
            if file.value(&[key]).is_some_and(|value| !is_empty(value)) {
                return Err(file.wrong(&[key], format!("none: {reason}")));
            }
        }
        let beginning = file.value(&["init_lora_weights"]).and_then(Value::as_str);
        if beginning.is_some_and(|name| !PLAIN_BEGINNINGS.contains(&name)) {
            let expected = "a beginning that leaves the model's weights as they are: adapters that change them must be converted \
                            when they are saved";
            return Err(file.wrong(&["init_lora_weights"], expected));
        }
        let config = Self {
            rank: file.count(&["r"], None, MAX_RANK)?,
            alpha: file.number(&["lora_alpha"], None, -MAX_ALPHA..=MAX_ALPHA)?,
            root_of_rank: file.flag(&["use_rslora"], false)?,
            ranks: patterns(&file, "rank_pattern", |file, key| file.count(&[key], None, MAX_RANK))?,
            alphas: patterns(&file, "alpha_pattern", |file, key| file.number(&[key], None, -MAX_ALPHA..=MAX_ALPHA))?,
            file,
        };
        Ok(config)
    }

    /// Rank and scale of the matrices of the module at `path`.
    ///
    /// # Errors
    /// For a scale that f32 has no room for.
    pub fn of_module(&self, path: &str) -> Result<(usize, f32), CheckpointError> {
        let rank = first(&self.ranks, path).unwrap_or(self.rank);
        let alpha = first(&self.alphas, path).unwrap_or(self.alpha);
        let divisor = if self.root_of_rank { (rank as f64).sqrt() } else { rank as f64 };
        let scale = (alpha / divisor) as f32;
        if scale.is_finite() {
            Ok((rank, scale))
        } else {
            Err(self.file.wrong(&["lora_alpha"], format!("a number that gives {path} a finite scale")))
        }
    }
}

/// What the first pattern that matches says.
fn first<T: Copy>(patterns: &[(Pattern, T)], path: &str) -> Option<T> {
    patterns.iter().find(|(pattern, _)| pattern.matches(path)).map(|(_, value)| *value)
}

/// The patterns under `key`, in their order.
fn patterns<T>(
    file: &ConfigFile,
    key: &str,
    read: impl Fn(&ConfigFile, &str) -> Result<T, CheckpointError>,
) -> Result<Vec<(Pattern, T)>, CheckpointError> {
    let Some(object) = file.object(key)? else { return Ok(Vec::new()) };
    let mut expressions = 0;
    let mut patterns = Vec::new();
    for (pattern, _) in object.entries() {
        let value = read(&object, pattern)?;
        let is_name = pattern.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.');
        expressions += usize::from(!is_name);
        if patterns.len() == MAX_PATTERNS || expressions > MAX_EXPRESSIONS {
            let expected = format!("at most {MAX_PATTERNS} patterns, {MAX_EXPRESSIONS} of them more than names");
            return Err(CheckpointError::Config {
                path: file.path().to_owned(),
                key: key.to_owned(),
                found: "more".to_owned(),
                expected,
            });
        }
        let pattern = if is_name {
            Pattern::Name(pattern.to_owned())
        } else {
            // As PEFT matches them.
            let compiled = RegexBuilder::new(&format!("^(?:.*\\.)?(?:{pattern})$"))
                .size_limit(EXPRESSION_BYTES)
                .dfa_size_limit(EXPRESSION_BYTES)
                .build();
            let compiled = compiled.map_err(|_| object.wrong(&[pattern], "under a regular expression"))?;
            Pattern::Expression(Box::new(compiled))
        };
        patterns.push((pattern, value));
    }
    Ok(patterns)
}
