//! Text to tokens and back, exactly as the reference implementations do it.
//!
//! A Hugging Face directory is opened with the semantics of transformers 4.46 (its fast tokenizer classes), one of
//! Meta's downloads with those of the SentencePiece library.

mod byte_bound;
mod chat_template;
mod class;
mod config;
mod conversation;
mod decoder_chain;
mod detokenizer;
mod error;
mod files;
mod gguf;
mod hugging_face;
mod llama_converter;
mod prefix_space;
pub mod sentencepiece;
mod text_filter;

use std::path::Path;
use std::sync::Arc;

use byte_bound::ByteBound;
use chat_template::{ChatTemplate, SpecialToken};
use config::TokenizerConfig;
use detokenizer::Detokenizer;
use hugging_face::HuggingFace;

use crate::checkpoint::{self, gguf::GgufModel};

pub use chat_template::ChatMessage;
pub use conversation::{CONVERSATION_VARIABLES, Conversation, Ending};
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
    /// None, for the text is a rendered conversation, whose special tokens are tokens. transformers' semantics know them in any
    /// text; with Meta's the begin and the end token are cut out, and each part between them is a text of its own.
    Rendered,
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
pub struct Tokenizer {
    inner: Arc<Inner>,
    chat_template: Option<Arc<Result<ChatTemplate, String>>>,
}

#[derive(Debug)]
struct Inner {
    implementation: Implementation,
    special: SpecialIds,
    /// The tokens that end an answer where nothing else says which do.
    ends: Vec<u32>,
    special_ids: Vec<u32>,
    model_max_length: Option<usize>,
    clean_up_tokenization_spaces: bool,
    /// What a chat template is given of it.
    special_tokens: Vec<SpecialToken>,
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
    /// Opens the tokenizer of a model's directory, or of a GGUF file.
    ///
    /// A directory with params.json and no config.json is one of Meta's downloads; its tokenizer.model may also lie in
    /// the directory above, where Meta's download script puts it.
    pub fn open(directory: &Path) -> Result<Self, TokenizerError> {
        if let Some(files) = checkpoint::gguf::find(directory)? {
            return Self::open_gguf(&GgufModel::open(&files)?);
        }
        if directory.join("params.json").exists() && !directory.join("config.json").exists() {
            return Self::open_meta(directory);
        }
        let opened = HuggingFace::open(directory)?;
        let (implementation, config) =
            opened.ok_or_else(|| TokenizerError::Missing { directory: directory.to_owned() })?;
        let chat_template = ChatTemplate::open(directory)?;
        Ok(Self::of_hugging_face(directory, implementation, &config, chat_template, None))
    }

    fn open_gguf(model: &GgufModel) -> Result<Self, TokenizerError> {
        let gguf::Opened { implementation, config, chat_template, ends } = gguf::open(model)?;
        Ok(Self::of_hugging_face(model.path(), implementation, &config, chat_template, Some(ends)))
    }

    /// A tokenizer with transformers' semantics. `ends` are the tokens that end an answer, where it is not the end token alone.
    fn of_hugging_face(
        path: &Path,
        implementation: HuggingFace,
        config: &TokenizerConfig,
        chat_template: Option<Result<ChatTemplate, String>>,
        ends: Option<Vec<u32>>,
    ) -> Self {
        let id = |name| implementation.special_id(config, name);
        let special =
            SpecialIds { bos: id("bos_token"), eos: id("eos_token"), pad: id("pad_token"), unk: id("unk_token") };
        if let Some(Err(error)) = &chat_template {
            tracing::warn!(path = %path.display(), %error, "the chat template is unusable");
        }
        let inner = Inner {
            special,
            ends: ends.unwrap_or_else(|| special.eos.into_iter().collect()),
            special_ids: implementation.special_ids(),
            model_max_length: config.model_max_length,
            clean_up_tokenization_spaces: config.clean_up_tokenization_spaces,
            special_tokens: chat_template::special_tokens(config),
            byte_bound: ByteBound::of_hugging_face(implementation.library()),
            implementation: Implementation::HuggingFace(Box::new(implementation)),
        };
        Self { inner: Arc::new(inner), chat_template: chat_template.map(Arc::new) }
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
        let inner = Inner {
            special,
            ends: special.eos.into_iter().collect(),
            special_ids: (0u32..).take(model.size()).filter(|id| model.is_special(*id)).collect(),
            model_max_length: None,
            clean_up_tokenization_spaces: false,
            special_tokens: chat_template::special_pieces(&model),
            byte_bound: ByteBound::of_sentencepiece(&model),
            implementation: Implementation::SentencePiece(Box::new(model)),
        };
        Self { inner: Arc::new(inner), chat_template: None }
    }

