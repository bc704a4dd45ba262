//! `kaito bench`: how fast a model or a server is.

use std::{fs, path::Path};

use anyhow::Context;
use indicatif::ProgressBar;
use kaito_bench::{Progress, Report, ServerOptions, Subject, measure, page, tables};
use tokio::sync::watch;

use super::{Told, pretty};
use crate::{
    args::BenchArgs,
    model::ModelSource,
    output::print,
    progress::{bars, style},
};

pub fn run(args: BenchArgs) -> anyhow::Result<()> {
    let settings = args.settings();
    settings.check()?;
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
            let clients = args.clients.iter().copied().max().unwrap_or(0);
            // The engine's own queue must hold all clients; refused requests would be no measurement.
            let model = source.load(&args.model, Some(clients.max(1024)), &|_| {})?;
            Subject::Model { model, name: source.name }
        }
    };
    let report = runtime.block_on(async {
        let (interrupt, interrupted) = watch::channel(false);
        tokio::spawn(interrupts(interrupt));
        let bar = Bar::new();
        measure(subject, settings, &|progress| bar.set(progress), interrupted).await
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

/// The bar of the measurements.
struct Bar(ProgressBar);

impl Bar {
    fn new() -> Self {
        let bar = ProgressBar::new(1000).with_style(style("{msg:24} [{bar:30}] {percent:>3}%  {elapsed}"));
        let bar = bars().add(bar);
        bar.enable_steady_tick(std::time::Duration::from_millis(500));
        Self(bar)
    }

    fn set(&self, progress: Progress<'_>) {
        self.0.set_message(progress.what.to_owned());
        self.0.set_position((progress.fraction.clamp(0.0, 1.0) * 1000.0) as u64);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
        bars().remove(&self.0);
    }
}
