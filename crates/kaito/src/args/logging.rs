//! Flags of the log, which every subcommand has.

use clap::{Args, ValueEnum};

#[derive(Debug, Args)]
#[command(next_help_heading = "Logging", next_display_order = 900)]
pub struct LoggingArgs {
    /// Format of the log on stderr
    #[arg(long, global = true, env = "KAITO_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// What is logged: a level (error, warn, info, debug, trace), or levels by module
    /// [default: info for serve, controller, image and supervise, else warn]
    #[arg(long, global = true, env = "KAITO_LOG", value_name = "FILTER")]
    pub log: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object per line
    Json,
}
