//! What was measured: as data, as tables, as a page.

mod page;
mod plot;
mod table;
#[cfg(test)]
pub(crate) mod tests;

use serde::Serialize;

pub use self::{page::page, table::tables};
use crate::{
    Settings, client::Api, client::TokenCounts, failure::FailureCount, limits::Limits, machine::Machine,
    statistics::Summary,
};

/// Everything that was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Name and version of this shape.
    pub schema: &'static str,
    /// Version of kaito.
    pub version: &'static str,
    /// When it began, by RFC 3339.
    pub started: String,
    /// Whether somebody ended it before its time.
    pub interrupted: bool,
    /// What was measured.
    pub target: TargetInfo,
    /// The model, where it is known.
    pub model: Option<Model>,
    /// What it ran on; another machine where the target is there.
    pub machine: Machine,
    /// What was asked for.
    pub settings: Settings,
    /// Limits of the machine, where the target runs on it and its model is known.
    pub limits: Option<Limits>,
    /// Prompts by length.
    pub prefill: Vec<PrefillRow>,
    /// Decoding by number of sequences.
    pub decode: Vec<DecodeRow>,
    /// Latencies by rate of requests.
    pub rates: Vec<RateRow>,
    /// Throughput by number of clients.
    pub clients: Vec<ClientsRow>,
    /// What a reader should know before trusting a figure.
    pub notes: Vec<String>,
}

/// The name of [`Report`]'s shape as JSON.
pub const SCHEMA: &str = "kaito-bench/1";

/// What is measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TargetInfo {
    /// `engine` or `server`.
    pub kind: TargetKind,
    /// Address of the server.
    pub url: Option<String>,
    /// API of the server.
    pub api: Api,
    /// The model's name.
    pub name: String,
    /// What prompts were made of.
    pub prompts: &'static str,
    /// Who counted their tokens.
    pub token_counts: TokenCounts,
}

/// Where the model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetKind {
    /// In this process; rates and clients go to a server in it.
    Engine,
    /// Behind a URL.
    Server,
}

/// The facts of a model from which its limits are computed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Model {
    /// Name of the family.
    pub family: String,
    /// Number of parameters.
    pub parameters: u64,
    /// Weights in the matrices of all layers, by which each token of a prompt is multiplied.
    pub layer_parameters: u64,
    /// Weights of the output head, by which the last token of a prompt is multiplied.
    pub head_parameters: u64,
    /// The precision of most weights.
    pub precision: String,
    /// What activations are held in while they are multiplied by weights: `f32`, `bf16` or `int8`.
    pub activations: String,
    /// The instructions that its kernels use; empty where that is not known.
    pub kernels: String,
    /// Bytes of the weights.
    pub weights_bytes: u64,
    /// Bytes of the weights that each step reads.
    pub step_bytes: u64,
    /// Element type of the KV cache.
    pub kv_dtype: String,
    /// Bytes of the KV cache that a token takes.
    pub kv_bytes_per_token: u64,
    /// How many tokens back a token looks, where that is bounded.
    pub attention_window: Option<usize>,
    /// Longest sequence.
    pub max_seq_len: usize,
    /// Threads that compute.
    pub threads: usize,
}

impl Model {
    /// Operations of the products with weights for a prompt of so many tokens, a multiply-add as two. Rows of the embedding are looked
    /// up, and only the last token's successor is chosen.
    pub(crate) fn prompt_operations(&self, tokens: f64) -> f64 {
        2.0 * (self.layer_parameters as f64 * tokens + self.head_parameters as f64)
    }
}

/// One length of prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
pub struct PrefillRow {
    /// Tokens that were asked for.
    pub prompt_tokens: usize,
    /// Tokens that the prompts really had: the median.
    pub measured_tokens: Option<f64>,
    /// Median of the repetitions.
    pub tokens_per_second: Option<f64>,
    /// Tokens per second of each repetition.
    pub samples: Vec<f64>,
    /// Seconds to the first token.
    pub seconds: Option<Summary>,
    /// The prompt's operations, divided by those that the machine could do in that time: by a plain product where there are tile
    /// registers, else at the peak of the unit.
    pub fraction_of_peak: Option<f64>,
    /// Share of all cores that other processes used.
    pub others: Option<f64>,
    /// What went wrong.
    pub failures: Vec<FailureCount>,
}

/// One number of sequences.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
pub struct DecodeRow {
    /// Sequences that run.
    pub batch_size: usize,
    /// Tokens of each one's prompt.
    pub context: usize,
    /// All sequences together, the median of the repetitions.
    pub tokens_per_second: Option<f64>,
    /// The same of each repetition.
    pub samples: Vec<f64>,
    /// Seconds from one token of a sequence to the next.
    pub between_tokens: Option<Summary>,
    /// Bytes that the steps read, divided by those that the machine could read in that time.
    pub fraction_of_bandwidth: Option<f64>,
    /// Share of all cores that other processes used.
    pub others: Option<f64>,
    /// What went wrong.
    pub failures: Vec<FailureCount>,
}

/// One rate of requests.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RateRow {
    /// Requests that arrive in a second, on average.
    pub requests_per_second: f64,
    /// What came of them.
    #[serde(flatten)]
    pub load: Load,
}

/// One number of clients.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClientsRow {
    /// Clients, each of which waits for its answer before it asks again.
    pub clients: usize,
    /// What came of their requests.
    #[serde(flatten)]
    pub load: Load,
}

/// What came of many requests.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
pub struct Load {
    /// Requests that were sent.
    pub requests: usize,
    /// Those that were answered to the end.
    pub completed: usize,
    /// Tokens of their prompts.
    pub input_tokens: usize,
    /// Tokens of their answers.
    pub output_tokens: usize,
    /// From the first request to the last answer.
    pub seconds: f64,
    /// Tokens of prompts and answers in a second.
    pub tokens_per_second: Option<f64>,
    /// Tokens of answers in a second.
    pub output_tokens_per_second: Option<f64>,
    /// Seconds from the moment a request was due to its first token.
    pub time_to_first_token: Option<Summary>,
    /// Seconds from one token of a request to the next.
    pub between_tokens: Option<Summary>,
    /// Seconds from the moment a request was due to the end of its answer.
    pub request_seconds: Option<Summary>,
    /// Share of all cores that other processes used.
    pub others: Option<f64>,
    /// What went wrong.
    pub failures: Vec<FailureCount>,
}

impl Report {
    /// Whether everything that was asked for was measured.
    pub fn is_complete(&self) -> bool {
        !self.interrupted && self.failed_requests() == 0
    }

    /// Requests that failed, over all tables.
    pub fn failed_requests(&self) -> usize {
        let loads = self.rates.iter().map(|row| &row.load).chain(self.clients.iter().map(|row| &row.load));
        let failures = self.prefill.iter().map(|row| &row.failures).chain(self.decode.iter().map(|row| &row.failures));
        failures.chain(loads.map(|load| &load.failures)).flatten().map(|failure| failure.count).sum()
    }
}
