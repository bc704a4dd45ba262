//! The product of quantised activations with a quantised matrix.

use std::{mem::MaybeUninit, ops::Range};

use super::{
    BLOCK_ROWS, GROUP, QuantizedInput, QuantizedRef, SCALE_BYTES,
    dot::{Bytes, Dot, DotKernel, DotLevel, Form, Nibbles, Stored, UnpackedNibbles, dispatch},
    input::InputGroup,
};
use crate::{
    RowsMut, ThreadPool, Write,
    matrix::SharedRows,
    simd::{AHEAD, CACHE_LINE, STREAMS},
};

/// `y[t][r] = sum_c x[t][c] * w[r][c]`, or `+=`, of what was quantised: `output` has the input's tokens as rows, of
/// `weight.rows()`.
///
/// A result is the chain `y = y + sum * (weight scale * input scale)` over the groups in order, each step rounded once,
/// from zero or with [`Write::Add`] from its former value. Its bits depend on `x[t]`, `w[r]` and that value alone.
///
/// # Panics
/// If a shape does not fit its data, or the input was quantised for other weights.
pub fn quantized_matmul(pool: &ThreadPool, input: &QuantizedInput, weight: QuantizedRef, output: RowsMut, mode: Write) {
    quantized_matmul_on(DotLevel::best(), pool, input, weight, output, mode);
}

pub(super) fn quantized_matmul_on(
    level: DotLevel,
    pool: &ThreadPool,
    input: &QuantizedInput,
    weight: QuantizedRef,
    output: RowsMut,
    mode: Write,
) {
    let (tokens, rows) = (input.tokens, weight.rows);
    assert_eq!(
        (input.cols, input.quantization),
        (weight.cols, weight.quantization),
        "the input was quantised for {} columns of {} weights",
        input.cols,
        input.quantization
    );
    let output = output.share("output", tokens, rows);
    if tokens == 0 || rows == 0 || weight.cols == 0 {
        if mode == Write::Set {
            // SAFETY: nobody else has the output.
            (0..tokens).for_each(|t| unsafe { output.slice(t, 0, rows) }.fill(0.0));
        }
        return;
    }
    let cut = Cut::new(pool.threads(), tokens, &weight);
    pool.for_each(cut.pieces(), &|piece| {
        dispatch(level, Piece { input, weight, output, mode, part: cut.part(piece) });
    });
}

/// Up to so many tokens, a few blocks of rows go from end to end against all of them: reading weights takes longest, and it
/// is done in long runs. For more, some groups of many rows stay in the cache while the tokens pass.
const RUN_TOKENS: usize = 16;

/// Groups of two blocks of rows that stay in the second level cache while several tiles of tokens pass, beside those that
/// come next: twice 128 KiB of bytes.
const SPAN: usize = 64;

/// Where nibbles are unpacked for all tiles: as many as stay in the first level cache.
const UNPACKED_SPAN: usize = 8;

/// How the outputs are shared out.
struct Cut {
    blocks: usize,
    tokens: usize,
    part_blocks: usize,
    part_tokens: usize,
}

/// A rectangle of the outputs.
#[derive(Clone, Copy)]
struct Part {
    first_block: usize,
    blocks: usize,
    first_token: usize,
    tokens: usize,
}

impl Cut {
    /// Parts are small enough that threads end at nearly the same time, and large enough that taking one costs nothing
    /// next to it and that what it reads is used often.
    fn new(threads: usize, tokens: usize, weight: &QuantizedRef) -> Self {
        const PARTS_OF_A_THREAD: usize = 8;
        const LEAST_PRODUCTS: usize = 256 * 1024;
        const MOST_BLOCKS: usize = 16;
        const MOST_TOKENS: usize = 256;
        let blocks = weight.rows.div_ceil(BLOCK_ROWS);
        let part_tokens = tokens.div_ceil(tokens.div_ceil(MOST_TOKENS));
        let even = blocks * tokens.div_ceil(part_tokens) / (threads * PARTS_OF_A_THREAD);
        let least = LEAST_PRODUCTS / (weight.groups() * GROUP * BLOCK_ROWS * part_tokens);
        let part_blocks = even.max(least).clamp(STREAMS, MOST_BLOCKS).next_multiple_of(STREAMS);
        Self { blocks, tokens, part_blocks, part_tokens }
    }

