//! What rank 0 knows, as sentences for people.

use std::time::Instant;

use crate::{
    coordinator::{Coordinator, Over, Rank},
    protocol::{Overview, Process, RankOverview, State},
};

/// For how many seconds a rank may say nothing until that is worth a word.
const NOTABLE: u64 = 3;

/// Why an incarnation is over.
pub(crate) fn over(over: &Over) -> String {
    match over {
        Over::Ended { rank, ended } => format!("the engine of rank {rank} {ended}"),
        Over::Lost { rank } => format!("rank {rank} did not report any more"),
        Over::Replaced { rank } => format!("rank {rank} was started anew"),
        Over::Left { rank } => {
            format!("rank {rank} ended its engine, since it could not reach rank 0 or was told to end")
        }
        Over::Unfit { said, stopped } if stopped.is_empty() => said.trim_end_matches('.').to_owned(),
        Over::Unfit { said, stopped } => format!("{} ({})", said.trim_end_matches('.'), processes(stopped)),
        Over::ShutDown => "a client asked for it (/shutdown)".to_owned(),
        Over::Done => "rank 0 was told to end".to_owned(),
    }
}

/// `stopped processes: 4711 (VLLM::Worker_TP) of rank 1`.
fn processes(stopped: &[(usize, Process)]) -> String {
    let named: Vec<_> = stopped.iter().map(|(rank, process)| format!("{process} of rank {rank}")).collect();
    format!("stopped processes: {}", named.join(", "))
}

/// All of what is known.
pub(crate) fn overview(coordinator: &Coordinator, now: Instant) -> Overview {
    let ranks = coordinator.ranks.iter().enumerate().map(|(rank, known)| {
        let report = known.report.clone();
        let (state, phase, ended, stopped) = match report {
            None => (None, None, None, Vec::new()),
            Some(report) => (Some(report.state), report.phase, report.ended, report.stopped),
        };
        let silent_seconds = known.silent(now).map(|silent| silent.as_secs_f64());
        RankOverview { rank, state, phase, ended, stopped, silent_seconds }
    });
    Overview {
        incarnation: coordinator.current().0,
        phase: coordinator.phase(),
        cause: cause(coordinator, now),
        ranks: ranks.collect(),
    }
}

/// What there is to say; `None` where all is well.
fn cause(coordinator: &Coordinator, now: Instant) -> Option<String> {
    let (incarnation, runs) = coordinator.current();
    let each = |say: &dyn Fn(usize, &Rank) -> Option<String>| -> Vec<String> {
        coordinator.ranks.iter().enumerate().filter_map(|(rank, known)| say(rank, known)).collect()
    };
    let mut sentences = Vec::new();
    let stopped = coordinator.stopped();
    if !stopped.is_empty() {
        sentences.push(capitalised(&processes(&stopped)));
    }
    if runs && coordinator.was_ready() {
        let silent = each(&|rank, known| {
            let silent = known.silent(now)?.as_secs();
            (silent >= NOTABLE).then(|| format!("rank {rank} has not reported for {silent} s"))
        });
        if !silent.is_empty() {
            sentences.push(capitalised(&silent.join(", ")));
        }
    } else {
        if let Some(why) = &coordinator.over {
            sentences.push(format!("The engines were ended: {}", over(why)));
        }
        if runs {
            let phases = each(&|rank, known| Some(format!("rank {rank}: {}", starting(known))));
            sentences.push(format!("They start (incarnation {incarnation}): {}", phases.join("; ")));
        } else if coordinator.is_held(now) {
            sentences.push("They start again with the front".to_owned());
        } else {
            let missing = each(&|rank, known| missing(known, now).map(|what| format!("rank {rank} {what}")));
            if !missing.is_empty() {
                sentences.push(format!("All ranks start together when they can: {}", missing.join("; ")));
            }
        }
    }
    (!sentences.is_empty()).then(|| format!("{}.", sentences.join(". ")))
}

fn starting(known: &Rank) -> &str {
    let report = known.report.as_ref();
    match report.map(|report| report.state) {
        Some(State::Running(_)) => report.and_then(|report| report.phase.as_deref()).unwrap_or("starting"),
        _ => "about to start",
    }
}

/// What keeps a rank from a start.
fn missing(known: &Rank, now: Instant) -> Option<String> {
    match &known.report {
        None => Some("has not reported yet".to_owned()),
        Some(_) if !known.is_there(now) => {
            Some(format!("has not reported for {} s", known.silent(now).unwrap_or_default().as_secs()))
        }
        Some(report) if report.leaves => Some("was told to end".to_owned()),
        Some(report) => match (report.state, &report.ended) {
            (State::Running(_) | State::Ending(_), _) => Some("ends its engine".to_owned()),
            (State::Idle, _) => None,
        },
    }
}

fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map(|first| first.to_uppercase().chain(characters).collect()).unwrap_or_default()
}
