//! Jinja2's built-in tests.

use crate::ast::{Binary, Comparison};
use crate::fault::{Fault, Kind, Outcome};
use crate::functions::{CallArgs, is_filter, is_test};
use crate::render::Renderer;
use crate::value::Value;

/// The names of all tests.
pub(crate) const TESTS: [&str; 39] = [
    "odd",
    "even",
    "divisibleby",
    "defined",
    "undefined",
    "filter",
    "test",
    "none",
    "boolean",
    "false",
    "true",
    "integer",
    "float",
    "lower",
    "upper",
    "string",
    "mapping",
    "number",
    "sequence",
    "iterable",
    "callable",
    "sameas",
    "escaped",
    "in",
    "==",
    "eq",
    "equalto",
    "!=",
    "ne",
    ">",
    "gt",
    "greaterthan",
    "ge",
    ">=",
    "<",
    "lt",
    "lessthan",
    "<=",
    "le",
];

impl Renderer<'_> {
    pub(crate) fn test(&mut self, name: &str, value: &Value, args: CallArgs) -> Outcome<Value> {
        self.step(1)?;
        let comparison = match name {
            "==" | "eq" | "equalto" => Some(Comparison::Eq),
            "!=" | "ne" => Some(Comparison::Ne),
            ">" | "gt" | "greaterthan" => Some(Comparison::Gt),
            ">=" | "ge" => Some(Comparison::Ge),
            "<" | "lt" | "lessthan" => Some(Comparison::Lt),
            "<=" | "le" => Some(Comparison::Le),
            _ => None,
        };
        if let Some(comparison) = comparison {
            let [other]: [Option<Value>; 1] = args.bind_positional(name, 1)?;
            return self.compare(comparison, value, &other.unwrap_or(Value::None)).map(Value::Bool);
        }
        let parameter = match name {
            "divisibleby" => Some("num"),
            "sameas" => Some("other"),
            "in" => Some("seq"),
            _ => None,
        };
        let argument = match parameter {
            Some(parameter) => {
                let [argument] = args.bind(name, [parameter], 1)?;
                argument.unwrap_or(Value::None)
            }
            None => {
                let [] = args.bind(name, [], 0)?;
                Value::None
            }
        };
        let holds = match name {
            "odd" | "even" => {
                let rest = self.binary(Binary::Mod, value, &Value::Int(2))?;
                self.equal(&rest, &Value::Int(i128::from(name == "odd")))?
            }
            "divisibleby" => {
                let rest = self.binary(Binary::Mod, value, &argument)?;
                self.equal(&rest, &Value::Int(0))?
            }
            "defined" => !value.is_undefined(),
            "undefined" => value.is_undefined(),
            "filter" | "test" => {
                self.hash(value)?;
                value.as_str().is_some_and(|value| if name == "filter" { is_filter(value) } else { is_test(value) })
            }
            "none" => matches!(value, Value::None),
            "boolean" => matches!(value, Value::Bool(_)),
            "false" => matches!(value, Value::Bool(false)),
            "true" => matches!(value, Value::Bool(true)),
            "integer" => matches!(value, Value::Int(_)),
            "float" => matches!(value, Value::Float(_)),
            "lower" | "upper" => {
                let text = self.string_of(value)?;
                crate::str_methods::has_case(&text, name == "upper")
            }
            "string" => matches!(value, Value::Str(_)),
            "mapping" => matches!(value, Value::Dict(_)),
            "number" => matches!(value, Value::Int(_) | Value::Float(_) | Value::Bool(_)),
            "sequence" => matches!(
                value,
                Value::Undefined(_)
                    | Value::Str(_)
                    | Value::List(_)
                    | Value::Tuple(_)
                    | Value::Dict(_)
                    | Value::Range(_)
            ),
            "iterable" => matches!(value, Value::Loop(_) | Value::Template) || self.is_iterable(value)?,
            "callable" => matches!(
                value,
                Value::Undefined(_) | Value::Function(_) | Value::Macro(_) | Value::Joiner(_) | Value::Loop(_)
            ),
            "sameas" => self.is_same(value, &argument)?,
            "escaped" => value.is_markup(),
            "in" => self.contains(&argument, value)?,
            _ => return Err(Fault::runtime(format!("No test named {}.", crate::fault::quoted(name)))),
        };
        Ok(Value::Bool(holds))
    }

    fn is_iterable(&mut self, value: &Value) -> Outcome<bool> {
        match self.iter(value) {
            Ok(_) => Ok(true),
            Err(fault) if fault.kind() == Kind::Type => Ok(false),
            Err(fault) => Err(fault),
        }
    }

    /// Python's `is`. Whether equal numbers and texts are one object depends on what Python happens to keep once.
    fn is_same(&self, left: &Value, right: &Value) -> Outcome<bool> {
        let same = self.same(left, right);
        let certain = match (left, right) {
            (Value::Int(int), _) => (-5..=256).contains(int),
            (Value::Str(text), _) => text.text.is_empty() || (text.chars == 1 && text.text.len() <= 2),
            (Value::Float(_), _) => false,
            _ => true,
        };
        if same && !certain {
            return Err(Fault::unsupported(format!("sameas of two equal values of type '{}'", left.type_name())));
        }
        Ok(same)
    }
}
