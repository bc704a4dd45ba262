use std::{fs, num::NonZeroUsize, path::Path};

use super::*;
use crate::{
    Compute, DType, InputForm, MatrixRef, Rows, TiledInput, Write, block_matmul, matmul, matmul::tests::numbers,
};

/// Blocks of any bits, and the numbers that the Python package `gguf` dequantises them to (`tests/gguf/make.py`).
pub(crate) fn fixture(format: BlockFormat) -> (Vec<u8>, Vec<f32>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/gguf/fixtures/blocks");
    let blocks = fs::read(folder.join(format!("{format}.blocks"))).unwrap();
    let numbers = fs::read(folder.join(format!("{format}.f32"))).unwrap();
    (blocks, numbers.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|number| number.to_bits()).collect()
}

#[test]
fn blocks_stand_for_the_numbers_of_the_reference() {
    for format in BlockFormat::all() {
        let (blocks, expected) = fixture(format);
        for &level in Level::available() {
            let mut weights = vec![f32::NAN; expected.len()];
            dispatch(level, Dequantize { format, blocks: &blocks, weights: &mut weights });
            assert_eq!(bits(&weights), bits(&expected), "{format} on {level:?}");
        }
    }
}

#[test]
fn formats_have_the_sizes_that_the_table_says() {
    for (i, layout) in LAYOUTS.iter().enumerate() {
        assert_eq!(layout.format as usize, i, "{}", layout.name);
        let (blocks, numbers) = fixture(layout.format);
        assert_eq!(layout.format.bytes(numbers.len()), Some(blocks.len()), "{}", layout.name);
        assert_eq!(layout.format.bytes(layout.weights + 1), None);
    }
}

#[test]
fn a_matrix_has_whole_blocks_in_each_row() {
    let bytes = [0; 2 * 18];
    assert!(BlocksRef::new(BlockFormat::Q4_0, 2, 32, &bytes).is_ok());
    assert!(BlocksRef::new(BlockFormat::Q4_0, 1, 64, &bytes).is_ok());
    let error = BlocksRef::new(BlockFormat::Q4_0, 4, 16, &bytes).unwrap_err();
    assert_eq!(error.to_string(), "a matrix of 4 x 16 in Q4_0 does not have 36 bytes");
    assert!(BlocksRef::new(BlockFormat::Q4_0, usize::MAX, 32, &bytes).is_err());
}

/// A matrix of the fixture's blocks and of others that differ from them in their quants.
pub(crate) fn matrix(format: BlockFormat, rows: usize, cols: usize) -> Vec<u8> {
    let (blocks, _) = fixture(format);
    let size = format.block_bytes();
    // The first blocks have all bits set and none: the others have scales as weights do.
    let sane: Vec<&[u8]> = blocks.chunks_exact(size).skip(3).collect();
    let count = rows * cols / format.block_weights();
    let mut bytes = Vec::new();
    for i in 0..count {
        let mut block = sane[i % sane.len()].to_vec();
        // These bytes are quants in every format.
        block[size / 2] ^= i as u8;
        bytes.extend(block);
    }
    bytes
}

#[test]
fn products_have_the_bits_of_products_with_the_numbers_in_f32() {
    let mut next = numbers(11);
    for format in BlockFormat::all() {
        for (rows, cols) in [(1, 1), (9, 1), (70, 3), (33, 9)] {
            let cols = cols * 256;
            let bytes = matrix(format, rows, cols);
            let blocks = BlocksRef::new(format, rows, cols, &bytes).unwrap();
            for (tokens, threads) in [(1, 1), (1, 2), (2, 1), (7, 2), (16, 1), (17, 2), (61, 1)] {
                let pool = ThreadPool::new(NonZeroUsize::new(threads).unwrap());
                let mut weights = vec![0.0; rows * cols];
                dequantize(&pool, blocks, &mut weights);
                let plain: Vec<u8> = weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
                let plain = MatrixRef::new(DType::F32, rows, cols, &plain).unwrap();
                let input: Vec<f32> = (0..tokens * cols).map(|_| next()).collect();
                let mut tiled = TiledInput::new();
                let form = InputForm::of(Compute::Bf16, DType::F32);
                tiled.tile(&pool, form, tokens, cols, Rows::new(&input, cols));
                let (mut ours, mut expected) = (vec![0.25; tokens * rows], vec![0.25; tokens * rows]);
                for mode in [Write::Add, Write::Set] {
                    block_matmul(&pool, &tiled, blocks, RowsMut::new(&mut ours, rows), mode);
                    matmul(&pool, &tiled, plain, RowsMut::new(&mut expected, rows), mode);
                    assert!(bits(&ours) == bits(&expected), "{format}, {rows} x {cols}, {tokens} tokens, {mode:?}");
                }
                // Nor does a token's result depend on those beside it.
                tiled.tile(&pool, form, 1, cols, Rows { data: &input, stride: cols, offset: (tokens - 1) * cols });
                let mut alone = vec![0.0; rows];
                block_matmul(&pool, &tiled, blocks, RowsMut::new(&mut alone, rows), Write::Set);
                assert!(bits(&alone) == bits(&ours[(tokens - 1) * rows..]), "{format}, {tokens} tokens");
            }
        }
    }
}

#[test]
fn rows_are_gathered_by_their_ids() {
    let (rows, cols) = (5, 256);
    let bytes = matrix(BlockFormat::Q6_K, rows, cols);
    let table = BlocksRef::new(BlockFormat::Q6_K, rows, cols, &bytes).unwrap();
    let mut all = vec![0.0; rows * cols];
    dequantize(&ThreadPool::new(NonZeroUsize::MIN), table, &mut all);
    let mut out = vec![0.0; 3 * (cols + 1)];
    gather_block_rows(&[4, 0, 4], table, RowsMut { data: &mut out, stride: cols + 1, offset: 1 });
    for (i, id) in [4, 0, 4].into_iter().enumerate() {
        assert_eq!(out[i * (cols + 1) + 1..][..cols], all[id * cols..][..cols]);
    }
}

#[test]
fn nothing_is_multiplied_by_nothing() {
    let pool = ThreadPool::new(NonZeroUsize::MIN);
    let none = BlocksRef::new(BlockFormat::Q8_0, 2, 0, &[]).unwrap();
    let mut tiled = TiledInput::new();
    tiled.tile(&pool, InputForm::of(Compute::Exact, DType::F32), 1, 0, Rows::new(&[], 0));
    let mut out = [1.0; 2];
    block_matmul(&pool, &tiled, none, RowsMut::new(&mut out, 2), Write::Set);
    assert_eq!(out, [0.0; 2]);
    dequantize(&pool, none, &mut []);
}
