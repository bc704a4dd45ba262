//! Arithmetic, with Python's rules: integers are as large as needed (here up to 128 bits), division rounds down.

use crate::ast::Binary;
use crate::fault::{Fault, Kind, Outcome};
use crate::render::Renderer;
use crate::value::Value;

pub(crate) fn too_large() -> Fault {
    Fault::unsupported("an integer beyond 128 bits")
}

fn zero_division() -> Fault {
    Fault::new(Kind::ZeroDivision, "division by zero")
}

fn int(value: Option<i128>) -> Outcome<Value> {
    value.map(Value::Int).ok_or_else(too_large)
}

/// Python's `//` and `%`.
fn floor_div(left: i128, right: i128) -> Option<i128> {
    let quotient = left.checked_div(right)?;
    let inexact = left.checked_rem(right)? != 0;
    if inexact && (left < 0) != (right < 0) { quotient.checked_sub(1) } else { Some(quotient) }
}

fn modulo(left: i128, right: i128) -> Option<i128> {
    let remainder = left.checked_rem(right)?;
    if remainder != 0 && (remainder < 0) != (right < 0) { remainder.checked_add(right) } else { Some(remainder) }
}

/// `divmod` of floats.
fn float_divmod(left: f64, right: f64) -> (f64, f64) {
    let mut remainder = left % right;
    let mut quotient = (left - remainder) / right;
    if remainder == 0.0 {
        remainder = 0.0f64.copysign(right);
    } else if (right < 0.0) != (remainder < 0.0) {
        remainder += right;
        quotient -= 1.0;
    }
    let floor = if quotient == 0.0 {
        0.0f64.copysign(left / right)
    } else {
        let floor = quotient.floor();
        if quotient - floor > 0.5 { floor + 1.0 } else { floor }
    };
    (floor, remainder)
}

fn int_power(base: i128, exponent: i128) -> Outcome<Value> {
    let Ok(exponent) = u64::try_from(exponent) else {
        if base == 0 {
            return Err(Fault::new(Kind::ZeroDivision, "0.0 cannot be raised to a negative power"));
        }
        return float_power(base as f64, exponent as f64);
    };
    match base {
        0 | 1 => Ok(Value::Int(if exponent == 0 { 1 } else { base })),
        -1 => Ok(Value::Int(if exponent.is_multiple_of(2) { 1 } else { -1 })),
        _ => int(u32::try_from(exponent).ok().and_then(|exponent| base.checked_pow(exponent))),
    }
}

fn float_power(base: f64, exponent: f64) -> Outcome<Value> {
    if base == 0.0 && exponent < 0.0 {
        return Err(Fault::new(Kind::ZeroDivision, "0.0 cannot be raised to a negative power"));
    }
    if base < 0.0 && base.is_finite() && exponent.is_finite() && exponent.fract() != 0.0 {
        return Err(Fault::unsupported("a complex number"));
    }
    let power = base.powf(exponent);
    if power.is_infinite() && base.is_finite() && exponent.is_finite() {
        return Err(Fault::new(Kind::Overflow, "the result is too large for a float"));
    }
    Ok(Value::Float(power))
}

fn float_of(value: &Value) -> Option<f64> {
    match value {
        Value::Float(float) => Some(*float),
        other => other.as_int().map(|int| int as f64),
    }
}

