//! The KV cache's memory: keys and values, exact or narrowed when they are stored.

mod form;
mod slots;

use std::fmt;

pub use self::form::KvForm;
#[cfg(any(target_arch = "x86_64", test))]
pub(crate) use self::form::TILE_ELEMENTS;
#[cfg(any(target_arch = "x86_64", test))]
pub(crate) use self::form::fits_tiles;
use self::slots::ElementsMut;
pub(crate) use self::{form::Form, slots::SlotsMut};
#[cfg(any(target_arch = "x86_64", test))]
use crate::amx::Unit;
use crate::{
    matmul::element::{Bf16, Element, F32, I8},
    zeros::zeros,
};

/// Element type of stored keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KvDType {
    /// As they were computed.
    #[default]
    F32,
    /// Rounded to the upper half of 32 bits.
    Bf16,
    /// 8 bits, and an f32 scale for each head of a token.
    Int8,
}

impl KvDType {
    /// Bytes of one head of a token, key or value.
    pub fn head_bytes(self, head_dim: usize) -> usize {
        match self {
            KvDType::F32 => head_dim * 4,
            KvDType::Bf16 => head_dim * 2,
            KvDType::Int8 => head_dim + size_of::<f32>(),
        }
    }
}

impl fmt::Display for KvDType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KvDType::F32 => "f32",
            KvDType::Bf16 => "bf16",
            KvDType::Int8 => "int8",
        })
    }
}

/// An element type of keys and values, known when code is compiled.
pub(crate) trait KvElement: Element {
    const DTYPE: KvDType;
}

impl KvElement for F32 {
    const DTYPE: KvDType = KvDType::F32;
}

impl KvElement for Bf16 {
    const DTYPE: KvDType = KvDType::Bf16;
}

impl KvElement for I8 {
    const DTYPE: KvDType = KvDType::Int8;
}

/// The keys, or the values, of one layer of the KV cache. A slot is one head of one token.
///
/// Values are `[slot][head_dim]`: they are added up, so that vectors hold elements of one of them. Keys are multiplied by
/// a query and each product's elements are added up: they are `[page][head_dim][slot of the page]`, so that vectors hold
/// one element of several of them and no sum goes across a vector.
///
/// As operands of tile registers ([`KvForm`]), whose products add up pairs, two consecutive elements of a key lie side by side, `[page][head_dim / 2][slot of
/// the page][2]`, and the same element of two consecutive values, `[slot / 2][head_dim][2]`. Such a value of which an element is not finite is
/// stored as zeros, and its key as NaN: so what attends to it is not a number, and what does not can multiply it by 0.
#[derive(Debug)]
pub struct KvBuffer {
    head_dim: usize,
    /// Consecutive slots whose elements are interleaved: a page of keys; 1 for values.
    interleaved: usize,
    elements: Elements,
}

#[derive(Debug)]
enum Elements {
    F32(Vec<f32>),
    /// Little-endian, as weights are.
    Bf16(Vec<[u8; 2]>),
    /// From -127 to 127, and a scale for each slot.
    Int8 {
        numbers: Vec<i8>,
        scales: Vec<f32>,
    },
    /// bf16 in pairs.
    #[cfg(any(target_arch = "x86_64", test))]
    Pairs(Unit, Vec<[u8; 2]>),
}

impl KvBuffer {
    /// Keys: `slots` slots of zeros, `page_slots` of which are a page of one head. They take no memory before they are
    /// written; `None` if there is no room for them.
    ///
    /// # Panics
    /// If the slots are not whole pages, or the form is not one of such heads.
    pub fn keys(form: impl Into<KvForm>, slots: usize, head_dim: usize, page_slots: usize) -> Option<Self> {
        assert!(page_slots > 0 && slots.is_multiple_of(page_slots), "{slots} slots in pages of {page_slots}");
        Self::zeros(form.into(), slots, head_dim, page_slots)
    }

    /// Values: `slots` slots of zeros, as for [`KvBuffer::keys`].
    ///
    /// # Panics
    /// If the form is not one of such heads, or of so many slots.
    pub fn values(form: impl Into<KvForm>, slots: usize, head_dim: usize) -> Option<Self> {
        Self::zeros(form.into(), slots, head_dim, 1)
    }

    fn zeros(form: KvForm, slots: usize, head_dim: usize, interleaved: usize) -> Option<Self> {
        let len = slots.checked_mul(head_dim)?;
        let elements = match form.0 {
            Form::Vectors(KvDType::F32) => Elements::F32(zeros(len)?),
            Form::Vectors(KvDType::Bf16) => Elements::Bf16(zeros(len)?),
            Form::Vectors(KvDType::Int8) => Elements::Int8 { numbers: zeros(len)?, scales: zeros(slots)? },
            #[cfg(any(target_arch = "x86_64", test))]
            Form::Tiles(unit) => {
                assert!(fits_tiles(head_dim) && slots.is_multiple_of(2), "{slots} slots of {head_dim} in pairs");
                Elements::Pairs(unit, zeros(len)?)
            }
        };
        Some(Self { head_dim, interleaved, elements })
    }

