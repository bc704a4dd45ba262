//! The loop that ties an engine to its ranks.

use std::{
    ffi::OsString,
    net::{Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use kaito_client::{Failure, Http};
use tokio::{net::TcpListener, sync::Notify, task::JoinSet, time};

use crate::{
    Error, cause,
    coordinator::{Coordinator, LOST},
    engine::{Engine, How},
    follow::{Action, follow},
    front::{self, Health},
    output::Stream,
    processes,
    protocol::{Ended, Order, Process, Report, State},
    scratch, server,
    signals::Signals,
};

/// How often a rank reports, and the front is asked.
const REPORT: Duration = Duration::from_secs(1);
/// How long rank 0 may take to answer a report.
const ANSWER: Duration = Duration::from_secs(3);
/// The longest answer to a report, in bytes.
const MAX_ANSWER: usize = 64 << 10;
/// How long a supervisor that was told to end waits for the front, or rank 0, to say that it was told the same.
const TOLD_TOO: Duration = Duration::from_secs(5);
/// How long an engine may take to end where another rank's was lost: it has nothing left to answer, and mostly waits for the other.
const LOST_GRACE: Duration = Duration::from_secs(5);
/// How long rank 0 waits, before it ends, until the others know that their engines are to end.
const FAREWELL: Duration = Duration::from_secs(3);
/// How many stopped processes are told of.
const MOST_STOPPED: usize = 20;

/// What a supervisor is to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// Number of its rank, from 0.
    pub rank: usize,
    /// How many ranks there are.
    pub ranks: usize,
    /// Host name or address of rank 0's supervisor, which listens on the same port; rank 0 needs none.
    pub first: Option<String>,
    /// Where it listens.
    pub address: SocketAddr,
    /// Rank 0's front, as `http://127.0.0.1:5000`; other ranks ignore it.
    pub front: Option<String>,
    /// The engine's program and its arguments.
    pub command: Vec<OsString>,
    /// How long an engine that was told to end may take, until all its processes are killed.
    pub grace: Duration,
    /// A folder that only this engine uses, to be emptied before each of its starts.
    pub scratch: Option<PathBuf>,
    /// Takes the engine's output, in lines, each with the byte that ends it.
    pub output: fn(Stream, &[u8]),
}

/// What routes and tasks see of a supervisor.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) rank: usize,
    /// Where rank 0 is, as other ranks know it.
    pub(crate) first: Option<String>,
    /// Rank 0's decisions.
    coordinator: Option<Mutex<Coordinator>>,
    pub(crate) has_front: bool,
    /// Why this rank is not ready, beside what the front says.
    unready: Mutex<Option<String>>,
    wake: Arc<Notify>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Rank 0's decisions, at rank 0.
    pub(crate) fn coordinator(&self) -> Option<MutexGuard<'_, Coordinator>> {
        self.coordinator.as_ref().map(lock)
    }

    /// Has the loop look at what has changed.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Why this rank is not ready.
    pub(crate) fn unready(&self) -> Option<String> {
        if let Some(coordinator) = self.coordinator()
            && self.has_front
        {
            let said = match coordinator.front_health() {
                Some(Health::Ready) => return None,
                Some(Health::Stuck(said) | Health::Unfit(said)) => said.clone(),
                Some(Health::Drains) => "the front answers its last requests".to_owned(),
                None | Some(Health::Gone | Health::Silent) => "the front does not answer".to_owned(),
            };
            let more = cause::overview(&coordinator, Instant::now()).cause;
            // The front says the same where it knows this supervisor.
            return Some(match more {
                Some(more) if !said.contains(&more) => format!("{said} {more}"),
                _ => said,
            });
        }
        lock(&self.unready).clone()
    }
}

/// A supervisor that listens.
#[derive(Debug)]
pub struct Supervisor {
    options: Options,
    listener: TcpListener,
    address: SocketAddr,
}

