//! Limits of tile registers: their products alone, with operands that are loaded, and in a plain product of two matrices.

use std::{fmt, hint::black_box, sync::OnceLock, time::Instant};

use crate::{
    ThreadPool,
    amx::{TILE_BYTES, TILE_ROWS, TileShapes, TileUnit, Tiles},
};

/// Where the operands of tile products come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operands {
    /// They stay in registers: the instruction alone.
    Registers,
    /// Each is loaded from 32 KiB, which first level caches hold.
    FirstLevelCache,
    /// Each is loaded from 1 MiB, which second level caches hold.
    SecondLevelCache,
}

impl fmt::Display for Operands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Operands::Registers => "operands in registers",
            Operands::FirstLevelCache => "operands from the first level cache",
            Operands::SecondLevelCache => "operands from the second level cache",
        })
    }
}

/// Elements that tile products multiply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TileElements {
    /// Products of bf16, summed in `f32`.
    Bf16,
    /// Products of `i8`, summed in `i32`.
    Int8,
}

/// Rows of weights, or tokens, of two tiles.
const SIDE: usize = 2 * TILE_ROWS;

/// Two tiles: the same 64 bytes of 32 rows.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Pair([[u8; TILE_BYTES]; 2]);

/// Both operands of a step of 2 x 2 tiles.
#[derive(Clone, Copy)]
#[repr(C)]
struct Step {
    a: Pair,
    b: Pair,
}

const FIRST_LEVEL_STEPS: usize = 8;
const SECOND_LEVEL_STEPS: usize = 256;

/// A kind of tile product.
trait Element {
    /// Bytes of an element.
    const BYTES: usize;
    /// Two elements that are neither zero nor denormal.
    const PAIR: [u8; 2];

    /// # Safety
    /// All registers have their full shape.
    unsafe fn multiply_add<T: Tiles, const C: usize, const A: usize, const B: usize>(tiles: &mut T);
}

struct Bf16;

impl Element for Bf16 {
    const BYTES: usize = 2;
    // One: half of it is 0x3f80.
    const PAIR: [u8; 2] = [0x80, 0x3f];

    #[inline(always)]
    unsafe fn multiply_add<T: Tiles, const C: usize, const A: usize, const B: usize>(tiles: &mut T) {
        // SAFETY: full shapes fit each other.
        unsafe { tiles.add_bf16::<C, A, B>() }
    }
}

struct Int8;

impl Element for Int8 {
    const BYTES: usize = 1;
    const PAIR: [u8; 2] = [3, 5];

    #[inline(always)]
    unsafe fn multiply_add<T: Tiles, const C: usize, const A: usize, const B: usize>(tiles: &mut T) {
        // SAFETY: full shapes fit each other.
        unsafe { tiles.add_i8_i8::<C, A, B>() }
    }
}

/// Registers 0 to 3 are sums, 4 and 5 hold `a`, 6 and 7 hold `b`.
#[inline(always)]
fn load<T: Tiles>(tiles: &mut T, a: &Pair, b: &Pair) {
    // SAFETY: each is a whole tile.
    unsafe {
        tiles.load::<4>(a.0[0].as_ptr(), 64);
        tiles.load::<5>(a.0[1].as_ptr(), 64);
        tiles.load::<6>(b.0[0].as_ptr(), 64);
        tiles.load::<7>(b.0[1].as_ptr(), 64);
    }
}

#[inline(always)]
fn zero_sums<T: Tiles>(tiles: &mut T) {
    tiles.zero::<0>();
    tiles.zero::<1>();
    tiles.zero::<2>();
    tiles.zero::<3>();
}

/// # Safety
/// All registers have their full shape.
#[inline(always)]
unsafe fn multiply_add<E: Element, T: Tiles>(tiles: &mut T) {
    // SAFETY: by contract.
    unsafe {
        E::multiply_add::<T, 0, 4, 6>(tiles);
        E::multiply_add::<T, 1, 4, 7>(tiles);
        E::multiply_add::<T, 2, 5, 6>(tiles);
        E::multiply_add::<T, 3, 5, 7>(tiles);
    }
}

/// 32 x 32 sums, tile by tile.
#[repr(C, align(64))]
struct Sums<N>([[N; TILE_ROWS * TILE_ROWS]; 4]);

