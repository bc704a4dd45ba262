//! Text to tokens and back, exactly as the reference implementations do it.
//!
//! A Hugging Face directory is opened with the semantics of transformers 4.46 (its fast tokenizer classes), one of
//! Meta's downloads with those of the SentencePiece library.

mod byte_bound;
mod chat_template;
mod class;
mod config;
mod decoder_chain;
mod detokenizer;
mod error;
mod files;
mod hugging_face;
mod llama_converter;
mod prefix_space;
pub mod sentencepiece;
mod text_filter;

use std::path::Path;
use std::sync::Arc;

use byte_bound::ByteBound;
use chat_template::ChatTemplate;
use detokenizer::Detokenizer;
use hugging_face::HuggingFace;

pub use chat_template::ChatMessage;
pub use detokenizer::StreamingDecoder;
pub use error::TokenizerError;

/// Whose semantics a tokenizer follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavor {
    /// transformers: special tokens inside a text are tokens.
    HuggingFace,
    /// Meta's code over SentencePiece: the names of special tokens are plain text.
    Meta,
}

/// Whether encoding adds the tokens that the tokenizer adds to every sequence (the begin token, as a rule).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// Add them.
    Add,
    /// The text's own tokens alone.
    Skip,
}

/// What decoding leaves out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeOptions {
    /// Leave special tokens out. SentencePiece's control tokens have no text anyway.
    pub skip_special_tokens: bool,
    /// Remove the spaces before punctuation and English contractions that some tokenizers put there.
    pub clean_up_tokenization_spaces: bool,
}

/// A model's tokenizer; cheap to clone.
#[derive(Debug, Clone)]
pub struct Tokenizer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    implementation: Implementation,
    special: SpecialIds,
    special_ids: Vec<u32>,
    model_max_length: Option<usize>,
    clean_up_tokenization_spaces: bool,
    chat_template: Option<Result<ChatTemplate, String>>,
    byte_bound: ByteBound,
}

/// What encodes and decodes.
#[derive(Debug)]
enum Implementation {
    // Boxed, for it is many times the size of the other.
    HuggingFace(Box<HuggingFace>),
    SentencePiece(Box<sentencepiece::Model>),
}

#[derive(Debug, Clone, Copy)]
struct SpecialIds {
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    unk: Option<u32>,
}

impl Tokenizer {
    /// Opens the tokenizer of a model's directory.
    ///
    /// A directory with params.json and no config.json is one of Meta's downloads; its tokenizer.model may also lie in
    /// the directory above, where Meta's download script puts it.
    pub fn open(directory: &Path) -> Result<Self, TokenizerError> {
        if directory.join("params.json").exists() && !directory.join("config.json").exists() {
            return Self::open_meta(directory);
        }
        let opened = HuggingFace::open(directory)?;
        let (implementation, config) =
            opened.ok_or_else(|| TokenizerError::Missing { directory: directory.to_owned() })?;
        let id = |name| implementation.special_id(&config, name);
        let special =
            SpecialIds { bos: id("bos_token"), eos: id("eos_token"), pad: id("pad_token"), unk: id("unk_token") };
        let chat_template = ChatTemplate::open(directory, &config)?;
        if let Some(Err(error)) = &chat_template {
            tracing::warn!(directory = %directory.display(), %error, "the chat template is unusable");
        }
        Ok(Self(Arc::new(Inner {
            special,
            special_ids: implementation.special_ids(),
            model_max_length: config.model_max_length,
            clean_up_tokenization_spaces: config.clean_up_tokenization_spaces,
            chat_template,
            byte_bound: ByteBound::of_hugging_face(implementation.library()),
            implementation: Implementation::HuggingFace(Box::new(implementation)),
        })))
    }

    fn open_meta(directory: &Path) -> Result<Self, TokenizerError> {
        let candidates = [Some(directory), directory.parent()];
        for path in candidates.into_iter().flatten().map(|directory| directory.join("tokenizer.model")) {
            let Some(contents) = files::read(&path)? else { continue };
            let model = sentencepiece::Model::parse(&contents)
                .map_err(|source| TokenizerError::SentencePiece { path, source })?;
            return Ok(Self::from_sentencepiece(model));
        }
        Err(TokenizerError::Missing { directory: directory.to_owned() })
    }

    /// A tokenizer with Meta's semantics.
    pub fn from_sentencepiece(model: sentencepiece::Model) -> Self {
        let special = SpecialIds { bos: model.bos(), eos: model.eos(), pad: model.pad(), unk: Some(model.unk()) };
        Self(Arc::new(Inner {
            special,
            special_ids: (0u32..).take(model.size()).filter(|id| model.is_special(*id)).collect(),
            model_max_length: None,
            clean_up_tokenization_spaces: false,
            chat_template: None,
            byte_bound: ByteBound::of_sentencepiece(&model),
            implementation: Implementation::SentencePiece(Box::new(model)),
        }))
    }

    /// Whose semantics this tokenizer follows.
    pub fn flavor(&self) -> Flavor {
        match &self.0.implementation {
            Implementation::HuggingFace(_) => Flavor::HuggingFace,
            Implementation::SentencePiece(_) => Flavor::Meta,
        }
    }

