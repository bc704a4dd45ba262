use super::*;
use crate::matmul::tests::numbers;

/// Shapes of a product: registers 0 and 1 are of `C`'s shape, 2 and 3 of `A`'s, 4 and 5 of `B`'s.
fn shapes(m: usize, n: usize, k: usize) -> TileShapes {
    let (c, a, b) = ((m, 4 * n), (m, 4 * k), (k, 4 * n));
    TileShapes::new([c, c, a, a, b, b, c, c])
}

const SIZES: [(usize, usize, usize); 6] = [(16, 16, 16), (1, 16, 16), (16, 1, 16), (16, 16, 1), (3, 5, 7), (15, 2, 9)];

/// Rows of 100 bytes, of which a tile has up to 64, beginning at an odd address.
const STRIDE: usize = 100;
const OFFSET: usize = 3;
const MEMORY: usize = OFFSET + TILE_ROWS * STRIDE;

#[derive(Clone, Copy)]
enum Product {
    Bf16,
    SignedUnsigned,
    Signed,
}

/// `C = C + A * B`, twice, of operands that lie in memory.
fn multiply(unit: impl TileUnit, size: (usize, usize, usize), product: Product, memory: [&[u8]; 3]) -> Vec<u8> {
    let mut tiles = unit.configure(&shapes(size.0, size.1, size.2));
    let [c, a, b] = memory.map(|memory| memory[OFFSET..].as_ptr());
    let mut result = vec![0xa5; MEMORY];
    // SAFETY: each memory is large enough for any tile; shapes of a product fit each other.
    unsafe {
        tiles.load::<1>(c, STRIDE);
        tiles.load::<3>(a, STRIDE);
        tiles.load::<4>(b, STRIDE);
        for _ in 0..2 {
            match product {
                Product::Bf16 => tiles.add_bf16::<1, 3, 4>(),
                Product::SignedUnsigned => tiles.add_i8_u8::<1, 3, 4>(),
                Product::Signed => tiles.add_i8_i8::<1, 3, 4>(),
            }
        }
        tiles.store::<1>(result[OFFSET..].as_mut_ptr(), STRIDE);
    }
    result
}

/// Any bytes, an equal part of all of which are bf16 that are denormal, or near one, or large.
fn bytes(seed: u64) -> Vec<u8> {
    let mut next = numbers(seed);
    let mut memory = vec![0; MEMORY];
    for (i, pair) in memory[OFFSET..].chunks_mut(2).enumerate() {
        let scale = [1.0, 2f32.powi(-62), 2f32.powi(-64), 2f32.powi(-127), 2f32.powi(40)][(i / 7) % 5];
        let element = next() * scale;
        pair.copy_from_slice(&element.to_bits().to_be_bytes()[..pair.len()]);
        pair.reverse();
    }
    memory
}

/// The sum of products of integers, by the definition of a matrix product.
#[test]
fn emulated_integer_products_are_sums_of_products() {
    let [c, a, b] = [1, 2, 3].map(bytes);
    for (m, n, k) in SIZES {
        for product in [Product::SignedUnsigned, Product::Signed] {
            let result = multiply(Emulated, (m, n, k), product, [&c, &a, &b]);
            for row in 0..m {
                for column in 0..n {
                    let at = |memory: &[u8], row: usize, byte: usize| memory[OFFSET + row * STRIDE + byte];
                    let element = |memory: &[u8]| {
                        let bytes = std::array::from_fn(|i| at(memory, row, 4 * column + i));
                        i64::from(i32::from_le_bytes(bytes))
                    };
                    let sum: i64 = (0..4 * k)
                        .map(|i| {
                            let (left, right) = (at(&a, row, i) as i8, at(&b, i / 4, 4 * column + i % 4));
                            let right = match product {
                                Product::Signed => i64::from(right as i8),
                                _ => i64::from(right),
                            };
                            i64::from(left) * right
                        })
                        .sum();
                    assert_eq!(element(&result), i64::from((element(&c) + 2 * sum) as i32), "{m} {n} {k}");
                }
            }
        }
    }
}

