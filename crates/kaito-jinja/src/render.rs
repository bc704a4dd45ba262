//! The state of one rendering, and its statements.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::rc::Rc;

use chrono::NaiveDateTime;

use crate::ast::{Escaping, Stmt, Symbol, Tables, Target};
use crate::budget::{Budget, Buffer, Charge};
use crate::fault::{Fault, Kind, Outcome};
use crate::functions::Global;
use crate::value::{Namespace, Value, depth_over};

/// Maximum depth of evaluation: statements, expressions and calls, each in the other. The stack that it needs is checked
/// by `tests/limits.rs`.
const MAX_CALLS: usize = 260;
/// Steps between two checks of whether the rendering was cancelled.
const STEPS_BETWEEN_LOOKS: u64 = 4096;
/// What a scope that outlives its statement is charged.
const SCOPE_BYTES: usize = 256;

/// Variables of one frame. A variable without a value hides those of outer scopes.
pub(crate) struct Scope {
    parent: Option<Rc<Scope>>,
    variables: RefCell<Vec<(Symbol, Option<Value>)>>,
    /// Whether what is assigned here is seen by blocks.
    toplevel: bool,
}

pub(crate) struct MacroValue {
    pub(crate) index: usize,
    pub(crate) scope: Rc<Scope>,
}

/// What follows a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    Next,
    Break,
    Continue,
}

pub(crate) struct Renderer<'t> {
    pub(crate) tables: &'t Tables,
    pub(crate) budget: Budget,
    pub(crate) hasher: RandomState,
    pub(crate) now: NaiveDateTime,
    pub(crate) namespaces: Vec<Namespace>,
    /// Namespaces that are being written.
    pub(crate) writing: Vec<usize>,
    /// What `loop.changed` was last asked, by the loop's id.
    pub(crate) changed: HashMap<usize, Value>,
    pub(crate) autoescape: bool,
    cancelled: &'t dyn Fn() -> bool,
    steps: u64,
    max_steps: u64,
    next_look: u64,
    calls: usize,
    pub(crate) loop_ids: usize,
    pub(crate) loop_name: Option<Symbol>,
    globals: HashMap<String, Value>,
    exported: HashMap<Symbol, Value>,
    strings: Vec<Option<Value>>,
    output: Vec<Buffer>,
    /// Scopes that are entered, and those that were left and are still held by a macro.
    scopes: Vec<Rc<Scope>>,
    retained: Vec<(Rc<Scope>, Charge)>,
}

impl<'t> Renderer<'t> {
    pub(crate) fn new(
        tables: &'t Tables,
        budget: Budget,
        max_steps: u64,
        cancelled: &'t dyn Fn() -> bool,
        now: NaiveDateTime,
    ) -> Self {
        Self {
            tables,
            budget,
            hasher: RandomState::new(),
            now,
            namespaces: Vec::new(),
            writing: Vec::new(),
            changed: HashMap::new(),
            autoescape: false,
            cancelled,
            steps: 0,
            max_steps,
            next_look: 0,
            calls: 0,
            loop_ids: 0,
            loop_name: (0..).map(Symbol).zip(&tables.texts).find(|(_, text)| *text == "loop").map(|(name, _)| name),
            globals: HashMap::new(),
            exported: HashMap::new(),
            strings: vec![None; tables.texts.len()],
            output: Vec::new(),
            scopes: Vec::new(),
            retained: Vec::new(),
        }
    }

    /// Sets a variable of the template.
    pub(crate) fn define(&mut self, name: &str, value: Value) {
        self.globals.insert(name.to_owned(), value);
    }

    pub(crate) fn render(&mut self) -> Outcome<String> {
        let tables = self.tables;
        let text = self.captured(|renderer| {
            let scope = renderer.enter(None, true);
            renderer.body(&tables.body, &scope)?;
            Ok(())
        });
        // Macros and the scopes that hold them would keep each other alive, and could hang on each other in a long chain.
        let mut buried: Vec<_> = std::mem::take(&mut self.namespaces).into_iter().map(|n| n.entries.take()).collect();
        let held = self.scopes.iter().chain(self.retained.iter().map(|(scope, _)| scope));
        let variables: Vec<_> = held.map(|scope| scope.variables.take()).collect();
        self.exported.clear();
        buried.clear();
        drop(variables);
        Ok(text?.text)
    }

