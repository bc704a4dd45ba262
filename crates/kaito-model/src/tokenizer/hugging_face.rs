//! Tokenizers of Hugging Face directories: the `tokenizers` crate, set up as transformers 4.46 sets it up.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::decoders::DecoderWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Model as _, Tokenizer};

use super::TokenizerError;
use super::class::PrefixSpace;
use super::config::{ConfigToken, TokenizerConfig};
use super::decoder_chain::DecoderChain;
use super::files::{malformed, parse_json, read};
use super::llama_converter::{Spaces, convert};
use super::prefix_space;
use super::sentencepiece::ModelProto;
use crate::json;

/// A tokenizer as `AutoTokenizer.from_pretrained` would make it.
#[derive(Debug)]
pub(super) struct HuggingFace {
    tokenizer: Tokenizer,
    decoder: DecoderChain,
    /// A text that no prompt may hold.
    fill_token: Option<String>,
}

impl HuggingFace {
    /// Reads tokenizer.json, or failing that tokenizer.model. `None` if the directory has neither.
    pub(super) fn open(directory: &Path) -> Result<Option<(Self, TokenizerConfig)>, TokenizerError> {
        let json_path = directory.join("tokenizer.json");
        let json = read(&json_path)?;
        let parsed = json.as_deref().map(|contents| parse_json(&json_path, contents)).transpose()?;
        let config = TokenizerConfig::read(directory, parsed.as_ref())?;
        let model_path = directory.join("tokenizer.model");
        let from_model = config.class.converts && (parsed.is_none() || config.conversion_asked_by.is_some());
        let model = if from_model { read(&model_path)? } else { None };
        let (path, tokenizer, decoder) = match (model, json) {
            (Some(model), _) => {
                let proto = ModelProto::parse(&model)
                    .map_err(|source| TokenizerError::SentencePiece { path: model_path.clone(), source })?;
                let spaces = Spaces { legacy: config.legacy, add_prefix_space: config.prefix_space_of_conversion };
                let tokenizer = fenced(|| convert(&proto, spaces)).map_err(|reason| malformed(&model_path, reason))?;
                (model_path, tokenizer, DecoderChain::llama(spaces.add_prefix_space))
            }
            (None, Some(json)) => {
                check_conversion(directory, &config, parsed.as_ref())?;
                let tokenizer = fenced(|| Tokenizer::from_bytes(json::standard(&json)))
                    .map_err(|reason| malformed(&json_path, reason))?;
                let decoder = decoder_of(&json_path, &tokenizer)?;
                (json_path, tokenizer, decoder)
            }
            (None, None) if !config.class.converts && model_path.exists() => {
                let what = format!("the tokenizer class \"{}\" without a tokenizer.json", config.class.name);
                return Err(TokenizerError::Unsupported { path: directory.join("tokenizer_config.json"), what });
            }
            (None, None) => return Ok(None),
        };
        Ok(Some((Self::of_parts(&path, tokenizer, decoder, &config)?, config)))
    }

    /// A tokenizer that was made of something else than a directory; `path` is for messages.
    pub(super) fn of_parts(
        path: &Path,
        tokenizer: Tokenizer,
        decoder: DecoderChain,
        config: &TokenizerConfig,
    ) -> Result<Self, TokenizerError> {
        let mut tokenizer = Self { tokenizer, decoder, fill_token: config.fill_token.clone() };
        fenced(|| tokenizer.configure(config)).map_err(|reason| malformed(path, reason))?;
        Ok(tokenizer)
    }

    /// What the constructors of transformers do to a tokenizer after reading it.
    fn configure(&mut self, config: &TokenizerConfig) -> tokenizers::Result<()> {
        self.tokenizer.with_truncation(None)?;
        self.tokenizer.with_padding(None);
        let special = config.all_special();
        let is_special = |text: &str| special.iter().any(|token| token.text() == text);
        let known = self.tokenizer.get_added_vocabulary().get_added_tokens_decoder().clone();
        let mut add: Vec<AddedToken> =
            config.added.values().filter(|token| !known.values().any(|k| k == *token)).cloned().collect();
        for token in &special {
            match token {
                ConfigToken::Text(text) => {
                    let is_known = known.values().chain(&add).any(|token| token.content == *text);
                    if !is_known {
                        add.push(AddedToken::from(text.as_str(), true));
                    }
                }
                ConfigToken::Added(token) if !add.contains(token) => add.push(token.clone()),
                ConfigToken::Added(_) => {}
            }
        }
        for token in &mut add {
            token.special |= is_special(&token.content);
        }
        self.tokenizer.add_tokens(add)?;
        if let Some((begin, end)) = config.begin_and_end {
            self.add_begin_and_end(config, begin, end)?;
        }
        if config.class.prefix_space == PrefixSpace::PreTokenizer {
            self.set_prefix_space(config.add_prefix_space.unwrap_or(false));
        }
        self.tokenizer.set_encode_special_tokens(config.split_special_tokens);
        Ok(())
    }

    /// GPT-2's class sets what the file says anew, where nothing but the byte-level pre-tokenizer is there.
    fn set_prefix_space(&mut self, add_prefix_space: bool) {
        if let Some(PreTokenizerWrapper::ByteLevel(byte_level)) = self.tokenizer.get_pre_tokenizer() {
            let byte_level = byte_level.add_prefix_space(add_prefix_space);
            self.tokenizer.with_pre_tokenizer(Some(byte_level));
        }
    }

