//! Products of rounded activations of few tokens with weights in bf16 where they lie: memory bandwidth binds.

use std::marker::PhantomData;

use super::{Block, FEW_TILES, SLICE_COLUMNS, Sums, TILE_TOKENS, TilePart, strip::Strip};
use crate::{
    DType,
    amx::{TILE_ROWS, TileShapes, TileUnit},
    matmul::element::Bf16,
    partition::Part,
    simd::{Kernel, Simd, TileRow},
};

/// A part of a product whose weights are read from end to end, one tile of rows after the other. Its 16 rows are as many streams; with
/// the 64 of four tiles the processor prefetches less well, above all where rows do not begin at cache lines.
pub(super) struct FewTokens<'a, U>(TilePart<'a, U>);

impl<'a, U> FewTokens<'a, U> {
    /// `Err` for other products: many tokens, another element type, tiles that are not whole.
    pub(super) fn of(part: TilePart<'a, U>) -> Result<Self, TilePart<'a, U>> {
        let TilePart { input, weight, part: Part { columns: rows, .. }, .. } = &part;
        let few = input.token_tiles() <= FEW_TILES && !input.is_split() && weight.dtype() == DType::Bf16;
        let whole = weight.cols().is_multiple_of(SLICE_COLUMNS) && rows.len().is_multiple_of(TILE_ROWS);
        if few && whole { Ok(Self(part)) } else { Err(part) }
    }
}

impl<U: TileUnit> Kernel for FewTokens<'_, U> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self(mut part) = self;
        let mut tiles = part.unit.configure(&TileShapes::full());
        let (rows, tokens) = (part.part.columns.clone(), part.part.tiles.clone());
        let (row_tiles, slices) = (rows.len() / TILE_ROWS, part.weight.cols() / SLICE_COLUMNS);
        let mut sums: [Sums; FEW_TILES] = [[TileRow([0; TILE_TOKENS]); TILE_ROWS]; FEW_TILES];
        for tile in 0..row_tiles {
            let strip = Strip::new(rows.clone(), tile, row_tiles);
            let weights = strip.in_place(&part.weight, 0, slices);
            let mut block = Block::<_, Bf16, false> {
                tiles: &mut tiles,
                input: part.input,
                first_slice: 0,
                strip: &strip,
                weights,
                element: PhantomData,
            };
            match tokens.len() {
                1 => block.one_row::<1>(tokens.start, &mut sums),
                _ => block.one_row::<2>(tokens.start, &mut sums),
            }
            for (t, sums) in sums.iter().enumerate().take(tokens.len()) {
                part.write_sums(simd, strip.rows(tile), t, sums);
            }
        }
    }
}
