//! Reads from a registry: manifests, the image of an index that is for a platform, and blobs as streams that are checked.

use std::{
    fmt,
    io::{self, Read},
    sync::Arc,
};

use bytes::{Buf, Bytes};
use http::{Method, header};
use oci_spec::image::{Descriptor, Digest, DigestAlgorithm, ImageIndex, ImageManifest, MediaType};
use sha2::{Digest as _, Sha256};
use tokio::{runtime::Handle, sync::mpsc};

use super::{
    Error, Repository, address,
    http::Http,
    push::place,
    retry::{Failure, Retries},
    wire::{Answer, Call},
};
use crate::{
    Blob, BlobSource, Image, Platform,
    blob::{finish, sha256},
};

/// Registries take manifests of 4 MiB at least, by the specification; larger ones are seldom.
pub(super) const MAX_MANIFEST: usize = 16 << 20;
/// Pieces that are fetched ahead of the reader.
const AHEAD: usize = 8;

/// Docker's names for what OCI has others for.
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Says which manifests are understood.
pub(super) fn accept_manifests(call: Call) -> Call {
    let types = [MediaType::ImageManifest.as_ref(), MediaType::ImageIndex.as_ref(), DOCKER_MANIFEST, DOCKER_INDEX];
    call.header(header::ACCEPT, &types.join(", "))
}

impl Repository {
    /// The image that the reference names; of an index, the one for `platform`. Its blobs are fetched when they are
    /// read, which must not happen on a thread of the asynchronous runtime.
    ///
    /// # Errors
    /// When there is none, or the registry can't be reached or gives something else.
    pub async fn image(&self, platform: &Platform) -> Result<Image, Error> {
        let wanted = self.reference.digest().unwrap_or_else(|| place(&self.reference));
        let missing = || Error::NotFound {
            registry: self.http.registry.clone(),
            reference: self.reference.to_string(),
            to: self.http.auth.viewer(),
        };
        let mut manifest = self.manifest(wanted).await?.ok_or_else(missing)?;
        if is_index(manifest.media_type()) {
            let index: ImageIndex = self.parse(&manifest)?;
            let digest = self.choose(&index, platform)?;
            manifest = self.manifest(digest.as_ref()).await?.ok_or_else(missing)?;
        }
        let content: ImageManifest = self.parse(&manifest)?;
        let blob = |descriptor: &Descriptor| self.remote_blob(descriptor.clone());
        Ok(Image { manifest, config: blob(content.config()), layers: content.layers().iter().map(blob).collect() })
    }

    /// A manifest, by tag or digest, if it is there.
    pub(super) async fn manifest(&self, place: &str) -> Result<Option<Blob>, Error> {
        self.manifest_within(place, self.http.retries()).await
    }

    /// The same, with these attempts.
    pub(super) async fn manifest_within(&self, place: &str, mut retries: Retries) -> Result<Option<Blob>, Error> {
        let call = accept_manifests(Call::new(Method::GET, self.manifest_url(place)?));
        loop {
            let failure = match self.manifest_once(&call, place).await {
                Ok(manifest) => return Ok(manifest),
                Err(failure) => failure,
            };
            retries.wait(failure, &call.url, &|cause, _| tracing::warn!(cause, "asking again")).await?;
        }
    }

    async fn manifest_once(&self, call: &Call, place: &str) -> Result<Option<Blob>, Failure> {
        let mut answer = self.http.attempt(call, &|_| {}).await.outcome?;
        match answer.status.as_u16() {
            200 => {}
            404 => return Ok(None),
            _ => return Err(self.http.refuse(&mut answer, &format!("show {}", self.reference)).await.into()),
        }
        let bytes = answer.bytes(MAX_MANIFEST).await?;
        let found = Digest::from(sha256(&bytes));
        let differs = |expected: String| {
            let what = format!("the manifest of {}", self.reference);
            Failure::Fatal(Error::DigestDiffers { what, expected, found: found.to_string() })
        };
        let told = answer.text("docker-content-digest").filter(|told| told.starts_with("sha256:"));
        let asked = Some(place).filter(|place| place.starts_with("sha256:"));
        if let Some(expected) = asked.or(told).filter(|expected| *expected != found.as_ref()) {
            return Err(differs(expected.to_owned()));
        }
        Ok(Some(Blob::from_bytes(media_type(&answer, &bytes), bytes.to_vec())))
    }

