//! Where the keys and values of a KV block are as operands.

use super::{BLOCK_SLICES, GROUP, MOST_GROUPS};
use crate::{
    attention::context::Context,
    matmul::element::Bf16,
    simd::{CACHE_LINE, TileRow},
};

/// Rows of an operand that a group of tokens has: two values in each.
const GROUP_ROWS: usize = GROUP / 2;

/// The keys and values of a KV block, as far as some query sees them.
pub(super) struct Operands {
    /// Where the keys of each group of tokens begin. A row has a pair of elements of each token of the page.
    pub keys: [*const u8; MOST_GROUPS],
    /// Bytes from one row to the next.
    pub key_stride: usize,
    /// Where the values of each slice of tokens begin. A row has a pair of values.
    pub values: [*const u8; BLOCK_SLICES],
    pub value_stride: usize,
}

impl Operands {
    /// Those of the KV block that begins with page `first`. The values of two groups of tokens that do not follow each other, since pages lie anywhere,
    /// are copied to `copies`.
    #[inline(always)]
    pub(super) fn of(context: &Context<Bf16>, first: usize, copies: &mut [TileRow]) -> Self {
        let (page_size, head_dim) = (context.page_size, context.head_dim);
        let (key_stride, value_stride) = (page_size * size_of::<u32>(), head_dim * size_of::<u32>());
        let groups_of_page = page_size / GROUP;
        let mut keys = [std::ptr::null(); MOST_GROUPS];
        let mut values = [std::ptr::null(); MOST_GROUPS];
        let pages = context.pages_from(first);
        for page in pages {
            let (key, value) = (context.keys.start_of(page), context.values.start_of(page));
            for group in 0..groups_of_page {
                let at = (page - first) * groups_of_page + group;
                keys[at] = key.wrapping_add(group * GROUP * size_of::<u32>());
                values[at] = value.wrapping_add(group * GROUP_ROWS * value_stride);
            }
        }
        let group_bytes = GROUP_ROWS * value_stride;
        let mut slices = [std::ptr::null(); BLOCK_SLICES];
        let copies = copies.chunks_exact_mut(2 * group_bytes / CACHE_LINE);
        for ((slice, halves), copy) in slices.iter_mut().zip(values.as_chunks::<2>().0).zip(copies) {
            if !halves[0].is_null() && halves[1] == halves[0].wrapping_add(group_bytes) {
                *slice = halves[0];
                continue;
            }
            for (half, copy) in halves.iter().zip(copy.chunks_exact_mut(group_bytes / CACHE_LINE)) {
                if !half.is_null() {
                    // SAFETY: the page has the values of this group.
                    unsafe { copy.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(*half, group_bytes) };
                }
            }
            *slice = copy.as_ptr().cast();
        }
        Self { keys, key_stride, values: slices, value_stride }
    }
}
