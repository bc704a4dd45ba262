//! Methods of values other than strings, and the table of all methods.

use std::rc::Rc;

use crate::fault::{Fault, Outcome};
use crate::functions::{CallArgs, Function, Global};
use crate::render::Renderer;
use crate::value::{Part, Value, View};

/// The methods of Python's types that templates may call.
pub(crate) static METHODS: [(&str, &[&str]); 10] = [
    (
        "str",
        &[
            "capitalize",
            "casefold",
            "center",
            "count",
            "encode",
            "endswith",
            "expandtabs",
            "find",
            "format",
            "format_map",
            "index",
            "isalnum",
            "isalpha",
            "isascii",
            "isdecimal",
            "isdigit",
            "isidentifier",
            "islower",
            "isnumeric",
            "isprintable",
            "isspace",
            "istitle",
            "isupper",
            "join",
            "ljust",
            "lower",
            "lstrip",
            "maketrans",
            "partition",
            "removeprefix",
            "removesuffix",
            "replace",
            "rfind",
            "rindex",
            "rjust",
            "rpartition",
            "rsplit",
            "rstrip",
            "split",
            "splitlines",
            "startswith",
            "strip",
            "swapcase",
            "title",
            "translate",
            "upper",
            "zfill",
            "striptags",
            "unescape",
            "escape",
        ],
    ),
    ("list", &["copy", "count", "index"]),
    ("tuple", &["count", "index"]),
    ("dict", &["copy", "fromkeys", "get", "items", "keys", "values"]),
    ("range", &["count", "index"]),
    ("view", &["isdisjoint"]),
    ("int", &["as_integer_ratio", "bit_count", "bit_length", "conjugate", "from_bytes", "to_bytes"]),
    ("float", &["as_integer_ratio", "conjugate", "fromhex", "hex", "is_integer"]),
    ("cycler", &["next", "reset"]),
    ("function", &["fromkeys"]),
];

/// The methods that change a list or a dictionary, which the sandbox forbids.
pub(crate) fn is_mutating(value: &Value, name: &str) -> bool {
    match value {
        Value::List(_) => {
            matches!(name, "append" | "clear" | "pop" | "reverse" | "insert" | "sort" | "extend" | "remove")
        }
        Value::Dict(_) => matches!(name, "clear" | "pop" | "popitem" | "setdefault" | "update"),
        _ => false,
    }
}

