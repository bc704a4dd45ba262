//! Expressions of a template, evaluated.

use std::rc::Rc;

use crate::ast::{Args, Comparison, Expr, Node};
use crate::fault::{Fault, Kind, Outcome};
use crate::functions::CallArgs;
use crate::render::{Renderer, Scope};
use crate::value::{Items, Value};

impl<'t> Renderer<'t> {
    pub(crate) fn eval(&mut self, expr: &'t Expr, scope: &Rc<Scope>) -> Outcome<Value> {
        self.step(1)?;
        let value = match &expr.node {
            Node::None => Ok(Value::None),
            Node::Bool(value) => Ok(Value::Bool(*value)),
            Node::Int(value) => Ok(Value::Int(*value)),
            Node::Float(value) => Ok(Value::Float(*value)),
            Node::Str(symbol) => self.string(*symbol),
            Node::Name(symbol) => self.variable(*symbol, scope),
            _ => self.deeper(|renderer| renderer.operation(expr, scope)),
        };
        value.map_err(|fault| fault.at(expr.line))
    }

    pub(crate) fn eval_bool(&mut self, expr: &'t Expr, scope: &Rc<Scope>) -> Outcome<bool> {
        let value = self.eval(expr, scope)?;
        self.truth(&value)
    }

    fn eval_all(&mut self, exprs: &'t [Expr], scope: &Rc<Scope>) -> Outcome<Items> {
        let mut items = Items::new(&self.budget)?;
        for expr in exprs {
            let value = self.eval(expr, scope)?;
            items.push(value)?;
        }
        Ok(items)
    }

    #[inline(never)]
    fn operation(&mut self, expr: &'t Expr, scope: &Rc<Scope>) -> Outcome<Value> {
        match &expr.node {
            Node::If { test, then, otherwise } => match (self.eval_bool(test, scope)?, otherwise) {
                (true, _) => self.eval(then, scope),
                (false, Some(otherwise)) => self.eval(otherwise, scope),
                (false, None) => Ok(Value::Undefined(
                    "the inline if-expression evaluated to false and no else section was defined.".into(),
                )),
            },
            Node::And(pair) => {
                let left = self.eval(&pair.0, scope)?;
                if self.truth(&left)? { self.eval(&pair.1, scope) } else { Ok(left) }
            }
            Node::Or(pair) => {
                let left = self.eval(&pair.0, scope)?;
                if self.truth(&left)? { Ok(left) } else { self.eval(&pair.1, scope) }
            }
            Node::Not(inner) => Ok(Value::Bool(!self.eval_bool(inner, scope)?)),
            Node::Negative(inner) => {
                let value = self.eval(inner, scope)?;
                self.negative(&value)
            }
            Node::Positive(inner) => {
                let value = self.eval(inner, scope)?;
                self.positive(&value)
            }
            Node::Binary(operator, pair) => {
                let left = self.eval(&pair.0, scope)?;
                let right = self.eval(&pair.1, scope)?;
                self.binary(*operator, &left, &right)
            }
            Node::Attribute(inner, name) => {
                let value = self.eval(inner, scope)?;
                self.attribute(&value, self.text(*name))
            }
            Node::Item(pair) => {
                let value = self.eval(&pair.0, scope)?;
                let index = self.eval(&pair.1, scope)?;
                self.item(&value, &index)
            }
            Node::Call(..) => self.eval_call(expr, scope, None),
            Node::Filter(inner, name, args) => {
                let Some(inner) = inner else { return Err(Fault::runtime("a filter without a value")) };
                let value = self.eval(inner, scope)?;
                let args = self.eval_args(args, scope)?;
                self.filter(self.text(*name), value, args)
            }
            Node::Test(inner, name, args) => {
                let value = self.eval(inner, scope)?;
                let args = self.eval_args(args, scope)?;
                self.test(self.text(*name), &value, args)
            }
            _ => self.composite(expr, scope),
        }
    }

