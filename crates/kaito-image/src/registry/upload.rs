//! One blob on its way to a registry.
//!
//! A blob goes in chunks, each a `PATCH`, and the last with the `PUT` that ends the upload. After a failure the
//! registry is asked how much it has, and the upload goes on from there. The last chunk goes with the `PUT` so that an
//! upload whose last answer is lost is complete: asking for the blob then finds it, and nothing is sent again, even on
//! registries that give an upload up when a request breaks.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use http::{HeaderName, Method, header};
use oci_spec::image::DigestAlgorithm;
use url::Url;

use super::{
    Error,
    address::{resolve, with_query},
    body::Content,
    http::{Answer, Attempt, Call, Failure, Http, Notify, Refusal, Retries},
    range::Received,
};
use crate::Blob;

const OCTETS: &str = "application/octet-stream";
const CHUNK_MIN_LENGTH: HeaderName = HeaderName::from_static("oci-chunk-min-length");
/// The part of the usual chunk that chunks are not made smaller than, whatever fails: requests would cost more than
/// what is sent again.
const SMALLEST_PART: u64 = 64;
/// At which rate a registry is expected to check and store what it received, at least.
const COMMIT_RATE: u64 = 20 << 20;
/// How long an upload that failed for good may take to be cancelled.
const CANCEL_PATIENCE: Duration = Duration::from_secs(5);
/// How often it is asked whether a blob is there whose last answer was lost, before it is sent again.
const LOOKS_AFTER_COMMIT: u32 = 2;

/// How a blob came to be in the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// It was there.
    Existed,
    /// It was in another repository of the registry.
    Mounted {
        /// That repository.
        from: String,
    },
    /// It was sent.
    Sent,
}

/// What all uploads to a registry share.
#[derive(Debug)]
pub(super) struct Uploads<'a> {
    pub(super) http: &'a Http,
    pub(super) repository: &'a str,
    pub(super) chunk: u64,
    /// Cleared when the registry shows that it takes blobs in one piece alone.
    pub(super) chunked: AtomicBool,
    /// Cleared when the registry shows that it takes no content with the `PUT` that ends a chunked upload.
    pub(super) last_with_put: AtomicBool,
}

/// One blob, and whom to tell about it.
pub(super) struct Upload<'a> {
    pub(super) uploads: &'a Uploads<'a>,
    pub(super) blob: &'a Blob,
    /// Told how many bytes are done.
    pub(super) watch: &'a (dyn Fn(u64) + Sync),
    pub(super) notify: Notify<'a>,
    /// Bytes handed to the network so far, those of failed attempts too.
    pub(super) sent: &'a AtomicU64,
}

/// An upload that the registry knows.
#[derive(Debug)]
struct Session {
    location: Url,
    /// What the registry has confirmed.
    offset: u64,
    /// Size of the next chunk.
    chunk: u64,
    smallest: u64,
    /// Whether a chunk was taken.
    taken: bool,
    /// Whether an attempt broke, so that the registry's data may be not what was sent.
    broke: bool,
    /// Whether the registry's last word was that a chunk does not begin where its data ends.
    out_of_step: bool,
}

enum Mount {
    Done,
    /// The registry opened an upload instead.
    Opened(Session),
    Refused,
}

/// What a request did to an upload.
enum Step {
    /// The blob is complete.
    Complete,
    /// More of it is there.
    Advanced,
    /// The attempt failed; it is to be found out how much arrived.
    Failed(Failure),
    /// The registry does not know the upload any more.
    Lost(String),
    /// The registry refused what it may take otherwise.
    TryOtherwise,
}

