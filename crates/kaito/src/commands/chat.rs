//! `kaito chat`: a conversation in the terminal.

use std::{
    env, fs,
    io::{self, BufRead, IsTerminal},
    path::PathBuf,
};

use anyhow::Context;
use kaito_engine::{
    Cancel, ChatMessage, DialogFormat, GenerateOptions, LanguageModel, Prepared, Prompt, Request, StreamEvent,
    dialects::meta::{ChatRequest, MetaOptions},
};
use kaito_presets::PresetKind;
use rustyline::{DefaultEditor, error::ReadlineError};
use tokio::{
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
};

use crate::{
    args::ChatArgs,
    display,
    model::ModelSource,
    output::{self, ReaderGone},
};

const HELP: &str = "\
/reset          forget the conversation
/system TEXT    set the instructions that stand before it; without TEXT, remove them
/help           show this
/quit           leave; so does Ctrl-D
Ctrl-C stops an answer.
";

pub fn run(args: ChatArgs) -> anyhow::Result<()> {
    let source = ModelSource::resolve(&args.model)?;
    let runtime = Runtime::new().context("cannot start the threads of the engine")?;
    // The engine's thread is told of dropped streams through the runtime.
    let _entered = runtime.enter();
    let model = source.load(&args.model, None, &|_| {})?;
    let manner = Manner::of(&source, &model);
    let mut chat = Chat {
        runtime: &runtime,
        model,
        manner,
        system: args.system.clone(),
        messages: Vec::new(),
        args: &args,
        interrupts: None,
    };
    if io::stdin().is_terminal() && io::stdout().is_terminal() {
        chat.at_terminal(&source.name)
    } else {
        chat.at_pipe()
    }
}

/// How a conversation becomes a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// By the model's chat template.
    Template,
    /// By Llama 2's dialog format.
    Dialog,
    /// Not at all: the model continues each line by itself.
    Continuation,
}

impl Manner {
    fn of(source: &ModelSource, model: &LanguageModel) -> Self {
        let info = model.info();
        if source.preset.is_some_and(|preset| preset.kind == PresetKind::Completion) {
            Manner::Continuation
        } else if info.chat_template {
            Manner::Template
        } else if info.dialog_format == Some(DialogFormat::Llama2) {
            Manner::Dialog
        } else {
            Manner::Continuation
        }
    }
}

struct Chat<'a> {
    runtime: &'a Runtime,
    model: LanguageModel,
    manner: Manner,
    system: Option<String>,
    messages: Vec<ChatMessage>,
    args: &'a ChatArgs,
    /// Every Ctrl-C since the last line began; without it, Ctrl-C ends the program.
    interrupts: Option<Signal>,
}

