//! Blobs: the pieces of an image, each named by its digest, wherever their bytes are.
//!
//! A layer of weights is as large as its file, so no layer is held in memory: a [`Blob`] can read its bytes again, from any
//! offset on, which is also what resuming a broken upload needs.

use std::{
    fmt,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::PathBuf,
    sync::Arc,
};

use oci_spec::image::{Descriptor, Digest, MediaType, Sha256Digest};
use sha2::{Digest as _, Sha256};

use crate::Error;

/// Bytes that can be read again, from any place on.
pub trait BlobSource: fmt::Debug + Send + Sync {
    /// Reads from byte `offset` to the end. What is read is the same each time.
    ///
    /// # Errors
    /// When the bytes are gone, or are no longer those that were hashed.
    fn open_at(&self, offset: u64) -> io::Result<Box<dyn Read + Send>>;
}

/// A piece of an image: what it is, and where its bytes are. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Blob {
    descriptor: Descriptor,
    source: Arc<dyn BlobSource>,
}

impl Blob {
    /// A blob of which digest and size are known.
    pub fn new(descriptor: Descriptor, source: impl BlobSource + 'static) -> Self {
        Self { descriptor, source: Arc::new(source) }
    }

    /// A small blob that is held in memory.
    pub fn from_bytes(media_type: MediaType, bytes: impl Into<Vec<u8>>) -> Self {
        let bytes: Arc<[u8]> = bytes.into().into();
        let descriptor = Descriptor::new(media_type, bytes.len() as u64, sha256(&bytes));
        Self { descriptor, source: Arc::new(InMemory(bytes)) }
    }

    /// Media type, digest and size, with annotations where it has any.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// `sha256:...`
    pub fn digest(&self) -> &Digest {
        self.descriptor.digest()
    }

    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.descriptor.size()
    }

    /// What the bytes are.
    pub fn media_type(&self) -> &MediaType {
        self.descriptor.media_type()
    }

    /// Reads from byte `offset` to the end.
    ///
    /// # Errors
    /// When the bytes are gone, or are no longer those that were hashed.
    pub fn open_at(&self, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        self.source.open_at(offset)
    }

    /// All bytes of a small blob, compared with its size and digest.
    ///
    /// # Errors
    /// When it is larger than `limit`, can't be read, or is not what its descriptor says.
    pub fn bytes(&self, limit: u64) -> Result<Vec<u8>, Error> {
        let digest = self.digest().to_string();
        if self.size() > limit {
            return Err(Error::BlobTooLarge { digest, size: self.size(), limit });
        }
        let read = |source| Error::ReadBlob { digest: digest.clone(), source };
        let mut bytes = Vec::new();
        // One byte more than there should be, so that a longer source is noticed.
        self.open_at(0).and_then(|reader| reader.take(self.size() + 1).read_to_end(&mut bytes)).map_err(read)?;
        let found = Digest::from(sha256(&bytes));
        if bytes.len() as u64 != self.size() || found != *self.digest() {
            return Err(Error::BlobDiffers { digest, found: found.to_string(), size: bytes.len() as u64 });
        }
        Ok(bytes)
    }
}

/// An image that is ready to be written or sent: a manifest, and the blobs that it lists.
#[derive(Debug, Clone)]
pub struct Image {
    /// The manifest's own bytes; its digest is the image's.
    pub manifest: Blob,
    /// The configuration that the manifest names.
    pub config: Blob,
    /// The layers, lowest first, as the manifest lists them.
    pub layers: Vec<Blob>,
}

impl Image {
    /// The digest by which a registry knows this image.
    pub fn digest(&self) -> &Digest {
        self.manifest.digest()
    }

    /// What must be in a registry before the manifest: layers and configuration.
    pub fn blobs(&self) -> impl Iterator<Item = &Blob> {
        self.layers.iter().chain([&self.config])
    }

    /// Bytes of all its blobs together.
    pub fn size(&self) -> u64 {
        self.blobs().map(Blob::size).sum()
    }
}

/// Part of a file: a blob of a layout, in a directory or within an archive.
#[derive(Debug, Clone)]
pub struct FileRange {
    /// The file.
    pub path: PathBuf,
    /// Where in the file the blob begins.
    pub start: u64,
    /// Its length.
    pub len: u64,
}

impl BlobSource for FileRange {
    fn open_at(&self, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", self.path.display()));
        let mut file = File::open(&self.path).map_err(named)?;
        file.seek(SeekFrom::Start(self.start.saturating_add(offset))).map_err(named)?;
        Ok(Box::new(file.take(self.len.saturating_sub(offset))))
    }
}

#[derive(Clone)]
struct InMemory(Arc<[u8]>);

impl fmt::Debug for InMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InMemory({} bytes)", self.0.len())
    }
}

impl BlobSource for InMemory {
    fn open_at(&self, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        let mut reader = io::Cursor::new(self.0.clone());
        reader.set_position(offset);
        Ok(Box::new(reader))
    }
}

/// The digest of bytes in memory.
pub(crate) fn sha256(bytes: &[u8]) -> Sha256Digest {
    finish(Sha256::new_with_prefix(bytes))
}

/// The digest of what `hasher` has seen.
pub(crate) fn finish(hasher: Sha256) -> Sha256Digest {
    use std::fmt::Write;
    let mut hex = String::with_capacity(64);
    for byte in hasher.finalize() {
        let _ = write!(hex, "{byte:02x}");
    }
    #[expect(clippy::expect_used, reason = "32 bytes in hexadecimal are what the type asks for")]
    hex.parse().expect("64 hexadecimal digits")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From FIPS 180-2, appendix B.1.
    const ABC: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_blob_reads_from_any_place_and_as_often_as_asked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "--abc--").unwrap();
        let in_memory = Blob::from_bytes(MediaType::ImageConfig, "abc");
        let in_file = Blob::new(in_memory.descriptor().clone(), FileRange { path, start: 2, len: 3 });
        for blob in [in_memory, in_file] {
            assert_eq!((blob.digest().to_string().as_str(), blob.size()), (ABC, 3));
            for (offset, rest) in [(0, "abc"), (2, "c"), (3, ""), (9, ""), (0, "abc")] {
                assert_eq!(io::read_to_string(blob.open_at(offset).unwrap()).unwrap(), rest, "{offset}");
            }
            assert_eq!(blob.bytes(3).unwrap(), b"abc");
            assert!(matches!(blob.bytes(2), Err(Error::BlobTooLarge { size: 3, limit: 2, .. })));
        }
    }

    #[test]
    fn bytes_that_are_not_the_descriptors_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let right = Blob::from_bytes(MediaType::ImageConfig, "abc");
        for (content, len) in [("abd", 3), ("ab", 3), ("abcd", 4)] {
            std::fs::write(&path, content).unwrap();
            let blob = Blob::new(right.descriptor().clone(), FileRange { path: path.clone(), start: 0, len });
            let error = blob.bytes(100).unwrap_err();
            assert!(matches!(error, Error::BlobDiffers { .. }), "{content}: {error}");
        }
        std::fs::remove_file(&path).unwrap();
        let gone = Blob::new(right.descriptor().clone(), FileRange { path: path.clone(), start: 0, len: 3 });
        let error = gone.bytes(100).unwrap_err();
        assert!(error.to_string().contains(ABC), "{error}");
        assert!(std::error::Error::source(&error).unwrap().to_string().contains(path.to_str().unwrap()), "{error:?}");
    }
}
