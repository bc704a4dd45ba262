//! Ends a text where one of a request's stop strings appears, while the text is still growing.

mod automaton;

use std::sync::Arc;

use self::automaton::{Automaton, State};
use crate::Error;

/// Most stop strings of a request.
pub const MAX_STOPS: usize = 1024;
/// Most bytes of all stop strings of a request: the automaton that looks for them takes some twenty times as many.
pub const MAX_STOP_BYTES: usize = 64 << 10;

/// Watches a growing text for stop strings. Clones watch for the same ones.
///
/// What it passes on never holds a stop string or a part of one, unless they are to be included: the end of the text is held back
/// for as long as it may be the beginning of a stop string. How the text is cut into pieces makes no difference. The time that a piece takes depends on its
/// own bytes alone, not on how many stop strings there are, how long they are, and how much text is held back.
#[derive(Debug, Clone, Default)]
pub struct StopStrings {
    /// `None` where there is nothing to look for.
    automaton: Option<Arc<Automaton>>,
    state: State,
    /// What is held back lies behind `passed` bytes that were passed on.
    held: String,
    passed: usize,
    /// Whether the stop string is passed on.
    included: bool,
    found: Option<String>,
}

impl StopStrings {
    /// Stops at any of `stops`; empty ones are ignored.
    ///
    /// # Errors
    /// More than [`MAX_STOPS`] strings, or than [`MAX_STOP_BYTES`] bytes.
    pub fn new(stops: &[String]) -> Result<Self, Error> {
        let refused = |value: usize, what: &str, most: usize| {
            Err(Error::InvalidRequest(format!("`stop` has {value} {what}: it must have at most {most}")))
        };
        if stops.len() > MAX_STOPS {
            return refused(stops.len(), "strings", MAX_STOPS);
        }
        let bytes = stops.iter().map(String::len).fold(0, usize::saturating_add);
        if bytes > MAX_STOP_BYTES {
            return refused(bytes, "bytes in all", MAX_STOP_BYTES);
        }
        let stops: Vec<&[u8]> = stops.iter().map(String::as_bytes).filter(|stop| !stop.is_empty()).collect();
        let automaton = (!stops.is_empty()).then(|| Arc::new(Automaton::new(stops)));
        Ok(Self { automaton, ..Self::default() })
    }

    /// Says whether the stop string that ends a text is the last of it.
    pub(crate) fn include(self, included: bool) -> Self {
        Self { included, ..self }
    }

    /// Whether a stop string has appeared: nothing comes after it.
    pub(crate) fn hit(&self) -> bool {
        self.found.is_some()
    }

    /// The stop string that has appeared.
    pub(crate) fn found(&self) -> Option<&str> {
        self.found.as_deref()
    }

    /// Takes more text and gives what is certain now. A stop string that ends in this piece of the text is one only where
    /// `counts` says so.
    pub(crate) fn push(&mut self, text: &str, counts: bool) -> String {
        if self.hit() {
            return String::new();
        }
        let Some(automaton) = &self.automaton else { return text.to_owned() };
        for (at, byte) in text.bytes().enumerate() {
            self.state = automaton.next(self.state, byte);
            // The stop string that is complete first counts; of several, the longest.
            if let Some(bytes) = automaton.found(self.state).filter(|_| counts) {
                self.held.push_str(text.get(..=at).unwrap_or(text));
                let start = self.held.len() - bytes;
                self.found = self.held.get(start..).map(str::to_owned);
                let passed = self.pass(if self.included { self.held.len() } else { start });
                self.held.clear();
                return passed;
            }
        }
        self.held.push_str(text);
        self.pass(self.held.len() - automaton.begun(self.state))
    }

    /// Gives what was held back: the text has ended.
    pub(crate) fn finish(&mut self) -> String {
        if self.hit() { String::new() } else { self.pass(self.held.len()) }
    }

