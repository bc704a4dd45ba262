//! The memory of this machine, as Linux tells of it.

use std::fs;

use crate::device::DeviceMemory;

/// Where the system does not say, a machine that can run a small model is assumed.
const ASSUMED: u64 = 2 << 30;

/// The system's memory, or its control group's, if that is less.
pub fn memory() -> DeviceMemory {
    let system = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let group = number("/sys/fs/cgroup/memory.max")
        .map(|max| (max, max.saturating_sub(number("/sys/fs/cgroup/memory.current").unwrap_or(0))));
    let least = |system: Option<u64>, group: Option<u64>| system.into_iter().chain(group).min().unwrap_or(ASSUMED);
    DeviceMemory {
        total: least(field(&system, "MemTotal:"), group.map(|(max, _)| max)),
        free: least(field(&system, "MemAvailable:"), group.map(|(_, left)| left)),
    }
}

/// A field of `/proc/meminfo`, in bytes.
fn field(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_as_the_system_writes_them() {
        let text = "MemTotal:       16265840 kB\nMemFree:         1 kB\nMemAvailable:   15000000 kB\nHugePages_Total:       3\n";
        assert_eq!(field(text, "MemTotal:"), Some(16_265_840 << 10));
        assert_eq!(field(text, "MemAvailable:"), Some(15_000_000 << 10));
        assert_eq!((field(text, "HugePages_Total:"), field(text, "Swap:")), (None, None));
    }
}