impl Renderer<'_> {
    pub(crate) fn binary(&mut self, operator: Binary, left: &Value, right: &Value) -> Outcome<Value> {
        if let (Value::Str(format), Binary::Mod) = (left, operator) {
            let format = format.clone();
            return self.percent(&format, right);
        }
        if let Some(undefined) = [left, right].into_iter().find(|value| value.is_undefined()) {
            return Err(self.undefined_or(undefined, Fault::type_error("undefined")));
        }
        if let (Some(left), Some(right)) = (left.as_int(), right.as_int()) {
            return int_operation(operator, left, right);
        }
        if let (Some(left), Some(right)) = (float_of(left), float_of(right)) {
            return float_operation(operator, left, right);
        }
        match (operator, left, right) {
            (Binary::Add, Value::Str(_), Value::Str(_)) => self.add_text(left, right),
            (Binary::Add, Value::List(left), Value::List(right)) => Ok(Value::List(self.add_sequences(left, right)?)),
            (Binary::Add, Value::Tuple(left), Value::Tuple(right)) => {
                Ok(Value::Tuple(self.add_sequences(left, right)?))
            }
            (Binary::Mul, Value::Str(_) | Value::List(_) | Value::Tuple(_), _) if right.as_int().is_some() => {
                self.multiply(left, right.as_int().unwrap_or_default())
            }
            (Binary::Mul, _, Value::Str(_) | Value::List(_) | Value::Tuple(_)) if left.as_int().is_some() => {
                self.multiply(right, left.as_int().unwrap_or_default())
            }
            (Binary::Sub, Value::View(_), _) | (Binary::Sub, _, Value::View(_)) => {
                Err(Fault::unsupported("the keys of a dictionary as a set"))
            }
            _ => {
                let (symbol, left, right) = (operator.symbol(), left.type_name(), right.type_name());
                Err(Fault::type_error(format!("unsupported operand type(s) for {symbol}: '{left}' and '{right}'")))
            }
        }
    }

    pub(crate) fn negative(&mut self, value: &Value) -> Outcome<Value> {
        match value {
            Value::Float(float) => Ok(Value::Float(-float)),
            other => match other.as_int() {
                Some(value) => int(value.checked_neg()),
                None => {
                    let message = format!("bad operand type for unary -: '{}'", other.type_name());
                    Err(self.undefined_or(other, Fault::type_error(message)))
                }
            },
        }
    }

    pub(crate) fn positive(&mut self, value: &Value) -> Outcome<Value> {
        match value {
            Value::Float(float) => Ok(Value::Float(*float)),
            other => other.as_int().map(Value::Int).ok_or_else(|| {
                let message = format!("bad operand type for unary +: '{}'", other.type_name());
                self.undefined_or(other, Fault::type_error(message))
            }),
        }
    }

    /// Python's `float` of a value.
    pub(crate) fn float(&mut self, value: &Value) -> Outcome<f64> {
        if let Some(float) = float_of(value) {
            return Ok(float);
        }
        match value {
            Value::Str(text) => parse_float(&text.text).ok_or_else(|| {
                Fault::value_error(format!("could not convert string to float: {}", crate::fault::quoted(&text.text)))
            }),
            other => {
                let name = other.type_name();
                let message = format!("float() argument must be a string or a real number, not '{name}'");
                Err(self.undefined_or(other, Fault::type_error(message)))
            }
        }
    }

    /// Python's `int` of a value; of a string, in a base.
    pub(crate) fn int(&mut self, value: &Value, base: Option<i128>) -> Outcome<i128> {
        match value {
            Value::Str(text) => {
                self.bytes(text.text.len())?;
                parse_int(&text.text, base.unwrap_or(10))
            }
            Value::Float(float) if float.is_nan() => Err(Fault::value_error("cannot convert float NaN to integer")),
            Value::Float(float) if float.is_infinite() => {
                Err(Fault::new(Kind::Overflow, "cannot convert float infinity to integer"))
            }
            Value::Float(float) => crate::ops::integral(float.trunc()).ok_or_else(too_large),
            other => other.as_int().ok_or_else(|| {
                let name = other.type_name();
                let message = format!("int() argument must be a string or a real number, not '{name}'");
                self.undefined_or(other, Fault::type_error(message))
            }),
        }
    }
}

fn int_operation(operator: Binary, left: i128, right: i128) -> Outcome<Value> {
    match operator {
        Binary::Add => int(left.checked_add(right)),
        Binary::Sub => int(left.checked_sub(right)),
        Binary::Mul => int(left.checked_mul(right)),
        Binary::Div | Binary::FloorDiv | Binary::Mod if right == 0 => Err(zero_division()),
        Binary::Div => Ok(Value::Float(left as f64 / right as f64)),
        Binary::FloorDiv => int(floor_div(left, right)),
        Binary::Mod => int(modulo(left, right)),
        Binary::Pow => int_power(left, right),
    }
}

