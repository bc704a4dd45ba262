//! tokenizer_config.json and the files around it, merged the way that transformers 4.46 merges them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::TokenizerError;
use super::class::{BeginAndEnd, CODE_GEN, CODE_LLAMA, PrefixSpace, TokenizerClass};
use super::files::{malformed, read_json};

/// The names under which a configuration gives its special tokens, in the order in which transformers lists them.
const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Largest `model_max_length` that means a length: transformers writes 1e30 for "none".
const LARGEST_MAX_LENGTH: f64 = 1e15;

/// What a directory says about its tokenizer, apart from the vocabulary.
#[derive(Debug, Clone)]
pub(super) struct TokenizerConfig {
    pub class: &'static TokenizerClass,
    /// `bos_token` and so on; a token that the class does not name by default and the files do not give is absent.
    pub special: BTreeMap<&'static str, ConfigToken>,
    pub additional_special: Vec<ConfigToken>,
    /// Added tokens by id.
    pub added: BTreeMap<u32, AddedToken>,
    /// Where the post-processor of tokenizer.json is replaced: whether the begin and the end token are added.
    pub begin_and_end: Option<(bool, bool)>,
    pub add_prefix_space: Option<bool>,
    /// Whether a tokenizer converted from tokenizer.model puts a space before a text.
    pub prefix_space_of_conversion: bool,
    /// The setting for which the tokenizer is converted from tokenizer.model though there is a tokenizer.json.
    pub conversion_asked_by: Option<&'static str>,
    pub legacy: bool,
    pub split_special_tokens: bool,
    /// CodeLlama's token for text to be filled in (infilling).
    pub fill_token: Option<String>,
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
        let class =
            TokenizerClass::of(directory, &json, tokenizer_json.is_some())?.map_err(|what| file.unsupported(what))?;
        file.refuse_other_files(directory, tokenizer_json.is_some())?;

        let defaults = class.special.iter().map(|(name, text)| (*name, ConfigToken::Text((*text).to_owned())));
        let mut special: BTreeMap<_, _> = defaults.collect();
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
        additional_special.extend(file.extra_special_tokens()?);
        let fill_token = file.code_llama_tokens(class, &mut additional_special)?;
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
            begin_and_end: file.begin_and_end(class)?,
            add_prefix_space: file.boolean("add_prefix_space")?,
            prefix_space_of_conversion: class.prefix_space != PrefixSpace::Conversion
                // Where tokenizer.json is not used, the class passes an absent value on as null.
                || file.switch("add_prefix_space", tokenizer_json.is_none())?,
            conversion_asked_by: file.conversion_asked_by(class)?,
            legacy: file.boolean("legacy")?.unwrap_or(true),
            split_special_tokens: file.split_special_tokens()?,
            fill_token,
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

/// `special_tokens_map.json` overrides tokenizer_config.json where that has no `added_tokens_decoder`.
fn read_special_tokens_map(
    directory: &Path,
    special: &mut BTreeMap<&'static str, ConfigToken>,
    additional: &mut Vec<ConfigToken>,
) -> Result<(), TokenizerError> {
    let path = directory.join("special_tokens_map.json");
    let Some(json) = read_json(&path)? else { return Ok(()) };
    let file = ConfigFile { path, json: &json };
    let special_token = |name: &str, value: &Value| match value {
        Value::Object(fields) => {
            let mut fields = fields.clone();
            fields.insert("special".to_owned(), Value::Bool(true));
            file.token(name, &Value::Object(fields))
        }
        other => file.token(name, other),
    };
    for name in SPECIAL_TOKENS {
        match json.get(name) {
            None => {}
            Some(Value::Null) => drop(special.remove(name)),
            Some(value) => drop(special.insert(name, special_token(name, value)?)),
        }
    }
    for value in file.list("additional_special_tokens")? {
        let token = special_token("additional_special_tokens", value)?;
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
    let length = json.get("model_max_length").or_else(|| json.get("max_len"))?.as_f64()?;
    (1.0..=LARGEST_MAX_LENGTH).contains(&length).then_some(length as usize)
}

fn is_same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
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

    fn unsupported(&self, what: impl Into<String>) -> TokenizerError {
        TokenizerError::Unsupported { path: self.path.clone(), what: what.into() }
    }

    fn boolean(&self, name: &str) -> Result<Option<bool>, TokenizerError> {
        match self.json.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(self.error(format!("{name} is {other}, not true or false"))),
        }
    }

    /// A switch as Python sees it: null is false, only an absent one has the default.
    fn switch(&self, name: &str, default: bool) -> Result<bool, TokenizerError> {
        Ok(self.boolean(name)?.unwrap_or(default && !self.json.contains_key(name)))
    }

