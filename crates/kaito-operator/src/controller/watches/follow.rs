//! Fills the caches from watches, and queues the workspaces that each event concerns.

use std::{fmt::Debug, pin::pin};

use futures_util::StreamExt;
use kube::{
    Api, Client, Resource,
    runtime::{
        WatchStreamExt,
        reflector::ObjectRef,
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::{
    super::{
        cache::Filler,
        manifest::{Manifest, Unreadable},
    },
    Pending,
    queue::{Queue, objects},
};
use crate::{karpenter::NodeClaim, workspace::Workspace};

/// What a watch fills and queues.
pub struct Follower<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    filler: Filler<K>,
    queue: Queue,
    /// Told of the first complete list, if anybody waits for it.
    pending: Option<Pending>,
}

impl<K: Resource<DynamicType = ()> + Clone + Debug + 'static> Follower<K> {
    pub fn new(filler: Filler<K>, queue: Queue, pending: Option<Pending>) -> Self {
        Self { filler, queue, pending }
    }

    /// Takes an event into the cache, and then queues what it concerns. Whether it completes a list.
    fn take(&mut self, event: Event<K>, tell: impl FnOnce(&Queue, &Event<K>)) -> bool {
        let event = event.modify(|object| object.meta_mut().managed_fields = None);
        self.filler.take(&event);
        tell(&self.queue, &event);
        matches!(event, Event::InitDone)
    }

    fn listed(&mut self) {
        if let Some(pending) = self.pending.take() {
            pending.done();
        }
    }

    /// Queues all workspaces after a list: what was deleted while nobody watched has no event of its own.
    fn relisted(&mut self) {
        self.queue.push_where(|_| true);
        self.listed();
    }
}

/// Follows the watch of a kind for ever.
pub async fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
    mut follower: Follower<K>,
    mut tell: impl FnMut(&Queue, &Event<K>) + Send,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let mut events = pin!(watcher(api, config).default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if follower.take(event, &mut tell) {
                    follower.relisted();
                }
            }
            Err(error) => broken(&K::kind(&()), &error),
        }
    }
}

fn broken(kind: &str, error: &watcher::Error) {
    tracing::warn!(kind, %error, "the watch broke, trying again");
}

/// Follows the watch of workspaces, of which some may be such that they cannot be read.
pub async fn watch_workspaces(api: Api<Manifest>, mut follower: Follower<Workspace>, mut unreadable: Unreadable) {
    let mut events = pin!(watcher(api, watcher::Config::default()).default_backoff());
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                broken(&Workspace::kind(&()), &error);
                continue;
            }
        };
        let Some(event) = unreadable.sort_out(event).await else { continue };
        let tell = |queue: &Queue, event: &Event<Workspace>| {
            objects(event).for_each(|workspace| queue.push(ObjectRef::from_obj(workspace)));
        };
        if follower.take(event, tell) {
            follower.relisted();
        }
    }
}

/// Follows the watch of node claims, a kind that the cluster may not have, or not yet.
pub async fn watch_claims(client: Client, mut follower: Follower<NodeClaim>, exist: watch::Sender<Option<bool>>) {
    let mut events = pin!(watcher(Api::<NodeClaim>::all(client), watcher::Config::default()).default_backoff());
    while let Some(event) = events.next().await {
        let now = match &event {
            Ok(Event::InitDone) => Some(true),
            Err(watcher::Error::InitialListFailed(kube::Error::Api(status))) if status.code == 404 => Some(false),
            _ => None,
        };
        match event {
            Ok(event) => {
                follower.take(event, |queue, event| objects(event).for_each(|claim| queue.push_owner(claim)));
            }
            Err(error) if now.is_none() => broken(&NodeClaim::kind(&()), &error),
            Err(_) => {}
        }
        if let Some(now) = now {
            let before = exist.send_replace(Some(now));
            if before != Some(now) {
                tracing::info!(exist = now, "karpenter.sh/v1 NodeClaims");
                follower.queue.push_where(|_| true);
            }
            follower.listed();
        }
    }
}
