//! Which variables a template wants to be given: those that it reads without having assigned them.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::ast::{Args, Expr, Node, Stmt, Symbol, Tables, Target};
use crate::functions::Global;

/// What is assigned in one scope, in order, so that a branch can be undone.
#[derive(Default)]
struct Scope {
    assigned: HashSet<Symbol>,
    order: Vec<Symbol>,
}

struct Finder<'t> {
    tables: &'t Tables,
    scopes: Vec<Scope>,
    free: BTreeSet<&'t str>,
    /// `loop`, and what a macro has beside its parameters, where the template has these names.
    loop_name: Vec<Symbol>,
    macro_names: Vec<Symbol>,
}

/// The names that are read where it is not certain that the template assigned them before, without those of functions that every
/// template has.
pub(crate) fn free(tables: &Tables) -> BTreeSet<&str> {
    let symbols = |names: &[&str]| -> Vec<Symbol> {
        let named = (0..).map(Symbol).zip(&tables.texts).filter(|(_, text)| names.contains(&text.as_str()));
        named.map(|(symbol, _)| symbol).collect()
    };
    let mut finder = Finder {
        tables,
        scopes: vec![Scope::default()],
        free: BTreeSet::new(),
        loop_name: symbols(&["loop"]),
        macro_names: symbols(&["caller", "kwargs", "varargs"]),
    };
    finder.body(&tables.body);
    finder.free
}