/// What a line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    Nothing,
    Quit,
    Help,
    Reset,
    System(&'a str),
    Unknown(&'a str),
    Say(&'a str),
}

fn parse(line: &str) -> Line<'_> {
    let line = line.trim();
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    match word {
        "" => Line::Nothing,
        "/quit" | "/exit" => Line::Quit,
        "/help" => Line::Help,
        "/reset" => Line::Reset,
        "/system" => Line::System(rest.trim()),
        word if word.starts_with('/') && !word[1..].contains('/') => Line::Unknown(word),
        _ => Line::Say(line),
    }
}

impl Chat<'_> {
    fn at_terminal(&mut self, name: &str) -> anyhow::Result<()> {
        let manner = match self.manner {
            Manner::Template | Manner::Dialog => "",
            Manner::Continuation => " It was not made for dialogue: it continues what you write.",
        };
        output::write(&format!("This is {name}.{manner} /help shows the commands.\n"))?;
        let mut editor = DefaultEditor::new().context("cannot use this terminal")?;
        let history = history_file();
        if let Some(history) = &history {
            // There is none before the first conversation.
            let _ = editor.load_history(history);
        }
        loop {
            // Made before the line is read, so that no Ctrl-C of the moment before the answer is lost.
            self.interrupts = Some(signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?);
            match editor.readline("> ") {
                Ok(line) => {
                    let _ = editor.add_history_entry(line.as_str());
                    if !self.obey(&line)? {
                        break;
                    }
                }
                Err(ReadlineError::Interrupted) => output::write("/quit or Ctrl-D leaves.\n")?,
                Err(ReadlineError::Eof) => break,
                Err(error) => return Err(error).context("cannot read from this terminal"),
            }
        }
        if let Some(history) = &history
            && let Err(error) = editor.save_history(history)
        {
            tracing::debug!(%error, "the history is not kept");
        }
        Ok(())
    }

    /// A question a line, an answer each; the first failure ends it.
    fn at_pipe(&mut self) -> anyhow::Result<()> {
        for line in io::stdin().lock().lines() {
            if !self.obey(&line.context("cannot read from stdin")?)? {
                break;
            }
        }
        Ok(())
    }

    /// Whether to go on.
    fn obey(&mut self, line: &str) -> anyhow::Result<bool> {
        match parse(line) {
            Line::Nothing => {}
            Line::Quit => return Ok(false),
            Line::Help => output::write(HELP)?,
            Line::Reset => self.messages.clear(),
            Line::System("") => self.system = None,
            Line::System(text) => self.system = Some(text.to_owned()),
            Line::Unknown(word) => output::note(&format!("there is no command {word}; /help shows those there are\n")),
            Line::Say(text) => match self.answer(text) {
                Ok(()) => {}
                Err(error) if io::stdin().is_terminal() && !error.is::<ReaderGone>() => {
                    output::note(&display::error(&error));
                }
                Err(error) => return Err(error),
            },
        }
        Ok(true)
    }

    fn answer(&mut self, text: &str) -> anyhow::Result<()> {
        let mut messages = self.messages.clone();
        messages.push(message("user", text));
        let mut conversation: Vec<ChatMessage> = self.system.iter().map(|text| message("system", text)).collect();
        conversation.extend(messages.iter().cloned());
        let prompts = match self.manner {
            Manner::Template => self.prepare(conversation.into())?,
            Manner::Continuation => self.prepare(text.into())?,
            Manner::Dialog => self.prepare_dialog(conversation)?,
        };
        let answer = self.runtime.block_on(self.generate(prompts))?;
        output::write("\n")?;
        messages.push(message("assistant", &answer));
        self.messages = messages;
        Ok(())
    }

    fn prepare(&self, prompt: Prompt) -> Result<Vec<Prepared>, kaito_engine::Error> {
        let sampled = self.args.temperature > 0.0;
        let options = GenerateOptions {
            max_new_tokens: Some(self.args.max_new_tokens.get()),
            do_sample: Some(sampled),
            temperature: sampled.then_some(self.args.temperature.into()),
            seed: self.args.seed,
            ..GenerateOptions::default()
        };
        let request = Request { prompt, options, ..Request::default() };
        Ok(vec![request.prepare(self.model.context(), &Cancel::default())?])
    }

    fn prepare_dialog(&self, dialog: Vec<ChatMessage>) -> Result<Vec<Prepared>, kaito_engine::Error> {
        let options = MetaOptions {
            temperature: Some(self.args.temperature.into()),
            max_gen_len: Some(self.args.max_new_tokens.get()),
            seed: self.args.seed,
            ..MetaOptions::default()
        };
        ChatRequest { dialogs: vec![dialog], options }.prepare(self.model.context(), &Cancel::default())
    }

    async fn generate(&mut self, prompts: Vec<Prepared>) -> anyhow::Result<String> {
        let mut stream = self.model.start(prompts)?;
        let mut answer = String::new();
        loop {
            let event = tokio::select! {
                event = stream.next() => event,
                () = interrupted(&mut self.interrupts) => return stopped(answer),
            };
            match event.transpose()? {
                Some(StreamEvent::Started) => {}
                Some(StreamEvent::Delta(delta)) => self.say(&mut answer, &delta.text)?,
                Some(StreamEvent::Finished(_)) | None => return Ok(answer),
            }
        }
    }

    /// An answer begins at its first word: templates leave a space before it.
    fn say(&self, answer: &mut String, text: &str) -> anyhow::Result<()> {
        let text = if answer.is_empty() && self.manner != Manner::Continuation { text.trim_start() } else { text };
        answer.push_str(text);
        output::write(text)
    }
}

/// The next Ctrl-C; never where it ends the program anyway.
async fn interrupted(interrupts: &mut Option<Signal>) {
    match interrupts {
        Some(interrupts) => {
            interrupts.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// What was said so far stays part of the conversation.
fn stopped(answer: String) -> anyhow::Result<String> {
    output::note(" [stopped]");
    Ok(answer)
}

fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage { role: role.to_owned(), content: content.to_owned() }
}

/// `$XDG_STATE_HOME/kaito/chat_history`.
fn history_file() -> Option<PathBuf> {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = variable("XDG_STATE_HOME").or_else(|| variable("HOME").map(|home| home.join(".local/state")))?;
    let folder = state.join("kaito");
    fs::create_dir_all(&folder).ok()?;
    Some(folder.join("chat_history"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_commands_or_speech() {
        for (line, expected) in [
            ("", Line::Nothing),
            ("  ", Line::Nothing),
            ("/quit", Line::Quit),
            (" /exit ", Line::Quit),
            ("/help", Line::Help),
            ("/reset", Line::Reset),
            ("/system  be brief ", Line::System("be brief")),
            ("/system", Line::System("")),
            ("/sytem be brief", Line::Unknown("/sytem")),
            ("/etc/passwd is what?", Line::Say("/etc/passwd is what?")),
            (" What is Kaito? ", Line::Say("What is Kaito?")),
            ("/é", Line::Unknown("/é")),
        ] {
            assert_eq!(parse(line), expected, "{line:?}");
        }
    }
}
