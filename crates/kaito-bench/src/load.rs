//! Many requests to a server: at a given rate, or by clients that each wait for an answer before the next request.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{Rng, RngExt};
use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    Settings,
    answer::{Answer, Ask},
    client::ServerClient,
    failure::{Failure, FailureCount, count_failure},
    prompts::{PromptMaker, Purpose, random},
    report,
    statistics::Summary,
};

/// What came of the requests so far.
#[derive(Debug)]
pub(crate) struct LoadSamples {
    begun: Instant,
    /// From the moment a request was due to its first token, and to its end.
    first: Vec<f64>,
    whole: Vec<f64>,
    gaps: Vec<f64>,
    last_end: Option<Instant>,
    requests: usize,
    completed: usize,
    input_tokens: usize,
    output_tokens: usize,
    pub(crate) tokens_per_event: Vec<f64>,
    failures: Vec<FailureCount>,
}

/// A request and what came of it.
struct Outcome {
    due: Instant,
    asked_input: usize,
    result: Result<Answer, Failure>,
}

impl LoadSamples {
    pub(crate) fn new() -> Self {
        Self {
            begun: Instant::now(),
            first: Vec::new(),
            whole: Vec::new(),
            gaps: Vec::new(),
            last_end: None,
            requests: 0,
            completed: 0,
            input_tokens: 0,
            output_tokens: 0,
            tokens_per_event: Vec::new(),
            failures: Vec::new(),
        }
    }

    fn add(&mut self, outcome: Outcome) {
        let answer = match outcome.result {
            Ok(answer) => answer,
            Err(failure) => return count_failure(&mut self.failures, &failure),
        };
        self.completed += 1;
        self.input_tokens += answer.prompt_tokens.unwrap_or(outcome.asked_input);
        self.output_tokens += answer.tokens();
        self.tokens_per_event.push(answer.tokens_per_event());
        self.first.extend(answer.events.first().map(|first| (*first - outcome.due).as_secs_f64()));
        self.whole.push((answer.ended - outcome.due).as_secs_f64());
        self.gaps.extend(answer.gaps());
        self.last_end = self.last_end.max(Some(answer.ended));
    }

    /// Counts the requests that the time limit cut off.
    pub(crate) fn give_up(&mut self, limit: Duration) {
        let failed: usize = self.failures.iter().map(|failure| failure.count).sum();
        for _ in 0..self.requests.saturating_sub(self.completed + failed) {
            count_failure(&mut self.failures, &Failure::Timeout(format!("{limit:?}")));
        }
    }

    pub(crate) fn finish(self, others: Option<f64>) -> report::Load {
        let seconds = self.last_end.map_or(0.0, |end| (end - self.begun).as_secs_f64());
        let rate = |tokens: usize| (seconds > 0.0 && tokens > 0).then(|| tokens as f64 / seconds);
        report::Load {
            requests: self.requests,
            completed: self.completed,
            input_tokens: self.input_tokens,
            output_tokens: self.output_tokens,
            seconds,
            tokens_per_second: rate(self.input_tokens + self.output_tokens),
            output_tokens_per_second: rate(self.output_tokens),
            time_to_first_token: Summary::of(&self.first),
            between_tokens: Summary::of(&self.gaps),
            request_seconds: Summary::of(&self.whole),
            others,
            failures: self.failures,
        }
    }
}

fn ask(prompts: &mut PromptMaker, settings: &Settings) -> Ask {
    let Settings { input_tokens, output_tokens: output, temperature, seed, .. } = *settings;
    Ask { prompt: prompts.prompt(input_tokens), output, temperature, seed }
}

/// Times after the beginning at which requests arrive: a Poisson process, as the requests of many independent clients are.
/// There is at least one.
fn arrivals(rate: f64, duration: Duration, mut rng: impl Rng) -> Vec<Duration> {
    let mut times = Vec::new();
    let mut time = 0.0;
    loop {
        // In (0, 1], so that its logarithm is finite.
        let uniform = 1.0 - rng.random::<f64>();
        time -= uniform.ln() / rate;
        if time >= duration.as_secs_f64() {
            break;
        }
        times.push(Duration::from_secs_f64(time));
    }
    if times.is_empty() {
        times.push(Duration::ZERO);
    }
    times
}

