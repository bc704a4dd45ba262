//! What a registry was seen to do during uploads, which all further uploads of the push respect.

use super::{
    Error,
    refusal::Refusal,
    upload::{Session, Step, Upload},
};

/// The part of the usual chunk that chunks are not made smaller than while they fail: requests would cost more than what
/// is sent again.
const SMALLEST_PART: u64 = 64;
/// The same where larger ones are refused, so that smaller ones are the only way.
const SMALLEST_ALLOWED_PART: u64 = 1024;

/// How a registry wants blobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Manners {
    /// Whether blobs go in chunks; cleared when chunks are refused.
    pub(super) chunked: bool,
    /// Whether they were refused by a status that may have been about their size.
    pub(super) size_in_doubt: bool,
    /// Whether a blob in one piece was refused too: then it has to be smaller chunks.
    pub(super) whole_refused: bool,
    /// Whether the last chunk goes with the `PUT` that ends an upload; cleared when its content is refused or passed over.
    pub(super) last_with_put: bool,
    /// Whether such content was seen to arrive.
    pub(super) put_proven: bool,
    /// Most content that a request may have.
    pub(super) largest: u64,
}

impl Manners {
    /// Nothing is known yet; chunks have this size.
    pub(super) fn new(chunk: u64) -> Self {
        Self {
            chunked: true,
            size_in_doubt: false,
            whole_refused: false,
            last_with_put: true,
            put_proven: false,
            largest: chunk,
        }
    }
}

impl Upload<'_> {
    /// Makes chunks smaller that fail, as far as that makes sense.
    pub(super) fn smaller(&self, session: &mut Session) {
        if session.chunk != u64::MAX {
            let smallest = (self.uploads.chunk / SMALLEST_PART).max(session.least).max(1);
            session.chunk = (session.chunk / 2).max(smallest).min(session.chunk);
        }
    }

    /// A request with `length` bytes has too many: from now on all have fewer.
    pub(super) async fn too_large(&self, session: &mut Session, length: u64, refusal: Refusal) -> Result<Step, Error> {
        let manners = self.uploads.manners();
        let smallest = (self.uploads.chunk / SMALLEST_ALLOWED_PART).max(session.least).max(1);
        let fewer = (length / 2).min(manners.largest).max(smallest);
        let whole = session.chunk == u64::MAX;
        if fewer >= length || whole && !manners.size_in_doubt {
            return Err(self.refused(refusal));
        }
        self.uploads.learn(|manners| {
            manners.largest = manners.largest.min(fewer);
            // Neither in one piece nor, before, in chunks as large as they were.
            manners.chunked = true;
            manners.whole_refused |= whole;
        });
        if whole {
            self.cancel(session).await;
            *session = self.reopen(session).await?;
        }
        session.chunk = fewer.max(session.least);
        Ok(Step::TryOtherwise)
    }

    /// The registry takes no chunks: sends this blob and all others whole. Where that was refused before, chunks are too
    /// large.
    pub(super) async fn in_one_piece(
        &self,
        session: &mut Session,
        length: u64,
        refusal: Refusal,
        size_in_doubt: bool,
    ) -> Result<Step, Error> {
        if self.uploads.manners().whole_refused {
            return self.too_large(session, length, refusal).await;
        }
        self.uploads.learn(|manners| {
            manners.chunked = false;
            manners.size_in_doubt |= size_in_doubt;
        });
        self.cancel(session).await;
        *session = self.reopen(session).await?;
        Ok(Step::TryOtherwise)
    }

    /// The content of the request that ended the upload may have been passed over: it is tried again without.
    pub(super) fn passed_over(&self, cause: String) -> Step {
        self.uploads.learn(|manners| manners.last_with_put = false);
        Step::Lost(cause)
    }
}
