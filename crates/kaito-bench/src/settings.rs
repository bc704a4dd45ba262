//! What is measured, and how long it may take.

use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::Error;

/// A table of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Table {
    /// Prompts, by their length.
    Prefill,
    /// Decoding, by the number of sequences.
    Decode,
    /// Latencies at given rates of requests.
    Rates,
    /// Throughput of clients that each wait for their answer.
    Clients,
}

/// What is measured, and how long it may take.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Settings {
    /// Which tables.
    pub measure: Vec<Table>,
    /// Rows of the prefill table.
    pub prompt_lengths: Vec<usize>,
    /// Rows of the decode table.
    pub batch_sizes: Vec<usize>,
    /// Tokens of the prompt of each sequence in the decode table.
    pub context: usize,
    /// Tokens of each sequence that a repetition of the decode table counts.
    pub decode_tokens: usize,
    /// Rows of the table of rates, in requests per second.
    pub request_rates: Vec<f64>,
    /// How long requests arrive at a rate.
    #[serde(serialize_with = "seconds")]
    pub rate_duration: Duration,
    /// Rows of the table of clients.
    pub clients: Vec<usize>,
    /// Requests of each client, one after the other.
    pub requests_per_client: usize,
    /// Tokens of each prompt in the tables of rates and clients.
    pub input_tokens: usize,
    /// Tokens of each answer there.
    pub output_tokens: usize,
    /// How often each row of prefill and decode is measured, after one warm-up that does not count.
    pub repetitions: usize,
    /// Longest time of a row.
    #[serde(serialize_with = "seconds")]
    pub time_limit: Duration,
    /// Seed of prompts and arrivals.
    pub seed: u64,
    /// Temperature that requests ask for.
    pub temperature: f64,
    /// Whether the engine uses speculative decoding; `None` if the server decides.
    pub speculate: Option<bool>,
}

fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

/// Bound of the requests of a row: more than anybody needs, and few enough to keep in memory.
const MAX_REQUESTS: f64 = 100_000.0;
const MAX_SEQUENCES: usize = 4096;
const MAX_TOKENS: usize = 1 << 20;

impl Settings {
    /// Whether a table is asked for.
    pub fn has(&self, table: Table) -> bool {
        self.measure.contains(&table)
    }

    /// # Errors
    /// What could not be measured within any bounds.
    pub fn check(&self) -> Result<(), Error> {
        let counts = [
            ("--prompt-lengths", MAX_TOKENS, self.prompt_lengths.as_slice()),
            ("--batch-sizes", MAX_SEQUENCES, &self.batch_sizes),
            ("--clients", MAX_SEQUENCES, &self.clients),
            ("--context", MAX_TOKENS, &[self.context]),
            ("--decode-tokens", MAX_TOKENS, &[self.decode_tokens]),
            ("--requests-per-client", MAX_TOKENS, &[self.requests_per_client]),
            ("--input-tokens", MAX_TOKENS, &[self.input_tokens]),
            ("--output-tokens", MAX_TOKENS, &[self.output_tokens]),
            ("--repetitions", MAX_SEQUENCES, &[self.repetitions]),
        ];
        for (flag, most, values) in counts {
            if let Some(value) = values.iter().find(|&&value| value == 0 || value > most) {
                return Err(Error::Settings(format!("{flag} has {value}: it takes numbers from 1 to {most}")));
            }
        }
        for &rate in &self.request_rates {
            let requests = rate * self.rate_duration.as_secs_f64();
            if !(rate.is_finite() && rate > 0.0 && requests <= MAX_REQUESTS) {
                return Err(Error::Settings(format!(
                    "--request-rates has {rate}: over {:?} that must come to more than 0 and at most {MAX_REQUESTS} \
                     requests",
                    self.rate_duration
                )));
            }
        }
        for &clients in &self.clients {
            let requests = clients as f64 * self.requests_per_client as f64;
            if requests > MAX_REQUESTS {
                return Err(Error::Settings(format!(
                    "{clients} clients with {} requests each are {requests}: at most {MAX_REQUESTS} are sent",
                    self.requests_per_client
                )));
            }
        }
        Ok(())
    }
}
