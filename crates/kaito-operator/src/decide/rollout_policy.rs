//! When the controller may restart running models, and which ones it restarts now.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use super::window::Window;

/// When running models may be restarted for changes of the installation alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolloutPolicy {
    /// The most models at a time.
    pub at_once: u32,
    /// A rollout starts only in one of these; at any time where there are none.
    pub windows: Vec<Window>,
    /// How long a model must have answered before the next rollout, and the controller have led before its first.
    pub pause: Duration,
}

impl RolloutPolicy {
    /// The default of `at_once`.
    pub const AT_ONCE: u32 = 1;
    /// The default of `pause`.
    pub const PAUSE: Duration = Duration::from_secs(60);

    /// When the next window opens, if all are closed.
    pub fn closed_until(&self, now: Timestamp) -> Option<Timestamp> {
        if self.windows.is_empty() || self.windows.iter().any(|window| window.is_open(now)) {
            return None;
        }
        self.windows.iter().filter_map(|window| window.opens(now)).min()
    }
}

impl Default for RolloutPolicy {
    fn default() -> Self {
        Self { at_once: Self::AT_ONCE, windows: Vec::new(), pause: Self::PAUSE }
    }
}

/// Rollouts of the whole cluster, as one workspace sees them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rollouts {
    /// `namespace/name` of the other workspaces whose rollout is under way.
    pub under_way: Vec<String>,
    /// Since when this replica of the controller leads.
    pub leading_since: Option<Timestamp>,
}
