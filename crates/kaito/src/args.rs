//! Every flag, its environment variable and its help.

use std::{num::NonZeroUsize, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use kaito_engine::{DTypeChoice, LoadOptions};

use crate::values;

const EXIT_STATUS: &str = "\
Exit status: 0 after success, 1 after a failure, 2 after wrong usage.
Every flag can be given as the environment variable named with it; a flag wins over its variable.";

/// Serve open language models yourself.
#[derive(Debug, Parser)]
#[command(name = "kaito", version, after_help = EXIT_STATUS, propagate_version = true, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub logging: LoggingArgs,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a model over HTTP
    Serve(ServeArgs),
    /// Talk to a model in the terminal
    Chat(ChatArgs),
    /// List the models that have a name here
    Presets(PresetsArgs),
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Logging", next_display_order = 900)]
pub struct LoggingArgs {
    /// Form of the log on stderr
    #[arg(long, global = true, env = "KAITO_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// What is logged: a level (error, warn, info, debug, trace), or levels by module
    /// [default: info for serve, else warn]
    #[arg(long, global = true, env = "KAITO_LOG", value_name = "FILTER")]
    pub log: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people
    Text,
    /// A JSON object a line
    Json,
}

/// Which model, and how it is loaded.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// A preset's name (see `kaito presets`), a directory of weights, or a hub repository
    /// (organisation/name[@revision]); without it, the demo model that comes with kaito
    #[arg(env = "KAITO_MODEL", value_parser = values::not_empty)]
    pub model: Option<String>,
    /// Directory of the model's weights, instead of a download
    #[arg(long, env = "KAITO_WEIGHTS", value_name = "DIR")]
    pub weights: Option<PathBuf>,
    /// Element type of the weights in memory; auto keeps that of the files
    #[arg(long, env = "KAITO_DTYPE", value_enum, default_value_t = DType::Auto)]
    pub dtype: DType,
    /// Threads that compute [default: one for each core]
    #[arg(long, env = "KAITO_THREADS", value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// Longest sequence in tokens, prompt and answer together [default: the model's own limit]
    #[arg(long, env = "KAITO_MAX_SEQ_LEN", value_name = "TOKENS")]
    pub max_seq_len: Option<NonZeroUsize>,
    /// Sequences computed at once
    #[arg(long, env = "KAITO_MAX_BATCH_SIZE", value_name = "N", default_value = "32")]
    pub max_batch_size: NonZeroUsize,
    /// Memory for keys and values, like 4GiB [default: what the memory of this machine allows]
    #[arg(long, env = "KAITO_KV_CACHE_MEMORY", value_name = "SIZE", value_parser = values::size)]
    pub kv_cache_memory: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DType {
    /// As the files have it
    Auto,
    /// 32 bits
    #[value(alias = "float32")]
    F32,
    /// 16 bits, range of f32
    #[value(alias = "bfloat16")]
    Bf16,
    /// 16 bits, IEEE 754
    #[value(aliases = ["float16", "half"])]
    F16,
}

impl ModelArgs {
    pub fn load_options(&self) -> LoadOptions {
        LoadOptions {
            dtype: match self.dtype {
                DType::Auto => DTypeChoice::Auto,
                DType::F32 => DTypeChoice::F32,
                DType::Bf16 => DTypeChoice::Bf16,
                DType::F16 => DTypeChoice::F16,
            },
            threads: self.threads,
            max_seq_len: self.max_seq_len.map(NonZeroUsize::get),
            max_batch_size: self.max_batch_size.get(),
            kv_cache_memory: self.kv_cache_memory,
            ..LoadOptions::default()
        }
    }
}

#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Address to listen on [default: 127.0.0.1; in a container, all addresses]
    #[arg(long, env = "KAITO_HOST", value_name = "HOST")]
    pub host: Option<String>,
    /// Port to listen on; 0 takes any that is free
    #[arg(long, env = "KAITO_PORT", default_value_t = 5000)]
    pub port: u16,
    /// Longest time that a request may take, like 90s or 5m
    #[arg(long, env = "KAITO_REQUEST_TIMEOUT", value_name = "TIME", value_parser = values::duration, default_value = "180s")]
    pub request_timeout: Duration,
    /// Requests that may wait for their turn; more are answered with 429
    #[arg(long, env = "KAITO_MAX_WAITING", value_name = "N", default_value = "256")]
    pub max_waiting: NonZeroUsize,
    /// Key that clients must show as `Authorization: Bearer KEY`; give it by the variable, for a command line can be
    /// read by every user of the machine
    #[arg(long, env = "KAITO_API_KEY", value_name = "KEY", hide_env_values = true, value_parser = values::not_empty)]
    pub api_key: Option<String>,
}

