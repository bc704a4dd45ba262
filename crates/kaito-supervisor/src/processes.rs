//! The processes of an engine's tree, by the kernel's tables.
//!
//! A supervisor is the subreaper of all that it starts: a process whose parent ends becomes its child, whatever group or session it has
//! made for itself. So what an engine left behind is found below the supervisor, and nothing else is.

use std::{fs, process, thread, time::Duration};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, set_child_subreaper, waitpid};

use crate::protocol::Process;

/// The pause before what was killed is looked for again.
const PAUSE: Duration = Duration::from_millis(20);

/// A line of the kernel's table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    pid: i32,
    name: String,
    state: char,
    parent: i32,
}

/// Makes this process the parent of all orphans below it, so that [`kill_all`] finds them.
pub fn adopt_orphans() {
    if let Err(error) = set_child_subreaper(Some(rustix::process::getpid())) {
        tracing::warn!(%error, "processes that the engine leaves behind may be missed");
    }
}

/// Reads `/proc/PID/stat`. The name stands in parentheses and may hold some itself.
fn parse(stat: &str) -> Option<Entry> {
    let (pid, rest) = stat.split_once(" (")?;
    let (name, rest) = rest.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    Some(Entry { pid: pid.parse().ok()?, name: name.to_owned(), state, parent })
}

/// All processes that this one can see.
fn table() -> Vec<Entry> {
    let folders = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbered =
        folders.filter(|entry| entry.file_name().to_string_lossy().starts_with(|c: char| c.is_ascii_digit()));
    numbered.filter_map(|entry| parse(&fs::read_to_string(entry.path().join("stat")).ok()?)).collect()
}

/// Those below `root`, in whatever order the table has.
fn below(table: Vec<Entry>, root: i32) -> Vec<Entry> {
    let mut roots = vec![root];
    let mut rest = table;
    let mut found = Vec::new();
    while !roots.is_empty() {
        let (children, others): (Vec<_>, Vec<_>) = rest.into_iter().partition(|entry| roots.contains(&entry.parent));
        roots = children.iter().map(|entry| entry.pid).collect();
        found.extend(children);
        rest = others;
    }
    found
}

/// All processes below this one.
fn tree() -> Vec<Entry> {
    below(table(), own_pid())
}

fn own_pid() -> i32 {
    i32::try_from(process::id()).unwrap_or_default()
}

fn has_ended(entry: &Entry) -> bool {
    matches!(entry.state, 'Z' | 'X')
}

impl From<Entry> for Process {
    fn from(Entry { pid, name, .. }: Entry) -> Self {
        Self { pid, name }
    }
}

/// Processes of the tree that are stopped by a signal, or held by a debugger.
pub(crate) fn stopped() -> Vec<Process> {
    tree().into_iter().filter(|entry| matches!(entry.state, 'T' | 't')).map(Process::from).collect()
}

/// Waits for the orphans that have ended, so that they leave the table; `child` is waited for elsewhere.
pub(crate) fn reap(child: Option<i32>) {
    let orphans = tree().into_iter().filter(|entry| has_ended(entry) && entry.parent == own_pid());
    for pid in orphans.map(|entry| entry.pid).filter(|pid| Some(*pid) != child).filter_map(Pid::from_raw) {
        let _ = waitpid(Some(pid), WaitOptions::NOHANG);
    }
}

/// Asks a process to end.
pub(crate) fn terminate(pid: i32) {
    signal(pid, Signal::TERM);
}

/// Kills all processes below this one, again and again, since they may start others meanwhile; returns those that are still there after
/// `limit`. Blocks for as long. `child` is waited for elsewhere.
pub fn kill_all(child: Option<i32>, limit: Duration) -> Vec<Process> {
    let tries = limit.as_millis() / PAUSE.as_millis();
    for _ in 0..=tries {
        let left: Vec<_> = tree().into_iter().filter(|entry| !has_ended(entry)).collect();
        if left.is_empty() {
            break;
        }
        left.iter().for_each(|entry| signal(entry.pid, Signal::KILL));
        thread::sleep(PAUSE);
        reap(child);
    }
    reap(child);
    tree().into_iter().filter(|entry| !has_ended(entry)).map(Process::from).collect()
}

fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        // It may have ended already.
        let _ = kill_process(pid, signal);
    }
}

/// How many processes of this container, or else of this machine, the kernel has killed because memory ran out.
pub(crate) fn out_of_memory_kills() -> Option<u64> {
    let of = |path: &str| {
        let text = fs::read_to_string(path).ok()?;
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        lines.find_map(|(name, count)| (name == "oom_kill").then(|| count.trim().parse().ok())?)
    };
    of("/sys/fs/cgroup/memory.events").or_else(|| of("/proc/vmstat"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_is_read() {
        let entry = |pid, name: &str, state, parent| Some(Entry { pid, name: name.to_owned(), state, parent });
        assert_eq!(parse("4711 (VLLM::Worker_TP) T 4700 4700 4700 0 -1"), entry(4711, "VLLM::Worker_TP", 'T', 4700));
        assert_eq!(parse("12 (a) b (c)) S 1 12 12 0"), entry(12, "a) b (c)", 'S', 1));
        for damaged in ["", "12", "12 (a", "12 (a) ", "x (a) S 1", "12 (a) S x"] {
            assert_eq!(parse(damaged), None, "{damaged}");
        }
    }

    #[test]
    fn a_tree_is_what_stands_below_its_root() {
        let entry = |pid, parent| Entry { pid, name: String::new(), state: 'S', parent };
        let table = vec![entry(9, 7), entry(1, 0), entry(5, 1), entry(7, 5), entry(6, 1), entry(8, 5), entry(2, 6)];
        let mut found: Vec<_> = below(table, 5).into_iter().map(|entry| entry.pid).collect();
        found.sort_unstable();
        assert_eq!(found, [7, 8, 9]);
    }
}
