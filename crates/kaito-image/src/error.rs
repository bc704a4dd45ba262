use std::io;

/// Why an image can't be built, read or sent. Every message names what it is about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A blob that should be small is not.
    #[error("blob {digest} has {size} bytes; such blobs are read up to {limit} bytes")]
    BlobTooLarge {
        /// The blob.
        digest: String,
        /// Its size.
        size: u64,
        /// The largest that is read.
        limit: u64,
    },
    /// A blob could not be read.
    #[error("cannot read blob {digest}")]
    ReadBlob {
        /// The blob.
        digest: String,
        /// What the system said.
        source: io::Error,
    },
    /// A blob's bytes are not those that its descriptor promises.
    #[error("blob {digest} is damaged: its {size} bytes have the digest {found}")]
    BlobDiffers {
        /// What it should be.
        digest: String,
        /// What it is.
        found: String,
        /// Its size.
        size: u64,
    },
}
