//! Bars on a terminal; now and then a line in the log where there is none.

use std::{
    io::{self, IsTerminal},
    sync::{LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use kaito_hub::{Event, Progress};

use crate::display;

const LOG_EVERY: Duration = Duration::from_secs(15);

/// Every bar of the process, so that log lines can go above them.
pub fn bars() -> &'static MultiProgress {
    static BARS: LazyLock<MultiProgress> =
        LazyLock::new(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
    &BARS
}

pub fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

/// The bar of a model that is being loaded.
pub struct LoadingBar(ProgressBar);

impl LoadingBar {
    pub fn new() -> Self {
        let bar = ProgressBar::new(1000).with_style(style("{msg:20} [{bar:30}] {percent:>3}%  {elapsed}"));
        bar.set_message("loading");
        Self(bars().add(bar))
    }

    /// `fraction` of 0 to 1.
    pub fn set(&self, fraction: f32) {
        self.0.set_position((fraction.clamp(0.0, 1.0) * 1000.0) as u64);
    }
}

impl Drop for LoadingBar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
        bars().remove(&self.0);
    }
}

/// How fast something gets on, since it began.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    begun: Instant,
    /// What was there then, in bytes.
    found: u64,
}

impl Pace {
    /// Begins now.
    pub fn begin() -> Self {
        Self { begun: Instant::now(), found: 0 }
    }

    /// So many bytes were there before, and took no time.
    pub fn found(&mut self, bytes: u64) {
        self.found = self.found.saturating_add(bytes);
    }

    /// `43 % of 12.6 GiB, 5 minutes left`: what the controller tells in the status of a workspace.
    pub fn told(&self, done: u64, total: u64) -> String {
        told(done, total, done.saturating_sub(self.found), self.begun.elapsed())
    }
}

fn told(done: u64, total: u64, gained: u64, elapsed: Duration) -> String {
    let percent = if total == 0 { 100 } else { u128::from(done.min(total)) * 100 / u128::from(total) };
    let so_far = format!("{percent} % of {}", display::bytes(total));
    let left = total.saturating_sub(done);
    let seconds = match u64::try_from(u128::from(left) * elapsed.as_millis() / 1000 / u128::from(gained.max(1))) {
        Ok(seconds) if gained > 0 && left > 0 => seconds,
        _ => return so_far,
    };
    match (seconds / 3600, seconds.div_ceil(60)) {
        (0, 0 | 1) => format!("{so_far}, less than a minute left"),
        (0, minutes) => format!("{so_far}, {minutes} minutes left"),
        _ => format!("{so_far}, {:.1} hours left", seconds as f64 / 3600.0),
    }
}

/// One bar for each file of a download and, if there are several, one for all.
pub struct DownloadProgress {
    repo: String,
    on_terminal: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    files: Vec<FileBar>,
    total: Option<ProgressBar>,
    logged: Option<Instant>,
    pace: Option<Pace>,
}

struct FileBar {
    name: String,
    bar: ProgressBar,
    position: u64,
    /// What an earlier download had left; not counted in the rate.
    begun: bool,
}

impl DownloadProgress {
    pub fn new(repo: &str) -> Self {
        Self { repo: repo.to_owned(), on_terminal: io::stderr().is_terminal(), state: Mutex::default() }
    }
}

