//! Paged attention: of query tokens to keys and values that lie in pages of the KV cache.
//!
//! Some pages together are a KV block, the unit of the online softmax (Milakov and Gimelshein 2018; FlashAttention, Dao et al.
//! 2022): a block's scores, the new maximum, then the rescaled sums. Blocks begin at fixed positions, multiples of a block's
//! tokens. So what a query computes depends on its own position and pages alone: not on how chunked prefill cut the prompt into
//! steps, nor on which other sequences are in the step. Values that all queries of a query block see are summed up for all of them
//! together, the others for one query after the other, which changes the order of no sum.
//!
//! It is computed by vectors of f32, or by tile registers: as the KV cache lies, [`KvForm`].

mod alibi;
mod context;
mod paged_heads;
mod prefetch;
mod query_block;
mod scores;
mod soft_cap;
mod step;
#[cfg(any(target_arch = "x86_64", test))]
mod tiled;
mod tiles;
mod weighted_sum;

pub use self::alibi::{alibi_bias, alibi_slopes};
#[cfg(any(target_arch = "x86_64", test))]
use self::tiled::TiledBlock;
use self::{
    context::Context,
    paged_heads::PagedHeads,
    prefetch::Prefetch,
    query_block::{BLOCK_QUERIES, QueryBlock},
    step::{AttentionStep, Block},
};
#[cfg(any(target_arch = "x86_64", test))]
use crate::amx::Unit;
#[cfg(target_arch = "x86_64")]
use crate::simd::dispatch_avx512;
use crate::{
    KvBuffer, KvDType, KvForm, KvLayout, Rows, RowsMut, ThreadPool,
    kv::{Form, KvElement},
    matmul::element::{Bf16, F32, I8},
    simd::{Kernel, Level, MAX_LANES, Simd, dispatch},
};
#[cfg(test)]
use crate::{amx::Emulated, simd::dispatch_portable};

/// What is the same for all sequences of a step.
#[derive(Debug, Clone, Copy)]
pub struct AttentionShape<'a> {
    /// Where each query head begins in a row of the queries. Head `h` uses KV head `h / (heads / KV heads)`.
    pub query_offsets: &'a [usize],
    /// Where keys and values lie. The number of query heads is divisible by that of KV heads (grouped-query attention).
    pub layout: KvLayout,
    /// Elements of a head.
    pub head_dim: usize,
    /// What scores are multiplied by.
    pub scale: f32,
    /// Scaled scores are kept between its negative and itself: a score `s` becomes `cap * tanh(s / cap)`.
    pub soft_cap: Option<f32>,
    /// A query at position `p` sees the positions `j` with `p - window < j <= p`.
    pub window: Option<usize>,
    /// For each query head the slope of its bias, see [`alibi_bias`]; empty for models without such biases.
    pub alibi_slopes: &'a [f32],
}

/// The query tokens of one sequence in a step.
#[derive(Debug, Clone, Copy)]
pub struct AttentionSequence<'a> {
    /// Its first row of the queries and of the output: not before the last row of the sequence before it.
    pub first_row: usize,
    /// Number of its query tokens: the last ones of the context.
    pub rows: usize,
    /// Tokens in the cache, these included.
    pub context: usize,
    /// The page of tokens `0..page_size`, of the next ones, ..: indices into the keys and the values.
    pub pages: &'a [u32],
}

/// Tokens of a page are a multiple of this: whole vectors of any instruction set.
pub const PAGE_TOKENS: usize = MAX_LANES;

/// Tokens of a page at most.
pub const MAX_PAGE_TOKENS: usize = BLOCK_TOKENS;

/// `softmax(scale * (q k^T + bias)) v` for each query token and head, over the keys it may see: those up to its own position,
/// within the window if there is one. The bias is 0 without slopes. With a soft cap it is `softmax(capped(scale * q k^T) + scale *
/// bias) v`.
///
/// `keys` and `values` are one layer's. Row `r` of the output is `[heads][head_dim]` for the query token in row `r` of
/// `queries`. Rows of no sequence are left alone.
///
/// # Panics
/// If a shape does not fit its data, a page is not in the pool, or sequences have the same rows or are not in their order.
pub fn paged_attention(
    pool: &ThreadPool,
    shape: &AttentionShape,
    queries: Rows,
    keys: &KvBuffer,
    values: &KvBuffer,
    sequences: &[AttentionSequence],
    output: RowsMut,
) {
    paged_attention_on(Level::chosen(), pool, shape, queries, keys, values, sequences, output);
}

/// Queries that a thread takes through the pages together.
fn block_queries(form: KvForm) -> usize {
    match form.0 {
        Form::Vectors(_) => BLOCK_QUERIES,
        #[cfg(any(target_arch = "x86_64", test))]
        Form::Tiles(_) => tiled::BLOCK_QUERIES,
    }
}

/// Computes a block, with vectors of `level`.
fn compute(level: Level, block: Block) {
    match block.step().keys.form().0 {
        Form::Vectors(_) => dispatch(level, block),
        #[cfg(target_arch = "x86_64")]
        Form::Tiles(Unit::Hardware(unit)) => dispatch_avx512(TiledBlock { unit, block }),
        #[cfg(test)]
        Form::Tiles(Unit::Emulated) => dispatch_portable(TiledBlock { unit: Emulated, block }),
    }
}

#[allow(clippy::too_many_arguments)]
fn paged_attention_on(
    level: Level,
    pool: &ThreadPool,
    shape: &AttentionShape,
    queries: Rows,
    keys: &KvBuffer,
    values: &KvBuffer,
    sequences: &[AttentionSequence],
    output: RowsMut,
) {
    if shape.query_offsets.is_empty() || shape.head_dim == 0 {
        return;
    }
    let step = AttentionStep::new(shape, queries, keys, values, sequences, output, block_queries(keys.form()));
    step.for_each_block(pool, |block| compute(level, block));
}

impl Kernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.step().keys.dtype() {
            KvDType::F32 => self.run_typed::<S, F32>(simd),
            KvDType::Bf16 => self.run_typed::<S, Bf16>(simd),
            KvDType::Int8 => self.run_typed::<S, I8>(simd),
        }
    }
}

impl Block<'_> {
    #[inline(always)]
    fn run_typed<S: Simd, E: KvElement>(mut self, simd: S) {
        let context = Context::<E>::of(&self);
        let count = self.queries();
        let mut queries = QueryBlock::take(count, self.step().shape);
        for i in 0..count {
            queries.set_query(i, self.query(i));
        }
        let mut first = context.first_page();
        while first < context.pages.end {
            let next = first + context.block_pages();
            let prefetch = context.prefetch(context.pages_from(next));
            queries.attend(simd, first, &context, |i| self.slope(i), prefetch);
            first = next;
        }
        for i in 0..count {
            queries.write(i, self.output(i));
        }
        queries.give_back();
    }
}

/// Tokens of a KV block, or somewhat fewer if they are not divisible by a page's: enough that what is done once a block costs
/// little beside its products.
const BLOCK_TOKENS: usize = 128;

/// Pages that a KV block has at most.
const MAX_BLOCK_PAGES: usize = BLOCK_TOKENS / PAGE_TOKENS;

/// Pages of a KV block.
fn block_pages(page_size: usize) -> usize {
    BLOCK_TOKENS / page_size
}

#[cfg(test)]
mod tests;
