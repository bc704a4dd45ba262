//! Values of flags: sizes, times, numbers.

use std::{num::NonZeroUsize, time::Duration};

use bytesize::ByteSize;
use kaito_engine::{DeviceChoice, KernelLevel, LevelError};
use url::Url;

/// `4GiB`, `512MB`, `1073741824`.
pub fn size(text: &str) -> Result<u64, String> {
    let size: ByteSize = text.parse().map_err(|_| "expected a size like 4GiB, 512MB or 1073741824".to_owned())?;
    match size.as_u64() {
        0 => Err("expected more than nothing".to_owned()),
        bytes => Ok(bytes),
    }
}

/// The largest body that a server may be told to take.
const MAX_BODY: u64 = 1 << 30;

/// A size of at most [`MAX_BODY`].
pub fn body_size(text: &str) -> Result<usize, String> {
    let bytes = size(text)?;
    usize::try_from(bytes).ok().filter(|_| bytes <= MAX_BODY).ok_or_else(|| "expected at most 1GiB".to_owned())
}

/// The longest time that a flag may ask for. More is as good as no limit, and too much cannot be added to the clock.
const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// `180s`, `3m`, `1m 30s`; a bare number is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let parsed = match text.trim().parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text).ok(),
    };
    match parsed {
        None => Err("expected a time like 180s, 3m or 1h".to_owned()),
        Some(Duration::ZERO) => Err("expected more than nothing".to_owned()),
        Some(duration) if duration > MAX_DURATION => Err("expected at most 365 days".to_owned()),
        Some(duration) => Ok(duration),
    }
}

/// A device of `kaito devices`, or `auto`.
pub fn device(text: &str) -> Result<DeviceChoice, String> {
    text.parse().map_err(|error: kaito_engine::DeviceError| error.cause)
}

/// A level of kernels, whether or not this machine has it.
pub fn kernels(text: &str) -> Result<KernelLevel, LevelError> {
    text.parse()
}

/// A number from 1 to `LIMIT`.
pub fn count<const LIMIT: usize>(text: &str) -> Result<NonZeroUsize, String> {
    text.parse()
        .ok()
        .filter(|count: &NonZeroUsize| count.get() <= LIMIT)
        .ok_or_else(|| format!("expected a number from 1 to {LIMIT}"))
}

pub fn temperature(text: &str) -> Result<f32, String> {
    text.parse()
        .ok()
        .filter(|value: &f32| value.is_finite() && *value >= 0.0)
        .ok_or_else(|| "expected a number that is not negative".to_owned())
}

/// The tag of an image.
pub fn tag(text: &str) -> Result<String, String> {
    if kaito_operator::install::is_tag(text) {
        Ok(text.to_owned())
    } else {
        Err("expected a tag: at most 128 letters, digits, underscores, dots and hyphens, like 0.1.0".to_owned())
    }
}

/// The first of the keys that a server may have several of, with commas or in lines.
pub fn first_key(text: &str) -> Result<String, String> {
    let mut keys = text.split([',', '\n', '\r']).map(str::trim).filter(|key| !key.is_empty());
    keys.next().map(str::to_owned).ok_or_else(|| "is empty".to_owned())
}

/// `http://` or `https://` with a host; without a scheme, `http://`.
pub fn url(text: &str) -> Result<Url, String> {
    let with_scheme = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let url =
        Url::parse(&with_scheme).map_err(|error| format!("{error}; expected an address like http://localhost:5000"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err("expected an address like http://localhost:5000".to_owned());
    }
    Ok(url)
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
        assert_eq!(duration("365d"), Ok(MAX_DURATION));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        for text in ["", "0", "0s", "-1s", "soon", "1.5.2s", "99999999999999999999s", "18446744073709551615", "366d"] {
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

    #[test]
    fn counts_are_bounded() {
        assert_eq!(count::<1024>("1024").map(NonZeroUsize::get), Ok(1024));
        for text in ["0", "1025", "18446744073709551615", "-1", "", "1.5"] {
            assert_eq!(count::<1024>(text), Err("expected a number from 1 to 1024".to_owned()), "{text:?}");
        }
    }

    #[test]
    fn bodies_have_at_most_a_gibibyte() {
        assert_eq!(body_size("1GiB"), Ok(1 << 30));
        for text in ["1073741825", "18446744073709551615", "8EiB", "0"] {
            assert!(body_size(text).is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_gets_an_answer(text in ".*") {
            let _ = (size(&text), duration(&text), temperature(&text), not_empty(&text), body_size(&text));
        }
    }
}
