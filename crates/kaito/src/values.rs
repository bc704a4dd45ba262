//! Values of flags: sizes, times, numbers.

use std::time::Duration;

use bytesize::ByteSize;

/// `4GiB`, `512MB`, `1073741824`.
pub fn size(text: &str) -> Result<u64, String> {
    let size: ByteSize = text.parse().map_err(|_| "expected a size like 4GiB, 512MB or 1073741824".to_owned())?;
    match size.as_u64() {
        0 => Err("expected more than nothing".to_owned()),
        bytes => Ok(bytes),
    }
}

/// `180s`, `3m`, `1m 30s`; a bare number is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let parsed = match text.trim().parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text).ok(),
    };
    match parsed {
        None => Err("expected a time like 180s, 3m or 1h".to_owned()),
        Some(Duration::ZERO) => Err("expected more than nothing".to_owned()),
        Some(duration) => Ok(duration),
    }
}

pub fn temperature(text: &str) -> Result<f32, String> {
    text.parse()
        .ok()
        .filter(|value: &f32| value.is_finite() && *value >= 0.0)
        .ok_or_else(|| "expected a number that is not negative".to_owned())
}

/// The first of the keys that a server may have several of, with commas or in lines.
pub fn first_key(text: &str) -> Result<String, String> {
    let mut keys = text.split([',', '\n', '\r']).map(str::trim).filter(|key| !key.is_empty());
    keys.next().map(str::to_owned).ok_or_else(|| "is empty".to_owned())
}

pub fn not_empty(text: &str) -> Result<String, String> {
    if text.trim().is_empty() { Err("is empty".to_owned()) } else { Ok(text.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("1", 1),
            ("1073741824", 1 << 30),
            ("4GiB", 4 << 30),
            ("4 GiB", 4 << 30),
            ("4gib", 4 << 30),
            ("4GB", 4_000_000_000),
            ("1.5GiB", 3 << 29),
            ("512MiB", 512 << 20),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "-1", "GiB", "4 XB", "1e400GiB", "NaN", "0", "0GiB", "four"] {
            assert!(size(text).is_err(), "{text:?} gave {:?}", size(text));
        }
    }

    #[test]
    fn durations() {
        for (text, seconds) in [("180s", 180), ("180", 180), ("3m", 180), ("1m 30s", 90), ("1h", 3600)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        for text in ["", "0", "0s", "-1s", "soon", "1.5.2s", "99999999999999999999s"] {
            assert!(duration(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_client_shows_the_first_of_several_keys() {
        for (text, key) in [("secret", "secret"), (" secret\n", "secret"), (",a b , c", "a b")] {
            assert_eq!(first_key(text).as_deref(), Ok(key));
        }
        assert!(first_key(" , ").is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_text_gets_an_answer(text in ".*") {
            let _ = (size(&text), duration(&text), temperature(&text), not_empty(&text));
        }
    }
}