    /// What is held back up to `end`. Strings are found whole, so `end` is between two characters.
    fn pass(&mut self, end: usize) -> String {
        let passed = self.held.get(self.passed..end).unwrap_or_default().to_owned();
        self.passed = end;
        // Moved once it is the smaller part, so that a byte is moved once on average.
        if self.passed > self.held.len() / 2 {
            self.held.drain(..end);
            self.passed = 0;
        }
        passed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn owned(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut watch = StopStrings::new(&owned(stops)).unwrap();
        let mut out: Vec<String> = pieces.iter().map(|piece| watch.push(piece, true)).collect();
        out.push(watch.finish());
        (out, watch.hit())
    }

    /// What is meant, by looking at the whole text again for each piece.
    #[derive(Default)]
    struct Definition {
        stops: Vec<String>,
        held: String,
        hit: bool,
    }

    impl Definition {
        fn push(&mut self, text: &str) -> String {
            if self.hit {
                return String::new();
            }
            self.held.push_str(text);
            let first = self.stops.iter().filter_map(|stop| self.held.find(stop).map(|at| (at + stop.len(), at))).min();
            if let Some((_, at)) = first {
                self.hit = true;
                self.held.truncate(at);
                return std::mem::take(&mut self.held);
            }
            let safe = self.held.len() - self.longest_beginning();
            let rest = self.held.split_off(safe);
            std::mem::replace(&mut self.held, rest)
        }

        fn longest_beginning(&self) -> usize {
            let longest = self.stops.iter().map(String::len).max().unwrap_or(0).saturating_sub(1);
            let begins = |len: &usize| {
                let start = self.held.len() - len;
                self.held.is_char_boundary(start) && self.stops.iter().any(|stop| stop.starts_with(&self.held[start..]))
            };
            (1..=longest.min(self.held.len())).rev().find(begins).unwrap_or(0)
        }
    }

    #[test]
    fn a_text_ends_where_a_stop_string_begins() {
        // Stop strings, pieces, what comes out for each piece and at the end, whether a stop string was found.
        type Case = (&'static [&'static str], &'static [&'static str], &'static [&'static str], bool);
        let cases: &[Case] = &[
            (&[], &["all ", "of it"], &["all ", "of it", ""], false),
            (&["stop"], &["go st", "op on"], &["go ", "", ""], true),
            (&["stop"], &["go st", "ep on"], &["go ", "step on", ""], false),
            (&["stop"], &["go st"], &["go ", "st"], false),
            (&["\n\n"], &["a\n", "\nb", "c"], &["a", "", "", ""], true),
            (&["aab"], &["aaa", "ab"], &["a", "a", ""], true),
            (&["bc", "abcd"], &["x", "abcd"], &["x", "a", ""], true),
            (&["abc", "bc"], &["ab", "c"], &["", "", ""], true),
            (&["abcd", "bc", "bc"], &["xab", "c", "d"], &["x", "a", "", ""], true),
            (&["é!"], &["caf", "é", "é!"], &["caf", "", "é", ""], true),
            (&["è", "é"], &["ê", "é"], &["ê", "", ""], true),
            (&[""], &["x"], &["x", ""], false),
        ];
        for (stops, pieces, expected, hit) in cases {
            assert_eq!(run(stops, pieces), (owned(expected), *hit), "{stops:?} {pieces:?}");
        }
    }

    proptest! {
        #[test]
        fn pieces_come_out_as_defined(
            stops in prop::collection::vec("[abéè]{0,5}", 0..6),
            pieces in prop::collection::vec("[abéè]{0,6}", 0..12),
        ) {
            let stops: Vec<String> = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
            let mut watch = StopStrings::new(&stops).unwrap();
            let mut definition = Definition { stops: stops.clone(), ..Definition::default() };
            let mut out = String::new();
            for piece in &pieces {
                let (found, expected) = (watch.push(piece, true), definition.push(piece));
                prop_assert_eq!(&found, &expected);
                prop_assert_eq!(watch.hit(), definition.hit);
                out.push_str(&found);
            }
            let held = watch.finish();
            prop_assert_eq!(&held, &definition.held);
            out.push_str(&held);
            let whole = pieces.concat();
            prop_assert!(whole.starts_with(&out));
            prop_assert!(stops.iter().all(|stop| !out.contains(stop)));
            prop_assert_eq!(watch.hit(), stops.iter().any(|stop| whole.contains(stop)));
        }
    }

    /// A search from the start would take the square of the time: hours.
    #[test]
    fn the_longest_and_the_most_stop_strings_take_no_longer() {
        let long = "a".repeat(MAX_STOP_BYTES - 1) + "b";
        let many: Vec<String> = (0..MAX_STOPS).map(|n| "a".repeat(n % 64) + &n.to_string()).collect();
        for stops in [vec![long], many] {
            let mut watch = StopStrings::new(&stops).unwrap();
            let mut out = String::new();
            for _ in 0..4 * MAX_STOP_BYTES {
                out.push_str(&watch.push("a", true));
            }
            assert!(!watch.hit());
            out.push_str(&watch.finish());
            assert_eq!(out.len(), 4 * MAX_STOP_BYTES);
        }
    }

    #[test]
    fn stop_strings_are_bounded() {
        let refusal = |stops: Vec<String>| StopStrings::new(&stops).unwrap_err().to_string();
        assert_eq!(refusal(vec!["x".to_owned(); MAX_STOPS + 1]), "`stop` has 1025 strings: it must have at most 1024");
        assert_eq!(refusal(vec!["x".repeat(4_000_000)]), "`stop` has 4000000 bytes in all: it must have at most 65536");
        assert!(StopStrings::new(&["x".repeat(MAX_STOP_BYTES)]).is_ok());
    }
}
