//! `kaito up`: a workspace on this machine, without a cluster. The containers of its pod run as processes, its service is a
//! local port, and its conditions are printed to the terminal.

mod conditions;
mod error;
mod expand;
mod forward;
mod gpus;
mod host;
mod machine;
mod manifest;
mod plan;
mod pod;
mod probe;
mod process;
mod ranks;
mod vllm;

use std::{
    io::Write,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use conditions::{Conditions, State};
pub use error::UpError;
use futures_util::{StreamExt, stream::FuturesUnordered};
pub use host::Host;
pub use manifest::{Manifest, ManifestError};
use plan::{PodPlan, Process};
pub use pod::{adapter_images, needs_weights};
use probe::{Health, probe};
use process::{Ended, Group, Log, Running};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    time,
};

use crate::{decide::engine_reason, reason::Reason, runtime::ENGINE, workspace::Workspace};

/// How often the pod is asked for its health.
const PROBE_EVERY: Duration = Duration::from_millis(250);
/// How long the kernel may take to end what was killed.
const KILL_TIME: Duration = Duration::from_secs(10);

/// How a workspace is run here.
#[derive(Debug, Clone, Copy)]
pub struct UpOptions<'a> {
    /// The program to start where a pod's command is `kaito`.
    pub kaito: &'a Path,
    /// Local port of the service; 0 takes any that is free.
    pub port: u16,
    /// This machine.
    pub host: &'a Host,
    /// The preset's weights, instead of a download by the pod; [`needs_weights`] says which presets cannot do without.
    pub weights: Option<&'a Path>,
    /// Where the workspace's adapters are, each in a folder of its name.
    pub adapters: Option<&'a Path>,
    /// Takes each line that a process prints, after the name of workspace and container. It must not block.
    pub log: fn(&str, &str),
}

/// Runs a workspace until it ends or is interrupted.
///
/// # Errors
///
/// [`UpError`], with the cause.
pub async fn up(manifest: &Manifest, options: &UpOptions<'_>, terminal: impl Write) -> Result<(), UpError> {
    // Before anything is started, so that no interrupt is lost.
    let mut interrupts =
        Interrupts::new().map_err(|source| UpError::System { doing: "waiting for signals", source })?;
    // So that nothing of what is started here can leave this program's sight.
    kaito_supervisor::adopt_orphans();
    let workspace = &manifest.workspace;
    let plan = pod::plan(manifest, options)?;
    let listener = listen(options.port).await?;
    let service = listener.local_addr().map_err(|source| UpError::System { doing: "listening", source })?;
    let pod = plan.address;
    if TcpListener::bind(pod).await.is_err() {
        return Err(UpError::PortTaken { port: pod.port() });
    }

    let mut report = Report::begin(workspace, options.host, service, terminal)?;
    let mut running = start(&plan.processes, workspace.name(), options.log, &mut report)?;
    let groups: Vec<Group> = running.iter().map(|running| running.group).collect();
    let forwarding = tokio::spawn(forward::forward(listener, pod));
    let mut ends: FuturesUnordered<_> = running.iter_mut().map(watch).collect();

    let outcome = loop {
        tokio::select! {
            Some((container, ended)) = ends.next() => break report.ended(container, ended),
            () = interrupts.next() => {
                report.interrupted(plan.grace_period)?;
                break Ok(());
            }
            health = health_of(pod, &plan) => report.health(health)?,
        }
    };
    groups.iter().for_each(|group| group.terminate());
    let all_ended = async { while ends.next().await.is_some() {} };
    tokio::select! {
        () = all_ended => {}
        () = time::sleep(plan.grace_period) => report.killing("the grace period is over")?,
        () = interrupts.next() => report.killing("interrupted again")?,
    }
    // Also processes that the containers left behind.
    groups.iter().for_each(|group| group.kill());
    while ends.next().await.is_some() {}
    forwarding.abort();
    // An engine has a session of its own, and its supervisor may have been killed.
    let left = tokio::task::spawn_blocking(|| kaito_supervisor::kill_all(None, KILL_TIME)).await.unwrap_or_default();
    if !left.is_empty() {
        return Err(UpError::Left { processes: left.iter().map(ToString::to_string).collect() });
    }
    outcome
}

/// A loopback address that nothing listens on. Something else may take it before the pod does; the pod then says so.
///
/// In a cluster a pod has an address of its own, so its port is always free. Here another address of 127.0.0.0/8 does the same,
/// where the system has all of them.
fn free_address(port: Option<u16>) -> Result<SocketAddr, UpError> {
    let bind = |last: u8, port: u16| std::net::TcpListener::bind((Ipv4Addr::new(127, 0, 0, last), port))?.local_addr();
    match port {
        None => bind(1, 0).map_err(|source| UpError::System { doing: "looking for a free port", source }),
        Some(port) => (1..=254).find_map(|last| bind(last, port).ok()).ok_or(UpError::PortTaken { port }),
    }
}