#[inline(always)]
fn store<T: Tiles, N>(tiles: &mut T, sums: &mut Sums<N>) {
    const { assert!(size_of::<N>() == 4) };
    // SAFETY: each is a whole tile, of elements for which any bits are a number: `N` is `f32` or `i32`.
    unsafe {
        tiles.store::<0>(sums.0[0].as_mut_ptr().cast(), 64);
        tiles.store::<1>(sums.0[1].as_mut_ptr().cast(), 64);
        tiles.store::<2>(sums.0[2].as_mut_ptr().cast(), 64);
        tiles.store::<3>(sums.0[3].as_mut_ptr().cast(), 64);
    }
}

/// Operations of a step of 2 x 2 tiles.
fn step_operations<E: Element>() -> usize {
    2 * SIDE * SIDE * (64 / E::BYTES)
}

/// Does `steps` steps of 2 x 2 tiles. The number of operations that they were.
fn products<E: Element, U: TileUnit>(unit: U, operands: Operands, steps: usize) -> usize {
    let memory = memory::<E>();
    let of = match operands {
        Operands::Registers => 0,
        Operands::FirstLevelCache => FIRST_LEVEL_STEPS,
        Operands::SecondLevelCache => SECOND_LEVEL_STEPS,
    };
    let mut sums = Sums([[0i32; TILE_ROWS * TILE_ROWS]; 4]);
    let mut tiles = unit.configure(&TileShapes::full());
    load(&mut tiles, &memory[0].a, &memory[0].b);
    let mut at = 0;
    for _ in 0..steps {
        if of > 0 {
            load(&mut tiles, &memory[at].a, &memory[at].b);
            at = (at + 1) % of;
        }
        // SAFETY: they were configured so.
        unsafe { multiply_add::<E, _>(&mut tiles) };
    }
    store(&mut tiles, &mut sums);
    drop(tiles);
    black_box(&sums);
    steps * step_operations::<E>()
}

/// Operands of every thread, which only reads them: each core has them in its own caches.
fn memory<E: Element>() -> &'static [Step] {
    static BF16: OnceLock<Vec<Step>> = OnceLock::new();
    static INT8: OnceLock<Vec<Step>> = OnceLock::new();
    let memory = if E::BYTES == Bf16::BYTES { &BF16 } else { &INT8 };
    memory.get_or_init(|| vec![Step { a: filled::<E>(), b: filled::<E>() }; SECOND_LEVEL_STEPS])
}

fn filled<E: Element>() -> Pair {
    let mut pair = Pair([[0; TILE_BYTES]; 2]);
    for tile in &mut pair.0 {
        for bytes in tile.chunks_exact_mut(2) {
            bytes.copy_from_slice(&E::PAIR);
        }
    }
    pair
}

/// The processor's unit.
#[cfg(target_arch = "x86_64")]
fn hardware() -> Option<crate::amx::Hardware> {
    crate::amx::Hardware::new()
}

