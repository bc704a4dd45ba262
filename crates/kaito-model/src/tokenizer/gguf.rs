//! Tokenizers in the metadata of GGUF files.
//!
//! Two kinds are read: `llama`, the pieces of a SentencePiece model with their scores, and `gpt2`, byte-level byte-pair encoding. A file
//! names the rules by which `gpt2` cuts a text before it is encoded (`pre`); what they are, the program that reads it has to know. The
//! texts of control tokens are tokens, as in transformers' tokenizers; a mark of a word's start goes before each part of a text
//! between them, as llama.cpp has it.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde_json::{Value as Json, json};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{AddedToken, Tokenizer};

use super::TokenizerError;
use super::chat_template::ChatTemplate;
use super::class::TokenizerClass;
use super::config::{ConfigToken, TokenizerConfig};
use super::decoder_chain::DecoderChain;
use super::files::malformed;
use super::hugging_face::{HuggingFace, fenced};
use super::llama_converter::{Spaces, convert};
use super::sentencepiece::{ModelProto, Piece, PieceKind, ProtoAlgorithm};
use crate::checkpoint::gguf::{Array, GgufModel, Metadata, Value};
use crate::checkpoint::shorten;

/// Most tokens and most merges; the largest published vocabularies have about a quarter of a million.
const MAX_TOKENS: usize = 1 << 20;
const MAX_MERGES: usize = 1 << 21;
/// Longest token, and longest two tokens of a merge, in bytes.
const MAX_TOKEN_BYTES: usize = 2048;

/// Texts of tokens that end an answer beside the end token: a turn of a conversation, as a rule. Most files do not say which do.
const ENDS: [&str; 6] = ["<|eot_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>"];

/// The special tokens of transformers' configurations, by their keys.
const SPECIAL: [(&str, &str); 4] = [
    ("bos_token", "tokenizer.ggml.bos_token_id"),
    ("eos_token", "tokenizer.ggml.eos_token_id"),
    ("unk_token", "tokenizer.ggml.unknown_token_id"),
    ("pad_token", "tokenizer.ggml.padding_token_id"),
];
const MORE_ENDS: [&str; 2] = ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

/// Rules by which a text is cut before byte-level encoding.
struct Rules {
    /// Values of `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    /// The pre-tokenizers before the last, which maps bytes to characters, in the notation of tokenizer.json.
    steps: &'static str,
    /// Whether the byte-level step cuts by GPT-2's regular expression.
    gpt2: bool,
    /// What comes behind it.
    after: &'static str,
    /// Whether a piece of text that is a token is one, whatever the merges say.
    ignore_merges: bool,
    /// What an absent `add_bos_token` means.
    begin: bool,
}

const NO_STEPS: &str = "[]";
const DIGITS_BY_THREE: &str = r#"[
    {"type": "Digits", "individual_digits": false},
    {"type": "Split", "pattern": {"Regex": "[0-9][0-9][0-9]"}, "behavior": "Isolated", "invert": false}]"#;