async fn listen(port: u16) -> Result<TcpListener, UpError> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpListener::bind(address).await.map_err(|source| UpError::Listen { address, source })
}

fn start(
    processes: &[Process],
    workspace: &str,
    line: fn(&str, &str),
    report: &mut Report<impl Write>,
) -> Result<Vec<Running>, UpError> {
    let mut running = Vec::new();
    for process in processes {
        let log = Log { prefix: format!("{workspace}/{}", process.container), line };
        let started = Running::start(process, log)
            .map_err(|source| UpError::Start { program: process.program.clone(), source })?;
        report.started(process, started.group)?;
        running.push(started);
    }
    Ok(running)
}

async fn watch(running: &mut Running) -> (String, Result<(Ended, Option<String>), UpError>) {
    let ended = running.ended().await.map_err(|source| UpError::System { doing: "waiting for a process", source });
    (running.container.clone(), ended.map(|ended| (ended, running.last_words())))
}

async fn health_of(pod: SocketAddr, plan: &PodPlan) -> Health {
    time::sleep(PROBE_EVERY).await;
    probe(pod, plan.health_path.as_deref()).await
}

/// The signals that end this program.
struct Interrupts([Signal; 3]);

impl Interrupts {
    fn new() -> std::io::Result<Self> {
        Ok(Self([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            // The terminal was closed.
            signal(SignalKind::hangup())?,
        ]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// What happens to the pod, as conditions of the workspace.
struct Report<W> {
    conditions: Conditions<W>,
    service: SocketAddr,
    example: Option<String>,
}

impl<W: Write> Report<W> {
    fn begin(workspace: &Workspace, host: &Host, service: SocketAddr, terminal: W) -> Result<Self, UpError> {
        let mut conditions = Conditions::begin(terminal).map_err(terminal_gone)?;
        let message = format!("this machine: {}", host.describe());
        let state = State { holds: true, reason: Reason::ThisMachine, message };
        conditions.resource(state).map_err(terminal_gone)?;
        Ok(Self { conditions, service, example: pod::example(workspace, service) })
    }

    fn inference(&mut self, holds: bool, reason: Reason, message: String) -> Result<(), UpError> {
        self.conditions.inference(State { holds, reason, message }).map_err(terminal_gone)
    }

    fn started(&mut self, process: &Process, group: Group) -> Result<(), UpError> {
        let message = format!("{group} runs {}", command_line(process));
        self.inference(false, Reason::PodsStarting, message)
    }

    fn health(&mut self, health: Health) -> Result<(), UpError> {
        let was_ready = self.conditions.is_ready();
        match health {
            Health::Ready => {
                self.inference(true, Reason::InferenceReady, format!("http://{} answers", self.service))?;
                if let Some(example) = self.example.take() {
                    self.conditions.note(&format!("\nTry it:\n\n{example}\n")).map_err(terminal_gone)?;
                }
                Ok(())
            }
            Health::NotReady(message) if was_ready => self.inference(false, Reason::ServerUnhealthy, message),
            Health::NotReady(message) => self.inference(false, Reason::ModelLoading, message),
            Health::Silent(message) if was_ready => self.inference(false, Reason::ServerUnhealthy, message),
            // The server does not listen yet.
            Health::Silent(_) => Ok(()),
        }
    }

    fn ended(&mut self, container: String, ended: Result<(Ended, Option<String>), UpError>) -> Result<(), UpError> {
        let (ended, last_words) = ended?;
        let of_engine = last_words.as_deref().filter(|_| container.starts_with(ENGINE)).and_then(engine_reason);
        let reason = of_engine.unwrap_or(ended.reason());
        let how = match last_words {
            Some(words) => format!("{ended}: {}", words.strip_prefix("error: ").unwrap_or(&words)),
            None => ended.to_string(),
        };
        if ended == Ended::Status(0) {
            return self.inference(false, ended.reason(), format!("{container} {ended}"));
        }
        self.inference(false, reason, format!("{container} {how}"))?;
        Err(UpError::Ended { container, how })
    }

    fn interrupted(&mut self, grace_period: Duration) -> Result<(), UpError> {
        let message = format!("asked to end; killed after {} s, or at another interrupt", grace_period.as_secs());
        self.inference(false, Reason::Terminating, message)
    }

    fn killing(&mut self, why: &str) -> Result<(), UpError> {
        self.inference(false, Reason::Killed, why.to_owned())
    }
}

fn terminal_gone(source: std::io::Error) -> UpError {
    UpError::System { doing: "printing the conditions", source }
}

/// A command line that a shell would take.
fn command_line(process: &Process) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    let quoted = |word: &str| match word {
        word if !word.is_empty() && word.chars().all(plain) => word.to_owned(),
        word => format!("'{}'", word.replace('\'', r"'\''")),
    };
    let program = process.program.file_name().unwrap_or(process.program.as_os_str()).to_string_lossy();
    std::iter::once(program.as_ref())
        .chain(process.args.iter().map(String::as_str))
        .map(quoted)
        .collect::<Vec<_>>()
        .join(" ")
}