    fn parse<T: serde::de::DeserializeOwned>(&self, manifest: &Blob) -> Result<T, Error> {
        let protocol = |what: String| Error::Protocol { url: self.reference.to_string(), what };
        let bytes = manifest.bytes(MAX_MANIFEST as u64).map_err(|cause| protocol(cause.to_string()))?;
        serde_json::from_slice(&bytes)
            .map_err(|cause| protocol(format!("{} {} is damaged: {cause}", manifest.media_type(), manifest.digest())))
    }

    fn choose(&self, index: &ImageIndex, wanted: &Platform) -> Result<Digest, Error> {
        let offered = |descriptor: &Descriptor| {
            let platform = descriptor.platform().as_ref()?;
            Some(Platform { os: platform.os().clone(), architecture: platform.architecture().clone() })
        };
        let manifests = || index.manifests().iter().filter(|entry| !is_index(entry.media_type()));
        if let Some(entry) = manifests().find(|entry| offered(entry).as_ref() == Some(wanted)) {
            return Ok(entry.digest().clone());
        }
        // An index of one image that says nothing is for every machine, as weights are.
        let mut silent = manifests().filter(|entry| entry.platform().is_none());
        if let (Some(entry), None) = (silent.next(), silent.next()) {
            return Ok(entry.digest().clone());
        }
        // Tools add descriptions of images as images for no machine.
        let mut names: Vec<_> = manifests().filter_map(offered).map(|platform| platform.to_string()).collect();
        names.retain(|name| name != "unknown/unknown");
        names.dedup();
        Err(Error::NoSuchPlatform {
            reference: self.reference.to_string(),
            wanted: wanted.to_string(),
            offered: if names.is_empty() { "none".to_owned() } else { names.join(", ") },
        })
    }

    fn remote_blob(&self, descriptor: Descriptor) -> Blob {
        let remote = RemoteBlob {
            http: self.http.clone(),
            repository: self.reference.repository().into(),
            descriptor: descriptor.clone(),
            runtime: Handle::current(),
        };
        Blob::new(descriptor, remote)
    }
}

/// What the manifest says that it is; the header where it does not, as old ones.
fn media_type(answer: &Answer, bytes: &[u8]) -> MediaType {
    #[derive(serde::Deserialize)]
    struct Typed {
        #[serde(rename = "mediaType")]
        media_type: Option<String>,
    }
    let own = serde_json::from_slice::<Typed>(bytes).ok().and_then(|typed| typed.media_type);
    let header = || answer.text(header::CONTENT_TYPE).and_then(|value| value.split(';').next());
    let name = own.as_deref().or_else(header).unwrap_or_default().trim();
    if name.is_empty() { MediaType::ImageManifest } else { MediaType::from(name) }
}

fn is_index(media_type: &MediaType) -> bool {
    *media_type == MediaType::ImageIndex || media_type.as_ref() == DOCKER_INDEX
}

/// A blob that lies in a registry.
struct RemoteBlob {
    http: Arc<Http>,
    repository: Arc<str>,
    descriptor: Descriptor,
    runtime: Handle,
}

impl fmt::Debug for RemoteBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RemoteBlob({}/{}@{})", self.http.registry, self.repository, self.descriptor.digest())
    }
}

impl BlobSource for RemoteBlob {
    fn open_at(&self, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        let (sender, receiver) = mpsc::channel(AHEAD);
        let digest = self.descriptor.digest().clone();
        let url = address::resolve(&self.http.base, &format!("/v2/{}/blobs/{digest}", self.repository));
        let download = Download {
            http: self.http.clone(),
            call: Call::new(Method::GET, url.map_err(io::Error::other)?),
            offset,
            size: self.descriptor.size(),
            sender,
        };
        self.runtime.spawn(download.run());
        // Only a whole blob has a digest.
        let hasher = (offset == 0 && *digest.algorithm() == DigestAlgorithm::Sha256).then(Sha256::new);
        Ok(Box::new(Reader { receiver, piece: Bytes::new(), hasher, digest }))
    }
}