/// Whether this process may use tile registers.
pub(super) fn are_available() -> bool {
    #[cfg(target_arch = "x86_64")]
    return hardware().is_some();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Does `steps` steps of tile products by the processor, and returns the number of operations that they were: none where it has no
/// tile registers.
pub(super) fn tile_products(elements: TileElements, operands: Operands, steps: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    if let Some(unit) = hardware() {
        return match elements {
            TileElements::Bf16 => products::<Bf16, _>(unit, operands, steps),
            TileElements::Int8 => products::<Int8, _>(unit, operands, steps),
        };
    }
    let _ = (elements, operands, steps);
    0
}

/// A plain product of weights with the activations of a prompt by tile registers: both packed into tiles beforehand, 2 x 2 tiles at a
/// time, tokens in strips that the second level cache holds. Int8 scales its sums each 64 columns, as quantised weights in groups need
/// it. It is what a product can be expected to reach, well below the instruction's own limit.
///
/// Results stay in the first level cache: writing them to memory would take a fiftieth of the time.
pub struct TileProduct {
    elements: TileElements,
    /// Panels of 32 rows of weights, one after the other; in a panel, pairs of tiles along the columns.
    weights: Vec<Pair>,
    /// The same of tokens.
    input: Vec<Pair>,
    /// A scale for each row of each pair of `weights`, and of `input`.
    weight_scales: Vec<[f32; SIDE]>,
    input_scales: Vec<[f32; SIDE]>,
    /// Pairs of a panel.
    pairs: usize,
}

/// 128 tokens of 4096 columns are 1 MiB in bf16.
const STRIP_PANELS: usize = 4;

impl TileProduct {
    /// A prompt of 512 tokens and a matrix of 4096 x 4096. `None` where the processor has no tile registers.
    pub fn new(elements: TileElements) -> Option<Self> {
        are_available().then(|| match elements {
            TileElements::Bf16 => Self::of::<Bf16>(elements, 512, 4096, 4096),
            TileElements::Int8 => Self::of::<Int8>(elements, 512, 4096, 4096),
        })
    }

    fn of<E: Element>(elements: TileElements, tokens: usize, rows: usize, columns: usize) -> Self {
        assert!(tokens.is_multiple_of(STRIP_PANELS * SIDE) && rows.is_multiple_of(SIDE));
        let pairs = columns * E::BYTES / 64;
        let (weights, input) = (rows / SIDE * pairs, tokens / SIDE * pairs);
        Self {
            elements,
            weights: vec![filled::<E>(); weights],
            input: vec![filled::<E>(); input],
            weight_scales: vec![[0.5; SIDE]; weights],
            input_scales: vec![[0.25; SIDE]; input],
            pairs,
        }
    }

    /// Operations a second of all threads of the pool.
    pub fn rate(&self, pool: &ThreadPool) -> f64 {
        let panels = self.weights.len() / self.pairs;
        let strips = self.input.len() / self.pairs / STRIP_PANELS;
        let start = Instant::now();
        // Strips are the outer order: all threads share one.
        pool.for_each(strips * panels, &|i| self.panel_by_hardware(i % panels, i / panels));
        self.operations() as f64 / start.elapsed().as_secs_f64()
    }

    fn operations(&self) -> usize {
        let step = match self.elements {
            TileElements::Bf16 => step_operations::<Bf16>(),
            TileElements::Int8 => step_operations::<Int8>(),
        };
        self.weights.len() * (self.input.len() / self.pairs) * step
    }

    fn panel_by_hardware(&self, panel: usize, strip: usize) {
        #[cfg(target_arch = "x86_64")]
        if let Some(unit) = hardware() {
            self.panel(unit, panel, strip, &mut |sums| _ = black_box(sums));
        }
    }

    /// The products of a panel of weights with a strip of tokens, 32 x 32 at a time: `[token][row]` of each, tile by tile.
    fn panel<U: TileUnit>(&self, unit: U, panel: usize, strip: usize, done: &mut dyn FnMut(&Sums<f32>)) {
        let mut tiles = unit.configure(&TileShapes::full());
        for tokens in strip * STRIP_PANELS..(strip + 1) * STRIP_PANELS {
            let mut result = Sums([[0.0; TILE_ROWS * TILE_ROWS]; 4]);
            let (a, b) = (tokens * self.pairs, panel * self.pairs);
            match self.elements {
                TileElements::Bf16 => {
                    zero_sums(&mut tiles);
                    for at in 0..self.pairs {
                        load(&mut tiles, &self.input[a + at], &self.weights[b + at]);
                        // SAFETY: they were configured so.
                        unsafe { multiply_add::<Bf16, _>(&mut tiles) };
                    }
                    store(&mut tiles, &mut result);
                }
                TileElements::Int8 => {
                    let mut sums = Sums([[0i32; TILE_ROWS * TILE_ROWS]; 4]);
                    for at in 0..self.pairs {
                        zero_sums(&mut tiles);
                        load(&mut tiles, &self.input[a + at], &self.weights[b + at]);
                        // SAFETY: they were configured so.
                        unsafe { multiply_add::<Int8, _>(&mut tiles) };
                        store(&mut tiles, &mut sums);
                        add_scaled(&mut result, &sums, &self.input_scales[a + at], &self.weight_scales[b + at]);
                    }
                }
            }
            done(&result);
        }
    }
}

/// `result += sums * token's scale * row's scale`.
#[inline(always)]
fn add_scaled(result: &mut Sums<f32>, sums: &Sums<i32>, tokens: &[f32; SIDE], rows: &[f32; SIDE]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has it.
        return unsafe { add_scaled_avx512(result, sums, tokens, rows) };
    }
    add_scaled_portable(result, sums, tokens, rows);
}