const RULES: [Rules; 6] = [
    Rules {
        names: &["llama-bpe", "llama3", "llama-v3"],
        steps: r#"[{"type": "Split", "behavior": "Isolated", "invert": false, "pattern": {"Regex":
            "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"}}]"#,
        gpt2: false,
        after: NO_STEPS,
        ignore_merges: true,
        begin: true,
    },
    Rules {
        names: &["falcon"],
        steps: r#"[{"type": "Punctuation", "behavior": "Contiguous"}]"#,
        gpt2: true,
        after: DIGITS_BY_THREE,
        ignore_merges: false,
        begin: false,
    },
    Rules {
        names: &["smollm", "starcoder", "refact", "command-r"],
        steps: r#"[{"type": "Digits", "individual_digits": true}]"#,
        gpt2: true,
        after: NO_STEPS,
        ignore_merges: false,
        begin: false,
    },
    Rules {
        names: &["gpt-2", "mpt"],
        steps: NO_STEPS,
        gpt2: true,
        after: NO_STEPS,
        ignore_merges: false,
        begin: false,
    },
    Rules {
        names: &["deepseek-coder"],
        steps: r#"[
    {"type": "Split", "behavior": "Isolated", "invert": false, "pattern": {"Regex": "[\\r\\n]"}},
    {"type": "Split", "behavior": "Isolated", "invert": false, "pattern": {"Regex": "\\s?\\p{L}+"}},
    {"type": "Split", "behavior": "Isolated", "invert": false, "pattern": {"Regex": "\\s?\\p{P}+"}},
    {"type": "Split", "behavior": "Isolated", "invert": false, "pattern": {"Regex": "[一-龥ࠀ-一가-퟿]+"}},
    {"type": "Digits", "individual_digits": true}]"#,
        gpt2: false,
        after: NO_STEPS,
        ignore_merges: false,
        begin: false,
    },
    Rules {
        names: &["default"],
        // Digits are cut before bytes become characters, some of which are numbers: `ü` has the bytes of `Ã` and `¼`.
        steps: r#"[
    {"type": "Split", "behavior": "Isolated", "invert": false, "pattern": {"Regex": "[\\p{P}$+<=>^~|]+"}},
    {"type": "Split", "behavior": "Isolated", "invert": false, "pattern": {"Regex":
        "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"}},
    {"type": "Split", "behavior": "Isolated", "invert": false, "pattern": {"Regex": "\\p{N}+"}},
    {"type": "Split", "behavior": "Isolated", "invert": false, "pattern": {"Regex": "[0-9][0-9][0-9]"}}]"#,
        gpt2: false,
        after: NO_STEPS,
        ignore_merges: false,
        begin: false,
    },
];

/// A tokenizer and what else the metadata says of text.
pub(super) struct Opened {
    pub implementation: HuggingFace,
    pub config: TokenizerConfig,
    /// A reason where the template can't be used.
    pub chat_template: Option<Result<ChatTemplate, String>>,
    /// The tokens that end an answer.
    pub ends: Vec<u32>,
}

/// Reads the tokenizer of a model.
pub(super) fn open(model: &GgufModel) -> Result<Opened, TokenizerError> {
    let metadata = model.metadata()?;
    let file = File { path: model.path(), metadata: &metadata };
    let tokens = file.tokens()?;
    let kind = file.required_text("tokenizer.ggml.model")?;
    let (tokenizer, decoder, begin) = match kind {
        "llama" => {
            let add_prefix_space = file.flag("tokenizer.ggml.add_space_prefix", true)?;
            let proto = file.pieces(&tokens)?;
            let spaces = Spaces { legacy: true, add_prefix_space };
            let tokenizer = fenced(|| convert(&proto, spaces)).map_err(|reason| malformed(file.path, reason))?;
            (tokenizer, DecoderChain::llama(add_prefix_space), true)
        }
        "gpt2" => {
            let rules = file.rules()?;
            let decoder =
                json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
            let decoder = DecoderChain::new(Some(&decoder)).map_err(|reason| malformed(file.path, reason))?;
            (file.byte_level(rules, &tokens)?, decoder, rules.begin)
        }
        other => {
            return Err(
                file.unsupported(format!("the tokenizer model \"{}\" (llama and gpt2 are read)", shorten(other)))
            );
        }
    };
    let config = file.config(kind, &tokens, begin)?;
    let implementation = HuggingFace::of_parts(file.path, tokenizer, decoder, &config)?;
    let chat_template = metadata.get("tokenizer.chat_template").map(|_| {
        let source = metadata.text("tokenizer.chat_template").ok_or("it is no text in UTF-8")?;
        ChatTemplate::compile(source.to_owned())
    });
    Ok(Opened { ends: file.ends(&tokens)?, implementation, config, chat_template })
}

/// A token as the file has it.
struct Token<'a> {
    text: &'a str,
    kind: PieceKind,
}

struct File<'a> {
    path: &'a Path,
    metadata: &'a Metadata<'a>,
}

impl<'a> File<'a> {
    fn error(&self, reason: impl ToString) -> TokenizerError {
        malformed(self.path, reason)
    }

    fn unsupported(&self, what: String) -> TokenizerError {
        TokenizerError::Unsupported { path: self.path.to_owned(), what }
    }

