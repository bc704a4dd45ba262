//! What went wrong with one attempt, and whether there is to be another.

use std::time::Duration;

use kaito_engine::Error;
use serde_json::Value;
use tokio::time::Instant;

/// How long the first pause before another attempt is; each further one is twice as long, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// So often the engine may fail on a request that it had taken, without a token in between: perhaps it is this request that kills it,
/// and it is not to do so again and again.
const MOST_LOSSES: u32 = 3;
/// Failures closer to each other than this count as one: an engine that dies answers with errors for as long as it takes to end it.
const APART: Duration = Duration::from_secs(10);

/// Why an attempt came to no end.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Another attempt would come to the same.
    Final(Error),
    /// The engine is away, or fails: it may be there again later.
    Lost {
        /// Why, in words.
        cause: String,
        /// Whether it had taken the request.
        taken: bool,
    },
}

impl Failure {
    /// The engine does what no engine of its kind does.
    pub(crate) fn fault(engine: &str, fault: impl Into<String>) -> Self {
        Self::Final(Error::Upstream { engine: engine.to_owned(), fault: fault.into() })
    }

    /// The engine had taken the request and fails.
    pub(crate) fn lost(cause: impl Into<String>) -> Self {
        Self::Lost { cause: cause.into(), taken: true }
    }

    /// What a failed exchange means.
    pub(crate) fn of(engine: &str, failure: kaito_client::Failure) -> Self {
        use kaito_client::Failure as Http;
        match failure {
            Http::Connect(_) => Self::Lost { cause: failure.to_string(), taken: false },
            Http::Broken(_) | Http::Cut(_) | Http::InStream(_) => Self::lost(failure.to_string()),
            Http::Status { status, message } => Self::of_status(engine, status, &message),
            Http::NotAStream(what) => Self::fault(engine, format!("answers with no stream of events: {what}")),
        }
    }

    /// What an error within a stream means, which has the status that it would have had before.
    pub(crate) fn in_stream(engine: &str, error: &Value) -> Self {
        let message = kaito_client::message(error);
        let code = error.get("code").and_then(Value::as_u64).and_then(|code| u16::try_from(code).ok());
        match code.filter(|code| (400..500).contains(code)) {
            Some(status) => Self::of_status(engine, status, &message),
            None => Self::lost(format!("error within the stream: {message}")),
        }
    }

    fn of_status(engine: &str, status: u16, message: &str) -> Self {
        match status {
            // The request's own fault, told in the engine's words.
            400 | 413 | 422 => {
                Self::Final(Error::InvalidRequest(format!("the engine at {engine} refuses the request: {message}")))
            }
            401 | 403 => Self::fault(
                engine,
                format!("refuses this server (status {status}: {message}); --upstream-api-key sets a key"),
            ),
            408 | 429 | 502..=504 => Self::Lost { cause: format!("status {status}: {message}"), taken: false },
            500.. => Self::lost(format!("status {status}: {message}")),
            _ => Self::fault(engine, format!("answers with status {status}: {message}")),
        }
    }
}

/// How long a request waits for its engine.
#[derive(Debug)]
pub(crate) struct Patience {
    engine: String,
    limit: Duration,
    since: Option<Instant>,
    losses: u32,
    /// When a loss was counted last.
    lost: Option<Instant>,
    pause: Duration,
}

impl Patience {
    /// That of a request which may wait so long for the engine at `engine`.
    pub(crate) fn new(engine: &str, limit: Duration) -> Self {
        Self { engine: engine.to_owned(), limit, since: None, losses: 0, lost: None, pause: FIRST_PAUSE }
    }

    /// There was progress: what failed before is forgotten.
    pub(crate) fn renew(&mut self) {
        (self.since, self.losses, self.lost, self.pause) = (None, 0, None, FIRST_PAUSE);
    }

