//! Requests for text, and the way from their text to tokens.

use std::fmt::Display;

use kaito_model::tokenizer::{ChatMessage, Conversation, Special, Tokenizer};

use crate::{
    Cancel, Error,
    adapters::Adapter,
    engine::GenerationRequest,
    generate::{GenerateOptions, GenerationParams, ParameterError, Pooling, ResolveContext},
    prompt_bytes,
    stop_strings::StopStrings,
    stream::Assembler,
};

/// What an answer continues.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// A text. It gets the tokens that the tokenizer adds to every sequence.
    Text(String),
    /// A conversation, rendered by the model's chat template. If its last message is the assistant's, that one is
    /// continued.
    Messages(Vec<ChatMessage>),
    /// Token ids.
    Tokens(Vec<u32>),
}

impl Default for Prompt {
    /// An empty text.
    fn default() -> Self {
        Self::Text(String::new())
    }
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Vec<ChatMessage>> for Prompt {
    fn from(messages: Vec<ChatMessage>) -> Self {
        Self::Messages(messages)
    }
}

impl From<Vec<u32>> for Prompt {
    fn from(tokens: Vec<u32>) -> Self {
        Self::Tokens(tokens)
    }
}

/// A request for text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Request {
    /// What the answer continues.
    pub prompt: Prompt,
    /// Parameters of generation. What is not set is as [`GenerateOptions::over_model`] has it.
    pub options: GenerateOptions,
    /// Texts that end a sequence where they appear; they are not part of it.
    pub stop: Vec<String>,
    /// How tokens become text.
    pub decoding: Decoding,
}

/// How the tokens of an answer become its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoding {
    /// Leave special tokens out.
    pub skip_special_tokens: bool,
    /// Remove the spaces before punctuation and English contractions that some tokenizers put there.
    pub clean_up_tokenization_spaces: bool,
    /// Leave end tokens and stop tokens out, whether they are special or not.
    pub skip_end_tokens: bool,
    /// Decode the answer as the rest of a text that the prompt begins. Otherwise it is a text of its own, which many
    /// tokenizers begin without a space.
    pub after_prompt: bool,
    /// Give the bytes of each token along with it, which text can't show of a token that is a part of a character.
    pub token_bytes: bool,
    /// Let each token wait until its text is final, and give it along with that: see [`Delta`](crate::Delta). The tokens of an
    /// answer are then those that its text is made of, without those of a stop string that was cut off.
    pub by_token: bool,
    /// Leave the stop string that ended a text at its end.
    pub include_stop_string: bool,
}

impl Default for Decoding {
    /// The rest of the prompt's text, without special tokens.
    fn default() -> Self {
        Self {
            skip_special_tokens: true,
            clean_up_tokenization_spaces: false,
            skip_end_tokens: false,
            after_prompt: true,
            token_bytes: false,
            by_token: false,
            include_stop_string: false,
        }
    }
}

impl Request {
    /// Turns the prompt into tokens and checks the parameters. Looks at `cancel` between one stage and the next.
    ///
    /// # Errors
    /// A request that can't be served as it stands, and [`Error::Cancelled`].
    pub fn prepare(self, context: &RequestContext, cancel: &Cancel) -> Result<Prepared, Error> {
        let stops = StopStrings::new(&self.stop)?;
        let limit = context.max_seq_len;
        let prompt = match self.prompt {
            Prompt::Text(text) => context.encode(&text, Special::Add, limit, cancel)?,
            Prompt::Messages(messages) => {
                let text = context.render(&messages, cancel)?;
                context.encode(&text, Special::Skip, limit, cancel)?
            }
            Prompt::Tokens(tokens) => tokens,
        };
        cancel.check()?;
        let prompt = context.or_begin(prompt)?;
        let options = self.options.over_model(context.defaults.clone());
        let params = context.resolve(&options, prompt.len(), 0)?;
        Ok(Prepared::new(context, prompt, params, self.decoding, stops))
    }
}

