//! `kaito chat`: a conversation in the terminal, with a model in this process or at a server.

mod local;
mod remote;

use std::{
    env, fs,
    io::{self, BufRead, IsTerminal},
    path::PathBuf,
};

use anyhow::Context;
use kaito_engine::ChatMessage;
use rustyline::{DefaultEditor, error::ReadlineError};
use tokio::{
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
};

use self::{local::Local, remote::Remote};
use crate::{
    args::ChatArgs,
    display,
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
    let runtime = Runtime::new().context("cannot start the threads of the engine")?;
    // The engine's thread is told of dropped streams through the runtime.
    let _entered = runtime.enter();
    let partner = match &args.url {
        Some(url) => Partner::Remote(Box::new(runtime.block_on(Remote::connect(url, &args))?)),
        None => Partner::Local(Box::new(Local::load(&args)?)),
    };
    let mut chat =
        Chat { runtime: &runtime, partner, system: args.system.clone(), messages: Vec::new(), interrupts: None };
    if io::stdin().is_terminal() && io::stdout().is_terminal() { chat.at_terminal() } else { chat.at_pipe() }
}

/// Who answers.
enum Partner {
    Local(Box<Local>),
    Remote(Box<Remote>),
}

impl Partner {
    /// Who that is, in a sentence.
    fn introduction(&self) -> String {
        match self {
            Self::Local(local) => local.introduction(),
            Self::Remote(remote) => remote.introduction(),
        }
    }

    /// Answers the last message of a conversation, piece by piece.
    async fn answer(&self, conversation: Vec<ChatMessage>, answer: &mut Answer) -> anyhow::Result<()> {
        match self {
            Self::Local(local) => local.answer(conversation, answer).await,
            Self::Remote(remote) => remote.answer(&conversation, answer).await,
        }
    }
}

/// What was said so far.
#[derive(Debug, Default)]
struct Answer {
    text: String,
}

impl Answer {
    /// Says more, which is shown as `shown`.
    fn say(&mut self, text: &str, shown: &str) -> anyhow::Result<()> {
        self.text.push_str(text);
        output::write(shown)
    }
}

struct Chat<'a> {
    runtime: &'a Runtime,
    partner: Partner,
    system: Option<String>,
    messages: Vec<ChatMessage>,
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
    fn at_terminal(&mut self) -> anyhow::Result<()> {
        output::write(&format!("{} /help shows the commands.\n", self.partner.introduction()))?;
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
        let mut answer = Answer::default();
        let Self { runtime, partner, interrupts, .. } = self;
        runtime.block_on(async {
            tokio::select! {
                outcome = partner.answer(conversation, &mut answer) => outcome,
                // What was said so far stays part of the conversation.
                () = interrupted(interrupts) => {
                    output::note(" [stopped]");
                    Ok(())
                }
            }
        })?;
        output::write("\n")?;
        messages.push(message("assistant", &answer.text));
        self.messages = messages;
        Ok(())
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
