//! How large a KV cache is, and how many sequences of which length that gives room for.

use kaito_kernels::KvDType;

use crate::Error;
use kaito_model::config::ModelConfig;

/// Tokens of prompts whose scores one step computes at most. Each takes a row of the vocabulary's width, for which there is always
/// memory; with so many rows, a step is mostly arithmetic and not the reading of weights.
pub const STEP_SCORES: usize = 32;

/// Room for sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Longest sequence, in tokens.
    pub max_seq_len: usize,
    /// Pages of the KV cache.
    pub pages: usize,
    /// Tokens in a page.
    pub page_size: usize,
    /// Bytes of all pages.
    pub bytes: u64,
}

/// Bytes of the KV cache that one token takes, all layers together.
pub fn bytes_per_token(config: &ModelConfig, kv_dtype: KvDType) -> u64 {
    let attention = &config.layer.attention;
    let heads = 2 * config.num_layers * attention.num_kv_heads;
    (heads * kv_dtype.head_bytes(attention.head_dim)) as u64
}

impl Capacity {
    /// Room for `max_batch_size` sequences of `max_seq_len` tokens (the model's own length where that is `None`), or for
    /// as many as `budget` bytes hold, in pages of `page_size` tokens.
    ///
    /// # Errors
    /// Where not even one sequence of the length asked for fits. A length that nobody asked for is lowered instead.
    pub fn plan(
        config: &ModelConfig,
        kv_dtype: KvDType,
        page_size: usize,
        max_seq_len: Option<usize>,
        max_batch_size: usize,
        budget: u64,
    ) -> Result<Self, Error> {
        let longest = config.max_position_embeddings;
        if let Some(asked) = max_seq_len.filter(|&asked| asked > longest || asked == 0) {
            return Err(Error::InvalidRequest(format!(
                "max_seq_len is {asked}, but must be from 1 to {longest}, the length the model was made for"
            )));
        }
        let page_bytes = bytes_per_token(config, kv_dtype) * page_size as u64;
        let affordable = usize::try_from(budget / page_bytes).unwrap_or(usize::MAX);
        let wanted_len = max_seq_len.unwrap_or(longest);
        let one = wanted_len.div_ceil(page_size);
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let max_seq_len = if one <= affordable {
            wanted_len
        } else if max_seq_len.is_none() && affordable > 0 {
            let fits = affordable * page_size;
            tracing::warn!(
                max_seq_len = fits,
                model = longest,
                kv_cache_mib = mib(budget),
                "the longest sequence is shorter than the model's, since its KV cache must fit the memory"
            );
            fits
        } else {
            return Err(Error::NoRoom {
                tokens: wanted_len,
                needed_mib: mib(one as u64 * page_bytes),
                available_mib: mib(budget),
            });
        };
        let pages = affordable.min(max_batch_size.max(1).saturating_mul(max_seq_len.div_ceil(page_size)));
        let pages = pages.min(u32::MAX as usize);
        Ok(Self { max_seq_len, pages, page_size, bytes: pages as u64 * page_bytes })
    }
}
