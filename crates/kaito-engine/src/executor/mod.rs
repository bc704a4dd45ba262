//! What computes steps: the engine's thread hands it what to compute and takes logits back.
//!
//! The engine's thread knows no device, no model and no threads of kernels: it works with anything that can compute a
//! [`StepInput`]. [`crate::decoder::Decoder`] does so on a device; tests have one that answers from a table.
//!
//! # Why `submit` and `collect`
//!
//! A step could also be one call that returns logits, or a pair `begin` and `finish` that borrows its input for as long as it
//! runs. A step that is handed over whole, and fetched with a [`Ticket`], leaves the engine's thread free between the two calls:
//! to plan the next step while a GPU computes this one, or to send one step to several ranks and then wait for all of them. For
//! that the input must be owned and not borrowed, and so must the output, since the tokens of one step are chosen while another
//! one is computed. `begin` and `finish` exist one level below, where the decoder gives a step to its device
//! ([`crate::device::Operations`]).
//!
//! The same memory is used for every step: the output holds the step's input, and [`Executor::recycle`] gives it back empty. So no
//! step allocates.

mod step_input;

#[cfg(any(test, feature = "testing"))]
pub use self::step_input::InputSpan;
pub use self::step_input::{Span, StepInput};
use crate::device::{DeviceError, DeviceErrorKind};
use kaito_model::adapter::AdapterWeights;

/// What an executor must have room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExecutorLimits {
    /// Pages of the KV cache.
    pub pages: usize,
    /// Tokens in a page.
    pub page_size: usize,
    /// Tokens computed in one step.
    pub step_tokens: usize,
    /// Rows of logits in one step.
    pub step_logits: usize,
    /// Sequences in one step.
    pub sequences: usize,
    /// Pages of the longest sequence.
    pub sequence_pages: usize,
}

/// Memory of the host that logits lie in: a vector, or memory that a GPU writes to by itself.
pub type HostMemory = Box<dyn AsMut<[f32]> + Send>;

/// Names a step that was submitted, until it is collected.
#[derive(Debug, PartialEq, Eq)]
pub struct Ticket(u64);

impl Ticket {
    /// The ticket of an executor's step of this number.
    pub fn new(number: u64) -> Self {
        Self(number)
    }

    /// The step's number.
    pub fn number(&self) -> u64 {
        self.0
    }
}

/// What a step comes to.
pub struct StepOutput {
    input: StepInput,
    logits: HostMemory,
    len: usize,
    /// The memory of hidden states, and how many numbers of it are the step's.
    states: Option<(HostMemory, usize)>,
}

impl StepOutput {
    /// The output of the step `input`, whose logits are the first `len` numbers of `logits`.
    pub fn new(input: StepInput, logits: HostMemory, len: usize) -> Self {
        Self { input, logits, len, states: None }
    }

    /// The same with hidden states, which are the first `len` numbers of `states`.
    #[must_use]
    pub fn with_states(self, states: HostMemory, len: usize) -> Self {
        Self { states: Some((states, len)), ..self }
    }

    /// The rows of logits alone.
    #[cfg(any(test, feature = "testing"))]
    pub fn logits(&mut self) -> &mut [f32] {
        self.numbers().0
    }

    /// Rows of logits, each as long as the vocabulary, one for each row that was wanted, in their order; and rows of hidden states
    /// behind the final norm, one for each row of the step, where any were wanted.
    pub fn numbers(&mut self) -> (&mut [f32], &[f32]) {
        let states = self.states.as_mut().map_or(&[][..], |(states, len)| &(**states).as_mut()[..*len]);
        (&mut (*self.logits).as_mut()[..self.len], states)
    }

    /// The step's input, the memory of its logits, and that of its hidden states.
    pub fn into_parts(self) -> (StepInput, HostMemory, Option<HostMemory>) {
        (self.input, self.logits, self.states.map(|(states, _)| states))
    }
}

/// What computes steps, with a KV cache of its own.
pub trait Executor: Send + 'static {
    /// What it has room for.
    fn limits(&self) -> &ExecutorLimits;

    /// Length of a row of logits.
    fn vocab_size(&self) -> usize;

    /// Begins a step: copies pages, computes the rows and writes their keys and values. At most one step is under way.
    ///
    /// # Errors
    /// Whatever the device fails with. The step is not under way then, and what its spans wrote must not be used.
    fn submit(&mut self, input: StepInput) -> Result<Ticket, DeviceError>;

    /// Waits for a step.
    ///
    /// # Errors
    /// As for [`Self::submit`]: a device may report a failure only here.
    fn collect(&mut self, ticket: Ticket) -> Result<StepOutput, DeviceError>;

    /// Takes an adapter: spans may ask for it by its number from the next step on.
    ///
    /// # Errors
    /// Too little memory, an adapter that does not fit the model, an executor that applies none.
    fn add_adapter(&mut self, id: u32, _weights: AdapterWeights) -> Result<(), DeviceError> {
        let cause = format!("adapter {id}: this executor applies none");
        Err(DeviceError::new(DeviceErrorKind::Unsupported, "executor", cause))
    }

    /// Gives an adapter's memory back. No span of a later step asks for it.
    fn remove_adapter(&mut self, _id: u32) {}

    /// Takes an output's memory back, and gives its input back, empty.
    fn recycle(&mut self, output: StepOutput) -> StepInput;
}
