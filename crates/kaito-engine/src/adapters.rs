//! Adapters of a running model: handles that requests hold, and the names that people call them by.

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use crate::Error;

/// An adapter that a running model has loaded; cheap to clone. Requests hold it, and its memory is given back when the last
/// clone is dropped.
#[derive(Clone)]
pub struct Adapter(Arc<Lease>);

struct Lease {
    id: u32,
    bytes: u64,
    /// Tells the engine that nobody holds it any more.
    release: Box<dyn Fn(u32) + Send + Sync>,
    /// Requests with it that wait, and that run.
    waiting: AtomicUsize,
    running: AtomicUsize,
    /// Its share of the memory for adapters, given back after that.
    _held: Option<HeldMemory>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        (self.release)(self.id);
    }
}

impl Adapter {
    pub(crate) fn new(id: u32, bytes: u64, release: impl Fn(u32) + Send + Sync + 'static) -> Self {
        let (waiting, running) = Default::default();
        Self(Arc::new(Lease { id, bytes, release: Box::new(release), waiting, running, _held: None }))
    }

    /// The same, holding a share of the memory for adapters. Only for one that nobody else holds yet.
    pub(crate) fn holding(mut self, held: HeldMemory) -> Self {
        if let Some(lease) = Arc::get_mut(&mut self.0) {
            lease._held = Some(held);
        }
        self
    }

    /// Its number, which no other adapter of this process has or had.
    pub(crate) fn id(&self) -> u32 {
        self.0.id
    }

    /// Bytes of its matrices.
    pub fn bytes(&self) -> u64 {
        self.0.bytes
    }
}

/// Counts a request among those of its adapter: first as one that waits. Dropped, it counts no more.
#[derive(Debug)]
pub(crate) struct AdapterUse {
    adapter: Adapter,
    running: bool,
}

impl AdapterUse {
    /// Of a request that waits.
    pub fn waiting(adapter: Adapter) -> Self {
        adapter.0.waiting.fetch_add(1, Relaxed);
        Self { adapter, running: false }
    }

    /// The request left the queue.
    pub fn start(&mut self) {
        if !std::mem::replace(&mut self.running, true) {
            self.adapter.0.running.fetch_add(1, Relaxed);
            self.adapter.0.waiting.fetch_sub(1, Relaxed);
        }
    }
}

impl Drop for AdapterUse {
    fn drop(&mut self) {
        let Lease { waiting, running, .. } = &*self.adapter.0;
        if self.running { running } else { waiting }.fetch_sub(1, Relaxed);
    }
}

impl fmt::Debug for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Adapter({})", self.0.id)
    }
}

impl PartialEq for Adapter {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

/// An adapter that is to be loaded with its model.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterSource {
    /// What requests call it.
    pub name: String,
    /// Folder with `adapter_config.json` and the weights.
    pub directory: PathBuf,
    /// Factor of what it adds, a finite number.
    pub strength: f32,
}

/// An adapter under its name.
#[derive(Debug, Clone)]
pub struct NamedAdapter {
    /// What requests call it.
    pub name: String,
    /// Folder that it was read from.
    pub directory: PathBuf,
    /// The adapter.
    pub adapter: Adapter,
}

/// The adapters of a model by name.
#[derive(Debug, Default)]
pub struct Adapters {
    named: RwLock<Vec<NamedAdapter>>,
}

impl Adapters {
    /// Adapters of a model that an engine elsewhere computes, which has them: names without matrices here. Each has a folder, which
    /// is the engine's.
    pub fn elsewhere(named: impl IntoIterator<Item = (String, PathBuf)>) -> Self {
        let named = named.into_iter().zip(0..).map(|((name, directory), id)| NamedAdapter {
            name,
            directory,
            adapter: Adapter::new(id, 0, |_| {}),
        });
        Self { named: RwLock::new(named.collect()) }
    }

    /// The name of an adapter that has one.
    pub fn name_of(&self, adapter: &Adapter) -> Option<String> {
        self.read(|named| named.iter().find(|known| known.adapter == *adapter).map(|known| known.name.clone()))
    }