impl Upload<'_> {
    /// Brings the blob to the registry, if it is not there; from another of its repositories if that has it.
    pub(super) async fn run(&self, mount_from: Option<&str>) -> Result<Delivery, Error> {
        if self.exists().await? {
            return Ok(Delivery::Existed);
        }
        let mut session = None;
        if let Some(from) = mount_from {
            match self.mount(from).await? {
                Mount::Done => return Ok(Delivery::Mounted { from: from.to_owned() }),
                Mount::Opened(opened) => session = Some(opened),
                Mount::Refused => {}
            }
        }
        let mut session = match session {
            Some(session) => session,
            None => self.open().await?,
        };
        match self.send(&mut session).await {
            Ok(()) => Ok(Delivery::Sent),
            Err(error) => {
                self.cancel(&session).await;
                Err(error)
            }
        }
    }

    /// Opens an upload and gives it up.
    pub(super) async fn try_out(&self) -> Result<(), Error> {
        let session = self.open().await?;
        self.cancel(&session).await;
        Ok(())
    }

    fn http(&self) -> &Http {
        self.uploads.http
    }

    fn url(&self, path: &str) -> Result<Url, Error> {
        resolve(&self.http().base, &format!("/v2/{}/blobs/{path}", self.uploads.repository))
    }

    async fn exists(&self) -> Result<bool, Error> {
        let call = Call::new(Method::HEAD, self.url(self.blob.digest().as_ref())?);
        let mut answer = self.http().call(&call, self.notify).await?;
        match answer.status.as_u16() {
            200..=299 => {
                let length = answer.text(header::CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
                // Some answer without a length, or with none.
                if let Some(found) = length.filter(|length| *length != self.blob.size() && *length != 0) {
                    let what = format!("says that the blob has {found} bytes; it has {}", self.blob.size());
                    return Err(Error::Protocol { url: answer.url.to_string(), what });
                }
                Ok(true)
            }
            404 => Ok(false),
            _ => Err(self.http().refuse(&mut answer, &format!("say whether it has blob {}", self.blob.digest())).await),
        }
    }

    async fn mount(&self, from: &str) -> Result<Mount, Error> {
        let digest = self.blob.digest();
        let mount = with_query(&with_query(&self.url("uploads/")?, "mount", digest.as_ref()), "from", from);
        let answer = self.http().call(&Call::new(Method::POST, mount), self.notify).await?;
        match answer.status.as_u16() {
            201 => Ok(Mount::Done),
            202 => Ok(Mount::Opened(self.session(&answer)?)),
            // It may not be allowed to read there, or not know mounts; the blob can still be sent.
            status => {
                tracing::debug!(status, from, %digest, "not mounted");
                Ok(Mount::Refused)
            }
        }
    }

    async fn open(&self) -> Result<Session, Error> {
        let mut url = self.url("uploads/")?;
        let algorithm = self.blob.digest().algorithm();
        if *algorithm != DigestAlgorithm::Sha256 {
            url = with_query(&url, "digest-algorithm", algorithm.as_ref());
        }
        let mut answer = self.http().call(&Call::new(Method::POST, url), self.notify).await?;
        match answer.status.as_u16() {
            202 => self.session(&answer),
            _ => {
                let action = format!("take blobs for repository {}", self.uploads.repository);
                Err(self.http().refuse(&mut answer, &action).await)
            }
        }
    }

    fn session(&self, answer: &Answer) -> Result<Session, Error> {
        let location = answer.text(header::LOCATION).ok_or_else(|| Error::Protocol {
            url: answer.url.to_string(),
            what: "opens an upload without a Location".to_owned(),
        })?;
        let least = answer.text(CHUNK_MIN_LENGTH).and_then(|least| least.parse().ok()).unwrap_or(0);
        let chunked = self.uploads.chunked.load(Ordering::Relaxed);
        Ok(Session {
            location: resolve(&answer.url, location)?,
            offset: 0,
            chunk: if chunked { self.uploads.chunk.max(least) } else { u64::MAX },
            smallest: (self.uploads.chunk / SMALLEST_PART).max(least).max(1),
            taken: false,
            broke: false,
            out_of_step: false,
        })
    }

    /// Sends what the registry lacks until the blob is there.
    async fn send(&self, session: &mut Session) -> Result<(), Error> {
        let mut retries = self.http().retries();
        let mut best = 0;
        let mut damaged = false;
        loop {
            let before = session.offset;
            match self.step(session, &mut damaged).await? {
                Step::Complete => return Ok(()),
                Step::Advanced | Step::TryOtherwise => {}
                Step::Failed(failure) => {
                    retries.wait(failure, &session.location, self.notify).await?;
                    if self.find_out(session, &mut retries, before).await? {
                        return Ok(());
                    }
                }
                Step::Lost(cause) => {
                    retries.wait(Failure::transient(cause), &session.location, self.notify).await?;
                    *session = self.open().await?;
                }
            }
            if session.offset > best {
                best = session.offset;
                retries.progressed();
            }
            (self.watch)(session.offset);
        }
    }

    /// Sends the next chunk, or the last one.
    async fn step(&self, session: &mut Session, damaged: &mut bool) -> Result<Step, Error> {
        let left = self.blob.size().saturating_sub(session.offset);
        let separate = !self.uploads.last_with_put.load(Ordering::Relaxed) && session.chunk != u64::MAX;
        if left > session.chunk || separate && left > 0 {
            self.patch(session, left.min(session.chunk)).await
        } else {
            self.put(session, left, damaged).await
        }
    }

    async fn attempt(&self, session: &Session, method: Method, url: Url, length: u64) -> Attempt {
        let (start, end) = (session.offset, session.offset + length);
        let mut call = Call::new(method, url);
        // A blob in one piece is no range.
        if length > 0 {
            call = call.content(Content::Part { blob: Box::new(self.blob.clone()), start, end }, OCTETS);
            if call.method == Method::PATCH || start > 0 {
                call = call.header(header::CONTENT_RANGE, &format!("{start}-{}", end - 1));
            }
        }
        if call.method == Method::PUT {
            call.patience = self.http().wire.stall + Duration::from_secs(self.blob.size() / COMMIT_RATE);
        }
        let attempt = self.http().attempt(&call, &|sent| (self.watch)(start + sent)).await;
        self.sent.fetch_add(attempt.sent, Ordering::Relaxed);
        attempt
    }

    async fn patch(&self, session: &mut Session, length: u64) -> Result<Step, Error> {
        let end = session.offset + length;
        let attempt = self.attempt(session, Method::PATCH, session.location.clone(), length).await;
        let mut answer = match attempt.outcome {
            Ok(answer) => answer,
            Err(failure) => return self.broken(session, failure),
        };
        if answer.status.is_success() {
            let received = answer.text(header::RANGE).and_then(Received::parse);
            let offset = match received {
                // Some registries do not say; then it is what was sent.
                None => end,
                Some(Received::NoneOrOne) => end.min(1),
                Some(Received::Bytes(bytes)) => bytes,
            };
            if let Some(location) = answer.text(header::LOCATION) {
                session.location = resolve(&answer.url, location)?;
            }
            if offset > end || offset < session.offset || received == Some(Received::NoneOrOne) && end > 1 {
                if !session.broke {
                    // It does not count as others do.
                    return self.in_one_piece(session, answer.status.as_u16()).await;
                }
                return Ok(Step::Lost(format!("the registry has {offset} bytes after {end} were sent")));
            }
            session.offset = offset;
            session.taken = true;
            session.out_of_step = false;
            session.chunk = session.chunk.saturating_mul(2).min(self.uploads.chunk.max(session.smallest));
            return Ok(Step::Advanced);
        }
        let refusal = answer.refusal().await;
        let unknown = refusal.has("BLOB_UPLOAD_UNKNOWN") || refusal.has("BLOB_UPLOAD_INVALID");
        match refusal.status {
            // These say that chunks are not known here; the last two may also say that something broke before.
            405 | 501 if !session.taken => self.in_one_piece(session, refusal.status).await,
            404 | 416 if !session.taken && !session.broke && !unknown => {
                self.in_one_piece(session, refusal.status).await
            }
            400 if refusal.has("UNSUPPORTED") && !session.taken => self.in_one_piece(session, refusal.status).await,
            413 if self.smaller(session) => Ok(Step::Failed(Failure::transient("status 413, trying smaller chunks"))),
            416 => Ok(self.out_of_step(session, &refusal)),
            404 | 410 => Ok(Step::Lost(format!("the registry gave the upload up{}", refusal.message))),
            400 if unknown => Ok(Step::Lost(format!("the registry gave the upload up{}", refusal.message))),
            _ => Err(self.refused(refusal)),
        }
    }

    /// Sends what is left, and ends the upload.
    async fn put(&self, session: &mut Session, length: u64, damaged: &mut bool) -> Result<Step, Error> {
        let url = with_query(&session.location, "digest", self.blob.digest().as_ref());
        let attempt = self.attempt(session, Method::PUT, url, length).await;
        let mut answer = match attempt.outcome {
            Ok(answer) => answer,
            Err(failure) => {
                if attempt.sent_all && self.appears().await? {
                    return Ok(Step::Complete);
                }
                return self.broken(session, failure);
            }
        };
        if answer.status.is_success() {
            let found = answer.text("docker-content-digest").filter(|found| *found != self.blob.digest().as_ref());
            return match found {
                Some(found) => Err(Error::DigestDiffers {
                    what: format!("what {} stored", self.http().registry),
                    expected: self.blob.digest().to_string(),
                    found: found.to_owned(),
                }),
                None => Ok(Step::Complete),
            };
        }
        let refusal = answer.refusal().await;
        let unknown = refusal.has("BLOB_UPLOAD_UNKNOWN") || refusal.has("BLOB_UPLOAD_INVALID");
        let gave_up = || format!("the registry gave the upload up{}", refusal.message);
        if refusal.has("DIGEST_INVALID") {
            // What a broken attempt left may have come after what followed it; once that is a reason to begin again.
            if session.broke && !*damaged {
                *damaged = true;
                return Ok(Step::Lost(gave_up()));
            }
            let (registry, digest) = (self.http().registry.clone(), self.blob.digest().to_string());
            return Err(Error::BlobDamaged { registry, digest });
        }
        match refusal.status {
            413 if self.smaller(session) => Ok(Step::Failed(Failure::transient("status 413, trying smaller chunks"))),
            404 | 410 => Ok(if self.exists().await? { Step::Complete } else { Step::Lost(gave_up()) }),
            400 if unknown => Ok(if self.exists().await? { Step::Complete } else { Step::Lost(gave_up()) }),
            400 | 405 | 411 | 415 | 416
                if session.taken && length > 0 && self.uploads.last_with_put.load(Ordering::Relaxed) =>
            {
                self.uploads.last_with_put.store(false, Ordering::Relaxed);
                self.broken(session, Failure::transient(format!("status {}{}", refusal.status, refusal.message)))
            }
            400 | 405 | 416 if session.chunk == u64::MAX && session.offset > 0 => Ok(Step::Lost(gave_up())),
            416 => Ok(self.out_of_step(session, &refusal)),
            _ => Err(self.refused(refusal)),
        }
    }

    /// The registry has more or less of the blob than was thought. Once, it is asked how much.
    fn out_of_step(&self, session: &mut Session, refusal: &Refusal) -> Step {
        let cause = format!("status 416{}", refusal.message);
        session.broke = true;
        if std::mem::replace(&mut session.out_of_step, true) {
            return Step::Lost(cause);
        }
        Step::Failed(Failure::transient(cause))
    }

    fn broken(&self, session: &mut Session, failure: Failure) -> Result<Step, Error> {
        match failure {
            Failure::Fatal(error) => Err(error),
            failure => {
                session.broke = true;
                Ok(Step::Failed(failure))
            }
        }
    }

    fn refused(&self, refusal: Refusal) -> Error {
        self.http().refused(refusal, &format!("take blob {}", self.blob.digest()))
    }

    /// Whether chunks can be made smaller; then they are.
    fn smaller(&self, session: &mut Session) -> bool {
        if session.chunk == u64::MAX {
            return false;
        }
        let current = session.chunk;
        let smaller = (current / 2).max(session.smallest);
        session.chunk = smaller;
        smaller < current
    }

    /// The registry takes no chunks: sends this blob and all others whole.
    async fn in_one_piece(&self, session: &mut Session, status: u16) -> Result<Step, Error> {
        tracing::debug!(registry = self.http().registry, status, "blobs go in one piece each");
        self.uploads.chunked.store(false, Ordering::Relaxed);
        self.cancel(session).await;
        *session = self.open().await?;
        Ok(Step::TryOtherwise)
    }

    /// Asks how much of the upload the registry has. Begins another if it has forgotten it. Returns true if, by then,
    /// the whole blob is there.
    async fn find_out(&self, session: &mut Session, retries: &mut Retries, before: u64) -> Result<bool, Error> {
        loop {
            let call = Call::new(Method::GET, session.location.clone());
            let answer = match self.http().attempt(&call, &|_| {}).await.outcome {
                Ok(answer) => answer,
                Err(failure) => {
                    retries.wait(failure, &session.location, self.notify).await?;
                    continue;
                }
            };
            if !answer.status.is_success() {
                if self.exists().await? {
                    return Ok(true);
                }
                tracing::debug!(status = %answer.status, digest = %self.blob.digest(), "the upload is gone, beginning again");
                *session = Session { chunk: session.chunk, ..self.open().await? };
                return Ok(false);
            }
            match answer.text(header::RANGE).and_then(Received::parse) {
                Some(Received::Bytes(bytes)) if bytes <= self.blob.size() => session.offset = bytes,
                Some(Received::Bytes(_)) => {
                    self.cancel(session).await;
                    *session = self.open().await?;
                    return Ok(false);
                }
                // Some registries never say how much they have; where this upload was is all that is known. If
                // that is wrong they refuse the next chunk.
                Some(Received::NoneOrOne) | None if session.offset > 1 => return Ok(false),
                Some(Received::NoneOrOne) if session.offset == 1 || self.blob.size() == 1 => {
                    self.cancel(session).await;
                    *session = self.open().await?;
                    return Ok(false);
                }
                Some(Received::NoneOrOne) | None => session.offset = 0,
            }
            if let Some(location) = answer.text(header::LOCATION) {
                session.location = resolve(&answer.url, location)?;
            }
            if session.offset <= before {
                // Nothing of the chunk was kept: something may end requests that are too long or too large.
                self.smaller(session);
            }
            return Ok(false);
        }
    }

    /// Whether a blob is there that was sent whole but not confirmed. The registry may be checking it.
    async fn appears(&self) -> Result<bool, Error> {
        let mut delay = self.http().retry.first_delay;
        for _ in 0..LOOKS_AFTER_COMMIT {
            if self.exists().await? {
                return Ok(true);
            }
            tokio::time::sleep(delay).await;
            delay = delay.saturating_mul(2).min(self.http().retry.max_delay);
        }
        self.exists().await
    }

    /// Lets the registry forget an upload. That is a courtesy: it forgets by itself, after days.
    async fn cancel(&self, session: &Session) {
        let call = Call::new(Method::DELETE, session.location.clone());
        let _ = tokio::time::timeout(CANCEL_PATIENCE, self.http().attempt(&call, &|_| {})).await;
    }
}
