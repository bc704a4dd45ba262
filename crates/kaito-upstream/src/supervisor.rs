//! What the supervisor of the engine's rank 0 knows of it.

use std::time::Duration;

use kaito_client::Http;
use serde::Deserialize;
use tokio::time;

/// How long it may take to answer.
const ANSWER: Duration = Duration::from_secs(2);

/// A `kaito supervise`.
#[derive(Debug)]
pub(crate) struct Supervisor {
    http: Http,
    url: String,
}

#[derive(Deserialize)]
struct Overview {
    cause: Option<String>,
}

impl Supervisor {
    /// The one at `url`.
    pub(crate) fn new(http: Http, url: &str) -> Self {
        Self { http, url: format!("{}/ranks", url.trim_end_matches('/')) }
    }

    /// What it has to say, in sentences; `None` where all is well. That it says nothing is worth a sentence, too.
    pub(crate) async fn cause(&self) -> Option<String> {
        let url = &self.url;
        let failed = match time::timeout(ANSWER, self.http.get(url)).await {
            Err(_) => format!("no answer within {} s", ANSWER.as_secs()),
            Ok(Err(failure)) => failure.to_string(),
            Ok(Ok(body)) => match serde_json::from_str::<Overview>(&body) {
                Ok(overview) => return overview.cause,
                Err(error) => format!("it answers what no supervisor does: {error}"),
            },
        };
        Some(format!("Its supervisor at {url} says nothing: {failed}."))
    }
}

/// A sentence, and what the supervisor has to say beside it.
pub(crate) fn joined(mut sentence: String, cause: Option<&str>) -> String {
    if let Some(cause) = cause {
        if !sentence.ends_with('.') {
            sentence.push('.');
        }
        sentence.push(' ');
        sentence.push_str(cause);
    }
    sentence
}