    /// Whose semantics this tokenizer follows.
    pub fn flavor(&self) -> Flavor {
        match &self.inner.implementation {
            Implementation::HuggingFace(_) => Flavor::HuggingFace,
            Implementation::SentencePiece(_) => Flavor::Meta,
        }
    }

    /// The ids of a text. With [`Special::Add`], as `tokenizer(text)` of transformers or, for Meta's, with the begin
    /// token and without the end token.
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<u32>, TokenizerError> {
        match &self.inner.implementation {
            Implementation::HuggingFace(implementation) => implementation.encode(text, special == Special::Add),
            Implementation::SentencePiece(model) => {
                if special == Special::Rendered {
                    return Ok(encode_rendered(model, text));
                }
                let bos = model.bos().filter(|_| special == Special::Add);
                Ok(bos.into_iter().chain(model.encode(text)).collect())
            }
        }
    }

    /// A lower bound of the number of tokens of `text`, computed from the number of its bytes without encoding it. Tokenizers that
    /// may drop characters give no exact bound; at most a kibibyte for each token is assumed of them.
    pub fn min_tokens(&self, text: &str) -> usize {
        self.inner.byte_bound.min_tokens(text)
    }

    /// The text of a sequence of ids, as `tokenizer.decode` of transformers or SentencePiece's `decode` gives it. Ids
    /// beyond the vocabulary are dropped.
    pub fn decode(&self, ids: &[u32], options: DecodeOptions) -> String {
        let mut detokenizer = Detokenizer::new(&self.inner.implementation, options);
        let mut text = String::new();
        for &id in ids {
            text.push_str(&detokenizer.push(&self.inner.implementation, id));
        }
        text.push_str(&detokenizer.finish());
        text
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        match &self.inner.implementation {
            Implementation::HuggingFace(implementation) => implementation.vocab_size(),
            Implementation::SentencePiece(model) => model.size(),
        }
    }

