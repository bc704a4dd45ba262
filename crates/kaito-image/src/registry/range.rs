//! Reads how many bytes of an upload the registry says it has.

/// How many bytes of an upload the registry has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    /// This many.
    Bytes(u64),
    /// None or one: `0-0` is written for both.
    NoneOrOne,
}

impl Received {
    /// From a `Range` header: `0-1023`, which includes its end. Some registries write a unit before it, and some `0--1`
    /// for nothing.
    pub(super) fn parse(header: &str) -> Option<Self> {
        let range = header.trim();
        let range = range.strip_prefix("bytes").map_or(range, |rest| rest.trim_start_matches(['=', ' ']));
        let end = range.strip_prefix("0-")?;
        match end {
            "-1" => Some(Self::Bytes(0)),
            "0" => Some(Self::NoneOrOne),
            _ if end.bytes().all(|byte| byte.is_ascii_digit()) => {
                end.parse::<u64>().ok()?.checked_add(1).map(Self::Bytes)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_include_their_end() {
        for (header, received) in [
            ("0-1023", Some(Received::Bytes(1024))),
            ("bytes=0-1023", Some(Received::Bytes(1024))),
            ("bytes 0-1", Some(Received::Bytes(2))),
            ("0-0", Some(Received::NoneOrOne)),
            ("0--1", Some(Received::Bytes(0))),
            ("0-18446744073709551614", Some(Received::Bytes(u64::MAX))),
            ("0-18446744073709551615", None),
            ("0-18446744073709551616", None),
            ("1-5", None),
            ("0-", None),
            ("0-+5", None),
            ("0-5/10", None),
            ("", None),
            ("-", None),
        ] {
            assert_eq!(Received::parse(header), received, "{header}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(end in 1..u64::MAX) {
            prop_assert_eq!(Received::parse(&format!("0-{end}")), Some(Received::Bytes(end + 1)));
        }

        #[test]
        fn anything_is_read_or_refused(header in ".{0,40}") {
            let _ = Received::parse(&header);
        }
    }
}