#[derive(Debug, Args)]
pub struct ChatArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Instructions that stand before the conversation
    #[arg(long, env = "KAITO_SYSTEM", value_name = "TEXT")]
    pub system: Option<String>,
    /// Longest answer in tokens
    #[arg(long, env = "KAITO_MAX_NEW_TOKENS", value_name = "TOKENS", default_value = "512")]
    pub max_new_tokens: NonZeroUsize,
    /// Randomness of the answers; 0 always takes the likeliest token
    #[arg(long, env = "KAITO_TEMPERATURE", value_name = "T", value_parser = values::temperature, default_value = "0.6")]
    pub temperature: f32,
    /// Seed of the random numbers, to have the same answers again
    #[arg(long, env = "KAITO_SEED", value_name = "N")]
    pub seed: Option<u64>,
}

#[derive(Debug, Args)]
pub struct PresetsArgs {
    /// Show this one in full
    #[arg(env = "KAITO_PRESET")]
    pub name: Option<String>,
    /// Print JSON
    #[arg(long, env = "KAITO_JSON")]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, error::ErrorKind};

    use super::*;

    fn serve(args: &[&str]) -> ServeArgs {
        match Cli::try_parse_from(["kaito", "serve"].iter().chain(args)).unwrap().command {
            Command::Serve(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definitions_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_defaults_are_the_documented_ones() {
        let args = serve(&[]);
        assert_eq!((args.port, args.request_timeout, args.host), (5000, Duration::from_secs(180), None));
        assert_eq!((args.model.dtype, args.model.max_batch_size.get(), args.model.model), (DType::Auto, 32, None));
    }

    #[test]
    fn every_flag_has_an_environment_variable_named_after_it() {
        let root = Cli::command();
        for command in root.get_subcommands() {
            for arg in root.get_arguments().chain(command.get_arguments()) {
                let id = arg.get_id().as_str();
                if matches!(id, "help" | "version") {
                    continue;
                }
                let variable = arg.get_env().and_then(|name| name.to_str()).unwrap_or_default();
                let expected = match id {
                    "name" => "KAITO_PRESET".to_owned(),
                    id => format!("KAITO_{}", id.to_uppercase()),
                };
                assert_eq!(variable, expected, "{} {id}", command.get_name());
            }
        }
    }

    #[test]
    fn bad_values_are_refused_with_what_is_allowed() {
        for (args, parts) in [
            (&["--port", "70000"][..], &["70000", "--port", "65535"][..]),
            (&["--dtype", "int8"], &["int8", "auto, f32, bf16, f16"]),
            (&["--kv-cache-memory", "4 elephants"], &["4 elephants", "4GiB"]),
            (&["--kv-cache-memory", "0"], &["--kv-cache-memory", "more than nothing"]),
            (&["--request-timeout", "soon"], &["soon", "180s"]),
            (&["--request-timeout", "0s"], &["--request-timeout", "more than nothing"]),
            (&["--max-batch-size", "0"], &["--max-batch-size", "0"]),
            (&["--threads", "-1"], &["-1"]),
            (&["--model-dir", "x"], &["--model-dir"]),
            (&["a", "b"], &["b"]),
            (&["--api-key", ""], &["--api-key", "empty"]),
        ] {
            let error = Cli::try_parse_from(["kaito", "serve"].iter().chain(args)).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            for part in parts {
                assert!(error.to_string().contains(part), "{args:?}: {error}");
            }
        }
        let error = Cli::try_parse_from(["kaito", "chat", "--temperature", "-1"]).unwrap_err();
        assert!(error.to_string().contains("-1"), "{error}");
        assert_eq!(
            Cli::try_parse_from(["kaito"]).unwrap_err().kind(),
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
        );
    }

    #[test]
    fn options_reach_the_engine() {
        let options = serve(&[
            "--dtype",
            "bfloat16",
            "--threads",
            "3",
            "--max-seq-len",
            "1000",
            "--max-batch-size",
            "5",
            "--kv-cache-memory",
            "1.5GiB",
        ])
        .model
        .load_options();
        assert_eq!(options.dtype, DTypeChoice::Bf16);
        assert_eq!(options.threads.map(NonZeroUsize::get), Some(3));
        assert_eq!((options.max_seq_len, options.max_batch_size), (Some(1000), 5));
        assert_eq!(options.kv_cache_memory, Some(3 << 29));
    }
}
