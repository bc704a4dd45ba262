//! Jinja2 as chat templates use it: parsed and rendered as Python would, within limits.
//!
//! The reference is jinja2 3.1 with the environment of transformers 4.46: sandboxed and immutable, `trim_blocks` and
//! `lstrip_blocks`, `break` and `continue`, `generation` blocks, and its own `tojson`, `raise_exception` and
//! `strftime_now`. A template may come from anywhere. So everything it does counts as a step, everything it makes is charged
//! to a budget of bytes before it is made, and how deep it nests is bounded, in the source, in values and in calls: neither
//! parsing nor rendering needs more than a megabyte of stack. What of Python is not supported is an error that says so.

#![forbid(unsafe_code)]

mod access;
mod ast;
mod budget;
mod chars;
mod data;
mod eval;
mod expressions;
mod fault;
mod filters;
mod float;
mod format;
mod format_spec;
mod functions;
mod html;
mod iter;
mod json;
mod layout;
mod lexer;
mod loops;
mod methods;
mod names;
mod numbers;
mod ops;
mod parser;
mod percent;
mod predicates;
mod render;
mod str_methods;
mod strftime;
mod targets;
mod text;
mod text_filters;
mod urlize;
mod value;

use chrono::NaiveDateTime;

use crate::ast::Tables;
use crate::budget::Budget;
use crate::fault::Outcome;
use crate::render::Renderer;
use crate::value::{Items, Value};

pub use data::Data;
pub use fault::Error;

/// What a rendering may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Steps: statements, operations, items of collections, and every few bytes of a string.
    pub steps: u64,
    /// Bytes that are alive at once, the output included.
    pub memory: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { steps: 10_000_000, memory: 64 << 20 }
    }
}

/// A parsed template.
#[derive(Debug)]
pub struct Template {
    tables: Tables,
}

impl Template {
    /// Parses a template.
    pub fn parse(source: &str) -> Result<Self, Error> {
        Ok(Self { tables: parser::parse(source)? })
    }

    /// The variables that the template reads without being certain to have assigned them itself, in order. The names of functions
    /// that every template has are not among them.
    pub fn free_names(&self) -> impl Iterator<Item = &str> {
        names::free(&self.tables).into_iter()
    }

    /// Renders the template with some variables, of which the later of two with one name counts. `now` is what
    /// `strftime_now` writes; `cancelled` is asked every few thousand steps whether to stop.
    pub fn render<'v>(
        &self,
        variables: impl IntoIterator<Item = (&'v str, &'v Data)>,
        now: NaiveDateTime,
        limits: Limits,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<String, Error> {
        let budget = Budget::new(limits.memory);
        let mut renderer = Renderer::new(&self.tables, budget, limits.steps, cancelled, now);
        for (name, data) in variables {
            let value = value_of(&mut renderer, data)?;
            renderer.define(name, value);
        }
        Ok(renderer.render()?)
    }
}

fn value_of(renderer: &mut Renderer, data: &Data) -> Outcome<Value> {
    renderer.step(1)?;
    Ok(match data {
        Data::None => Value::None,
        Data::Bool(value) => Value::Bool(*value),
        Data::Int(value) => Value::Int(*value),
        Data::Float(value) => Value::Float(*value),
        Data::Str(text) => renderer.budget.str(text.as_str())?,
        Data::List(data) => {
            let mut items = Items::new(&renderer.budget)?;
            for item in data {
                items.push(renderer.deeper(|renderer| value_of(renderer, item))?)?;
            }
            renderer.list(items)?
        }
        Data::Dict(data) => {
            let mut entries = Vec::new();
            for (key, value) in data {
                let value = renderer.deeper(|renderer| value_of(renderer, value))?;
                entries.push((renderer.budget.str(key.as_str())?, value));
            }
            renderer.dict(entries)?
        }
    })
}
