//! One vector for a prompt: the hidden states of its tokens, pooled. No token is chosen behind it.

use std::ops::Range;

use super::GenerateError;

/// How the hidden states of a prompt's tokens become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over all tokens.
    Mean,
    /// That of the last token, which has seen all others.
    Last,
}

/// A prompt whose hidden states are pooled while it is computed.
///
/// Sums are 64 bits wide and run in the order of the tokens, so that they do not depend on how the prompt was cut into chunks.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    prompt: Vec<u32>,
    /// The sum of what was pooled; empty before that.
    sums: Vec<f64>,
    /// Tokens whose states are summed up.
    pooled: Range<usize>,
    /// The first of them whose state is missing.
    next: usize,
}

impl Pool {
    pub(super) fn new(prompt: Vec<u32>, pooling: Pooling) -> Self {
        let first = match pooling {
            Pooling::Mean => 0,
            Pooling::Last => prompt.len().saturating_sub(1),
        };
        Self { pooled: first..prompt.len(), next: first, prompt, sums: Vec::new() }
    }

    /// The prompt's tokens.
    pub(super) fn prompt(&self) -> &[u32] {
        &self.prompt
    }

    /// The tokens whose hidden states are missing.
    pub(super) fn wanted(&self) -> Range<usize> {
        self.next..self.pooled.end
    }

    /// Takes the hidden states of the next tokens of [`Self::wanted`].
    ///
    /// # Errors
    /// States that are no finite numbers.
    pub(super) fn add<'a>(&mut self, states: impl Iterator<Item = &'a [f32]>) -> Result<(), GenerateError> {
        for state in states.take(self.wanted().len()) {
            if !state.iter().all(|x| x.is_finite()) {
                return Err(GenerateError::InvalidStates { position: self.next });
            }
            self.sums.resize(state.len(), 0.0);
            self.sums.iter_mut().zip(state).for_each(|(sum, &x)| *sum += f64::from(x));
            self.next += 1;
        }
        Ok(())
    }

    /// Takes the mean of what was pooled, once that is complete.
    pub(super) fn take(&mut self) -> Option<Vec<f32>> {
        if !self.wanted().is_empty() || self.sums.is_empty() {
            return None;
        }
        let count = self.pooled.len().max(1) as f64;
        Some(std::mem::take(&mut self.sums).into_iter().map(|sum| (sum / count) as f32).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(pooling: Pooling, chunks: &[&[[f32; 2]]]) -> Vec<f32> {
        let tokens = chunks.iter().map(|chunk| chunk.len()).sum::<usize>();
        let mut pool = Pool::new(vec![7; tokens], pooling);
        let mut start = 0;
        for chunk in chunks {
            // Those that lie in the chunk, as a step has them.
            let skipped = pool.wanted().start.saturating_sub(start);
            assert_eq!(pool.take(), None);
            pool.add(chunk.iter().skip(skipped).map(|state| &state[..])).unwrap();
            start += chunk.len();
        }
        let pooled = pool.take().unwrap();
        assert_eq!(pool.take(), None);
        pooled
    }

    #[test]
    fn the_mean_of_all_states_or_the_last_one() {
        // 2^24 + 1 is no f32: a sum of 32 bits would lose the ones.
        let states = [[1.0, 16_777_216.0], [2.0, 1.0], [6.0, 1.0], [-1.0, 2.0]];
        for chunks in [vec![&states[..]], vec![&states[..1], &states[1..]], vec![&states[..3], &states[3..]]] {
            assert_eq!(pool(Pooling::Mean, &chunks), [2.0, 4_194_305.0]);
            assert_eq!(pool(Pooling::Last, &chunks), [-1.0, 2.0]);
        }
    }

    #[test]
    fn states_that_are_no_numbers_are_an_error() {
        for wrong in [f32::NAN, f32::INFINITY] {
            let mut pool = Pool::new(vec![1, 2], Pooling::Mean);
            let states = [[1.0, 1.0], [1.0, wrong]];
            let error = pool.add(states.iter().map(|state| &state[..])).unwrap_err();
            assert_eq!(error, GenerateError::InvalidStates { position: 1 });
        }
    }
}
