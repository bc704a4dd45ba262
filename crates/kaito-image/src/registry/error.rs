use std::{io, path::PathBuf};

/// Why a registry could not be spoken to, or would not do what was asked. Every message names what it is about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was given is not the name of an image.
    #[error("{text:?} is not the name of an image: {cause}")]
    Reference {
        /// What was given.
        text: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The registry did not answer, or failed, however often it was asked.
    #[error("{url}: {cause}; gave up after {attempts} attempts in a row without progress")]
    Unreachable {
        /// What was asked.
        url: String,
        /// How often.
        attempts: u32,
        /// What happened the last time.
        cause: String,
    },
    /// The registry wants credentials and there are none, or refuses those that there are.
    #[error("{registry} {cause}")]
    Unauthorized {
        /// The registry, or the service that gives tokens for it.
        registry: String,
        /// Which credentials were tried, and what can be done.
        cause: String,
    },
    /// The registry refused.
    #[error("{registry} refused to {action}: {status}{message}{hint}")]
    Refused {
        /// The registry.
        registry: String,
        /// What was asked of it.
        action: String,
        /// The status of its answer.
        status: u16,
        /// What it said, after a colon; empty if it said nothing.
        message: String,
        /// What can be done, after a semicolon; empty if nothing is known.
        hint: &'static str,
    },
    /// The registry has no such image, or does not show it to this user.
    #[error("{registry} has no image {reference}, or does not show it {to}")]
    NotFound {
        /// The registry.
        registry: String,
        /// The image.
        reference: String,
        /// To whom.
        to: String,
    },
    /// The tag exists, and it was asked not to move it.
    #[error(
        "{reference} exists already, as {existing}; nothing was sent. Choose another tag, or allow it to be overwritten"
    )]
    TagExists {
        /// The image.
        reference: String,
        /// What the tag names.
        existing: String,
    },
    /// The registry does not let the tag be moved.
    #[error(
        "{reference} exists already, as {existing}, and the registry does not let it be replaced: {status}{message}. \
         The tag is as it was; choose another one"
    )]
    TagImmutable {
        /// The image.
        reference: String,
        /// What the tag names.
        existing: String,
        /// The status of the registry's answer.
        status: u16,
        /// What it said, after a colon.
        message: String,
    },
    /// Bytes are not those that were asked for or sent.
    #[error("{what} should be {expected} and is {found}")]
    DigestDiffers {
        /// Which bytes.
        what: String,
        /// The digest that they should have.
        expected: String,
        /// The one that they have.
        found: String,
    },
    /// The registry computed another digest of what it received.
    #[error(
        "{registry} received other bytes than {digest}: the file changed since it was hashed, or something between \
         here and there alters data"
    )]
    BlobDamaged {
        /// The registry.
        registry: String,
        /// What they should have been.
        digest: String,
    },
    /// The bytes to be sent can't be read.
    #[error("cannot read blob {digest}: {source}")]
    Source {
        /// The blob.
        digest: String,
        /// What the system said.
        source: io::Error,
    },
    /// A file with credentials is damaged, or a helper failed.
    #[error("cannot read credentials from {from}: {cause}")]
    Credentials {
        /// The file or the program.
        from: String,
        /// Why not.
        cause: String,
    },
    /// A certificate authority can't be used.
    #[error("cannot use the certificates of {}: {cause}", path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// Why not.
        cause: String,
    },
    /// There can be no encrypted connection, whatever the registry.
    #[error(transparent)]
    NoTls(#[from] kaito_net::Error),
    /// The registry can't be trusted, or speaks no TLS.
    #[error("{url}: {cause}; {hint}")]
    Tls {
        /// What was asked.
        url: String,
        /// What is wrong.
        cause: String,
        /// What can be done.
        hint: &'static str,
    },
    /// None of an index's images is for the platform that was asked for.
    #[error("{reference} has no image for {wanted}; it has {offered}")]
    NoSuchPlatform {
        /// The image.
        reference: String,
        /// What was asked for.
        wanted: String,
        /// What there is.
        offered: String,
    },
    /// The answer is none that the specification knows.
    #[error("{url}: {what}")]
    Protocol {
        /// What was asked.
        url: String,
        /// What is wrong with the answer.
        what: String,
    },
}