impl Supervisor {
    /// Checks the options and listens.
    ///
    /// # Errors
    /// Options that do not fit together, and an address that can't be listened on.
    pub async fn bind(options: Options) -> Result<Self, Error> {
        let Options { rank, ranks, address, .. } = options;
        if rank >= ranks {
            return Err(Error::Rank { rank, ranks });
        }
        if rank > 0 && options.first.is_none() {
            return Err(Error::NoFirst { rank });
        }
        if options.command.is_empty() {
            return Err(Error::NoProgram);
        }
        let failed = |source| Error::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { options, listener, address })
    }

    /// Where it listens, with the port that the system chose where 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Runs the engine with the other ranks', until it is told to end.
    ///
    /// # Errors
    /// [`Error::EngineEnded`] where this rank's engine was the first that ended by itself.
    pub async fn run(self, signals: Signals) -> Result<(), Error> {
        processes::adopt_orphans();
        let Self { options, listener, address } = self;
        let start = now();
        let coordinator = (options.rank == 0).then(|| Mutex::new(Coordinator::new(start, options.ranks)));
        let http = Http::new(None)?;
        let shared = Arc::new(Shared {
            rank: options.rank,
            first: options.first.as_deref().map(|first| url(first, address.port())),
            coordinator,
            has_front: options.front.is_some(),
            unready: Mutex::new(Some("the engine has not been started yet".to_owned())),
            wake: Arc::default(),
        });
        // They end with this function.
        let mut tasks = JoinSet::new();
        tasks.spawn(server::serve(listener, Arc::clone(&shared)));
        if let Some(front) = options.front.clone().filter(|_| options.rank == 0) {
            tasks.spawn(watch_front(http.clone(), front, Arc::clone(&shared)));
        }
        tracing::info!(rank = options.rank, ranks = options.ranks, %address, "supervising");
        let how = How { command: options.command, grace: options.grace, output: options.output };
        let rank = Rank {
            how,
            scratch: options.scratch,
            http,
            shared,
            start,
            sequence: 0,
            engine: None,
            ended: None,
            order: None,
            contact: Instant::now(),
            reached: true,
            stopped: Vec::new(),
            ending: None,
            leaving: None,
            over: None,
        };
        rank.run(signals).await
    }
}

/// Nanoseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Where rank 0's supervisor is.
fn url(first: &str, port: u16) -> String {
    match first.parse::<Ipv6Addr>() {
        Ok(address) => format!("http://[{address}]:{port}"),
        Err(_) => format!("http://{first}:{port}"),
    }
}

async fn watch_front(http: Http, url: String, shared: Arc<Shared>) {
    loop {
        let health = front::ask(&http, &url).await;
        if let Some(mut coordinator) = shared.coordinator() {
            coordinator.front(health, Instant::now());
        }
        shared.wake();
        time::sleep(REPORT).await;
    }
}

/// A rank and its engine.
struct Rank {
    how: How,
    scratch: Option<PathBuf>,
    http: Http,
    shared: Arc<Shared>,
    start: u64,
    sequence: u64,
    engine: Option<Engine>,
    ended: Option<Ended>,
    /// What rank 0 last said, and when.
    order: Option<Order>,
    contact: Instant,
    /// Whether its last report was answered.
    reached: bool,
    /// Processes that were stopped when it was last looked.
    stopped: Vec<Process>,
    /// Since when its engine is ending.
    ending: Option<Instant>,
    /// Since when it is to end for good.
    leaving: Option<Instant>,
    /// Since when rank 0 has nothing left to do but to tell the others.
    over: Option<Instant>,
}