impl Progress for DownloadProgress {
    fn event(&self, event: Event<'_>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Planned { files } => {
                let total: u64 = files.iter().filter_map(|file| file.size).sum();
                tracing::info!(repo = self.repo, files = files.len(), size = display::bytes(total), "downloading");
                let width = files.iter().map(|file| file.name.len()).max().unwrap_or(0).min(40);
                let columns =
                    "[{bar:20}] {binary_bytes:>10} / {binary_total_bytes:<10} {binary_bytes_per_sec:>12} {eta:>5}";
                let template = format!("{{msg:{width}}} {columns}");
                for file in files {
                    let bar = ProgressBar::new(file.size.unwrap_or(0)).with_style(style(&template));
                    bar.set_message(file.name.clone());
                    let bar = bars().add(bar);
                    state.files.push(FileBar { name: file.name.clone(), bar, position: 0, begun: false });
                }
                if files.len() > 1 {
                    let bar = ProgressBar::new(total).with_style(style(&template));
                    bar.set_message("all");
                    state.total = Some(bars().add(bar));
                }
                state.logged = Some(Instant::now());
                state.pace = Some(Pace::begin());
            }
            Event::Position { file, bytes } => {
                let State { files, pace, .. } = &mut *state;
                if let Some(file) = files.get_mut(file) {
                    if let Some(pace) = pace.as_mut().filter(|_| !file.begun) {
                        pace.found(bytes);
                    }
                    file.advance(bytes);
                }
                state.update_total();
                if !self.on_terminal {
                    state.log_now_and_then(&self.repo);
                }
            }
            Event::Waiting { file } => {
                let name = state.files.get(file).map_or("", |file| &file.name);
                tracing::info!(file = name, "another process is fetching this file, waiting for it");
            }
            Event::Retrying { cause, delay } => tracing::warn!(cause, ?delay, "trying again"),
            Event::Finished { file } => {
                if let Some(file) = state.files.get_mut(file) {
                    file.bar.finish_and_clear();
                    file.position = file.bar.length().unwrap_or(file.position);
                    tracing::debug!(file = file.name, "complete");
                }
                state.update_total();
            }
        }
    }
}

impl FileBar {
    fn advance(&mut self, bytes: u64) {
        if !self.begun {
            self.begun = true;
            self.bar.reset_eta();
            self.bar.set_position(bytes);
            self.bar.reset_eta();
        }
        self.bar.set_position(bytes);
        self.position = bytes;
    }
}

impl State {
    fn update_total(&self) {
        if let Some(total) = &self.total {
            total.set_position(self.files.iter().map(|file| file.position).sum());
        }
    }

    fn log_now_and_then(&mut self, repo: &str) {
        if self.logged.is_some_and(|last| last.elapsed() >= LOG_EVERY) {
            self.logged = Some(Instant::now());
            let done: u64 = self.files.iter().map(|file| file.position).sum();
            let total: u64 = self.files.iter().filter_map(|file| file.bar.length()).sum();
            let told = self.pace.map(|pace| pace.told(done, total)).unwrap_or_default();
            tracing::info!("downloading {repo}: {told}");
        }
    }
}

impl Drop for DownloadProgress {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        for bar in state.files.iter().map(|file| &file.bar).chain(&state.total) {
            bar.finish_and_clear();
            bars().remove(bar);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_in_the_words_that_the_controller_looks_for() {
        const GIB: u64 = 1 << 30;
        let minute = Duration::from_secs(60);
        for (done, total, gained, elapsed, text) in [
            (0, 10 * GIB, 0, Duration::ZERO, "0 % of 10.0 GiB"),
            (GIB, 10 * GIB, GIB, minute, "10 % of 10.0 GiB, 9 minutes left"),
            // What an earlier try had left says nothing of the pace.
            (6 * GIB, 10 * GIB, GIB, minute, "60 % of 10.0 GiB, 4 minutes left"),
            (9 * GIB, 10 * GIB, 9 * GIB, minute, "90 % of 10.0 GiB, less than a minute left"),
            (GIB, 100 * GIB, GIB, minute, "1 % of 100.0 GiB, 1.6 hours left"),
            (10 * GIB, 10 * GIB, GIB, minute, "100 % of 10.0 GiB"),
            (0, 0, 0, minute, "100 % of 0 B"),
        ] {
            let told = told(done, total, gained, elapsed);
            assert_eq!(told, text);
            let line = format!("2026-01-01T00:00:00Z  INFO pulling: {told}\n");
            assert_eq!(kaito_operator::runtime::weights::progress(&line), Some(told));
        }
    }
}
