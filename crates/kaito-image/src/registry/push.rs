//! Pushes an image: its blobs, several at the same time, and then the manifest, so that the tag never names an image that is
//! not complete.

use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use http::Method;
use oci_spec::image::{ANNOTATION_TITLE, Digest, MediaType};

use super::{
    Error, Reference, Repository,
    body::Content,
    http::Look,
    manners::Manners,
    mount::MountSource,
    pull::{MAX_MANIFEST, accept_manifests},
    refusal::Refusal,
    retry::Failure,
    upload::{Delivery, Upload, Uploads},
    wire::{Answer, Call},
};
use crate::{Blob, Event, Image, Item, Progress, output::short};

/// How often a manifest is asked for whose HEAD another host refused, which can be done without.
const ATTEMPTS_WITHOUT_HEAD: u32 = 3;
/// How often a manifest is sent of which the registry does not know a blob that it confirmed.
const ATTEMPTS_LACKING_BLOBS: u32 = 4;

/// What a push may do.
#[derive(Debug, Clone, Default)]
pub struct PushOptions {
    /// Refuse to move a tag that names another image.
    pub keep_existing: bool,
    /// Repositories of the same registry where blobs may be found.
    pub mounts: HashMap<Digest, String>,
}

/// What a push did.
#[derive(Debug, Clone)]
pub struct PushReport {
    /// The image, by its digest.
    pub digest: Digest,
    /// Whether the registry had the whole image under this tag, so that nothing was done.
    pub unchanged: bool,
    /// The digest of the image that the tag named before, if another.
    pub replaced: Option<String>,
    /// Each blob once, in the order of the image.
    pub blobs: Vec<BlobReport>,
    /// How long it took.
    pub elapsed: Duration,
}

/// What a push did with one blob.
#[derive(Debug, Clone)]
pub struct BlobReport {
    /// The blob.
    pub digest: Digest,
    /// Its size.
    pub size: u64,
    /// How it came to be in the registry.
    pub delivery: Delivery,
    /// Bytes handed to the network for it.
    pub sent: u64,
}

impl BlobReport {
    /// Bytes that had to be sent once more, because they were lost on the way or the registry did not keep them.
    pub fn resent(&self) -> u64 {
        if self.delivery == Delivery::Sent { self.sent.saturating_sub(self.size) } else { self.sent }
    }
}

/// What a tag names.
#[derive(Debug)]
enum Tagged {
    /// The image of this digest.
    Image(String),
    Nothing,
    /// The registry has sent to another host to ask, which does not say.
    Unknown(Error),
}

impl Tagged {
    fn is(&self, digest: &Digest) -> bool {
        matches!(self, Self::Image(found) if found == digest.as_ref())
    }
}

impl PushReport {
    /// Bytes handed to the network for all blobs.
    pub fn sent(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.sent).sum()
    }

    /// Bytes that had to be sent once more.
    pub fn resent(&self) -> u64 {
        self.blobs.iter().map(BlobReport::resent).sum()
    }

    /// Bytes of blobs that were in the repository.
    pub fn existed(&self) -> u64 {
        self.sizes(|delivery| *delivery == Delivery::Existed)
    }

    /// Bytes of blobs that were in other repositories of the registry.
    pub fn mounted(&self) -> u64 {
        self.sizes(|delivery| matches!(delivery, Delivery::Mounted { .. }))
    }

    fn sizes(&self, of: impl Fn(&Delivery) -> bool) -> u64 {
        self.blobs.iter().filter(|blob| of(&blob.delivery)).map(|blob| blob.size).sum()
    }
}

impl Repository {
    /// Asks whether images may be pushed here: an upload is opened and given up. What would be refused in the end is
    /// refused now, before weights are read for it.
    ///
    /// # Errors
    /// When the registry refuses, or can't be reached.
    pub async fn check_push(&self, progress: &dyn Progress) -> Result<(), Error> {
        self.tagged(progress).await?;
        let upload = Upload {
            uploads: &self.uploads(),
            blob: &Blob::from_bytes(MediaType::ImageLayer, Vec::new()),
            watch: &|_| {},
            notify: &|cause, delay| retrying(progress, None, cause, delay),
            sent: &AtomicU64::new(0),
        };
        upload.try_out().await
    }

