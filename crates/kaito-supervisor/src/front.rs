//! The front, `kaito serve --upstream` in the same pod, by its health.

use std::time::Duration;

use kaito_client::{Failure, Http};
use tokio::time;

/// How long it may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// How it begins to say that the engine owes a token for too long, and that it ends itself.
const STUCK: &str = "The engine is stuck";
const DRAINS: &str = "The server is shutting down";

/// How the front is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Nobody listens where it is to.
    Gone,
    /// It does not answer in time.
    Silent,
    /// It answers requests.
    Ready,
    /// The engine owes a token for too long; what it says.
    Stuck(String),
    /// It answers its last requests.
    Drains,
    /// It can't answer for another reason: the engine loads, say; what it says.
    Unfit(String),
}

/// Asks the front at `url`.
pub(crate) async fn ask(http: &Http, url: &str) -> Health {
    let url = format!("{}/healthz", url.trim_end_matches('/'));
    match time::timeout(ANSWER, http.get(&url)).await {
        Err(_) => Health::Silent,
        Ok(Ok(_)) => Health::Ready,
        Ok(Err(Failure::Connect(_))) => Health::Gone,
        Ok(Err(Failure::Status { message, .. })) => of(&message),
        Ok(Err(_)) => Health::Silent,
    }
}

/// What a health other than 200 says. Behind the first sentence the front repeats what this supervisor knows.
fn of(message: &str) -> Health {
    let message = message.split_once(". ").map_or(message, |(first, _)| first).to_owned();
    if message.starts_with(STUCK) {
        Health::Stuck(message)
    } else if message.starts_with(DRAINS) {
        Health::Drains
    } else {
        Health::Unfit(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sentences of `kaito-server`, whose own tests know them.
    #[test]
    fn the_health_is_known_by_its_sentences() {
        let stuck = "The engine is stuck: no progress for 75 s, with 3 sequences running and 2 requests waiting.";
        assert_eq!(of(stuck), Health::Stuck(stuck.to_owned()));
        assert_eq!(
            of(&format!("{stuck} Stopped processes: 7 (a).")),
            Health::Stuck(stuck.trim_end_matches('.').to_owned())
        );
        assert_eq!(of("The server is shutting down."), Health::Drains);
        let loads = "The model is loading: the engine at http://127.0.0.1:8000 is away, or still loading";
        assert_eq!(of(loads), Health::Unfit(loads.to_owned()));
    }
}
