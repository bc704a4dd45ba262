//! Flags of `kaito bench`.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    num::NonZeroU32,
    path::PathBuf,
    time::Duration,
};

use clap::{Args, ValueEnum};
use kaito_bench::{Api, Settings, Table};
use serde_json::{Map, Value};
use url::Url;

use super::ModelArgs;
use crate::values;

const AFTER_HELP: &str = "\
Exit status: 0 if everything was measured, 1 after a failure, failed requests or Ctrl-C, 2 after
wrong usage. Ctrl-C ends the run and prints what was measured so far.
Speculative decoding is off here unless --speculate turns it on.";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP, mut_arg("speculate", |arg| arg.default_value("false")))]
pub struct BenchArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Measure the server at this address, from outside, instead of a model in this process
    #[arg(long, env = "KAITO_URL", value_name = "URL", value_parser = values::url, conflicts_with_all = ["model", "weights"], help_heading = "Server")]
    pub url: Option<Url>,
    /// API that the server speaks
    #[arg(long, env = "KAITO_API", value_enum, default_value_t = ApiName::Auto, help_heading = "Server")]
    pub api: ApiName,
    /// The model's name in requests to an OpenAI server
    #[arg(long, env = "KAITO_SERVED_MODEL", value_name = "NAME", requires = "url", help_heading = "Server")]
    pub served_model: Option<String>,
    /// Key to send as `Authorization: Bearer KEY`. Prefer the variable: every user of this machine can read a command line
    #[arg(long, env = "KAITO_API_KEY", value_name = "KEY", hide_env_values = true, value_parser = values::first_key, help_heading = "Server")]
    pub api_key: Option<String>,
    /// Size of the vocabulary of an OpenAI server's model. Prompts are then random token ids, of exact length, instead of
    /// words [default: what the server says, if it does]
    #[arg(long, env = "KAITO_VOCAB_SIZE", value_name = "N", requires = "url", help_heading = "Server")]
    pub vocab_size: Option<NonZeroU32>,
    /// Fields to add to the body of each request, as a JSON object; null removes a field
    #[arg(long, env = "KAITO_BODY", value_name = "JSON", value_parser = object, requires = "url", help_heading = "Server")]
    pub body: Option<Map<String, Value>>,
    /// What to measure [default: the tables whose rows are given by --prompt-lengths, --batch-sizes, --request-rates or --clients; all
    /// where none of them is]
    #[arg(long, env = "KAITO_MEASURE", value_enum, value_delimiter = ',', help_heading = "Measurements")]
    pub measure: Vec<TableName>,
    /// Lengths of prompts, in tokens [default: 16,128,512]
    #[arg(
        long,
        env = "KAITO_PROMPT_LENGTHS",
        value_name = "TOKENS",
        value_delimiter = ',',
        help_heading = "Measurements"
    )]
    pub prompt_lengths: Vec<usize>,
    /// Numbers of sequences that are decoded at the same time [default: 1,2,4,8,16]
    #[arg(long, env = "KAITO_BATCH_SIZES", value_name = "N", value_delimiter = ',', help_heading = "Measurements")]
    pub batch_sizes: Vec<usize>,
    /// Tokens of each sequence's prompt when decoding is measured
    #[arg(long, env = "KAITO_CONTEXT", value_name = "TOKENS", default_value_t = 128, help_heading = "Measurements")]
    pub context: usize,
    /// New tokens of each sequence that one measurement of decoding counts
    #[arg(
        long,
        env = "KAITO_DECODE_TOKENS",
        value_name = "TOKENS",
        default_value_t = 32,
        help_heading = "Measurements"
    )]
    pub decode_tokens: usize,
    /// How often prompts and decoding are measured, after one warm-up that does not count
    #[arg(long, env = "KAITO_REPETITIONS", value_name = "N", default_value_t = 5, help_heading = "Measurements")]
    pub repetitions: usize,
    /// Rates at which requests arrive at the server, in requests per second [default: 1,2,4]
    #[arg(
        long,
        env = "KAITO_REQUEST_RATES",
        value_name = "RATE",
        value_delimiter = ',',
        help_heading = "Measurements"
    )]
    pub request_rates: Vec<f64>,
    /// How long requests arrive at each rate
    #[arg(long, env = "KAITO_RATE_DURATION", value_name = "TIME", value_parser = values::duration, default_value = "20s", help_heading = "Measurements")]
    pub rate_duration: Duration,
    /// Numbers of clients, each of which waits for an answer before it sends the next request [default: 16]
    #[arg(long, env = "KAITO_CLIENTS", value_name = "N", value_delimiter = ',', help_heading = "Measurements")]
    pub clients: Vec<usize>,
    /// Requests that each of these clients sends
    #[arg(
        long,
        env = "KAITO_REQUESTS_PER_CLIENT",
        value_name = "N",
        default_value_t = 2,
        help_heading = "Measurements"
    )]
    pub requests_per_client: usize,
    /// Tokens of each prompt when rates and clients are measured
    #[arg(
        long,
        env = "KAITO_INPUT_TOKENS",
        value_name = "TOKENS",
        default_value_t = 128,
        help_heading = "Measurements"
    )]
    pub input_tokens: usize,
    /// Tokens of each answer when rates and clients are measured
    #[arg(
        long,
        env = "KAITO_OUTPUT_TOKENS",
        value_name = "TOKENS",
        default_value_t = 128,
        help_heading = "Measurements"
    )]
    pub output_tokens: usize,
    /// Temperature of all requests; 0 always takes the likeliest token
    #[arg(long, env = "KAITO_TEMPERATURE", value_parser = values::temperature, default_value_t = 0.0, help_heading = "Measurements")]
    pub temperature: f32,
    /// Seed of prompts and arrivals [default: 0; with --url a new one each time, so that no prefix cache knows the prompts]
    #[arg(long, env = "KAITO_SEED", help_heading = "Measurements")]
    pub seed: Option<u64>,
    /// Longest time for each row of the tables; what is not done by then is cut off
    #[arg(long, env = "KAITO_TIME_LIMIT", value_name = "TIME", value_parser = values::duration, default_value = "2m", help_heading = "Measurements")]
    pub time_limit: Duration,
    /// Longest time of everything; it then ends as by Ctrl-C [default: that of each row, for as many rows as there are]
    #[arg(long, env = "KAITO_TOTAL_TIME_LIMIT", value_name = "TIME", value_parser = values::duration, help_heading = "Measurements")]
    pub total_time_limit: Option<Duration>,
    /// Write everything as JSON to a file or, with -, to stdout instead of the tables
    #[arg(long = "json", env = "KAITO_JSON_FILE", value_name = "FILE", help_heading = "Report")]
    pub json_file: Option<PathBuf>,
    /// Write an HTML page with tables and plots to a file
    #[arg(long = "html", env = "KAITO_HTML_FILE", value_name = "FILE", help_heading = "Report")]
    pub html_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ApiName {
    /// kaito's if the server is one, else OpenAI's if it has that
    Auto,
    /// kaito's /chat
    Kaito,
    /// kaito's /generate, whose answers may end early
    Generate,
    /// OpenAI's /v1/completions
    #[value(name = "openai")]
    OpenAi,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TableName {
    /// Prompts, by length
    Prefill,
    /// Decoding, by number of sequences
    Decode,
    /// Latencies, by rate of requests
    Rates,
    /// Throughput, by number of clients
    Clients,
}

impl TableName {
    fn table(self) -> Table {
        match self {
            Self::Prefill => Table::Prefill,
            Self::Decode => Table::Decode,
            Self::Rates => Table::Rates,
            Self::Clients => Table::Clients,
        }
    }
}

impl ApiName {
    pub fn api(self) -> Option<Api> {
        match self {
            Self::Auto => None,
            Self::Kaito => Some(Api::Kaito),
            Self::Generate => Some(Api::Generate),
            Self::OpenAi => Some(Api::OpenAi),
        }
    }
}

impl BenchArgs {
    /// The tables that were asked for, by name or by their rows: whoever says how many clients wants to know about clients, and not
    /// to wait for a minute of requests at rates.
    fn tables(&self) -> Vec<TableName> {
        if !self.measure.is_empty() {
            return self.measure.clone();
        }
        let rows = [
            (TableName::Prefill, !self.prompt_lengths.is_empty()),
            (TableName::Decode, !self.batch_sizes.is_empty()),
            (TableName::Rates, !self.request_rates.is_empty()),
            (TableName::Clients, !self.clients.is_empty()),
        ];
        let any = rows.iter().any(|(_, given)| *given);
        rows.into_iter().filter(|(_, given)| *given || !any).map(|(name, _)| name).collect()
    }

    pub fn settings(&self) -> Settings {
        fn given<T: Clone>(values: &[T], default: &[T]) -> Vec<T> {
            let chosen = if values.is_empty() { default } else { values };
            chosen.to_vec()
        }
        Settings {
            measure: self.tables().iter().map(|name| name.table()).collect(),
            prompt_lengths: given(&self.prompt_lengths, &[16, 128, 512]),
            batch_sizes: given(&self.batch_sizes, &[1, 2, 4, 8, 16]),
            context: self.context,
            decode_tokens: self.decode_tokens,
            request_rates: given(&self.request_rates, &[1.0, 2.0, 4.0]),
            rate_duration: self.rate_duration,
            clients: given(&self.clients, &[16]),
            requests_per_client: self.requests_per_client,
            input_tokens: self.input_tokens,
            output_tokens: self.output_tokens,
            repetitions: self.repetitions,
            time_limit: self.time_limit,
            seed: self.seed.unwrap_or_else(|| if self.url.is_some() { random_seed() } else { 0 }),
            temperature: self.temperature.into(),
            speculate: self.url.is_none().then_some(self.model.speculate),
        }
    }
}

/// Every program start has random keys for its maps. Some servers take seeds of 32 bits alone.
fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish() & u64::from(u32::MAX)
}

