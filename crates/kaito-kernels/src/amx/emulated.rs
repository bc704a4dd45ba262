//! Tile registers as arrays: the definition of the instructions, for tests where a processor has none.

use super::{TILE_ROW_BYTES, TILE_ROWS, TILES, TileShapes, TileUnit, Tiles};

#[derive(Debug, Clone, Copy)]
pub(crate) struct Emulated;

impl TileUnit for Emulated {
    type Tiles = EmulatedTiles;

    fn configure(self, shapes: &TileShapes) -> EmulatedTiles {
        EmulatedTiles { shapes: shapes.clone(), registers: [[[0; TILE_ROW_BYTES]; TILE_ROWS]; TILES] }
    }
}

pub(crate) struct EmulatedTiles {
    shapes: TileShapes,
    registers: [[[u8; TILE_ROW_BYTES]; TILE_ROWS]; TILES],
}

impl EmulatedTiles {
    /// Calls `add` with each element of `C`, with the row of `A` and the column of `B` that belong to it, both in fours of bytes.
    fn product(&mut self, [c, a, b]: [usize; 3], add: impl Fn([u8; 4], &[[u8; 4]], &[[u8; 4]]) -> [u8; 4]) {
        let [(m, n), (a_rows, k), (b_rows, b_columns)] = [c, a, b].map(|tile| self.shapes.of(tile));
        assert!(n % 4 == 0 && k % 4 == 0, "rows of {n} and {k} bytes");
        assert_eq!((a_rows, b_rows, b_columns), (m, k / 4, n), "shapes that do not fit each other");
        for row in 0..m {
            let left = self.registers[a][row].as_chunks().0[..k / 4].to_vec();
            for column in 0..n / 4 {
                let right: Vec<[u8; 4]> = (0..k / 4).map(|i| self.registers[b][i].as_chunks().0[column]).collect();
                let element = &mut self.registers[c][row].as_chunks_mut().0[column];
                *element = add(*element, &left, &right);
            }
        }
    }

    fn integers(&mut self, tiles: [usize; 3], right_value: impl Fn(u8) -> i32) {
        self.product(tiles, |sum, left, right| {
            let products = left.iter().flatten().zip(right.iter().flatten());
            let products = products.map(|(&l, &r)| i32::from(l as i8) * right_value(r));
            products.fold(i32::from_le_bytes(sum), i32::wrapping_add).to_le_bytes()
        });
    }
}

impl Tiles for EmulatedTiles {
    fn zero<const T: usize>(&mut self) {
        self.registers[T] = [[0; TILE_ROW_BYTES]; TILE_ROWS];
    }

    unsafe fn load<const T: usize>(&mut self, p: *const u8, stride: usize) {
        let (rows, bytes) = self.shapes.of(T);
        self.zero::<T>();
        for row in 0..rows {
            // SAFETY: by contract.
            let source = unsafe { std::slice::from_raw_parts(p.add(row * stride), bytes) };
            self.registers[T][row][..bytes].copy_from_slice(source);
        }
    }

    unsafe fn store<const T: usize>(&mut self, p: *mut u8, stride: usize) {
        let (rows, bytes) = self.shapes.of(T);
        for row in 0..rows {
            // SAFETY: by contract.
            let target = unsafe { std::slice::from_raw_parts_mut(p.add(row * stride), bytes) };
            target.copy_from_slice(&self.registers[T][row][..bytes]);
        }
    }

    unsafe fn add_bf16<const C: usize, const A: usize, const B: usize>(&mut self) {
        self.product([C, A, B], |sum, left, right| {
            // The even values of both, then the odd ones.
            let [even, odd] = [0, 2].map(|at| {
                let value = |four: &[u8; 4]| flushed(f32::from_le_bytes([0, 0, four[at], four[at + 1]]));
                left.iter().zip(right).fold(0.0, |sum, (l, r)| flushed(value(l).mul_add(value(r), sum)))
            });
            flushed(flushed(f32::from_le_bytes(sum)) + flushed(even + odd)).to_le_bytes()
        });
    }

    unsafe fn add_i8_u8<const C: usize, const A: usize, const B: usize>(&mut self) {
        self.integers([C, A, B], i32::from);
    }

    unsafe fn add_i8_i8<const C: usize, const A: usize, const B: usize>(&mut self) {
        self.integers([C, A, B], |byte| i32::from(byte as i8));
    }
}

/// Zero, with its sign, in place of a denormal number.
fn flushed(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}