    fn pieces(&self) -> usize {
        self.blocks.div_ceil(self.part_blocks) * self.tokens.div_ceil(self.part_tokens)
    }

    fn part(&self, piece: usize) -> Part {
        let block_parts = self.blocks.div_ceil(self.part_blocks);
        let first_block = piece % block_parts * self.part_blocks;
        let first_token = piece / block_parts * self.part_tokens;
        Part {
            first_block,
            blocks: self.part_blocks.min(self.blocks - first_block),
            first_token,
            tokens: self.part_tokens.min(self.tokens - first_token),
        }
    }
}

#[derive(Clone, Copy)]
struct Piece<'a> {
    input: &'a QuantizedInput,
    weight: QuantizedRef<'a>,
    output: SharedRows<'a>,
    mode: Write,
    part: Part,
}

/// A few blocks of rows of a part, and some of their groups.
#[derive(Clone, Copy)]
struct Strip {
    block: usize,
    blocks: usize,
    /// From one of its blocks to the next.
    apart: usize,
    group: usize,
    groups: usize,
}

impl DotKernel for Piece<'_> {
    type Output = ();

    #[inline(always)]
    fn run<D: Dot>(self, dot: D) {
        let Part { first_block, blocks, tokens, .. } = self.part;
        let groups = self.weight.groups();
        let mut unpacked = Unpacked([const { MaybeUninit::uninit() }; 2 * UNPACKED_SPAN * UnpackedNibbles::BYTES]);
        // A single tile goes through all groups at once.
        let span = if tokens <= D::TILE_TOKENS {
            groups
        } else if D::UNPACK_ONCE && self.weight.quantization.is_packed() {
            UNPACKED_SPAN
        } else {
            SPAN
        };
        // A single tile waits for memory, and takes a block of rows from each of several places.
        let far = tokens == 1 || (D::TILE_BLOCKS == 1 && tokens <= D::TILE_TOKENS);
        let strip_blocks = if far { STREAMS } else { D::TILE_BLOCKS };
        let full = blocks / strip_blocks;
        let (step, apart) = if far { (1, full) } else { (strip_blocks, 1) };
        let (spans, runs) = (groups.div_ceil(span), full + blocks % strip_blocks);
        let strip = |i: usize| {
            let (run, nth) = if tokens <= RUN_TOKENS { (i / spans, i % spans) } else { (i % runs, i / runs) };
            let (block, blocks, apart) = if run < full {
                (first_block + run * step, strip_blocks, apart)
            } else {
                (first_block + full * strip_blocks + run - full, 1, 1)
            };
            let group = nth * span;
            Strip { block, blocks, apart, group, groups: span.min(groups - group) }
        };
        for i in 0..spans * runs {
            let next = strip(if i + 1 < spans * runs { i + 1 } else { i });
            self.strip(dot, strip(i), next, &mut unpacked);
        }
    }
}

/// Room for the unpacked nibbles of a strip.
#[repr(align(64))]
struct Unpacked([MaybeUninit<u8>; 2 * UNPACKED_SPAN * UnpackedNibbles::BYTES]);

impl Piece<'_> {
    /// A strip of rows times all tokens of the part.
    #[inline(always)]
    fn strip<D: Dot>(&self, dot: D, strip: Strip, next: Strip, unpacked: &mut Unpacked) {
        let weight = &self.weight;
        let (quants, scales) = weight.split();
        let bytes = weight.quantization.group_bytes();
        let following = quants[((next.block * weight.groups()) + next.group) * bytes..].as_ptr();
        let mut pointers = Pointers {
            quants: [quants.as_ptr(); STREAMS],
            scales: [scales.as_ptr(); STREAMS],
            next: following,
            next_step: weight.groups() * bytes,
        };
        for i in 0..strip.blocks {
            let first = (strip.block + i * strip.apart) * weight.groups() + strip.group;
            pointers.quants[i] = quants[first * bytes..(first + strip.groups) * bytes].as_ptr();
            pointers.scales[i] = scales[first * SCALE_BYTES..(first + strip.groups) * SCALE_BYTES].as_ptr();
        }
        if !weight.quantization.is_packed() {
            return dot.call(Tiles::<Bytes> { piece: *self, strip, pointers, stored: Bytes });
        }
        if !D::UNPACK_ONCE || self.part.tokens <= D::TILE_TOKENS {
            return dot.call(Tiles::<Nibbles> { piece: *self, strip, pointers, stored: Nibbles });
        }
        for i in 0..strip.blocks {
            let room =
                &mut unpacked.0[i * UNPACKED_SPAN * UnpackedNibbles::BYTES..][..strip.groups * UnpackedNibbles::BYTES];
            for g in 0..strip.groups {
                // SAFETY: the strip's groups, of which the slices above have as many bytes.
                unsafe {
                    let source = pointers.quants[i].add(g * Nibbles::BYTES);
                    dot.unpack(source, room.as_mut_ptr().cast::<u8>().add(g * UnpackedNibbles::BYTES));
                }
            }
            pointers.quants[i] = room.as_ptr().cast();
        }
        dot.call(Tiles::<UnpackedNibbles> { piece: *self, strip, pointers, stored: UnpackedNibbles });
    }
}

