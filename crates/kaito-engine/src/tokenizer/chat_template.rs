//! Chat templates: Jinja, in the dialect and with the functions that transformers 4.46 gives them.

use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value, context};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use super::TokenizerError;

/// Steps that a template may take. A published one takes some thirty for each message.
const FUEL: u64 = 10_000_000;
/// Longest text that a template may make, in bytes.
const MAX_OUTPUT: usize = 64 << 20;
const NAME: &str = "chat_template";
/// How `raise_exception` marks its errors among all others.
const RAISED: &str = "raise_exception: ";

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
    environment: Environment<'static>,
    special_tokens: Value,
}

impl ChatTemplate {
    /// Compiles a template. `special_tokens` become variables by their names (`bos_token`).
    pub(super) fn new(source: String, special_tokens: impl Serialize) -> Result<Self, TokenizerError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(failure)?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(format_like_python);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment.add_template_owned(NAME, without_generation_tags(source)).map_err(failure)?;
        Ok(Self { environment, special_tokens: Value::from(Serde(special_tokens)) })
    }

    /// Renders a conversation.
    pub(super) fn render(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<String, TokenizerError> {
        let conversation = context! {
            messages => Serde(messages),
            tools => (),
            documents => (),
            add_generation_prompt => add_generation_prompt,
        };
        let template = self.environment.get_template(NAME).map_err(failure)?;
        let mut output = BoundedOutput::default();
        template
            .render_captured_to(context! { ..conversation, ..self.special_tokens.clone() }, &mut output)
            .map_err(failure)?;
        String::from_utf8(output.0).map_err(|error| TokenizerError::ChatTemplate { reason: error.to_string() })
    }
}

/// Collects a rendered template until it becomes too long.
#[derive(Default)]
struct BoundedOutput(Vec<u8>);

impl io::Write for BoundedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT {
            return Err(io::Error::other(format!("the text exceeds {MAX_OUTPUT} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `{% generation %}` marks an answer for training and changes nothing in the text.
fn without_generation_tags(source: String) -> String {
    if !source.contains("generation") {
        return source;
    }
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some((before, after)) = rest.split_once("{%") {
        out.push_str(before);
        out.push_str("{%");
        let Some((tag, following)) = after.split_once("%}") else {
            rest = after;
            break;
        };
        match tag.trim_matches(['-', '+']).trim() {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        out.push_str("%}");
        rest = following;
    }
    out.push_str(rest);
    out
}

fn failure(error: Error) -> TokenizerError {
    if let Some(message) = error.detail().and_then(|detail| detail.strip_prefix(RAISED)) {
        return TokenizerError::ChatRefused { message: message.to_owned() };
    }
    let mut reason = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        reason = format!("{reason}: {cause}");
        source = cause.source();
    }
    TokenizerError::ChatTemplate { reason }
}

/// Python writes its constants in capitals.
fn format_like_python(output: &mut minijinja::Output, state: &mut State, value: &Value) -> Result<(), Error> {
    let constant = match (value.is_none(), bool::try_from(value.clone())) {
        (true, _) => Some("None"),
        (false, Ok(true)) if is_bool(value) => Some("True"),
        (false, Ok(false)) if is_bool(value) => Some("False"),
        _ => None,
    };
    match constant {
        Some(constant) => output.write_str(constant).map_err(Error::from),
        None => minijinja::escape_formatter(output, state, value),
    }
}

fn is_bool(value: &Value) -> bool {
    value.kind() == ValueKind::Bool
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
}

fn strftime_now(format: &str) -> Result<String, Error> {
    use std::fmt::Write as _;
    let mut text = String::new();
    write!(text, "{}", chrono::Local::now().format(format)).map_err(|_| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now does not know the format {format}"))
    })?;
    Ok(text)
}

/// `json.dumps` of Python: a space after commas and colons, nothing escaped but what JSON must.
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent = options.get::<Option<usize>>("indent")?;
    options.get::<Option<bool>>("ensure_ascii")?;
    options.assert_all_used()?;
    let mut bytes = Vec::new();
    let written = match indent {
        Some(indent) => {
            let indent = " ".repeat(indent.min(16));
            value
                .serialize(&mut Serializer::with_formatter(&mut bytes, PrettyFormatter::with_indent(indent.as_bytes())))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut bytes, PythonFormatter)),
    };
    let error = |error: &dyn std::fmt::Display| Error::new(ErrorKind::BadSerialization, error.to_string());
    written.map_err(|e| error(&e))?;
    String::from_utf8(bytes).map_err(|e| error(&e))
}

struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}
