//! Whether the API server takes image volumes: found out by trying, since it leaves them out without a word.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use super::backoff::lock;

/// For how long it counts as being without them. Somebody may switch the feature on.
const REMEMBERED: Duration = Duration::from_secs(600);

/// What the last tries said.
#[derive(Debug, Default)]
pub struct ImageVolumes {
    left_out: Mutex<Option<Instant>>,
}

impl ImageVolumes {
    /// A workload lost its image volume.
    pub fn were_left_out(&self) {
        *lock(&self.left_out) = Some(Instant::now());
    }

    /// A workload kept it.
    pub fn were_taken(&self) {
        *lock(&self.left_out) = None;
    }

    /// Whether to reckon with an API server without them.
    pub fn are_left_out(&self) -> bool {
        lock(&self.left_out).is_some_and(|when| when.elapsed() < REMEMBERED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_try_counts() {
        let volumes = ImageVolumes::default();
        assert!(!volumes.are_left_out());
        volumes.were_left_out();
        assert!(volumes.are_left_out());
        volumes.were_taken();
        assert!(!volumes.are_left_out());
        *lock(&volumes.left_out) = Instant::now().checked_sub(REMEMBERED);
        assert!(!volumes.are_left_out(), "it is tried again");
    }
}
