//! Dividing a matrix of outputs among threads: each part of it is written by one thread alone.

use std::{
    marker::PhantomData,
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

use crate::{RowsMut, ThreadPool};

/// `len` items in `count` ranges of nearly the same size: 8 tokens are 4 and 4, and not 6 and 2.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EvenSplit {
    len: usize,
    count: usize,
}

impl EvenSplit {
    /// As few ranges as have at most `most` items each.
    #[inline(always)]
    pub(crate) fn of_at_most(len: usize, most: usize) -> Self {
        Self { len, count: len.div_ceil(most) }
    }

    /// Number of ranges.
    #[inline(always)]
    pub(crate) fn count(self) -> usize {
        self.count
    }

    /// The range that has item `i`.
    #[inline(always)]
    pub(crate) fn index_of(self, i: usize) -> usize {
        ((i + 1) * self.count - 1) / self.len
    }

    /// Items of the largest range.
    pub(crate) fn most(self) -> usize {
        self.len.div_ceil(self.count.max(1))
    }

    /// Items of the smallest range.
    pub(crate) fn least(self) -> usize {
        self.len / self.count.max(1)
    }

    /// Where range `i` begins. It never decreases with `i`, and is `len` for `i == count`.
    #[inline(always)]
    pub(crate) fn start(self, i: usize) -> usize {
        i * self.len / self.count
    }

    /// The items of range `i`.
    #[inline(always)]
    pub(crate) fn range(self, i: usize) -> Range<usize> {
        self.start(i)..self.start(i + 1)
    }
}

/// Up to so many sets of tokens, threads begin with different ones: see [`RowsMut::for_each_part`].
const MOST_TOKEN_SETS: usize = 8;

/// A matrix of outputs in parts. Its rows (tokens) are taken in tiles, some of which make a part.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Partition {
    tiles: EvenSplit,
    part_tiles: usize,
    columns: usize,
    part_columns: usize,
}

/// A rectangle of the outputs.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    /// Its tiles of tokens.
    pub tiles: Range<usize>,
    /// The tokens of these tiles: rows of the output.
    pub tokens: Range<usize>,
    /// Columns of the output: rows of the weight, for a product.
    pub columns: Range<usize>,
}

/// How large the parts of a matrix product are.
pub(crate) struct PartSizes {
    /// Tokens of a tile at most.
    pub tile_tokens: usize,
    /// Tiles of a part at most.
    pub most_tiles: usize,
    /// Weight rows that are stored together.
    pub block_rows: usize,
    /// A part has a multiple of so many blocks of weight rows.
    pub least_blocks: usize,
    /// Blocks of a part at most.
    pub most_blocks: usize,
    /// Multiplications of a part at least, as far as `most_blocks` lets it have them.
    pub least_products: usize,
}

impl Partition {
    /// Parts of `part_tokens` rows and `part_columns` columns; the last ones may be smaller.
    pub(crate) fn fixed(tokens: usize, part_tokens: usize, columns: usize, part_columns: usize) -> Self {
        Self { tiles: EvenSplit::of_at_most(tokens, 1), part_tiles: part_tokens, columns, part_columns }
    }

    /// Parts of a product of `tokens` tokens, at least one, with `rows` weight rows of `cols` columns: small enough that all
    /// threads end at nearly the same time, and large enough that starting one costs nothing next to it and that what it
    /// reads is used often.
    pub(crate) fn of_product(threads: usize, tokens: usize, rows: usize, cols: usize, sizes: &PartSizes) -> Self {
        const PARTS_OF_A_THREAD: usize = 8;
        let tiles = EvenSplit::of_at_most(tokens, sizes.tile_tokens);
        let part_tiles = tiles.count.div_ceil(tiles.count.div_ceil(sizes.most_tiles));
        let even = rows.div_ceil(sizes.block_rows) * tiles.count.div_ceil(part_tiles) / (threads * PARTS_OF_A_THREAD);
        let part_tokens = tokens.min(part_tiles * sizes.tile_tokens);
        let least = sizes.least_products / (cols * sizes.block_rows * part_tokens).max(1);
        let part_blocks =
            even.max(least).clamp(sizes.least_blocks, sizes.most_blocks).next_multiple_of(sizes.least_blocks);
        Self { tiles, part_tiles, columns: rows, part_columns: part_blocks * sizes.block_rows }
    }

