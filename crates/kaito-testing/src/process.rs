//! The program, run for real.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    ops::Deref,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::{
    http::Client,
    wait::{LIMIT, wait_for},
};

/// `program` in an environment that holds nothing of this machine's user; `scratch` is where it may leave files.
pub fn command(program: &str, scratch: &str, args: &[impl AsRef<OsStr>]) -> Command {
    let home = Path::new(scratch).join("home");
    fs::create_dir_all(&home).unwrap();
    let mut command = Command::new(program);
    command.args(args).env_clear().env("HOME", &home).env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.current_dir(home).stdin(Stdio::null());
    command
}

/// Runs to the end.
pub fn output(command: &mut Command) -> Output {
    command.output().unwrap()
}

/// Runs to the end with `input` on stdin, of which it may read as little as it likes.
pub fn output_with_input(command: &mut Command, input: &str) -> Output {
    run_with_input(command.stdout(Stdio::piped()).stderr(Stdio::piped()), input)
}

/// The same, and what it writes goes where `command` says.
pub fn run_with_input(command: &mut Command, input: &str) -> Output {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// What a program wrote.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A port on which nobody listens.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Sends a signal to a program that has not been waited for.
pub fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// A program that ends with the test, with whatever it started.
#[derive(Debug)]
pub struct Group(pub Child);

impl Group {
    /// Starts it.
    pub fn start(command: &mut Command) -> Self {
        Self(command.process_group(0).spawn().unwrap())
    }

    /// Ends it as a container runtime does.
    pub fn terminate(&mut self) -> ExitStatus {
        signal(&self.0, Signal::TERM);
        wait_for("the end after SIGTERM", || self.0.try_wait().unwrap())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
        let _ = self.0.wait();
    }
}

/// A `kaito serve` that listens on a port of the system's choice.
#[derive(Debug)]
pub struct Serving {
    group: Group,
    client: Client,
    /// What it wrote to stdout until it was ready.
    pub summary: String,
    log: Arc<Mutex<String>>,
}

impl Serving {
    /// Starts `command` and waits until its model is loaded.
    pub fn start(command: &mut Command) -> Self {
        Self::try_start(command).unwrap_or_else(|(status, log)| panic!("not ready: {status}\n{log}"))
    }

    /// [`Self::start`]; a server that ends before it has loaded its model leaves its status and its log.
    ///
    /// # Errors
    /// Such an end.
    pub fn try_start(command: &mut Command) -> Result<Self, (ExitStatus, String)> {
        let mut group = Group::start(command.env("KAITO_PORT", "0").stdout(Stdio::piped()).stderr(Stdio::piped()));
        let log = Arc::<Mutex<String>>::default();
        let reader = read_log(group.0.stderr.take().unwrap(), Arc::clone(&log));
        let summary = read_summary(group.0.stdout.take().unwrap()).recv_timeout(LIMIT);
        let summary = summary.unwrap_or_else(|_| panic!("not ready: {}", log.lock().unwrap()));
        let address = summary.split_whitespace().find_map(|word| word.strip_prefix("http://")).map(str::to_owned);
        let Some(address) = address else {
            let status = group.0.wait().unwrap();
            reader.join().unwrap();
            let log = log.lock().unwrap().clone();
            return Err((status, log));
        };
        let client = Client { address };
        // The summary comes a moment before the first request can be answered.
        wait_for("a healthy server", || client.try_get("/healthz").ok().filter(|(status, _)| *status == 200));
        Ok(Self { group, client, summary, log })
    }

    /// What it has written to its log.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Ends it as a container runtime does.
    pub fn terminate(mut self) -> ExitStatus {
        self.group.terminate()
    }
}

impl Deref for Serving {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// Everything up to the example, which comes last.
fn read_summary(stdout: ChildStdout) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut summary = String::new();
        let mut lines = BufReader::new(stdout).lines();
        while let Some(Ok(line)) = lines.next() {
            summary.push_str(&line);
            summary.push('\n');
            if line.trim_start().starts_with("curl ") {
                break;
            }
        }
        let _ = sender.send(summary);
        // Read on, so that the process can write on.
        lines.for_each(drop);
    });
    receiver
}

/// Keeps a log, which must not fill its pipe.
fn read_log(mut stderr: ChildStderr, log: Arc<Mutex<String>>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(read @ 1..) = stderr.read(&mut piece) {
            log.lock().unwrap().push_str(&String::from_utf8_lossy(&piece[..read]));
        }
    })
}
