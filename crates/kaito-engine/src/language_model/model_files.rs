//! A model without its weights: what an engine elsewhere, which has them, must be asked with.

use std::path::Path;

use kaito_kernels::{Compute, DType, KvDType};
use kaito_model::family;

use super::{ModelInfo, generation_defaults::ModelDefaults, model_info::UNKNOWN, open_tokenizer};
use crate::{Error, request::RequestContext};

/// What the files of a model say beside its weights, which are not looked for.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    /// What decides how requests become tokens.
    pub context: RequestContext,
    /// What the model is, as far as that can be known without its weights.
    pub info: ModelInfo,
}

impl ModelFiles {
    /// Reads configuration, tokenizer, chat template (from `chat_template`, where that is a file) and generation defaults of the model
    /// in `directory`, of which the engine at `upstream` computes at most `max_batch_size` sequences at the same time.
    ///
    /// # Errors
    /// Files that are missing, damaged or of a kind that isn't supported.
    pub fn read(
        directory: &Path,
        chat_template: Option<&Path>,
        max_batch_size: usize,
        upstream: &str,
    ) -> Result<Self, Error> {
        let described = family::describe(directory)?;
        let config = described.config;
        let tokenizer = open_tokenizer(directory, chat_template)?;
        let defaults = ModelDefaults::read(directory, config.vocab_size)?;
        let info = ModelInfo {
            family: config.family,
            directory: directory.to_owned(),
            parameters: described.parameters,
            layer_parameters: config.layer_parameters(),
            head_parameters: config.head_parameters(),
            weights_bytes: 0,
            dtype: DType::F32,
            compute: Compute::Exact,
            quantization: None,
            blocks: Vec::new(),
            kv_dtype: KvDType::F32,
            vocab_size: config.vocab_size,
            hidden_size: config.hidden_size,
            num_layers: config.num_layers,
            step_bytes: 0,
            kv_bytes_per_token: 0,
            attention_window: config.layer.attention.sliding_window,
            dialog_format: config.dialog_format,
            instruction_set: UNKNOWN,
            threads: 0,
            max_seq_len: config.max_position_embeddings,
            max_batch_size,
            chat_template: tokenizer.has_chat_template(),
            upstream: Some(upstream.to_owned()),
        };
        let context = defaults.context(tokenizer, &info);
        Ok(Self { context, info })
    }

    /// Lowers the longest sequence to `tokens`, if it is longer.
    pub fn limit(&mut self, tokens: usize) {
        self.info.max_seq_len = self.info.max_seq_len.min(tokens);
        self.context.max_seq_len = self.info.max_seq_len;
    }
}
