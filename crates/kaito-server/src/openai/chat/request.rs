//! A conversation that is to be continued, in no dialect's own terms: what chat completions and their relatives come to.

use kaito_engine::{CONVERSATION_VARIABLES, Cancel, Conversation, Ending, Error, Prepared, Special};
use serde_json::{Map, Value};

use super::super::format::{self, Format};
use super::super::names::Served;
use super::super::parameters::{self, Parameters, StreamOptions};
use super::super::tools::{self, CallReader, ToolFormat, Tools};
use super::super::{messages, prompt};
use crate::dialect::Context;
use crate::error::ApiError;
use crate::fields::{self, Fields};

/// A conversation and how its answer is to be made.
#[derive(Debug)]
pub(crate) struct ChatRequest {
    /// The model that is asked for, as the client calls it.
    pub(crate) model: Option<String>,
    /// What was said, and how the template writes it down.
    pub(crate) conversation: Conversation,
    /// How the text is made.
    pub(crate) parameters: Parameters,
    /// What the text must be like.
    pub(crate) format: Option<Format>,
    /// What the model may call.
    pub(crate) tools: Option<Tools>,
    /// Whether the tokenizer adds its tokens to what the template writes.
    pub(crate) add_special_tokens: bool,
}

/// A request that is ready for the model.
#[derive(Debug)]
pub(crate) struct PreparedChat {
    /// Its prompt.
    pub(crate) prompt: Prepared,
    /// What its answer is made of.
    pub(crate) choices: Choices,
}

/// What whoever writes the answer must know of its choices.
#[derive(Debug, Clone)]
pub(crate) struct Choices {
    /// How many there are.
    pub(crate) count: usize,
    /// The canonical name of the model that answers.
    pub(crate) model: String,
    /// Tokens of the prompt.
    pub(crate) prompt_tokens: usize,
    /// Whether token ids are shown.
    pub(crate) return_token_ids: bool,
    calls: Option<(Tools, ToolFormat)>,
}

impl Choices {
    /// So many choices without tools.
    #[cfg(test)]
    pub(crate) fn plain(model: &str, count: usize, prompt_tokens: usize) -> Self {
        Self { count, model: model.to_owned(), prompt_tokens, return_token_ids: false, calls: None }
    }

    /// Takes calls out of the text of one choice.
    pub(crate) fn reader(&self) -> CallReader {
        self.calls.as_ref().map_or_else(CallReader::of_text, |(tools, format)| tools.reader(*format))
    }
}

impl ChatRequest {
    /// A request of these messages with all else as it is by default.
    pub(crate) fn new(messages: Vec<Map<String, Value>>) -> Self {
        Self {
            model: None,
            conversation: Conversation::new(messages),
            parameters: Parameters::default(),
            format: None,
            tools: None,
            add_special_tokens: false,
        }
    }

    /// Reads what a chat completion says of its conversation and of the text to come.
    ///
    /// # Errors
    /// 400 for values of the wrong type or out of range.
    pub(crate) fn take(body: &mut Fields, stream: StreamOptions) -> Result<Self, ApiError> {
        let model = body.take_string("model")?;
        let (conversation, add_special_tokens) = take_conversation(body)?;
        let tools = Tools::parse(body)?;
        let format = format::take(body)?;
        let mut parameters = Parameters::take(body, stream)?;
        let newer = take_limit(body, "max_completion_tokens")?;
        parameters.sampling.max_tokens = newer.or(take_limit(body, "max_tokens")?);
        Ok(Self { model, conversation, parameters, format, tools, add_special_tokens })
    }

    /// The conversation as the template writes it.
    ///
    /// # Errors
    /// A model that is not served, tools of the wrong kind, what the template refuses, and cancellation.
    pub(crate) fn render(mut self, context: &Context<'_>, cancel: &Cancel) -> Result<String, ApiError> {
        context.names().resolve(self.model.as_deref())?;
        self.apply_tools(context)?;
        render(&self.conversation, context, cancel)
    }

    /// Writes the tools and the calls of the past into the conversation.
    fn apply_tools(&mut self, context: &Context<'_>) -> Result<Option<(Tools, ToolFormat)>, ApiError> {
        let (setting, tokenizer) = (context.options.tool_format, &context.request.tokenizer);
        match self.tools.take() {
            Some(tools) => {
                let tools = tools.with_setting(setting);
                let format = tools.apply(&mut self.conversation, tokenizer)?;
                Ok(Some((tools, format)))
            }
            None => {
                tools::apply_history(setting, &mut self.conversation, tokenizer)?;
                Ok(None)
            }
        }
    }

