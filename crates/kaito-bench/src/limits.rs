//! The limits of this machine, the two sides of a roofline: how fast memory can be read, and how fast the arithmetic of a
//! precision can be done. They are measured between the rows of the report.

use std::{io, num::NonZeroUsize, sync::Arc};

use kaito_engine::{DeviceChoice, devices};
use kaito_kernels::{Arithmetic, Operands, ReadMemory, ThreadPool, TileElements, TileProduct, Unit};
use serde::Serialize;

use crate::{machine::largest_cache, report::Model};

/// Bytes of memory that are read to measure its bandwidth, at least and at most.
const LEAST_MEMORY: u64 = 256 << 20;
const MOST_MEMORY: u64 = 2 << 30;
/// Several times the largest cache is read, so that bytes which it still holds from the round before do not count.
const TIMES_THE_CACHE: u64 = 4;
const ROUNDS: usize = 2;

/// The best values that were measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Limits {
    /// Threads that reached them.
    pub threads: usize,
    /// Bytes of memory read in a second.
    pub read_bytes_per_second: f64,
    /// Operations in a second; a multiply-add counts as two. A product can come near it, but for that of tiles (see there).
    pub operations_per_second: f64,
    /// The unit of the processor that computes them.
    #[serde(serialize_with = "as_text")]
    pub unit: Unit,
    /// More of tile registers, where they multiply the model's weights. Operands that are not reused are loaded more slowly than they
    /// are multiplied, so that the limit of registers alone is far from what any product reaches.
    pub tiles: Option<TileLimits>,
}

/// Operations in a second by tile registers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TileLimits {
    /// The instruction alone, with operands that stay in registers.
    pub in_registers: f64,
    /// With operands loaded from the first level cache.
    pub from_first_level_cache: f64,
    /// A plain product of packed matrices, with operands from wherever they are.
    pub plain_product: f64,
}

impl Limits {
    /// What prompts are compared with: a plain product where there are tiles, else the peak of the unit.
    pub(crate) fn of_prompts(&self) -> f64 {
        self.tiles.map_or(self.operations_per_second, |tiles| tiles.plain_product)
    }
}

/// The elements that the kernels of a model multiply by tile registers, if they do.
fn tile_elements(model: &Model) -> Option<TileElements> {
    match (model.kernels.as_str(), model.activations.as_str()) {
        ("amx", "int8") => Some(TileElements::Int8),
        ("amx", "bf16") => Some(TileElements::Bf16),
        _ => None,
    }
}

/// The unit whose peak bounds a model's products.
fn unit(model: &Model) -> Unit {
    match tile_elements(model) {
        Some(elements) => Unit::Tiles(elements, Operands::SecondLevelCache),
        None if model.activations == "int8" => Unit::Int8,
        None => Unit::F32,
    }
}

/// Memory of the host that this process can still take.
fn available_memory() -> u64 {
    let cpu = devices().into_iter().find(|(device, _)| device.name == DeviceChoice::Cpu.name());
    cpu.map_or(0, |(_, memory)| memory.free)
}

fn as_text<S: serde::Serializer>(unit: &Unit, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(unit)
}

/// Measures the limits once per row and keeps the best values, since other processes slow single rounds down.
pub(crate) struct Prober {
    inner: Arc<Inner>,
    best: Limits,
}

struct Inner {
    pool: ThreadPool,
    memory: ReadMemory,
    arithmetic: Arithmetic,
    tiles: Option<TileWork>,
}

struct TileWork {
    in_registers: Arithmetic,
    from_first_level_cache: Arithmetic,
    product: TileProduct,
}

impl TileWork {
    fn new(elements: TileElements) -> Option<Self> {
        Some(Self {
            product: TileProduct::new(elements)?,
            in_registers: Arithmetic::new(Unit::Tiles(elements, Operands::Registers)),
            from_first_level_cache: Arithmetic::new(Unit::Tiles(elements, Operands::FirstLevelCache)),
        })
    }

    fn limits(&self, pool: &ThreadPool) -> TileLimits {
        TileLimits {
            in_registers: self.in_registers.rate(pool),
            from_first_level_cache: self.from_first_level_cache.rate(pool),
            plain_product: self.product.rate(pool),
        }
    }
}

/// What a round measures.
#[derive(Clone, Copy)]
struct Round {
    read: f64,
    operations: f64,
    tiles: Option<TileLimits>,
}

