//! The weights that are multiplied by all tokens of a part at a time.

use std::{marker::PhantomData, mem::MaybeUninit};

use super::{
    QuantizedRef, SCALE_BYTES,
    dot::{Dot, Stored, UnpackedNibbles},
};
use crate::simd::STREAMS;

/// Groups of a strip whose nibbles are unpacked once for all tiles: they stay in the first level cache.
pub(super) const UNPACKED_GROUPS: usize = 8;

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

/// Room for the unpacked nibbles of a strip.
#[repr(align(64))]
pub(super) struct Unpacked([MaybeUninit<u8>; 2 * UNPACKED_GROUPS * UnpackedNibbles::BYTES]);

impl Unpacked {
    pub(super) fn new() -> Self {
        Self([const { MaybeUninit::uninit() }; 2 * UNPACKED_GROUPS * UnpackedNibbles::BYTES])
    }
}

/// The weights of a strip: `groups` groups, in the form `W`, of each of some blocks of rows, and their scales.
/// [`StripWeights::push`] checks that they are there.
pub(super) struct StripWeights<'a, W> {
    quants: [*const u8; STREAMS],
    scales: [*const u8; STREAMS],
    blocks: usize,
    groups: usize,
    form: PhantomData<&'a W>,
}

impl<'a, W: Stored> StripWeights<'a, W> {
    fn new(groups: usize) -> Self {
        let none = [std::ptr::null(); STREAMS];
        Self { quants: none, scales: none, blocks: 0, groups, form: PhantomData }
    }

    /// Adds the groups of a block.
    ///
    /// # Panics
    /// If the bytes are not those of as many groups, or there are [`STREAMS`] blocks already.
    fn push(&mut self, quants: &'a [u8], scales: &'a [u8]) {
        assert_eq!((quants.len(), scales.len()), (self.groups * W::BYTES, self.groups * SCALE_BYTES));
        self.quants[self.blocks] = quants.as_ptr();
        self.scales[self.blocks] = scales.as_ptr();
        self.blocks += 1;
    }

    /// Weights that lie in the matrix in this form.
    #[inline(always)]
    pub(super) fn of(weight: QuantizedRef<'a>, strip: Strip) -> Self {
        let mut weights = Self::new(strip.groups);
        for i in 0..strip.blocks {
            let block = strip.block + i * strip.apart;
            let quants = weight.quants(block, strip.group, strip.groups);
            weights.push(quants, weight.scales(block, strip.group, strip.groups));
        }
        weights
    }

    /// Groups of each block.
    #[inline(always)]
    pub(super) fn groups(&self) -> usize {
        self.groups
    }

    /// Where the groups of the first `R` blocks begin, and where their scales do.
    ///
    /// # Panics
    /// If there are fewer blocks.
    #[inline(always)]
    pub(super) fn starts<const R: usize>(&self) -> ([*const u8; R], [*const u8; R]) {
        assert!(R <= self.blocks);
        let (mut quants, mut scales) = ([self.quants[0]; R], [self.scales[0]; R]);
        quants.copy_from_slice(&self.quants[..R]);
        scales.copy_from_slice(&self.scales[..R]);
        (quants, scales)
    }
}

impl<'a> StripWeights<'a, UnpackedNibbles> {
    /// Weights whose nibbles are unpacked into `room`, once for all tiles of tokens.
    #[inline(always)]
    pub(super) fn unpacked<D: Dot>(dot: D, weight: QuantizedRef<'a>, strip: Strip, room: &'a mut Unpacked) -> Self {
        let mut weights = Self::new(strip.groups);
        let rooms = room.0.chunks_exact_mut(UNPACKED_GROUPS * UnpackedNibbles::BYTES);
        for (i, room) in rooms.take(strip.blocks).enumerate() {
            let block = strip.block + i * strip.apart;
            let packed = weight.quants(block, strip.group, strip.groups).as_chunks().0;
            let room = &mut room[..strip.groups * UnpackedNibbles::BYTES];
            for (source, target) in packed.iter().zip(room.as_chunks_mut().0) {
                dot.unpack(source, target);
            }
            // SAFETY: `unpack` has written each of the groups, which are all of this.
            let quants = unsafe { room.assume_init_ref() };
            weights.push(quants, weight.scales(block, strip.group, strip.groups));
        }
        weights
    }
}