    fn required_text(&self, key: &str) -> Result<&'a str, TokenizerError> {
        self.metadata.text(key).ok_or_else(|| self.error(format!("the metadata has no text {key}")))
    }

    fn flag(&self, key: &str, silent: bool) -> Result<bool, TokenizerError> {
        match self.metadata.get(key) {
            None => Ok(silent),
            Some(Value::Bool(value)) => Ok(*value),
            Some(other) => Err(self.error(format!("{key} is {other}, expected true or false"))),
        }
    }

    /// The list under a key, of at most `limit` elements.
    fn list(&self, key: &str, limit: usize) -> Result<Option<Array<'a>>, TokenizerError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Array(list)) if list.len() <= limit => Ok(Some(*list)),
            Some(Value::Array(list)) => {
                Err(self.error(format!("{key} is a list of {} elements, at most {limit} are read", list.len())))
            }
            Some(other) => Err(self.error(format!("{key} is {other}, expected a list"))),
        }
    }

    /// A list with an element for each of `count` tokens.
    fn of_tokens(&self, key: &str, count: usize) -> Result<Option<Array<'a>>, TokenizerError> {
        match self.list(key, MAX_TOKENS)? {
            Some(list) if list.len() != count => {
                Err(self.error(format!("{key} has {} elements, expected {count}, one for each token", list.len())))
            }
            list => Ok(list),
        }
    }

    /// The strings of a list.
    fn strings(
        &self,
        key: &'static str,
        list: Array<'a>,
        limit: usize,
    ) -> impl Iterator<Item = Result<&'a str, TokenizerError>> {
        list.iter().enumerate().map(move |(i, value)| {
            let Value::Text(bytes) = value else {
                return Err(self.error(format!("{key}[{i}] is {value}, expected a text")));
            };
            if bytes.is_empty() || bytes.len() > limit {
                let length = bytes.len();
                return Err(self.error(format!("{key}[{i}] has {length} bytes, expected 1 to {limit}")));
            }
            std::str::from_utf8(bytes).map_err(|_| self.error(format!("{key}[{i}] is not UTF-8")))
        })
    }

    fn tokens(&self) -> Result<Vec<Token<'a>>, TokenizerError> {
        const KEY: &str = "tokenizer.ggml.tokens";
        const KINDS: &str = "tokenizer.ggml.token_type";
        let list = self.list(KEY, MAX_TOKENS)?;
        let list = list.ok_or_else(|| self.error(format!("the metadata has no list {KEY}")))?;
        let kinds: Vec<PieceKind> = match self.of_tokens(KINDS, list.len())? {
            None => vec![PieceKind::Normal; list.len()],
            Some(kinds) => kinds
                .iter()
                .enumerate()
                .map(|(i, kind)| self.kind(&format!("{KINDS}[{i}]"), &kind))
                .collect::<Result<_, _>>()?,
        };
        let mut seen = HashSet::new();
        let mut tokens = Vec::with_capacity(list.len());
        for (text, kind) in self.strings(KEY, list, MAX_TOKEN_BYTES).zip(kinds) {
            let text = text?;
            if !seen.insert(text) {
                let id = tokens.len();
                return Err(
                    self.error(format!("{KEY}[{id}] is {:?}, which an earlier token is already", shorten(text)))
                );
            }
            tokens.push(Token { text, kind });
        }
        Ok(tokens)
    }

    /// The type of a token, by the number that SentencePiece has for it too. A token that is not used is as good as a normal one.
    fn kind(&self, place: &str, number: &Value) -> Result<PieceKind, TokenizerError> {
        Ok(match number {
            Value::Signed(0 | 1) | Value::Unsigned(0 | 1) => PieceKind::Normal,
            Value::Signed(2) | Value::Unsigned(2) => PieceKind::Unknown,
            Value::Signed(3) | Value::Unsigned(3) => PieceKind::Control,
            Value::Signed(4) | Value::Unsigned(4) => PieceKind::UserDefined,
            Value::Signed(5) | Value::Unsigned(5) => PieceKind::Unused,
            Value::Signed(6) | Value::Unsigned(6) => PieceKind::Byte,
            other => return Err(self.error(format!("{place} is {other}, expected a number from 0 to 6"))),
        })
    }

    /// The tokens as a SentencePiece model's.
    fn pieces(&self, tokens: &[Token]) -> Result<ModelProto, TokenizerError> {
        const SCORES: &str = "tokenizer.ggml.scores";
        let scores = self.of_tokens(SCORES, tokens.len())?;
        let scores = scores.ok_or_else(|| self.error(format!("the metadata has no list {SCORES}")))?;
        let mut proto = ModelProto::default();
        for (i, (token, score)) in tokens.iter().zip(scores.iter()).enumerate() {
            let score = match score {
                Value::Float(score) if !score.is_nan() => score as f32,
                other => return Err(self.error(format!("{SCORES}[{i}] is {other}, expected a number"))),
            };
            proto.pieces.push(Piece { text: token.text.to_owned(), score, kind: token.kind });
        }
        proto.trainer.algorithm = ProtoAlgorithm::Bpe;
        let unknown = tokens.iter().find(|token| token.kind == PieceKind::Unknown);
        let unknown = unknown.ok_or_else(|| self.error("none of the tokens is of type 2, the unknown token"))?;
        proto.trainer.unk_piece = unknown.text.to_owned();
        Ok(proto)
    }

    fn rules(&self) -> Result<&'static Rules, TokenizerError> {
        const KEY: &str = "tokenizer.ggml.pre";
        // Files without it are older than the key.
        let name = if self.metadata.get(KEY).is_none() { "default" } else { self.required_text(KEY)? };
        RULES.iter().find(|rules| rules.names.contains(&name)).ok_or_else(|| {
            let known: Vec<&str> = RULES.iter().filter_map(|rules| rules.names.first().copied()).collect();
            self.unsupported(format!("the pre-tokenizer \"{}\" ({} are known)", shorten(name), known.join(", ")))
        })
    }

    fn byte_level(&self, rules: &Rules, tokens: &[Token]) -> Result<Tokenizer, TokenizerError> {
        const MERGES: &str = "tokenizer.ggml.merges";
        let list = self.list(MERGES, MAX_MERGES)?;
        let list = list.ok_or_else(|| self.error(format!("the metadata has no list {MERGES}")))?;
        let mut merges = Vec::with_capacity(list.len());
        for (i, merge) in self.strings(MERGES, list, 2 * MAX_TOKEN_BYTES + 1).enumerate() {
            let pair = merge?.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.is_empty());
            let (left, right) =
                pair.ok_or_else(|| self.error(format!("{MERGES}[{i}] is not two tokens with a space between")))?;
            merges.push((left.to_owned(), right.to_owned()));
        }
        let vocabulary: Vocab = tokens.iter().zip(0..).map(|(token, id)| (token.text.to_owned(), id)).collect();
        let build = || {
            let model =
                BPE::builder().vocab_and_merges(vocabulary, merges).ignore_merges(rules.ignore_merges).build()?;
            let mut tokenizer = Tokenizer::new(model);
            tokenizer.with_pre_tokenizer(Some(pre_tokenizer(rules)?));
            let added = tokens.iter().filter_map(|token| match token.kind {
                PieceKind::Control | PieceKind::Unknown => Some(AddedToken::from(token.text, true)),
                PieceKind::UserDefined => Some(AddedToken::from(token.text, false).normalized(false)),
                PieceKind::Normal | PieceKind::Byte | PieceKind::Unused => None,
            });
            tokenizer.add_tokens(added)?;
            Ok(tokenizer)
        };
        fenced(build).map_err(|reason| self.error(reason))
    }

    /// The id under a key, if it is there.
    fn id(&self, key: &str, tokens: &[Token]) -> Result<Option<u32>, TokenizerError> {
        let number = match self.metadata.get(key) {
            None => return Ok(None),
            Some(Value::Unsigned(number)) => Some(*number),
            Some(Value::Signed(number)) => u64::try_from(*number).ok(),
            Some(other) => return Err(self.error(format!("{key} is {other}, expected the id of a token"))),
        };
        // -1, and what an unsigned number makes of it, stand for none.
        let Some(number) = number.filter(|number| *number != u64::from(u32::MAX)) else { return Ok(None) };
        match u32::try_from(number) {
            Ok(id) if (id as usize) < tokens.len() => Ok(Some(id)),
            _ => Err(self.error(format!("{key} is {number}, but there are {} tokens", tokens.len()))),
        }
    }

    fn config(&self, kind: &str, tokens: &[Token], begin: bool) -> Result<TokenizerConfig, TokenizerError> {
        let text = |id: u32| tokens.get(id as usize).map(|token| token.text.to_owned());
        let mut special = BTreeMap::new();
        for (i, (name, key)) in SPECIAL.into_iter().enumerate() {
            // SentencePiece models have theirs in this place where nothing else is said: unknown, begin, end.
            let silent = [Some(1), Some(2), Some(0), None].get(i).copied().flatten().filter(|_| kind == "llama");
            let id = self.id(key, tokens)?.or_else(|| silent.filter(|_| self.metadata.get(key).is_none()));
            special.extend(id.and_then(text).map(|text| (name, ConfigToken::Text(text))));
        }
        let begin = self.flag("tokenizer.ggml.add_bos_token", begin && special.contains_key("bos_token"))?;
        let end = self.flag("tokenizer.ggml.add_eos_token", false)?;
        let added = if self.strips_spaces() { stripping(tokens) } else { BTreeMap::new() };
        for token in special.values_mut() {
            if let Some(stripping) = added.values().find(|added| added.content == token.text()) {
                *token = ConfigToken::Added(stripping.clone());
            }
        }
        Ok(TokenizerConfig {
            class: TokenizerClass::of_file(),
            special,
            additional_special: Vec::new(),
            added,
            begin_and_end: Some((begin, end)),
            add_prefix_space: None,
            prefix_space_of_conversion: false,
            conversion_asked_by: None,
            legacy: true,
            split_special_tokens: false,
            fill_token: None,
            clean_up_tokenization_spaces: false,
            model_max_length: None,
        })
    }

    /// Whether spaces behind control tokens belong to them. GGUF can't say so; those of Phi-3 do, and llama.cpp knows them by name too.
    fn strips_spaces(&self) -> bool {
        let name = self.metadata.text("general.name").unwrap_or_default().to_lowercase();
        self.metadata.text("general.architecture") == Some("phi3") || name.contains("phi-3") || name.contains("phi3")
    }

    /// The tokens that end an answer: the end token, those that the metadata names beside it, and those that are known by their texts.
    fn ends(&self, tokens: &[Token]) -> Result<Vec<u32>, TokenizerError> {
        let mut ends = Vec::new();
        for key in [SPECIAL[1].1].into_iter().chain(MORE_ENDS) {
            ends.extend(self.id(key, tokens)?);
        }
        let is_end = |token: &Token| token.kind != PieceKind::Normal && ENDS.contains(&token.text);
        ends.extend(tokens.iter().zip(0..).filter(|(token, _)| is_end(token)).map(|(_, id)| id));
        let mut seen = HashSet::new();
        ends.retain(|id| seen.insert(*id));
        Ok(ends)
    }
}

/// Phi-3's control tokens, all but these three, with the spaces behind them.
fn stripping(tokens: &[Token]) -> BTreeMap<u32, AddedToken> {
    const PLAIN: [&str; 3] = ["<unk>", "<s>", "<|endoftext|>"];
    let strips = |token: &Token| token.kind == PieceKind::Control && !PLAIN.contains(&token.text);
    let token = |(token, id): (&Token, u32)| (id, AddedToken::from(token.text, true).rstrip(true).normalized(false));
    tokens.iter().zip(0..).filter(|(token, _)| strips(token)).map(token).collect()
}

/// The pre-tokenizer that rules describe.
fn pre_tokenizer(rules: &Rules) -> tokenizers::Result<PreTokenizerWrapper> {
    let mut steps: Vec<Json> = serde_json::from_str(rules.steps)?;
    steps.push(json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": rules.gpt2}));
    steps.extend(serde_json::from_str::<Vec<Json>>(rules.after)?);
    Ok(serde_json::from_value(json!({"type": "Sequence", "pretokenizers": steps}))?)
}
