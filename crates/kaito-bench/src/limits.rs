//! The limits of this machine, measured between the rows of the report.

use std::{io, num::NonZeroUsize, sync::Arc};

use kaito_kernels::{Arithmetic, ReadMemory, ThreadPool, Unit};
use serde::Serialize;

use crate::machine::largest_cache;

/// Memory that is read, at least and at most.
const LEAST_MEMORY: u64 = 256 << 20;
const MOST_MEMORY: u64 = 2 << 30;
/// How much more than the largest cache is read, so that what it keeps from one round to the next does not count.
const TIMES_THE_CACHE: u64 = 4;
const ROUNDS: usize = 2;

/// The fastest that was seen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Limits {
    /// Threads that reached it.
    pub threads: usize,
    /// Bytes of memory read in a second.
    pub read_bytes_per_second: f64,
    /// Operations in a second, two for each product.
    pub operations_per_second: f64,
    /// What computes them.
    #[serde(serialize_with = "as_text")]
    pub unit: Unit,
}

fn as_text<S: serde::Serializer>(unit: &Unit, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(unit)
}

/// Measures the limits, again and again.
pub(crate) struct Prober {
    inner: Arc<Inner>,
    best: Limits,
}

struct Inner {
    pool: ThreadPool,
    memory: ReadMemory,
    arithmetic: Arithmetic,
}

impl Prober {
    /// # Errors
    /// If the system refuses the memory that would be read.
    pub(crate) fn new(threads: usize, unit: Unit) -> io::Result<Self> {
        let bytes = largest_cache().unwrap_or(0).saturating_mul(TIMES_THE_CACHE).clamp(LEAST_MEMORY, MOST_MEMORY);
        // Never so much that the model would have to leave memory.
        let bytes = bytes.min((kaito_engine::device::cpu::available_memory() / 4).max(LEAST_MEMORY));
        let pool = ThreadPool::new(NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN));
        let best = Limits { threads: pool.threads(), read_bytes_per_second: 0.0, operations_per_second: 0.0, unit };
        let memory = ReadMemory::new(bytes as usize)?;
        Ok(Self { inner: Arc::new(Inner { pool, memory, arithmetic: Arithmetic::new(unit) }), best })
    }

    /// Takes a fraction of a second, in which nothing else should run.
    pub(crate) async fn probe(&mut self) {
        let inner = Arc::clone(&self.inner);
        let rounds = tokio::task::spawn_blocking(move || {
            [(); ROUNDS].map(|()| (inner.memory.bandwidth(&inner.pool), inner.arithmetic.rate(&inner.pool)))
        });
        // A panic there would leave the limits that were measured before.
        for (read, operations) in rounds.await.unwrap_or_default() {
            self.best.read_bytes_per_second = self.best.read_bytes_per_second.max(read);
            self.best.operations_per_second = self.best.operations_per_second.max(operations);
        }
    }

    pub(crate) fn limits(&self) -> Limits {
        self.best
    }
}
