//! The trace that a request belongs to, as W3C Trace Context has it.

use axum::http::{HeaderMap, HeaderName, HeaderValue};

/// The header that names a trace and the caller's span in it.
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Bytes of `VERSION-TRACE_ID-PARENT_ID-FLAGS`.
const LENGTH: usize = 2 + 1 + 32 + 1 + 16 + 1 + 2;

/// A valid `traceparent`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Traceparent(HeaderValue);

impl Traceparent {
    /// The one of a request. Where there are several, or one that the specification calls invalid, the request belongs to no
    /// trace that this server knows of.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let value = values.next()?;
        if values.next().is_some() {
            return None;
        }
        valid(value.as_bytes()).then(|| Self(value.clone()))
    }

    /// The trace's id, in lower-case hexadecimal digits.
    pub(crate) fn trace_id(&self) -> &str {
        self.0.to_str().ok().and_then(|value| value.get(3..35)).unwrap_or_default()
    }

    /// The header as it came.
    pub(crate) fn into_value(self) -> HeaderValue {
        self.0
    }
}

/// Section 3.2 of the specification: version 00 has exactly these four fields; later ones may have more behind them.
fn valid(value: &[u8]) -> bool {
    let Some((known, rest)) = value.split_at_checked(LENGTH) else { return false };
    let mut fields = known.split(|byte| *byte == b'-');
    let mut field = |length: usize| {
        let is_hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        fields.next().filter(|field| field.len() == length && field.iter().all(is_hex))
    };
    let (Some(version), Some(trace), Some(parent), Some(_flags)) = (field(2), field(32), field(16), field(2)) else {
        return false;
    };
    let zero = |field: &[u8]| field.iter().all(|byte| *byte == b'0');
    let complete = if version == b"00" { rest.is_empty() } else { rest.is_empty() || rest.starts_with(b"-") };
    version != b"ff" && !zero(trace) && !zero(parent) && complete
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[&'static str]) -> Option<Traceparent> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(TRACEPARENT, HeaderValue::from_static(value));
        }
        Traceparent::of(&headers)
    }

    /// The valid ones are the examples of the specification, sections 3.2.2 and 3.2.4.
    #[test]
    fn a_traceparent_is_valid_or_not_there() {
        for (value, expected) in [
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", true),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", true),
            ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", true),
            ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-the-future-will-be-like", true),
            ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.what", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", false),
            ("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", false),
            ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", false),
            ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0g", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7", false),
            ("4bf92f3577b34da6a3ce929d0e0e4736", false),
            ("", false),
        ] {
            let found = of(&[value]);
            assert_eq!(found.is_some(), expected, "{value}");
            if let Some(found) = found {
                assert_eq!(found.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736", "{value}");
                assert_eq!(found.into_value(), value);
            }
        }
        assert_eq!(of(&[]), None);
        let valid = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(of(&[valid, valid]), None, "which of the two it belongs to is unknown");
    }
}
