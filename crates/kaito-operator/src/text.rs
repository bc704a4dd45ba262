//! Pieces of text that several modules write: lists, counts, times, and short hashes.

use std::fmt::Display;

use k8s_openapi::jiff::{Timestamp, Unit};
use sha2::{Digest, Sha256};

/// Longer lists are cut, so that a message stays readable in a cluster of a thousand nodes.
const LISTED: usize = 5;

/// `a, b and 3 more`
pub fn list<T: Display>(items: &[T]) -> String {
    let mut text = items.iter().take(LISTED).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if items.len() > LISTED {
        text.push_str(&format!(" and {} more", items.len() - LISTED));
    }
    text
}

/// `1 node`, `2 nodes`
pub fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// Whole seconds, as Kubernetes prints them.
pub fn time(timestamp: Timestamp) -> String {
    timestamp.round(Unit::Second).unwrap_or(timestamp).to_string()
}

/// `45s`, `3m12s`, `2h5m`
pub fn duration(seconds: i64) -> String {
    let seconds = seconds.max(0);
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, 0) => format!("{m}m"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, 0, _) => format!("{h}h"),
        (h, m, _) => format!("{h}h{m}m"),
    }
}

/// Seconds from one time to another; 0 where they are in the other order.
pub fn seconds_between(from: Timestamp, to: Timestamp) -> i64 {
    (to.as_second() - from.as_second()).max(0)
}

/// The first 16 hexadecimal digits of a text's SHA-256.
pub fn digest(text: &str) -> String {
    Sha256::digest(text).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_cut() {
        assert_eq!(list::<String>(&[]), "");
        assert_eq!(list(&["a", "b"]), "a, b");
        assert_eq!(list(&[1, 2, 3, 4, 5, 6, 7]), "1, 2, 3, 4, 5 and 2 more");
    }

    #[test]
    fn durations_are_short() {
        for (seconds, text) in
            [(-5, "0s"), (0, "0s"), (59, "59s"), (60, "1m"), (192, "3m12s"), (3600, "1h"), (7530, "2h5m")]
        {
            assert_eq!(duration(seconds), text);
        }
    }

    /// The first is an example of FIPS 180-4.
    #[test]
    fn digests_are_the_beginning_of_sha_256() {
        assert_eq!(digest("abc"), "ba7816bf8f01cfea");
        assert_eq!(digest(""), "e3b0c44298fc1c14");
    }
}