    /// Parts with the same tokens.
    fn across(&self) -> usize {
        self.columns.div_ceil(self.part_columns)
    }

    /// Sets of tokens, each of which has as many parts.
    fn token_sets(&self) -> usize {
        self.tiles.count.div_ceil(self.part_tiles)
    }

    fn parts(&self) -> usize {
        self.across() * self.token_sets()
    }

    /// Part `i` of [`Partition::parts`]. Different parts have no output in common.
    fn part(&self, i: usize) -> Part {
        let across = self.across();
        let first_column = i % across * self.part_columns;
        let first_tile = i / across * self.part_tiles;
        let tiles = first_tile..self.tiles.count.min(first_tile + self.part_tiles);
        Part {
            tokens: self.tiles.start(tiles.start)..self.tiles.start(tiles.end),
            tiles,
            columns: first_column..self.columns.min(first_column + self.part_columns),
        }
    }
}

impl RowsMut<'_> {
    /// Calls `task` once for each part of these rows, on the threads of `pool`.
    ///
    /// Where there are a few sets of tokens, threads begin with different ones and then take columns in order. So they read the same weights at
    /// nearly the same time, which memory is asked for once, and each keeps the activations of its tokens in its cache.
    ///
    /// # Panics
    /// If the rows of the partition overlap or do not fit in the data.
    pub(crate) fn for_each_part(
        self,
        what: &str,
        pool: &ThreadPool,
        partition: Partition,
        task: impl Fn(Part, PartMut) + Sync,
    ) {
        self.check(what, partition.tiles.len, partition.columns);
        let matrix = Shared { first: self.data.as_mut_ptr().wrapping_add(self.offset), stride: self.stride };
        let compute = |i| {
            let part = partition.part(i);
            // SAFETY: the part lies within the rows that were checked, which this function borrows. This is called with each
            // `i` once, and different parts have no element in common.
            let elements = unsafe { matrix.part(&part) };
            task(part, elements);
        };
        let (parts, across, sets) = (partition.parts(), partition.across(), partition.token_sets());
        if across < 2 || !(2..=MOST_TOKEN_SETS).contains(&sets) {
            pool.for_each(parts, &compute);
            return;
        }
        let next = [const { AtomicUsize::new(0) }; MOST_TOKEN_SETS];
        pool.for_each(pool.threads().min(parts), &|thread| {
            for set in 0..sets {
                let set = (thread + set) % sets;
                loop {
                    let i = next[set].fetch_add(1, Ordering::Relaxed);
                    if i >= across {
                        break;
                    }
                    compute(set * across + i);
                }
            }
        });
    }
}

/// Rows that several threads write, each a part of its own.
struct Shared {
    /// The first element of the first row.
    first: *mut f32,
    stride: usize,
}

// SAFETY: it stands for an exclusive borrow of `f32`s, which any thread may have; `part` demands that threads do not have the
// same elements.
unsafe impl Sync for Shared {}

impl Shared {
    /// # Safety
    /// For the lifetime that the caller chooses, the elements of the part can be written, and nobody else uses them.
    unsafe fn part<'a>(&self, part: &Part) -> PartMut<'a> {
        let &Self { first, stride } = self;
        PartMut { first, stride, tokens: part.tokens.clone(), columns: part.columns.clone(), lifetime: PhantomData }
    }
}

