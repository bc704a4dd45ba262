//! What this machine has, and whether its kernel ran out of memory.

use std::fs;

use kaito_presets::GIB;

/// The machine that stands for the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// Cores that processes may use.
    pub cores: usize,
    /// Memory in bytes, where the kernel says it.
    pub memory: Option<u64>,
}

impl Machine {
    /// This one.
    pub fn this() -> Self {
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory: fs::read_to_string("/proc/meminfo").ok().and_then(|text| kibibytes(&text, "MemTotal:")),
        }
    }

    /// In words.
    pub fn describe(&self) -> String {
        let cores = if self.cores == 1 { "1 core".to_owned() } else { format!("{} cores", self.cores) };
        match self.memory {
            Some(memory) => format!("{cores}, {:.1} GiB of memory", memory as f64 / GIB as f64),
            None => cores,
        }
    }
}

/// How many processes the kernel has killed because memory ran out, since the machine started; where the kernel counts them.
pub fn out_of_memory_kills() -> Option<u64> {
    counter(&fs::read_to_string("/proc/vmstat").ok()?, "oom_kill")
}

fn kibibytes(text: &str, name: &str) -> Option<u64> {
    counter(text, name)?.checked_mul(1024)
}

/// The number after a name at the beginning of a line.
fn counter(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(name)).then(|| words.next()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        let vmstat = "pgfault 12\noom_kill 3\noom_kill_disable 9\n";
        assert_eq!(counter(vmstat, "oom_kill"), Some(3));
        assert_eq!(counter("pgfault 12\n", "oom_kill"), None);
        assert_eq!(counter("oom_kill x\n", "oom_kill"), None);
        assert_eq!(kibibytes("MemTotal:       16384 kB\nMemFree: 1 kB\n", "MemTotal:"), Some(16 << 20));
        assert_eq!(kibibytes("MemTotal: 18446744073709551615 kB\n", "MemTotal:"), None);
    }

    #[test]
    fn the_machine_is_put_in_words() {
        let memory = Some(24 * GIB + GIB / 2);
        assert_eq!(Machine { cores: 8, memory }.describe(), "8 cores, 24.5 GiB of memory");
        assert_eq!(Machine { cores: 1, memory: None }.describe(), "1 core");
    }
}
