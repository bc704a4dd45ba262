//! The tokenizer classes of transformers: what each does to a tokenizer besides reading its file.

use std::path::Path;

use serde_json::{Map, Value};

use super::TokenizerError;
use super::files::read_json;

/// One class of transformers 4.46 in its fast form, or the one class of transformers 5.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TokenizerClass {
    /// Its name, without "Fast".
    pub name: &'static str,
    /// The special tokens that it has where a directory names none.
    pub special: &'static [(&'static str, &'static str)],
    /// Whether tokens go before and after every sequence.
    pub begin_and_end: BeginAndEnd,
    /// What `add_prefix_space` changes.
    pub prefix_space: PrefixSpace,
    /// Whether such a tokenizer can be converted from a tokenizer.model alone.
    pub converts: bool,
}

/// Who decides about the tokens before and after every sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BeginAndEnd {
    /// The post-processor of tokenizer.json.
    PostProcessor,
    /// `add_bos_token` and `add_eos_token`, which is false where it is absent; the post-processor does not count.
    Switches {
        /// What an absent `add_bos_token` means.
        begin_by_default: bool,
    },
}

/// What `add_prefix_space` changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PrefixSpace {
    /// Nothing.
    Ignored,
    /// The pre-tokenizer, if that is the byte-level one alone.
    PreTokenizer,
    /// The tokenizer is converted from tokenizer.model.
    Conversion,
}

const LLAMA_SPECIAL: &[(&str, &str)] = &[("unk_token", "<unk>"), ("bos_token", "<s>"), ("eos_token", "</s>")];
const GPT2_SPECIAL: &[(&str, &str)] =
    &[("unk_token", "<|endoftext|>"), ("bos_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>")];
const QWEN2_SPECIAL: &[(&str, &str)] =
    &[("unk_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>"), ("pad_token", "<|endoftext|>")];

const LLAMA: TokenizerClass = TokenizerClass {
    name: "LlamaTokenizer",
    special: LLAMA_SPECIAL,
    begin_and_end: BeginAndEnd::Switches { begin_by_default: true },
    prefix_space: PrefixSpace::Conversion,
    converts: true,
};
/// tokenizer.json alone decides in transformers 4.46. Falcon, Llama 3.
const GENERIC: TokenizerClass = TokenizerClass {
    name: "PreTrainedTokenizer",
    special: &[],
    begin_and_end: BeginAndEnd::PostProcessor,
    prefix_space: PrefixSpace::Ignored,
    converts: false,
};
/// What transformers 5 writes: it saves the effect of the settings in tokenizer.json, and converts nothing when it loads.
const BACKEND: TokenizerClass = TokenizerClass { name: "TokenizersBackend", ..GENERIC };
const GPT2: TokenizerClass =
    TokenizerClass { name: "GPT2Tokenizer", special: GPT2_SPECIAL, prefix_space: PrefixSpace::PreTokenizer, ..GENERIC };

const CLASSES: &[TokenizerClass] = &[
    LLAMA,
    TokenizerClass { name: CODE_LLAMA, prefix_space: PrefixSpace::Ignored, ..LLAMA },
    GENERIC,
    BACKEND,
    GPT2,
    TokenizerClass { name: CODE_GEN, ..GPT2 },
    TokenizerClass {
        name: "GPTNeoXTokenizer",
        begin_and_end: BeginAndEnd::Switches { begin_by_default: false },
        ..GPT2
    },
    TokenizerClass { name: "Qwen2Tokenizer", special: QWEN2_SPECIAL, ..GENERIC },
];

/// Llama with tokens for infilling.
pub(super) const CODE_LLAMA: &str = "CodeLlamaTokenizer";
/// Refuses `add_bos_token`, where GPT-2's ignores it.
pub(super) const CODE_GEN: &str = "CodeGenTokenizer";

/// The families whose configuration stands for a Llama tokenizer where no file names a class.
const LLAMA_FAMILIES: [&str; 4] = ["llama", "mistral", "phi3", "mixtral"];

impl TokenizerClass {
    /// The class of a tokenizer that its file describes whole.
    pub(super) fn of_file() -> &'static Self {
        &BACKEND
    }

    /// The class that a directory asks for, with `json` its tokenizer_config.json. `Err` is what is not supported.
    pub(super) fn of(
        directory: &Path,
        json: &Map<String, Value>,
        has_tokenizer_json: bool,
    ) -> Result<Result<&'static Self, String>, TokenizerError> {
        match json.get("backend") {
            None | Some(Value::Null) => {}
            Some(Value::String(name)) if name == "tokenizers" && has_tokenizer_json => return Ok(Ok(&BACKEND)),
            Some(Value::String(name)) if name == "tokenizers" => {}
            Some(other) => {
                let shown: String = other.to_string().chars().take(60).collect();
                return Ok(Err(format!("the tokenizer backend {shown}")));
            }
        }
        let named = |json: &Map<String, Value>| json.get("tokenizer_class").and_then(Value::as_str).map(str::to_owned);
        let mut name = named(json);
        let mut family = None;
        if name.is_none()
            && let Some(config) = read_json(&directory.join("config.json"))?
        {
            name = named(&config);
            family = config.get("model_type").and_then(Value::as_str).map(str::to_owned);
        }
        let Some(name) = name else {
            let is_llama = family.is_some_and(|family| LLAMA_FAMILIES.contains(&family.as_str()));
            return Ok(Ok(if is_llama { &LLAMA } else { &GENERIC }));
        };
        let known = CLASSES.iter().find(|class| class.name == name.strip_suffix("Fast").unwrap_or(&name));
        Ok(known.ok_or_else(|| format!("the tokenizer class \"{}\"", name.chars().take(60).collect::<String>())))
    }
}
