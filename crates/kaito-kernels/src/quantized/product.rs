//! The product of quantised activations with a quantised matrix.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::dot::dispatch_amx;
#[cfg(test)]
use super::dot::dispatch_portable;
#[cfg(any(target_arch = "x86_64", test))]
use super::tiled::TiledProduct;
use super::{
    BLOCK_ROWS, GROUP, Quantization, QuantizedFormat, QuantizedInput, QuantizedRef,
    dot::{Dot, DotKernel, DotLevel, dispatch},
    group::{Bytes, Factored, GroupProduct, HALF, InBits, Nibbles, Scaled, WHOLE},
    input::{INPUT_TILE, SUBGROUP},
    repacked::{Repacking, SideLayout},
    strip::{SINGLE_STREAM_DISTANCE, Strip, StripWeights, UNPACKED_GROUPS, Unpacked},
};
#[cfg(test)]
use crate::amx::Emulated;
#[cfg(target_arch = "x86_64")]
use crate::amx::Hardware;
use crate::{
    RowsMut, ThreadPool, Write,
    partition::{EvenSplit, Part, PartMut, PartSizes, Partition},
    simd::{CACHE_LINE, PREFETCH_DISTANCE, STREAMS},
};

/// `y[t][r] = sum_c x[t][c] * w[r][c]`, or `+=`, of what was quantised: `output` has the input's tokens as rows, of
/// `weight.rows()`.
///
/// A result is the chain `y = y + sum * (weight scale * input scale)` over the groups in order, each step rounded once,
/// from zero or with [`Write::Add`] from its former value. With repacked blocks that have a scale for 32 weights it is one over subgroups, and
/// where these have a minimum, each step is followed by `y = y + minimum * input sum`. With those whose parts have factors, a step is
/// `y = y + of group * input scale`; there `of group` is the exact sum of all `sum * factor`, rounded, then
/// `of group * scale`, then, where there are minima, `of group + sum of (input sum * minimum factor) * scale of minima`, again rounded once
/// each. Its bits depend on `x[t]`, `w[r]` and that value alone.
///
/// # Panics
/// If the output does not fit in its data, or the input has another number of columns or other groups than the weights.
pub fn quantized_matmul(pool: &ThreadPool, input: &QuantizedInput, weight: QuantizedRef, output: RowsMut, mode: Write) {
    quantized_matmul_on(DotLevel::chosen(), pool, input, weight, output, mode);
}

pub(super) fn quantized_matmul_on(
    level: DotLevel,
    pool: &ThreadPool,
    input: &QuantizedInput,
    weight: QuantizedRef,
    mut output: RowsMut,
    mode: Write,
) {
    let (tokens, rows) = (input.tokens, weight.rows);
    assert_eq!(input.cols, weight.cols, "columns of the input and of the weights");
    assert_eq!(input.grouping(), weight.format.grouping(), "the input's groups, for weights in {}", weight.format);
    output.check("output", tokens, rows);
    if tokens == 0 || rows == 0 || weight.cols == 0 {
        if mode == Write::Set {
            output.set_to_zero(tokens, rows);
        }
        return;
    }
    let partition = Partition::of_product(pool.threads(), tokens, rows, weight.groups() * GROUP, &PART_SIZES);
    output.for_each_part("output", pool, partition, |part, output| {
        let product = PartProduct { input, weight, output, mode, part };
        #[cfg(any(target_arch = "x86_64", test))]
        let is_tiled = tokens >= TILED_TOKENS;
        match level {
            #[cfg(target_arch = "x86_64")]
            DotLevel::Amx if is_tiled => {
                // A level that is available has the unit.
                if let Some(unit) = Hardware::new() {
                    dispatch_amx(TiledProduct { unit, product });
                }
            }
            #[cfg(test)]
            DotLevel::EmulatedTiles if is_tiled => {
                dispatch_portable(TiledProduct { unit: Emulated, product });
            }
            _ => dispatch(level, product),
        }
    });
}

/// From so many tokens on products are done by tile registers, where there are any.
const TILED_TOKENS: usize = 3;

const PART_SIZES: PartSizes = PartSizes {
    tile_tokens: INPUT_TILE,
    most_tiles: 16,
    block_rows: BLOCK_ROWS,
    least_blocks: STREAMS,
    most_blocks: 16,
    least_products: 256 * 1024,
};

/// Up to so many tokens, a few blocks of rows go from end to end against all of them: reading weights takes longest, and it
/// is done in long sequential reads. For more, some groups of many rows stay in the cache while the tokens pass.
const SEQUENTIAL_TOKENS: usize = 16;

