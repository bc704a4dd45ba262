//! Runs the measurements, one row of the report after the other.

use std::{sync::Arc, time::Duration};

use chrono::{SecondsFormat, Utc};
use tokio::sync::watch;

use crate::{
    Error, Settings, Table,
    failure::{Failure, FailureCount, count_failure},
    limits::{Limits, Prober},
    load::{self, LoadSamples},
    machine::Machine,
    notes,
    ready::{Ready, Subject},
    report::{ClientsRow, DecodeRow, Load, Model, PrefillRow, RateRow, Report, SCHEMA},
    sequences::{Bench, DecodeSamples, PrefillSamples},
    statistics::{Summary, median},
};

/// How far the measurements are.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// From 0 to 1.
    pub fraction: f64,
    /// What is being measured.
    pub what: &'a str,
}

/// Measures what `settings` ask for, row after row. `interrupt` ends it early: the report has what there is then.
///
/// # Errors
/// Where nothing can be measured at all. Requests that fail stand in the report with their causes.
pub async fn measure(
    subject: Subject,
    settings: Settings,
    progress: &dyn Fn(Progress<'_>),
    mut interrupt: watch::Receiver<bool>,
) -> Result<Report, Error> {
    settings.check()?;
    let started = Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true);
    progress(Progress { fraction: 0.0, what: "getting ready" });
    let mut ready = None;
    let setup = async { ready = Some(Ready::of(subject, &settings).await) };
    match bounded(settings.time_limit, &mut interrupt, setup).await {
        Ending::Done => {}
        Ending::Late => {
            return Err(Error::Settings(format!("no answer to the first requests within {:?}", settings.time_limit)));
        }
        Ending::Interrupted => return Err(Error::Settings("interrupted before anything was measured".to_owned())),
    }
    let ready = ready.unwrap_or_else(|| Err(Error::Settings("nothing was set up".to_owned())))?;
    let mut report = Report {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION"),
        started,
        interrupted: false,
        target: ready.info.clone(),
        model: ready.model.clone(),
        machine: Machine::this(),
        limits: None,
        prefill: Vec::new(),
        decode: Vec::new(),
        rates: Vec::new(),
        clients: Vec::new(),
        notes: Vec::new(),
        settings,
    };
    let prober = ready
        .here
        .then_some(ready.model.as_ref())
        .flatten()
        .and_then(|model| Prober::new(model).inspect_err(|e| report.notes.push(notes::without_limits(e))).ok());
    let decode_bytes_per_second = Vec::new();
    let run = Run { ready, report, prober, decode_bytes_per_second, interrupt, progress, done: 0, total: 0 };
    run.all().await
}

/// How the work on a row ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Done,
    Late,
    Interrupted,
}

/// Does something, within a limit, until somebody interrupts.
async fn bounded(limit: Duration, interrupt: &mut watch::Receiver<bool>, work: impl Future<Output = ()>) -> Ending {
    let interrupted = async {
        if interrupt.wait_for(|interrupted| *interrupted).await.is_err() {
            // The sender is gone, so nothing can interrupt any more.
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        biased;
        () = interrupted => Ending::Interrupted,
        done = tokio::time::timeout(limit, work) => if done.is_ok() { Ending::Done } else { Ending::Late },
    }
}

struct Run<'a> {
    ready: Ready,
    report: Report,
    prober: Option<Prober>,
    /// What the rows of the decode table read, to be compared with the limits when these are final.
    decode_bytes_per_second: Vec<Option<f64>>,
    interrupt: watch::Receiver<bool>,
    progress: &'a dyn Fn(Progress<'_>),
    done: usize,
    total: usize,
}

