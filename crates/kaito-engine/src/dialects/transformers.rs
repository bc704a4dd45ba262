//! Requests with the semantics of transformers' text-generation pipeline.

use crate::{Cancel, Decoding, Error, Prepared, Prompt, RequestContext, StopStrings, generate::GenerateOptions};
use kaito_model::tokenizer::Special;

/// How many times the longest sequence a prompt may have whose beginning is dropped (`handle_long_generation`): it need not
/// fit, but all of it is tokenised.
const HOLE: usize = 8;

/// A request for text, as the pipeline takes it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TextRequest {
    /// What to continue.
    pub input: Prompt,
    /// Whether the answer begins with the prompt. `None`: a text is returned, a conversation is not.
    pub return_full_text: Option<bool>,
    /// Whether spaces before punctuation are removed; `None` is false.
    pub clean_up_tokenization_spaces: Option<bool>,
    /// Text put before the prompt, of which the answer says nothing. It extends `max_length` and `min_length`.
    pub prefix: Option<String>,
    /// `"hole"` drops the beginning of a prompt that leaves too little room; `None` never does.
    pub handle_long_generation: Option<String>,
    /// Whether a text gets the tokens that the tokenizer adds to every sequence; `None` is true. A conversation never
    /// does: its template writes them. `Some(true)` also counts them in the prefix's length.
    pub add_special_tokens: Option<bool>,
    /// Parameters of generation.
    pub options: GenerateOptions,
    /// Texts that end a sequence where they appear; they are not part of it.
    pub stop: Vec<String>,
}

/// A request that is ready to be queued.
#[derive(Debug)]
pub struct PreparedText {
    /// The prompt.
    pub prompt: Prepared,
    /// What every text of the answer begins with, before what is generated.
    pub shown: String,
}

impl TextRequest {
    /// Turns the prompt into tokens and checks the parameters. Looks at `cancel` between one stage and the next.
    ///
    /// # Errors
    /// A request that can't be served as it stands, and [`Error::Cancelled`].
    pub fn prepare(self, context: &RequestContext, cancel: &Cancel) -> Result<PreparedText, Error> {
        let stops = StopStrings::new(&self.stop)?;
        let prefix = self.prefix.unwrap_or_default();
        let limit = match self.handle_long_generation {
            None => context.max_seq_len,
            Some(_) => context.max_seq_len.saturating_mul(HOLE),
        };
        let special = |add: bool| if add { Special::Add } else { Special::Skip };
        let beside = |what: &str| Err(Error::InvalidRequest(format!("`prefix` can't stand beside {what}")));
        let (shown, encoded) = match self.input {
            Prompt::Text(prompt) => {
                let whole = format!("{prefix}{prompt}");
                let add = special(self.add_special_tokens.unwrap_or(true));
                let encoded = context.encode(&whole, add, limit, cancel)?;
                (if self.return_full_text.unwrap_or(true) { prompt } else { String::new() }, encoded)
            }
            Prompt::Messages(_) if !prefix.is_empty() => return beside("`messages`: put its text into a message"),
            Prompt::Messages(messages) => {
                let rendered = context.render(&messages, cancel)?;
                let encoded = context.encode(&rendered, Special::Skip, limit, cancel)?;
                (if self.return_full_text.unwrap_or(false) { rendered } else { String::new() }, encoded)
            }
            Prompt::Tokens(_) if !prefix.is_empty() => return beside("token ids: put its tokens before them"),
            Prompt::Tokens(tokens) => (String::new(), tokens),
        };
        cancel.check()?;
        let prompt = context.or_begin(encoded)?;
        let prefix_len = if prefix.is_empty() {
            0
        } else {
            context.tokenizer.encode(&prefix, special(self.add_special_tokens.unwrap_or(false)))?.len()
        };
        let options = self.options.over_model(context.defaults.clone());
        let prompt = match self.handle_long_generation.as_deref() {
            None => prompt,
            Some("hole") => cut_beginning(context, prompt, &options)?,
            Some(other) => {
                return Err(Error::InvalidRequest(format!(
                    "`handle_long_generation` is \"{}\": it must be \"hole\" or null",
                    other.chars().take(60).collect::<String>()
                )));
            }
        };
        let params = context.resolve(&options, prompt.len(), prefix_len)?;
        let decoding = Decoding {
            clean_up_tokenization_spaces: self.clean_up_tokenization_spaces.unwrap_or(false),
            ..Decoding::default()
        };
        Ok(PreparedText { prompt: Prepared::new(context, prompt, params, decoding, stops), shown })
    }
}

/// Drops the beginning of a prompt that leaves too little room for the new tokens asked for.
fn cut_beginning(context: &RequestContext, prompt: Vec<u32>, options: &GenerateOptions) -> Result<Vec<u32>, Error> {
    let longest = context.tokenizer.model_max_length().unwrap_or(context.max_seq_len).min(context.max_seq_len);
    let (name, asked, new) = match (options.max_new_tokens, options.max_length) {
        (Some(new), _) => ("max_new_tokens", new, new),
        (None, length) => {
            let length = length.unwrap_or(0);
            ("max_length", length, length.saturating_sub(prompt.len()))
        }
    };
    // Where nothing new is asked for, the check of the lengths says so.
    if new == 0 || prompt.len().saturating_add(new) <= longest {
        return Ok(prompt);
    }
    if new >= longest {
        return Err(Error::InvalidRequest(format!(
            "`{name}` is {asked}, which asks for {new} new tokens: with `handle_long_generation` \"hole\" they must be fewer \
             than this model's longest sequence, {longest}"
        )));
    }
    let dropped = prompt.len() - (longest - new).min(prompt.len());
    Ok(prompt.get(dropped..).unwrap_or_default().to_vec())
}
