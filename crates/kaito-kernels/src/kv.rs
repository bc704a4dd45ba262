//! The KV cache's memory: keys and values, exact or narrowed when they are stored.

use std::{fmt, mem};

use half::bf16;

use crate::{
    matmul::element::{Bf16, Element, F32, I8},
    quantized::{ROUND, TINY},
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
}

impl KvBuffer {
    /// Keys: `slots` slots of zeros, `page_slots` of which are a page of one head. They take no memory before they are
    /// written; `None` if there is no room for them.
    ///
    /// # Panics
    /// If the slots are not whole pages.
    pub fn keys(dtype: KvDType, slots: usize, head_dim: usize, page_slots: usize) -> Option<Self> {
        assert!(page_slots > 0 && slots.is_multiple_of(page_slots), "{slots} slots in pages of {page_slots}");
        Self::zeros(dtype, slots, head_dim, page_slots)
    }

    /// Values: `slots` slots of zeros, as for [`KvBuffer::keys`].
    pub fn values(dtype: KvDType, slots: usize, head_dim: usize) -> Option<Self> {
        Self::zeros(dtype, slots, head_dim, 1)
    }

    fn zeros(dtype: KvDType, slots: usize, head_dim: usize, interleaved: usize) -> Option<Self> {
        let len = slots.checked_mul(head_dim)?;
        let elements = match dtype {
            KvDType::F32 => Elements::F32(zeros(len)?),
            KvDType::Bf16 => Elements::Bf16(zeros(len)?),
            KvDType::Int8 => Elements::Int8 { numbers: zeros(len)?, scales: zeros(slots)? },
        };
        Some(Self { head_dim, interleaved, elements })
    }

    /// Stores the key, or value, of a head, see [`SlotsMut::write`].
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
    /// If there are no such slots, or they are parts of pages of keys.
    pub fn copy(&mut self, from: usize, to: usize, count: usize) {
        let whole = [from, to, count].iter().all(|slots| slots.is_multiple_of(self.interleaved));
        assert!(whole, "{count} slots from {from} to {to} are not whole pages of {}", self.interleaved);
        let range = from * self.head_dim..(from + count) * self.head_dim;
        let target = to * self.head_dim;
        match &mut self.elements {
            Elements::F32(elements) => elements.copy_within(range, target),
            Elements::Bf16(elements) => elements.copy_within(range, target),
            Elements::Int8 { numbers, scales } => {
                numbers.copy_within(range, target);
                scales.copy_within(from..from + count, to);
            }
        }
    }

    /// Number of slots.
    pub fn slots(&self) -> usize {
        let len = match &self.elements {
            Elements::F32(elements) => elements.len(),
            Elements::Bf16(elements) => elements.len(),
            Elements::Int8 { numbers, .. } => numbers.len(),
        };
        len.checked_div(self.head_dim).unwrap_or(0)
    }

    /// Elements of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Element type.
    pub fn dtype(&self) -> KvDType {
        match &self.elements {
            Elements::F32(_) => KvDType::F32,
            Elements::Bf16(_) => KvDType::Bf16,
            Elements::Int8 { .. } => KvDType::Int8,
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

/// Consecutive slots of a [`KvBuffer`], of whole pages of keys, to write.
pub(crate) struct SlotsMut<'a> {
    head_dim: usize,
    interleaved: usize,
    elements: ElementsMut<'a>,
}

enum ElementsMut<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [[u8; 2]]),
    Int8 { numbers: &'a mut [i8], scales: &'a mut [f32] },
}

impl<'a> SlotsMut<'a> {
    /// Takes the first `count` slots away.
    fn split_front(&mut self, count: usize) -> SlotsMut<'a> {
        let len = count * self.head_dim;
        let elements = match &mut self.elements {
            ElementsMut::F32(elements) => ElementsMut::F32(split_front(elements, len)),
            ElementsMut::Bf16(elements) => ElementsMut::Bf16(split_front(elements, len)),
            ElementsMut::Int8 { numbers, scales } => {
                ElementsMut::Int8 { numbers: split_front(numbers, len), scales: split_front(scales, count) }
            }
        };
        SlotsMut { head_dim: self.head_dim, interleaved: self.interleaved, elements }
    }

    fn slots(&self) -> usize {
        let len = match &self.elements {
            ElementsMut::F32(elements) => elements.len(),
            ElementsMut::Bf16(elements) => elements.len(),
            ElementsMut::Int8 { numbers, .. } => numbers.len(),
        };
        len.checked_div(self.head_dim).unwrap_or(0)
    }

    /// Stores the key, or value, of a head.
    ///
    /// Int8: the largest magnitude becomes 127; an infinity or NaN makes all of the head NaN, magnitudes below 2^-112
    /// become zero.
    ///
    /// # Panics
    /// If there is no such slot or the head is not as long as the buffer's.
    pub(crate) fn write(&mut self, slot: usize, head: &[f32]) {
        assert_eq!(head.len(), self.head_dim, "elements of a head");
        assert!(slot < self.slots(), "slot {slot} is not one of {}", self.slots());
        let (first, step) = (first_element(slot, self.head_dim, self.interleaved), self.interleaved);
        match &mut self.elements {
            ElementsMut::F32(elements) => {
                elements[first..].iter_mut().step_by(step).zip(head).for_each(|(y, &x)| *y = x);
            }
            ElementsMut::Bf16(elements) => {
                let target = elements[first..].iter_mut().step_by(step);
                target.zip(head).for_each(|(y, &x)| *y = bf16::from_f32(x).to_le_bytes());
            }
            ElementsMut::Int8 { numbers, scales } => {
                let (scale, inverse) = scale_of_8_bits(head);
                scales[slot] = scale;
                for (number, x) in numbers[first..].iter_mut().step_by(step).zip(head) {
                    *number = (x * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i8;
                }
            }
        }
    }
}

