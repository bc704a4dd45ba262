//! The `kaito` command line: one file per subcommand, which calls the library that does the work.
#![forbid(unsafe_code)]

mod adapters;
mod args;
mod commands;
mod demo;
mod display;
mod image_progress;
mod logging;
mod model;
mod network;
mod output;
mod progress;
mod values;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let _flush = logging::FlushAtEnd;
    let level = match cli.command {
        Command::Serve(_) | Command::Controller(_) | Command::Image(_) | Command::Supervise(_) => "info",
        _ => "warn",
    };
    let outcome = logging::init(&cli.logging, level).and_then(|()| match cli.command {
        Command::Serve(args) => commands::serve::run(*args, cli.logging.log_format),
        Command::Chat(args) => commands::chat::run(args),
        Command::Download(args) => commands::download::run(&args),
        Command::Presets(args) => commands::presets::run(&args),
        Command::Devices(args) => commands::devices::run(&args),
        Command::Crd(args) => commands::crd::run(&args),
        Command::Controller(args) => commands::controller::run(args),
        Command::Install(args) => commands::install::run(args),
        Command::Up(args) => commands::up::run(&args),
        Command::Supervise(args) => commands::supervise::run(args),
        Command::Image(args) => commands::image::run(&args),
        Command::InstanceTypes(args) => commands::instance_types::run(&args),
        Command::Plan(args) => commands::plan::run(&args),
        Command::Validate(args) => commands::validate::run(&args),
        Command::Bench(args) => commands::bench::run(*args),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<output::ReaderGone>() => ExitCode::SUCCESS,
        Err(error) if error.is::<commands::Told>() => ExitCode::FAILURE,
        Err(error) => {
            logging::say(&display::error(&error));
            ExitCode::FAILURE
        }
    }
}