fn object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("expected a JSON object: {error}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn bench(args: &[&str]) -> Result<BenchArgs, String> {
        match Cli::try_parse_from(["kaito", "bench"].iter().chain(args)) {
            Ok(Cli { command: Command::Bench(args), .. }) => Ok(*args),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn speculative_decoding_is_off_unless_it_is_asked_for() {
        assert_eq!(bench(&[]).unwrap().settings().speculate, Some(false));
        assert_eq!(bench(&["--speculate", "true"]).unwrap().settings().speculate, Some(true));
        assert_eq!(bench(&["--url", "http://localhost"]).unwrap().settings().speculate, None);
    }

    #[test]
    fn lists_and_addresses_are_read() {
        let args =
            bench(&["--url", "localhost:8080", "--prompt-lengths", "1,2", "--measure", "prefill,clients"]).unwrap();
        assert_eq!(args.url.as_ref().unwrap().as_str(), "http://localhost:8080/");
        let settings = args.settings();
        assert_eq!(settings.prompt_lengths, [1, 2]);
        assert_eq!(settings.measure, [Table::Prefill, Table::Clients]);
        assert_eq!(bench(&[]).unwrap().settings().measure.len(), 4);
    }

    /// `--url ... --clients 16` measured everything, and took minutes for one row that was asked for.
    #[test]
    fn a_flag_that_names_rows_chooses_their_table() {
        let tables = |args: &[&str]| bench(args).unwrap().settings().measure;
        let all = [Table::Prefill, Table::Decode, Table::Rates, Table::Clients];
        assert_eq!(tables(&[]), all);
        assert_eq!(tables(&["--url", "localhost", "--context", "8"]), all);
        assert_eq!(tables(&["--clients", "16"]), [Table::Clients]);
        assert_eq!(tables(&["--clients", "16", "--batch-sizes", "1,2"]), [Table::Decode, Table::Clients]);
        assert_eq!(tables(&["--clients", "16", "--measure", "prefill"]), [Table::Prefill]);
        let settings = bench(&["--measure", "rates"]).unwrap().settings();
        assert_eq!((settings.request_rates, settings.clients), (vec![1.0, 2.0, 4.0], vec![16]));
    }

    /// A second run against the same server found its prompts in the prefix cache.
    #[test]
    fn prompts_for_a_server_differ_from_run_to_run() {
        let seed = |args: &[&str]| bench(args).unwrap().settings().seed;
        assert_ne!(seed(&["--url", "localhost"]), seed(&["--url", "localhost"]));
        assert_eq!((seed(&["--url", "localhost", "--seed", "7"]), seed(&[])), (7, 0));
    }

    #[test]
    fn wrong_usage_is_refused_with_what_is_allowed() {
        for (args, part) in [
            (&["--url", "ftp://host"][..], "http://localhost:5000"),
            (&["--url", "http://"], "http://localhost:5000"),
            (&["--url", "localhost", "falcon-7b"], "--url"),
            (&["--url", "localhost", "--body", "[1]"], "JSON object"),
            (&["--served-model", "x"], "--url"),
            (&["--measure", "speed"], "prefill, decode, rates, clients"),
            (&["--api", "grpc"], "auto, kaito, generate, openai"),
            (&["--prompt-lengths", "1,x"], "x"),
        ] {
            let error = bench(args).unwrap_err();
            assert!(error.contains(part), "{args:?}: {error}");
        }
    }
}