impl Rank {
    async fn run(mut self, mut signals: Signals) -> Result<(), Error> {
        loop {
            self.look();
            let report = self.report();
            let token = report.token;
            self.exchange(report).await;
            if self.order.is_some_and(|order| Some(order.token) != token) && self.engine.is_none() {
                // It counts from the next report on.
                let report = self.report();
                self.exchange(report).await;
            }
            let order = self.order.filter(|_| self.contact.elapsed() < LOST);
            let state = self.state();
            self.note(state, order.as_ref());
            match follow(state, self.ended.as_ref(), order.as_ref()) {
                Action::None => self.hurry(state, order.as_ref()),
                Action::Start(_) if self.leaving.is_some() => {}
                Action::Start(incarnation) => {
                    if let Some(folder) = &self.scratch
                        && let Err(error) = scratch::empty(folder)
                    {
                        tracing::warn!(folder = %folder.display(), %error, "what an engine left there is not removed");
                    }
                    tracing::info!(%incarnation, "starting the engine");
                    let wake = Arc::clone(&self.shared.wake);
                    self.engine = Some(Engine::start(self.how.clone(), incarnation, wake));
                    // Rank 0 is to know at once.
                    continue;
                }
                Action::End { kill } => {
                    if let Some(engine) = &self.engine
                        && (kill || !engine.ends())
                    {
                        tracing::info!(kill, "ending the engine");
                        engine.end(kill);
                    }
                }
                Action::Exit => {
                    if self.others_know()
                        && let Some(ended) = self.ended.take()
                    {
                        return Err(Error::EngineEnded(ended));
                    }
                }
            }
            if self.leaving.is_some() && self.has_left(order.as_ref()) {
                return Ok(());
            }
            tokio::select! {
                () = self.shared.wake.notified() => {}
                () = time::sleep(REPORT) => {}
                () = signals.next() => self.told_to_end(),
            }
        }
    }

    /// Kills an engine that does not end although nobody waits for what it has to answer.
    fn hurry(&mut self, state: State, order: Option<&Order>) {
        if !matches!(state, State::Ending(_)) {
            self.ending = None;
            return;
        }
        let since = *self.ending.get_or_insert_with(Instant::now);
        let is_told = self.leaving.is_some() || order.is_some_and(|order| order.leaves);
        if let Some(engine) = &self.engine
            && !is_told
            && since.elapsed() >= LOST_GRACE
        {
            engine.end(true);
        }
    }

    /// Sees what has become of the engine.
    fn look(&mut self) {
        if let Some(ended) = self.engine.as_ref().and_then(Engine::ended) {
            let Ended { by_itself, how, words, .. } = &ended;
            tracing::warn!(by_itself, how, words, "the engine ended");
            self.ended = Some(ended);
            self.engine = None;
        }
        processes::reap(self.engine.as_ref().and_then(Engine::pid));
        let mut stopped = match &self.engine {
            None => Vec::new(),
            Some(engine) => [processes::stopped(), engine.unkillable()].concat(),
        };
        stopped.truncate(MOST_STOPPED);
        if stopped != self.stopped {
            tracing::warn!(processes = ?stopped, "stopped processes of the engine");
            self.stopped = stopped;
        }
    }

    fn state(&self) -> State {
        match &self.engine {
            None => State::Idle,
            Some(engine) if engine.ends() => State::Ending(engine.incarnation()),
            Some(engine) => State::Running(engine.incarnation()),
        }
    }

    fn report(&mut self) -> Report {
        self.sequence += 1;
        Report {
            supervisor: self.start,
            sequence: self.sequence,
            token: self.order.map(|order| order.token),
            state: self.state(),
            phase: self.engine.as_ref().and_then(Engine::phase),
            ended: self.ended.clone(),
            stopped: self.stopped.clone(),
            leaves: self.leaving.is_some(),
        }
    }

    /// Reports to rank 0 and keeps what it answers.
    async fn exchange(&mut self, report: Report) {
        let own =
            self.shared.coordinator().and_then(|mut coordinator| coordinator.report(0, report.clone(), Instant::now()));
        let answer = match own {
            Some(order) => Ok(order),
            None => {
                let url = format!("{}/ranks/{}", self.shared.first.as_deref().unwrap_or_default(), self.shared.rank);
                send(&self.http, &url, &report).await
            }
        };
        match answer {
            Ok(order) => {
                if !self.reached {
                    tracing::info!("rank 0 answers");
                }
                self.reached = true;
                self.contact = Instant::now();
                self.order = Some(order);
            }
            Err(cause) => {
                if self.reached {
                    tracing::warn!(first = self.shared.first, cause, "rank 0 does not answer");
                }
                self.reached = false;
            }
        }
    }