/// The weights of a strip: for each of its blocks where its groups begin.
#[derive(Clone, Copy)]
struct Pointers {
    quants: [*const u8; STREAMS],
    scales: [*const u8; STREAMS],
    /// The first block of the next strip, and how far its second block is from it.
    next: *const u8,
    next_step: usize,
}

/// All tiles of a strip: its rows and up to [`Dot::TILE_TOKENS`] tokens each. Made by [`Piece::strip`] alone, which checks
/// that the pointers lead to the strip's groups.
#[derive(Clone, Copy)]
struct Tiles<'a, W> {
    piece: Piece<'a>,
    strip: Strip,
    pointers: Pointers,
    #[allow(dead_code)]
    stored: W,
}

impl<W: Stored> DotKernel for Tiles<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<D: Dot>(self, dot: D) {
        let Part { first_token, tokens, .. } = self.piece.part;
        // Tiles of nearly the same size: 8 tokens are 4 and 4, not 6 and 2.
        let tiles = tokens.div_ceil(D::TILE_TOKENS);
        // Where there are several, each asks for a part of the next strip, so that reading and computing overlap.
        let bytes = self.strip.groups * self.piece.weight.quantization.group_bytes();
        let lines = if tiles == 1 { 0 } else { bytes / CACHE_LINE };
        let share = |tile: usize| tile * lines / tiles..(tile + 1) * lines / tiles;
        for tile in 0..tiles {
            let (first, end) = (tile * tokens / tiles, (tile + 1) * tokens / tiles);
            let token = first_token + first;
            match (end - first, self.strip.blocks, D::TILE_TOKENS) {
                (1, 1, _) => self.tile::<D, 1, 1>(dot, token, share(tile)),
                (1, STREAMS, _) => self.tile::<D, STREAMS, 1>(dot, token, share(tile)),
                (2, STREAMS, 2..8) => self.tile::<D, STREAMS, 2>(dot, token, share(tile)),
                (3, STREAMS, 4..8) => self.tile::<D, STREAMS, 3>(dot, token, share(tile)),
                (4, STREAMS, 4..8) => self.tile::<D, STREAMS, 4>(dot, token, share(tile)),
                (2, 1, 2..) => self.tile::<D, 1, 2>(dot, token, share(tile)),
                (2, 2, 8) => self.tile::<D, 2, 2>(dot, token, share(tile)),
                (3, 1, 4..) => self.tile::<D, 1, 3>(dot, token, share(tile)),
                (3, 2, 8) => self.tile::<D, 2, 3>(dot, token, share(tile)),
                (4, 1, 4..) => self.tile::<D, 1, 4>(dot, token, share(tile)),
                (4, 2, 8) => self.tile::<D, 2, 4>(dot, token, share(tile)),
                (5, 1, 8) => self.tile::<D, 1, 5>(dot, token, share(tile)),
                (5, 2, 8) => self.tile::<D, 2, 5>(dot, token, share(tile)),
                (6, 1, 8) => self.tile::<D, 1, 6>(dot, token, share(tile)),
                (6, 2, 8) => self.tile::<D, 2, 6>(dot, token, share(tile)),
                (7, 1, 8) => self.tile::<D, 1, 7>(dot, token, share(tile)),
                (7, 2, 8) => self.tile::<D, 2, 7>(dot, token, share(tile)),
                (8, 1, 8) => self.tile::<D, 1, 8>(dot, token, share(tile)),
                (8, 2, 8) => self.tile::<D, 2, 8>(dot, token, share(tile)),
                _ => unreachable!(),
            }
        }
    }
}

