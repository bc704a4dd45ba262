//! Constraints for tests, each with a definition over whole texts to hold it against.

use super::{Constraint, TokenMask};

/// The token that opens a bracket, and the one that closes it.
const OPEN: u32 = 0;
const CLOSE: u32 = 1;
/// Most brackets that are open at once.
const DEPTH: usize = 2;
/// A text of which every beginning is allowed.
pub const FIXED: [u32; 6] = [7, 3, 7, 3, 10, 2];

/// What the tests ask of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Example {
    /// Even tokens; it may end anywhere.
    Even,
    /// A text token by token; it ends by itself, and by an end token nowhere.
    Fixed,
    /// Brackets are balanced where it ends.
    Brackets,
}

impl Example {
    pub const ALL: [Self; 3] = [Self::Even, Self::Fixed, Self::Brackets];

    pub fn constraint(self) -> Box<dyn Constraint> {
        Box::new(Follower { example: self, tokens: Vec::new() })
    }

    /// Whether `tokens` can begin a text.
    fn begins(self, tokens: &[u32]) -> bool {
        match self {
            Self::Even => tokens.iter().all(|token| token.is_multiple_of(2)),
            Self::Fixed => FIXED.starts_with(tokens),
            Self::Brackets => (0..=tokens.len()).all(|end| open(&tokens[..end]).is_some_and(|open| open <= DEPTH)),
        }
    }

    /// Whether `tokens` are a whole text.
    fn is_text(self, tokens: &[u32]) -> bool {
        match self {
            Self::Even => self.begins(tokens),
            Self::Fixed => tokens == FIXED,
            Self::Brackets => self.begins(tokens) && open(tokens) == Some(0),
        }
    }

    /// Whether a sequence of new tokens is as it must be where `end` is the only end token.
    pub fn holds(self, tokens: &[u32], end: Option<u32>) -> bool {
        match tokens.split_last() {
            Some((&last, text)) if Some(last) == end => self.is_text(text),
            _ => self.begins(tokens),
        }
    }
}

/// Brackets that are open behind `tokens`; `None` where one closes that none opened.
fn open(tokens: &[u32]) -> Option<usize> {
    tokens.iter().try_fold(0usize, |open, &token| match token {
        OPEN => Some(open + 1),
        CLOSE => open.checked_sub(1),
        _ => Some(open),
    })
}

/// An [`Example`] that is followed token by token.
#[derive(Debug)]
struct Follower {
    example: Example,
    tokens: Vec<u32>,
}

impl Follower {
    fn may_follow(&mut self, token: u32) -> bool {
        self.tokens.push(token);
        let may = self.example.begins(&self.tokens);
        self.tokens.pop();
        may
    }
}

impl Constraint for Follower {
    fn mask(&mut self, allowed: &mut TokenMask) {
        for token in 0..allowed.tokens() as u32 {
            let may = self.may_follow(token);
            allowed.set(token, may);
        }
    }

    fn accept(&mut self, token: u32) -> bool {
        let may = self.may_follow(token);
        self.tokens.extend(may.then_some(token));
        may
    }

    fn rollback(&mut self, tokens: usize) {
        self.tokens.truncate(self.tokens.len().checked_sub(tokens).unwrap());
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(Self { example: self.example, tokens: self.tokens.clone() })
    }

    fn may_end(&self) -> bool {
        self.example.is_text(&self.tokens)
    }

    fn is_finished(&self) -> bool {
        self.example == Example::Fixed && self.tokens == FIXED
    }

    fn forced(&mut self, out: &mut Vec<u32>) {
        match self.example {
            Example::Even => {}
            Example::Fixed => out.extend_from_slice(&FIXED[self.tokens.len()..]),
            // A guess, which is wrong where another token comes first, and refused where it closes too much.
            Example::Brackets if open(&self.tokens) == Some(DEPTH) => out.extend([CLOSE; DEPTH + 1]),
            Example::Brackets => {}
        }
    }
}
