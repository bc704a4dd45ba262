//! Keys and values in memory: exact, or narrowed when they are stored.

use std::fmt;

use half::bf16;

use crate::{
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

/// The keys, or the values, of one layer: `[slot][head_dim]`, where a slot is one head of one token.
#[derive(Debug)]
pub struct KvBuffer {
    head_dim: usize,
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
    /// `slots` slots of zeros, which take no memory before they are written; `None` if there is no room for them.
    pub fn zeros(dtype: KvDType, slots: usize, head_dim: usize) -> Option<Self> {
        let len = slots.checked_mul(head_dim)?;
        let elements = match dtype {
            KvDType::F32 => Elements::F32(zeros(len)?),
            KvDType::Bf16 => Elements::Bf16(zeros(len)?),
            KvDType::Int8 => Elements::Int8 { numbers: zeros(len)?, scales: zeros(slots)? },
        };
        Some(Self { head_dim, elements })
    }

    /// Stores a head.
    ///
    /// Int8: the largest magnitude becomes 127; an infinity or NaN makes all of the head NaN, magnitudes below 2^-112
    /// become zero.
    ///
    /// # Panics
    /// If there is no such slot or the head is not as long as the buffer's.
    pub fn write(&mut self, slot: usize, head: &[f32]) {
        assert_eq!(head.len(), self.head_dim, "elements of a head");
        let range = slot * self.head_dim..(slot + 1) * self.head_dim;
        match &mut self.elements {
            Elements::F32(elements) => elements[range].copy_from_slice(head),
            Elements::Bf16(elements) => {
                let target = elements[range].iter_mut();
                target.zip(head).for_each(|(y, &x)| *y = bf16::from_f32(x).to_le_bytes());
            }
            Elements::Int8 { numbers, scales } => scales[slot] = to_8_bits(head, &mut numbers[range]),
        }
    }

    /// Copies `count` slots.
    ///
    /// # Panics
    /// If there are no such slots.
    pub fn copy(&mut self, from: usize, to: usize, count: usize) {
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

    /// `count` slots from `first` on: where their elements begin, and their scales if they have any.
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
    /// What the numbers of each slot are multiplied by; none if that is 1.
    pub scales: &'a [f32],
}

fn to_8_bits(values: &[f32], numbers: &mut [i8]) -> f32 {
    let bits = values.iter().fold(0, |bits: u32, x| bits.max(x.to_bits() & 0x7fff_ffff));
    let magnitude = f32::from_bits(bits);
    if !magnitude.is_finite() || magnitude < TINY {
        numbers.fill(0);
        return if magnitude.is_finite() { 0.0 } else { f32::NAN };
    }
    let inverse = 127.0 / magnitude;
    for (number, x) in numbers.iter_mut().zip(values) {
        *number = (x * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i8;
    }
    magnitude / 127.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::tests::numbers;

    impl KvBuffer {
        /// The elements of a slot, widened.
        pub(crate) fn read(&self, slot: usize) -> Vec<f32> {
            let range = slot * self.head_dim..(slot + 1) * self.head_dim;
            match &self.elements {
                Elements::F32(elements) => elements[range].to_vec(),
                Elements::Bf16(elements) => elements[range].iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
                Elements::Int8 { numbers, scales } => {
                    numbers[range].iter().map(|&n| f32::from(n) * scales[slot]).collect()
                }
            }
        }
    }

    #[test]
    fn heads_are_stored_within_half_a_step_and_neighbours_stay() {
        let mut next = numbers(6);
        for (dtype, steps) in [(KvDType::F32, f32::INFINITY), (KvDType::Bf16, 128.0), (KvDType::Int8, 127.0)] {
            let mut buffer = KvBuffer::zeros(dtype, 5, 20).unwrap();
            assert_eq!((buffer.slots(), buffer.head_dim(), buffer.dtype()), (5, 20, dtype));
            let heads: Vec<Vec<f32>> =
                (0..3).map(|i| (0..20).map(|_| next() * 10f32.powi(20 * i - 20)).collect()).collect();
            for (slot, head) in [3, 0, 4].into_iter().zip(&heads) {
                buffer.write(slot, head);
            }
            for (slot, head) in [3, 0, 4].into_iter().zip(&heads) {
                let largest = head.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                for (x, y) in head.iter().zip(buffer.read(slot)) {
                    assert!((x - y).abs() <= largest / steps * 0.5001, "{dtype}: {x} became {y}");
                }
            }
            assert_eq!(buffer.read(1), [0.0; 20]);
            buffer.copy(3, 1, 2);
            assert_eq!(buffer.read(1), buffer.read(3));
            assert_eq!(buffer.read(2), buffer.read(4));
        }
    }

    #[test]
    fn what_is_no_number_stays_none_and_the_tiniest_is_zero() {
        let mut buffer = KvBuffer::zeros(KvDType::Int8, 1, 4).unwrap();
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
    fn memory_that_is_not_there_is_no_buffer() {
        assert!(KvBuffer::zeros(KvDType::Int8, usize::MAX / 128, 128).is_none());
        assert!(KvBuffer::zeros(KvDType::F32, usize::MAX, 2).is_none());
        assert_eq!([KvDType::F32, KvDType::Bf16, KvDType::Int8].map(|dtype| dtype.head_bytes(128)), [512, 256, 132]);
    }
}
