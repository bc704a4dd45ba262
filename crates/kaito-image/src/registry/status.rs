//! Asks after a break how much of an upload the registry has. Some registries do not say, and some give outdated answers.

use http::{Method, header};

use super::{
    Error,
    address::resolve,
    range::Received,
    retry::{Failure, Retries},
    upload::{Session, Upload},
    wire::Call,
};

/// How often it is asked again for a status that fails, before it is done without.
const ATTEMPTS: u32 = 2;

impl Upload<'_> {
    /// Asks how much of the upload the registry has; `before` is what it had before the attempt that broke. Begins another
    /// if it has forgotten it. Returns true if, by then, the whole blob is there.
    pub(super) async fn find_out(
        &self,
        session: &mut Session,
        retries: &mut Retries,
        before: u64,
    ) -> Result<bool, Error> {
        let mut refused = 0;
        let mut answer = loop {
            let call = Call::new(Method::GET, session.location.clone());
            match self.http().attempt(&call, &|_| {}).await.outcome {
                Ok(answer) => break answer,
                Err(Failure::Fatal(error)) => {
                    tracing::debug!(%error, "no status of the upload");
                    self.go_on_without_status(session).await?;
                    return Ok(false);
                }
                Err(failure) => {
                    refused += u32::from(matches!(failure, Failure::Transient { answered: true, .. }));
                    if refused >= ATTEMPTS {
                        self.go_on_without_status(session).await?;
                        return Ok(false);
                    }
                    retries.wait(failure, &session.location, self.notify).await?;
                }
            }
        };
        if !answer.status.is_success() {
            if self.exists().await? {
                return Ok(true);
            }
            let refusal = answer.refusal().await;
            tracing::debug!(status = refusal.status, digest = %self.blob.digest(), "no status of the upload");
            if refusal.is_unknown_upload() || refusal.status == 410 {
                *session = Session { chunk: session.chunk, ..self.reopen(session).await? };
            } else {
                self.go_on_without_status(session).await?;
            }
            return Ok(false);
        }
        match answer.text(header::RANGE).and_then(Received::parse) {
            Some(Received::Bytes(bytes)) if bytes > self.blob.size() => {
                self.cancel(session).await;
                *session = self.reopen(session).await?;
                return Ok(false);
            }
            // Less than it has confirmed before: it may not count on. If it has lost that it refuses the next chunk, and
            // then this is what there is.
            Some(Received::Bytes(bytes)) if bytes < session.offset && !session.out_of_step => {}
            Some(Received::Bytes(bytes)) => session.offset = bytes,
            // Some registries never say how much they have; where this upload was is all that is known.
            Some(Received::NoneOrOne) | None if session.offset > 1 => {
                self.go_on_without_status(session).await?;
                return Ok(false);
            }
            Some(Received::NoneOrOne) if session.offset == 1 || self.blob.size() == 1 => {
                self.cancel(session).await;
                *session = self.reopen(session).await?;
                return Ok(false);
            }
            Some(Received::NoneOrOne) | None => session.offset = 0,
        }
        if let Some(location) = answer.text(header::LOCATION).filter(|location| !location.is_empty()) {
            session.location = resolve(&answer.url, location)?;
        }
        if session.offset <= before && session.broke {
            // Nothing of the chunk was kept: something may end requests that are too long or too large.
            self.smaller(session);
        }
        Ok(false)
    }

    /// What was confirmed is there; of what broke the registry keeps nothing, it is to be hoped. It begins anew where that
    /// can't be: where nothing was confirmed, where it was wrong before, or where the registry said that it is.
    async fn go_on_without_status(&self, session: &mut Session) -> Result<(), Error> {
        if session.offset == 0 || session.out_of_step || session.damaged {
            self.cancel(session).await;
            *session = Session { chunk: session.chunk, ..self.reopen(session).await? };
        }
        self.smaller(session);
        Ok(())
    }
}
