//! The tables of prompts (prefill) and decoding: sequences that have the target for themselves.

use std::{
    cell::{Cell, RefCell},
    time::{Duration, Instant},
};

use futures_util::future::join_all;

use crate::{
    Settings,
    answer::{Answer, Ask},
    failure::{Failure, FailureCount, count_failure},
    prompts::PromptMaker,
    report::Model,
    target::Target,
};

/// A row is given up after so many repetitions that failed.
const MOST_FAILURES: usize = 3;
/// How often answers are made longer until all sequences run at the same time for long enough, and how much each time at most.
const MOST_TRIES: usize = 5;
const MOST_LONGER: usize = 2;

/// What a measurement needs.
pub(crate) struct Bench<'a> {
    pub(crate) target: &'a Target,
    pub(crate) prompts: RefCell<&'a mut PromptMaker>,
    pub(crate) settings: &'a Settings,
    pub(crate) model: Option<&'a Model>,
    /// Called with the number of repetitions that are done.
    pub(crate) progress: &'a dyn Fn(usize),
}

/// Repetitions of a row of the prefill table.
#[derive(Debug, Default)]
pub(crate) struct PrefillSamples {
    pub(crate) seconds: Vec<f64>,
    pub(crate) tokens: Vec<f64>,
    pub(crate) failures: Vec<FailureCount>,
}

/// Repetitions of a row of the decode table.
#[derive(Debug, Default)]
pub(crate) struct DecodeSamples {
    pub(crate) tokens_per_second: Vec<f64>,
    pub(crate) bytes_per_second: Vec<f64>,
    pub(crate) gaps: Vec<f64>,
    /// Tokens that an event brought, of each answer.
    pub(crate) tokens_per_event: Vec<f64>,
    /// Repetitions in which not all sequences ran at the same time.
    pub(crate) apart: usize,
    pub(crate) failures: Vec<FailureCount>,
}

impl Bench<'_> {
    fn ask(&self, tokens: usize, output: usize) -> Ask {
        let Settings { temperature, seed, .. } = *self.settings;
        Ask { prompt: self.prompts.borrow_mut().prompt(tokens), output, temperature, seed }
    }

    /// Times prompts of a length, each up to its first token.
    pub(crate) async fn prefill(&self, length: usize, samples: &mut PrefillSamples) {
        let mut failed = 0;
        for repetition in 0..=self.settings.repetitions {
            match self.target.ask(&self.ask(length, 1), &|_| false).await {
                Ok(answer) if repetition > 0 => {
                    samples.seconds.extend(answer.first_token());
                    samples.tokens.push(answer.prompt_tokens.unwrap_or(length) as f64);
                }
                Ok(_) => {}
                Err(failure) => {
                    count_failure(&mut samples.failures, &failure);
                    failed += 1;
                    if failed == MOST_FAILURES {
                        return;
                    }
                }
            }
            (self.progress)(repetition);
        }
    }

    /// Times the tokens of several sequences, from the first token of the last one to the last token of the first one.
    pub(crate) async fn decode(&self, sequences: usize, samples: &mut DecodeSamples) {
        let Settings { context, decode_tokens, repetitions, .. } = *self.settings;
        let mut output = match self.model {
            // Ended early, an answer may be as long as there is room.
            Some(model) if self.target.can_stop() => model.max_seq_len.saturating_sub(context),
            _ => decode_tokens + 1,
        };
        let longest = self.model.map_or(usize::MAX, |model| model.max_seq_len.saturating_sub(context));
        let (mut repetition, mut failed, mut tries) = (0, 0, 0);
        let began = Instant::now();
        while repetition <= repetitions {
            let asked = Instant::now();
            let answers = match self.together(sequences, output).await {
                Ok(answers) => answers,
                Err(failures) => {
                    failures.iter().for_each(|failure| count_failure(&mut samples.failures, failure));
                    failed += 1;
                    if failed == MOST_FAILURES {
                        return;
                    }
                    continue;
                }
            };
            let window = Window::of(&answers, context, self.model);
            let enough = window.as_ref().is_some_and(|window| window.least >= decode_tokens as f64 * 0.9);
            if !enough && tries < MOST_TRIES && output < longest && !self.target.can_stop() {
                let longer = longer(&answers, output, decode_tokens).min(longest);
                let left = self.settings.time_limit.saturating_sub(began.elapsed());
                if is_time_for(longer, output, asked.elapsed(), repetitions + 1, left) {
                    output = longer;
                    tries += 1;
                    continue;
                }
            }
            if repetition > 0 {
                samples.tokens_per_event.extend(answers.iter().map(Answer::tokens_per_event));
                match window.or_else(|| {
                    samples.apart += 1;
                    Window::of_all(&answers, self.model)
                }) {
                    Some(window) => {
                        samples.tokens_per_second.push(window.tokens / window.seconds);
                        samples.bytes_per_second.push(window.bytes / window.seconds);
                        samples.gaps.extend(window.gaps);
                    }
                    None => count_failure(&mut samples.failures, &Failure::Empty),
                }
            }
            (self.progress)(repetition);
            repetition += 1;
        }
    }

    /// Runs sequences side by side.
    async fn together(&self, sequences: usize, output: usize) -> Result<Vec<Answer>, Vec<Failure>> {
        let asks: Vec<Ask> = (0..sequences).map(|_| self.ask(self.settings.context, output)).collect();
        let meeting = Meeting::new(sequences, self.settings.decode_tokens);
        let asked = asks.iter().enumerate().map(|(i, ask)| {
            let meeting = &meeting;
            async move { self.target.ask(ask, &|events| meeting.token(i, events)).await }
        });
        let (mut answers, mut failures) = (Vec::new(), Vec::new());
        for outcome in join_all(asked).await {
            match outcome {
                Ok(answer) => answers.push(answer),
                Err(failure) => failures.push(failure),
            }
        }
        if failures.is_empty() { Ok(answers) } else { Err(failures) }
    }
}