    fn uploads(&self) -> Uploads<'_> {
        Uploads {
            http: &self.http,
            repository: self.reference.repository(),
            chunk: self.chunk_size,
            manners: Mutex::new(Manners::new(self.chunk_size)),
            sources: HashMap::new(),
        }
    }

    /// Sends `image`, and gives it the tag of the reference that the repository was opened with.
    ///
    /// # Errors
    /// When the registry refuses, can't be reached, or `image` can't be read. The tag is then as it was.
    pub async fn push(
        &self,
        image: &Image,
        options: &PushOptions,
        progress: &dyn Progress,
    ) -> Result<PushReport, Error> {
        let begun = Instant::now();
        let digest = image.digest().clone();
        let reference = &self.reference;
        if let Some(wanted) = reference.digest().filter(|wanted| *wanted != digest.as_ref()) {
            return Err(Error::DigestDiffers {
                what: format!("the image to be pushed as {reference}"),
                expected: wanted.to_owned(),
                found: digest.to_string(),
            });
        }
        let mut blobs: Vec<&Blob> = Vec::new();
        for blob in image.blobs() {
            if !blobs.iter().any(|other| other.digest() == blob.digest()) {
                blobs.push(blob);
            }
        }
        let existing = match self.tagged(progress).await? {
            Tagged::Image(digest) => Some(digest),
            Tagged::Nothing => None,
            // To keep the tag, one has to know what it names.
            Tagged::Unknown(error) if options.keep_existing => return Err(error),
            Tagged::Unknown(error) => {
                tracing::warn!(%error, %reference, "it is not known which image the tag names; pushing without");
                None
            }
        };
        if existing.as_deref() == Some(digest.as_ref()) {
            let existed = |blob: &&Blob| report(blob, Delivery::Existed, 0);
            let blobs = blobs.iter().map(existed).collect();
            return Ok(PushReport { digest, unchanged: true, replaced: None, blobs, elapsed: begun.elapsed() });
        }
        if let Some(existing) = existing.as_ref().filter(|_| options.keep_existing) {
            return Err(Error::TagExists { reference: reference.to_string(), existing: existing.clone() });
        }
        let blobs = self.push_blobs(&blobs, options, progress).await?;
        self.put_manifest(image, existing.as_deref(), progress).await?;
        Ok(PushReport { digest, unchanged: false, replaced: existing, blobs, elapsed: begun.elapsed() })
    }

    async fn push_blobs(
        &self,
        blobs: &[&Blob],
        options: &PushOptions,
        progress: &dyn Progress,
    ) -> Result<Vec<BlobReport>, Error> {
        let items: Vec<_> = blobs.iter().map(|blob| Item { name: name(blob), size: blob.size() }).collect();
        progress.event(Event::Planned { phase: "pushing", items: &items });
        let mut uploads = self.uploads();
        for from in options.mounts.values() {
            if !uploads.sources.contains_key(from) {
                let source = MountSource::new(self.http.asking_also(format!("repository:{from}:pull")).await);
                uploads.sources.insert(from.clone(), source);
            }
        }
        // The largest first, so that none of them is what all wait for in the end.
        let mut order: Vec<_> = blobs.iter().enumerate().collect();
        order.sort_by_key(|(_, blob)| std::cmp::Reverse(blob.size()));
        let uploads = &uploads;
        let pushing = stream::iter(order).map(|(item, blob)| async move {
            let mount_from = options.mounts.get(blob.digest()).map(String::as_str);
            let report = push_blob(uploads, item, blob, mount_from, progress).await?;
            Ok::<_, Error>((item, report))
        });
        let mut reports: Vec<_> = pushing.buffer_unordered(self.jobs).try_collect().await?;
        reports.sort_by_key(|(item, _)| *item);
        Ok(reports.into_iter().map(|(_, report)| report).collect())
    }

    /// What the tag names now.
    async fn tagged(&self, progress: &dyn Progress) -> Result<Tagged, Error> {
        let call = accept_manifests(Call::new(Method::HEAD, self.manifest_url(self.place())?));
        let looked = self.http.look(&call, None, &|cause, delay| retrying(progress, None, cause, delay)).await?;
        let by_get = |manifest: Option<Blob>| {
            manifest.map_or(Tagged::Nothing, |manifest| Tagged::Image(manifest.digest().to_string()))
        };
        match looked {
            Look::Answer(mut answer) => match answer.status.as_u16() {
                200..=299 => match answer.text("docker-content-digest") {
                    Some(digest) => Ok(Tagged::Image(digest.to_owned())),
                    // Registries older than the specification do not say, nor does storage; the manifest does.
                    None if self.http.is_here(&answer.url) => Ok(by_get(self.manifest(self.place()).await?)),
                    None => Ok(self.manifest(self.place()).await.map_or_else(Tagged::Unknown, by_get)),
                },
                404 => Ok(Tagged::Nothing),
                _ => Err(self.http.refuse(&mut answer, &format!("say what {} is", self.reference)).await),
            },
            Look::Refused(_) => {
                let retries = self.http.retries().at_most(ATTEMPTS_WITHOUT_HEAD);
                Ok(self.manifest_within(self.place(), retries).await.map_or_else(Tagged::Unknown, by_get))
            }
        }
    }

    async fn put_manifest(&self, image: &Image, existing: Option<&str>, progress: &dyn Progress) -> Result<(), Error> {
        let manifest = &image.manifest;
        let bytes = manifest.bytes(MAX_MANIFEST as u64).map_err(|cause| Error::Source {
            digest: manifest.digest().to_string(),
            source: std::io::Error::other(cause),
        })?;
        let call = Call::new(Method::PUT, self.manifest_url(self.place())?)
            .content(Content::Bytes(Bytes::from(bytes)), manifest.media_type().as_ref());
        let mut retries = self.http.retries();
        let mut lacking = self.http.retries().at_most(ATTEMPTS_LACKING_BLOBS);
        loop {
            let failure = match self.http.attempt(&call, &|_| {}).await.outcome {
                Ok(answer) if answer.status.is_success() => return self.check_stored(&answer, image, progress).await,
                Ok(mut answer) => {
                    let refusal = answer.refusal().await;
                    let cause = format!("status {}{}", refusal.status, refusal.message);
                    let may_come = refusal.lacks_blob();
                    let error = self.manifest_refused(refusal, existing);
                    // Some take a moment to know everywhere what they have confirmed.
                    let again = Failure::transient(cause);
                    if !may_come
                        || lacking
                            .wait(again, &call.url, &|cause, delay| retrying(progress, None, cause, delay))
                            .await
                            .is_err()
                    {
                        return Err(error);
                    }
                    continue;
                }
                Err(failure) => failure,
            };
            retries.wait(failure, &call.url, &|cause, delay| retrying(progress, None, cause, delay)).await?;
            // Where tags are immutable, what has arrived can't be sent again.
            if self.tagged(progress).await?.is(image.digest()) {
                return Ok(());
            }
        }
    }

    /// Why the registry did not take the manifest. That the tag may not be moved is only one reason of many.
    fn manifest_refused(&self, refusal: Refusal, existing: Option<&str>) -> Error {
        match existing.filter(|_| refusal.is_immutable_tag()) {
            Some(existing) => Error::TagImmutable {
                reference: self.reference.to_string(),
                existing: existing.to_owned(),
                status: refusal.status,
                message: refusal.message,
            },
            None => self.http.refused(refusal, &format!("take the manifest of {}", self.reference)),
        }
    }

    async fn check_stored(&self, answer: &Answer, image: &Image, progress: &dyn Progress) -> Result<(), Error> {
        let stored = match answer.text("docker-content-digest") {
            Some(digest) => Tagged::Image(digest.to_owned()),
            None => self.tagged(progress).await?,
        };
        let found = match stored {
            Tagged::Image(digest) if digest == image.digest().as_ref() => return Ok(()),
            Tagged::Image(digest) => digest,
            Tagged::Nothing => "missing".to_owned(),
            Tagged::Unknown(error) => {
                tracing::warn!(%error, "the registry has taken the manifest and does not show it");
                return Ok(());
            }
        };
        Err(Error::DigestDiffers {
            what: format!("{} in the registry", self.reference),
            expected: image.digest().to_string(),
            found,
        })
    }

    /// Where a manifest lies: the tag, or the digest where there is none.
    fn place(&self) -> &str {
        place(&self.reference)
    }
}

