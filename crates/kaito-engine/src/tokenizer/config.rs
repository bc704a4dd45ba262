//! tokenizer_config.json and the files around it, merged the way that transformers 4.46 merges them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::TokenizerError;
use super::files::{malformed, read_json};

/// The names under which a configuration gives its special tokens, in the order in which transformers lists them.
const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Largest `model_max_length` that means a length: transformers writes 1e30 for "none".
const LARGEST_MAX_LENGTH: f64 = 1e15;

/// Which of the tokenizer classes of transformers a directory asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenizerClass {
    /// `LlamaTokenizerFast`: makes its own rule for begin and end tokens. Llama, Mistral, Phi-3.
    Llama,
    /// `PreTrainedTokenizerFast`: everything is in tokenizer.json. Falcon.
    Generic,
}

/// What a directory says about its tokenizer, apart from the vocabulary.
#[derive(Debug, Clone)]
pub(super) struct TokenizerConfig {
    pub class: TokenizerClass,
    /// `bos_token` and so on; a token that the class does not name by default and the files do not give is absent.
    pub special: BTreeMap<&'static str, ConfigToken>,
    pub additional_special: Vec<ConfigToken>,
    /// Added tokens by id.
    pub added: BTreeMap<u32, AddedToken>,
    pub add_bos_token: bool,
    pub add_eos_token: bool,
    pub add_prefix_space: Option<bool>,
    pub legacy: bool,
    pub clean_up_tokenization_spaces: bool,
    pub model_max_length: Option<usize>,
}

/// A token as a configuration gives it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum ConfigToken {
    /// Its text alone.
    Text(String),
    /// With all its properties.
    Added(AddedToken),
}

impl ConfigToken {
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Added(token) => &token.content,
        }
    }
}

impl TokenizerConfig {
    /// Reads the directory's files. `tokenizer_json` is its tokenizer.json, if it has one.
    pub(super) fn read(directory: &Path, tokenizer_json: Option<&Map<String, Value>>) -> Result<Self, TokenizerError> {
        let path = directory.join("tokenizer_config.json");
        let json = read_json(&path)?.unwrap_or_default();
        let file = ConfigFile { path, json: &json };
        let class = tokenizer_class(directory, &json)?;

        let mut special = BTreeMap::new();
        if class == TokenizerClass::Llama {
            let defaults = [("unk_token", "<unk>"), ("bos_token", "<s>"), ("eos_token", "</s>")];
            special.extend(defaults.map(|(name, text)| (name, ConfigToken::Text(text.to_owned()))));
        }
        // The padding that a tokenizer.json prescribes names its token; whether to pad is the caller's decision.
        let padding = tokenizer_json.and_then(|json| json.get("padding")?.get("pad_token")?.as_str());
        special.extend(padding.map(|text| ("pad_token", ConfigToken::Text(text.to_owned()))));
        for name in SPECIAL_TOKENS {
            match json.get(name) {
                None => {}
                // An explicit null takes the class's default away.
                Some(Value::Null) => drop(special.remove(name)),
                Some(value) => drop(special.insert(name, file.token(name, value)?)),
            }
        }
        let mut additional_special = file.tokens("additional_special_tokens")?;
        let mut added = BTreeMap::new();
        match json.get("added_tokens_decoder") {
            Some(Value::Object(tokens)) => {
                for (id, token) in tokens {
                    let id = id.parse().map_err(|_| file.error(format!("added_tokens_decoder has the id \"{id}\"")))?;
                    added.insert(id, file.added_token("added_tokens_decoder", token)?);
                }
                adopt(&mut special, &added);
            }
            Some(_) => return Err(file.error("added_tokens_decoder is not an object")),
            None => {
                read_special_tokens_map(directory, &mut special, &mut additional_special)?;
                let outside = read_added_tokens(directory, &special, &additional_special)?;
                let inside = tokens_of_tokenizer_json(directory, tokenizer_json)?;
                adopt(&mut special, &inside);
                added.extend(outside);
                added.extend(inside);
            }
        }

        Ok(Self {
            class,
            special,
            additional_special,
            added,
            add_bos_token: file.boolean("add_bos_token")?.unwrap_or(true),
            add_eos_token: file.boolean("add_eos_token")?.unwrap_or(false),
            add_prefix_space: file.boolean("add_prefix_space")?,
            legacy: file.boolean("legacy")?.unwrap_or(true),
            clean_up_tokenization_spaces: file.boolean("clean_up_tokenization_spaces")?.unwrap_or(false),
            model_max_length: model_max_length(&json),
        })
    }

    /// Every special token once, in the order in which transformers lists them.
    pub(super) fn all_special(&self) -> Vec<&ConfigToken> {
        let named = SPECIAL_TOKENS.iter().filter_map(|name| self.special.get(name));
        let mut all: Vec<&ConfigToken> = Vec::new();
        for token in named.chain(&self.additional_special) {
            if all.iter().all(|seen| seen.text() != token.text()) {
                all.push(token);
            }
        }
        all
    }

    /// The text of a special token by its name in the configuration (`bos_token`).
    pub(super) fn special_text(&self, name: &str) -> Option<&str> {
        self.special.get(name).map(ConfigToken::text)
    }
}

/// A special token whose text is an added token gets that one's properties.
fn adopt(special: &mut BTreeMap<&'static str, ConfigToken>, added: &BTreeMap<u32, AddedToken>) {
    for token in special.values_mut() {
        if let Some(added) = added.values().rfind(|added| added.content == token.text()) {
            *token = ConfigToken::Added(added.clone());
        }
    }
}

