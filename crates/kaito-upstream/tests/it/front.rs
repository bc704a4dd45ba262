//! Servers in front of the tests' own engine.

use std::{fs, time::Duration};

use kaito_engine::{LanguageModel, testing::NullModel};
use kaito_server::ServerOptions;
use kaito_testing::{
    files::{copy_of, letters},
    server::{TestServer, options},
    upstream::FakeUpstream,
    wait::eventually,
};
use kaito_upstream::{Upstream, UpstreamOptions};
use reqwest::Response;
use serde_json::{Value, json};
use tempfile::TempDir;

pub const COMPLETIONS: &str = "/v1/completions";

/// A server and the engine behind it.
pub struct Front {
    pub server: TestServer<Upstream>,
    pub engine: FakeUpstream,
    _files: TempDir,
}

/// The null model's tokenizer with a configuration beside it, and no weights.
pub fn model_files() -> TempDir {
    let files = copy_of(&letters());
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 64, "hidden_size": 64,
        "intermediate_size": 112, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": false,
    });
    fs::write(files.path().join("config.json"), config.to_string()).unwrap();
    files
}

/// How the engine at `url` is used: patiently.
pub fn patient(url: String) -> UpstreamOptions {
    UpstreamOptions {
        url,
        api_key: None,
        model: None,
        wait: Duration::from_secs(60),
        supervisor: None,
        chat_template: None,
        max_seq_len: None,
        max_batch_size: 8,
        max_waiting: 100,
    }
}

impl Front {
    pub async fn start() -> Self {
        Self::with(options(), |upstream| upstream).await
    }

    pub async fn with(options: ServerOptions, change: impl FnOnce(UpstreamOptions) -> UpstreamOptions) -> Self {
        let (engine, files) = (FakeUpstream::start().await, model_files());
        let upstream = change(patient(engine.url()));
        let model = Upstream::connect(files.path(), upstream, |_| {}).await.expect("the engine answers");
        Self { server: TestServer::with(model, options).await, engine, _files: files }
    }
}

/// A server of the null model itself, whose function the engine has too.
pub async fn own() -> TestServer<LanguageModel> {
    let null = NullModel::start(&letters(), 400, 8).expect("the null model starts");
    TestServer::with(null.model, options()).await
}

/// A greedy completion of so many tokens.
pub fn tokens(count: usize) -> Value {
    json!({ "prompt": "Hello", "temperature": 0, "max_tokens": count, "ignore_eos": true })
}

pub fn with(mut body: Value, more: Value) -> Value {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// The status of an answer and what its error says.
pub async fn error(answer: Response) -> (u16, String) {
    let status = answer.status().as_u16();
    let body: Value = answer.json().await.expect("JSON");
    let said = body["error"]["message"].as_str().or(body["detail"].as_str()).expect("a sentence");
    (status, said.to_owned())
}

/// Waits for a health of this status, and for a cause that has these words where it is none.
pub async fn becomes(front: &Front, status: u16, said: &str) {
    eventually(said, async || {
        let answer = front.server.get("/healthz").await;
        match answer.status().as_u16() {
            200 => status == 200,
            other => error(answer).await.1.contains(said) && other == status,
        }
    })
    .await;
}
