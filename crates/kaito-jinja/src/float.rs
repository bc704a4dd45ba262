//! Floats as strings.

/// Digits and decimal exponent of a number in scientific notation, `d.ddde±x`.
fn parts(scientific: &str) -> (String, i32) {
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((scientific, "0"));
    (mantissa.replace('.', ""), exponent.parse().unwrap_or(0))
}

fn named(value: f64) -> Option<&'static str> {
    if value.is_nan() {
        return Some("nan");
    }
    value.is_infinite().then_some("inf")
}

/// Python's `repr`.
pub(crate) fn repr(value: f64) -> String {
    let sign = if value.is_sign_negative() && !value.is_nan() { "-" } else { "" };
    if let Some(name) = named(value) {
        return format!("{sign}{name}");
    }
    let (digits, exponent) = parts(&format!("{:e}", value.abs()));
    if !(-4..16).contains(&exponent) {
        return format!("{sign}{}", scientific(&digits, exponent, 'e', false));
    }
    let text = positional(&digits, exponent);
    if text.contains('.') { format!("{sign}{text}") } else { format!("{sign}{text}.0") }
}

fn scientific(digits: &str, exponent: i32, letter: char, point: bool) -> String {
    let (first, rest) = digits.split_at(1.min(digits.len()));
    let dot = if rest.is_empty() && !point { "" } else { "." };
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{first}{dot}{rest}{letter}{sign}{:02}", exponent.abs())
}

fn positional(digits: &str, exponent: i32) -> String {
    let whole = exponent + 1;
    if whole <= 0 {
        return format!("0.{}{digits}", "0".repeat(usize::try_from(-whole).unwrap_or(0)));
    }
    let whole = usize::try_from(whole).unwrap_or(0);
    if digits.len() <= whole {
        return format!("{digits}{}", "0".repeat(whole - digits.len()));
    }
    format!("{}.{}", &digits[..whole], &digits[whole..])
}

/// A number that is not negative, by one of the conversions `e`, `f`, `g` of printf and their capitals. `alternate` keeps
/// the point, and for `g` the zeros at the end.
pub(crate) fn format(value: f64, conversion: char, precision: usize, alternate: bool) -> String {
    let text = if let Some(name) = named(value) {
        name.to_owned()
    } else {
        match conversion.to_ascii_lowercase() {
            'e' => {
                let (digits, exponent) = parts(&format!("{value:.precision$e}"));
                scientific(&digits, exponent, 'e', alternate)
            }
            'g' => {
                let precision = precision.max(1);
                let (digits, exponent) = parts(&format!("{value:.*e}", precision - 1));
                let digits = if alternate { digits.as_str() } else { digits.trim_end_matches('0') };
                let digits = if digits.is_empty() { "0" } else { digits };
                let large = i64::try_from(precision).is_ok_and(|precision| i64::from(exponent) >= precision);
                if exponent < -4 || large {
                    scientific(digits, exponent, 'e', alternate)
                } else {
                    let text = positional(digits, exponent);
                    if alternate && !text.contains('.') { text + "." } else { text }
                }
            }
            _ => {
                let text = format!("{value:.precision$}");
                if alternate && precision == 0 { text + "." } else { text }
            }
        }
    };
    if conversion.is_ascii_uppercase() { text.to_ascii_uppercase() } else { text }
}

/// Python's `round` of a float to some digits after the point, or before it if they are negative.
pub(crate) fn round(value: f64, digits: i128) -> Option<f64> {
    if !value.is_finite() || digits > 323 {
        return Some(value);
    }
    if digits < -308 {
        return Some(0.0f64.copysign(value));
    }
    if let Ok(digits) = usize::try_from(digits) {
        return format!("{value:.digits$}").parse().ok();
    }
    // Halves go to the even digit: what lies beyond the point decides before that.
    let scale = i32::try_from(digits).ok()?.unsigned_abs();
    let whole = format!("{:.0}", value.abs().trunc());
    let fraction = value.abs().fract() > 0.0;
    let scale = usize::try_from(scale).ok()?;
    if whole.len() < scale {
        return Some(0.0f64.copysign(value));
    }
    let (kept, dropped) = whole.split_at(whole.len() - scale);
    let half = format!("5{}", "0".repeat(scale - 1));
    let odd = kept.bytes().last().is_some_and(|digit| digit % 2 == 1);
    let up = dropped > half.as_str() || (dropped == half && (fraction || odd));
    let kept: i128 = if kept.is_empty() { 0 } else { kept.parse().ok()? };
    let rounded: f64 = format!("{}e{scale}", kept + i128::from(up)).parse().ok()?;
    Some(rounded.copysign(value))
}
