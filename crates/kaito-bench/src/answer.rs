//! One request to the target of a measurement, and the times at which its tokens arrived.

use std::time::Instant;

use crate::prompts::Prompt;

/// A request for tokens.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) prompt: Prompt,
    /// Tokens of the answer.
    pub(crate) output: usize,
    pub(crate) temperature: f64,
    pub(crate) seed: u64,
}

/// The times at which the tokens of an answer arrived.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) started: Instant,
    /// One time for each event that brought something, which as a rule is one token.
    pub(crate) events: Vec<Instant>,
    /// Tokens of the prompt, if the target counted them.
    pub(crate) prompt_tokens: Option<usize>,
    /// Tokens of the answer, if the target counted them.
    pub(crate) output_tokens: Option<usize>,
    pub(crate) ended: Instant,
}

impl Answer {
    /// Seconds to the first token.
    pub(crate) fn first_token(&self) -> Option<f64> {
        self.events.first().map(|first| (*first - self.started).as_secs_f64())
    }

    /// Seconds between one event and the next.
    pub(crate) fn gaps(&self) -> impl Iterator<Item = f64> {
        self.events.windows(2).filter_map(|pair| match pair {
            [before, after] => Some((*after - *before).as_secs_f64()),
            _ => None,
        })
    }

    /// Tokens of the answer, or the number of events if the target did not count.
    pub(crate) fn tokens(&self) -> usize {
        self.output_tokens.unwrap_or(self.events.len())
    }

    /// Tokens that an event brought on average.
    pub(crate) fn tokens_per_event(&self) -> f64 {
        if self.events.is_empty() { 1.0 } else { self.tokens() as f64 / self.events.len() as f64 }
    }

    /// Events until `time`. Between two of them the count grows evenly, so that it does not matter in which order the
    /// sequences of one step of an engine are told of their tokens.
    pub(crate) fn events_until(&self, time: Instant) -> f64 {
        let before = self.events.partition_point(|event| *event <= time);
        let (Some(last), Some(next)) =
            (before.checked_sub(1).and_then(|at| self.events.get(at)), self.events.get(before))
        else {
            return before as f64;
        };
        let (passed, gap) = ((time - *last).as_secs_f64(), (*next - *last).as_secs_f64());
        before as f64 + if gap > 0.0 { passed / gap } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn answer(milliseconds: &[u64]) -> Answer {
        let started = Instant::now();
        let at = |ms: &u64| started + Duration::from_millis(*ms);
        Answer {
            started,
            events: milliseconds.iter().map(at).collect(),
            prompt_tokens: None,
            output_tokens: None,
            ended: at(milliseconds.last().unwrap_or(&0)),
        }
    }

    #[test]
    fn times_are_those_of_the_events() {
        let answer = answer(&[30, 40, 60]);
        assert!((answer.first_token().unwrap() - 0.03).abs() < 1e-9);
        let gaps: Vec<f64> = answer.gaps().collect();
        assert!((gaps[0] - 0.01).abs() < 1e-9 && (gaps[1] - 0.02).abs() < 1e-9, "{gaps:?}");
        for (ms, events) in [(0, 0.0), (29, 0.0), (30, 1.0), (35, 1.5), (40, 2.0), (50, 2.5), (60, 3.0), (90, 3.0)] {
            let got = answer.events_until(answer.started + Duration::from_millis(ms));
            assert!((got - events).abs() < 1e-6, "{ms}: {got}");
        }
    }

    #[test]
    fn tokens_are_events_unless_somebody_counted() {
        let mut answer = answer(&[30, 40, 60, 70]);
        assert_eq!((answer.tokens(), answer.tokens_per_event()), (4, 1.0));
        answer.output_tokens = Some(6);
        assert_eq!((answer.tokens(), answer.tokens_per_event()), (6, 1.5));
    }
}
