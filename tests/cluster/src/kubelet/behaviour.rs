//! What a test makes a pod's containers do.

/// What one container does. All others start and are ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Behaviour {
    /// Starts, and is ready at once.
    Ready,
    /// Its image is being pulled.
    Pulling,
    /// Runs, and its startup probe does not pass yet.
    Loading,
    /// The registry does not have its image.
    ImageMissing,
    /// Ends soon after each start.
    Exits {
        /// Its exit status.
        code: i32,
        /// `Error`, or `OOMKilled` where the kernel ended it.
        reason: &'static str,
        /// The last lines of its log, which the kubelet keeps where the pod asks for it.
        log: &'static str,
    },
    /// Its one container runs as a process of this machine, with this machine's addresses.
    Process,
    /// All containers of the pod run, with an address and a file system of their own; [`containers_need`](super::containers_need)
    /// says what that takes.
    Containers,
}

impl Behaviour {
    /// Ended by the kernel for its use of memory.
    pub const OUT_OF_MEMORY: Self = Self::Exits { code: 137, reason: "OOMKilled", log: "" };
}

/// Which pods, and how.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub namespace: String,
    /// All pods of the namespace unless one is named.
    pub pod: Option<String>,
    /// The one that computes the model, unless one is named.
    pub container: Option<String>,
    pub behaviour: Behaviour,
}

impl Rule {
    pub fn is_about(&self, namespace: &str, pod: &str) -> bool {
        self.namespace == namespace && self.pod.as_deref().is_none_or(|named| named == pod)
    }
}