impl Limits {
    /// The best of both.
    fn take(&mut self, round: Round) {
        self.read_bytes_per_second = self.read_bytes_per_second.max(round.read);
        self.operations_per_second = self.operations_per_second.max(round.operations);
        self.tiles = match (self.tiles, round.tiles) {
            (Some(best), Some(now)) => Some(TileLimits {
                in_registers: best.in_registers.max(now.in_registers),
                from_first_level_cache: best.from_first_level_cache.max(now.from_first_level_cache),
                plain_product: best.plain_product.max(now.plain_product),
            }),
            (best, now) => best.or(now),
        };
    }
}

impl Prober {
    /// # Errors
    /// If the system refuses the memory that would be read.
    pub(crate) fn new(model: &Model) -> io::Result<Self> {
        let bytes = largest_cache().unwrap_or(0).saturating_mul(TIMES_THE_CACHE).clamp(LEAST_MEMORY, MOST_MEMORY);
        // Never so much that the model would be pushed out of memory.
        let bytes = bytes.min((available_memory() / 4).max(LEAST_MEMORY));
        let pool = ThreadPool::new(NonZeroUsize::new(model.threads).unwrap_or(NonZeroUsize::MIN));
        let memory = ReadMemory::new(bytes as usize)?;
        // A server of ours says that it computes with tiles; this process must be allowed to.
        let unit = Some(unit(model)).filter(|unit| unit.is_available()).unwrap_or(Unit::F32);
        let tiles = tile_elements(model).and_then(TileWork::new);
        let best = Limits {
            threads: pool.threads(),
            read_bytes_per_second: 0.0,
            operations_per_second: 0.0,
            unit,
            tiles: None,
        };
        Ok(Self { inner: Arc::new(Inner { pool, memory, arithmetic: Arithmetic::new(unit), tiles }), best })
    }

    /// Takes a fraction of a second, in which nothing else should run.
    pub(crate) async fn probe(&mut self) {
        let inner = Arc::clone(&self.inner);
        let rounds = tokio::task::spawn_blocking(move || {
            [(); ROUNDS].map(|()| Round {
                read: inner.memory.bandwidth(&inner.pool),
                operations: inner.arithmetic.rate(&inner.pool),
                tiles: inner.tiles.as_ref().map(|tiles| tiles.limits(&inner.pool)),
            })
        });
        // A panic there would leave the limits that were measured before.
        for round in rounds.await.into_iter().flatten() {
            self.best.take(round);
        }
    }

    pub(crate) fn limits(&self) -> Limits {
        self.best
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::model;

    #[test]
    fn a_model_is_bound_by_the_unit_that_multiplies_its_weights() {
        let tiles = |elements| Unit::Tiles(elements, Operands::SecondLevelCache);
        for (kernels, activations, expected) in [
            ("amx", "int8", tiles(TileElements::Int8)),
            ("amx", "bf16", tiles(TileElements::Bf16)),
            ("amx", "f32", Unit::F32),
            ("avx512", "bf16", Unit::F32),
            ("avx512", "int8", Unit::Int8),
            ("avx2", "f32", Unit::F32),
        ] {
            let model = Model { kernels: kernels.to_owned(), activations: activations.to_owned(), ..model() };
            assert_eq!(unit(&model), expected, "{kernels} {activations}");
        }
    }

    #[test]
    fn the_best_round_of_each_limit_counts() {
        let tiles = |product| {
            Some(TileLimits { in_registers: 100.0, from_first_level_cache: 50.0 - product, plain_product: product })
        };
        let unit = Unit::Tiles(TileElements::Int8, Operands::SecondLevelCache);
        let mut best = Limits { threads: 2, read_bytes_per_second: 0.0, operations_per_second: 0.0, unit, tiles: None };
        assert_eq!(best.of_prompts(), 0.0);
        for (read, operations, product) in [(1.0, 9.0, 20.0), (2.0, 8.0, 10.0)] {
            best.take(Round { read, operations, tiles: tiles(product) });
        }
        assert_eq!((best.read_bytes_per_second, best.operations_per_second), (2.0, 9.0));
        let tiles = best.tiles.unwrap();
        assert_eq!((tiles.from_first_level_cache, tiles.plain_product, best.of_prompts()), (40.0, 20.0, 20.0));
        assert_eq!(Limits { tiles: None, ..best }.of_prompts(), 9.0);
    }
}
