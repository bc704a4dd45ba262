//! Chat templates: where a model's directory has them, and what transformers 4.46 renders with them.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use kaito_jinja::{Data, Error, Limits, Template};
use serde::Serialize;
use serde_json::Value;

use super::config::TokenizerConfig;
use super::conversation::{self, CONVERSATION_VARIABLES, Conversation, Ending};
use super::files::{self, malformed, read_json};
use super::{TokenizerError, sentencepiece};

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

/// A special token, by the name under which a template knows it.
pub(super) type SpecialToken = (&'static str, Data);

/// A compiled template.
#[derive(Debug)]
pub(super) struct ChatTemplate {
    source: String,
    template: Template,
    /// The variables that it reads.
    names: BTreeSet<String>,
}

impl ChatTemplate {
    /// Compiles a template, within bounds.
    ///
    /// # Errors
    /// The reason why it can't be used.
    pub(super) fn compile(source: String) -> Result<Self, String> {
        let template = Template::parse(&source).map_err(|error| error.to_string())?;
        let names = template.free_names().map(str::to_owned).collect();
        Ok(Self { source, template, names })
    }

    /// The model's template. `None` if it has none, a reason if what it has can't be used.
    pub(super) fn open(directory: &Path) -> Result<Option<Result<Self, String>>, TokenizerError> {
        Ok(find(directory)?.map(|source| source.and_then(Self::compile)))
    }

    /// The template's text.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// Whether it reads a variable that it is given.
    pub(super) fn reads(&self, variable: &str) -> bool {
        self.names.contains(variable)
    }

    /// Renders messages, unless `cancelled` says on the way that nobody waits for it any more.
    pub(super) fn render_messages(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
        special_tokens: &[SpecialToken],
        cancelled: &dyn Fn() -> bool,
    ) -> Result<String, TokenizerError> {
        let bytes: usize = messages.iter().map(|message| message.content.len()).sum();
        let message = |message: &ChatMessage| {
            let field = |name: &str, text: &str| (name.to_owned(), Data::from(text));
            Data::Dict(vec![field("role", &message.role), field("content", &message.content)])
        };
        let messages = Data::List(messages.iter().map(message).collect());
        let variables = Variables { messages, tools: Data::None, documents: Data::None, more: Vec::new() };
        self.run(&variables, add_generation_prompt, special_tokens, bytes, cancelled).map_err(|error| match error {
            Error::Raised { message } => TokenizerError::ChatRefused { message },
            Error::Cancelled => TokenizerError::Cancelled,
            error => TokenizerError::ChatTemplate { reason: error.to_string() },
        })
    }

    /// Renders a conversation, unless `cancelled` says on the way that nobody waits for it any more.
    pub(super) fn render(
        &self,
        conversation: &Conversation,
        special_tokens: &[SpecialToken],
        cancelled: &dyn Fn() -> bool,
    ) -> Result<String, TokenizerError> {
        if let Some(name) = CONVERSATION_VARIABLES.iter().find(|name| conversation.variables.contains_key(**name)) {
            return Err(TokenizerError::ReservedVariable { name });
        }
        let list = |values: &Option<Vec<Value>>| values.as_deref().map_or(Data::None, conversation::list);
        let variables = Variables {
            messages: Data::List(conversation.messages.iter().map(conversation::dict).collect()),
            tools: list(&conversation.tools),
            documents: list(&conversation.documents),
            more: conversation
                .variables
                .iter()
                .map(|(name, value)| (name.as_str(), conversation::data(value)))
                .collect(),
        };
        let prompt = conversation.ending == Ending::AddGenerationPrompt;
        let rendered = self.run(&variables, prompt, special_tokens, conversation.size(), cancelled);
        let rendered = rendered.map_err(|error| match error {
            Error::Raised { message } => TokenizerError::ChatRefused { message },
            Error::Cancelled => TokenizerError::Cancelled,
            error => TokenizerError::Unrenderable { reason: error.to_string() },
        })?;
        match conversation.ending {
            Ending::AddGenerationPrompt | Ending::Complete => Ok(rendered),
            Ending::ContinueFinalMessage => up_to_last_content(rendered, conversation),
        }
    }

    fn run(
        &self,
        variables: &Variables,
        add_generation_prompt: bool,
        special_tokens: &[SpecialToken],
        bytes: usize,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<String, Error> {
        let prompt = Data::Bool(add_generation_prompt);
        let conversation = [
            ("messages", &variables.messages),
            ("tools", &variables.tools),
            ("documents", &variables.documents),
            ("add_generation_prompt", &prompt),
        ];
        let special_tokens = special_tokens.iter().map(|(name, data)| (*name, data));
        let more = variables.more.iter().map(|(name, data)| (*name, data));
        let now = chrono::Local::now().naive_local();
        // A template may keep some copies of a long conversation.
        let mut limits = Limits::default();
        limits.memory = limits.memory.saturating_add(bytes.saturating_mul(COPIES));
        self.template.render(conversation.into_iter().chain(special_tokens).chain(more), now, limits, cancelled)
    }
}

struct Variables<'v> {
    messages: Data,
    tools: Data,
    documents: Data,
    more: Vec<(&'v str, Data)>,
}

/// Cuts a rendered conversation behind the content of its last message, as transformers does it.
fn up_to_last_content(mut rendered: String, conversation: &Conversation) -> Result<String, TokenizerError> {
    let not = |reason| TokenizerError::NotContinued { reason };
    let last = conversation.messages.last().ok_or_else(|| not("there is no message"))?;
    let content = last.get("content").and_then(Value::as_str).ok_or_else(|| not("its content is no text"))?.trim();
    let at = rendered.rfind(content).ok_or_else(|| not("the chat template changes its text"))?;
    rendered.truncate(at + content.len());
    rendered.truncate(rendered.trim_end().len());
    Ok(rendered)
}

/// The special tokens that the files of a tokenizer name.
pub(super) fn special_tokens(config: &TokenizerConfig) -> Vec<SpecialToken> {
    let mut tokens: Vec<SpecialToken> =
        config.special.iter().map(|(name, token)| (*name, Data::from(token.text()))).collect();
    if !config.additional_special.is_empty() {
        let texts = config.additional_special.iter().map(|token| Data::from(token.text()));
        tokens.push(("additional_special_tokens", Data::List(texts.collect())));
    }
    tokens
}

/// The special tokens of a SentencePiece model.
pub(super) fn special_pieces(model: &sentencepiece::Model) -> Vec<SpecialToken> {
    let ids = [
        ("bos_token", model.bos()),
        ("eos_token", model.eos()),
        ("unk_token", Some(model.unk())),
        ("pad_token", model.pad()),
    ];
    let piece = |(name, id): (&'static str, Option<u32>)| Some((name, Data::from(model.piece(id?)?)));
    ids.into_iter().filter_map(piece).collect()
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

/// The text of a file with a template, which must be there.
pub(super) fn read(path: &Path) -> Result<String, TokenizerError> {
    let missing = || TokenizerError::Read { path: path.to_owned(), source: ErrorKind::NotFound.into() };
    text(path)?.ok_or_else(missing)
}

fn text(path: &Path) -> Result<Option<String>, TokenizerError> {
    let Some(contents) = files::read(path)? else { return Ok(None) };
    String::from_utf8(contents).map(Some).map_err(|error| malformed(path, format!("it is no UTF-8: {error}")))
}

/// The names of the templates in a folder, if there is one, in order.
fn named_templates(folder: &Path) -> Result<Vec<String>, TokenizerError> {
    let error = |source| TokenizerError::Read { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
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