/// Up to so many tokens each tile unpacks weights of 4 bits by tables in registers; for more they are unpacked into the first level cache,
/// once for all tiles.
const NIBBLES_TOKENS: usize = 16;

/// Groups of a strip, for several tiles of tokens: those of two blocks of rows, 128 KiB of bytes, stay in the second level cache
/// beside those of the next strip.
const STRIP_GROUPS: usize = 32;

/// The product of some tokens with some weight rows, which are `part`'s columns of the output.
pub(super) struct PartProduct<'a> {
    pub(super) input: &'a QuantizedInput,
    pub(super) weight: QuantizedRef<'a>,
    pub(super) output: PartMut<'a>,
    pub(super) mode: Write,
    pub(super) part: Part,
}

impl DotKernel for PartProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn run<D: Dot>(self, dot: D) {
        let format = match self.weight.format {
            QuantizedFormat::Quantized(Quantization::Int4)
                if const { D::UNPACKS_IN_REGISTERS } && self.part.tokens.len() <= NIBBLES_TOKENS =>
            {
                return self.strips(dot, Nibbles);
            }
            QuantizedFormat::Quantized(_) => return self.strips(dot, Bytes),
            QuantizedFormat::Repacked(format) => format,
        };
        let repacking = Repacking::of(format);
        let minima = repacking.sides().has_minima();
        let bits = if const { D::UNPACKS_IN_REGISTERS } { repacking.bits() } else { 8 };
        match (repacking.sides(), bits) {
            (SideLayout::Halves { .. }, 8) => self.strips(dot, InBits::<_, WHOLE, 8>(Scaled::<WHOLE> { minima })),
            // Each instruction set compiles what it needs: no format with factors has weights of 8 bits, unless they are unpacked to bytes.
            (SideLayout::Factors { columns, .. }, _) if const { !D::UNPACKS_IN_REGISTERS } => match columns {
                SUBGROUP => self.strips(dot, InBits::<_, WHOLE, 8>(Factored::<WHOLE> { minima })),
                _ => self.strips(dot, InBits::<_, HALF, 8>(Factored::<HALF> { minima })),
            },
            _ if const { !D::UNPACKS_IN_REGISTERS } => unreachable!(),
            (SideLayout::Halves { .. }, 4) => self.strips(dot, InBits::<_, WHOLE, 4>(Scaled::<WHOLE> { minima })),
            (SideLayout::Halves { .. }, _) => self.strips(dot, InBits::<_, WHOLE, 6>(Scaled::<WHOLE> { minima })),
            (SideLayout::Factors { columns: SUBGROUP, .. }, 4) => {
                self.strips(dot, InBits::<_, WHOLE, 4>(Factored::<WHOLE> { minima }))
            }
            (SideLayout::Factors { columns: SUBGROUP, .. }, _) => {
                self.strips(dot, InBits::<_, WHOLE, 6>(Factored::<WHOLE> { minima }))
            }
            (SideLayout::Factors { .. }, 4) => self.strips(dot, InBits::<_, HALF, 4>(Factored::<HALF> { minima })),
            (SideLayout::Factors { .. }, _) => self.strips(dot, InBits::<_, HALF, 6>(Factored::<HALF> { minima })),
        }
    }
}

impl PartProduct<'_> {
    #[inline(always)]
    fn strips<D: Dot, G: GroupProduct>(self, dot: D, group: G) {
        dot.call(Strips { product: self, group });
    }
}

/// The strips of a part, whose groups are multiplied as `G` says.
struct Strips<'a, G> {
    product: PartProduct<'a>,
    group: G,
}

impl<G: GroupProduct> DotKernel for Strips<'_, G> {
    type Output = ();

    #[inline(always)]
    fn run<D: Dot>(mut self, dot: D) {
        let PartProduct { weight, part, .. } = &self.product;
        let first_block = part.columns.start / BLOCK_ROWS;
        let (blocks, tokens) = (part.columns.len().div_ceil(BLOCK_ROWS), part.tokens.len());
        let groups = weight.groups();
        let mut unpacked = Unpacked::new();
        // A single tile goes through all groups at once.
        let most_groups = if weight.format.is_packed() && !G::UNPACKS_IN_REGISTERS {
            UNPACKED_GROUPS
        } else if tokens <= D::TILE_TOKENS {
            groups
        } else {
            STRIP_GROUPS
        };
        // A single tile is bound by memory bandwidth, and takes a block of rows from each of several places (see `STREAMS`).
        let far = tokens <= D::TILE_TOKENS && (tokens <= 2 || D::TILE_BLOCKS == 1);
        let strip_blocks = if far { STREAMS } else { D::TILE_BLOCKS.min(G::MOST_BLOCKS) };
        let full = blocks / strip_blocks;
        let (step, apart) = if far { (1, full) } else { (strip_blocks, 1) };
        // Strips lie in a grid over the weights of the part.
        let (down, across) = (full + blocks % strip_blocks, groups.div_ceil(most_groups));
        let strip = |i: usize| {
            let (row, column) =
                if tokens <= SEQUENTIAL_TOKENS { (i / across, i % across) } else { (i % down, i / down) };
            let (block, blocks, apart) = if row < full {
                (first_block + row * step, strip_blocks, apart)
            } else {
                (first_block + full * strip_blocks + row - full, 1, 1)
            };
            let group = column * most_groups;
            Strip { block, blocks, apart, group, groups: most_groups.min(groups - group) }
        };
        for i in 0..across * down {
            let next = strip(if i + 1 < across * down { i + 1 } else { i });
            self.product.strip(dot, self.group, strip(i), next, &mut unpacked);
        }
    }
}