    /// Says how ready this rank is.
    fn note(&self, state: State, order: Option<&Order>) {
        let unready = match (state, order) {
            (_, None) => Some(format!(
                "rank 0 at {} does not answer",
                self.shared.first.as_deref().unwrap_or("no address that is known")
            )),
            (State::Running(incarnation), Some(order)) if order.run && order.incarnation == incarnation => None,
            (State::Running(_) | State::Ending(_), Some(_)) => Some("the engine is ending".to_owned()),
            (State::Idle, Some(_)) => Some("the engine waits for all ranks to start together".to_owned()),
        };
        *lock(&self.shared.unready) = unready;
    }

    /// Rank 0's last moments are for the others: once all of them are without an engine, or time is up, there is nothing left to tell.
    fn others_know(&mut self) -> bool {
        let since = *self.over.get_or_insert_with(Instant::now);
        let Some(coordinator) = self.shared.coordinator() else { return true };
        coordinator.others_are_idle(Instant::now()) || since.elapsed() >= FAREWELL
    }

    fn told_to_end(&mut self) {
        if self.leaving.is_some() {
            tracing::warn!("told to end again: the engine is killed");
            if let Some(engine) = &self.engine {
                engine.end(true);
            }
            if let Some(mut coordinator) = self.shared.coordinator() {
                coordinator.finish();
            }
            return;
        }
        tracing::info!("told to end by a signal");
        self.leaving = Some(Instant::now());
        if let Some(mut coordinator) = self.shared.coordinator() {
            coordinator.leave();
        }
    }

    /// Goes on towards its end, and says whether there is nothing left to do.
    fn has_left(&mut self, order: Option<&Order>) -> bool {
        let waited = self.leaving.is_some_and(|since| since.elapsed() >= TOLD_TOO);
        if let Some(mut coordinator) = self.shared.coordinator() {
            let drained = !self.shared.has_front
                || match coordinator.front_health() {
                    None | Some(Health::Gone) => true,
                    Some(Health::Drains) => false,
                    // It goes on: the engine alone is to end.
                    Some(_) => waited,
                };
            if drained && !coordinator.is_done() {
                coordinator.finish();
                self.shared.wake();
            }
        } else if waited
            && order.is_some_and(|order| !order.leaves)
            && let Some(engine) = &self.engine
        {
            // Rank 0 goes on without this one, or rather with another in its place.
            engine.end(false);
        }
        let is_done = self.shared.coordinator().is_none_or(|coordinator| coordinator.is_done());
        self.engine.is_none() && is_done && self.others_know()
    }
}

/// Sends a report to rank 0.
async fn send(http: &Http, url: &str, report: &Report) -> Result<Order, String> {
    let body = serde_json::to_value(report).map_err(|error| error.to_string())?;
    let answer = async {
        let response = http.send(url, Some(&body)).await?;
        Http::text_within(response, MAX_ANSWER).await
    };
    match time::timeout(ANSWER, answer).await {
        Err(_) => Err(format!("no answer within {} s", ANSWER.as_secs())),
        Ok(Err(failure @ Failure::Status { .. })) => Err(format!("{failure}; is it a supervisor of as many ranks?")),
        Ok(Err(failure)) => Err(failure.to_string()),
        Ok(Ok(text)) => serde_json::from_str(&text).map_err(|error| format!("its answer is no order: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_0_is_found_by_name_and_by_address() {
        assert_eq!(url("model-0.model", 5001), "http://model-0.model:5001");
        assert_eq!(url("10.0.0.7", 5001), "http://10.0.0.7:5001");
        assert_eq!(url("fd00::7", 5001), "http://[fd00::7]:5001");
    }
}