/// The length of answers that all run beside each other for `wanted` tokens each, by answers of length `output` that did not: what the
/// fastest of them would have said by the time the last one began, and those tokens.
fn longer(answers: &[Answer], output: usize, wanted: usize) -> usize {
    let begin = answers.iter().filter_map(|answer| answer.events.first()).max();
    let before = |answer: &Answer| {
        let (first, last) = (answer.events.first()?, answer.events.last()?);
        let seconds = (*last - *first).as_secs_f64();
        let rate = if seconds > 0.0 { answer.tokens().saturating_sub(1) as f64 / seconds } else { 0.0 };
        Some(rate * begin?.checked_duration_since(*first)?.as_secs_f64())
    };
    let most = answers.iter().filter_map(before).fold(0.0, f64::max);
    (most.round() as usize).saturating_add(wanted + 1).clamp(output + 1, MOST_LONGER * output)
}

/// Whether there is time for so many repetitions with answers of length `longer`, by how long they took with a length of `output`.
/// Each repetition takes as much longer as its answers are: without a bound a server that says many tokens before its last sequence
/// begins would be asked for a thousand of each, over and over.
fn is_time_for(longer: usize, output: usize, took: Duration, repetitions: usize, left: Duration) -> bool {
    took.as_secs_f64() * (longer as f64 / output as f64) * repetitions as f64 <= left.as_secs_f64() / 2.0
}

/// Sequences that end as soon as all of them have run beside all others for long enough.
struct Meeting {
    wanted: usize,
    missing: Cell<usize>,
    /// Tokens of each sequence since nobody is missing.
    since: RefCell<Vec<usize>>,
}

impl Meeting {
    fn new(sequences: usize, wanted: usize) -> Self {
        Self { wanted, missing: Cell::new(sequences), since: RefCell::new(vec![0; sequences]) }
    }

