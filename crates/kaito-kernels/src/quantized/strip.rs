//! The weights that are multiplied by all tokens of a part at a time.

use std::{marker::PhantomData, mem::MaybeUninit};

use super::{
    Quantization, QuantizedFormat, QuantizedRef,
    dot::{Dot, GROUP_BYTES, UnpackedGroup},
    repacked::Repacking,
};
use crate::simd::{CACHE_LINE, STREAMS};

/// Groups of a strip whose 4-bit weights are unpacked once for all tiles: they stay in the first level cache.
pub(super) const UNPACKED_GROUPS: usize = 4;

/// A few blocks of rows of a part, and some of their groups: what is multiplied by all tokens of the part at a time.
#[derive(Clone, Copy)]
pub(super) struct Strip {
    /// Its first block of rows.
    pub block: usize,
    pub blocks: usize,
    /// From one of its blocks to the next.
    pub apart: usize,
    /// Its first group.
    pub group: usize,
    pub groups: usize,
}

/// Room for the unpacked weights of a strip.
#[repr(align(64))]
pub(super) struct Unpacked([[UnpackedGroup; UNPACKED_GROUPS]; STREAMS]);

impl Unpacked {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self([const { [const { MaybeUninit::uninit() }; UNPACKED_GROUPS] }; STREAMS])
    }
}

/// The weights of a strip, as bytes with the zero point 128 or as nibbles: `groups` groups of each of some blocks of rows, and their scales.
/// [`StripWeights::push`] checks that they are there.
pub(super) struct StripWeights<'a> {
    quants: [*const u8; STREAMS],
    sides: [*const u8; STREAMS],
    blocks: usize,
    groups: usize,
    group_bytes: usize,
    side_bytes: usize,
    borrowed: PhantomData<&'a u8>,
}

impl<'a> StripWeights<'a> {
    /// Those of 8 bits are used as they lie in the matrix, those of 4 bits are unpacked into `room`.
    #[inline(always)]
    pub(super) fn new<D: Dot>(
        dot: D,
        weight: QuantizedRef<'a>,
        strip: Strip,
        room: &'a mut Unpacked,
        prefetches: bool,
    ) -> Self {
        let groups = strip.groups;
        let mut weights = Self::empty(groups, GROUP_BYTES, weight.format.side_bytes());
        for (i, room) in room.0.iter_mut().take(strip.blocks).enumerate() {
            let block = strip.block + i * strip.apart;
            let quants = weight.quants(block, strip.group, groups);
            let sides = weight.sides(block, strip.group, groups);
            let quants = match weight.format {
                QuantizedFormat::Quantized(Quantization::Int4) => unpack(dot, quants, sides, room, prefetches),
                QuantizedFormat::Repacked(format) if weight.format.is_packed() => {
                    unpack_repacked(dot, Repacking::of(format), quants, sides, room, prefetches)
                }
                QuantizedFormat::Quantized(Quantization::Int8) | QuantizedFormat::Repacked(_) => quants,
            };
            weights.push(quants, sides);
        }
        weights
    }

    /// Those of either precision as they lie in the matrix.
    #[inline(always)]
    pub(super) fn as_they_lie(weight: QuantizedRef<'a>, strip: Strip) -> Self {
        let mut weights = Self::empty(strip.groups, weight.format.group_bytes(), weight.format.side_bytes());
        for i in 0..strip.blocks {
            let block = strip.block + i * strip.apart;
            let quants = weight.quants(block, strip.group, strip.groups);
            weights.push(quants, weight.sides(block, strip.group, strip.groups));
        }
        weights
    }

    #[inline(always)]
    fn empty(groups: usize, group_bytes: usize, side_bytes: usize) -> Self {
        let none = [std::ptr::null(); STREAMS];
        Self { quants: none, sides: none, blocks: 0, groups, group_bytes, side_bytes, borrowed: PhantomData }
    }

    /// Adds the groups of a block.
    ///
    /// # Panics
    /// If the bytes are not those of as many groups, or there are [`STREAMS`] blocks already.
    fn push(&mut self, quants: &'a [u8], sides: &'a [u8]) {
        assert_eq!((quants.len(), sides.len()), (self.groups * self.group_bytes, self.groups * self.side_bytes));
        self.quants[self.blocks] = quants.as_ptr();
        self.sides[self.blocks] = sides.as_ptr();
        self.blocks += 1;
    }

