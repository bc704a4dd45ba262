//! Sizes for people, rounded so that what is called enough is enough.

use crate::GIB;

/// Bytes that are there: `14.56 GiB`, never more than it is.
pub fn gib(bytes: u64) -> String {
    text(u128::from(bytes) * 100 / u128::from(GIB))
}

/// Bytes that are needed: `14.57 GiB`, never less than it is.
pub fn gib_needed(bytes: u64) -> String {
    text((u128::from(bytes) * 100).div_ceil(u128::from(GIB)))
}

fn text(hundredths: u128) -> String {
    let (whole, rest) = (hundredths / 100, hundredths % 100);
    match rest {
        0 => format!("{whole} GiB"),
        rest if rest % 10 == 0 => format!("{whole}.{} GiB", rest / 10),
        rest => format!("{whole}.{rest:02} GiB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_never_flatters() {
        for (bytes, has, needs) in [
            (0, "0 GiB", "0 GiB"),
            (1, "0 GiB", "0.01 GiB"),
            (GIB, "1 GiB", "1 GiB"),
            (GIB + 1, "1 GiB", "1.01 GiB"),
            (3 * GIB / 2, "1.5 GiB", "1.5 GiB"),
            (16_000_000_000, "14.9 GiB", "14.91 GiB"),
            (u64::MAX, "17179869183.99 GiB", "17179869184 GiB"),
        ] {
            assert_eq!((gib(bytes).as_str(), gib_needed(bytes).as_str()), (has, needs), "{bytes}");
        }
    }
}
