use std::time::Duration;

/// Told what hashing, writing or a transfer is doing. Called from several threads at once.
pub trait Progress: Send + Sync {
    /// Something happened.
    fn event(&self, event: Event<'_>);
}

impl<F: Fn(Event<'_>) + Send + Sync> Progress for F {
    fn event(&self, event: Event<'_>) {
        self(event);
    }
}

/// Something that takes long enough to have a bar of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The file's name or, where there is none, the beginning of the digest.
    pub name: String,
    /// Bytes to do.
    pub size: u64,
}

/// What is being done. `item` is an index into the items of the last plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// A phase begins; the bars of the one before are done with.
    Planned {
        /// One word: `hashing`, `writing`, `pushing`.
        phase: &'static str,
        /// What it will do.
        items: &'a [Item],
    },
    /// So many bytes of this item are done. Goes back when some have to be sent again.
    Position {
        /// Which item.
        item: usize,
        /// Bytes so far.
        bytes: u64,
    },
    /// Nothing has to be done for this item.
    Skipped {
        /// Which item.
        item: usize,
        /// Why, in a few words: `exists already`, `mounted from team/other`.
        reason: &'a str,
    },
    /// Something failed and will be tried again.
    Retrying {
        /// Which item, if one alone.
        item: Option<usize>,
        /// What went wrong.
        cause: &'a str,
        /// After this time.
        delay: Duration,
    },
    /// The item is done.
    Finished {
        /// Which item.
        item: usize,
    },
}
