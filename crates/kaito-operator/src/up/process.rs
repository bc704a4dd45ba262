//! A container as a process of this machine: starts it, reads its output, ends it.

use std::{
    collections::VecDeque,
    fmt, io,
    os::unix::process::ExitStatusExt,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    task::JoinSet,
    time,
};

use super::{machine, plan::Process};
use crate::reason::Reason;

/// Lines of a process that are kept to say why it ended.
const KEPT_LINES: usize = 20;

/// A process that was started.
pub struct Running {
    /// The container's name.
    pub container: String,
    /// Its process group.
    pub group: Group,
    child: Child,
    logs: JoinSet<()>,
    last_lines: Arc<Mutex<VecDeque<String>>>,
    kills_before: Option<u64>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By itself.
    Status(i32),
    /// By a signal from somewhere.
    Signal(i32),
    /// By the kernel, because memory ran out.
    OutOfMemory,
}

impl Ended {
    /// The reason of the condition.
    pub fn reason(self) -> Reason {
        match self {
            Self::OutOfMemory => Reason::ContainerOomKilled,
            Self::Status(_) | Self::Signal(_) => Reason::ContainerTerminated,
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "ended with exit status {status}"),
            Self::Signal(signal) => {
                write!(f, "was ended by signal {signal}")?;
                Signal::from_named_raw(*signal).map_or(Ok(()), |signal| write!(f, " ({signal:?})"))
            }
            Self::OutOfMemory => {
                f.write_str("was killed because this machine ran out of memory; a smaller model or less --kv-cache-memory needs less")
            }
        }
    }
}

