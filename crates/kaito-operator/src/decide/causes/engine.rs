//! Why an engine ended, by its own last words, as its supervisor says them.

use kaito_supervisor::EngineFault;

use super::CauseKind;

/// What an engine's supervisor prints before the engine's last words.
const ENDED: &str = "error: the engine ended";

/// What a container says of the end of its engine, where it does: the line of its supervisor, and what follows it.
pub fn last_words(said: &str) -> Option<&str> {
    said.rfind(ENDED).and_then(|at| said.get(at..))
}

/// The kind of cause that an engine's container tells of, where it is known. Earlier lines do not count: an engine whose memory ran out
/// tells of connections that were closed too, say.
pub fn kind(said: &str) -> Option<CauseKind> {
    let words = last_words(said).or_else(|| said.trim_end().lines().next_back())?;
    Some(match EngineFault::of(words)? {
        EngineFault::GpuLost => CauseKind::GpuLost,
        EngineFault::GpuDriver => CauseKind::GpuDriverUnsuitable,
        EngineFault::GpuMissing => CauseKind::GpusMissing,
        EngineFault::OutOfGpuMemory => CauseKind::GpuOutOfMemory,
        EngineFault::KvCacheTooSmall => CauseKind::GpuMemoryTooSmall,
        EngineFault::OutOfMemory => CauseKind::ContainerOomKilled,
        EngineFault::OutOfSharedMemory => CauseKind::SharedMemoryExhausted,
        EngineFault::ModelUnsupported => CauseKind::ModelUnsupported,
        EngineFault::WeightsUnreadable => CauseKind::WeightsUnreadable,
        EngineFault::ArgumentRefused => CauseKind::FlagsRefused,
        EngineFault::RankUnreachable => CauseKind::RankUnreachable,
        // What else there is has no reason of its own.
        _ => return None,
    })
}
