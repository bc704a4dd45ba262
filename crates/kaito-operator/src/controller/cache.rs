//! A cache of one kind of object: what the watch reported, and on top of that our own newer writes.
//!
//! Example: a Deployment was just created, and its workspace is reconciled again. The watch has not reported the Deployment
//! yet, so a decision from the watch alone would create it again. So what the API server answered to a write is kept until the
//! watch has reported that version or a newer one.

use std::{
    collections::HashMap,
    fmt::Debug,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use kube::{
    Resource,
    runtime::{
        reflector::{ObjectRef, Store, store::Writer},
        watcher::Event,
    },
};

use super::backoff::lock;

/// The objects of one kind.
#[derive(Debug)]
pub struct Cache<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    store: Store<K>,
    written: Arc<Mutex<HashMap<ObjectRef<K>, Written<K>>>>,
    /// The newest version that the watch has reported.
    seen: Arc<AtomicU64>,
}

#[derive(Debug, Clone)]
struct Written<K> {
    version: u64,
    object: Arc<K>,
}

impl<K: Resource<DynamicType = ()> + Clone + 'static> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), written: Arc::clone(&self.written), seen: Arc::clone(&self.seen) }
    }
}

/// Fills a [`Cache`].
#[derive(Debug)]
pub struct Filler<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    writer: Writer<K>,
    cache: Cache<K>,
    /// The newest version of a list that is not complete yet.
    listed: u64,
    /// Our writes that were known when that list was asked for, and their versions.
    written_before: HashMap<ObjectRef<K>, u64>,
}

impl<K: Resource<DynamicType = ()> + Clone + Debug + 'static> Cache<K> {
    /// An empty cache, and what fills it.
    pub fn new() -> (Self, Filler<K>) {
        let writer = Writer::<K>::default();
        let cache = Self { store: writer.as_reader(), written: Arc::default(), seen: Arc::default() };
        (cache.clone(), Filler { writer, cache, listed: 0, written_before: HashMap::new() })
    }

    /// What the watch has reported, without our own newer writes.
    pub fn store(&self) -> Store<K> {
        self.store.clone()
    }

    /// The newest known version of an object.
    pub fn get(&self, object: &ObjectRef<K>) -> Option<Arc<K>> {
        let mut written = lock(&self.written);
        match written.get(object) {
            Some(newer) if newer.version > self.seen.load(Ordering::Acquire) => Some(Arc::clone(&newer.object)),
            Some(_) => {
                written.remove(object);
                self.store.get(object)
            }
            None => self.store.get(object),
        }
    }

    /// All objects that match, each in its newest known version.
    pub fn all(&self, matches: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        let seen = self.seen.load(Ordering::Acquire);
        let mut written = lock(&self.written);
        written.retain(|_, newer| newer.version > seen);
        let mut all: Vec<_> = self.store.state_filter(|object| {
            matches(object) && (written.is_empty() || !written.contains_key(&ObjectRef::from_obj(object)))
        });
        all.extend(written.values().filter(|newer| matches(&newer.object)).map(|newer| Arc::clone(&newer.object)));
        all
    }

    /// Remembers what the API server answered to a write.
    pub fn wrote(&self, object: K) {
        let Some(version) = version(&object) else { return };
        if version > self.seen.load(Ordering::Acquire) {
            lock(&self.written).insert(ObjectRef::from_obj(&object), Written { version, object: Arc::new(object) });
        }
    }

    /// Forgets our write of an object that was deleted.
    pub fn forget(&self, object: &ObjectRef<K>) {
        lock(&self.written).remove(object);
    }
}

