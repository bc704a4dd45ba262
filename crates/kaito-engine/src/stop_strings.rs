//! Ends a text where one of a request's stop strings appears, while the text is still growing.

/// Watches a growing text for stop strings.
///
/// What it passes on never holds a stop string or a part of one that later turns out whole: the end of the text is held
/// back for as long as it may be the beginning of a stop string. How the text is cut into pieces makes no difference.
#[derive(Debug, Clone, Default)]
pub(crate) struct StopStrings {
    stops: Vec<String>,
    held: String,
    hit: bool,
}

impl StopStrings {
    /// Stops at any of `stops`; empty ones are ignored.
    pub(crate) fn new(stops: &[String]) -> Self {
        Self { stops: stops.iter().filter(|stop| !stop.is_empty()).cloned().collect(), ..Self::default() }
    }

    /// Whether a stop string has appeared: nothing comes after it.
    pub(crate) fn hit(&self) -> bool {
        self.hit
    }

    /// Takes more text and gives what is certain now.
    pub(crate) fn push(&mut self, text: &str) -> String {
        if self.hit {
            return String::new();
        }
        self.held.push_str(text);
        // The stop string that is complete first counts; of several, the longest.
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

    /// Gives what was held back: the text has ended.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Length of the longest end of the text that a stop string begins with.
    fn longest_beginning(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0).saturating_sub(1);
        let begins = |len: &usize| {
            let start = self.held.len() - len;
            self.held.is_char_boundary(start) && self.stops.iter().any(|stop| stop.starts_with(&self.held[start..]))
        };
        (1..=longest.min(self.held.len())).rev().find(begins).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut watch = StopStrings::new(&stops);
        let mut out: Vec<String> = pieces.iter().map(|piece| watch.push(piece)).collect();
        out.push(watch.finish());
        (out, watch.hit())
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
            (&["é!"], &["caf", "é", "é!"], &["caf", "", "é", ""], true),
            (&[""], &["x"], &["x", ""], false),
        ];
        for (stops, pieces, expected, hit) in cases {
            let (out, found) = run(stops, pieces);
            assert_eq!(
                (out, found),
                (expected.iter().map(|s| (*s).to_owned()).collect(), *hit),
                "{stops:?} {pieces:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            stops in prop::collection::vec("[abé]{1,3}", 0..3),
            pieces in prop::collection::vec("[abé]{0,4}", 0..6),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let whole = pieces.concat();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let (out, hit) = run(&stops, &pieces);
            let one_by_one: Vec<String> = whole.chars().map(String::from).collect();
            let one_by_one: Vec<&str> = one_by_one.iter().map(String::as_str).collect();
            let (expected, expected_hit) = run(&stops, &one_by_one);
            let text = out.concat();
            prop_assert_eq!((&text, hit), (&expected.concat(), expected_hit));
            prop_assert!(whole.starts_with(&text));
            prop_assert!(stops.iter().all(|stop| !text.contains(stop)));
            prop_assert_eq!(hit, stops.iter().any(|stop| whole.contains(stop)));
        }
    }
}