    #[inline(never)]
    fn composite(&mut self, expr: &'t Expr, scope: &Rc<Scope>) -> Outcome<Value> {
        match &expr.node {
            Node::Tuple(items) => Ok(Value::Tuple(self.eval_all(items, scope)?.sequence()?)),
            Node::List(items) => Ok(Value::List(self.eval_all(items, scope)?.sequence()?)),
            Node::Dict(entries) => {
                let mut pairs = Vec::new();
                for (key, value) in entries {
                    let key = self.eval(key, scope)?;
                    pairs.push((key, self.eval(value, scope)?));
                }
                self.dict(pairs)
            }
            Node::Concat(parts) => {
                let parts = self.eval_all(parts, scope)?;
                let markup = self.autoescape && parts.items.iter().any(Value::is_markup);
                self.joined_text(parts.items.iter(), markup)
            }
            Node::Compare(first, rest) => {
                let mut left = self.eval(first, scope)?;
                let mut result = true;
                for (comparison, operand) in rest {
                    let right = self.eval(operand, scope)?;
                    result = self.compare(*comparison, &left, &right)?;
                    if !result {
                        break;
                    }
                    left = right;
                }
                Ok(Value::Bool(result))
            }
            Node::Slice(inner, parts) => {
                let value = self.eval(inner, scope)?;
                let mut bounds = [None, None, None];
                for (bound, part) in bounds.iter_mut().zip(parts.iter()) {
                    if let Some(part) = part {
                        *bound = Some(self.eval(part, scope)?);
                    }
                }
                self.slice(&value, &bounds)
            }
            Node::BadSlice => Err(Fault::type_error("indices must be integers or slices, not tuple")),
            _ => Err(Fault::runtime("not an expression")),
        }
    }

    pub(crate) fn compare(&mut self, comparison: Comparison, left: &Value, right: &Value) -> Outcome<bool> {
        match comparison {
            Comparison::Eq => self.equal(left, right),
            Comparison::Ne => Ok(!self.equal(left, right)?),
            Comparison::Lt => self.less(left, right, "<"),
            Comparison::Gt => self.less(right, left, ">"),
            Comparison::Le => self.less_or_equal(left, right, "<="),
            Comparison::Ge => self.less_or_equal(right, left, ">="),
            Comparison::In => self.contains(right, left),
            Comparison::NotIn => Ok(!self.contains(right, left)?),
        }
    }

    pub(crate) fn eval_call(&mut self, expr: &'t Expr, scope: &Rc<Scope>, caller: Option<Value>) -> Outcome<Value> {
        let Node::Call(callee, args) = &expr.node else { return Err(Fault::runtime("expected call")) };
        let callee = self.eval(callee, scope)?;
        let mut args = self.eval_args(args, scope)?;
        if let Some(caller) = caller {
            args.keywords.push(("caller".to_owned(), caller));
        }
        self.call(&callee, args).map_err(|fault| fault.at(expr.line))
    }

    /// Applies the filters of a block to its output.
    pub(crate) fn eval_filter_block(&mut self, expr: &'t Expr, text: Value, scope: &Rc<Scope>) -> Outcome<Value> {
        self.deeper(|renderer| {
            let Node::Filter(inner, name, args) = &expr.node else { return Err(Fault::runtime("expected filter")) };
            let value = match inner {
                Some(inner) => renderer.eval_filter_block(inner, text, scope)?,
                None => text,
            };
            let args = renderer.eval_args(args, scope)?;
            renderer.filter(renderer.text(*name), value, args).map_err(|fault| fault.at(expr.line))
        })
    }

    #[inline(never)]
    fn eval_args(&mut self, args: &'t Args, scope: &Rc<Scope>) -> Outcome<CallArgs> {
        let mut positional = self.eval_all(&args.positional, scope)?;
        if let Some(star) = &args.star {
            let values = self.eval(star, scope)?;
            let iter = self.iter(&values)?;
            while let Some(value) = self.next(&iter)? {
                positional.push(value)?;
            }
        }
        let mut keywords = Vec::new();
        for (name, value) in &args.keywords {
            keywords.push((self.text(*name).to_owned(), self.eval(value, scope)?));
        }
        if let Some(double_star) = &args.double_star {
            let Value::Dict(dict) = self.eval(double_star, scope)? else {
                return Err(Fault::type_error("argument after ** must be a mapping"));
            };
            self.budget.room(dict.entries.len().saturating_mul(64))?;
            for (key, value) in &dict.entries {
                let Some(key) = key.as_str() else { return Err(Fault::type_error("keywords must be strings")) };
                self.step(1)?;
                if keywords.iter().any(|(name, _)| name == key) {
                    let message = format!("got multiple values for keyword argument '{key}'");
                    return Err(Fault::new(Kind::Type, message));
                }
                keywords.push((key.to_owned(), value.clone()));
            }
        }
        Ok(CallArgs { positional: positional.into_vec(), keywords })
    }
}