impl Running {
    /// Starts a process in a group of its own, so that Ctrl-C in the terminal is this program's to handle. Every line
    /// that it prints goes to `log`.
    ///
    /// # Errors
    ///
    /// Those of the system, for example where there is no such program.
    pub fn start(process: &Process, log: Log) -> io::Result<Self> {
        let kills_before = machine::out_of_memory_kills();
        let mut command = Command::new(&process.program);
        command.args(&process.args);
        // Flags of `kaito up` are not those of the pod.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("KAITO_") {
                command.env_remove(name);
            }
        }
        command.envs(&process.env);
        if let Some(directory) = &process.working_directory {
            command.current_dir(directory);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0).kill_on_drop(true);
        let mut child = command.spawn()?;
        let group = Group(child.id());
        let last_lines = Arc::default();
        let mut logs = JoinSet::new();
        if let Some(stdout) = child.stdout.take() {
            logs.spawn(relay(stdout, log.clone(), Arc::clone(&last_lines)));
        }
        if let Some(stderr) = child.stderr.take() {
            logs.spawn(relay(stderr, log, Arc::clone(&last_lines)));
        }
        Ok(Self { container: process.container.clone(), group, child, logs, last_lines, kills_before })
    }

    /// Waits for the end.
    pub async fn ended(&mut self) -> io::Result<Ended> {
        let status = self.child.wait().await?;
        // Reads the rest of its output, but not for ever: a process that it left behind may hold the pipes open.
        let _ = time::timeout(Duration::from_secs(2), async { while self.logs.join_next().await.is_some() {} }).await;
        Ok(classify(status, self.kills_before, machine::out_of_memory_kills()))
    }

    /// What it said last: the error, if it named one, else the last line.
    pub fn last_words(&self) -> Option<String> {
        last_words(&self.last_lines.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A process group: a process and all that it starts, by the id of the first.
#[derive(Debug, Clone, Copy)]
pub struct Group(Option<u32>);

impl Group {
    /// Asks all of them to end.
    pub fn terminate(self) {
        self.signal(Signal::TERM);
    }

    /// Ends all of them.
    pub fn kill(self) {
        self.signal(Signal::KILL);
    }

    fn signal(self, signal: Signal) {
        if let Some(group) = self.0.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw) {
            // They may have ended already.
            let _ = kill_process_group(group, signal);
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.0.unwrap_or_default())
    }
}

fn classify(status: ExitStatus, kills_before: Option<u64>, kills_after: Option<u64>) -> Ended {
    match status.signal() {
        Some(9) if kills_before < kills_after => Ended::OutOfMemory,
        Some(signal) => Ended::Signal(signal),
        None => Ended::Status(status.code().unwrap_or_default()),
    }
}

fn last_words(lines: &VecDeque<String>) -> Option<String> {
    let lines = || lines.iter().map(|line| line.trim()).filter(|line| !line.is_empty());
    lines().rfind(|line| line.starts_with("error: ")).or_else(|| lines().next_back()).map(String::from)
}

/// Where the lines of a process go.
#[derive(Debug, Clone)]
pub struct Log {
    /// What is said before each of them.
    pub prefix: String,
    /// Takes both.
    pub line: fn(&str, &str),
}

async fn relay(from: impl AsyncRead + Unpin, log: Log, last_lines: Arc<Mutex<VecDeque<String>>>) {
    let mut lines = BufReader::new(from).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        let line = String::from_utf8_lossy(&line);
        (log.line)(&log.prefix, line.trim_end());
        let mut last_lines = last_lines.lock().unwrap_or_else(PoisonError::into_inner);
        if last_lines.len() == KEPT_LINES {
            last_lines.pop_front();
        }
        last_lines.push_back(line.into_owned());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn shell(script: &str) -> Process {
        Process {
            container: "test".to_owned(),
            program: "sh".into(),
            args: vec!["-c".to_owned(), script.to_owned()],
            env: BTreeMap::from([("GREETING".to_owned(), "hello".to_owned())]),
            working_directory: None,
        }
    }

    fn log() -> Log {
        Log { prefix: "test".to_owned(), line: |_, _| {} }
    }

    fn start(script: &str) -> Running {
        Running::start(&shell(script), log()).unwrap()
    }

    #[tokio::test]
    async fn every_end_has_its_cause() {
        for (script, ended, words) in [
            ("exit 0", Ended::Status(0), None),
            ("echo $GREETING; exit 3", Ended::Status(3), Some("hello")),
            ("echo 'error: no weights' >&2; echo bye >&2; exit 1", Ended::Status(1), Some("error: no weights")),
            ("kill -9 $$", Ended::Signal(9), None),
            ("kill -SEGV $$", Ended::Signal(11), None),
        ] {
            let mut running = start(script);
            assert_eq!(running.ended().await.unwrap(), ended, "{script}");
            assert_eq!(running.last_words().as_deref(), words, "{script}");
        }
        assert_eq!(Ended::Status(3).to_string(), "ended with exit status 3");
        assert!(Ended::Signal(9).to_string().starts_with("was ended by signal 9"), "{}", Ended::Signal(9));
    }

    #[test]
    fn a_kill_that_the_kernel_counts_is_want_of_memory() {
        let (killed, failed) = (ExitStatus::from_raw(9), ExitStatus::from_raw(1 << 8));
        for (status, before, after, ended) in [
            (killed, Some(2), Some(3), Ended::OutOfMemory),
            (killed, Some(3), Some(3), Ended::Signal(9)),
            (killed, None, None, Ended::Signal(9)),
            (failed, Some(2), Some(3), Ended::Status(1)),
        ] {
            assert_eq!(classify(status, before, after), ended, "{status:?} {before:?} {after:?}");
        }
    }

    /// A server behind a shell script has to end with it.
    #[tokio::test]
    async fn the_whole_group_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let file = file.to_str().unwrap();
        let mut running = start(&format!("sleep 1000 & echo $! > {file}.new && mv {file}.new {file}; wait"));
        let grandchild = loop {
            if let Ok(pid) = std::fs::read_to_string(file) {
                break Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
            }
            time::sleep(Duration::from_millis(5)).await;
        };
        running.group.terminate();
        assert_eq!(running.ended().await.unwrap(), Ended::Signal(15));
        // Its new parent reaps it. Until then it is a zombie, which has ended too.
        let ended = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", grandchild.as_raw_nonzero()));
            stat.map_or(true, |stat| stat.contains(") Z "))
        };
        for _ in 0..6000 {
            if ended() {
                return;
            }
            time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{grandchild:?} is still there");
    }

    #[tokio::test]
    async fn a_process_that_ignores_the_request_is_killed() {
        let mut running = start("trap '' TERM; echo ready; while :; do sleep 0.01; done");
        while running.last_words().as_deref() != Some("ready") {
            time::sleep(Duration::from_millis(5)).await;
        }
        running.group.terminate();
        assert!(time::timeout(Duration::from_millis(200), running.ended()).await.is_err());
        running.group.kill();
        assert_eq!(running.ended().await.unwrap(), Ended::Signal(9));
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let process = Process { program: "/no/such/program".into(), ..shell("") };
        let error = tokio::runtime::Runtime::new().unwrap().block_on(async { Running::start(&process, log()).err() });
        assert_eq!(error.unwrap().kind(), io::ErrorKind::NotFound);
    }
}
