//! Chat templates: where a model's directory has them, and what transformers 4.46 renders with them.

use std::fs;
use std::path::Path;

use kaito_jinja::{Data, Error, Limits, Template};
use serde::Serialize;
use serde_json::Value;

use super::TokenizerError;
use super::config::TokenizerConfig;
use super::files::{malformed, read, read_json};

/// The template among several that is taken where none is asked for by name.
const DEFAULT: &str = "default";
/// How many times a conversation's size a template may use, beside what it may use anyway.
const COPIES: usize = 8;
/// Most files that a folder of named templates may hold; published ones have a few.
const MAX_NAMED: usize = 256;

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`; what else is allowed is the template's matter.
    pub role: String,
    /// What was said.
    pub content: String,
}

/// A compiled template with the variables that the tokenizer gives it.
#[derive(Debug)]
pub(super) struct ChatTemplate {
    template: Template,
    special_tokens: Vec<(&'static str, Data)>,
}

impl ChatTemplate {
    /// The model's template. `None` if it has none, a reason if what it has can't be used.
    pub(super) fn open(
        directory: &Path,
        config: &TokenizerConfig,
    ) -> Result<Option<Result<Self, String>>, TokenizerError> {
        let source = match find(directory)? {
            None => return Ok(None),
            Some(Err(reason)) => return Ok(Some(Err(reason))),
            Some(Ok(source)) => source,
        };
        let template = Template::parse(&source).map_err(|error| error.to_string());
        let special_tokens = special_tokens(config);
        Ok(Some(template.map(|template| Self { template, special_tokens })))
    }

    /// Renders a conversation, unless `cancelled` says on the way that nobody waits for it any more.
    pub(super) fn render(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<String, TokenizerError> {
        let bytes: usize = messages.iter().map(|message| message.content.len()).sum();
        let message = |message: &ChatMessage| {
            let field = |name: &str, text: &str| (name.to_owned(), Data::from(text));
            Data::Dict(vec![field("role", &message.role), field("content", &message.content)])
        };
        let messages = Data::List(messages.iter().map(message).collect());
        let prompt = Data::Bool(add_generation_prompt);
        let conversation = [
            ("messages", &messages),
            ("tools", &Data::None),
            ("documents", &Data::None),
            ("add_generation_prompt", &prompt),
        ];
        let special_tokens = self.special_tokens.iter().map(|(name, data)| (*name, data));
        let now = chrono::Local::now().naive_local();
        let variables = conversation.into_iter().chain(special_tokens);
        // A template may keep some copies of a long conversation.
        let mut limits = Limits::default();
        limits.memory = limits.memory.saturating_add(bytes.saturating_mul(COPIES));
        self.template.render(variables, now, limits, cancelled).map_err(failure)
    }
}

fn failure(error: Error) -> TokenizerError {
    match error {
        Error::Raised { message } => TokenizerError::ChatRefused { message },
        Error::Cancelled => TokenizerError::Cancelled,
        error => TokenizerError::ChatTemplate { reason: error.to_string() },
    }
}

/// The special tokens, by the names under which a template knows them.
fn special_tokens(config: &TokenizerConfig) -> Vec<(&'static str, Data)> {
    let mut tokens: Vec<_> = config.special.iter().map(|(name, token)| (*name, Data::from(token.text()))).collect();
    if !config.additional_special.is_empty() {
        let texts = config.additional_special.iter().map(|token| Data::from(token.text()));
        tokens.push(("additional_special_tokens", Data::List(texts.collect())));
    }
    tokens
}

/// The source of a model's template, as newer versions of transformers find it: chat_template.jinja and the folder of named
/// templates go before what tokenizer_config.json has.
fn find(directory: &Path) -> Result<Option<Result<String, String>>, TokenizerError> {
    let mut names = Vec::new();
    let mut source = text(&directory.join("chat_template.jinja"))?;
    let folder = directory.join("additional_chat_templates");
    for name in named_templates(&folder)? {
        // A file of this name in the folder goes before the one beside it.
        if name == DEFAULT {
            source = text(&folder.join(format!("{name}.jinja")))?;
        }
        names.push(name);
    }
    if source.is_none() && names.is_empty() {
        return configured(directory);
    }
    Ok(Some(source.ok_or_else(|| no_default(&names))))
}

fn no_default(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| name.chars().take(60).collect()).collect();
    format!("the model has several chat templates ({}), and none of them is named \"{DEFAULT}\"", names.join(", "))
}

fn text(path: &Path) -> Result<Option<String>, TokenizerError> {
    let Some(contents) = read(path)? else { return Ok(None) };
    String::from_utf8(contents).map(Some).map_err(|error| malformed(path, format!("it is no UTF-8: {error}")))
}

/// The names of the templates in a folder, if there is one, in order.
fn named_templates(folder: &Path) -> Result<Vec<String>, TokenizerError> {
    let error = |source| TokenizerError::Read { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(error(source)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(error)?.file_name();
        names.extend(name.to_str().and_then(|name| name.strip_suffix(".jinja")).map(str::to_owned));
        if names.len() > MAX_NAMED {
            return Err(malformed(folder, format!("it holds more than {MAX_NAMED} chat templates")));
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// One template, or the one named "default" of several.
fn configured(directory: &Path) -> Result<Option<Result<String, String>>, TokenizerError> {
    let path = directory.join("tokenizer_config.json");
    let json = read_json(&path)?.unwrap_or_default();
    let templates = match json.get("chat_template") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(template)) => return Ok(Some(Ok(template.clone()))),
        Some(Value::Array(templates)) => templates,
        Some(_) => return Err(malformed(&path, "chat_template is neither a text nor a list of named templates")),
    };
    let mut names = Vec::new();
    let mut source = None;
    for entry in templates {
        let field = |name: &str| entry.get(name).and_then(Value::as_str);
        let (Some(name), Some(template)) = (field("name"), field("template")) else {
            return Err(malformed(&path, "an entry of chat_template has no name or no template"));
        };
        // Of two with one name the later counts.
        if name == DEFAULT {
            source = Some(template.to_owned());
        }
        names.push(name.to_owned());
    }
    Ok(Some(source.ok_or_else(|| no_default(&names))))
}