    /// A token as the vocabulary has it: U+2581 or a byte-level character for a space, `<0x0A>` or such a character for a byte.
    pub fn token_text(&self, id: u32) -> Option<String> {
        match &self.inner.implementation {
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
        match &self.inner.implementation {
            Implementation::HuggingFace(implementation) => implementation.token_bytes(id),
            Implementation::SentencePiece(model) => model.piece_bytes(id),
        }
    }

    /// The token that `text` becomes, wherever it stands in a text.
    pub fn added_token(&self, text: &str) -> Option<u32> {
        match &self.inner.implementation {
            Implementation::HuggingFace(implementation) => implementation.added_token(text),
            // The names of its tokens are plain text.
            Implementation::SentencePiece(_) => None,
        }
    }

    /// The token that begins a sequence.
    pub fn bos_token_id(&self) -> Option<u32> {
        self.inner.special.bos
    }

    /// The token that ends a sequence.
    pub fn eos_token_id(&self) -> Option<u32> {
        self.inner.special.eos
    }

    /// The tokens that end an answer where a model's files do not say which do: the end token, as a rule. A GGUF file may name others.
    pub fn end_token_ids(&self) -> &[u32] {
        &self.inner.ends
    }

    /// The padding token.
    pub fn pad_token_id(&self) -> Option<u32> {
        self.inner.special.pad
    }

    /// The token for unknown text.
    pub fn unk_token_id(&self) -> Option<u32> {
        self.inner.special.unk
    }

    /// The ids that `skip_special_tokens` leaves out, in ascending order.
    pub fn special_ids(&self) -> &[u32] {
        &self.inner.special_ids
    }

    /// Longest sequence that tokenizer_config.json allows, in tokens.
    pub fn model_max_length(&self) -> Option<usize> {
        self.inner.model_max_length
    }

    /// What tokenizer_config.json says about `clean_up_tokenization_spaces`; false where it is silent.
    pub fn clean_up_tokenization_spaces(&self) -> bool {
        self.inner.clean_up_tokenization_spaces
    }

    /// This tokenizer with another chat template than the model's own.
    ///
    /// # Errors
    /// A text that is no template, or one that needs too much.
    pub fn with_chat_template(self, source: &str) -> Result<Self, TokenizerError> {
        let template =
            ChatTemplate::compile(source.to_owned()).map_err(|reason| TokenizerError::GivenTemplate { reason })?;
        Ok(Self { chat_template: Some(Arc::new(Ok(template))), ..self })
    }

    /// This tokenizer with the chat template in a file, in place of the model's own.
    ///
    /// # Errors
    /// A file that can't be read or holds no template.
    pub fn with_chat_template_file(self, path: &Path) -> Result<Self, TokenizerError> {
        let template = chat_template::read(path)?;
        self.with_chat_template(&template).map_err(|error| files::malformed(path, error))
    }

    /// Whether messages can be rendered.
    pub fn has_chat_template(&self) -> bool {
        self.usable_template().is_some()
    }

    /// The text of the chat template, if there is one that can be used.
    pub fn chat_template_source(&self) -> Option<&str> {
        self.usable_template().map(ChatTemplate::source)
    }

    /// Whether the chat template reads `variable`, which it does not itself assign first: `tools` in one that can write tools.
    pub fn chat_template_names(&self, variable: &str) -> bool {
        self.usable_template().is_some_and(|template| template.reads(variable))
    }

    /// Whether the template that a conversation is rendered with reads `variable`: its own or the model's.
    pub fn template_reads(&self, conversation: &Conversation, variable: &str) -> bool {
        match &conversation.template {
            None => self.chat_template_names(variable),
            Some(source) => ChatTemplate::compile(source.clone()).is_ok_and(|template| template.reads(variable)),
        }
    }

    fn usable_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()?.as_ref().as_ref().ok()
    }

    fn template(&self) -> Result<&ChatTemplate, TokenizerError> {
        match self.chat_template.as_deref() {
            None => Err(TokenizerError::NoChatTemplate),
            Some(Err(reason)) => Err(TokenizerError::ChatTemplate { reason: reason.clone() }),
            Some(Ok(template)) => Ok(template),
        }
    }

    /// A conversation as its own or the model's chat template renders it, its special tokens included: encode it with
    /// [`Special::Rendered`]. Ends as soon as `cancelled` says that nobody waits for it. A template is bounded in source, steps,
    /// bytes and depth, and needs at most a megabyte of the caller's stack.
    ///
    /// # Errors
    /// No template, one that can't be used, a conversation that it refuses or can't render, a last message that can't be
    /// continued.
    pub fn render(&self, conversation: &Conversation, cancelled: &dyn Fn() -> bool) -> Result<String, TokenizerError> {
        let special_tokens = &self.inner.special_tokens;
        match &conversation.template {
            None => self.template()?.render(conversation, special_tokens, cancelled),
            Some(source) => ChatTemplate::compile(source.clone())
                .map_err(|reason| TokenizerError::RequestTemplate { reason })?
                .render(conversation, special_tokens, cancelled),
        }
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
        self.template()?.render_messages(messages, add_generation_prompt, &self.inner.special_tokens, cancelled)
    }

    fn implementation(&self) -> &Implementation {
        &self.inner.implementation
    }
}

/// The ids of a rendered conversation, turn by turn as Meta's code encodes them.
fn encode_rendered(model: &sentencepiece::Model, text: &str) -> Vec<u32> {
    let named = |id: u32| model.piece(id).filter(|name| !name.is_empty()).map(|name| (name, id));
    let names: Vec<(&str, u32)> = [model.bos(), model.eos()].into_iter().flatten().filter_map(named).collect();
    let (mut ids, mut from, mut at) = (Vec::new(), 0, 0);
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        if let Some((name, id)) = names.iter().find(|(name, _)| rest.starts_with(name)) {
            ids.extend(model.encode(text.get(from..at).unwrap_or_default()));
            ids.push(*id);
            at += name.len();
            from = at;
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    ids.extend(model.encode(text.get(from..).unwrap_or_default()));
    ids
}