impl<W: Stored> Tiles<'_, W> {
    /// `R` blocks of rows and `T` tokens from `token` on.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // Iterators take closures.
    fn tile<D: Dot, const R: usize, const T: usize>(&self, dot: D, token: usize, mut lines: Range<usize>) {
        let Self { piece: Piece { input, weight, output, mode, .. }, strip, .. } = self;
        let row = weight.groups();
        let mut x: [*const InputGroup; T] = [input.groups.as_ptr(); T];
        for t in 0..T {
            let first = (token + t) * row + strip.group;
            x[t] = input.groups[first..first + strip.groups].as_ptr();
        }
        let (mut quants, mut scales) = ([self.pointers.quants[0]; R], [self.pointers.scales[0]; R]);
        quants.copy_from_slice(&self.pointers.quants[..R]);
        scales.copy_from_slice(&self.pointers.scales[..R]);
        let continues = strip.group > 0 || *mode == Write::Add;
        let mut sums = [[dot.splat(0.0); T]; R];
        if continues {
            for r in 0..R {
                for t in 0..T {
                    sums[r][t] = load_output(dot, output, weight.rows, token + t, strip.block + r * strip.apart);
                }
            }
        }
        let lines_of_group = lines.len().div_ceil(strip.groups);
        let least = if W::FORM == Form::Nibbles { D::PREFETCH_NIBBLES_FROM } else { D::PREFETCH_BYTES_FROM };
        let ahead = lines.is_empty() && T >= least;
        for _ in 0..strip.groups {
            if ahead {
                for line in 0..W::BYTES / CACHE_LINE {
                    for r in 0..R {
                        dot.prefetch(quants[r].wrapping_add(AHEAD + line * CACHE_LINE));
                    }
                }
            }
            for line in lines.by_ref().take(lines_of_group) {
                for r in 0..R {
                    dot.prefetch(self.pointers.next.wrapping_add(r * self.pointers.next_step + line * CACHE_LINE));
                }
            }
            // SAFETY: the pointers lead to the strip's groups, and each step takes one.
            unsafe {
                let ints = dot.group::<W, R, T>(quants, x);
                for r in 0..R {
                    let weight_scales = dot.scales(scales[r]);
                    for t in 0..T {
                        let both = dot.mul(weight_scales, dot.splat((*x[t]).scale));
                        sums[r][t] = dot.add_scaled(ints[r][t], both, sums[r][t]);
                    }
                    quants[r] = quants[r].add(W::BYTES);
                    scales[r] = scales[r].add(SCALE_BYTES);
                }
                for t in 0..T {
                    x[t] = x[t].add(1);
                }
            }
        }
        for r in 0..R {
            for t in 0..T {
                store_output(dot, output, weight.rows, token + t, strip.block + r * strip.apart, sums[r][t]);
            }
        }
    }
}

/// The outputs of a token for a block of rows, which the last block may not have all.
#[inline(always)]
fn load_output<D: Dot>(dot: D, output: &SharedRows, rows: usize, token: usize, block: usize) -> D::Floats {
    let first = block * BLOCK_ROWS;
    let mut lanes = [0.0; BLOCK_ROWS];
    let count = BLOCK_ROWS.min(rows - first);
    // SAFETY: no other piece has this token and these rows, and the slice is gone when the next one is made. A load
    // takes as many numbers as there are lanes.
    unsafe {
        let outputs = output.slice(token, first, count);
        if count == BLOCK_ROWS {
            return dot.load(outputs.as_ptr());
        }
        lanes[..count].copy_from_slice(outputs);
        dot.load(lanes.as_ptr())
    }
}

#[inline(always)]
fn store_output<D: Dot>(dot: D, output: &SharedRows, rows: usize, token: usize, block: usize, sums: D::Floats) {
    let first = block * BLOCK_ROWS;
    let count = BLOCK_ROWS.min(rows - first);
    // SAFETY: as above.
    unsafe {
        let outputs = output.slice(token, first, count);
        if count == BLOCK_ROWS {
            return dot.store(outputs.as_mut_ptr(), sums);
        }
        let mut lanes = [0.0; BLOCK_ROWS];
        dot.store(lanes.as_mut_ptr(), sums);
        outputs.copy_from_slice(&lanes[..count]);
    }
}