    /// Groups of each block.
    #[inline(always)]
    pub(super) fn groups(&self) -> usize {
        self.groups
    }

    /// From the weights of a group to those of the next.
    #[inline(always)]
    pub(super) fn group_bytes(&self) -> usize {
        self.group_bytes
    }

    /// From the scales of a group to those of the next.
    #[inline(always)]
    pub(super) fn side_bytes(&self) -> usize {
        self.side_bytes
    }

    /// Where the groups of the first `R` blocks begin, and where their scales do.
    ///
    /// # Panics
    /// If there are fewer blocks.
    #[inline(always)]
    pub(super) fn starts<const R: usize>(&self) -> ([*const u8; R], [*const u8; R]) {
        assert!(R <= self.blocks);
        let (mut quants, mut sides) = ([self.quants[0]; R], [self.sides[0]; R]);
        quants.copy_from_slice(&self.quants[..R]);
        sides.copy_from_slice(&self.sides[..R]);
        (quants, sides)
    }
}

/// How many bytes ahead a single stream of weights is prefetched, and weights are while others are unpacked: more than each of several streams.
pub(super) const SINGLE_STREAM_DISTANCE: usize = 4096;

/// Unpacks the groups of a block, as many bytes of `room` as they take, and prefetches those that lie ahead if it is told to.
///
/// # Panics
/// If there are more than [`UNPACKED_GROUPS`].
#[inline(always)]
pub(super) fn unpack<'a, D: Dot>(
    dot: D,
    nibbles: &[u8],
    sides: &[u8],
    room: &'a mut [UnpackedGroup; UNPACKED_GROUPS],
    prefetches: bool,
) -> &'a [u8] {
    if prefetches {
        prefetch_ahead(dot, nibbles, sides);
    }
    let (nibbles, sides) = (nibbles.as_chunks().0, sides.as_chunks().0);
    let groups = &mut room[..nibbles.len()];
    assert_eq!(nibbles.len(), sides.len());
    for i in 0..groups.len() {
        dot.unpack(&nibbles[i], &sides[i], &mut groups[i]);
    }
    // SAFETY: `Dot::unpack` has written all of each group.
    unsafe { bytes_of(groups) }
}

/// The same in a repacked format.
///
/// # Panics
/// If there are more than [`UNPACKED_GROUPS`].
#[inline(always)]
fn unpack_repacked<'a, D: Dot>(
    dot: D,
    repacking: Repacking,
    quants: &[u8],
    sides: &[u8],
    room: &'a mut [UnpackedGroup; UNPACKED_GROUPS],
    prefetches: bool,
) -> &'a [u8] {
    if prefetches {
        prefetch_ahead(dot, quants, sides);
    }
    let bits = repacking.bits();
    let quants = quants.chunks_exact(GROUP_BYTES * bits / 8);
    let groups = &mut room[..quants.len()];
    for (quants, group) in quants.zip(groups.iter_mut()) {
        dot.unpack_repacked(bits, quants, repacking.byte_offset(), group);
    }
    // SAFETY: `Dot::unpack_repacked` has written all of each group, and there are as many as groups of quants.
    unsafe { bytes_of(groups) }
}

/// The bytes of unpacked groups.
///
/// # Safety
/// All of each group is written.
#[inline(always)]
unsafe fn bytes_of(groups: &[UnpackedGroup]) -> &[u8] {
    // SAFETY: by contract; groups lie together.
    unsafe { std::slice::from_raw_parts(groups.as_ptr().cast(), groups.len() * GROUP_BYTES) }
}

/// Prefetches what lies ahead of weights that are unpacked, and their sides.
#[inline(always)]
fn prefetch_ahead<D: Dot>(dot: D, nibbles: &[u8], sides: &[u8]) {
    if D::PREFETCH_FROM.is_some() {
        for line in 0..nibbles.len() / CACHE_LINE {
            dot.prefetch(nibbles.as_ptr().wrapping_add(SINGLE_STREAM_DISTANCE + line * CACHE_LINE));
        }
        for line in 0..=sides.len() / CACHE_LINE {
            dot.prefetch(sides.as_ptr().wrapping_add(sides.len() + line * CACHE_LINE));
        }
    }
}