struct Download {
    http: Arc<Http>,
    call: Call,
    offset: u64,
    size: u64,
    sender: mpsc::Sender<Result<Bytes, Error>>,
}

impl Download {
    async fn run(mut self) {
        let mut retries = self.http.retries();
        while self.offset < self.size {
            let before = self.offset;
            let Err(failure) = self.fetch().await else { return };
            if self.offset > before {
                retries.progressed();
            }
            let again =
                retries.wait(failure, &self.call.url, &|cause, _| tracing::warn!(cause, "fetching again")).await;
            if let Err(error) = again {
                let _ = self.sender.send(Err(error)).await;
                return;
            }
        }
    }

    /// Fetches from where it is to the end. `Ok` when all is there, or nobody wants it any more.
    async fn fetch(&mut self) -> Result<(), Failure> {
        let mut call = self.call.clone();
        if self.offset > 0 {
            call = call.header(header::RANGE, &format!("bytes={}-", self.offset));
        }
        let mut answer = self.http.attempt(&call, &|_| {}).await.outcome?;
        let protocol = |answer: &Answer, what: String| {
            Failure::Fatal(Error::Protocol { url: answer.url.origin().ascii_serialization(), what })
        };
        let mut skip = match answer.status.as_u16() {
            // All of it, asked for or not.
            200 => self.offset,
            206 => {
                let range = answer.text(header::CONTENT_RANGE).unwrap_or_default().to_owned();
                if !range.starts_with(&format!("bytes {}-", self.offset)) {
                    return Err(protocol(&answer, format!("asked for byte {} and on, answers {range:?}", self.offset)));
                }
                0
            }
            // A signed address of the storage behind the registry may have ended; the registry gives another.
            401 | 403 | 404 | 410 if !self.http.is_here(&answer.url) => {
                return Err(Failure::transient(format!("status {} from the registry's storage", answer.status)));
            }
            _ => return Err(self.http.refuse(&mut answer, &format!("give {}", self.call.url.path())).await.into()),
        };
        while let Some(mut piece) = answer.piece().await? {
            let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(piece.len());
            piece.advance(skipped);
            skip -= skipped as u64;
            if piece.is_empty() {
                continue;
            }
            if piece.len() as u64 > self.size - self.offset {
                return Err(protocol(&answer, format!("gives more than the {} bytes of the blob", self.size)));
            }
            self.offset += piece.len() as u64;
            if self.sender.send(Ok(piece)).await.is_err() {
                return Ok(());
            }
        }
        if self.offset < self.size {
            return Err(Failure::transient(format!("the answer ended at byte {} of {}", self.offset, self.size)));
        }
        Ok(())
    }
}

/// Reads what a download brings, and compares its digest at the end.
struct Reader {
    receiver: mpsc::Receiver<Result<Bytes, Error>>,
    piece: Bytes,
    hasher: Option<Sha256>,
    digest: Digest,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while self.piece.is_empty() {
            match self.receiver.blocking_recv() {
                Some(Ok(piece)) => {
                    if let Some(hasher) = &mut self.hasher {
                        hasher.update(&piece);
                    }
                    self.piece = piece;
                }
                Some(Err(error)) => return Err(io::Error::other(error)),
                None => return self.finish(),
            }
        }
        let count = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

impl Reader {
    fn finish(&mut self) -> io::Result<usize> {
        let Some(hasher) = self.hasher.take() else { return Ok(0) };
        let found = Digest::from(finish(hasher));
        if found == self.digest {
            return Ok(0);
        }
        let (expected, found) = (self.digest.to_string(), found.to_string());
        Err(io::Error::other(Error::DigestDiffers { what: "the blob that came".to_owned(), expected, found }))
    }
}
