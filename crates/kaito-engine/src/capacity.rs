//! How many keys and values fit this machine.

use std::fs;

use kaito_kernels::KvDType;

use crate::Error;
use kaito_model::config::ModelConfig;

/// Tokens in a page: small enough that a short answer wastes little, large enough that a page is worth a loop.
pub const PAGE_SIZE: usize = 16;

/// Share of the memory beside the weights that keys and values may take where nobody says how much.
const DEFAULT_SHARE: f64 = 0.6;

/// Room for sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Longest sequence, in tokens.
    pub max_seq_len: usize,
    /// Pages of [`PAGE_SIZE`] tokens.
    pub pages: usize,
    /// Bytes of all pages.
    pub bytes: u64,
}

/// Bytes of the keys and values of one token in all layers.
pub fn bytes_per_token(config: &ModelConfig, kv_dtype: KvDType) -> u64 {
    let heads = 2 * config.num_layers * config.num_kv_heads;
    (heads * kv_dtype.head_bytes(config.head_dim)) as u64
}

impl Capacity {
    /// Room for `max_batch_size` sequences of `max_seq_len` tokens (the model's own length where that is `None`), or for
    /// as many as `kv_cache_memory` bytes hold (a part of `available` where that is `None`).
    ///
    /// # Errors
    /// Where not even one sequence of the length asked for fits. A length that nobody asked for is lowered instead.
    pub fn plan(
        config: &ModelConfig,
        kv_dtype: KvDType,
        max_seq_len: Option<usize>,
        max_batch_size: usize,
        kv_cache_memory: Option<u64>,
        available: u64,
    ) -> Result<Self, Error> {
        let longest = config.max_position_embeddings;
        if let Some(asked) = max_seq_len.filter(|&asked| asked > longest || asked == 0) {
            return Err(Error::InvalidRequest(format!(
                "max_seq_len is {asked}, but must be from 1 to {longest}, the length the model was made for"
            )));
        }
        let page_bytes = bytes_per_token(config, kv_dtype) * PAGE_SIZE as u64;
        let budget = kv_cache_memory.unwrap_or((available as f64 * DEFAULT_SHARE) as u64);
        let affordable = usize::try_from(budget / page_bytes).unwrap_or(usize::MAX);
        let wanted_len = max_seq_len.unwrap_or(longest);
        let one = wanted_len.div_ceil(PAGE_SIZE);
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let max_seq_len = if one <= affordable {
            wanted_len
        } else if max_seq_len.is_none() && affordable > 0 {
            let fits = affordable * PAGE_SIZE;
            tracing::warn!(
                max_seq_len = fits,
                model = longest,
                kv_cache_mib = mib(budget),
                "the longest sequence is shorter than the model's, since its keys and values must fit the memory"
            );
            fits
        } else {
            return Err(Error::NoRoom {
                tokens: wanted_len,
                needed_mib: mib(one as u64 * page_bytes),
                available_mib: mib(budget),
            });
        };
        let pages = affordable.min(max_batch_size.max(1).saturating_mul(max_seq_len.div_ceil(PAGE_SIZE)));
        let pages = pages.min(u32::MAX as usize);
        Ok(Self { max_seq_len, pages, bytes: pages as u64 * page_bytes })
    }
}

/// Memory that this process can still take: the system's, or what its control group leaves, if that is less.
pub fn available_memory() -> u64 {
    let system = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
    });
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let group = number("/sys/fs/cgroup/memory.max")
        .map(|max| max.saturating_sub(number("/sys/fs/cgroup/memory.current").unwrap_or(0)));
    // Where the system does not say, a machine that can run a small model is assumed.
    system.into_iter().chain(group).min().unwrap_or(2 << 30)
}