/// Small integers, whose sums no rounding touches.
#[test]
fn emulated_bf16_products_are_sums_of_products() {
    let value = |row: usize, column: usize| ((row * 31 + column * 17) % 23) as f32 - 11.0;
    let mut memory = [vec![0; MEMORY], vec![0; MEMORY], vec![0; MEMORY]];
    for row in 0..TILE_ROWS {
        for column in 0..TILE_ROW_BYTES / 2 {
            for (operand, memory) in memory.iter_mut().enumerate().skip(1) {
                let high = (value(row + operand, column).to_bits() >> 16) as u16;
                memory[OFFSET + row * STRIDE + 2 * column..][..2].copy_from_slice(&high.to_le_bytes());
            }
        }
    }
    for (m, n, k) in SIZES {
        let result = multiply(Emulated, (m, n, k), Product::Bf16, [&memory[0], &memory[1], &memory[2]]);
        for row in 0..m {
            for column in 0..n {
                let bytes = std::array::from_fn(|i| result[OFFSET + row * STRIDE + 4 * column + i]);
                let sum: f32 = (0..2 * k).map(|i| value(row + 1, i) * value(i / 2 + 2, 2 * column + i % 2)).sum();
                assert_eq!(f32::from_le_bytes(bytes), 2.0 * sum, "{m} {n} {k}: {row} {column}");
            }
        }
    }
}

#[test]
fn emulated_denormals_are_zeros() {
    let tiny = 2f32.powi(-127);
    for (c, a, b, expected) in [
        (0.0, tiny, 2f32.powi(100), 0.0),
        (0.0, 2f32.powi(-64), 2f32.powi(-63), 0.0),
        (tiny, 0.0, 0.0, 0.0),
        (tiny, 2f32.powi(-63), 2f32.powi(-63), 2.0 * 2f32.powi(-126)),
        (-2f32.powi(-126), 2f32.powi(-63), 2f32.powi(-63), 2f32.powi(-126)),
        (f32::INFINITY, 1.0, -1.0, f32::INFINITY),
        (0.0, f32::INFINITY, 2.0, f32::INFINITY),
        (0.0, f32::INFINITY, tiny, f32::NAN),
    ] {
        let operand = |bits: u32| {
            let mut memory = vec![0; MEMORY];
            memory[OFFSET..][..4].copy_from_slice(&bits.to_le_bytes());
            memory
        };
        let [c, a, b] = [operand(c.to_bits()), operand(a.to_bits() >> 16), operand(b.to_bits() >> 16)];
        let result = multiply(Emulated, (1, 1, 1), Product::Bf16, [&c, &a, &b]);
        let result = f32::from_le_bytes(std::array::from_fn(|i| result[OFFSET + i]));
        assert!(result.to_bits() == f32::to_bits(expected) || (result.is_nan() && expected.is_nan()), "{result}");
    }
}

#[cfg(target_arch = "x86_64")]
mod hardware {
    use super::*;

    /// All bits of the result and of the memory around it are the same, or both are not a number.
    #[test]
    fn computes_as_emulated() {
        let Some(unit) = Hardware::new() else { return };
        for seed in 0..40 {
            let [c, a, b] = [seed, seed + 100, seed + 200].map(bytes);
            for size in SIZES {
                for product in [Product::Bf16, Product::SignedUnsigned, Product::Signed] {
                    let actual = multiply(unit, size, product, [&c, &a, &b]);
                    let expected = multiply(Emulated, size, product, [&c, &a, &b]);
                    if !matches!(product, Product::Bf16) {
                        assert_eq!(actual, expected, "{size:?}");
                        continue;
                    }
                    let floats = |bytes: &[u8]| {
                        let (fours, rest) = bytes[OFFSET..].as_chunks();
                        assert!(rest.len() < 4);
                        fours.iter().map(|&bits| f32::from_le_bytes(bits)).collect::<Vec<f32>>()
                    };
                    for (i, (x, y)) in floats(&actual).into_iter().zip(floats(&expected)).enumerate() {
                        let same = x.to_bits() == y.to_bits() || (x.is_nan() && y.is_nan());
                        assert!(same, "{size:?} seed {seed}: element {i} is {x}, not {y}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_register_of_zeros() {
        let Some(unit) = Hardware::new() else { return };
        let (ones, mut result) = ([1u8; TILE_BYTES], [1u8; TILE_BYTES]);
        let mut tiles = unit.configure(&TileShapes::full());
        // SAFETY: both arrays are as large as a tile.
        unsafe {
            tiles.load::<7>(ones.as_ptr(), TILE_ROW_BYTES);
            tiles.zero::<7>();
            tiles.store::<7>(result.as_mut_ptr(), TILE_ROW_BYTES);
        }
        assert_eq!(result, [0; TILE_BYTES]);
    }

    #[test]
    fn a_thread_has_its_registers_once() {
        let Some(unit) = Hardware::new() else { return };
        let tiles = unit.configure(&TileShapes::full());
        assert!(std::panic::catch_unwind(|| unit.configure(&TileShapes::full())).is_err());
        drop(tiles);
        drop(unit.configure(&TileShapes::full()));
    }
}