/// The tag, or the digest where there is none.
pub(super) fn place(reference: &Reference) -> &str {
    reference.tag().or(reference.digest()).unwrap_or("latest")
}

async fn push_blob(
    uploads: &Uploads<'_>,
    item: usize,
    blob: &Blob,
    mount_from: Option<&str>,
    progress: &dyn Progress,
) -> Result<BlobReport, Error> {
    let sent = AtomicU64::new(0);
    let upload = Upload {
        uploads,
        blob,
        watch: &|bytes| progress.event(Event::Position { item, bytes }),
        notify: &|cause, delay| retrying(progress, Some(item), cause, delay),
        sent: &sent,
    };
    let delivery = upload.run(mount_from).await?;
    match &delivery {
        Delivery::Existed => progress.event(Event::Skipped { item, reason: "exists already" }),
        Delivery::Mounted { from } => {
            progress.event(Event::Skipped { item, reason: &format!("mounted from {from}") });
        }
        Delivery::Sent => progress.event(Event::Finished { item }),
    }
    Ok(report(blob, delivery, sent.load(Ordering::Relaxed)))
}

fn report(blob: &Blob, delivery: Delivery, sent: u64) -> BlobReport {
    BlobReport { digest: blob.digest().clone(), size: blob.size(), delivery, sent }
}

fn retrying(progress: &dyn Progress, item: Option<usize>, cause: &str, delay: Duration) {
    progress.event(Event::Retrying { item, cause, delay });
}

/// What people know a blob by.
fn name(blob: &Blob) -> String {
    let title = blob.descriptor().annotations().as_ref().and_then(|annotations| annotations.get(ANNOTATION_TITLE));
    title.cloned().unwrap_or_else(|| short(blob.digest()))
}
