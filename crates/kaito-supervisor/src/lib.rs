//! Runs the engine of one rank, vLLM say, as a child, and ties the ranks of one model together.
//!
//! An engine that is spread over several ranks fails as a whole: where one rank is lost the others wait for it for ever, or end.
//! So the ranks' engines start together, run in one *incarnation*, and end together. Each rank has a supervisor; that of rank 0
//! decides ([`Coordinator`]) and the others report to it about once a second ([`Report`]) and do what it answers ([`Order`]).
//!
//! | module | what |
//! | --- | --- |
//! | `protocol` | what supervisors say to each other |
//! | `coordinator` | rank 0's decisions, a pure state machine; `cause` says them to people |
//! | `follow` | what a rank does for an order, a pure function |
//! | `engine`, `output`, `processes` | the child: its start and end, its output, and the processes of its tree |
//! | `scratch` | shared memory that killed engines left |
//! | `progress`, `fault` | what an engine's lines mean: the phases of its start, and why it ended |
//! | `front`, `server`, `signals`, `supervisor` | the front's health, the routes, requests to end, and the loop that ties all of it together |
#![forbid(unsafe_code)]

mod cause;
mod coordinator;
mod engine;
mod error;
mod fault;
mod follow;
mod front;
mod install;
mod output;
mod processes;
mod progress;
mod protocol;
mod scratch;
mod server;
mod signals;
mod supervisor;

pub use coordinator::{Coordinator, LOST};
pub use error::Error;
pub use fault::EngineFault;
pub use follow::{Action, follow};
pub use front::Health;
pub use install::install;
pub use output::Stream;
pub use processes::{adopt_orphans, kill_all};
pub use protocol::{Ended, Incarnation, Order, Overview, Phase, Process, RankOverview, Report, State};
pub use signals::Signals;
pub use supervisor::{Options, Supervisor};
