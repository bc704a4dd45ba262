//! Uploads one blob.
//!
//! A blob goes in chunks, each a `PATCH`, and the last with the `PUT` that ends the upload. After a failure the
//! registry is asked how much it has, and the upload goes on from there. The last chunk goes with the `PUT` so that an
//! upload whose last answer is lost is complete: asking for the blob then finds it, and nothing is sent again, even on
//! registries that give an upload up when a request breaks.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{HeaderName, Method, header};
use oci_spec::image::DigestAlgorithm;
use url::Url;

use super::{
    Error,
    address::{resolve, with_query},
    body::Content,
    http::{Attempt, Http, Look},
    manners::Manners,
    mount::{Mount, MountSource},
    range::Received,
    refusal::Refusal,
    retry::{Failure, Notify},
    wire::{Answer, Call},
};
use crate::Blob;

const OCTETS: &str = "application/octet-stream";
const CHUNK_MIN_LENGTH: HeaderName = HeaderName::from_static("oci-chunk-min-length");
const UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");
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
    pub(super) manners: Mutex<Manners>,
    /// By their names, the repositories that may have blobs.
    pub(super) sources: HashMap<String, MountSource>,
}

impl Uploads<'_> {
    pub(super) fn manners(&self) -> Manners {
        *self.manners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn learn(&self, change: impl FnOnce(&mut Manners)) {
        let mut manners = self.manners.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *manners;
        change(&mut manners);
        if *manners != before {
            tracing::debug!(registry = self.http.registry, manners = ?*manners, "the registry needs uploads of another form");
        }
    }
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
pub(super) struct Session {
    pub(super) location: Url,
    /// What the registry has confirmed.
    pub(super) offset: u64,
    /// Size of the next chunk; `u64::MAX` where blobs go in one piece.
    pub(super) chunk: u64,
    /// Smallest chunk that the registry takes, unless it is the last.
    pub(super) least: u64,
    /// Whether a chunk was taken.
    pub(super) taken: bool,
    /// Whether an attempt broke, so that the registry's data may be not what was sent.
    pub(super) broke: bool,
    /// Whether the registry's last word was that a chunk does not begin where its data ends.
    pub(super) out_of_step: bool,
    /// Where it said so though nothing had broken.
    pub(super) refused_at: Option<u64>,
    /// Whether, after a break, an upload of this blob has held other bytes in the end.
    pub(super) damaged: bool,
}

/// What a request did to an upload.
pub(super) enum Step {
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

    pub(super) fn http(&self) -> &Http {
        self.uploads.http
    }

    pub(super) fn url(&self, path: &str) -> Result<Url, Error> {
        resolve(&self.http().base, &format!("/v2/{}/blobs/{path}", self.uploads.repository))
    }

    pub(super) async fn exists(&self) -> Result<bool, Error> {
        let url = self.url(self.blob.digest().as_ref())?;
        let mut get = Call::new(Method::GET, url.clone());
        if self.blob.size() > 0 {
            get = get.header(header::RANGE, "bytes=0-0");
        }
        let mut answer = match self.http().look(&Call::new(Method::HEAD, url), Some(&get), self.notify).await? {
            Look::Answer(answer) => *answer,
            Look::Refused(said) => {
                tracing::debug!(said, digest = %self.blob.digest(), "not known to be there, so it is sent");
                return Ok(false);
            }
        };
        match answer.status.as_u16() {
            200..=299 => {
                // Some answer without a length, or with none.
                let length = size(&answer).filter(|length| *length != self.blob.size() && *length != 0);
                let Some(found) = length else { return Ok(true) };
                if !self.http().is_here(&answer.url) {
                    // A page of an error, for one.
                    return Ok(false);
                }
                let what = format!("says that the blob has {found} bytes; it has {}", self.blob.size());
                Err(Error::Protocol { url: answer.url.to_string(), what })
            }
            404 => Ok(false),
            _ => Err(self.http().refuse(&mut answer, &format!("say whether it has blob {}", self.blob.digest())).await),
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
            200..=299 => self.session(&answer),
            _ => {
                let action = format!("take blobs for repository {}", self.uploads.repository);
                Err(self.http().refuse(&mut answer, &action).await)
            }
        }
    }

    /// Another in its place, which knows what was learnt of the blob.
    pub(super) async fn reopen(&self, session: &Session) -> Result<Session, Error> {
        Ok(Session { damaged: session.damaged, refused_at: session.refused_at, ..self.open().await? })
    }

    pub(super) fn session(&self, answer: &Answer) -> Result<Session, Error> {
        let given = |name: HeaderName| answer.text(name).filter(|text| !text.is_empty());
        let location = match (given(header::LOCATION), given(UPLOAD_UUID)) {
            (Some(location), _) => resolve(&answer.url, location)?,
            (None, Some(id)) => self.url(&format!("uploads/{id}"))?,
            (None, None) => {
                let what = "opens an upload without a Location".to_owned();
                return Err(Error::Protocol { url: answer.url.to_string(), what });
            }
        };
        let least = given(CHUNK_MIN_LENGTH).and_then(|least| least.parse().ok()).unwrap_or(0);
        let manners = self.uploads.manners();
        Ok(Session {
            location,
            offset: 0,
            chunk: if manners.chunked { manners.largest.max(least) } else { u64::MAX },
            least,
            taken: false,
            broke: false,
            out_of_step: false,
            refused_at: None,
            damaged: false,
        })
    }

    /// Sends what the registry lacks until the blob is there.
    async fn send(&self, session: &mut Session) -> Result<(), Error> {
        let mut retries = self.http().retries();
        let mut best = 0;
        loop {
            let before = session.offset;
            match self.step(session).await? {
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
                    *session = self.reopen(session).await?;
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
    async fn step(&self, session: &mut Session) -> Result<Step, Error> {
        let left = self.blob.size().saturating_sub(session.offset);
        let whole = session.chunk == u64::MAX;
        if !whole {
            // Other uploads may have learnt that requests have to be smaller.
            session.chunk = session.chunk.min(self.uploads.manners().largest.max(session.least));
        }
        let separate = !self.uploads.manners().last_with_put && !whole;
        if left > session.chunk || separate && left > 0 {
            self.patch(session, left.min(session.chunk)).await
        } else {
            self.put(session, left).await
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
            if let Some(location) = answer.text(header::LOCATION).filter(|location| !location.is_empty()) {
                session.location = resolve(&answer.url, location)?;
            }
            // It counts what was sent: a Range is not always given, and not always of this chunk. But one that ends within
            // it says that the rest was not taken.
            let mut offset = end;
            if let Some(Received::Bytes(bytes)) = answer.text(header::RANGE).and_then(Received::parse) {
                if bytes > end && session.broke {
                    return Ok(Step::Lost(format!("the registry has {bytes} bytes after {end} were sent")));
                }
                if bytes > session.offset && bytes < end {
                    offset = bytes;
                }
            }
            session.offset = offset;
            session.taken = true;
            session.out_of_step = false;
            let largest = self.uploads.manners().largest.max(session.least);
            session.chunk = session.chunk.saturating_mul(2).min(largest);
            return Ok(Step::Advanced);
        }
        let elsewhere = !self.http().is_here(&answer.url);
        let refusal = answer.refusal().await;
        if refusal.is_too_large() {
            return self.too_large(session, length, refusal).await;
        }
        let unknown = refusal.is_unknown_upload();
        let untouched = !session.taken && !session.broke;
        match refusal.status {
            // These say that chunks are not known here; the last two may also say that something broke before.
            405 | 501 => self.in_one_piece(session, length, refusal, false).await,
            400 if refusal.has("UNSUPPORTED") => self.in_one_piece(session, length, refusal, false).await,
            404 if untouched && !unknown => self.in_one_piece(session, length, refusal, false).await,
            416 if untouched && !unknown => self.in_one_piece(session, length, refusal, true).await,
            // Nothing can be out of step, so it is something else.
            416 if !session.broke && session.refused_at == Some(session.offset) => {
                self.in_one_piece(session, length, refusal, true).await
            }
            416 => Ok(self.out_of_step(session, &refusal)),
            404 | 410 => Ok(Step::Lost(format!("the registry gave the upload up{}", refusal.message))),
            // A signed address of storage may have ended.
            401 | 403 if elsewhere => Ok(Step::Lost(format!("status {} from storage", refusal.status))),
            400 if unknown => Ok(Step::Lost(format!("the registry gave the upload up{}", refusal.message))),
            _ => Err(self.refused(refusal)),
        }
    }

    /// Sends what is left, and ends the upload.
    async fn put(&self, session: &mut Session, length: u64) -> Result<Step, Error> {
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
        let separable = length > 0 && session.chunk != u64::MAX;
        if answer.status.is_success() {
            return self.ended(session, &answer, separable).await;
        }
        let elsewhere = !self.http().is_here(&answer.url);
        let refusal = answer.refusal().await;
        let unknown = refusal.is_unknown_upload();
        let gave_up = format!("the registry gave the upload up{}", refusal.message);
        if refusal.has("DIGEST_INVALID") {
            // What a broken attempt left may have come after what followed it; once that is a reason to begin again.
            if session.broke && !session.damaged {
                session.damaged = true;
                return Ok(Step::Lost(gave_up));
            }
            if separable && !self.uploads.manners().put_proven {
                return Ok(self.passed_over(gave_up));
            }
            let (registry, digest) = (self.http().registry.clone(), self.blob.digest().to_string());
            return Err(Error::BlobDamaged { registry, digest });
        }
        let out_of_step_at_0 = refusal.status == 416 && session.offset == 0 && length > 0 && !session.broke;
        if refusal.is_too_large() || out_of_step_at_0 && !unknown {
            return self.too_large(session, length, refusal).await;
        }
        match refusal.status {
            404 | 410 => Ok(if self.exists().await? { Step::Complete } else { Step::Lost(gave_up) }),
            401 | 403 if elsewhere => Ok(Step::Lost(format!("status {} from storage", refusal.status))),
            400 if unknown => {
                if self.exists().await? {
                    return Ok(Step::Complete);
                }
                Ok(if separable && !session.broke { self.passed_over(gave_up) } else { Step::Lost(gave_up) })
            }
            400 | 405 | 411 | 415 | 416 | 501 if separable => {
                self.uploads.learn(|manners| manners.last_with_put = false);
                self.broken(session, Failure::transient(format!("status {}{}", refusal.status, refusal.message)))
            }
            400 | 405 | 416 if session.chunk == u64::MAX && session.offset > 0 => Ok(Step::Lost(gave_up)),
            416 => Ok(self.out_of_step(session, &refusal)),
            _ => Err(self.refused(refusal)),
        }
    }

    /// The registry says that the blob is complete. That is believed where it has a digest for it, or where the request
    /// that ended the upload had no content that could have been passed over.
    async fn ended(&self, session: &Session, answer: &Answer, separable: bool) -> Result<Step, Error> {
        let digest = self.blob.digest();
        let of_its_kind = |told: &&str| told.split(':').next() == Some(digest.algorithm().as_ref());
        let told = answer.text("docker-content-digest").filter(of_its_kind);
        let unproven = separable && !self.uploads.manners().put_proven;
        match told {
            Some(found) if found != digest.as_ref() && unproven => {
                Ok(self.passed_over(format!("the registry stored {found} instead of {digest}")))
            }
            Some(found) if found != digest.as_ref() => Err(Error::DigestDiffers {
                what: format!("what {} stored", self.http().registry),
                expected: digest.to_string(),
                found: found.to_owned(),
            }),
            None if (unproven || answer.status.as_u16() == 202) && !self.appears().await? => Ok(if unproven {
                self.passed_over(format!("the registry does not show {digest} after it was sent"))
            } else {
                // It may take its time; the manifest will tell.
                Step::Complete
            }),
            _ => {
                if separable && session.taken {
                    self.uploads.learn(|manners| manners.put_proven = true);
                }
                Ok(Step::Complete)
            }
        }
    }

    /// The registry has more or less of the blob than was thought. Once, it is asked how much.
    fn out_of_step(&self, session: &mut Session, refusal: &Refusal) -> Step {
        let cause = format!("status 416{}", refusal.message);
        if !session.broke {
            session.refused_at = Some(session.offset);
        }
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

    pub(super) fn refused(&self, refusal: Refusal) -> Error {
        self.http().refused(refusal, &format!("take blob {}", self.blob.digest()))
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
    pub(super) async fn cancel(&self, session: &Session) {
        let call = Call::new(Method::DELETE, session.location.clone());
        let _ = tokio::time::timeout(CANCEL_PATIENCE, self.http().attempt(&call, &|_| {})).await;
    }
}

/// The size of what was asked for, of which one byte came.
fn size(answer: &Answer) -> Option<u64> {
    match answer.text(header::CONTENT_RANGE) {
        Some(range) => range.rsplit_once('/')?.1.trim().parse().ok(),
        None => answer.text(header::CONTENT_LENGTH)?.trim().parse().ok(),
    }
}