    /// Turns the conversation into a prompt and checks all against the model. Looks at `cancel` between one stage and the next.
    ///
    /// # Errors
    /// A request that can't be served as it stands, and cancellation.
    pub(crate) fn prepare(mut self, context: &Context<'_>, cancel: &Cancel) -> Result<PreparedChat, ApiError> {
        let Served { name: model, adapter } = context.names().resolve(self.model.as_deref())?;
        prompt::check_choices(&self.parameters, context)?;
        let calls = self.apply_tools(context)?;
        let Self { conversation, mut parameters, format, add_special_tokens, .. } = self;
        let text = render(&conversation, context, cancel)?;
        let special = if add_special_tokens { Special::Add } else { Special::Rendered };
        let tokens = prompt::encode(&text, special, "messages", &parameters, context, cancel)?;
        drop(text);
        let grammar = match &calls {
            Some((tools, tool_format)) => {
                let response = format.as_ref().map(|format| &format.grammar);
                if let Some(Format { parameter, .. }) = &format {
                    tools.check_response(parameter, response).map_err(|error| error.with_param(parameter))?;
                }
                // What begins a call may be a special token.
                parameters.skip_special_tokens &= !tool_format.shows_special_tokens();
                let at = format.as_ref().map_or_else(|| "tools".to_owned(), |format| format.parameter.clone());
                tools.grammar(*tool_format, response).map(|grammar| (at, grammar))
            }
            None => format.map(|format| (format.parameter, format.grammar)),
        };
        let shown = Choices {
            count: parameters.sampling.n.max(1),
            model,
            prompt_tokens: tokens.len(),
            return_token_ids: parameters.return_token_ids,
            calls,
        };
        let prompt = prompt::prepare(
            parameters,
            tokens,
            grammar.as_ref().map(|(at, grammar)| (at.as_str(), grammar)),
            context,
            cancel,
        )?;
        Ok(PreparedChat { prompt: prompt.with_adapter(adapter), choices: shown })
    }
}

/// What a body says of a conversation and of the template that writes it down, and whether the tokenizer adds its tokens.
///
/// # Errors
/// 400 for values of the wrong type or at odds with each other.
pub(crate) fn take_conversation(body: &mut Fields) -> Result<(Conversation, bool), ApiError> {
    let messages = messages::take(body)?;
    let prompt = body.take_flag("add_generation_prompt")?;
    let continued = body.take_flag("continue_final_message")?.unwrap_or(false);
    let ending = match (prompt, continued) {
        (Some(true), true) => {
            let at = body.path("continue_final_message");
            let detail = format!("`{at}` and `add_generation_prompt` can't both be true.");
            return Err(ApiError::bad_request(detail).with_param(at));
        }
        (_, true) => Ending::ContinueFinalMessage,
        (Some(false), false) => Ending::Complete,
        (_, false) => Ending::AddGenerationPrompt,
    };
    let at = body.path("chat_template_kwargs");
    let variables = body.take_object("chat_template_kwargs")?.map(Fields::into_rest).unwrap_or_default();
    if let Some(name) = CONVERSATION_VARIABLES.into_iter().find(|name| variables.contains_key(*name)) {
        let detail = format!("`{at}` has `{name}`, which is a field of the request itself.");
        return Err(ApiError::bad_request(detail).with_param(format!("{at}.{name}")));
    }
    let conversation = Conversation {
        messages,
        tools: None,
        documents: take_documents(body)?,
        variables,
        template: body.take_string("chat_template")?,
        ending,
    };
    Ok((conversation, body.take_flag("add_special_tokens")?.unwrap_or(false)))
}

fn take_documents(body: &mut Fields) -> Result<Option<Vec<Value>>, ApiError> {
    let at = body.path("documents");
    let Some(list) = body.take_list("documents")? else { return Ok(None) };
    match list.iter().enumerate().find(|(_, document)| !document.is_object()) {
        Some((i, other)) => Err(fields::wrong_shape(&format!("{at}[{i}]"), "an object", other)),
        None => Ok(Some(list)),
    }
}

/// The conversation as the template writes it.
///
/// # Errors
/// No template, one that the server does not trust, and what the template refuses.
fn render(conversation: &Conversation, context: &Context<'_>, cancel: &Cancel) -> Result<String, ApiError> {
    if conversation.template.is_some() && !context.options.trust_request_chat_template {
        return Err(parameters::unsupported(
            "chat_template",
            "the server was started without --trust-request-chat-template",
        ));
    }
    if conversation.template.is_none() && !context.request.tokenizer.has_chat_template() {
        return Err(ApiError::bad_request(
            "This model has no chat template: send a prompt to /v1/completions, or start the server with --chat-template FILE.",
        )
        .with_param("messages"));
    }
    cancel.check()?;
    context.request.render_conversation(conversation, cancel).map_err(|error| match error {
        error @ Error::Cancelled => error.into(),
        error => {
            ApiError::from(error).with_param(if conversation.template.is_some() { "chat_template" } else { "messages" })
        }
    })
}

/// So many tokens at most; at least one.
fn take_limit(body: &mut Fields, name: &str) -> Result<Option<usize>, ApiError> {
    let given = body.take_integer(name)?;
    let check = |count: i64| {
        let count_of = usize::try_from(count).ok().filter(|count| *count > 0);
        count_of.ok_or_else(|| fields::invalid(&body.path(name), count, "an integer of at least 1"))
    };
    given.map(check).transpose()
}