impl Renderer<'_> {
    pub(crate) fn call_method(&mut self, of: &Value, name: &'static str, args: CallArgs) -> Outcome<Value> {
        match of {
            Value::Str(text) => self.str_method(&text.clone(), name, args),
            Value::List(_) | Value::Tuple(_) | Value::Range(_) => self.sequence_method(of, name, args),
            Value::Dict(_) => self.dict_method(of, name, args),
            Value::View(view) => match name {
                "isdisjoint" if view.part != Part::Values => {
                    let [other] = args.bind_positional(name, 1)?;
                    let iter = self.iter(&other.unwrap_or(Value::None))?;
                    while let Some(item) = self.next(&iter)? {
                        if self.contains(of, &item)? {
                            return Ok(Value::Bool(false));
                        }
                    }
                    Ok(Value::Bool(true))
                }
                _ => Err(Fault::unsupported(format!("the attribute {name} of a view of a dictionary"))),
            },
            Value::Int(_) | Value::Bool(_) | Value::Float(_) => self.number_method(of, name, args),
            Value::Cycler(cycler) => {
                let [] = args.bind_positional(name, 0)?;
                let at = cycler.at.get();
                if name == "reset" {
                    cycler.at.set(0);
                    return Ok(Value::None);
                }
                cycler.at.set((at + 1) % cycler.items.items.len().max(1));
                Ok(cycler.items.items.get(at).cloned().unwrap_or(Value::None))
            }
            Value::Loop(state) => {
                if !args.keywords.is_empty() {
                    return Err(Fault::type_error(format!("{name}() takes no keyword arguments")));
                }
                if name == "changed" {
                    let values = self.budget.tuple(args.positional)?;
                    let before = self.changed.get(&state.id).cloned();
                    let changed = match before {
                        None => true,
                        Some(before) => !self.equal(&before, &values)?,
                    };
                    if changed {
                        self.changed.insert(state.id, values);
                    }
                    return Ok(Value::Bool(changed));
                }
                if args.positional.is_empty() {
                    return Err(Fault::type_error("no items for cycling given"));
                }
                let at = state.index.get().saturating_sub(1) % args.positional.len();
                Ok(args.positional.get(at).cloned().unwrap_or(Value::None))
            }
            Value::Function(function) => match function.as_ref() {
                Function::Global(Global::Dict) => self.dict_from_keys(args),
                _ => Err(Fault::unsupported("an attribute of a function")),
            },
            other => Err(Fault::type_error(format!("'{}' object is not callable", other.type_name()))),
        }
    }

    fn sequence_method(&mut self, of: &Value, name: &str, args: CallArgs) -> Outcome<Value> {
        if name == "copy" {
            let [] = args.bind_positional(name, 0)?;
            let items = match of {
                Value::List(items) => items.items.clone(),
                _ => Vec::new(),
            };
            return self.budget.list(items);
        }
        let most = if name == "index" && !matches!(of, Value::Range(_)) { 3 } else { 1 };
        if args.positional.len() > most {
            return Err(Fault::type_error(format!("{name}() takes at most {most} arguments")));
        }
        let [item, start, stop]: [Option<Value>; 3] = args.bind_positional(name, 1)?;
        let item = item.unwrap_or(Value::None);
        let length = self.length(of)?;
        let bound = |value: i128| {
            let value = if value < 0 { value.saturating_add(length as i128).max(0) } else { value };
            usize::try_from(value).unwrap_or(usize::MAX)
        };
        let start = bound(self.int_arg(start.as_ref(), 0)?);
        let stop = bound(self.int_arg(stop.as_ref(), i128::MAX)?);
        let iter = self.iter(of)?;
        let mut count = 0;
        let mut at = 0;
        while let Some(value) = self.next(&iter)? {
            let within = start <= at && at < stop;
            if within && (self.same(&value, &item) || self.equal(&value, &item)?) {
                if name == "index" {
                    return Ok(Value::Int(at as i128));
                }
                count += 1;
            }
            at += 1;
        }
        match name {
            "index" => Err(Fault::value_error(format!("the value is not in the {}", of.type_name()))),
            _ => Ok(Value::Int(count)),
        }
    }

    fn dict_method(&mut self, of: &Value, name: &str, args: CallArgs) -> Outcome<Value> {
        let Value::Dict(dict) = of else { return Ok(Value::None) };
        let view = |part| Ok(Value::View(Rc::new(View { dict: dict.clone(), part })));
        match name {
            "get" => {
                let [key, default]: [Option<Value>; 2] = args.bind_positional(name, 1)?;
                let found = self.get(dict, &key.unwrap_or(Value::None))?;
                Ok(found.or(default).unwrap_or(Value::None))
            }
            "fromkeys" => self.dict_from_keys(args),
            _ => {
                let [] = args.bind_positional(name, 0)?;
                match name {
                    "items" => view(Part::Items),
                    "keys" => view(Part::Keys),
                    "values" => view(Part::Values),
                    _ => self.dict(dict.entries.clone()),
                }
            }
        }
    }

    fn dict_from_keys(&mut self, args: CallArgs) -> Outcome<Value> {
        let [keys, value]: [Option<Value>; 2] = args.bind_positional("fromkeys", 1)?;
        let value = value.unwrap_or(Value::None);
        let iter = self.iter(&keys.unwrap_or(Value::None))?;
        let mut entries = Vec::new();
        while let Some(key) = self.next(&iter)? {
            self.budget.room(entries.len().saturating_mul(128))?;
            entries.push((key, value.clone()));
        }
        self.dict(entries)
    }

    fn number_method(&mut self, of: &Value, name: &str, args: CallArgs) -> Outcome<Value> {
        if matches!(name, "from_bytes" | "to_bytes") {
            return Err(Fault::unsupported("a value of type bytes"));
        }
        if name == "fromhex" {
            return Err(Fault::unsupported("float.fromhex"));
        }
        let [] = args.bind_positional(name, 0)?;
        let bits = |of: &Value| of.as_int().unwrap_or_default().unsigned_abs();
        match (name, of) {
            ("conjugate", Value::Float(_)) => Ok(of.clone()),
            ("conjugate", _) => Ok(Value::Int(of.as_int().unwrap_or_default())),
            ("bit_length", _) => Ok(Value::Int(i128::from(u128::BITS - bits(of).leading_zeros()))),
            ("bit_count", _) => Ok(Value::Int(i128::from(bits(of).count_ones()))),
            ("is_integer", Value::Float(float)) => Ok(Value::Bool(float.is_finite() && float.fract() == 0.0)),
            ("hex", Value::Float(float)) => self.budget.str(hex(*float)),
            ("as_integer_ratio", Value::Float(float)) => {
                if !float.is_finite() {
                    return Err(Fault::value_error("cannot convert NaN or Infinity to integer ratio"));
                }
                let (mut numerator, mut denominator) = (*float, 1i128);
                while numerator.fract() != 0.0 {
                    numerator *= 2.0;
                    denominator = denominator.checked_mul(2).ok_or_else(crate::numbers::too_large)?;
                }
                let numerator = crate::ops::integral(numerator).ok_or_else(crate::numbers::too_large)?;
                self.budget.tuple(vec![Value::Int(numerator), Value::Int(denominator)])
            }
            ("as_integer_ratio", _) => {
                self.budget.tuple(vec![Value::Int(of.as_int().unwrap_or_default()), Value::Int(1)])
            }
            _ => Err(Fault::type_error(format!("'{}' object has no method {name}", of.type_name()))),
        }
    }
}

/// `float.hex`.
fn hex(value: f64) -> String {
    let sign = if value.is_sign_negative() && !value.is_nan() { "-" } else { "" };
    if !value.is_finite() {
        return crate::float::repr(value);
    }
    let bits = value.to_bits();
    let (exponent, mantissa) = ((bits >> 52) & 0x7ff, bits & ((1 << 52) - 1));
    match (exponent, mantissa) {
        (0, 0) => format!("{sign}0x0.0p+0"),
        (0, _) => format!("{sign}0x0.{mantissa:013x}p-1022"),
        _ => {
            let exponent = i64::try_from(exponent).unwrap_or(0) - 1023;
            format!("{sign}0x1.{mantissa:013x}p{exponent:+}")
        }
    }
}