impl Run<'_> {
    async fn all(mut self) -> Result<Report, Error> {
        let settings = self.report.settings.clone();
        let longest = self.ready.model.as_ref().map_or(usize::MAX, |model| model.max_seq_len);
        let prompt_lengths =
            self.feasible(Table::Prefill, &settings.prompt_lengths, "prompts of", |tokens| tokens < longest);
        let most = self.ready.max_batch_size.unwrap_or(usize::MAX);
        let room = settings.context.saturating_add(settings.decode_tokens) < longest;
        let batch_sizes =
            self.feasible(Table::Decode, &settings.batch_sizes, "sequences at once,", |batch| batch <= most && room);
        let rates = if settings.has(Table::Rates) { settings.request_rates.clone() } else { Vec::new() };
        let clients = if settings.has(Table::Clients) { settings.clients.clone() } else { Vec::new() };
        self.total = prompt_lengths.len() + batch_sizes.len() + rates.len() + clients.len();

        for tokens in prompt_lengths {
            self.prefill(tokens, &settings).await;
        }
        for batch in batch_sizes {
            self.decode(batch, &settings).await;
        }
        for rate in rates {
            if let Some(load) = self.load(Asking::Rate(rate), &settings).await {
                self.report.rates.push(RateRow { requests_per_second: rate, load });
            }
        }
        for clients in clients {
            if let Some(load) = self.load(Asking::Clients(clients), &settings).await {
                self.report.clients.push(ClientsRow { clients, load });
            }
        }
        self.finish().await;
        Ok(self.report)
    }

    /// The rows that the model has room for; a note tells of the others.
    fn feasible(&mut self, table: Table, rows: &[usize], what: &str, fits: impl Fn(usize) -> bool) -> Vec<usize> {
        if !self.report.settings.has(table) {
            return Vec::new();
        }
        let (fit, too_large): (Vec<usize>, Vec<usize>) = rows.iter().partition(|&&row| fits(row));
        if !too_large.is_empty() {
            let note = notes::left_out(what, &too_large, self.ready.model.as_ref(), self.ready.max_batch_size);
            self.report.notes.push(note);
        }
        fit
    }

    fn is_interrupted(&self) -> bool {
        *self.interrupt.borrow()
    }

    async fn probe(&mut self) {
        if let Some(prober) = &mut self.prober {
            prober.probe().await;
        }
    }

    /// Measures a row of prompts or decoding. Returns how it ended, and the share of the cores that other processes used.
    async fn row(
        &mut self,
        what: &str,
        settings: &Settings,
        measuring: impl AsyncFnOnce(Bench<'_>),
    ) -> (Ending, Option<f64>) {
        self.tell(0.0, what);
        self.probe().await;
        let before = self.ready.watch.mark();
        let ending = {
            let (tell, interrupt, ready) = self.split(what, settings.repetitions);
            bounded(settings.time_limit, interrupt, measuring(ready.bench(settings, &tell))).await
        };
        self.done += 1;
        (ending, self.ready.watch.share_since(before))
    }

    async fn prefill(&mut self, tokens: usize, settings: &Settings) {
        if self.is_interrupted() {
            return;
        }
        let what = format!("prompts of {tokens} tokens");
        let mut samples = PrefillSamples::default();
        let measuring = async |bench: Bench<'_>| bench.prefill(tokens, &mut samples).await;
        let (ending, others) = self.row(&what, settings, measuring).await;
        self.end_row(ending, &what, samples.seconds.len(), &mut samples.failures);
        if ending == Ending::Interrupted && samples.seconds.is_empty() {
            return;
        }
        let rates: Vec<f64> = samples.tokens.iter().zip(&samples.seconds).map(|(n, seconds)| n / seconds).collect();
        self.report.prefill.push(PrefillRow {
            prompt_tokens: tokens,
            measured_tokens: median(&samples.tokens),
            tokens_per_second: median(&rates),
            samples: rates,
            seconds: Summary::of(&samples.seconds),
            fraction_of_peak: None,
            others,
            failures: samples.failures,
        });
    }

    async fn decode(&mut self, batch_size: usize, settings: &Settings) {
        if self.is_interrupted() {
            return;
        }
        let what = format!("decoding of {batch_size}");
        let mut samples = DecodeSamples::default();
        let measuring = async |bench: Bench<'_>| bench.decode(batch_size, &mut samples).await;
        let (ending, others) = self.row(&what, settings, measuring).await;
        self.end_row(ending, &what, samples.tokens_per_second.len(), &mut samples.failures);
        if ending == Ending::Interrupted && samples.tokens_per_second.is_empty() {
            return;
        }
        if samples.apart > 0 {
            self.report.notes.push(notes::apart(batch_size, samples.apart));
        }
        self.note_events(&samples.tokens_per_event);
        self.decode_bytes_per_second.push(median(&samples.bytes_per_second));
        self.report.decode.push(DecodeRow {
            batch_size,
            context: settings.context,
            tokens_per_second: median(&samples.tokens_per_second),
            samples: samples.tokens_per_second,
            between_tokens: Summary::of(&samples.gaps),
            fraction_of_bandwidth: None,
            others,
            failures: samples.failures,
        });
    }

    async fn load(&mut self, asking: Asking, settings: &Settings) -> Option<Load> {
        if self.is_interrupted() {
            return None;
        }
        let what = match asking {
            Asking::Rate(rate) => format!("{rate} requests/s"),
            Asking::Clients(clients) => format!("{clients} clients"),
        };
        self.tell(0.0, &what);
        let mut samples = LoadSamples::new();
        let before = self.ready.watch.mark();
        let ending = {
            let (done, total, progress) = (self.done, self.total, self.progress);
            let tell = |part: f64| progress(Progress { fraction: (done as f64 + part) / total as f64, what: &what });
            let server = Arc::clone(&self.ready.server);
            let prompts = &mut self.ready.load_prompts;
            let work = async {
                match asking {
                    Asking::Rate(rate) => load::at_rate(&server, prompts, settings, rate, &mut samples, &tell).await,
                    Asking::Clients(clients) => {
                        load::by_clients(&server, prompts, settings, clients, &mut samples, &tell).await;
                    }
                }
            };
            bounded(settings.time_limit, &mut self.interrupt, work).await
        };
        self.done += 1;
        if ending == Ending::Late {
            samples.give_up(settings.time_limit);
        }
        self.note_events(&samples.tokens_per_event);
        let load = samples.finish(self.ready.watch.share_since(before));
        (ending != Ending::Interrupted || load.completed > 0).then_some(load)
    }

    /// Records that the time limit ended a row: as a failure if the row has no sample, else as a note.
    fn end_row(&mut self, ending: Ending, what: &str, samples: usize, failures: &mut Vec<FailureCount>) {
        let Settings { time_limit, repetitions, .. } = self.report.settings;
        if ending == Ending::Late && samples == 0 {
            count_failure(failures, &Failure::Timeout(format!("{time_limit:?}")));
        } else if ending == Ending::Late {
            self.report.notes.push(format!(
                "Broken off at the time limit of {time_limit:?}: {what}, after {samples} of {repetitions} repetitions."
            ));
        }
    }

    fn note_events(&mut self, tokens_per_event: &[f64]) {
        if let Some(note) = notes::tokens_per_event(tokens_per_event)
            && !self.report.notes.iter().any(|known| notes::is_of_events(known))
        {
            self.report.notes.push(note);
        }
    }

    fn tell(&self, part: f64, what: &str) {
        (self.progress)(Progress { fraction: (self.done as f64 + part) / self.total.max(1) as f64, what });
    }

    /// Borrows apart: a function that reports repetitions as progress, and what a measurement needs mutably.
    fn split<'s>(
        &'s mut self,
        what: &'s str,
        repetitions: usize,
    ) -> (impl Fn(usize) + 's, &'s mut watch::Receiver<bool>, &'s mut Ready) {
        let (done, total, progress) = (self.done as f64, self.total as f64, self.progress);
        let tell = move |repetition: usize| {
            let part = (repetition + 1) as f64 / (repetitions + 1) as f64;
            progress(Progress { fraction: (done + part) / total, what });
        };
        (tell, &mut self.interrupt, &mut self.ready)
    }

    async fn finish(&mut self) {
        self.report.interrupted = self.is_interrupted();
        if !self.report.interrupted {
            self.probe().await;
        }
        self.report.limits =
            self.prober.as_ref().map(Prober::limits).filter(|limits| limits.read_bytes_per_second > 0.0);
        let Report { limits, model, prefill, decode, .. } = &mut self.report;
        for row in prefill {
            row.fraction_of_peak = fraction_of_peak(row, model.as_ref(), limits.as_ref());
        }
        for (row, bytes) in decode.iter_mut().zip(&self.decode_bytes_per_second) {
            let bandwidth = limits.as_ref().map(|limits| limits.read_bytes_per_second);
            row.fraction_of_bandwidth = bytes.zip(bandwidth).map(|(bytes, bandwidth)| bytes / bandwidth);
        }
        let notes = notes::about(&self.report);
        self.report.notes.extend(notes);
        self.ready.own_server = None;
        (self.progress)(Progress { fraction: 1.0, what: "done" });
    }
}

