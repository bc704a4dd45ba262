//! Leader election by a Lease.
//!
//! Clocks of machines differ, so no replica compares the times in the Lease with its own clock. A replica takes the Lease over
//! when it has seen it unchanged for the duration that the Lease states; the holder stops well before that.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease as LeaseObject, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep, timeout},
};

const NAME: &str = "kaito-controller";

/// Durations of the election. `renew_within` must be less than `duration`, so that a holder stops before another takes over.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Another replica takes over a Lease that has not changed for this long.
    pub duration: Duration,
    /// A holder that could not renew the Lease for this long stops.
    pub renew_within: Duration,
    /// How often the Lease is renewed or looked at.
    pub period: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(15),
            renew_within: Duration::from_secs(10),
            period: Duration::from_secs(2),
        }
    }
}

/// One replica in the election.
#[derive(Debug)]
pub struct Lease {
    api: Api<LeaseObject>,
    identity: String,
    timing: Timing,
    /// The Lease as it was last read or written.
    held: Mutex<Option<LeaseObject>>,
}

/// Who holds the Lease.
enum Outcome {
    Holding,
    HeldByAnother,
}

impl Lease {
    /// A replica that does not lead yet.
    pub fn new(client: Client, namespace: &str, identity: &str, timing: Timing) -> Self {
        Self { api: Api::namespaced(client, namespace), identity: identity.to_owned(), timing, held: Mutex::new(None) }
    }

    /// Waits until this replica holds the Lease. Returns when it was asked for: it may have been granted as early as that.
    pub async fn acquire(&self) -> Instant {
        // The version of the Lease when it was last seen to change, and when that was.
        let mut last: Option<(Option<String>, Instant)> = None;
        loop {
            let asked = Instant::now();
            // A grant that takes longer than this may have expired for the other replicas already.
            match timeout(self.timing.renew_within, self.look(&mut last)).await {
                Ok(Ok(Outcome::Holding)) => return asked,
                Ok(Ok(Outcome::HeldByAnother)) => {}
                Ok(Err(error)) => tracing::warn!(%error, "cannot take the lease"),
                Err(_) => tracing::warn!("cannot take the lease: no answer in {:?}", self.timing.renew_within),
            }
            sleep(self.timing.period).await;
        }
    }

    /// Renews the Lease, which was last renewed at `renewed`, until this replica has lost it.
    pub async fn keep(&self, mut renewed: Instant) {
        loop {
            sleep(self.timing.period).await;
            let asked = Instant::now();
            let left = self.timing.renew_within.saturating_sub(renewed.elapsed());
            match timeout(left, self.renew()).await {
                // Counted from the request: the Lease may have been renewed as early as that.
                Ok(Ok(Outcome::Holding)) => renewed = asked,
                Ok(Ok(Outcome::HeldByAnother)) => return,
                Ok(Err(error)) => tracing::warn!(%error, "cannot renew the lease"),
                Err(_) => {}
            }
            if renewed.elapsed() >= self.timing.renew_within {
                return;
            }
        }
    }

    /// Gives the Lease up, so that another replica can take it at once.
    pub async fn release(&self) {
        let Some(mut lease) = self.held.lock().await.take() else { return };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(&self.identity) {
            return;
        }
        spec.holder_identity = None;
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        let released = timeout(self.timing.period, self.api.replace(NAME, &PostParams::default(), &lease)).await;
        if !matches!(released, Ok(Ok(_))) {
            tracing::warn!("could not release the lease; another replica leads in {:?}", self.timing.duration);
        }
    }

    async fn look(&self, last: &mut Option<(Option<String>, Instant)>) -> kube::Result<Outcome> {
        let Some(lease) = self.api.get_opt(NAME).await? else {
            let lease = LeaseObject {
                metadata: ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() },
                spec: Some(self.claimed(None)),
            };
            return self.settle(self.api.create(&PostParams::default(), &lease).await).await;
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let version = lease.metadata.resource_version.clone();
        let since = match last {
            Some((seen, since)) if *seen == version => *since,
            _ => {
                let now = Instant::now();
                *last = Some((version, now));
                now
            }
        };
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let duration = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let limit = duration.map_or(self.timing.duration, Duration::from_secs);
        if holder.is_empty() || holder == self.identity || since.elapsed() >= limit {
            return self.take(lease).await;
        }
        Ok(Outcome::HeldByAnother)
    }

    async fn renew(&self) -> kube::Result<Outcome> {
        let held = self.held.lock().await.clone();
        let Some(mut lease) = held else { return Ok(Outcome::HeldByAnother) };
        lease.spec.get_or_insert_default().renew_time = Some(MicroTime(Timestamp::now()));
        let outcome = self.api.replace(NAME, &PostParams::default(), &lease).await;
        if let Err(kube::Error::Api(status)) = &outcome {
            // Somebody changed it: perhaps this replica, by a request whose answer was lost.
            if status.code == 409 {
                let current = self.api.get(NAME).await?;
                let holder = current.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
                if holder != Some(&self.identity) {
                    return Ok(Outcome::HeldByAnother);
                }
                *self.held.lock().await = Some(current);
            }
        }
        self.settle(outcome).await
    }

    async fn take(&self, mut lease: LeaseObject) -> kube::Result<Outcome> {
        lease.spec = Some(self.claimed(lease.spec.as_ref()));
        // The write carries the version that was seen, so of several replicas only the first succeeds.
        self.settle(self.api.replace(NAME, &PostParams::default(), &lease).await).await
    }

    async fn settle(&self, outcome: kube::Result<LeaseObject>) -> kube::Result<Outcome> {
        match outcome {
            Ok(lease) => {
                *self.held.lock().await = Some(lease);
                Ok(Outcome::Holding)
            }
            Err(kube::Error::Api(status)) if status.code == 409 && self.held.lock().await.is_none() => {
                Ok(Outcome::HeldByAnother)
            }
            Err(error) => Err(error),
        }
    }

    fn claimed(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let transitions = before.and_then(|spec| spec.lease_transitions);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.timing.duration.as_secs()).ok(),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(transitions.map_or(0, |count| count.saturating_add(1))),
            ..LeaseSpec::default()
        }
    }
}

#[cfg(test)]
mod tests;
