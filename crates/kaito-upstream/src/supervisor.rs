//! What the supervisor of the engine's rank 0 knows of it.

use std::time::Duration;

use kaito_client::Http;
use serde::Deserialize;
use serde_json::json;
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
        Self { http, url: url.trim_end_matches('/').to_owned() }
    }

    /// What it has to say, in sentences; `None` where all is well. That it says nothing is worth a sentence, too.
    pub(crate) async fn cause(&self) -> Option<String> {
        let url = format!("{}/ranks", self.url);
        let failed = match time::timeout(ANSWER, self.http.get(&url)).await {
            Err(_) => format!("no answer within {} s", ANSWER.as_secs()),
            Ok(Err(failure)) => failure.to_string(),
            Ok(Ok(body)) => match serde_json::from_str::<Overview>(&body) {
                Ok(overview) => return overview.cause,
                Err(error) => format!("it answers what no supervisor does: {error}"),
            },
        };
        Some(format!("Its supervisor at {url} says nothing: {failed}."))
    }

    /// Has it end the engines of all ranks, until a front asks for tokens again.
    pub(crate) async fn shut_down(&self) {
        let url = format!("{}/shutdown", self.url);
        let answer = async { Http::text(self.http.send(&url, Some(&json!({}))).await?).await };
        match time::timeout(ANSWER, answer).await {
            Ok(Ok(_)) => tracing::info!(url, "the engine ends too"),
            Ok(Err(error)) => tracing::warn!(url, %error, "the engine's supervisor does not end it"),
            Err(_) => tracing::warn!(url, seconds = ANSWER.as_secs(), "the engine's supervisor does not answer"),
        }
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