/// A prompt's operations, divided by those that the machine could do in that time.
fn fraction_of_peak(row: &PrefillRow, model: Option<&Model>, limits: Option<&Limits>) -> Option<f64> {
    let tokens = row.measured_tokens?;
    Some(model?.prompt_operations(tokens) / tokens * row.tokens_per_second? / limits?.of_prompts())
}

enum Asking {
    Rate(f64),
    Clients(usize),
}

#[cfg(test)]
mod tests {
    use super::*;

    /// TinyLlama 1.1B as published, in whose layers 2048 x 2048 weights make queries and as many the output, twice 2048 x 256 keys and
    /// values, and three times 2048 x 5632 the MLP: 44_040_192 in each of 22 layers. The head has 2048 x 32000.
    #[test]
    fn prompts_count_what_is_multiplied_without_embedding_and_with_the_head_once() {
        let published = serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "vocab_size": 32000,
            "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
            "num_key_value_heads": 4, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "tie_word_embeddings": false,
        });
        let described = kaito_model::family::describe_json("config.json".as_ref(), published).unwrap();
        // The layers, the head, the embedding, and the norms, of which there are two in each layer and one behind them.
        assert_eq!(described.parameters, 968_884_224 + 2 * 65_536_000 + 45 * 2048);
        let model = Model {
            layer_parameters: described.config.layer_parameters(),
            head_parameters: described.config.head_parameters(),
            ..crate::report::tests::model()
        };
        assert_eq!((model.layer_parameters, model.head_parameters), (968_884_224, 65_536_000));
        assert_eq!(model.prompt_operations(1.0), 2_068_840_448.0);
        assert_eq!(model.prompt_operations(512.0), 992_268_517_376.0);

        // 512 tokens in a second, by a machine that could do twice as much.
        let row = PrefillRow { measured_tokens: Some(512.0), tokens_per_second: Some(512.0), ..PrefillRow::default() };
        let limits = Limits {
            threads: 1,
            read_bytes_per_second: 1.0,
            operations_per_second: 2.0 * 992_268_517_376.0,
            unit: kaito_kernels::Unit::F32,
            tiles: None,
        };
        let fraction = fraction_of_peak(&row, Some(&model), Some(&limits)).unwrap();
        assert!((fraction - 0.5).abs() < 1e-9, "{fraction}");
    }

    #[tokio::test]
    async fn work_is_bounded_and_can_be_interrupted() {
        let (interrupt, mut receiver) = watch::channel(false);
        let hour = Duration::from_secs(3600);
        assert_eq!(bounded(hour, &mut receiver, async {}).await, Ending::Done);
        assert_eq!(bounded(Duration::ZERO, &mut receiver, std::future::pending()).await, Ending::Late);
        interrupt.send_replace(true);
        assert_eq!(bounded(hour, &mut receiver, std::future::pending()).await, Ending::Interrupted);
        let (gone, mut receiver) = watch::channel(false);
        drop(gone);
        assert_eq!(bounded(Duration::from_millis(1), &mut receiver, std::future::pending()).await, Ending::Late);
    }
}
