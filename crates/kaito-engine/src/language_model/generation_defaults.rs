//! What a model's own files say about generation.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use serde_json::{Map, Value};

use super::ModelInfo;
use crate::{
    Error,
    generate::{GenerateOptions, PARAMETER_NAMES},
    request::RequestContext,
};
use kaito_model::{json, tokenizer::Tokenizer};

/// Largest `generation_config.json` or `config.json` that is read.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// Fields of `generation_config.json` in whose place the documented defaults of a request always stand.
const OVERRIDDEN: [&str; 10] = [
    "max_length",
    "min_length",
    "do_sample",
    "early_stopping",
    "num_beams",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "repetition_penalty",
];

/// What a model's own files say about generation.
#[derive(Default)]
pub(super) struct ModelDefaults {
    pub options: GenerateOptions,
    pub bos_token_id: Option<u32>,
    pub min_p: Option<f64>,
}

impl ModelDefaults {
    /// Reads `generation_config.json`; without one, the fields of `config.json` that it would have, as transformers does.
    /// Token ids outside a vocabulary of `vocab_size` are left out.
    pub fn read(directory: &Path, vocab_size: usize) -> Result<Self, Error> {
        let mut file = directory.join("generation_config.json");
        let mut fields = read_object(&file)?;
        if fields.is_none() {
            file = directory.join("config.json");
            fields = read_object(&file)?;
        }
        let mut fields = fields.unwrap_or_default();
        // A request's word alone: this one is no field of these files, but programs that train leave theirs there.
        fields.shift_remove("seed");
        let has_non_finite = |value: &Value| {
            let mut values = std::slice::from_ref(value).iter().chain(value.as_array().into_iter().flatten());
            values.any(|value| json::non_finite(value).is_some())
        };
        let counts =
            |name: &str| name == "bos_token_id" || PARAMETER_NAMES.contains(&name) && !OVERRIDDEN.contains(&name);
        if let Some((name, value)) = fields.iter().find(|(name, value)| counts(name) && has_non_finite(value)) {
            let value = json::describe(value);
            return Err(Error::Load(format!("{}: {name} is {value}, expected a finite number", file.display())));
        }
        let bos_token_id = fields.get("bos_token_id").and_then(Value::as_u64).and_then(|id| id.try_into().ok());
        let mut options = GenerateOptions::from_generation_config(&fields);
        keep_known_tokens(&mut options, vocab_size);
        let min_p = fields.get("min_p").and_then(Value::as_f64).filter(|min_p| (0.0..=1.0).contains(min_p));
        Ok(Self { options, bos_token_id, min_p })
    }
}

impl ModelDefaults {
    /// What decides how requests to the model become tokens.
    pub fn context(self, tokenizer: Tokenizer, info: &ModelInfo) -> RequestContext {
        let Self { options: defaults, bos_token_id, min_p } = self;
        let end_tokens = defaults.eos_token_id.clone().unwrap_or_else(|| tokenizer.end_token_ids().to_vec());
        RequestContext {
            tokenizer,
            defaults,
            bos_token_id,
            end_tokens,
            vocab_size: info.vocab_size,
            min_p,
            max_seq_len: info.max_seq_len,
            max_batch_size: info.max_batch_size,
            adapter: None,
        }
    }
}

/// Drops token ids that the model does not have: no request could be served with them.
fn keep_known_tokens(options: &mut GenerateOptions, vocab_size: usize) {
    let keep = |field: &str, tokens: &mut Option<Vec<u32>>| {
        if let Some(tokens) = tokens {
            let before = tokens.len();
            tokens.retain(|&token| (token as usize) < vocab_size);
            if tokens.len() < before {
                tracing::warn!(
                    field,
                    vocab_size,
                    "generation_config.json: token ids outside the vocabulary are ignored"
                );
            }
        }
    };
    keep("eos_token_id", &mut options.eos_token_id);
    keep("forced_eos_token_id", &mut options.forced_eos_token_id);
    options.eos_token_id.take_if(|tokens| tokens.is_empty());
    options.forced_eos_token_id.take_if(|tokens| tokens.is_empty());
    options.pad_token_id.take_if(|token| *token as usize >= vocab_size);
    options.forced_bos_token_id.take_if(|token| *token as usize >= vocab_size);
}

/// The JSON object in a file; `None` if there is no such file.
fn read_object(path: &Path) -> Result<Option<Map<String, Value>>, Error> {
    let failed = |what: &dyn std::fmt::Display| Error::Load(format!("{}: {what}", path.display()));
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(&error)),
    };
    let mut text = Vec::new();
    file.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut text).map_err(|error| failed(&error))?;
    if text.len() as u64 > MAX_CONFIG_BYTES {
        return Err(failed(&format!("the file has more than the {MAX_CONFIG_BYTES} bytes that it may have")));
    }
    json::parse_object(&text).map(Some).map_err(|error| failed(&format!("not a JSON object: {error}")))
}