impl PartProduct<'_> {
    /// A strip of rows times all tokens of the part.
    #[inline(always)]
    fn strip<D: Dot, G: GroupProduct>(&mut self, dot: D, group: G, strip: Strip, next: Strip, unpacked: &mut Unpacked) {
        let next = self.weight.quants(next.block, next.group, 1).as_ptr();
        let weights = if G::UNPACKS_IN_REGISTERS {
            StripWeights::as_they_lie(self.weight, strip)
        } else {
            StripWeights::new(dot, self.weight, strip, unpacked, self.part.tokens.len() <= D::TILE_TOKENS)
        };
        dot.call(Tiles { product: self, group, strip, weights, next });
    }
}

/// All tiles of a strip: its rows and up to [`Dot::TILE_TOKENS`] tokens each.
struct Tiles<'a, 'p, G> {
    product: &'a mut PartProduct<'p>,
    group: G,
    strip: Strip,
    weights: StripWeights<'a>,
    /// Where the next strip begins.
    next: *const u8,
}

impl<G: GroupProduct> DotKernel for Tiles<'_, '_, G> {
    type Output = ();

    #[inline(always)]
    fn run<D: Dot>(mut self, dot: D) {
        let all = self.product.part.tokens.clone();
        // Where there are several, each prefetches some of the next strip, so that reading and computing overlap.
        let bytes = self.strip.groups * self.product.weight.format.group_bytes();
        let lines = if all.len() <= D::TILE_TOKENS { 0 } else { bytes / CACHE_LINE };
        // Tokens of one tile here lie together in the input.
        for input_tile in self.product.part.tiles.clone() {
            let of_input = self.product.input.tiles().range(input_tile);
            let tiles = EvenSplit::of_at_most(of_input.len(), D::TILE_TOKENS);
            for tile in 0..tiles.count() {
                let range = tiles.range(tile);
                let tokens = of_input.start + range.start..of_input.start + range.end;
                let (from, to) = (tokens.start - all.start, tokens.end - all.start);
                let lines = from * lines / all.len()..to * lines / all.len();
                // What no tile of this instruction set has need not be compiled.
                match self.strip.blocks {
                    1 => self.tile_of::<D, 1>(dot, tokens, lines),
                    2 if const { G::MOST_BLOCKS >= 2 && D::TILE_BLOCKS == 2 } => {
                        self.tile_of::<D, 2>(dot, tokens, lines)
                    }
                    STREAMS if const { D::TILE_BLOCKS == 2 } => match tokens.len() {
                        1 => self.tile::<D, STREAMS, 1>(dot, tokens.start, lines),
                        _ => self.tile::<D, STREAMS, 2>(dot, tokens.start, lines),
                    },
                    STREAMS => self.tile_of::<D, STREAMS>(dot, tokens, lines),
                    _ => unreachable!(),
                }
            }
        }
    }
}

impl<G: GroupProduct> Tiles<'_, '_, G> {
    /// A tile of `R` blocks of rows.
    #[inline(always)]
    fn tile_of<D: Dot, const R: usize>(&mut self, dot: D, tokens: Range<usize>, lines: Range<usize>) {
        match tokens.len() {
            1 => self.tile::<D, R, 1>(dot, tokens.start, lines),
            2 if const { D::TILE_TOKENS >= 2 } => self.tile::<D, R, 2>(dot, tokens.start, lines),
            3 if const { D::TILE_TOKENS >= 3 } => self.tile::<D, R, 3>(dot, tokens.start, lines),
            4 if const { D::TILE_TOKENS >= 4 } => self.tile::<D, R, 4>(dot, tokens.start, lines),
            5 if const { D::TILE_TOKENS >= 5 } => self.tile::<D, R, 5>(dot, tokens.start, lines),
            6 if const { D::TILE_TOKENS >= 6 } => self.tile::<D, R, 6>(dot, tokens.start, lines),
            7 if const { D::TILE_TOKENS >= 7 } => self.tile::<D, R, 7>(dot, tokens.start, lines),
            8 if const { D::TILE_TOKENS >= 8 } => self.tile::<D, R, 8>(dot, tokens.start, lines),
            _ => unreachable!(),
        }
    }

