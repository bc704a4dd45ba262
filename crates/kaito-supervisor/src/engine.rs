//! The engine: a child, from its start until nothing of its tree is left.

use std::{
    ffi::OsString,
    io,
    os::unix::process::ExitStatusExt,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use rustix::process::Signal;
use tokio::{
    process::{Child, Command},
    sync::{Notify, watch},
    task::{self, JoinSet},
    time,
};

use crate::{
    output::{SharedKept, Stream, relay},
    processes,
    protocol::{Ended, Incarnation, Process},
};

/// How long the rest of an output is waited for once all that could write it has gone.
const LAST_OUTPUT: Duration = Duration::from_secs(2);
/// How long SIGKILL may take, until those that it does not end are told of: they wait for a driver.
const KILL_TIME: Duration = Duration::from_secs(10);

/// What the engine is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ask {
    Run,
    Terminate,
    Kill,
}

/// How far it is.
#[derive(Debug, Clone)]
enum Stage {
    Here,
    /// SIGKILL does not end these.
    Unkillable(Vec<Process>),
    Gone(Ended),
}

/// How an engine is started and ended.
#[derive(Debug, Clone)]
pub(crate) struct How {
    /// The program and its arguments.
    pub(crate) command: Vec<OsString>,
    /// How long it may take to end by itself.
    pub(crate) grace: Duration,
    /// Takes its output.
    pub(crate) output: fn(Stream, &[u8]),
}

/// An engine that was started.
#[derive(Debug)]
pub(crate) struct Engine {
    incarnation: Incarnation,
    pid: Option<i32>,
    ask: watch::Sender<Ask>,
    stage: watch::Receiver<Stage>,
    kept: SharedKept,
}

impl Engine {
    /// Starts it, in a process group of its own, so that Ctrl-C in a terminal is this program's to handle. `changed` hears of its end.
    pub(crate) fn start(how: How, incarnation: Incarnation, changed: Arc<Notify>) -> Self {
        let kept = SharedKept::default();
        let kills = processes::out_of_memory_kills();
        let (ask, asked) = watch::channel(Ask::Run);
        let started = spawn(&how, &kept);
        let pid = started.as_ref().ok().and_then(|(child, _)| i32::try_from(child.id()?).ok());
        let (stage_is, stage) = watch::channel(Stage::Here);
        let task = Attended { how, incarnation, kept: kept.clone(), kills, asked, stage: stage_is };
        tokio::spawn(async move {
            let ended = match started {
                Ok((child, logs)) => task.attend(child, logs).await,
                Err(error) => task.not_started(&error),
            };
            task.stage.send_replace(Stage::Gone(ended));
            changed.notify_one();
        });
        Self { incarnation, pid, ask, stage, kept }
    }

    pub(crate) fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    pub(crate) fn pid(&self) -> Option<i32> {
        self.pid
    }

    /// Tells it to end, or kills it.
    pub(crate) fn end(&self, kill: bool) {
        let asked = if kill { Ask::Kill } else { Ask::Terminate };
        self.ask.send_if_modified(|ask| {
            let more = asked > *ask;
            *ask = asked.max(*ask);
            more
        });
    }

    /// Whether it was told to end.
    pub(crate) fn ends(&self) -> bool {
        *self.ask.borrow() != Ask::Run
    }

    /// How it ended, once nothing of it is left.
    pub(crate) fn ended(&self) -> Option<Ended> {
        match &*self.stage.borrow() {
            Stage::Gone(ended) => Some(ended.clone()),
            _ => None,
        }
    }

    /// Processes that SIGKILL does not end.
    pub(crate) fn unkillable(&self) -> Vec<Process> {
        match &*self.stage.borrow() {
            Stage::Unkillable(processes) => processes.clone(),
            _ => Vec::new(),
        }
    }

    /// How far its start is.
    pub(crate) fn phase(&self) -> Option<String> {
        self.kept.lock().phase().map(str::to_owned)
    }
}

