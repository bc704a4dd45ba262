//! Tools: functions that a model may call instead of answering, or to answer.
//!
//! A request's tools are checked ([`Tools::parse`]), written into the conversation ([`Tools::apply`]), and an answer is bound to
//! text or calls of them whose arguments follow their schemas ([`Tools::grammar`]). [`Tools::reader`] tells the calls from the text.
//! Models whose template writes tools get them in their own format; all others are told of them in words.

#[cfg(test)]
mod bound;
mod generic;
mod grammar;
mod history;
mod ids;
mod native;
mod parse;
mod reader;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use kaito_engine::{Conversation, Tokenizer};
use serde_json::{Map, Value};

use crate::error::ApiError;

pub(crate) use kaito_grammar::Grammar;
use kaito_grammar::inline_schema;
pub(crate) use reader::{CallReader, Piece};

/// Most functions of a request.
const MAX_TOOLS: usize = 128;
/// Most calls of an answer.
const MAX_CALLS: usize = 16;
/// The key of the list of calls in the generic format.
const CALLS: &str = "tool_calls";

/// Which format a server writes tools in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ToolSetting {
    /// The model's own where it has one, else the generic one.
    #[default]
    Auto,
    /// The model's own; models without one take no tools.
    Native,
    /// The generic one.
    Generic,
    /// None: requests with tools are refused.
    Off,
}

/// How tools and calls are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ToolFormat {
    /// As the model was trained to: the chat template writes the tools, and a token begins an answer of calls.
    Native {
        /// That token.
        call_token: u32,
    },
    /// In the instructions, and in JSON.
    Generic,
}

impl ToolFormat {
    /// Whether the reader needs the text of special tokens. In an answer that the grammar binds there are no others than the one
    /// that begins calls, and the end token.
    pub(crate) fn shows_special_tokens(self) -> bool {
        matches!(self, Self::Native { .. })
    }

    fn of(setting: ToolSetting, conversation: &Conversation, tokenizer: &Tokenizer) -> Result<Self, ApiError> {
        let native = || native::call_token(conversation, tokenizer).map(|call_token| Self::Native { call_token });
        match setting {
            ToolSetting::Auto => Ok(native().unwrap_or(Self::Generic)),
            ToolSetting::Generic => Ok(Self::Generic),
            ToolSetting::Native => native().ok_or_else(|| {
                ApiError::bad_request(
                    "`tools` can't be used: this server takes only the model's own format of tools (--tool-format native), and the \
                     model's chat template has none",
                )
            }),
            ToolSetting::Off => {
                Err(ApiError::bad_request("`tools` can't be used: they are switched off here (--tool-format off)"))
            }
        }
    }
}

/// Whether an answer may or must call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    None,
    Auto,
    Required,
    /// One call of one function.
    Named,
}

/// A function of the request's.
#[derive(Debug, Clone)]
struct Function {
    name: String,
    /// Its name, description and parameters, for the model to read.
    described: Map<String, Value>,
    /// The schema of its arguments, for a grammar.
    schema: String,
    /// As the request has it.
    original: Value,
}

/// The tools of a request.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    functions: Vec<Function>,
    choice: Choice,
    /// The functions that may be called, where these are not all.
    allowed: Option<Vec<usize>>,
    /// Whether an answer may have several calls.
    parallel: bool,
    setting: ToolSetting,
}

impl Tools {
    fn new(functions: Vec<Function>, choice: Choice, allowed: Option<Vec<usize>>, parallel: bool) -> Self {
        Self { functions, choice, allowed, parallel, setting: ToolSetting::default() }
    }

    /// The same tools in the format that the server was set to.
    pub(crate) fn with_setting(self, setting: ToolSetting) -> Self {
        Self { setting, ..self }
    }

    /// Refuses a format of the answer's text where the answer must be calls, and one that can't stand beside calls.
    ///
    /// # Errors
    /// A sentence that names both parameters.
    pub(crate) fn check_response(&self, parameter: &str, response: Option<&Grammar>) -> Result<(), ApiError> {
        let why = match (self.choice, response) {
            (_, None) | (Choice::None, _) => return Ok(()),
            (Choice::Required | Choice::Named, _) => "the answer must be a call, as `tool_choice` has it",
            (Choice::Auto, Some(Grammar::Lark(_))) => "a grammar in Lark can't stand beside the calls of `tools`",
            (Choice::Auto, Some(Grammar::JsonSchema { whitespace: Some(_), .. })) => {
                "a pattern of white space can't be given together with `tools`"
            }
            (Choice::Auto, Some(Grammar::JsonSchema { schema, .. })) if has_calls(schema) => {
                "its property `tool_calls` is how calls of `tools` are told from answers"
            }
            (Choice::Auto, Some(_)) => return Ok(()),
        };
        Err(ApiError::bad_request(format!("`{parameter}` can't be used: {why}")))
    }

    /// Writes the tools into a conversation, and its history as the format wants it. Gives the format of the answer.
    ///
    /// # Errors
    /// A format that the model or the server has not; calls in the history that are none.
    pub(crate) fn apply(&self, conversation: &mut Conversation, tokenizer: &Tokenizer) -> Result<ToolFormat, ApiError> {
        let format = ToolFormat::of(self.setting, conversation, tokenizer)?;
        let shown = (self.choice != Choice::None).then_some(self);
        rewrite(shown, format, conversation, tokenizer)?;
        // An answer without calls is a text as any other.
        Ok(if shown.is_some() { format } else { ToolFormat::Generic })
    }

    /// The functions that may be called, with their places.
    fn callable(&self) -> impl Iterator<Item = (usize, &Function)> {
        let allowed = |index: &usize| self.allowed.as_ref().is_none_or(|allowed| allowed.contains(index));
        self.functions.iter().enumerate().filter(move |(index, _)| allowed(index))
    }

    /// Reads the answer of one sequence.
    pub(crate) fn reader(&self, format: ToolFormat) -> CallReader {
        if self.choice == Choice::None {
            return CallReader::of_text();
        }
        let syntax = match format {
            ToolFormat::Native { .. } => native::SYNTAX,
            ToolFormat::Generic => generic::SYNTAX,
        };
        let names: Arc<[String]> = self.callable().map(|(_, function)| function.name.clone()).collect();
        CallReader::new(syntax, names)
    }
}

/// Writes the history of a conversation that has calls but no tools any more as the model's format wants it.
///
/// # Errors
/// Calls in the history that are none.
pub(crate) fn apply_history(
    setting: ToolSetting,
    conversation: &mut Conversation,
    tokenizer: &Tokenizer,
) -> Result<(), ApiError> {
    if !history::has_calls(conversation) {
        return Ok(());
    }
    // Where tools are switched off, those of the past may be told of all the same.
    let setting = if setting == ToolSetting::Off { ToolSetting::Auto } else { setting };
    let format = ToolFormat::of(setting, conversation, tokenizer)?;
    rewrite(None, format, conversation, tokenizer)
}

/// Whether the objects that a schema describes may have the key of calls.
fn has_calls(schema: &Value) -> bool {
    schema.get("properties").is_some_and(|properties| properties.get(CALLS).is_some())
}

fn rewrite(
    tools: Option<&Tools>,
    format: ToolFormat,
    conversation: &mut Conversation,
    tokenizer: &Tokenizer,
) -> Result<(), ApiError> {
    match format {
        ToolFormat::Native { .. } => native::apply(tools, conversation),
        ToolFormat::Generic => generic::apply(tools, conversation, tokenizer),
    }
}
