//! This machine: what it is, and how much of it other processes use during a measurement.

use std::{fs, path::Path, thread};

use kaito_kernels::instruction_set;
use serde::Serialize;

/// What the measurements ran on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// Name of the processor, where the system tells.
    pub cpu: Option<String>,
    /// Cores that this process may use.
    pub cores: usize,
    /// The instruction set that our kernels use on it.
    pub instruction_set: &'static str,
}

impl Machine {
    /// This machine.
    pub fn this() -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        Self {
            cpu: name.map(|(_, name)| name.trim().to_owned()).filter(|name| !name.is_empty()),
            cores: thread::available_parallelism().map_or(1, usize::from),
            instruction_set: instruction_set(),
        }
    }
}

/// Bytes of the largest cache that the system tells of.
pub(crate) fn largest_cache() -> Option<u64> {
    let folder = fs::read_dir("/sys/devices/system/cpu/cpu0/cache").ok()?;
    let sizes = folder.flatten().filter_map(|entry| {
        let text = fs::read_to_string(entry.path().join("size")).ok()?;
        let text = text.trim();
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
        let shift = match unit {
            "" => 0,
            "K" => 10,
            "M" => 20,
            "G" => 30,
            _ => return None,
        };
        number.parse::<u64>().ok()?.checked_shl(shift)
    });
    sizes.max()
}

/// Time of all cores, in the system's ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CoreTime {
    all: u64,
    busy: u64,
}

/// How much of the cores is used by processes that have nothing to do with a measurement.
#[derive(Debug, Clone)]
pub(crate) struct OthersWatch {
    /// `None` if not all processes of the measurement are known.
    processes: Option<Vec<u32>>,
}

/// A point in time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark(Option<(CoreTime, u64)>);

impl OthersWatch {
    /// Everything but this process counts as others.
    pub(crate) fn of_this_process() -> Self {
        Self { processes: Some(vec![std::process::id()]) }
    }

    /// Everything but this process and the one that listens on a port of this machine.
    pub(crate) fn with_server(port: u16) -> Self {
        let server = listener(port, Path::new("/proc"));
        Self { processes: server.map(|server| vec![std::process::id(), server]) }
    }

    /// For a target on another machine, whose processes cannot be seen.
    pub(crate) fn blind() -> Self {
        Self { processes: None }
    }

    pub(crate) fn mark(&self) -> Mark {
        let read = || {
            let all = core_time(&fs::read_to_string("/proc/stat").ok()?)?;
            let own = self
                .processes
                .as_ref()?
                .iter()
                .map(|process| process_time(&fs::read_to_string(format!("/proc/{process}/stat")).ok()?));
            Some((all, own.sum::<Option<u64>>()?))
        };
        Mark(read())
    }

    /// The share of all cores that others used since then.
    pub(crate) fn share_since(&self, before: Mark) -> Option<f64> {
        let ((before, own_before), (now, own_now)) = (before.0?, self.mark().0?);
        let all = now.all.checked_sub(before.all).filter(|all| *all > 0)?;
        let others = now.busy.saturating_sub(before.busy).saturating_sub(own_now.saturating_sub(own_before));
        Some(others as f64 / all as f64)
    }
}

/// The first line of `/proc/stat`.
fn core_time(stat: &str) -> Option<CoreTime> {
    let fields = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = fields.split_whitespace().map_while(|field| field.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; guests are part of user and nice.
    let ticks = ticks.get(..8.min(ticks.len()))?;
    let all: u64 = ticks.iter().sum();
    let idle: u64 = ticks.get(3..5)?.iter().sum();
    Some(CoreTime { all, busy: all - idle })
}

/// Time on cores of a process, by its `stat`.
fn process_time(stat: &str) -> Option<u64> {
    // The name, in parentheses, may hold anything.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace().skip(11);
    let (user, system) = (fields.next()?, fields.next()?);
    Some(user.parse::<u64>().ok()? + system.parse::<u64>().ok()?)
}

/// The process that listens on a port, where it may be seen.
fn listener(port: u16, proc: &Path) -> Option<u32> {
    const LISTENING: &str = "0A";
    let sockets: Vec<String> = ["net/tcp", "net/tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(proc.join(table)).ok())
        .flat_map(|table| table.lines().skip(1).map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let local = fields.get(1)?.rsplit_once(':')?.1;
            (u16::from_str_radix(local, 16) == Ok(port) && fields.get(3) == Some(&LISTENING))
                .then(|| fields.get(9).map(|inode| format!("socket:[{inode}]")))?
        })
        .collect();
    let processes = fs::read_dir(proc).ok()?.flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).find(|process| {
        fs::read_dir(proc.join(process.to_string()).join("fd")).is_ok_and(|files| {
            files.flatten().any(|file| {
                fs::read_link(file.path()).is_ok_and(|target| {
                    target.to_str().is_some_and(|target| sockets.iter().any(|socket| socket == target))
                })
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_proc_writes_them() {
        let stat = "cpu  100 20 30 1000 50 6 7 8 0 0\ncpu0 1 2 3\n";
        assert_eq!(core_time(stat), Some(CoreTime { all: 1221, busy: 171 }));
        assert_eq!(core_time("cpu  x"), None);
        let stat = "42 (a (strange) name) S 1 42 42 0 -1 4194304 100 200 0 0 77 11 5 6 20 0 4 0 100 1000 50";
        assert_eq!(process_time(stat), Some(88));
        assert_eq!(process_time("42 (cut) S 1 2"), None);
    }

    #[test]
    fn a_listening_socket_has_this_process() {
        if cfg!(target_os = "linux") {
            let listening = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listening.local_addr().unwrap().port();
            assert_eq!(listener(port, Path::new("/proc")), Some(std::process::id()));
            drop(listening);
        }
    }

    #[test]
    fn others_are_a_share() {
        let watch = OthersWatch::of_this_process();
        let before = watch.mark();
        if before.0.is_some() {
            let mut share = watch.share_since(before);
            // The clock of the system ticks a hundred times a second.
            while share.is_none() {
                share = watch.share_since(before);
            }
            assert!((0.0..=1.0).contains(&share.unwrap()), "{share:?}");
        }
        let blind = OthersWatch::blind();
        assert_eq!(blind.share_since(blind.mark()), None);
    }
}