/// Sends requests at a rate, whether or not earlier ones were answered.
pub(crate) async fn at_rate(
    server: &Arc<ServerClient>,
    prompts: &mut PromptMaker,
    settings: &Settings,
    rate: f64,
    samples: &mut LoadSamples,
    progress: &dyn Fn(f64),
) {
    let times = arrivals(rate, settings.rate_duration, random(settings.seed, Purpose::Arrivals));
    let asks: Vec<Ask> = times.iter().map(|_| ask(prompts, settings)).collect();
    let total = asks.len();
    let mut running = JoinSet::new();
    samples.begun = Instant::now();
    let (sent, mut sending) = mpsc::unbounded_channel();
    for (time, ask) in times.into_iter().zip(asks) {
        // Latency counts from the moment a request was due, also if it was sent late.
        let due = samples.begun + time;
        let (server, sent, asked_input) = (Arc::clone(server), sent.clone(), settings.input_tokens);
        running.spawn(async move {
            tokio::time::sleep_until(due.into()).await;
            // The receiver outlives this task.
            let _ = sent.send(());
            Outcome { due, asked_input, result: server.ask(&ask).await }
        });
    }
    drop(sent);
    let mut done = 0;
    loop {
        tokio::select! {
            Some(()) = sending.recv() => samples.requests += 1,
            Some(outcome) = running.join_next() => {
                if let Ok(outcome) = outcome {
                    samples.add(outcome);
                }
                done += 1;
                progress(done as f64 / total as f64);
            }
            else => break,
        }
    }
}

/// Clients that send their next request as soon as they have their answer.
pub(crate) async fn by_clients(
    server: &Arc<ServerClient>,
    prompts: &mut PromptMaker,
    settings: &Settings,
    clients: usize,
    samples: &mut LoadSamples,
    progress: &dyn Fn(f64),
) {
    let total = clients * settings.requests_per_client;
    let mut running = JoinSet::new();
    let (sender, mut outcomes) = mpsc::unbounded_channel();
    let asks: Vec<Vec<Ask>> =
        (0..clients).map(|_| (0..settings.requests_per_client).map(|_| ask(prompts, settings)).collect()).collect();
    samples.begun = Instant::now();
    for asks in asks {
        let (server, sender, asked_input) = (Arc::clone(server), sender.clone(), settings.input_tokens);
        running.spawn(async move {
            for ask in asks {
                let _ = sender.send(None);
                let due = Instant::now();
                let result = server.ask(&ask).await;
                let _ = sender.send(Some(Outcome { due, asked_input, result }));
            }
        });
    }
    drop(sender);
    let mut done = 0;
    while let Some(message) = outcomes.recv().await {
        match message {
            None => samples.requests += 1,
            Some(outcome) => {
                samples.add(outcome);
                done += 1;
                progress(done as f64 / total as f64);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_arrive_at_the_rate_and_the_seed_decides_when() {
        let duration = Duration::from_secs(1000);
        let times = |seed| arrivals(4.0, duration, random(seed, Purpose::Arrivals));
        let first = times(1);
        // The number has a Poisson distribution: 4000 with a deviation of 63. The seed is fixed.
        assert!((3700..4300).contains(&first.len()), "{}", first.len());
        assert!(first.is_sorted() && first.iter().all(|time| *time < duration));
        // Gaps have an exponential one: 1 - 1/e of them are shorter than the mean.
        let gaps: Vec<f64> = first.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        let short = gaps.iter().filter(|gap| **gap < 0.25).count() as f64 / gaps.len() as f64;
        assert!((0.60..0.66).contains(&short), "{short}");
        assert_eq!(first, times(1));
        assert_ne!(first, times(2));
        assert_eq!(arrivals(1e-9, duration, random(1, Purpose::Arrivals)), [Duration::ZERO]);
    }

    #[test]
    fn what_failed_counts_with_its_cause_and_not_as_a_sample() {
        let mut samples = LoadSamples::new();
        let due = samples.begun;
        let outcome = |result| Outcome { due, asked_input: 7, result };
        let at = |ms| due + Duration::from_millis(ms);
        samples.requests = 5;
        let answer = Answer {
            started: at(5),
            events: vec![at(20), at(30), at(50)],
            prompt_tokens: None,
            output_tokens: None,
            ended: at(50),
        };
        samples.add(outcome(Ok(answer)));
        for _ in 0..2 {
            samples.add(outcome(Err(kaito_client::Failure::Connect("refused".to_owned()).into())));
        }
        samples.give_up(Duration::from_secs(120));
        let load = samples.finish(None);
        assert_eq!((load.requests, load.completed, load.input_tokens, load.output_tokens), (5, 1, 7, 3));
        let causes: Vec<_> = load.failures.iter().map(|failure| (failure.cause.as_str(), failure.count)).collect();
        assert_eq!(causes, [("no connection: refused", 2), ("not done within the time limit of 120s", 2)]);
        assert!((load.time_to_first_token.unwrap().max - 0.02).abs() < 1e-9, "from the time it was due");
        assert!((load.tokens_per_second.unwrap() - 200.0).abs() < 1e-6);
        assert!((load.output_tokens_per_second.unwrap() - 60.0).abs() < 1e-6);
        assert_eq!(load.between_tokens.unwrap().count, 2);
    }
}
