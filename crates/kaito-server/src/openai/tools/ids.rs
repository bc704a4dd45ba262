//! Names of calls, and how those in a history become names that a template accepts.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use rand::RngExt as _;
use rand::distr::Alphanumeric;

/// What the names of calls look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IdStyle {
    /// `call_` and 24 letters and digits.
    Generic,
    /// [`NATIVE`] letters and digits, for templates accept no others.
    Native,
}

/// Letters and digits of a native name.
const NATIVE: usize = 9;
const GENERIC: usize = 24;

impl IdStyle {
    /// A new name.
    pub(crate) fn make(self) -> String {
        let random = |count: usize| rand::rng().sample_iter(Alphanumeric).take(count).map(char::from);
        match self {
            Self::Generic => "call_".chars().chain(random(GENERIC)).collect(),
            Self::Native => random(NATIVE).collect(),
        }
    }
}

/// Native names for those in a history: the same for a call and its result, different for different ones.
#[derive(Debug, Default)]
pub(super) struct NativeIds {
    given: HashMap<String, String>,
    /// By native name, which one it stands for.
    taken: HashMap<String, String>,
}

impl NativeIds {
    pub(super) fn of(&mut self, id: &str) -> String {
        if let Some(native) = self.given.get(id) {
            return native.clone();
        }
        let mut native = shortened(id).unwrap_or_else(|| hashed(id, 0));
        for attempt in 1.. {
            match self.taken.entry(native.clone()) {
                Entry::Vacant(entry) => {
                    entry.insert(id.to_owned());
                    break;
                }
                Entry::Occupied(_) => native = hashed(id, attempt),
            }
        }
        self.given.insert(id.to_owned(), native.clone());
        native
    }
}

/// The last letters and digits, if there are enough.
fn shortened(id: &str) -> Option<String> {
    let letters: Vec<char> = id.chars().filter(char::is_ascii_alphanumeric).collect();
    let from = letters.len().checked_sub(NATIVE)?;
    Some(letters.get(from..)?.iter().collect())
}

/// Letters and digits that depend on nothing but the name: FNV-1a, written in base 62.
fn hashed(id: &str, attempt: u64) -> String {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let bytes = id.bytes().chain(attempt.to_le_bytes());
    let mut hash = bytes
        .fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3));
    let mut text = String::new();
    for _ in 0..NATIVE {
        text.push(char::from(DIGITS[(hash % 62) as usize]));
        hash /= 62;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_letters_and_digits() {
        let good =
            |text: &str, count: usize| text.len() == count && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let (one, other) = (IdStyle::Generic.make(), IdStyle::Generic.make());
        assert!(one.strip_prefix("call_").is_some_and(|rest| good(rest, 24)), "{one}");
        assert_ne!(one, other);
        assert!(good(&IdStyle::Native.make(), 9));
    }

    #[test]
    fn names_of_a_history_become_native_ones() {
        let mut ids = NativeIds::default();
        for (id, native) in [
            ("Kq3vW9xTb", "Kq3vW9xTb"),
            ("call_abcdefghijkl", "defghijkl"),
            ("toolu_01-Aa_Bb", "olu01AaBb"),
            // Taken already, by another.
            ("call_XdefghijklX", "efghijklX"),
            ("chatcmpl-tool-0123456789", "123456789"),
        ] {
            assert_eq!(ids.of(id), native, "{id}");
            assert_eq!(ids.of(id), native, "{id}");
        }
        let mut others = Vec::new();
        for id in ["", "call_1", "call_2", "\u{fc}\u{fc}\u{fc}", "another_abcdefghijkl", "a third defghijkl"] {
            let native = ids.of(id);
            assert!(native.len() == 9 && native.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{native}");
            assert_eq!(ids.of(id), native, "{id}");
            assert!(!others.contains(&native), "{id}");
            others.push(native);
        }
        // The same in every request: what was computed for a prompt before is found again.
        assert_eq!(NativeIds::default().of("call_1"), others[1]);
    }
}