    /// Counts steps, and ends a rendering that exceeds its limit or was cancelled.
    pub(crate) fn step(&mut self, count: usize) -> Outcome<()> {
        self.steps = self.steps.saturating_add(count as u64);
        if self.steps > self.max_steps {
            return Err(Fault::limit(format!("the template takes more than the {} steps it may take", self.max_steps)));
        }
        if self.steps >= self.next_look {
            self.next_look = self.steps + STEPS_BETWEEN_LOOKS;
            if (self.cancelled)() {
                return Err(Fault::new(Kind::Cancelled, "cancelled"));
            }
        }
        Ok(())
    }

    /// Counts the steps of work on a string.
    pub(crate) fn bytes(&mut self, count: usize) -> Outcome<()> {
        self.step(count / 64)
    }

    /// Evaluates something that may recurse, within the maximum depth.
    pub(crate) fn deeper<T>(&mut self, run: impl FnOnce(&mut Self) -> Outcome<T>) -> Outcome<T> {
        if self.calls >= MAX_CALLS {
            return Err(Fault::limit(format!("the template nests deeper than {MAX_CALLS} calls and operations")));
        }
        self.calls += 1;
        let result = run(self)?;
        self.calls -= 1;
        Ok(result)
    }

    pub(crate) fn text(&self, symbol: Symbol) -> &'t str {
        self.tables.texts.get(symbol.0 as usize).map_or("", String::as_str)
    }

    /// A string of the template as a value, made once.
    pub(crate) fn string(&mut self, symbol: Symbol) -> Outcome<Value> {
        let text = self.text(symbol);
        let Some(slot) = self.strings.get_mut(symbol.0 as usize) else { return self.budget.str(text) };
        if let Some(value) = slot {
            return Ok(value.clone());
        }
        let value = self.budget.str(text)?;
        *slot = Some(value.clone());
        Ok(value)
    }

    pub(crate) fn enter(&mut self, parent: Option<&Rc<Scope>>, toplevel: bool) -> Rc<Scope> {
        let scope = Rc::new(Scope { parent: parent.cloned(), variables: RefCell::default(), toplevel });
        self.scopes.push(scope.clone());
        scope
    }

    /// Leaves a scope whose variables end with its statement.
    pub(crate) fn leave(&mut self, scope: &Rc<Scope>) {
        clear(scope);
        self.scopes.pop();
    }

    /// Leaves the scope of a function, which macros made in it still see.
    fn leave_function(&mut self, scope: Rc<Scope>) -> Outcome<()> {
        self.scopes.pop();
        if Rc::strong_count(&scope) > 1 {
            let charge = self.budget.charge(SCOPE_BYTES)?;
            self.retained.push((scope, charge));
        }
        Ok(())
    }

    pub(crate) fn variable(&mut self, symbol: Symbol, scope: &Rc<Scope>) -> Outcome<Value> {
        let mut current = Some(scope);
        while let Some(scope) = current {
            let variables = scope.variables.borrow();
            if let Some((_, value)) = variables.iter().find(|(name, _)| *name == symbol) {
                let value = value.clone();
                drop(variables);
                return Ok(value.unwrap_or_else(|| self.undefined_name(symbol)));
            }
            current = scope.parent.as_ref();
        }
        let name = self.text(symbol);
        if name == "self" {
            return Ok(Value::Template);
        }
        if let Some(value) = self.exported.get(&symbol) {
            return Ok(value.clone());
        }
        if let Some(value) = self.globals.get(name) {
            return Ok(value.clone());
        }
        if let Some(global) = Global::named(name) {
            return Ok(global.value());
        }
        Ok(self.undefined_name(symbol))
    }

    fn undefined_name(&self, symbol: Symbol) -> Value {
        Value::Undefined(format!("{} is undefined", crate::fault::quoted(self.text(symbol))).into())
    }

    pub(crate) fn assign(&mut self, symbol: Symbol, value: Value, scope: &Rc<Scope>) {
        if scope.toplevel {
            self.exported.insert(symbol, value.clone());
        }
        set(scope, symbol, Some(value));
    }

    pub(crate) fn assign_target(&mut self, target: &'t Target, value: Value, scope: &Rc<Scope>) -> Outcome<()> {
        match target {
            Target::Name(symbol) => self.assign(*symbol, value, scope),
            Target::Attribute(namespace, attribute) => {
                let Value::Namespace(index) = self.variable(*namespace, scope)? else {
                    return Err(Fault::runtime("cannot assign attribute on non-namespace object"));
                };
                depth_over([&value])?;
                self.set_attribute(index, self.text(*attribute), value)?;
            }
            Target::Tuple(targets) => {
                let iter = self.iter(&value)?;
                let mut values = Vec::new();
                for _ in targets {
                    let Some(value) = self.next(&iter)? else {
                        let (got, expected) = (values.len(), targets.len());
                        let message = format!("not enough values to unpack (expected {expected}, got {got})");
                        return Err(Fault::value_error(message));
                    };
                    values.push(value);
                }
                if self.next(&iter)?.is_some() {
                    let message = format!("too many values to unpack (expected {})", targets.len());
                    return Err(Fault::value_error(message));
                }
                for (target, value) in targets.iter().zip(values) {
                    self.assign_target(target, value, scope)?;
                }
            }
        }
        Ok(())
    }

    /// The output of something, captured as a string.
    pub(crate) fn captured(&mut self, run: impl FnOnce(&mut Self) -> Outcome<()>) -> Outcome<Buffer> {
        let buffer = Buffer::new(&self.budget)?;
        self.output.push(buffer);
        let result = run(self);
        let buffer = self.output.pop();
        result?;
        buffer.ok_or_else(|| Fault::runtime("no output"))
    }

    pub(crate) fn write(&mut self, text: &str) -> Outcome<()> {
        self.bytes(text.len())?;
        match self.output.last_mut() {
            Some(buffer) => buffer.push_str(text),
            None => Ok(()),
        }
    }

    /// The output of a block, which must be a string already.
    pub(crate) fn write_text(&mut self, value: &Value) -> Outcome<()> {
        match value {
            Value::Str(text) => self.write(&text.text),
            other => Err(Fault::type_error(format!("a block must become a text, not a {}", other.type_name()))),
        }
    }

    pub(crate) fn escapes(&self, escaping: Escaping) -> bool {
        match escaping {
            Escaping::Off => false,
            Escaping::On => true,
            Escaping::Current => self.autoescape,
        }
    }

    fn print(&mut self, value: &Value, escaping: Escaping) -> Outcome<()> {
        let mut buffer = match value {
            Value::Str(text) if !self.escapes(escaping) || text.markup => return self.write(&text.text),
            _ => Buffer::new(&self.budget)?,
        };
        if self.escapes(escaping) {
            self.write_escaped(&mut buffer, value)?;
        } else {
            self.write_str(&mut buffer, value)?;
        }
        self.write(&buffer.text)
    }

    pub(crate) fn body(&mut self, body: &'t [Stmt], scope: &Rc<Scope>) -> Outcome<Flow> {
        for stmt in body {
            self.step(1)?;
            let flow = match stmt {
                Stmt::Data(text) => {
                    self.write(text)?;
                    Flow::Next
                }
                Stmt::Print(values, escaping) => {
                    for value in values {
                        let line = value.line;
                        let value = self.eval(value, scope)?;
                        self.print(&value, *escaping).map_err(|fault| fault.at(line))?;
                    }
                    Flow::Next
                }
                Stmt::Break => Flow::Break,
                Stmt::Continue => Flow::Continue,
                Stmt::Set(target, value) => {
                    let line = value.line;
                    let value = self.eval(value, scope)?;
                    self.assign_target(target, value, scope).map_err(|fault| fault.at(line))?;
                    Flow::Next
                }
                _ => self.deeper(|renderer| renderer.compound(stmt, scope))?,
            };
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    /// Statements that hold others.
    #[inline(never)]
    fn compound(&mut self, stmt: &'t Stmt, scope: &Rc<Scope>) -> Outcome<Flow> {
        match stmt {
            Stmt::If { branches, otherwise } => {
                for (test, body) in branches {
                    if self.eval_bool(test, scope)? {
                        return self.body(body, scope);
                    }
                }
                self.body(otherwise, scope)
            }
            Stmt::For(index) => self.for_statement(*index, scope),
            Stmt::Macro(index) => {
                let value = Value::Macro(Rc::new(MacroValue { index: *index, scope: scope.clone() }));
                if let Some(name) = self.tables.macros.get(*index).and_then(|definition| definition.name) {
                    self.assign(name, value, scope);
                }
                Ok(Flow::Next)
            }
            Stmt::CallBlock(index, call) => {
                let caller = Value::Macro(Rc::new(MacroValue { index: *index, scope: scope.clone() }));
                let value = match call {
                    None => self.call(&caller, crate::functions::CallArgs::default())?,
                    Some(call) => self.eval_call(call, scope, Some(caller))?,
                };
                self.write_text(&value)?;
                Ok(Flow::Next)
            }
            Stmt::Block(index) => self.block(*index, scope),
            _ => self.inline_scope(stmt, scope),
        }
    }

    /// Statements whose body has a scope that ends with them.
    #[inline(never)]
    fn inline_scope(&mut self, stmt: &'t Stmt, outer: &Rc<Scope>) -> Outcome<Flow> {
        let scope = self.enter(Some(outer), false);
        let mut flow = Flow::Next;
        match stmt {
            Stmt::SetBlock { target, filter, body, line } => {
                let text = self.captured(|renderer| {
                    flow = renderer.body(body, &scope)?;
                    Ok(())
                })?;
                if flow == Flow::Next {
                    let mut value = self.budget.built(text, self.autoescape);
                    if let Some(filter) = filter {
                        value = self.eval_filter_block(filter, value, &scope)?;
                    }
                    self.assign_target(target, value, outer).map_err(|fault| fault.at(*line))?;
                }
            }
            Stmt::FilterBlock(filter, body, escaping) => {
                let text = self.captured(|renderer| {
                    flow = renderer.body(body, &scope)?;
                    Ok(())
                })?;
                if flow == Flow::Next {
                    let value = self.budget.built(text, self.escapes(*escaping));
                    let value = self.eval_filter_block(filter, value, &scope)?;
                    self.write_text(&value)?;
                }
            }
            Stmt::With(variables, body) => {
                for (target, value) in variables {
                    let line = value.line;
                    let value = self.eval(value, outer)?;
                    self.assign_target(target, value, &scope).map_err(|fault| fault.at(line))?;
                }
                flow = self.body(body, &scope)?;
            }
            Stmt::Autoescape(value, body) => {
                let value = self.eval_bool(value, outer)?;
                let before = std::mem::replace(&mut self.autoescape, value);
                flow = self.body(body, &scope)?;
                self.autoescape = before;
            }
            Stmt::Load { template, ignore_missing } => {
                let line = template.line;
                let template = self.eval(template, outer)?;
                let none = matches!(&template, Value::List(names) | Value::Tuple(names) if names.items.is_empty());
                if !(none && *ignore_missing) {
                    return Err(Fault::type_error("no loader for this environment specified").at(line));
                }
            }
            _ => {}
        }
        self.leave(&scope);
        Ok(flow)
    }

    fn block(&mut self, index: usize, scope: &Rc<Scope>) -> Outcome<Flow> {
        let tables = self.tables;
        let Some(block) = tables.blocks.get(index) else { return Ok(Flow::Next) };
        if block.required {
            let name = self.text(block.name);
            return Err(Fault::runtime(format!("Required block '{name}' not found")));
        }
        // A block sees what was assigned at the top, and only if it is scoped what is around it.
        let outer = if block.scoped { Some(scope) } else { None };
        self.run_block(index, outer)?;
        Ok(Flow::Next)
    }

    pub(crate) fn run_block(&mut self, index: usize, outer: Option<&Rc<Scope>>) -> Outcome<()> {
        let tables = self.tables;
        let Some(block) = tables.blocks.get(index) else { return Ok(()) };
        self.deeper(|renderer| {
            let scope = renderer.enter(outer, false);
            renderer.body(&block.body, &scope)?;
            renderer.leave_function(scope)
        })
    }

    /// Calls a macro with its parameters bound. A parameter without a value takes its default.
    pub(crate) fn run_macro(&mut self, value: &MacroValue, bound: Vec<(Symbol, Option<Value>)>) -> Outcome<Value> {
        let tables = self.tables;
        let Some(definition) = tables.macros.get(value.index) else { return Err(Fault::runtime("no such macro")) };
        let text = self.deeper(|renderer| {
            let scope = renderer.enter(Some(&value.scope), false);
            scope.variables.replace(bound);
            for (name, default) in &definition.parameters {
                let missing = scope.variables.borrow().iter().any(|(n, value)| n == name && value.is_none());
                if missing {
                    let value = match default {
                        Some(default) => renderer.eval(default, &scope)?,
                        None => {
                            let name = renderer.text(*name);
                            Value::Undefined(format!("parameter '{name}' was not provided").into())
                        }
                    };
                    set(&scope, *name, Some(value));
                }
            }
            let text = renderer.captured(|renderer| {
                renderer.body(&definition.body, &scope)?;
                Ok(())
            })?;
            renderer.leave_function(scope)?;
            Ok(text)
        })?;
        Ok(self.budget.built(text, self.autoescape))
    }
}

/// Removes the values of a scope's variables.
pub(crate) fn clear(scope: &Scope) {
    let before = scope.variables.take();
    drop(before);
}

pub(crate) fn set(scope: &Scope, symbol: Symbol, value: Option<Value>) {
    let mut variables = scope.variables.borrow_mut();
    let before = match variables.iter_mut().find(|(name, _)| *name == symbol) {
        Some((_, slot)) => std::mem::replace(slot, value),
        None => {
            variables.push((symbol, value));
            None
        }
    };
    drop(variables);
    drop(before);
}