    /// The adapter of this name.
    pub fn find(&self, name: &str) -> Option<Adapter> {
        self.read(|named| named.iter().find(|known| known.name == name).map(|known| known.adapter.clone()))
    }

    /// All of them, in the order in which they were loaded.
    pub fn list(&self) -> Vec<NamedAdapter> {
        self.read(<[_]>::to_vec)
    }

    /// Names of those that requests in the queue have.
    pub fn waiting(&self) -> Vec<String> {
        self.names(|lease| &lease.waiting)
    }

    /// Names of those that running requests have.
    pub fn running(&self) -> Vec<String> {
        self.names(|lease| &lease.running)
    }

    fn names(&self, requests: impl Fn(&Lease) -> &AtomicUsize) -> Vec<String> {
        self.read(|named| {
            let used = named.iter().filter(|known| requests(&known.adapter.0).load(Relaxed) > 0);
            used.map(|known| known.name.clone()).collect()
        })
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.read(<[_]>::is_empty)
    }

    /// Bytes of the matrices of all.
    pub fn bytes(&self) -> u64 {
        self.read(|named| named.iter().map(|known| known.adapter.bytes()).sum())
    }

    /// Gives an adapter its name. One that had it before goes, if `replace` says so; those who hold it keep it.
    ///
    /// # Errors
    /// A name that is in use.
    pub(crate) fn insert(&self, adapter: NamedAdapter, replace: bool) -> Result<(), Error> {
        let mut named = self.named.write().unwrap_or_else(PoisonError::into_inner);
        match named.iter_mut().find(|known| known.name == adapter.name) {
            Some(known) if replace => *known = adapter,
            Some(_) => return Err(in_use(&adapter.name)),
            None => named.push(adapter),
        }
        Ok(())
    }

    /// Takes a name away, and gives what it was the name of.
    pub fn remove(&self, name: &str) -> Option<NamedAdapter> {
        let mut named = self.named.write().unwrap_or_else(PoisonError::into_inner);
        let at = named.iter().position(|known| known.name == name)?;
        Some(named.remove(at))
    }

    fn read<T>(&self, read: impl FnOnce(&[NamedAdapter]) -> T) -> T {
        read(&self.named.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The memory for adapters that are loaded while a model runs.
#[derive(Debug, Default)]
pub(crate) struct AdapterMemory {
    limit: u64,
    used: Arc<AtomicU64>,
    loading: Mutex<()>,
}

/// A share of it.
#[derive(Debug)]
pub(crate) struct HeldMemory {
    bytes: u64,
    used: Arc<AtomicU64>,
}

impl AdapterMemory {
    /// So many bytes.
    pub fn new(limit: u64) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Keeps others from loading, so that what is left stays so.
    pub fn lock(&self) -> MutexGuard<'_, ()> {
        self.loading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that are left.
    pub fn left(&self) -> u64 {
        self.limit.saturating_sub(self.used.load(Relaxed))
    }

    /// Takes so many of them.
    pub fn take(&self, bytes: u64) -> HeldMemory {
        self.used.fetch_add(bytes, Relaxed);
        HeldMemory { bytes, used: Arc::clone(&self.used) }
    }
}

impl Drop for HeldMemory {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Relaxed);
    }
}

/// Why a second adapter can't have a name.
pub(crate) fn in_use(name: &str) -> Error {
    Error::Load(format!("adapter {name:?}: there is one of this name already"))
}

/// Checks what people gave as a strength.
///
/// # Errors
/// [`Error::Load`] for one that is no finite number.
pub(crate) fn check_strength(source: &AdapterSource) -> Result<(), Error> {
    let AdapterSource { name, strength, .. } = source;
    if strength.is_finite() {
        return Ok(());
    }
    Err(Error::Load(format!("adapter {name:?}: the strength is {strength}, expected a finite number")))
}

/// A failure to load an adapter, with its name.
pub(crate) fn named(name: &str, error: &dyn fmt::Display) -> Error {
    Error::Load(format!("adapter {name:?}: {error}"))
}
