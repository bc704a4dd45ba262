//! The two limits of the roofline model (Williams, Waterman and Patterson 2009), measured on this machine: memory bandwidth and
//! arithmetic throughput. The speed of kernels and models is compared with them.
//!
//! A figure is that of one short round. On a shared machine limits change from minute to minute: take the best of several rounds,
//! between the measurements that are compared with it.

mod tiles;

use std::{
    fmt,
    hint::black_box,
    io,
    time::{Duration, Instant},
};

use self::tiles::tile_products;
pub use self::tiles::{Operands, TileElements, TileProduct};
use crate::{
    ThreadPool,
    quantized::dot_products,
    simd::{Kernel, Level, STREAMS, Simd, dispatch},
};

/// Arithmetic units of the processor that products keep busy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Fused multiply-add of `f32`, which weights that are not quantised use.
    F32,
    /// Pairs of bf16 that are multiplied and added up to `f32` (`vdpbf16ps`), two products in a lane.
    Bf16Pairs,
    /// Sums of products of bytes, by the vector instructions that quantised weights use.
    Int8,
    /// Products of tile registers (Intel AMX).
    Tiles(TileElements, Operands),
}

impl Unit {
    /// Whether the processor has it, and this process may use it.
    pub fn is_available(self) -> bool {
        match self {
            Unit::F32 | Unit::Int8 => true,
            Unit::Bf16Pairs => has_pairs(),
            Unit::Tiles(..) => tiles::are_available(),
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unit::F32 => f.write_str("f32 fused multiply-add"),
            Unit::Bf16Pairs => f.write_str("bf16 pair product"),
            Unit::Int8 => f.write_str("int8 dot product"),
            Unit::Tiles(TileElements::Bf16, operands) => write!(f, "bf16 tile product, {operands}"),
            Unit::Tiles(TileElements::Int8, operands) => write!(f, "int8 tile product, {operands}"),
        }
    }
}

/// Elements of a piece of reading.
const PIECE: usize = 1 << 18;
/// Time of a piece of arithmetic at least.
const PIECE_TIME: Duration = Duration::from_millis(1);

/// Memory that is read to measure memory bandwidth: it should be larger than the caches.
///
/// It lies in huge pages where the system has them, as files do in the page cache. With small pages the processor often waits for
/// a page table entry, and the figure would be that of page tables.
#[derive(Debug)]
pub struct ReadMemory(memmap2::MmapMut);

impl ReadMemory {
    /// # Errors
    /// If the system does not have that much memory.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let mut map = memmap2::MmapMut::map_anon(bytes)?;
        #[cfg(target_os = "linux")]
        // A hint: where the system has no huge pages the figure is that of small ones.
        let _ = map.advise(memmap2::Advice::HugePage);
        // Until they are written to, all pages are one page of zeros, which fits in the caches.
        map.fill(0x3f);
        Ok(Self(map))
    }

    /// Bytes a second that all threads of the pool read.
    pub fn bandwidth(&self, pool: &ThreadPool) -> f64 {
        let start = Instant::now();
        self.read(pool);
        self.0.len() as f64 / start.elapsed().as_secs_f64()
    }

    /// Reads all of it by all threads of the pool.
    pub fn read(&self, pool: &ThreadPool) {
        // SAFETY: any bits are a number; a map begins at a page.
        let (_, memory, _) = unsafe { self.0.align_to::<f32>() };
        pool.for_each(memory.len().div_ceil(PIECE), &|i| {
            let piece = &memory[i * PIECE..memory.len().min((i + 1) * PIECE)];
            black_box(dispatch(Level::chosen(), Largest(piece)));
        });
    }
}

/// Work that keeps the units of one kind busy on every thread, and nothing else.
#[derive(Debug, Clone, Copy)]
pub struct Arithmetic {
    unit: Unit,
    /// Steps of a piece.
    steps: usize,
}

impl Arithmetic {
    /// Work of some milliseconds.
    ///
    /// # Panics
    /// If the unit is not available.
    pub fn new(unit: Unit) -> Self {
        assert!(unit.is_available(), "this machine has no unit for {unit}");
        let mut work = Self { unit, steps: 1 << 10 };
        // Instruction sets differ by a factor of a thousand.
        loop {
            let start = Instant::now();
            work.piece();
            if start.elapsed() >= PIECE_TIME {
                return work;
            }
            work.steps *= 2;
        }
    }

    /// Does it, and returns the number of operations: two for each product that is added.
    pub fn run(self, pool: &ThreadPool) -> f64 {
        // More pieces than threads, so that a thread which loses its core does not delay the others.
        let pieces = 8 * pool.threads();
        pool.for_each(pieces, &|_| _ = self.piece());
        let step = Self { steps: 1, ..self };
        (pieces * step.piece()) as f64 * self.steps as f64
    }