    /// Records a token of a sequence, of which it is number `own`. Returns whether it is time to end.
    fn token(&self, sequence: usize, own: usize) -> bool {
        if own == 1 {
            self.missing.set(self.missing.get().saturating_sub(1));
        }
        if self.missing.get() > 0 {
            return false;
        }
        let mut since = self.since.borrow_mut();
        if let Some(count) = since.get_mut(sequence) {
            *count += 1;
        }
        // The first of them may have come just before the last sequence's first token.
        since.iter().all(|count| *count > self.wanted)
    }
}

/// A time in which all sequences ran.
#[derive(Debug)]
struct Window {
    seconds: f64,
    tokens: f64,
    /// Tokens of the sequence that has the fewest.
    least: f64,
    /// What was read for these tokens, where the model is known.
    bytes: f64,
    gaps: Vec<f64>,
}

impl Window {
    /// From the moment when all have begun to the moment when one has ended.
    fn of(answers: &[Answer], context: usize, model: Option<&Model>) -> Option<Self> {
        let begin = answers.iter().filter_map(|answer| answer.events.first()).max()?;
        let end = answers.iter().filter_map(|answer| answer.events.last()).min()?;
        let seconds = end.checked_duration_since(*begin)?.as_secs_f64();
        if seconds <= 0.0 {
            return None;
        }
        let (mut tokens, mut least, mut attended) = (0.0, f64::INFINITY, 0.0);
        let mut gaps = Vec::new();
        for answer in answers {
            let (before, until) = (answer.events_until(*begin), answer.events_until(*end));
            let each = answer.tokens_per_event();
            let own = (until - before) * each;
            tokens += own;
            least = f64::min(least, own);
            // Each token reads the keys and values of those before it: on average, of half the window's and all earlier.
            let prompt = answer.prompt_tokens.unwrap_or(context) as f64;
            let seen = prompt + (before + until) / 2.0 * each;
            let seen = model.and_then(|model| model.attention_window).map_or(seen, |most| seen.min(most as f64));
            attended += own * seen;
            gaps.extend(
                answer
                    .events
                    .windows(2)
                    .filter(|pair| pair.first().is_some_and(|first| first >= begin))
                    .filter(|pair| pair.last().is_some_and(|last| last <= end))
                    .filter_map(|pair| Some((*pair.last()? - *pair.first()?).as_secs_f64())),
            );
        }
        let steps = tokens / answers.len() as f64;
        let bytes = model
            .map_or(f64::NAN, |model| steps * model.step_bytes as f64 + attended * model.kv_bytes_per_token as f64);
        Some(Self { seconds, tokens, least, bytes, gaps })
    }