/// The elements of a part: a value of this type has exclusive access to them.
pub(crate) struct PartMut<'a> {
    /// Element 0 of row 0 of the whole matrix.
    first: *mut f32,
    stride: usize,
    tokens: Range<usize>,
    columns: Range<usize>,
    lifetime: PhantomData<&'a mut [f32]>,
}

impl PartMut<'_> {
    /// Some columns of the row of `token`, counted from the beginning of the whole matrix.
    ///
    /// # Panics
    /// If the part does not have them.
    #[inline(always)]
    pub(crate) fn slice(&mut self, token: usize, columns: Range<usize>) -> &mut [f32] {
        assert!(self.tokens.contains(&token));
        assert!(self.columns.start <= columns.start && columns.start <= columns.end && columns.end <= self.columns.end);
        // SAFETY: a value of this type has these elements alone, see `Shared::part`; `self` is borrowed as long as the slice.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(token * self.stride + columns.start), columns.len()) }
    }

    /// Sets elements of the row of `token`, or adds to them: those of `column` and of the columns `apart` from each other after it.
    ///
    /// # Panics
    /// If the part does not have them.
    #[inline(always)]
    pub(crate) fn write_apart<const N: usize>(
        &mut self,
        token: usize,
        column: usize,
        apart: usize,
        values: &[f32; N],
        add: bool,
    ) {
        if apart == 1 {
            // Vectors.
            let elements = self.slice(token, column..column + N);
            for (element, value) in elements.iter_mut().zip(values) {
                *element = if add { *element + value } else { *value };
            }
            return;
        }
        assert!(self.tokens.contains(&token));
        // The distance is less than the number of columns: what follows does not overflow.
        let len = self.columns.len();
        assert!(N > 0 && self.columns.contains(&column) && (N == 1 || apart <= len));
        assert!(column - self.columns.start + (N - 1) * apart < len);
        for (i, value) in values.iter().enumerate() {
            // SAFETY: just checked: the columns ascend from the first to the last, and a value of this type has these elements alone, see
            // `Shared::part`.
            let element = unsafe { &mut *self.first.add(token * self.stride + column + i * apart) };
            *element = if add { *element + value } else { *value };
        }
    }

    /// Elements from a row to the next one.
    #[inline(always)]
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// Where an element lies, for a prefetch.
    #[inline(always)]
    pub(crate) fn address(&self, token: usize, column: usize) -> *const f32 {
        self.first.wrapping_add(token * self.stride + column)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    /// Each output is in one part, whatever the shape.
    #[track_caller]
    fn assert_covers(partition: Partition, tokens: usize, columns: usize) {
        let mut count = vec![0; tokens * columns];
        for i in 0..partition.parts() {
            let part = partition.part(i);
            assert!(!part.tokens.is_empty() && !part.columns.is_empty() && !part.tiles.is_empty());
            for token in part.tokens {
                part.columns.clone().for_each(|column| count[token * columns + column] += 1);
            }
        }
        assert!(count.iter().all(|&count| count == 1), "{partition:?}: {count:?}");
    }

    #[test]
    fn every_output_is_in_one_part() {
        for (tile_tokens, block_rows, least_blocks, most_blocks) in [(6, 1, 8, 64), (1, 16, 4, 16)] {
            for tokens in [1, 5, 6, 7, 40, 300] {
                for rows in [1, 15, 16, 17, 200] {
                    for (threads, least_products) in [(1, 1 << 16), (3, 1 << 10), (64, 1)] {
                        let sizes = PartSizes {
                            tile_tokens,
                            most_tiles: 10,
                            block_rows,
                            least_blocks,
                            most_blocks,
                            least_products,
                        };
                        assert_covers(Partition::of_product(threads, tokens, rows, 64, &sizes), tokens, rows);
                    }
                }
            }
        }
        for (tokens, columns) in [(0, 3), (3, 0), (1, 1), (7, 5), (20, 33)] {
            assert_covers(Partition::fixed(tokens, 4, columns, 8), tokens, columns);
        }
    }

    #[test]
    fn parts_are_written_where_strides_and_offsets_say() {
        let pool = ThreadPool::new(NonZeroUsize::new(3).unwrap());
        let mut data = vec![0.0; 7 * 12];
        let rows = RowsMut { data: &mut data, stride: 12, offset: 2 };
        rows.for_each_part("rows", &pool, Partition::fixed(7, 2, 9, 4), |part, mut elements| {
            for token in part.tokens {
                for column in part.columns.clone() {
                    elements.slice(token, column..column + 1)[0] += (token * 100 + column + 1) as f32;
                }
            }
        });
        for (i, &y) in data.iter().enumerate() {
            let (row, column) = (i / 12, (i % 12).wrapping_sub(2));
            let expected = if column < 9 { row * 100 + column + 1 } else { 0 };
            assert_eq!(y, expected as f32, "element {i}");
        }
    }

    #[test]
    fn a_part_has_no_elements_of_another() {
        let pool = ThreadPool::new(NonZeroUsize::MIN);
        for (token, columns) in [(2, 0..1), (0, 3..5), (1, 4..5), (0, 0..5)] {
            let reach = || {
                let mut data = [0.0; 4 * 8];
                let rows = RowsMut::new(&mut data, 8);
                rows.for_each_part("rows", &pool, Partition::fixed(4, 2, 8, 4), |part, mut elements| {
                    if part.tokens.start == 0 && part.columns.start == 0 {
                        elements.slice(token, columns.clone()).fill(1.0);
                    }
                });
            };
            assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(reach)).is_err(), "{token} {columns:?}");
        }
    }

    /// Rows of a strip lie apart, and none of them reaches beyond the part.
    #[test]
    fn elements_apart_are_written_and_no_others() {
        let pool = ThreadPool::new(NonZeroUsize::MIN);
        let write = |token: usize, column: usize, apart: usize, add: bool| {
            let mut data = vec![1.0; 2 * 12];
            RowsMut::new(&mut data, 12).for_each_part(
                "rows",
                &pool,
                Partition::fixed(2, 2, 12, 8),
                |part, mut output| {
                    if part.columns.start == 0 {
                        output.write_apart(token, column, apart, &[2.0, 3.0, 4.0], add);
                    }
                },
            );
            data
        };
        let set = write(1, 1, 3, false);
        assert_eq!(set[12..20], [1.0, 2.0, 1.0, 1.0, 3.0, 1.0, 1.0, 4.0]);
        assert!(set[..12].iter().chain(&set[20..]).all(|&y| y == 1.0));
        assert_eq!(write(0, 5, 1, true)[..8], [1.0, 1.0, 1.0, 1.0, 1.0, 3.0, 4.0, 5.0]);
        for (token, column, apart) in [(2, 0, 1), (0, 8, 1), (0, 6, 1), (0, 0, 4), (0, 0, usize::MAX / 2 + 1)] {
            let beyond = std::panic::AssertUnwindSafe(|| write(token, column, apart, false));
            assert!(std::panic::catch_unwind(beyond).is_err(), "{token} {column} {apart}");
        }
    }

    #[test]
    fn ranges_are_of_nearly_the_same_size() {
        for len in 0..40 {
            let split = EvenSplit::of_at_most(len, 6);
            let sizes: Vec<usize> = (0..split.count()).map(|i| split.range(i).len()).collect();
            assert_eq!(sizes.iter().sum::<usize>(), len);
            assert!(
                sizes.iter().all(|&size| size <= 6 && (split.least()..=split.least() + 1).contains(&size)),
                "{sizes:?}"
            );
            assert_eq!(split.most(), sizes.iter().copied().max().unwrap_or(0));
            for i in 0..split.count() {
                assert!(split.range(i).all(|item| split.index_of(item) == i), "range {i} of {sizes:?}");
            }
        }
    }
}
