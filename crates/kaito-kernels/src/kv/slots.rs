//! Writing keys and values where they lie.

use std::mem;

use half::bf16;

use crate::quantized::{ROUND, TINY};

/// Consecutive slots of a [`KvBuffer`], of whole pages of keys, to write.
pub(crate) struct SlotsMut<'a> {
    pub(super) head_dim: usize,
    pub(super) interleaved: usize,
    pub(super) elements: ElementsMut<'a>,
}

pub(super) enum ElementsMut<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [[u8; 2]]),
    Int8 {
        numbers: &'a mut [i8],
        scales: &'a mut [f32],
    },
    #[cfg(any(target_arch = "x86_64", test))]
    Pairs(&'a mut [[u8; 2]]),
}

impl<'a> SlotsMut<'a> {
    /// Takes the first `count` slots away.
    pub(super) fn split_front(&mut self, count: usize) -> SlotsMut<'a> {
        let len = count * self.head_dim;
        let elements = match &mut self.elements {
            ElementsMut::F32(elements) => ElementsMut::F32(split_front(elements, len)),
            ElementsMut::Bf16(elements) => ElementsMut::Bf16(split_front(elements, len)),
            ElementsMut::Int8 { numbers, scales } => {
                ElementsMut::Int8 { numbers: split_front(numbers, len), scales: split_front(scales, count) }
            }
            #[cfg(any(target_arch = "x86_64", test))]
            ElementsMut::Pairs(elements) => ElementsMut::Pairs(split_front(elements, len)),
        };
        SlotsMut { head_dim: self.head_dim, interleaved: self.interleaved, elements }
    }

    fn slots(&self) -> usize {
        let len = match &self.elements {
            ElementsMut::F32(elements) => elements.len(),
            ElementsMut::Bf16(elements) => elements.len(),
            ElementsMut::Int8 { numbers, .. } => numbers.len(),
            #[cfg(any(target_arch = "x86_64", test))]
            ElementsMut::Pairs(elements) => elements.len(),
        };
        len.checked_div(self.head_dim).unwrap_or(0)
    }

    /// Stores the key of a head, whose value is stored beside it: see [`KvBuffer`](super::KvBuffer).
    ///
    /// # Panics
    /// As [`SlotsMut::write`], which says how numbers are narrowed.
    pub(crate) fn write_key(&mut self, slot: usize, key: &[f32], value: &[f32]) {
        #[cfg(any(target_arch = "x86_64", test))]
        if matches!(self.elements, ElementsMut::Pairs(_)) && !are_finite_bf16(value) {
            self.check(slot, key);
            return self.write_pairs(slot, std::iter::repeat_n(f32::NAN, key.len()));
        }
        let _ = value;
        self.write(slot, key);
    }

    /// Stores the key, or value, of a head.
    ///
    /// Int8: the largest magnitude becomes 127; an infinity or NaN makes all of the head NaN, magnitudes below 2^-112
    /// become zero. Values in pairs: one that is too large for bf16, infinite or NaN makes all of the head zeros.
    ///
    /// # Panics
    /// If there is no such slot or the head is not as long as the buffer's.
    pub(crate) fn write(&mut self, slot: usize, head: &[f32]) {
        self.check(slot, head);
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
            #[cfg(any(target_arch = "x86_64", test))]
            ElementsMut::Pairs(_) => {
                if self.interleaved == 1 && !are_finite_bf16(head) {
                    self.write_pairs(slot, std::iter::repeat_n(0.0, head.len()));
                } else {
                    self.write_pairs(slot, head.iter().copied());
                }
            }
        }
    }

    fn check(&self, slot: usize, head: &[f32]) {
        assert_eq!(head.len(), self.head_dim, "elements of a head");
        assert!(slot < self.slots(), "slot {slot} is not one of {}", self.slots());
    }

    /// Stores a head in pairs, if the elements lie so.
    #[cfg(any(target_arch = "x86_64", test))]
    fn write_pairs(&mut self, slot: usize, head: impl Iterator<Item = f32>) {
        let places = Pairs::of(slot, self.head_dim, self.interleaved);
        let ElementsMut::Pairs(elements) = &mut self.elements else { return };
        for (d, x) in head.enumerate() {
            elements[places.element(d)] = bf16::from_f32(x).to_le_bytes();
        }
    }
}

/// Where the elements of a slot lie, in pairs.
#[cfg(any(target_arch = "x86_64", test))]
pub(super) struct Pairs {
    first: usize,
    /// From one element of two to the other, and from one two to the next.
    steps: (usize, usize),
}

#[cfg(any(target_arch = "x86_64", test))]
impl Pairs {
    pub(super) fn of(slot: usize, head_dim: usize, interleaved: usize) -> Self {
        if interleaved == 1 {
            Self { first: slot / 2 * 2 * head_dim + slot % 2, steps: (2, 4) }
        } else {
            let within = slot % interleaved;
            Self { first: (slot - within) * head_dim + 2 * within, steps: (1, 2 * interleaved) }
        }
    }

    pub(super) fn element(&self, d: usize) -> usize {
        self.first + d / 2 * self.steps.1 + d % 2 * self.steps.0
    }
}

/// Whether all numbers are finite after they are rounded to bf16, the greatest of which is 2^128 - 2^120.
#[cfg(any(target_arch = "x86_64", test))]
fn are_finite_bf16(numbers: &[f32]) -> bool {
    const ROUNDED_TO_INFINITY: u32 = 0x7f7f_8000;
    numbers.iter().all(|x| x.abs().to_bits() < ROUNDED_TO_INFINITY)
}

fn split_front<'a, T>(slice: &mut &'a mut [T], len: usize) -> &'a mut [T] {
    let (front, rest) = mem::take(slice).split_at_mut(len);
    *slice = rest;
    front
}

/// Where a slot's first element is, if the elements of `interleaved` consecutive slots are interleaved.
pub(super) fn first_element(slot: usize, head_dim: usize, interleaved: usize) -> usize {
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
