//! Servers of the null model, for tests to which it does not matter which tokens come: its passes wait where they are told to,
//! so that these tests need no work that takes long.

use kaito_engine::testing::NullModel;
use kaito_server::ServerOptions;
use kaito_testing::{files::letters, server::TestServer, wait::eventually};
use reqwest::Response;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// A request that was sent.
pub type Sent = JoinHandle<reqwest::Result<Response>>;

/// Requests that its queue takes.
pub const WAITING: usize = 100;

/// A server of a null model that runs so many sequences at a time, and the model's faults.
pub async fn serve(sequences: usize, options: ServerOptions) -> (TestServer, NullModel) {
    let null = NullModel::start(&letters(), 400, sequences).expect("the null model starts");
    (TestServer::with(null.model.clone(), options).await, null)
}

/// A request for so many tokens.
pub fn tokens(count: usize) -> Value {
    json!({ "prompt": "Hello", "do_sample": false, "max_new_tokens": count, "min_new_tokens": count })
}

/// The same, answered in pieces.
pub fn stream(count: usize) -> Value {
    let mut request = tokens(count);
    request["stream"] = true.into();
    request
}

/// Sends a request for two tokens, whose first pass waits, and then `second`, which stays in the queue of a server that runs
/// one sequence.
pub async fn one_runs_and_one_waits(server: &TestServer, null: &NullModel, second: &Value) -> [Sent; 2] {
    null.device.allow(0);
    let runs = tokio::spawn(server.request("/chat", &tokens(2)).send());
    null.device.waits().await;
    let waits = tokio::spawn(server.request("/chat", second).send());
    eventually("it waits", async || server.model.stats().waiting == 1).await;
    [runs, waits]
}

/// The sentence of an answer that is an error.
pub async fn detail(answer: Response) -> String {
    let body: Value = answer.json().await.expect("JSON");
    body["detail"].as_str().expect("a sentence").to_owned()
}