fn spawn(how: &How, kept: &SharedKept) -> io::Result<(Child, JoinSet<()>)> {
    let (program, arguments) = how.command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0).kill_on_drop(true);
    let mut child = command.spawn()?;
    let mut logs = JoinSet::new();
    if let Some(stdout) = child.stdout.take() {
        logs.spawn(relay(stdout, Stream::Out, kept.clone(), how.output));
    }
    if let Some(stderr) = child.stderr.take() {
        logs.spawn(relay(stderr, Stream::Err, kept.clone(), how.output));
    }
    Ok((child, logs))
}

/// What is needed to attend an engine.
struct Attended {
    how: How,
    incarnation: Incarnation,
    kept: SharedKept,
    kills: Option<u64>,
    asked: watch::Receiver<Ask>,
    stage: watch::Sender<Stage>,
}

impl Attended {
    fn not_started(&self, error: &io::Error) -> Ended {
        let program = self.how.command.first().map(|program| program.to_string_lossy()).unwrap_or_default();
        let how = format!("could not be started: {program}: {error}");
        Ended { incarnation: self.incarnation, by_itself: true, how, words: None }
    }

    /// Until nothing of it is left.
    async fn attend(&self, mut child: Child, mut logs: JoinSet<()>) -> Ended {
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        let mut asked = self.asked.clone();
        let by_itself = tokio::select! {
            _ = child.wait() => true,
            _ = asked.wait_for(|ask| *ask != Ask::Run) => false,
        };
        if !by_itself {
            if *self.asked.borrow() == Ask::Terminate {
                // The first process alone is told, as kubelets do it: it knows how its others are to end.
                pid.into_iter().for_each(processes::terminate);
            }
            tokio::select! {
                _ = child.wait() => {}
                _ = asked.wait_for(|ask| *ask == Ask::Kill) => {}
                () = time::sleep(self.how.grace) => tracing::warn!(grace = ?self.how.grace, "the engine does not end, and is killed"),
            }
        }
        loop {
            let killed = task::spawn_blocking(move || processes::kill_all(pid, KILL_TIME)).await;
            match killed {
                Ok(left) if !left.is_empty() => {
                    tracing::error!(processes = ?left, "SIGKILL does not end them: they wait for a driver");
                    self.stage.send_replace(Stage::Unkillable(left));
                }
                _ => break,
            }
        }
        let status = child.wait().await;
        let _ = time::timeout(LAST_OUTPUT, async { while logs.join_next().await.is_some() {} }).await;
        let (how, was_killed) = match status {
            Ok(status) => (told(status, self.kills, processes::out_of_memory_kills()), status.signal().is_some()),
            Err(error) => (format!("ended: {error}"), false),
        };
        Ended { incarnation: self.incarnation, by_itself, how, words: self.kept.lock().last_words(was_killed) }
    }
}

/// `SIGKILL`.
fn name(signal: Signal) -> String {
    let debugged = format!("{signal:?}");
    format!("SIG{}", debugged.trim_matches('"').trim_start_matches("Signal::").to_uppercase())
}

/// How a process ended, whose machine had these counts of processes that were killed for memory before it and has them now.
fn told(status: ExitStatus, kills_before: Option<u64>, kills_now: Option<u64>) -> String {
    let mut how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit status {code}"),
        (None, Some(number)) => {
            let name = Signal::from_named_raw(number).map(|signal| format!(" ({})", name(signal))).unwrap_or_default();
            format!("was ended by signal {number}{name}")
        }
        (None, None) => "ended".to_owned(),
    };
    if kills_before < kills_now {
        how += ", and memory ran out: the kernel killed processes meanwhile";
    }
    how
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_with_its_cause() {
        let (failed, killed) = (ExitStatus::from_raw(3 << 8), ExitStatus::from_raw(9));
        assert_eq!(told(failed, Some(1), Some(1)), "ended with exit status 3");
        assert_eq!(told(killed, None, None), "was ended by signal 9 (SIGKILL)");
        let memory = told(killed, Some(1), Some(2));
        assert!(memory.ends_with("memory ran out: the kernel killed processes meanwhile"), "{memory}");
    }
}
