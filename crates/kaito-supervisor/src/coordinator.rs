//! Rank 0's decisions: when all ranks run, and when all end.
//!
//! A pure state machine, asked with the time that it is. An incarnation starts when all ranks are there and none has an engine, and is
//! over as soon as one of them is lost. What a rank was told is not taken for what it does: only a report that it made after the end of
//! an incarnation says that it has no engine any more.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::{
    front::Health,
    protocol::{Ended, Incarnation, Order, Phase, Process, Report, State},
};

/// For how long a rank, or rank 0, may say nothing until it is taken for lost.
pub const LOST: Duration = Duration::from_secs(10);
/// For how long the front of a model that was ready may say that the engine is not fit, or that it is stuck where the model was not ready
/// in this incarnation.
pub(crate) const UNFIT: Duration = Duration::from_secs(60);
/// For how long after a shutdown an answer of the front may still be the one of before.
const HELD: Duration = Duration::from_secs(5);
/// How many supervisors of a rank are remembered after others have taken their place, so that what comes of them late is known.
const REMEMBERED: usize = 8;

/// Why an incarnation is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Over {
    /// A rank's engine ended.
    Ended { rank: usize, ended: Ended },
    /// A rank has not reported.
    Lost { rank: usize },
    /// A rank has another supervisor than before.
    Replaced { rank: usize },
    /// A rank ends its engine, or runs it in another incarnation: it could not reach rank 0, or was told to end.
    Left { rank: usize },
    /// The front says that the engine is stuck, or not fit for too long; what it says, and which processes were stopped.
    Unfit { said: String, stopped: Vec<(usize, Process)> },
    /// A client of the front asked for the end.
    ShutDown,
    /// Rank 0 was told to end, and its front has answered its last requests.
    Done,
}

/// What is known of a rank.
#[derive(Debug, Default)]
pub(crate) struct Rank {
    pub(crate) report: Option<Report>,
    pub(crate) heard: Option<Instant>,
    superseded: VecDeque<u64>,
    /// How many supervisors it has had.
    adopted: u64,
    /// Whether it has said that it has no engine since the last incarnation was over.
    idle: bool,
    /// Whether its supervisor is to end with a failure.
    exit: bool,
}

impl Rank {
    /// For how long it has said nothing; `None` where it never said anything.
    pub(crate) fn silent(&self, now: Instant) -> Option<Duration> {
        self.heard.map(|heard| now.saturating_duration_since(heard))
    }

    pub(crate) fn is_there(&self, now: Instant) -> bool {
        self.silent(now).is_some_and(|silent| silent < LOST)
    }
}

/// An incarnation that runs.
#[derive(Debug)]
struct Running {
    /// Whether the front was ready in it.
    ready: bool,
    /// Since when the front says that something is wrong.
    wrong: Option<Instant>,
}

/// Rank 0's decisions.
#[derive(Debug)]
pub struct Coordinator {
    current: Incarnation,
    running: Option<Running>,
    pub(crate) over: Option<Over>,
    pub(crate) ranks: Vec<Rank>,
    front: Option<Health>,
    /// After a shutdown: until when no incarnation starts, and then not before there is a front again.
    held: Option<Instant>,
    /// Whether rank 0 was told to end, and whether no other incarnation is to start.
    leaves: bool,
    done: bool,
}

impl Coordinator {
    /// For so many ranks, at the supervisor that started at `start`, in nanoseconds since 1970. Before the first incarnation no rank has
    /// told that it has no engine.
    pub fn new(start: u64, ranks: usize) -> Self {
        Self {
            current: Incarnation { start, number: 0 },
            running: None,
            over: None,
            ranks: (0..ranks).map(|_| Rank::default()).collect(),
            front: None,
            held: None,
            leaves: false,
            done: false,
        }
    }

    /// The last incarnation that was started, and whether it runs.
    pub fn current(&self) -> (Incarnation, bool) {
        (self.current, self.running.is_some())
    }

    /// What all ranks do together.
    pub(crate) fn phase(&self) -> Phase {
        match &self.running {
            None => Phase::Waiting,
            Some(running) if running.ready && running.wrong.is_none() => Phase::Running,
            Some(_) => Phase::Starting,
        }
    }