fn split_front<'a, T>(slice: &mut &'a mut [T], len: usize) -> &'a mut [T] {
    let (front, rest) = mem::take(slice).split_at_mut(len);
    *slice = rest;
    front
}

/// Where a slot's first element is, if the elements of `interleaved` consecutive slots are interleaved.
fn first_element(slot: usize, head_dim: usize, interleaved: usize) -> usize {
    let within = slot % interleaved;
    (slot - within) * head_dim + within
}

/// What the numbers of a head are multiplied by when they are read, and when they are stored.
fn scale_of_8_bits(head: &[f32]) -> (f32, f32) {
    let bits = head.iter().fold(0, |bits: u32, x| bits.max(x.to_bits() & 0x7fff_ffff));
    let magnitude = f32::from_bits(bits);
    if !magnitude.is_finite() {
        (f32::NAN, 0.0)
    } else if magnitude < TINY {
        (0.0, 0.0)
    } else {
        (magnitude / 127.0, 127.0 / magnitude)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::tests::numbers;

    impl KvBuffer {
        /// The elements of a slot, widened.
        pub(crate) fn read(&self, slot: usize) -> Vec<f32> {
            let element = |d: usize| {
                let place = first_element(slot, self.head_dim, self.interleaved) + d * self.interleaved;
                match &self.elements {
                    Elements::F32(elements) => elements[place],
                    Elements::Bf16(elements) => bf16::from_le_bytes(elements[place]).to_f32(),
                    Elements::Int8 { numbers, scales } => f32::from(numbers[place]) * scales[slot],
                }
            };
            (0..self.head_dim).map(element).collect()
        }
    }

    #[test]
    fn heads_are_stored_within_half_a_step_and_neighbours_stay() {
        let mut next = numbers(6);
        let steps = [(KvDType::F32, f32::INFINITY), (KvDType::Bf16, 128.0), (KvDType::Int8, 127.0)];
        for ((dtype, steps), page_slots) in steps.into_iter().flat_map(|case| [1, 2].map(|slots| (case, slots))) {
            let mut buffer = KvBuffer::zeros(dtype, 6, 20, page_slots).unwrap();
            assert_eq!((buffer.slots(), buffer.head_dim(), buffer.dtype()), (6, 20, dtype));
            let heads: Vec<Vec<f32>> =
                (0..3).map(|i| (0..20).map(|_| next() * 10f32.powi(20 * i - 20)).collect()).collect();
            for (slot, head) in [4, 0, 5].into_iter().zip(&heads) {
                buffer.write(slot, head);
            }
            for (slot, head) in [4, 0, 5].into_iter().zip(&heads) {
                let largest = head.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                for (x, y) in head.iter().zip(buffer.read(slot)) {
                    assert!((x - y).abs() <= largest / steps * 0.5001, "{dtype}: {x} became {y}");
                }
            }
            assert_eq!(buffer.read(1), [0.0; 20]);
            buffer.copy(4, 2, 2);
            assert_eq!(buffer.read(2), buffer.read(4));
            assert_eq!(buffer.read(3), buffer.read(5));
            assert_eq!(buffer.read(1), [0.0; 20]);
        }
    }

    #[test]
    fn keys_of_a_page_lie_element_by_element() {
        let mut keys = KvBuffer::keys(KvDType::F32, 4, 3, 2).unwrap();
        for slot in 0..4 {
            keys.write(slot, &[0.0, 10.0, 20.0].map(|d| d + slot as f32));
        }
        let Elements::F32(elements) = &keys.elements else { panic!() };
        assert_eq!(**elements, [0.0, 1.0, 10.0, 11.0, 20.0, 21.0, 2.0, 3.0, 12.0, 13.0, 22.0, 23.0]);
    }

    #[test]
    fn a_slot_past_the_end_is_refused_and_not_left_out() {
        for dtype in [KvDType::F32, KvDType::Bf16, KvDType::Int8] {
            for page_slots in [1, 2] {
                let mut buffer = KvBuffer::zeros(dtype, 4, 3, page_slots).unwrap();
                let written = std::panic::catch_unwind(move || buffer.write(4, &[1.0; 3]));
                assert!(written.is_err(), "{dtype}, pages of {page_slots}");
            }
        }
    }

    #[test]
    fn nan_and_infinity_become_nan_and_the_tiniest_number_zero() {
        let mut buffer = KvBuffer::values(KvDType::Int8, 1, 4).unwrap();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            buffer.write(0, &[1.0, bad, 0.0, 2.0]);
            assert!(buffer.read(0).iter().all(|x| x.is_nan()));
        }
        buffer.write(0, &[f32::from_bits(1), 0.0, -1e-38, 0.0]);
        assert_eq!(buffer.read(0), [0.0; 4]);
        buffer.write(0, &[f32::MAX, 0.0, f32::MIN, 1.0]);
        assert!(buffer.read(0)[0] > 3.4e38 && buffer.read(0)[2] < -3.4e38);
    }

    #[test]
    fn a_buffer_that_does_not_fit_in_memory_is_none() {
        assert!(KvBuffer::values(KvDType::Int8, usize::MAX / 128, 128).is_none());
        assert!(KvBuffer::keys(KvDType::F32, usize::MAX, 2, 1).is_none());
        assert_eq!([KvDType::F32, KvDType::Bf16, KvDType::Int8].map(|dtype| dtype.head_bytes(128)), [512, 256, 132]);
    }
}
