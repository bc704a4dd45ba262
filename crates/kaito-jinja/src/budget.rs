//! The memory budget of a rendering, and a string that grows within it.

use std::cell::Cell;
use std::rc::Rc;

use crate::fault::{Fault, Outcome};

struct Ledger {
    used: Cell<usize>,
    limit: usize,
}

/// The memory budget that all values of a rendering are charged to.
#[derive(Clone)]
pub(crate) struct Budget(Rc<Ledger>);

impl Budget {
    pub(crate) fn new(limit: usize) -> Self {
        Self(Rc::new(Ledger { used: Cell::new(0), limit }))
    }

    /// Reserves bytes, which are given back when the charge is dropped. Call it before the memory is allocated.
    pub(crate) fn charge(&self, bytes: usize) -> Outcome<Charge> {
        let mut charge = Charge { ledger: self.0.clone(), bytes: 0 };
        charge.grow(bytes)?;
        Ok(charge)
    }

    /// Fails if that many bytes aren't left.
    pub(crate) fn room(&self, bytes: usize) -> Outcome<()> {
        self.charge(bytes).map(drop)
    }
}

/// Bytes that a value is charged for while it is alive.
pub(crate) struct Charge {
    ledger: Rc<Ledger>,
    bytes: usize,
}

impl Charge {
    pub(crate) fn grow(&mut self, bytes: usize) -> Outcome<()> {
        let used = self.ledger.used.get().saturating_add(bytes);
        if used > self.ledger.limit {
            let limit = self.ledger.limit;
            return Err(Fault::limit(format!("the template needs more memory than the {limit} bytes it may use")));
        }
        self.ledger.used.set(used);
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.ledger.used.set(self.ledger.used.get().saturating_sub(self.bytes));
    }
}

/// A string that grows within the budget.
pub(crate) struct Buffer {
    pub(crate) text: String,
    pub(crate) charge: Charge,
}

impl Buffer {
    pub(crate) fn new(budget: &Budget) -> Outcome<Self> {
        Ok(Self { text: String::new(), charge: budget.charge(crate::value::TEXT_BYTES)? })
    }

    pub(crate) fn push_str(&mut self, text: &str) -> Outcome<()> {
        self.charge.grow(text.len())?;
        self.text.push_str(text);
        Ok(())
    }

    pub(crate) fn push(&mut self, character: char) -> Outcome<()> {
        self.charge.grow(character.len_utf8())?;
        self.text.push(character);
        Ok(())
    }

    /// The same character `count` times.
    pub(crate) fn fill(&mut self, character: char, count: usize) -> Outcome<()> {
        self.charge.grow(count.saturating_mul(character.len_utf8()))?;
        self.text.extend(std::iter::repeat_n(character, count));
        Ok(())
    }
}
