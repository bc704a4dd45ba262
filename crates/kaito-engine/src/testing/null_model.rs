//! A model without weights: the fake engine behind a tokenizer, for tests of what serves models.

use std::path::{Path, PathBuf};

use kaito_kernels::{Compute, DType, KvDType};

use super::{DeviceFaults, FakeEngine, PAGE_SIZE, VOCAB};
use crate::{Adapters, Error, LanguageModel, ModelInfo, Tokenizer, engine::Engine, scheduler::Faults};

/// Tokens of the longest sequence, where there are pages for it.
const LONGEST: usize = 1024;

/// A running [`LanguageModel`] whose tokens are computed from those before them and from no weights, with faults on demand.
/// Its queue takes 100 requests.
pub struct NullModel {
    /// The model.
    pub model: LanguageModel,
    /// Panics in the bookkeeping of requests, which are numbered from 0 as they are submitted.
    pub requests: Faults,
    /// Panics in forward passes, and passes that wait.
    pub device: DeviceFaults,
    engine: Engine,
}

impl NullModel {
    /// Starts one with so many pages, that runs so many sequences at the same time. The tokenizer of `directory` has at most
    /// [`VOCAB`] tokens.
    ///
    /// # Errors
    /// A tokenizer that can't be read, a thread that can't be started.
    pub fn start(directory: &Path, pages: u32, sequences: usize) -> Result<Self, Error> {
        Self::with_adapters(directory, pages, sequences, &[])
    }

    /// The same with adapters of these names, which change nothing.
    ///
    /// # Errors
    /// As for [`Self::start`].
    pub fn with_adapters(directory: &Path, pages: u32, sequences: usize, names: &[&str]) -> Result<Self, Error> {
        let FakeEngine { engine, requests, device } = FakeEngine::start(pages, sequences, 0)?;
        let tokenizer = Tokenizer::open(directory)?;
        let info = ModelInfo {
            family: "fake",
            directory: directory.to_owned(),
            parameters: 0,
            layer_parameters: 0,
            head_parameters: 0,
            weights_bytes: 0,
            dtype: DType::F32,
            compute: Compute::Exact,
            quantization: None,
            blocks: Vec::new(),
            kv_dtype: KvDType::F32,
            vocab_size: VOCAB,
            hidden_size: 1,
            num_layers: 1,
            step_bytes: 0,
            kv_bytes_per_token: size_of::<f32>() as u64,
            attention_window: None,
            dialog_format: None,
            instruction_set: "none",
            threads: 1,
            max_seq_len: LONGEST.min(pages as usize * PAGE_SIZE),
            max_batch_size: sequences,
            chat_template: tokenizer.has_chat_template(),
            upstream: None,
        };
        let adapters = Adapters::elsewhere(names.iter().map(|&name| (name.to_owned(), PathBuf::new())));
        let model = LanguageModel::of_parts(engine.clone(), tokenizer, info, adapters);
        Ok(Self { model, requests, device, engine })
    }

    /// Ends the engine's thread after its current step, as a fault would that nothing catches.
    pub fn kill(&self) {
        self.engine.kill();
    }
}
