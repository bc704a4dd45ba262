//! Mounting blobs that another repository of the registry has, so that they need not be sent.

use std::sync::atomic::{AtomicBool, Ordering};

use http::Method;

use super::{
    Error,
    address::with_query,
    http::Http,
    upload::{Session, Upload},
    wire::Call,
};

/// A registry that fails to mount gets the blob sent, after as many attempts.
const ATTEMPTS: u32 = 3;

/// A repository that may have blobs.
#[derive(Debug)]
pub(super) struct MountSource {
    /// With tokens that allow to read there.
    http: Http,
    /// Set when nothing can be had from there.
    closed: AtomicBool,
}

impl MountSource {
    /// `http` has to ask for tokens that allow to read there.
    pub(super) fn new(http: Http) -> Self {
        Self { http, closed: AtomicBool::new(false) }
    }
}

pub(super) enum Mount {
    Done,
    /// The registry opened an upload instead.
    Opened(Session),
    /// The blob has to be sent.
    Refused,
}

impl Upload<'_> {
    /// Asks for the blob from the repository `from`. Whatever speaks against it, the blob can still be sent: the user
    /// may not be allowed to read there, the registry may not know mounts, or fail at them.
    pub(super) async fn mount(&self, from: &str) -> Result<Mount, Error> {
        let source = self.uploads.sources.get(from).filter(|source| !source.closed.load(Ordering::Relaxed));
        let Some(source) = source else { return Ok(Mount::Refused) };
        let digest = self.blob.digest();
        let url = with_query(&with_query(&self.url("uploads/")?, "mount", digest.as_ref()), "from", from);
        let call = Call::new(Method::POST, url);
        let mut retries = source.http.retries().at_most(ATTEMPTS);
        loop {
            let failure = match source.http.attempt(&call, &|_| {}).await.outcome {
                Ok(answer) => {
                    let status = answer.status.as_u16();
                    let opened = if status == 202 { self.session(&answer).ok() } else { None };
                    if matches!(status, 401 | 403) {
                        source.closed.store(true, Ordering::Relaxed);
                    }
                    tracing::debug!(status, from, %digest, "asked to mount");
                    return Ok(match opened {
                        Some(session) => Mount::Opened(session),
                        None if status == 201 => Mount::Done,
                        None => Mount::Refused,
                    });
                }
                Err(failure) => failure,
            };
            if let Err(error) = retries.wait(failure, &call.url, self.notify).await {
                tracing::debug!(%error, from, "not mounted");
                source.closed.store(true, Ordering::Relaxed);
                return Ok(Mount::Refused);
            }
        }
    }
}