fn float_operation(operator: Binary, left: f64, right: f64) -> Outcome<Value> {
    Ok(Value::Float(match operator {
        Binary::Add => left + right,
        Binary::Sub => left - right,
        Binary::Mul => left * right,
        Binary::Div | Binary::FloorDiv | Binary::Mod if right == 0.0 => return Err(zero_division()),
        Binary::Div => left / right,
        Binary::FloorDiv => float_divmod(left, right).0,
        Binary::Mod => float_divmod(left, right).1,
        Binary::Pow => return float_power(left, right),
    }))
}

/// A string without white space around it, with digits of any script as ASCII digits, without single underscores between digits.
fn plain_number(text: &str) -> Option<String> {
    let text = text.trim_matches(crate::chars::is_space);
    let mut plain = String::with_capacity(text.len());
    let mut previous = None;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character == '_' {
            let between = previous.is_some_and(char::is_alphanumeric)
                && characters.peek().is_some_and(|next| next.is_alphanumeric());
            if !between {
                return None;
            }
        } else {
            let digit = crate::chars::decimal(character).and_then(|digit| char::from_digit(digit, 10));
            plain.push(digit.unwrap_or(character));
        }
        previous = Some(character);
    }
    Some(plain)
}

pub(crate) fn parse_float(text: &str) -> Option<f64> {
    let plain = plain_number(text)?.to_ascii_lowercase();
    let unsigned = plain.strip_prefix(['+', '-']).unwrap_or(&plain);
    let named = matches!(unsigned, "inf" | "infinity" | "nan");
    let numeric = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && unsigned.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'+' | b'-'));
    if named || numeric { plain.parse().ok() } else { None }
}

pub(crate) fn parse_int(text: &str, base: i128) -> Outcome<i128> {
    let invalid = || {
        let text = crate::fault::quoted(text);
        Fault::value_error(format!("invalid literal for int() with base {base}: {text}"))
    };
    let radix = u32::try_from(base).ok().filter(|base| *base == 0 || (2..=36).contains(base));
    let radix = radix.ok_or_else(|| Fault::value_error("int() base must be >= 2 and <= 36, or 0"))?;
    let trimmed = text.trim_matches(crate::chars::is_space);
    let (negative, digits) = match trimmed.strip_prefix(['+', '-']) {
        Some(rest) => (trimmed.starts_with('-'), rest),
        None => (false, trimmed),
    };
    let prefix = digits.get(..2).map(str::to_ascii_lowercase);
    let prefixed = match prefix.as_deref() {
        Some("0x") => 16,
        Some("0o") => 8,
        Some("0b") => 2,
        _ => 0,
    };
    let (digits, radix) = if prefixed != 0 && (radix == 0 || radix == prefixed) {
        // One underscore may follow the prefix.
        let rest = &digits[2..];
        (rest.strip_prefix('_').unwrap_or(rest), prefixed)
    } else if radix == 0 {
        let zeros = digits.bytes().all(|byte| matches!(byte, b'0' | b'_'));
        if digits.starts_with('0') && !zeros {
            return Err(invalid());
        }
        (digits, 10)
    } else {
        (digits, radix)
    };
    if digits.is_empty() || digits.starts_with(|c| crate::chars::is_space(c) || c == '+' || c == '-') {
        return Err(invalid());
    }
    let plain = plain_number(digits).ok_or_else(invalid)?;
    if plain.is_empty() || !plain.chars().all(|character| character.is_digit(radix)) {
        return Err(invalid());
    }
    let signed = if negative { format!("-{plain}") } else { plain };
    i128::from_str_radix(&signed, radix).map_err(|_| too_large())
}