/// What of a model decides how a request becomes tokens: all but its weights.
#[derive(Debug, Clone)]
pub struct RequestContext {
    /// The model's tokenizer.
    pub tokenizer: Tokenizer,
    /// What its `generation_config.json` says.
    pub defaults: GenerateOptions,
    /// The token that stands for an empty prompt, where that is not the tokenizer's.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a sequence where a request names none.
    pub end_tokens: Vec<u32>,
    /// Rows of the model's output head.
    pub vocab_size: usize,
    /// The `min_p` of its `generation_config.json`, which is none of `defaults`.
    pub min_p: Option<f64>,
    /// Longest sequence, in tokens.
    pub max_seq_len: usize,
    /// Most sequences that run at the same time.
    pub max_batch_size: usize,
    /// The adapter that prompts are continued with unless they have another.
    pub adapter: Option<Adapter>,
}

impl RequestContext {
    /// The token ids of a prompt's text, unless its bytes alone say that they are more than `limit`.
    ///
    /// # Errors
    /// A text that is too long, or that the tokenizer can't encode; [`Error::Cancelled`].
    pub fn encode(&self, text: &str, special: Special, limit: usize, cancel: &Cancel) -> Result<Vec<u32>, Error> {
        cancel.check()?;
        self.check_bytes("the prompt", [text].into_iter(), limit, text.len())?;
        Ok(self.tokenizer.encode(text, special)?)
    }

    /// Refuses a prompt whose bytes say that it has more than `limit` tokens, since tokenising a long text takes a second and
    /// a hundred times its memory. The texts in `parts` are one prompt together, which a refusal calls `what`; `whole` is how
    /// many bytes of text the whole request has.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] with both numbers.
    pub fn check_bytes<'a>(
        &self,
        what: impl Display,
        parts: impl Iterator<Item = &'a str>,
        limit: usize,
        whole: usize,
    ) -> Result<(), Error> {
        prompt_bytes::check(&self.tokenizer, what, parts, limit, whole)
    }

    /// A conversation as the model's chat template writes it, up to where the answer begins. If the last message is the
    /// assistant's, that is its end. Encode it without the tokens that the tokenizer adds: the template has them.
    ///
    /// # Errors
    /// No messages, no chat template, messages that it refuses, a last one that it changes; a template that takes too long,
    /// also because `cancel` says so.
    pub fn render(&self, messages: &[ChatMessage], cancel: &Cancel) -> Result<String, Error> {
        let last = messages.last().ok_or_else(no_messages)?;
        let render = |add_generation_prompt: bool| {
            self.tokenizer.apply_chat_template_unless(&|| cancel.is_cancelled(), messages, add_generation_prompt)
        };
        if last.role != "assistant" {
            return Ok(render(true)?);
        }
        let rendered = render(false)?;
        let content = last.content.trim();
        match rendered.rfind(content) {
            Some(at) => Ok(rendered[..at + content.len()].trim_end().to_owned()),
            None => Err(Error::InvalidRequest(
                "the last message is the assistant's, but the model's chat template changes its text, so it can't be \
                 continued"
                    .to_owned(),
            )),
        }
    }

    /// A conversation as its own or the model's chat template writes it. Encode it with [`Special::Rendered`].
    ///
    /// # Errors
    /// No messages, no chat template, a conversation that it refuses or can't render, a last message that can't be continued; a
    /// template that takes too long, also because `cancel` says so.
    pub fn render_conversation(&self, conversation: &Conversation, cancel: &Cancel) -> Result<String, Error> {
        cancel.check()?;
        if conversation.messages.is_empty() {
            return Err(no_messages());
        }
        Ok(self.tokenizer.render(conversation, &|| cancel.is_cancelled())?)
    }

    /// `prompt`, or the begin token where it is empty, as transformers has it.
    ///
    /// # Errors
    /// An empty prompt for a model without a begin token.
    pub fn or_begin(&self, prompt: Vec<u32>) -> Result<Vec<u32>, Error> {
        match self.bos_token_id.or(self.tokenizer.bos_token_id()) {
            _ if !prompt.is_empty() => Ok(prompt),
            Some(bos) => Ok(vec![bos]),
            None => Err(Error::InvalidRequest(
                "the prompt is empty, and this model has no begin token that could stand for it".to_owned(),
            )),
        }
    }

    /// What `options`, which are complete, come to for a prompt of `prompt_len` tokens, `prefix_len` of which count neither in
    /// `max_length` nor in `min_length`.
    ///
    /// # Errors
    /// Options that contradict each other or the model, a prompt that leaves no room for a new token.
    pub fn resolve(
        &self,
        options: &GenerateOptions,
        prompt_len: usize,
        prefix_len: usize,
    ) -> Result<GenerationParams, ParameterError> {
        GenerationParams::resolve(
            options,
            &ResolveContext {
                prompt_len,
                prefix_len,
                vocab_size: self.vocab_size,
                max_seq_len: self.max_seq_len,
                eos_token_ids: &self.end_tokens,
                pad_token_id: self.tokenizer.pad_token_id(),
            },
        )
    }
}

