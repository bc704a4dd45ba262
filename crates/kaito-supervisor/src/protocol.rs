//! What supervisors say to each other, as JSON: a report of each rank about once a second, and what rank 0 answers.
//!
//! Both are whole states, not events: one that is lost is made good by the next.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One run of all ranks' engines together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Incarnation {
    /// When the supervisor at rank 0 started, in nanoseconds since 1970: another one has other incarnations.
    pub start: u64,
    /// Counts from 1; 0 is before the first.
    pub number: u64,
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number.fmt(f)
    }
}

/// What a rank's engine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// There is none, and nothing is left of the last one.
    Idle,
    /// It runs in this incarnation.
    Running(Incarnation),
    /// It was told to end, and something of it is left.
    Ending(Incarnation),
}

/// How an engine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The incarnation that it ran in.
    pub incarnation: Incarnation,
    /// Whether nobody had told it to.
    pub by_itself: bool,
    /// As the end of the sentence that begins with "the engine": `ended with exit status 1`.
    pub how: String,
    /// The line of its output that says most about why.
    pub words: Option<String>,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.words {
            None => self.how.fmt(f),
            Some(words) => write!(f, "{}: {words}", self.how),
        }
    }
}

/// A process of an engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its id, in its own container.
    pub pid: i32,
    /// Its name, of which the kernel keeps 15 bytes.
    pub name: String,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.pid, self.name)
    }
}

/// What a rank says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Which supervisor says so: when it started, in nanoseconds since 1970.
    pub supervisor: u64,
    /// Grows with each of its reports, so that one that comes late is known.
    pub sequence: u64,
    /// The token of the last order, which shows that this supervisor lives; a late report of an earlier one has it not.
    #[serde(default)]
    pub token: Option<u64>,
    /// What its engine does.
    pub state: State,
    /// How far its engine's start is, in words.
    #[serde(default)]
    pub phase: Option<String>,
    /// How its last engine ended.
    #[serde(default)]
    pub ended: Option<Ended>,
    /// Processes of its engine that are stopped, or that SIGKILL does not end.
    #[serde(default)]
    pub stopped: Vec<Process>,
    /// Whether it was told to end for good.
    #[serde(default)]
    pub leaves: bool,
}

/// What a rank is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The last incarnation that was started.
    pub incarnation: Incarnation,
    /// Whether its engine is to run in it; otherwise there is to be none.
    pub run: bool,
    /// Whether an engine that is to end is to be killed at once.
    #[serde(default)]
    pub kill: bool,
    /// Whether its engine was the first that ended by itself: its supervisor ends with a failure.
    #[serde(default)]
    pub exit: bool,
    /// Which token the next report is to carry. A supervisor counts for its rank from its first report with it on.
    pub token: u64,
    /// Whether rank 0 was told to end for good. It runs until its front has answered its last requests.
    #[serde(default)]
    pub leaves: bool,
}

/// What rank 0 knows, for `GET /ranks`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Overview {
    /// The last incarnation that was started.
    pub incarnation: Incarnation,
    /// What all of them do together.
    pub phase: Phase,
    /// What there is to say about it, in sentences for people; `None` where all is well.
    pub cause: Option<String>,
    /// Each rank, in the order of their numbers.
    pub ranks: Vec<RankOverview>,
}

/// What all ranks do together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Not all ranks are there and without an engine.
    Waiting,
    /// Engines run, and the model does not answer yet.
    Starting,
    /// The model answers.
    Running,
}

/// What rank 0 knows of a rank.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RankOverview {
    /// Its number.
    pub rank: usize,
    /// What its engine does, as it last said; `None` where it never said anything.
    pub state: Option<State>,
    /// How far its engine's start is, in words.
    pub phase: Option<String>,
    /// How its last engine ended.
    pub ended: Option<Ended>,
    /// Processes of its engine that are stopped, or that SIGKILL does not end.
    pub stopped: Vec<Process>,
    /// For how long it has said nothing, in seconds.
    pub silent_seconds: Option<f64>,
}