    /// Llama's class ignores tokenizer.json's post-processor and makes its own.
    fn add_begin_and_end(&mut self, config: &TokenizerConfig, begin: bool, end: bool) -> tokenizers::Result<()> {
        let token = |wanted: bool, flag: &str, name: &str| match (wanted, config.special_text(name)) {
            (false, _) => Ok(None),
            (true, None) => Err(format!("{flag} is true but there is no {name}")),
            (true, Some(text)) => match self.token_or_unknown(text, config) {
                Some(id) => Ok(Some((text.to_owned(), id))),
                None => Err(format!("{name} \"{text}\" is not in the vocabulary")),
            },
        };
        let bos = token(begin, "add_bos_token", "bos_token")?;
        let eos = token(end, "add_eos_token", "eos_token")?;
        let pieces = [
            bos.as_ref().map(|(text, _)| format!("{text}:0")),
            Some("$A:0".to_owned()),
            eos.as_ref().map(|(text, _)| format!("{text}:0")),
        ];
        let template: Vec<String> = pieces.into_iter().flatten().collect();
        let special: Vec<(String, u32)> = [bos, eos].into_iter().flatten().collect();
        let processor = TemplateProcessing::builder().try_single(template)?.special_tokens(special).build()?;
        self.tokenizer.with_post_processor(Some(processor));
        Ok(())
    }

    /// The id of a token, or that of the unknown token.
    fn token_or_unknown(&self, text: &str, config: &TokenizerConfig) -> Option<u32> {
        let id = |text| self.tokenizer.token_to_id(text);
        id(text).or_else(|| config.special_text("unk_token").and_then(id))
    }

    /// The id of a special token by its name in the configuration (`bos_token`).
    pub(super) fn special_id(&self, config: &TokenizerConfig, name: &str) -> Option<u32> {
        self.token_or_unknown(config.special_text(name)?, config)
    }

    pub(super) fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        if let Some(mark) = self.fill_token.as_ref().filter(|mark| text.contains(mark.as_str())) {
            let reason = format!("it holds {mark}, and filling a gap in a text is not supported");
            return Err(TokenizerError::Encode { reason });
        }
        let encoding = fenced(|| self.tokenizer.encode_fast(text, add_special_tokens));
        Ok(encoding.map_err(|reason| TokenizerError::Encode { reason })?.get_ids().to_vec())
    }

    /// The token's text, if the id is in the vocabulary.
    pub(super) fn token(&self, id: u32) -> Option<String> {
        let added = self.tokenizer.get_added_vocabulary().get_added_tokens_decoder().get(&id);
        added.map(|token| token.content.clone()).or_else(|| self.tokenizer.get_model().id_to_token(id))
    }

    /// The bytes that the token adds inside a text, if the id is in the vocabulary.
    pub(super) fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        Some(self.decoder.token_bytes(self.token(id)?))
    }

    pub(super) fn is_special(&self, token: &str) -> bool {
        self.tokenizer.get_added_vocabulary().is_special_token(token)
    }

    /// The ids of all special tokens, in ascending order.
    pub(super) fn special_ids(&self) -> Vec<u32> {
        let added = self.tokenizer.get_added_vocabulary().get_added_tokens_decoder();
        let mut ids: Vec<u32> =
            added.iter().filter(|(_, token)| self.is_special(&token.content)).map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }

    /// The id of an added token, which is cut out of every text before the rest of it is encoded.
    pub(super) fn added_token(&self, text: &str) -> Option<u32> {
        let id = self.tokenizer.token_to_id(text)?;
        self.tokenizer.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id).then_some(id)
    }

    pub(super) fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    pub(super) fn library(&self) -> &Tokenizer {
        &self.tokenizer
    }

    pub(super) fn decoder(&self) -> &DecoderChain {
        &self.decoder
    }
}

/// Checks a setting for which transformers would make the tokenizer anew of a tokenizer.model, where there is none: it is fine
/// if tokenizer.json does what the setting asks for.
fn check_conversion(
    directory: &Path,
    config: &TokenizerConfig,
    tokenizer_json: Option<&Map<String, Value>>,
) -> Result<(), TokenizerError> {
    let Some(setting) = config.conversion_asked_by else { return Ok(()) };
    let does = tokenizer_json.and_then(prefix_space::of_tokenizer_json);
    if setting == "add_prefix_space" && does == config.add_prefix_space {
        return Ok(());
    }
    Err(TokenizerError::Unsupported {
        path: directory.join("tokenizer_config.json"),
        what: format!("\"{setting}\", for which the tokenizer would be made of a tokenizer.model that is not there"),
    })
}

fn decoder_of(path: &Path, tokenizer: &Tokenizer) -> Result<DecoderChain, TokenizerError> {
    let decoder: Option<&DecoderWrapper> = tokenizer.get_decoder();
    let json = serde_json::to_value(decoder).map_err(|error| malformed(path, error))?;
    let json = (json != Value::Null).then_some(&json);
    DecoderChain::new(json).map_err(|what| TokenizerError::Unsupported { path: path.to_owned(), what })
}

/// Runs a function of the `tokenizers` crate, which panics on some damaged files, and turns that into an error.
pub(super) fn fenced<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => Err(panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "the tokenizer library failed".to_owned())),
    }
}
