//! Bars for building and pushing images: one for each file that is being worked on, and one for all.

use std::{
    io::{self, IsTerminal},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::ProgressBar;
use kaito_image::{Event, Item, Progress};

use crate::progress::{Pace, bars, style};

const LOG_EVERY: Duration = Duration::from_secs(15);
const WIDEST_NAME: usize = 40;

/// What a build or a push shows.
pub struct ImageProgress {
    on_terminal: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    phase: &'static str,
    items: Vec<Tracked>,
    total: Option<ProgressBar>,
    template: String,
    logged: Option<Instant>,
    pace: Option<Pace>,
}

struct Tracked {
    item: Item,
    position: u64,
    /// Only what is being worked on has a bar: a model may have a hundred files.
    bar: Option<ProgressBar>,
}

impl ImageProgress {
    pub fn new() -> Self {
        Self { on_terminal: io::stderr().is_terminal(), state: Mutex::default() }
    }
}

impl Progress for ImageProgress {
    fn event(&self, event: Event<'_>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Planned { phase, items } => state.begin(phase, items),
            Event::Position { item, bytes } => {
                state.advance(item, bytes);
                if !self.on_terminal {
                    state.log_now_and_then();
                }
            }
            Event::Skipped { item, reason } => {
                tracing::debug!(item = state.name(item), reason, "skipped");
                let size = state.items.get(item).map_or(0, |tracked| tracked.item.size);
                if let Some(pace) = &mut state.pace {
                    pace.found(size);
                }
                state.done(item);
            }
            Event::Retrying { item, cause, delay } => {
                tracing::warn!(item = item.map(|item| state.name(item)), cause, ?delay, "trying again");
            }
            Event::Finished { item } => state.done(item),
        }
    }
}

impl State {
    fn begin(&mut self, phase: &'static str, items: &[Item]) {
        self.clear();
        let width = items.iter().map(|item| item.name.chars().count()).max().unwrap_or(0).clamp(3, WIDEST_NAME);
        let columns = "[{bar:20}] {binary_bytes:>10} / {binary_total_bytes:<10} {binary_bytes_per_sec:>12} {eta:>5}";
        self.phase = phase;
        self.template = format!("{phase:8} {{msg:{width}}} {columns}");
        self.items = items.iter().map(|item| Tracked { item: item.clone(), position: 0, bar: None }).collect();
        if items.len() > 1 {
            self.total = Some(self.bar("all", items.iter().map(|item| item.size).sum()));
        }
        self.logged = Some(Instant::now());
        self.pace = Some(Pace::begin());
    }

    fn bar(&self, name: &str, size: u64) -> ProgressBar {
        let bar = ProgressBar::new(size).with_style(style(&self.template));
        bar.set_message(name.chars().take(WIDEST_NAME).collect::<String>());
        match &self.total {
            Some(total) => bars().insert_before(total, bar),
            None => bars().add(bar),
        }
    }

    fn advance(&mut self, item: usize, bytes: u64) {
        let Some(tracked) = self.items.get(item) else { return };
        let bar = match &tracked.bar {
            Some(bar) => bar.clone(),
            None => self.bar(&tracked.item.name, tracked.item.size),
        };
        bar.set_position(bytes);
        if let Some(tracked) = self.items.get_mut(item) {
            tracked.position = bytes;
            tracked.bar = Some(bar);
        }
        self.update_total();
    }

    fn done(&mut self, item: usize) {
        if let Some(tracked) = self.items.get_mut(item) {
            tracked.position = tracked.item.size;
            if let Some(bar) = tracked.bar.take() {
                bar.finish_and_clear();
                bars().remove(&bar);
            }
        }
        self.update_total();
    }

    fn update_total(&self) {
        if let Some(total) = &self.total {
            total.set_position(self.items.iter().map(|tracked| tracked.position).sum());
        }
    }

    fn name(&self, item: usize) -> &str {
        self.items.get(item).map_or("", |tracked| &tracked.item.name)
    }

    fn log_now_and_then(&mut self) {
        if self.logged.is_some_and(|last| last.elapsed() >= LOG_EVERY) {
            self.logged = Some(Instant::now());
            let done: u64 = self.items.iter().map(|tracked| tracked.position).sum();
            let total: u64 = self.items.iter().map(|tracked| tracked.item.size).sum();
            let told = self.pace.map(|pace| pace.told(done, total)).unwrap_or_default();
            tracing::info!("{}: {told}", self.phase);
        }
    }

    fn clear(&mut self) {
        for bar in self.items.drain(..).filter_map(|tracked| tracked.bar).chain(self.total.take()) {
            bar.finish_and_clear();
            bars().remove(&bar);
        }
    }
}

impl Drop for ImageProgress {
    fn drop(&mut self) {
        self.state.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