fn no_messages() -> Error {
    Error::InvalidRequest("`messages` is empty: it must hold at least one message".to_owned())
}

/// One prompt of a request, ready to be queued: its tokens, how to continue them, and how the new ones become text. Also an
/// answer that is known without the model, which has a prompt's place in a request of several.
#[derive(Debug)]
pub struct Prepared(pub(crate) Preparation);

#[derive(Debug)]
pub(crate) enum Preparation {
    Generate(Box<(GenerationRequest, Assembler)>),
    Known(String),
}

impl Prepared {
    /// Continues `prompt`, at least one token id, in texts that end at any of `stops`.
    pub fn new(
        context: &RequestContext,
        prompt: Vec<u32>,
        mut params: GenerationParams,
        decoding: Decoding,
        stops: StopStrings,
    ) -> Self {
        params.adapter = params.adapter.or_else(|| context.adapter.clone());
        let assembler = Assembler::new(&context.tokenizer, &prompt, &params, decoding, stops);
        Self(Preparation::Generate(Box::new((GenerationRequest { prompt, params }, assembler))))
    }

    /// The same, continued by the model with this adapter, or by the model alone.
    #[must_use]
    pub fn with_adapter(mut self, adapter: Option<Adapter>) -> Self {
        if let Preparation::Generate(generate) = &mut self.0 {
            generate.0.params.adapter = adapter;
        }
        self
    }

    /// Describes `prompt`, at least one token id, by one vector: the hidden states of its tokens, behind the final norm and pooled.
    /// No text comes of it; the vector is [`PromptOutput::pooled`](crate::PromptOutput::pooled), as wide as the model's hidden
    /// states and not normalised.
    ///
    /// # Errors
    /// A prompt that is longer than the longest sequence.
    pub fn pooled(context: &RequestContext, prompt: Vec<u32>, pooling: Pooling) -> Result<Self, ParameterError> {
        let limit = context.max_seq_len;
        if prompt.len() > limit {
            let tokens = prompt.len();
            return Err(ParameterError::Conflict(format!(
                "the prompt has {tokens} tokens, but this model's longest sequence has {limit}"
            )));
        }
        let params = GenerationParams::pool(pooling, prompt.len());
        Ok(Self::new(context, prompt, params, Decoding::default(), StopStrings::default()))
    }

    /// An answer of this text, for which nothing is computed.
    pub fn known(text: impl Into<String>) -> Self {
        Self(Preparation::Known(text.into()))
    }

    /// The prompt's token ids; none where nothing is computed.
    pub fn prompt(&self) -> &[u32] {
        match &self.0 {
            Preparation::Generate(generate) => &generate.0.prompt,
            Preparation::Known(_) => &[],
        }
    }

    /// The most tokens that a sequence of it may get.
    pub fn max_tokens(&self) -> usize {
        match &self.0 {
            Preparation::Generate(generate) => {
                let GenerationRequest { prompt, params } = &generate.0;
                params.max_total_len.saturating_sub(prompt.len())
            }
            Preparation::Known(_) => 0,
        }
    }

    /// How many sequences come of it.
    pub fn sequences(&self) -> usize {
        match &self.0 {
            Preparation::Generate(generate) => generate.0.params.returned_sequences(),
            Preparation::Known(_) => 1,
        }
    }
}