    /// Stores the key, or value, of a head.
    ///
    /// # Panics
    /// If there is no such slot or the head is not as long as the buffer's.
    pub fn write(&mut self, slot: usize, head: &[f32]) {
        self.slots_mut().write(slot, head);
    }

    fn slots_mut(&mut self) -> SlotsMut<'_> {
        let elements = match &mut self.elements {
            Elements::F32(elements) => ElementsMut::F32(elements),
            Elements::Bf16(elements) => ElementsMut::Bf16(elements),
            Elements::Int8 { numbers, scales } => ElementsMut::Int8 { numbers, scales },
            #[cfg(any(target_arch = "x86_64", test))]
            Elements::Pairs(_, elements) => ElementsMut::Pairs(elements),
        };
        SlotsMut { head_dim: self.head_dim, interleaved: self.interleaved, elements }
    }

    /// The slots in parts of `count`, whole pages of keys, which different threads may write.
    pub(crate) fn parts(&mut self, count: usize) -> impl Iterator<Item = SlotsMut<'_>> {
        let parts = self.slots().checked_div(count).unwrap_or(0);
        let mut rest = self.slots_mut();
        (0..parts).map(move |_| rest.split_front(count))
    }

    /// Copies `count` slots.
    ///
    /// # Panics
    /// If there are no such slots, or they are parts of pages of keys, or of pairs.
    pub fn copy(&mut self, from: usize, to: usize, count: usize) {
        let together = match &self.elements {
            Elements::F32(_) | Elements::Bf16(_) | Elements::Int8 { .. } => self.interleaved,
            #[cfg(any(target_arch = "x86_64", test))]
            Elements::Pairs(..) => self.interleaved.max(2),
        };
        let whole = [from, to, count].iter().all(|slots| slots.is_multiple_of(together));
        assert!(whole, "{count} slots from {from} to {to} are not whole pages of {together}");
        let range = from * self.head_dim..(from + count) * self.head_dim;
        let target = to * self.head_dim;
        match &mut self.elements {
            Elements::F32(elements) => elements.copy_within(range, target),
            Elements::Bf16(elements) => elements.copy_within(range, target),
            Elements::Int8 { numbers, scales } => {
                numbers.copy_within(range, target);
                scales.copy_within(from..from + count, to);
            }
            #[cfg(any(target_arch = "x86_64", test))]
            Elements::Pairs(_, elements) => elements.copy_within(range, target),
        }
    }

    /// Number of slots.
    pub fn slots(&self) -> usize {
        let len = match &self.elements {
            Elements::F32(elements) => elements.len(),
            Elements::Bf16(elements) => elements.len(),
            Elements::Int8 { numbers, .. } => numbers.len(),
            #[cfg(any(target_arch = "x86_64", test))]
            Elements::Pairs(_, elements) => elements.len(),
        };
        len.checked_div(self.head_dim).unwrap_or(0)
    }

    /// Elements of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Element type.
    pub fn dtype(&self) -> KvDType {
        self.form().dtype()
    }

    /// How the elements lie.
    pub fn form(&self) -> KvForm {
        match &self.elements {
            Elements::F32(_) => KvDType::F32.into(),
            Elements::Bf16(_) => KvDType::Bf16.into(),
            Elements::Int8 { .. } => KvDType::Int8.into(),
            #[cfg(any(target_arch = "x86_64", test))]
            Elements::Pairs(unit, _) => KvForm(Form::Tiles(*unit)),
        }
    }

    /// Slots that are a page of keys; 1 for values.
    pub(crate) fn interleaved(&self) -> usize {
        self.interleaved
    }

    /// The `count` slots of a page from `first` on: where their elements begin, and their scales if they have any.
    pub(crate) fn heads(&self, first: usize, count: usize) -> Heads<'_> {
        let range = first * self.head_dim..(first + count) * self.head_dim;
        match &self.elements {
            Elements::F32(elements) => Heads { start: elements[range].as_ptr().cast(), scales: &[] },
            Elements::Bf16(elements) => Heads { start: elements[range].as_ptr().cast(), scales: &[] },
            Elements::Int8 { numbers, scales } => {
                Heads { start: numbers[range].as_ptr().cast(), scales: &scales[first..first + count] }
            }
            #[cfg(any(target_arch = "x86_64", test))]
            Elements::Pairs(_, elements) => Heads { start: elements[range].as_ptr().cast(), scales: &[] },
        }
    }
}

/// Consecutive slots of a [`KvBuffer`].
#[derive(Clone, Copy)]
pub(crate) struct Heads<'a> {
    pub start: *const u8,
    /// What the numbers of each slot are multiplied by; empty if that is 1.
    pub scales: &'a [f32],
}

#[cfg(test)]
mod tests;