    /// Whether its front was ready in this incarnation.
    pub(crate) fn was_ready(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.ready)
    }

    /// Takes the report of a rank, and says what it is to do; `None` where there is no such rank.
    pub fn report(&mut self, rank: usize, report: Report, now: Instant) -> Option<Order> {
        let known = self.ranks.get_mut(rank)?;
        let token = self.current.start.wrapping_add(known.adopted);
        let stranger = Order {
            incarnation: self.current,
            run: false,
            kill: known.superseded.contains(&report.supervisor),
            exit: false,
            leaves: self.leaves,
            token,
        };
        let last = known.report.as_ref().map(|last| (last.supervisor, last.sequence));
        let known_sequence =
            last.filter(|(supervisor, _)| *supervisor == report.supervisor).map(|(_, sequence)| sequence);
        if known_sequence.is_some_and(|sequence| report.sequence <= sequence) {
            return Some(self.order(rank));
        }
        if known_sequence.is_none() {
            // It ends what it has, and counts once it has shown that it lives; one whose place another has taken never does again.
            if stranger.kill || report.token != Some(token) {
                return Some(stranger);
            }
            if let Some((supervisor, _)) = last {
                if known.superseded.len() == REMEMBERED {
                    known.superseded.pop_front();
                }
                known.superseded.push_back(supervisor);
            }
            known.adopted += 1;
            known.exit = false;
            if last.is_some() {
                self.end(Over::Replaced { rank });
            }
        }
        if self.running.is_some() {
            match report.state {
                State::Running(incarnation) if incarnation == self.current => {}
                State::Running(_) | State::Ending(_) => self.end(Over::Left { rank }),
                State::Idle => {
                    let ended = report.ended.as_ref().filter(|ended| ended.incarnation == self.current);
                    let had_started =
                        matches!(self.state(rank), Some(State::Running(started)) if started == self.current);
                    if let Some(ended) = ended {
                        let ended = ended.clone();
                        let by_itself = ended.by_itself;
                        self.end(Over::Ended { rank, ended });
                        if let Some(known) = self.ranks.get_mut(rank) {
                            known.exit = by_itself;
                        }
                    } else if had_started {
                        self.end(Over::Left { rank });
                    }
                }
            }
        }
        if let Some(known) = self.ranks.get_mut(rank) {
            known.idle = report.state == State::Idle;
            known.heard = Some(now);
            known.report = Some(report);
        }
        self.look(now);
        Some(self.order(rank))
    }

    /// Takes how the front is.
    pub fn front(&mut self, health: Health, now: Instant) {
        if let Some(running) = &mut self.running {
            let since = *running.wrong.get_or_insert(now);
            let long = now.saturating_duration_since(since) >= UNFIT;
            let over = match &health {
                Health::Stuck(said) => (running.ready || long).then_some(said),
                Health::Unfit(said) => (running.ready && long).then_some(said),
                // Without the front nobody asks for tokens, and the next front finds an engine that has loaded.
                Health::Gone | Health::Silent | Health::Drains => {
                    running.wrong = None;
                    None
                }
                Health::Ready => {
                    running.ready = true;
                    running.wrong = None;
                    None
                }
            };
            if let Some(said) = over.cloned() {
                let stopped = self.stopped();
                self.end(Over::Unfit { said, stopped });
            }
        }
        self.front = Some(health);
        self.look(now);
    }

    /// How the front was when it was last asked.
    pub fn front_health(&self) -> Option<&Health> {
        self.front.as_ref()
    }

    /// Takes that a client asked the front for the end: all engines end, and start again for the next front.
    pub fn shut_down(&mut self, now: Instant) {
        self.held = now.checked_add(HELD);
        self.end(Over::ShutDown);
    }

    /// Whether engines wait for the front that comes after a shutdown.
    pub(crate) fn is_held(&self, now: Instant) -> bool {
        self.held.is_some_and(|until| {
            now < until || !matches!(self.front, Some(Health::Ready | Health::Stuck(_) | Health::Unfit(_)))
        })
    }

    /// Takes that rank 0 was told to end.
    pub fn leave(&mut self) {
        self.leaves = true;
    }

    /// Takes that no incarnation is to run any more.
    pub fn finish(&mut self) {
        self.leaves = true;
        self.done = true;
        self.end(Over::Done);
    }

    /// Whether no incarnation is to run any more.
    pub(crate) fn is_done(&self) -> bool {
        self.done
    }

    /// Looks at the time: which ranks are lost, and whether all can start.
    pub fn look(&mut self, now: Instant) {
        if self.running.is_some() {
            if let Some(rank) = self.ranks.iter().position(|rank| !rank.is_there(now)) {
                self.end(Over::Lost { rank });
            }
        } else if !self.done
            && !self.is_held(now)
            && self.ranks.iter().all(|rank| rank.idle && !rank.exit && rank.is_there(now))
        {
            // A rank that was told to end does not start any more.
            if self.ranks.iter().filter_map(|rank| rank.report.as_ref()).any(|report| report.leaves) {
                return;
            }
            self.held = None;
            self.current.number += 1;
            self.running = Some(Running { ready: false, wrong: None });
            tracing::info!(incarnation = self.current.number, ranks = self.ranks.len(), "all ranks start");
        }
    }

    /// What a rank is to do.
    fn order(&self, rank: usize) -> Order {
        let run = self.running.is_some();
        let kill = !run && matches!(self.over, Some(Over::Unfit { .. }));
        let known = self.ranks.get(rank);
        let exit = known.is_some_and(|known| known.exit);
        let token = self.current.start.wrapping_add(known.map_or(0, |known| known.adopted));
        Order { incarnation: self.current, run, kill, exit, leaves: self.leaves, token }
    }

    /// Whether no other rank that is there has an engine, or could have.
    pub(crate) fn others_are_idle(&self, now: Instant) -> bool {
        self.ranks.iter().skip(1).all(|rank| rank.idle || !rank.is_there(now))
    }

    fn state(&self, rank: usize) -> Option<State> {
        Some(self.ranks.get(rank)?.report.as_ref()?.state)
    }

    /// Processes that are stopped, each with its rank.
    pub(crate) fn stopped(&self) -> Vec<(usize, Process)> {
        let reports = self.ranks.iter().enumerate().filter_map(|(rank, known)| Some((rank, known.report.as_ref()?)));
        reports.flat_map(|(rank, report)| report.stopped.iter().map(move |process| (rank, process.clone()))).collect()
    }

    /// An incarnation that runs is over.
    fn end(&mut self, over: Over) {
        if self.running.take().is_some() {
            tracing::warn!(incarnation = self.current.number, cause = crate::cause::over(&over), "all ranks end");
            self.over = Some(over);
            for rank in &mut self.ranks {
                rank.idle = false;
            }
        }
    }
}

#[cfg(test)]
mod tests;