    /// From the first token to the last one, for sequences of which some were over before others began.
    fn of_all(answers: &[Answer], model: Option<&Model>) -> Option<Self> {
        let begin = answers.iter().filter_map(|answer| answer.events.first()).min()?;
        let end = answers.iter().filter_map(|answer| answer.events.last()).max()?;
        let seconds = (*end - *begin).as_secs_f64();
        let tokens = answers.iter().map(Answer::tokens).sum::<usize>().saturating_sub(1) as f64;
        let gaps = answers.iter().flat_map(Answer::gaps).collect();
        // How many sequences shared a step is not known, so neither is what was read.
        let bytes = model.map_or(f64::NAN, |_| f64::NAN);
        (seconds > 0.0).then_some(Self { seconds, tokens, least: 0.0, bytes, gaps })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> Model {
        Model {
            family: "llama".to_owned(),
            parameters: 1000,
            layer_parameters: 800,
            head_parameters: 100,
            precision: "bf16".to_owned(),
            activations: "f32".to_owned(),
            kernels: "avx512".to_owned(),
            weights_bytes: 2200,
            step_bytes: 2000,
            kv_dtype: "f32".to_owned(),
            kv_bytes_per_token: 10,
            attention_window: None,
            max_seq_len: 100,
            threads: 2,
        }
    }

    fn answer(origin: Instant, milliseconds: impl IntoIterator<Item = u64>) -> Answer {
        let events: Vec<Instant> = milliseconds.into_iter().map(|ms| origin + Duration::from_millis(ms)).collect();
        let ended = *events.last().unwrap();
        Answer { started: origin, output_tokens: Some(events.len()), events, prompt_tokens: Some(20), ended }
    }

    #[test]
    fn only_the_time_in_which_all_run_counts() {
        let origin = Instant::now();
        // A token each 10 ms; the second sequence begins at 100 ms, the first one ends at 150.
        let answers = [answer(origin, (0..=15).map(|i| i * 10)), answer(origin, (10..=40).map(|i| i * 10))];
        let window = Window::of(&answers, 0, Some(&model())).unwrap();
        assert!((window.seconds - 0.05).abs() < 1e-9, "{window:?}");
        assert!((window.tokens - 10.0).abs() < 1e-6 && (window.least - 5.0).abs() < 1e-6, "{window:?}");
        // 5 steps; the first sequence sees 20 + (11 + 16) / 2 tokens on average, the second one 20 + (1 + 6) / 2.
        let bytes = 5.0 * 2000.0 + 10.0 * 5.0 * (33.5 + 23.5);
        assert!((window.bytes - bytes).abs() < 1e-3, "{window:?}");
        assert_eq!(window.gaps.len(), 10);
        let windowed = Model { attention_window: Some(8), ..model() };
        let window = Window::of(&answers, 0, Some(&windowed)).unwrap();
        assert!((window.bytes - (10_000.0 + 10.0 * 10.0 * 8.0)).abs() < 1e-3, "{window:?}");
        assert!(Window::of(&answers, 0, None).unwrap().bytes.is_nan());
    }

    #[test]
    fn an_event_with_several_tokens_counts_as_many() {
        let origin = Instant::now();
        let mut one = answer(origin, [0, 10, 20, 30]);
        one.output_tokens = Some(8);
        let window = Window::of(&[one], 0, None).unwrap();
        assert!((window.tokens - 6.0).abs() < 1e-6, "{window:?}");
    }

    #[test]
    fn sequences_that_never_met_are_taken_as_a_whole() {
        let origin = Instant::now();
        let answers = [answer(origin, [0, 10, 20]), answer(origin, [20, 30, 40])];
        assert!(Window::of(&answers, 0, None).is_none());
        let all = Window::of_all(&answers, None).unwrap();
        assert!((all.seconds - 0.04).abs() < 1e-9 && (all.tokens - 5.0).abs() < 1e-9, "{all:?}");
        assert!(Window::of(&[answer(origin, [5])], 0, None).is_none());
    }

    /// The decode table of a server that speculates took minutes: answers were doubled to a thousand tokens, in every repetition.
    #[test]
    fn answers_grow_by_what_is_missing_and_as_far_as_there_is_time() {
        let origin = Instant::now();
        // A token each 10 ms; the second sequence begins at 200 ms, when the first one is over or nearly so.
        let early = |tokens| answer(origin, (0..tokens).map(|i| i * 10));
        let late = |tokens| answer(origin, (0..tokens).map(|i| 200 + i * 10));
        // 20 tokens before the last one begins, 8 beside each other, and one to begin with; never more than twice as many.
        assert_eq!(longer(&[early(20), late(20)], 20, 8), 29);
        assert_eq!(longer(&[early(9), late(9)], 9, 8), 18);
        // Those that began together need no more than what is wanted, and what was too short grows.
        assert_eq!(longer(&[early(9), early(9)], 9, 8), 10);
        assert_eq!(longer(&[], 9, 8), 10);

        let seconds = Duration::from_secs;
        assert!(is_time_for(66, 33, seconds(2), 6, seconds(48)));
        assert!(!is_time_for(66, 33, seconds(2), 6, seconds(47)));
    }

    #[test]
    fn sequences_end_when_all_had_their_share_together() {
        let meeting = Meeting::new(2, 2);
        let mut own = [0, 0];
        let mut token = |sequence: usize| {
            own[sequence] += 1;
            meeting.token(sequence, own[sequence])
        };
        for _ in 0..10 {
            assert!(!token(0), "the other one has not begun");
        }
        for sequence in [1, 0, 1, 0, 1] {
            assert!(!token(sequence));
        }
        assert!(token(0) && token(1));
    }
}