    /// Operations a second of all threads of the pool.
    pub fn rate(self, pool: &ThreadPool) -> f64 {
        let start = Instant::now();
        self.run(pool) / start.elapsed().as_secs_f64()
    }

    fn piece(self) -> usize {
        black_box(match self.unit {
            Unit::F32 => dispatch(Level::chosen(), MultiplyAdd { steps: self.steps }),
            Unit::Bf16Pairs => pair_products(self.steps),
            Unit::Int8 => dot_products(self.steps),
            Unit::Tiles(elements, operands) => tile_products(elements, operands, self.steps),
        })
    }
}

/// The largest element: the least arithmetic that needs all of them.
struct Largest<'a>(&'a [f32]);

impl Kernel for Largest<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        const VECTORS: usize = 8;
        let block = VECTORS * S::LANES;
        let stream_len = self.0.len() / STREAMS / block * block;
        let mut largest = [simd.splat(f32::NEG_INFINITY); VECTORS];
        for at in (0..stream_len).step_by(block) {
            for stream in 0..STREAMS {
                let block = &self.0[stream * stream_len + at..][..block];
                for (i, largest) in largest.iter_mut().enumerate() {
                    *largest = simd.max(*largest, simd.load_slice(&block[i * S::LANES..]));
                }
            }
        }
        let mut lanes = [f32::NEG_INFINITY; crate::simd::MAX_LANES];
        let mut result = f32::NEG_INFINITY;
        for vector in largest {
            simd.store_slice(&mut lanes, vector);
            for &lane in &lanes {
                result = result.max(lane);
            }
        }
        for &element in &self.0[STREAMS * stream_len..] {
            result = result.max(element);
        }
        result
    }
}

fn has_pairs() -> bool {
    #[cfg(target_arch = "x86_64")]
    return crate::simd::has_bf16_pairs();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// The number of operations; none where the processor has no such unit.
fn pair_products(steps: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    if has_pairs() {
        return 2 * crate::simd::dispatch_bf16_pairs(MultiplyAdd { steps });
    }
    let _ = steps;
    0
}

/// Independent chains of multiply-add. The result is the number of operations.
struct MultiplyAdd {
    steps: usize,
}

impl Kernel for MultiplyAdd {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> usize {
        // Enough chains to hide the latency of all pipelines, and no more than there are registers.
        if S::MANY_REGISTERS {
            multiply_add::<S, 24>(simd, self.steps)
        } else {
            multiply_add::<S, 12>(simd, self.steps)
        }
    }
}

#[inline(always)]
fn multiply_add<S: Simd, const SUMS: usize>(simd: S, steps: usize) -> usize {
    let mut sums = [simd.splat(black_box(1.0)); SUMS];
    let half = simd.splat(black_box(0.5));
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = simd.mul_add(half, half, *sum);
        }
    }
    black_box(sums);
    steps * SUMS * S::LANES * 2
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    #[test]
    fn every_element_is_read_on_every_level() {
        for &level in Level::available() {
            for len in [1, 15, 16, 127, 128, 129, 1000] {
                for at in [0, len / 2, len - 1] {
                    let mut memory = vec![1.0; len];
                    memory[at] = 2.0;
                    assert_eq!(dispatch(level, Largest(&memory)), 2.0, "{level:?} {len} {at}");
                }
            }
        }
    }

    #[test]
    fn operations_are_counted_by_the_step() {
        for &level in Level::available() {
            let one = dispatch(level, MultiplyAdd { steps: 1 });
            assert!(one >= 24 && one.is_multiple_of(24), "{level:?} {one}");
            assert_eq!(dispatch(level, MultiplyAdd { steps: 10 }), 10 * one, "{level:?}");
        }
        assert_eq!(dot_products(10), 10 * dot_products(1));
    }

    #[test]
    fn limits_are_rates() {
        let pool = ThreadPool::new(NonZeroUsize::new(2).unwrap());
        let memory = ReadMemory::new(size_of::<f32>() * (PIECE + 1)).unwrap();
        let units = [
            Unit::F32,
            Unit::Bf16Pairs,
            Unit::Int8,
            Unit::Tiles(TileElements::Bf16, Operands::Registers),
            Unit::Tiles(TileElements::Int8, Operands::FirstLevelCache),
        ];
        let units = units.into_iter().filter(|unit| unit.is_available());
        let rates: Vec<f64> = units.map(|unit| Arithmetic::new(unit).rate(&pool)).collect();
        assert!(rates.len() >= 2);
        for rate in rates.into_iter().chain([memory.bandwidth(&pool)]) {
            assert!(rate.is_finite() && rate > 0.0, "{rate}");
        }
    }
}
