//! A sequence's place in its grammar.

use std::fmt;
use std::sync::Arc;

use kaito_engine::{Constraint, ConstraintSource, TokenMask};
use llguidance::Matcher;

/// Follows one sequence by a compiled grammar. Forks share nothing that they write to, so they can be asked on several
/// threads at once.
pub(crate) struct Matching {
    matcher: Matcher,
    /// Whether the text may end here; asking the matcher changes it.
    may_end: bool,
    /// Why it can no longer be asked.
    fault: Option<String>,
    /// What the grammar was made of.
    source: Option<Arc<ConstraintSource>>,
}

impl Matching {
    /// At the beginning of a text.
    pub(crate) fn new(matcher: Matcher, source: Option<ConstraintSource>) -> Self {
        let mut matching = Self { matcher, may_end: false, fault: None, source: source.map(Arc::new) };
        matching.look();
        matching
    }

    /// Looks whether the text may end where it stands now.
    fn look(&mut self) {
        match self.matcher.is_accepting() {
            Ok(may_end) => self.may_end = may_end,
            Err(error) => self.fail(&error),
        }
    }

    /// From now on nothing is allowed, so that the request ends with an error.
    fn fail(&mut self, error: &dyn fmt::Display) {
        self.may_end = false;
        if self.fault.is_none() {
            let reason = crate::grammar::one_line(&error.to_string());
            tracing::warn!(reason, "a request ends: its grammar can not be followed any further");
            self.fault = Some(reason);
        }
    }

    /// Copies the mask of 32-bit words.
    fn copy(words: &[u32], allowed: &mut TokenMask) {
        for (word, halves) in allowed.words_mut().iter_mut().zip(words.chunks(2)) {
            let half = |at: usize| u64::from(halves.get(at).copied().unwrap_or_default());
            *word = half(0) | half(1) << u32::BITS;
        }
    }
}

impl fmt::Debug for Matching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { matcher, may_end, fault, .. } = self;
        let stopped = matcher.stop_reason();
        f.debug_struct("Matching")
            .field("may_end", may_end)
            .field("stopped", &stopped)
            .field("fault", fault)
            .finish_non_exhaustive()
    }
}

impl Constraint for Matching {
    fn mask(&mut self, allowed: &mut TokenMask) {
        if self.fault.is_some() || self.matcher.is_stopped() {
            return;
        }
        match self.matcher.compute_mask() {
            Ok(mask) => Self::copy(mask.as_slice(), allowed),
            Err(error) => self.fail(&error),
        }
    }

    fn accept(&mut self, token: u32) -> bool {
        if self.fault.is_some() || self.matcher.is_stopped() {
            return false;
        }
        match self.matcher.try_consume_tokens(&[token]) {
            Ok(accepted) => {
                if accepted == 1 {
                    self.look();
                }
                accepted == 1
            }
            Err(error) => {
                self.fail(&error);
                false
            }
        }
    }

    fn rollback(&mut self, tokens: usize) {
        if tokens == 0 || self.fault.is_some() {
            return;
        }
        match self.matcher.rollback(tokens) {
            Ok(()) => self.look(),
            Err(error) => self.fail(&error),
        }
    }

    fn fork(&self) -> Box<dyn Constraint> {
        let Self { matcher, may_end, fault, source } = self;
        Box::new(Self {
            matcher: matcher.deep_clone(),
            may_end: *may_end,
            fault: fault.clone(),
            source: source.clone(),
        })
    }

    fn may_end(&self) -> bool {
        self.may_end
    }

    fn is_finished(&self) -> bool {
        self.fault.is_none() && self.matcher.is_stopped()
    }

    fn source(&self) -> Option<Arc<ConstraintSource>> {
        self.source.clone()
    }

    fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    fn forced(&mut self, out: &mut Vec<u32>) {
        if self.fault.is_none() && !self.matcher.is_stopped() {
            out.extend(self.matcher.compute_ff_tokens());
        }
    }
}
