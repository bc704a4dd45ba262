//! Loops.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::ast::For;
use crate::fault::{Fault, Outcome};
use crate::iter::Iter;
use crate::render::{Flow, Renderer, Scope, clear, set};
use crate::value::{Value, depth_over};

/// The variable `loop`.
pub(crate) struct LoopState {
    pub(crate) id: usize,
    /// The statement, and where it stands: to run it again on inner values.
    pub(crate) statement: usize,
    pub(crate) scope: Rc<Scope>,
    pub(crate) depth0: usize,
    pub(crate) iter: RefCell<Rc<Iter>>,
    pub(crate) length: Cell<Option<usize>>,
    /// How many values were taken.
    pub(crate) index: Cell<usize>,
    pub(crate) before: RefCell<Option<Value>>,
    pub(crate) item: RefCell<Option<Value>>,
    pub(crate) after: RefCell<Option<Value>>,
    pub(crate) depth: u16,
}

impl<'t> Renderer<'t> {
    pub(crate) fn for_statement(&mut self, index: usize, scope: &Rc<Scope>) -> Outcome<Flow> {
        let tables = self.tables;
        let Some(statement) = tables.loops.get(index) else { return Ok(Flow::Next) };
        let line = statement.iterable.line;
        let values = self.eval(&statement.iterable, scope)?;
        if !statement.recursive {
            return self.run_loop(index, statement, &values, scope, 0).map_err(|fault| fault.at(line));
        }
        let text = self.recurse(index, &values, scope, 0).map_err(|fault| fault.at(line))?;
        self.write_text(&text)?;
        Ok(Flow::Next)
    }

    /// The output of a recursive loop over some values.
    pub(crate) fn recurse(&mut self, index: usize, values: &Value, scope: &Rc<Scope>, depth0: usize) -> Outcome<Value> {
        let tables = self.tables;
        let Some(statement) = tables.loops.get(index) else { return Err(Fault::runtime("no such loop")) };
        let text = self.deeper(|renderer| {
            renderer.captured(|renderer| {
                renderer.run_loop(index, statement, values, scope, depth0)?;
                Ok(())
            })
        })?;
        Ok(self.budget.built(text, self.escapes(statement.escaping)))
    }

    fn run_loop(
        &mut self,
        index: usize,
        statement: &'t For,
        values: &Value,
        outer: &Rc<Scope>,
        depth0: usize,
    ) -> Outcome<Flow> {
        let mut length = self.length(values).ok();
        let mut iter = self.iter(values)?;
        if statement.test.is_some() {
            iter = Iter::passing(iter, index, outer.clone())?;
            length = None;
        }
        self.loop_ids += 1;
        let id = self.loop_ids;
        let state = Rc::new(LoopState {
            id,
            statement: index,
            scope: outer.clone(),
            depth0,
            depth: depth_over([values, &Value::Iter(iter.clone())])?,
            iter: RefCell::new(iter),
            length: Cell::new(length),
            index: Cell::new(0),
            before: RefCell::new(None),
            item: RefCell::new(None),
            after: RefCell::new(None),
        });
        let scope = self.enter(Some(outer), false);
        let mut completed = false;
        while let Some(value) = self.advance(&state)? {
            self.step(1)?;
            clear(&scope);
            if let Some(name) = self.loop_name {
                set(&scope, name, Some(Value::Loop(state.clone())));
            }
            self.assign_target(&statement.target, value, &scope)?;
            let flow = self.body(&statement.body, &scope)?;
            if flow == Flow::Break {
                break;
            }
            completed |= flow == Flow::Next;
        }
        self.leave(&scope);
        self.changed.remove(&id);
        // As in the code that Jinja2 writes, an iteration that `break` or `continue` cut short does not count.
        if !completed && !statement.otherwise.is_empty() {
            let scope = self.enter(Some(outer), false);
            let flow = self.body(&statement.otherwise, &scope)?;
            self.leave(&scope);
            return Ok(flow);
        }
        Ok(Flow::Next)
    }

    /// The next value that passes a loop's test.
    pub(crate) fn next_passing(&mut self, iter: &Rc<Iter>, index: usize, outer: &Rc<Scope>) -> Outcome<Option<Value>> {
        let tables = self.tables;
        let Some(statement) = tables.loops.get(index) else { return Ok(None) };
        let Some(test) = &statement.test else { return self.next(iter) };
        let scope = self.enter(Some(outer), false);
        let mut passing = None;
        while let Some(value) = self.next(iter)? {
            clear(&scope);
            self.assign_target(&statement.target, value.clone(), &scope)?;
            if self.eval_bool(test, &scope)? {
                passing = Some(value);
                break;
            }
        }
        self.leave(&scope);
        Ok(passing)
    }

    /// The next value of a loop, which becomes its current one.
    fn advance(&mut self, state: &LoopState) -> Outcome<Option<Value>> {
        let peeked = state.after.take();
        let iter = state.iter.borrow().clone();
        let next = if peeked.is_some() { peeked } else { self.next(&iter)? };
        if let Some(value) = &next {
            state.index.set(state.index.get() + 1);
            let before = state.item.replace(Some(value.clone()));
            state.before.replace(before);
        }
        Ok(next)
    }

    /// The value after a loop's current one.
    pub(crate) fn peek(&mut self, state: &LoopState) -> Outcome<Option<Value>> {
        if state.after.borrow().is_none() {
            let iter = state.iter.borrow().clone();
            let next = self.next(&iter)?;
            state.after.replace(next);
        }
        Ok(state.after.borrow().clone())
    }
}