    fn split_special_tokens(&self) -> Result<bool, TokenizerError> {
        match self.json.get("split_special_tokens") {
            Some(Value::Null) => Err(self.error("split_special_tokens is null, not true or false")),
            _ => self.switch("split_special_tokens", false),
        }
    }

    /// Whether the class adds the begin and the end token, if that is for it to say.
    fn begin_and_end(&self, class: &TokenizerClass) -> Result<Option<(bool, bool)>, TokenizerError> {
        match class.begin_and_end {
            BeginAndEnd::Switches { begin_by_default } => {
                let begin = self.switch("add_bos_token", begin_by_default)?;
                Ok(Some((begin, self.switch("add_eos_token", false)?)))
            }
            BeginAndEnd::PostProcessor if class.name == CODE_GEN && self.switch("add_bos_token", false)? => {
                Err(self.unsupported(format!("\"add_bos_token\" with the class {}", class.name)))
            }
            BeginAndEnd::PostProcessor => Ok(None),
        }
    }

    /// The first setting for which the class does not use tokenizer.json.
    fn conversion_asked_by(&self, class: &TokenizerClass) -> Result<Option<&'static str>, TokenizerError> {
        // transformers 5 converts a Llama tokenizer by these settings too, but saves the result.
        let named = self.json.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default();
        let is_llama = class.prefix_space == PrefixSpace::Conversion || named.starts_with("LlamaTokenizer");
        if is_llama && class.prefix_space != PrefixSpace::Conversion && self.switch("legacy", false)? {
            return Ok(Some("legacy"));
        }
        if is_llama && self.boolean("add_prefix_space")?.is_some() {
            return Ok(Some("add_prefix_space"));
        }
        if self.switch("from_slow", false)? {
            return Ok(Some("from_slow"));
        }
        Ok((self.json.get("tokenizer_file") == Some(&Value::Null)).then_some("tokenizer_file"))
    }

    /// Settings that name other files than those which are read.
    fn refuse_other_files(&self, directory: &Path, has_tokenizer_json: bool) -> Result<(), TokenizerError> {
        if let Some(Value::String(named)) = self.json.get("tokenizer_file")
            && has_tokenizer_json
            && !is_same_file(Path::new(named), &directory.join("tokenizer.json"))
        {
            return Err(self.unsupported("\"tokenizer_file\", a tokenizer.json in another place"));
        }
        let versions = self.json.get("fast_tokenizer_files").and_then(Value::as_array);
        let mut others =
            versions.into_iter().flatten().filter_map(Value::as_str).filter(|name| *name != "tokenizer.json");
        if others.any(|name| directory.join(name).exists()) {
            return Err(self.unsupported("\"fast_tokenizer_files\", a tokenizer.json for each version of transformers"));
        }
        Ok(())
    }

    /// The special tokens that CodeLlama's class adds to the others; gives its mark for a gap.
    fn code_llama_tokens(
        &self,
        class: &TokenizerClass,
        additional: &mut Vec<ConfigToken>,
    ) -> Result<Option<String>, TokenizerError> {
        if class.name != CODE_LLAMA {
            return Ok(None);
        }
        let token = |name: &str, default: &str| match self.json.get(name) {
            None => Ok(Some(ConfigToken::Text(default.to_owned()))),
            Some(Value::Null) => Ok(None),
            Some(value) => self.token(name, value).map(Some),
        };
        for (name, default) in [
            ("prefix_token", "\u{2581}<PRE>"),
            ("middle_token", "\u{2581}<MID>"),
            ("suffix_token", "\u{2581}<SUF>"),
            ("eot_token", "\u{2581}<EOT>"),
        ] {
            additional.extend(token(name, default)?);
        }
        Ok(token("fill_token", "<FILL_ME>")?.map(|token| token.text().to_owned()))
    }

    /// What transformers 5 calls the additional special tokens; releases before it gave each a name.
    fn extra_special_tokens(&self) -> Result<Vec<ConfigToken>, TokenizerError> {
        match self.json.get("extra_special_tokens") {
            Some(Value::Object(named)) => named.iter().map(|(name, value)| self.token(name, value)).collect(),
            _ => self.tokens("extra_special_tokens"),
        }
    }

    fn token(&self, name: &str, value: &Value) -> Result<ConfigToken, TokenizerError> {
        match value {
            Value::String(text) => Ok(ConfigToken::Text(text.clone())),
            other => self.added_token(name, other).map(ConfigToken::Added),
        }
    }

    fn list(&self, name: &str) -> Result<&[Value], TokenizerError> {
        match self.json.get(name) {
            None | Some(Value::Null) => Ok(&[]),
            Some(Value::Array(values)) => Ok(values),
            Some(_) => Err(self.error(format!("{name} is not a list"))),
        }
    }

    fn tokens(&self, name: &str) -> Result<Vec<ConfigToken>, TokenizerError> {
        self.list(name)?.iter().map(|value| self.token(name, value)).collect()
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