    /// `R` blocks of rows and `T` tokens from `token` on. `lines` are the cache lines of the next strip's blocks to prefetch.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // Iterators take closures.
    fn tile<D: Dot, const R: usize, const T: usize>(&mut self, dot: D, token: usize, mut lines: Range<usize>) {
        let Self { product: PartProduct { input, weight, output, mode, part }, group, strip, weights, next } = self;
        let groups = weights.groups();
        let row = weight.groups();
        let mut x = input.at(token, T, strip.group, groups);
        let (mut quants, mut sides) = weights.starts::<R>();
        let (group_bytes, side_bytes) = (weights.group_bytes(), weights.side_bytes());
        // The last block may not have all of its rows.
        let rows_end = part.columns.end;
        let continues = strip.group > 0 || *mode == Write::Add;
        // The outputs are indexed by variables, which would keep the sums of the loop below in memory: hence copies.
        let mut outputs = [[dot.splat(0.0); T]; R];
        if continues {
            for r in 0..R {
                let first = (strip.block + r * strip.apart) * BLOCK_ROWS;
                for t in 0..T {
                    let source = output.slice(token + t, first..rows_end.min(first + BLOCK_ROWS));
                    outputs[r][t] = load_outputs(dot, source);
                }
            }
        }
        let mut sums = [[dot.splat(0.0); T]; R];
        for r in 0..R {
            for t in 0..T {
                sums[r][t] = outputs[r][t];
            }
        }
        let lines_of_group = lines.len().div_ceil(groups);
        let ahead = lines.is_empty()
            && if G::UNPACKS_IN_REGISTERS {
                T >= G::PREFETCH_FROM
            } else {
                !weight.format.is_packed() && matches!(D::PREFETCH_FROM, Some(least) if T >= least)
            };
        let distance = if R == 1 { SINGLE_STREAM_DISTANCE } else { PREFETCH_DISTANCE };
        let next = *next;
        let next_step = row * weight.format.group_bytes();
        for _ in 0..groups {
            if ahead {
                for line in 0..group_bytes / CACHE_LINE {
                    for r in 0..R {
                        dot.prefetch(quants[r].wrapping_add(distance + line * CACHE_LINE));
                    }
                }
            }
            for line in lines.by_ref().take(lines_of_group) {
                for r in 0..R {
                    dot.prefetch(next.wrapping_add(r * next_step + line * CACHE_LINE));
                }
            }
            // SAFETY: there are `groups` groups of each block of the weights and of each token, and each step takes one.
            unsafe {
                sums = group.add::<D, R, T>(dot, quants, sides, x, sums);
                for r in 0..R {
                    quants[r] = quants[r].add(group_bytes);
                    sides[r] = sides[r].add(side_bytes);
                }
                x = x.next(G::GROUPING);
            }
        }
        for r in 0..R {
            for t in 0..T {
                outputs[r][t] = sums[r][t];
            }
        }
        for r in 0..R {
            let first = (strip.block + r * strip.apart) * BLOCK_ROWS;
            for t in 0..T {
                let target = output.slice(token + t, first..rows_end.min(first + BLOCK_ROWS));
                store_outputs(dot, target, outputs[r][t]);
            }
        }
    }
}

/// The outputs of a token for the rows of a block, or for those that the matrix has.
#[inline(always)]
pub(super) fn load_outputs<D: Dot>(dot: D, outputs: &[f32]) -> D::Floats {
    if let Some(all) = outputs.first_chunk() {
        return dot.load(all);
    }
    let mut lanes = [0.0; BLOCK_ROWS];
    lanes[..outputs.len()].copy_from_slice(outputs);
    dot.load(&lanes)
}

#[inline(always)]
pub(super) fn store_outputs<D: Dot>(dot: D, outputs: &mut [f32], sums: D::Floats) {
    if let Some(all) = outputs.first_chunk_mut() {
        return dot.store(all, sums);
    }
    let mut lanes = [0.0; BLOCK_ROWS];
    dot.store(&mut lanes, sums);
    outputs.copy_from_slice(&lanes[..outputs.len()]);
}