impl<'t> Finder<'t> {
    fn text(&self, symbol: Symbol) -> &'t str {
        self.tables.texts.get(symbol.0 as usize).map_or("", String::as_str)
    }

    fn read(&mut self, symbol: Symbol) {
        let name = self.text(symbol);
        let assigned = self.scopes.iter().any(|scope| scope.assigned.contains(&symbol));
        if !assigned && name != "self" && Global::named(name).is_none() {
            self.free.insert(name);
        }
    }

    fn assign(&mut self, symbol: Symbol) {
        if let Some(scope) = self.scopes.last_mut()
            && scope.assigned.insert(symbol)
        {
            scope.order.push(symbol);
        }
    }

    fn target(&mut self, target: &Target) {
        match target {
            Target::Name(symbol) => self.assign(*symbol),
            Target::Attribute(namespace, _) => self.read(*namespace),
            Target::Tuple(targets) => targets.iter().for_each(|target| self.target(target)),
        }
    }

    /// Runs `walk` with variables of its own.
    fn scope(&mut self, walk: impl FnOnce(&mut Self)) {
        self.scopes.push(Scope::default());
        walk(self);
        self.scopes.pop();
    }

    /// Walks what runs perhaps, and gives what it assigns.
    fn perhaps(&mut self, body: &'t [Stmt]) -> Vec<Symbol> {
        let mark = self.scopes.last().map_or(0, |scope| scope.order.len());
        self.body(body);
        let Some(scope) = self.scopes.last_mut() else { return Vec::new() };
        let new = scope.order.split_off(mark);
        for symbol in &new {
            scope.assigned.remove(symbol);
        }
        new
    }

    fn body(&mut self, body: &'t [Stmt]) {
        for stmt in body {
            self.stmt(stmt);
        }
    }

    fn stmt(&mut self, stmt: &'t Stmt) {
        match stmt {
            Stmt::Data(_) | Stmt::Break | Stmt::Continue => {}
            Stmt::Print(values, _) => self.exprs(values),
            Stmt::If { branches, otherwise } => {
                let mut counts: HashMap<Symbol, usize> = HashMap::new();
                for (test, body) in branches {
                    self.expr(test);
                    for symbol in self.perhaps(body) {
                        *counts.entry(symbol).or_default() += 1;
                    }
                }
                for symbol in self.perhaps(otherwise) {
                    if counts.get(&symbol) == Some(&branches.len()) {
                        self.assign(symbol);
                    }
                }
            }
            Stmt::For(index) => {
                let Some(statement) = self.tables.loops.get(*index) else { return };
                self.expr(&statement.iterable);
                self.scope(|finder| {
                    finder.target(&statement.target);
                    statement.test.iter().for_each(|test| finder.expr(test));
                    finder.loop_name.clone().into_iter().for_each(|name| finder.assign(name));
                    finder.body(&statement.body);
                });
                self.scope(|finder| finder.body(&statement.otherwise));
            }
            Stmt::Set(target, value) => {
                self.expr(value);
                self.target(target);
            }
            Stmt::SetBlock { target, filter, body, .. } => {
                self.scope(|finder| finder.body(body));
                filter.iter().for_each(|filter| self.expr(filter));
                self.target(target);
            }
            Stmt::With(variables, body) => {
                variables.iter().for_each(|(_, value)| self.expr(value));
                self.scope(|finder| {
                    variables.iter().for_each(|(target, _)| finder.target(target));
                    finder.body(body);
                });
            }
            Stmt::FilterBlock(filter, body, _) => {
                self.expr(filter);
                self.scope(|finder| finder.body(body));
            }
            Stmt::Macro(index) => {
                // Its body may call it.
                if let Some(name) = self.tables.macros.get(*index).and_then(|definition| definition.name) {
                    self.assign(name);
                }
                self.function(*index);
            }
            Stmt::CallBlock(index, call) => {
                call.iter().for_each(|call| self.expr(call));
                self.function(*index);
            }
            Stmt::Autoescape(value, body) => {
                self.expr(value);
                self.scope(|finder| finder.body(body));
            }
            Stmt::Block(index) => {
                if let Some(block) = self.tables.blocks.get(*index) {
                    self.scope(|finder| finder.body(&block.body));
                }
            }
            Stmt::Load { template, .. } => self.expr(template),
        }
    }

    fn function(&mut self, index: usize) {
        let Some(definition) = self.tables.macros.get(index) else { return };
        self.scope(|finder| {
            for (parameter, default) in &definition.parameters {
                default.iter().for_each(|default| finder.expr(default));
                finder.assign(*parameter);
            }
            finder.macro_names.clone().into_iter().for_each(|name| finder.assign(name));
            finder.body(&definition.body);
        });
    }

    fn exprs(&mut self, values: &'t [Expr]) {
        values.iter().for_each(|value| self.expr(value));
    }

    fn args(&mut self, args: &'t Args) {
        self.exprs(&args.positional);
        args.keywords.iter().for_each(|(_, value)| self.expr(value));
        args.star.iter().chain(&args.double_star).for_each(|value| self.expr(value));
    }

    fn expr(&mut self, expr: &'t Expr) {
        match &expr.node {
            Node::None | Node::Bool(_) | Node::Int(_) | Node::Float(_) | Node::Str(_) | Node::BadSlice => {}
            Node::Name(symbol) => self.read(*symbol),
            Node::Tuple(items) | Node::List(items) | Node::Concat(items) => self.exprs(items),
            Node::Dict(entries) => entries.iter().for_each(|(key, value)| {
                self.expr(key);
                self.expr(value);
            }),
            Node::If { test, then, otherwise } => {
                self.expr(test);
                self.expr(then);
                otherwise.iter().for_each(|otherwise| self.expr(otherwise));
            }
            Node::And(sides) | Node::Or(sides) | Node::Binary(_, sides) | Node::Item(sides) => {
                self.expr(&sides.0);
                self.expr(&sides.1);
            }
            Node::Not(value) | Node::Negative(value) | Node::Positive(value) | Node::Attribute(value, _) => {
                self.expr(value);
            }
            Node::Compare(first, others) => {
                self.expr(first);
                others.iter().for_each(|(_, value)| self.expr(value));
            }
            Node::Slice(value, bounds) => {
                self.expr(value);
                bounds.iter().flatten().for_each(|bound| self.expr(bound));
            }
            Node::Call(value, args) | Node::Test(value, _, args) => {
                self.expr(value);
                self.args(args);
            }
            Node::Filter(value, _, args) => {
                value.iter().for_each(|value| self.expr(value));
                self.args(args);
            }
        }
    }
}
