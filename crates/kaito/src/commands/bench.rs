//! `kaito bench`: how fast a model or a server is.

use std::{
    cell::RefCell,
    fs,
    io::{self, IsTerminal},
    path::Path,
};

use anyhow::Context;
use indicatif::ProgressBar;
use kaito_bench::{Progress, Report, ServerOptions, Subject, measure, page, tables};
use kaito_engine::LoadOptions;
use tokio::sync::watch;

use super::{Told, pretty};
use crate::{
    args::BenchArgs,
    model::ModelSource,
    output::{note, print},
    progress::{bars, style},
};

pub fn run(args: BenchArgs) -> anyhow::Result<()> {
    let settings = args.settings();
    settings.check()?;
    args.model.choose_kernels()?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the threads that ask for tokens")?;
    // The engine's thread is told of dropped streams through the runtime.
    let _entered = runtime.enter();
    let subject = match &args.url {
        Some(url) => Subject::Server(ServerOptions {
            url: url.clone(),
            api: args.api.api(),
            model: args.served_model.clone(),
            api_key: args.api_key.clone(),
            vocab_size: args.vocab_size.map(Into::into),
            body: args.body.clone().unwrap_or_default(),
        }),
        None => {
            let source = ModelSource::resolve(&args.model)?;
            let clients = settings.clients.iter().copied().max().unwrap_or(0);
            // The engine's own queue must hold all clients; refused requests would be no measurement.
            let model =
                source.load(&LoadOptions { max_waiting: clients.max(1024), ..args.model.load_options() }, &|_| {})?;
            Subject::Model { model, name: source.name }
        }
    };
    let report = runtime.block_on(async {
        let (interrupt, interrupted) = watch::channel(false);
        if let Some(limit) = args.total_time_limit {
            let interrupt = interrupt.clone();
            tokio::spawn(async move {
                tokio::time::sleep(limit).await;
                interrupt.send_replace(true);
            });
        }
        tokio::spawn(interrupts(interrupt));
        let shown = Shown::new();
        measure(subject, settings, &|progress| shown.set(progress), interrupted).await
    })?;
    write(&report, &args)?;
    if report.is_complete() { Ok(()) } else { Err(Told.into()) }
}

/// The first Ctrl-C ends the measurements; a second one ends the process where it stands.
async fn interrupts(interrupt: watch::Sender<bool>) {
    let mut before = false;
    while tokio::signal::ctrl_c().await.is_ok() {
        if before {
            std::process::exit(130);
        }
        before = true;
        interrupt.send_replace(true);
    }
}

fn write(report: &Report, args: &BenchArgs) -> anyhow::Result<()> {
    let to_stdout = args.json_file.as_deref() == Some(Path::new("-"));
    // The tables are printed first: if a file cannot be written, minutes of measuring are not lost.
    print(&if to_stdout { pretty(report)? } else { tables(report) })?;
    let write =
        |path: &Path, text: String| fs::write(path, text).with_context(|| format!("cannot write {}", path.display()));
    if let Some(path) = args.json_file.as_deref().filter(|_| !to_stdout) {
        write(path, pretty(report)?)?;
    }
    if let Some(path) = &args.html_file {
        write(path, page(report)?)?;
    }
    Ok(())
}

/// How far the measurements are: a bar, or a line for each row where there is no terminal.
struct Shown {
    bar: ProgressBar,
    /// What was told last.
    row: RefCell<Option<String>>,
}

impl Shown {
    fn new() -> Self {
        let bar = ProgressBar::new(1000).with_style(style("{msg:24} [{bar:30}] {percent:>3}%  {elapsed}"));
        let bar = bars().add(bar);
        bar.enable_steady_tick(std::time::Duration::from_millis(500));
        Self { bar, row: RefCell::new((!io::stderr().is_terminal()).then(String::new)) }
    }

    fn set(&self, progress: Progress<'_>) {
        let fraction = progress.fraction.clamp(0.0, 1.0);
        self.bar.set_message(progress.what.to_owned());
        self.bar.set_position((fraction * 1000.0) as u64);
        if let Some(row) = self.row.borrow_mut().as_mut().filter(|row| **row != progress.what) {
            progress.what.clone_into(row);
            let seconds = self.bar.elapsed().as_secs();
            note(&format!("{seconds:4} s {:3.0}% {}\n", 100.0 * fraction, progress.what));
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        bars().remove(&self.bar);
    }
}