impl<K: Resource<DynamicType = ()> + Clone + Debug + 'static> Filler<K> {
    /// Takes an event of the watch.
    pub fn take(&mut self, event: &Event<K>) {
        self.writer.apply_watcher_event(event);
        let seen = &self.cache.seen;
        match event {
            // Events come in the order of versions, so all writes up to this one have been reported.
            Event::Apply(object) | Event::Delete(object) => {
                seen.fetch_max(version(object).unwrap_or(0), Ordering::AcqRel);
            }
            Event::Init => {
                self.listed = 0;
                let written = lock(&self.cache.written);
                self.written_before = written.iter().map(|(key, newer)| (key.clone(), newer.version)).collect();
            }
            Event::InitApply(object) => self.listed = self.listed.max(version(object).unwrap_or(0)),
            Event::InitDone => {
                seen.fetch_max(self.listed, Ordering::AcqRel);
                // The list is newer than the writes before its request, and it does not name objects that were deleted since. It
                // may be older than the writes during its request.
                let before = std::mem::take(&mut self.written_before);
                lock(&self.cache.written).retain(|key, newer| before.get(key) != Some(&newer.version));
            }
        }
    }
}

/// The number of an object's version. The API server's documentation used to call versions opaque, but every server counts.
fn version<K: Resource>(object: &K) -> Option<u64> {
    object.meta().resource_version.as_deref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};

    use super::*;

    fn object(name: &str, version: u64) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some("ns".to_owned()),
                resource_version: Some(version.to_string()),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        }
    }

    fn version_of(cache: &Cache<ConfigMap>, name: &str) -> Option<u64> {
        let got = cache.get(&ObjectRef::new(name).within("ns")).as_deref().and_then(version);
        let listed = cache.all(|_| true).into_iter().find(|it| it.metadata.name.as_deref() == Some(name));
        assert_eq!(got, listed.as_deref().and_then(version), "get and all agree");
        got
    }

    #[test]
    fn what_was_written_is_known_before_the_watch_tells_of_it() {
        let (cache, mut filler) = Cache::new();
        filler.take(&Event::Init);
        filler.take(&Event::InitApply(object("a", 5)));
        filler.take(&Event::InitDone);
        cache.wrote(object("a", 7));
        cache.wrote(object("b", 8));
        assert_eq!((version_of(&cache, "a"), version_of(&cache, "b")), (Some(7), Some(8)));
        // The watch catches up with both; someone has deleted b meanwhile.
        filler.take(&Event::Apply(object("a", 7)));
        filler.take(&Event::Apply(object("b", 8)));
        filler.take(&Event::Delete(object("b", 9)));
        assert_eq!((version_of(&cache, "a"), version_of(&cache, "b")), (Some(7), None));
    }

    #[test]
    fn a_write_that_the_watch_has_overtaken_is_not_remembered() {
        let (cache, mut filler) = Cache::new();
        filler.take(&Event::Apply(object("a", 7)));
        filler.take(&Event::Delete(object("a", 9)));
        cache.wrote(object("a", 8));
        assert_eq!(version_of(&cache, "a"), None);
    }

    #[test]
    fn a_new_list_replaces_everything() {
        let (cache, mut filler) = Cache::new();
        filler.take(&Event::Apply(object("a", 3)));
        cache.wrote(object("b", 6));
        filler.take(&Event::Init);
        filler.take(&Event::InitApply(object("c", 4)));
        assert_eq!(version_of(&cache, "b"), Some(6), "the list is not complete yet");
        filler.take(&Event::InitDone);
        assert_eq!(["a", "b", "c"].map(|name| version_of(&cache, name)), [None, None, Some(4)]);
    }

    #[test]
    fn what_is_written_while_a_list_is_on_its_way_is_not_lost() {
        let (cache, mut filler) = Cache::new();
        cache.wrote(object("a", 5));
        filler.take(&Event::Init);
        filler.take(&Event::InitApply(object("b", 4)));
        cache.wrote(object("c", 7));
        filler.take(&Event::InitDone);
        assert_eq!(["a", "b", "c"].map(|name| version_of(&cache, name)), [None, Some(4), Some(7)]);
    }

    #[test]
    fn what_is_gone_can_be_forgotten() {
        let (cache, _filler) = Cache::new();
        cache.wrote(object("a", 6));
        cache.forget(&ObjectRef::new("a").within("ns"));
        assert_eq!(version_of(&cache, "a"), None);
    }
}