    /// The ids of a text. With [`Special::Add`], as `tokenizer(text)` of transformers or, for Meta's, with the begin
    /// token and without the end token.
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<u32>, TokenizerError> {
        match &self.0.implementation {
            Implementation::HuggingFace(implementation) => implementation.encode(text, special == Special::Add),
            Implementation::SentencePiece(model) => {
                let bos = model.bos().filter(|_| special == Special::Add);
                Ok(bos.into_iter().chain(model.encode(text)).collect())
            }
        }
    }

    /// A lower bound of the number of tokens of `text`, computed from the number of its bytes without encoding it. Tokenizers that
    /// may drop characters give no exact bound; at most a kibibyte for each token is assumed of them.
    pub fn min_tokens(&self, text: &str) -> usize {
        self.0.byte_bound.min_tokens(text)
    }

    /// The text of a sequence of ids, as `tokenizer.decode` of transformers or SentencePiece's `decode` gives it. Ids
    /// beyond the vocabulary are dropped.
    pub fn decode(&self, ids: &[u32], options: DecodeOptions) -> String {
        let mut detokenizer = Detokenizer::new(&self.0.implementation, options);
        let mut text = String::new();
        for &id in ids {
            text.push_str(&detokenizer.push(&self.0.implementation, id));
        }
        text.push_str(&detokenizer.finish());
        text
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        match &self.0.implementation {
            Implementation::HuggingFace(implementation) => implementation.vocab_size(),
            Implementation::SentencePiece(model) => model.size(),
        }
    }

    /// A token as the vocabulary has it: U+2581 or a byte-level character for a space, `<0x0A>` or such a character for a byte.
    pub fn token_text(&self, id: u32) -> Option<String> {
        match &self.0.implementation {
            Implementation::HuggingFace(implementation) => implementation.token(id),
            Implementation::SentencePiece(model) => model.piece(id).map(str::to_owned),
        }
    }

    /// The bytes that a token adds to a text that it stands inside of: a part of a character for many tokens, so they need not be
    /// UTF-8. `None` beyond the vocabulary.
    ///
    /// The bytes of a sequence's tokens join to what [`Self::decode`] gives without `clean_up_tokenization_spaces`, but for this:
    /// decoding puts U+FFFD in place of bytes that are no character; it strips spaces at the beginning of a text, such as
    /// SentencePiece's dummy prefix, which are bytes of the first token here; and a decoder that replaces texts after it joined the
    /// tokens may replace some that lie in several. Special tokens have the bytes of their names, also where decoding leaves them
    /// out; SentencePiece's unknown piece has those of its surface.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        match &self.0.implementation {
            Implementation::HuggingFace(implementation) => implementation.token_bytes(id),
            Implementation::SentencePiece(model) => model.piece_bytes(id),
        }
    }

    /// The token that begins a sequence.
    pub fn bos_token_id(&self) -> Option<u32> {
        self.0.special.bos
    }

    /// The token that ends a sequence.
    pub fn eos_token_id(&self) -> Option<u32> {
        self.0.special.eos
    }

    /// The padding token.
    pub fn pad_token_id(&self) -> Option<u32> {
        self.0.special.pad
    }

    /// The token for unknown text.
    pub fn unk_token_id(&self) -> Option<u32> {
        self.0.special.unk
    }

    /// The ids that `skip_special_tokens` leaves out, in ascending order.
    pub fn special_ids(&self) -> &[u32] {
        &self.0.special_ids
    }

    /// Longest sequence that tokenizer_config.json allows, in tokens.
    pub fn model_max_length(&self) -> Option<usize> {
        self.0.model_max_length
    }

    /// What tokenizer_config.json says about `clean_up_tokenization_spaces`; false where it is silent.
    pub fn clean_up_tokenization_spaces(&self) -> bool {
        self.0.clean_up_tokenization_spaces
    }

    /// Whether messages can be rendered.
    pub fn has_chat_template(&self) -> bool {
        matches!(self.0.chat_template, Some(Ok(_)))
    }

    /// A conversation as the model's chat template renders it, its special tokens included: encode it with
    /// [`Special::Skip`].
    pub fn apply_chat_template(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<String, TokenizerError> {
        self.apply_chat_template_unless(&|| false, messages, add_generation_prompt)
    }

    /// [`Self::apply_chat_template`], ended as soon as `cancelled` says that nobody waits for it. A template is bounded in
    /// steps, bytes and depth, and needs at most a megabyte of the caller's stack.
    pub fn apply_chat_template_unless(
        &self,
        cancelled: &dyn Fn() -> bool,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<String, TokenizerError> {
        match &self.0.chat_template {
            None => Err(TokenizerError::NoChatTemplate),
            Some(Err(reason)) => Err(TokenizerError::ChatTemplate { reason: reason.clone() }),
            Some(Ok(template)) => template.render(messages, add_generation_prompt, cancelled),
        }
    }

    fn implementation(&self) -> &Implementation {
        &self.0.implementation
    }
}