/// # Safety
/// The processor has AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn add_scaled_avx512(result: &mut Sums<f32>, sums: &Sums<i32>, tokens: &[f32; SIDE], rows: &[f32; SIDE]) {
    add_scaled_portable(result, sums, tokens, rows);
}

// Plain loops, which the compiler turns into vectors of whichever instruction set it is inlined into.
#[inline(always)]
fn add_scaled_portable(result: &mut Sums<f32>, sums: &Sums<i32>, tokens: &[f32; SIDE], rows: &[f32; SIDE]) {
    let mut tile = 0;
    while tile < 4 {
        let mut token = 0;
        while token < TILE_ROWS {
            let scale = tokens[tile / 2 * TILE_ROWS + token];
            let mut row = 0;
            while row < TILE_ROWS {
                let at = token * TILE_ROWS + row;
                result.0[tile][at] += sums.0[tile][at] as f32 * (scale * rows[tile % 2 * TILE_ROWS + row]);
                row += 1;
            }
            token += 1;
        }
        tile += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::amx::Emulated;

    #[test]
    fn operations_are_counted_by_the_step() {
        for operands in [Operands::Registers, Operands::FirstLevelCache, Operands::SecondLevelCache] {
            // A product of 16 x 16 x 32 bf16, or x 64 bytes, four times.
            assert_eq!(products::<Bf16, _>(Emulated, operands, 1), 4 * 2 * 16 * 16 * 32);
            assert_eq!(products::<Int8, _>(Emulated, operands, 1), 4 * 2 * 16 * 16 * 64);
            assert_eq!(products::<Int8, _>(Emulated, operands, 10), 10 * products::<Int8, _>(Emulated, operands, 1));
        }
    }

    #[test]
    fn the_plain_product_is_one() {
        let (tokens, rows, columns) = (STRIP_PANELS * SIDE, 2 * SIDE, 128);
        for (product, expected) in [
            // 128 products of one with one.
            (TileProduct::of::<Bf16>(TileElements::Bf16, tokens, rows, columns), 128.0),
            // Half of the columns have 3 * 3, half 5 * 5; the scales are a half and a quarter.
            (TileProduct::of::<Int8>(TileElements::Int8, tokens, rows, columns), 64.0 * (9.0 + 25.0) / 8.0),
        ] {
            let mut parts = 0;
            for panel in 0..rows / SIDE {
                product.panel(Emulated, panel, 0, &mut |sums| {
                    parts += 1;
                    assert!(sums.0.iter().flatten().all(|sum| *sum == expected), "{:?}", product.elements);
                });
            }
            assert_eq!(parts * SIDE * SIDE, tokens * rows);
            assert_eq!(product.operations(), 2 * tokens * rows * columns);
        }
    }

    #[test]
    fn scales_are_those_of_the_token_and_the_row() {
        let mut result = Sums([[1.0; TILE_ROWS * TILE_ROWS]; 4]);
        let sums = Sums([[2; TILE_ROWS * TILE_ROWS]; 4]);
        let tokens: [f32; SIDE] = std::array::from_fn(|i| i as f32);
        let rows: [f32; SIDE] = std::array::from_fn(|i| 100.0 * i as f32);
        add_scaled(&mut result, &sums, &tokens, &rows);
        for (tile, values) in result.0.iter().enumerate() {
            for (at, value) in values.iter().enumerate() {
                let (token, row) = (tile / 2 * TILE_ROWS + at / TILE_ROWS, tile % 2 * TILE_ROWS + at % TILE_ROWS);
                assert_eq!(*value, 1.0 + 2.0 * token as f32 * (100.0 * row as f32), "{token} {row}");
            }
        }
    }

    #[test]
    fn limits_are_rates_where_there_are_tiles() {
        let pool = ThreadPool::new(NonZeroUsize::new(2).unwrap());
        for elements in [TileElements::Bf16, TileElements::Int8] {
            let product = TileProduct::new(elements);
            assert_eq!(product.is_some(), are_available());
            if let Some(product) = product {
                let rate = product.rate(&pool);
                assert!(rate.is_finite() && rate > 0.0, "{elements:?} {rate}");
                assert!(tile_products(elements, Operands::SecondLevelCache, 10) > 0);
            }
        }
    }
}