    /// Returns when there is to be another attempt.
    ///
    /// # Errors
    /// No other attempt: the failure is final, the time is over, or the engine failed too often.
    pub(crate) async fn after(&mut self, failure: Failure) -> Result<(), Error> {
        let (cause, taken) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Lost { cause, taken } => (cause, taken),
        };
        let now = Instant::now();
        let waited = now - *self.since.get_or_insert(now);
        if taken && self.lost.is_none_or(|lost| now - lost >= APART) {
            self.losses += 1;
            self.lost = Some(now);
        }
        tracing::debug!(engine = self.engine, cause, waited_ms = waited.as_millis(), "a request lost its engine");
        if self.losses >= MOST_LOSSES {
            let fault = format!("failed on this request {MOST_LOSSES} times without a token in between: {cause}");
            return Err(Error::Upstream { engine: self.engine.clone(), fault });
        }
        let left = self.limit.saturating_sub(waited);
        if left.is_zero() {
            return Err(Error::UpstreamAway { engine: self.engine.clone(), cause, waited });
        }
        tokio::time::sleep(self.pause.min(left)).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use kaito_client::Failure as Http;
    use kaito_engine::ErrorKind;
    use serde_json::json;

    use super::*;

    const ENGINE: &str = "http://engine:8000";

    #[test]
    fn a_failure_is_the_requests_own_the_engines_or_passes() {
        let status = |status| Http::Status { status, message: "why".to_owned() };
        for (failure, expected) in [
            (status(400), Some(ErrorKind::InvalidRequest)),
            (status(413), Some(ErrorKind::InvalidRequest)),
            (status(422), Some(ErrorKind::InvalidRequest)),
            (status(401), Some(ErrorKind::Upstream)),
            (status(404), Some(ErrorKind::Upstream)),
            (status(302), Some(ErrorKind::Upstream)),
            (status(429), None),
            (status(500), None),
            (status(503), None),
            (Http::Connect("refused".to_owned()), None),
            (Http::Broken("reset".to_owned()), None),
            (Http::Cut(String::new()), None),
            (Http::NotAStream("the answer is text/html".to_owned()), Some(ErrorKind::Upstream)),
        ] {
            let shown = failure.to_string();
            match (Failure::of(ENGINE, failure), expected) {
                (Failure::Final(error), Some(kind)) => {
                    assert_eq!(error.kind(), kind, "{shown}");
                    assert!(error.to_string().starts_with("the engine at http://engine:8000 "), "{error}");
                }
                (Failure::Lost { .. }, None) => {}
                (failure, _) => panic!("{shown}: {failure:?}"),
            }
        }
        let in_stream = Failure::in_stream(ENGINE, &json!({ "message": "too long", "code": 400 }));
        assert!(matches!(in_stream, Failure::Final(Error::InvalidRequest(_))), "{in_stream:?}");
        for error in [json!({ "message": "dead", "code": 500 }), json!("dead"), json!({ "code": -1 }), json!(null)] {
            assert!(matches!(Failure::in_stream(ENGINE, &error), Failure::Lost { taken: true, .. }), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn patience_ends_with_the_time_and_with_requests_that_kill_engines() {
        let refused = || Failure::Lost { cause: "refused".to_owned(), taken: false };
        let mut patience = Patience::new(ENGINE, Duration::from_secs(10));
        let began = Instant::now();
        let error = loop {
            if let Err(error) = patience.after(refused()).await {
                break error;
            }
        };
        assert_eq!(began.elapsed().as_secs(), 10);
        assert_eq!(error.to_string(), "the engine at http://engine:8000 is away since 10 s: refused; try again later");

        let mut patience = Patience::new(ENGINE, Duration::from_secs(60));
        patience.after(Failure::lost("reset")).await.unwrap();
        patience.renew();
        let began = Instant::now();
        let error = loop {
            if let Err(error) = patience.after(Failure::lost("reset")).await {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::Upstream);
        // The first of three, and two of those that came at least ten seconds after the one before.
        assert_eq!(began.elapsed().as_secs() / 2, 10);

        let mut impatient = Patience::new(ENGINE, Duration::ZERO);
        assert_eq!(impatient.after(refused()).await.unwrap_err().kind(), ErrorKind::UpstreamAway);
    }
}