fn tokenizer_class(directory: &Path, json: &Map<String, Value>) -> Result<TokenizerClass, TokenizerError> {
    let class_name = |json: &Map<String, Value>| json.get("tokenizer_class").and_then(Value::as_str).map(str::to_owned);
    let mut name = class_name(json);
    let mut model_type = None;
    if name.is_none()
        && let Some(config) = read_json(&directory.join("config.json"))?
    {
        name = class_name(&config);
        model_type = config.get("model_type").and_then(Value::as_str).map(str::to_owned);
    }
    Ok(match (name.as_deref(), model_type.as_deref()) {
        (Some("LlamaTokenizer" | "LlamaTokenizerFast"), _) => TokenizerClass::Llama,
        (Some(_), _) => TokenizerClass::Generic,
        (None, Some("llama" | "mistral" | "phi3" | "mixtral")) => TokenizerClass::Llama,
        (None, _) => TokenizerClass::Generic,
    })
}

/// `special_tokens_map.json` goes over tokenizer_config.json where that has no `added_tokens_decoder`.
fn read_special_tokens_map(
    directory: &Path,
    special: &mut BTreeMap<&'static str, ConfigToken>,
    additional: &mut Vec<ConfigToken>,
) -> Result<(), TokenizerError> {
    let path = directory.join("special_tokens_map.json");
    let Some(json) = read_json(&path)? else { return Ok(()) };
    let file = ConfigFile { path, json: &json };
    let made_special = |token: ConfigToken| match token {
        ConfigToken::Added(token) => ConfigToken::Added(token.special(true)),
        text => text,
    };
    for name in SPECIAL_TOKENS {
        match json.get(name) {
            None => {}
            Some(Value::Null) => drop(special.remove(name)),
            Some(value) => drop(special.insert(name, made_special(file.token(name, value)?))),
        }
    }
    for token in file.tokens("additional_special_tokens")?.into_iter().map(made_special) {
        if !additional.contains(&token) {
            additional.push(token);
        }
    }
    Ok(())
}

/// `added_tokens.json`: texts and ids alone.
fn read_added_tokens(
    directory: &Path,
    special: &BTreeMap<&'static str, ConfigToken>,
    additional: &[ConfigToken],
) -> Result<BTreeMap<u32, AddedToken>, TokenizerError> {
    let path = directory.join("added_tokens.json");
    let Some(json) = read_json(&path)? else { return Ok(BTreeMap::new()) };
    let entry = |(text, id): (&String, &Value)| {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let id = id.ok_or_else(|| malformed(&path, format!("the id of \"{text}\" is not a number")))?;
        let is_special = special.values().chain(additional).any(|token| token.text() == text);
        Ok((id, AddedToken::from(text.as_str(), is_special)))
    };
    json.iter().map(entry).collect()
}

fn tokens_of_tokenizer_json(
    directory: &Path,
    tokenizer_json: Option<&Map<String, Value>>,
) -> Result<BTreeMap<u32, AddedToken>, TokenizerError> {
    let Some(json) = tokenizer_json else { return Ok(BTreeMap::new()) };
    let file = ConfigFile { path: directory.join("tokenizer.json"), json };
    let tokens = json.get("added_tokens").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let entry = |token: &Value| {
        let id = token.get("id").and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
        let id = id.ok_or_else(|| file.error("an added token has no id"))?;
        Ok((id, file.added_token("added_tokens", token)?))
    };
    tokens.iter().map(entry).collect()
}

fn model_max_length(json: &Map<String, Value>) -> Option<usize> {
    let length = ["model_max_length", "max_len"].iter().find_map(|name| json.get(*name)?.as_f64())?;
    (1.0..=LARGEST_MAX_LENGTH).contains(&length).then_some(length as usize)
}

/// A configuration file with its path, for the messages.
struct ConfigFile<'a> {
    path: PathBuf,
    json: &'a Map<String, Value>,
}

impl ConfigFile<'_> {
    fn error(&self, reason: impl ToString) -> TokenizerError {
        malformed(&self.path, reason)
    }

    fn boolean(&self, name: &str) -> Result<Option<bool>, TokenizerError> {
        match self.json.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(self.error(format!("{name} is {other}, not true or false"))),
        }
    }

    fn token(&self, name: &str, value: &Value) -> Result<ConfigToken, TokenizerError> {
        match value {
            Value::String(text) => Ok(ConfigToken::Text(text.clone())),
            other => self.added_token(name, other).map(ConfigToken::Added),
        }
    }

    fn tokens(&self, name: &str) -> Result<Vec<ConfigToken>, TokenizerError> {
        match self.json.get(name) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(values)) => values.iter().map(|value| self.token(name, value)).collect(),
            Some(_) => Err(self.error(format!("{name} is not a list"))),
        }
    }

    fn added_token(&self, name: &str, value: &Value) -> Result<AddedToken, TokenizerError> {
        let content = value.get("content").and_then(Value::as_str);
        let content = content.ok_or_else(|| self.error(format!("{name} is neither a text nor a token: {value}")))?;
        let flag = |flag: &str| value.get(flag).and_then(Value::as_bool);
        let special = flag("special").unwrap_or(false);
        Ok(AddedToken::from(content, special)
            .single_word(flag("single_word").unwrap_or(false))
            .lstrip(flag("lstrip").unwrap_or(false))
            .rstrip(flag("rstrip").unwrap_or(false))
            .normalized(flag("normalized").unwrap_or(!special)))
    }
}
