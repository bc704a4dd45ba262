use half::bf16;

use super::{
    slots::{Pairs, first_element},
    *,
};
use crate::matmul::tests::numbers;

impl KvBuffer {
    /// Stores the key of a head, whose value is stored beside it.
    pub(crate) fn write_key(&mut self, slot: usize, key: &[f32], value: &[f32]) {
        self.slots_mut().write_key(slot, key, value);
    }

    /// The elements of a slot, widened.
    pub(crate) fn read(&self, slot: usize) -> Vec<f32> {
        let element = |d: usize| {
            let place = first_element(slot, self.head_dim, self.interleaved) + d * self.interleaved;
            let pairs = Pairs::of(slot, self.head_dim, self.interleaved);
            match &self.elements {
                Elements::F32(elements) => elements[place],
                Elements::Bf16(elements) => bf16::from_le_bytes(elements[place]).to_f32(),
                Elements::Int8 { numbers, scales } => f32::from(numbers[place]) * scales[slot],
                Elements::Pairs(_, elements) => bf16::from_le_bytes(elements[pairs.element(d)]).to_f32(),
            }
        };
        (0..self.head_dim).map(element).collect()
    }
}

#[test]
fn heads_are_stored_within_half_a_step_and_neighbours_stay() {
    let mut next = numbers(6);
    let steps = [
        (KvDType::F32.into(), f32::INFINITY, 20),
        (KvDType::Bf16.into(), 128.0, 20),
        (KvDType::Int8.into(), 127.0, 20),
        (KvForm::tiles(), 128.0, 32),
    ];
    for ((form, steps, dim), page_slots) in steps.into_iter().flat_map(|case| [1, 2].map(|slots| (case, slots))) {
        let mut buffer = KvBuffer::zeros(form, 6, dim, page_slots).unwrap();
        assert_eq!((buffer.slots(), buffer.head_dim(), buffer.form()), (6, dim, form));
        let heads: Vec<Vec<f32>> =
            (0..3).map(|i| (0..dim).map(|_| next() * 10f32.powi(20 * i - 20)).collect()).collect();
        for (slot, head) in [4, 0, 5].into_iter().zip(&heads) {
            buffer.write(slot, head);
        }
        for (slot, head) in [4, 0, 5].into_iter().zip(&heads) {
            let largest = head.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            for (x, y) in head.iter().zip(buffer.read(slot)) {
                assert!((x - y).abs() <= largest / steps * 0.5001, "{form:?}: {x} became {y}");
            }
        }
        assert_eq!(buffer.read(1), vec![0.0; dim]);
        buffer.copy(4, 2, 2);
        assert_eq!(buffer.read(2), buffer.read(4));
        assert_eq!(buffer.read(3), buffer.read(5));
        assert_eq!(buffer.read(1), vec![0.0; dim]);
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

/// Rows of 32-bit units, each two numbers that are multiplied together.
#[test]
fn elements_of_keys_and_tokens_of_values_lie_in_pairs_as_operands() {
    let (mut keys, mut values) =
        (KvBuffer::keys(KvForm::tiles(), 4, 32, 2).unwrap(), KvBuffer::values(KvForm::tiles(), 4, 32).unwrap());
    for slot in 0..4 {
        let head: Vec<f32> = (0..32).map(|d| (d * 4 + slot) as f32).collect();
        keys.write(slot, &head);
        values.write(slot, &head);
    }
    let numbers = |buffer: &KvBuffer| -> Vec<f32> {
        let Elements::Pairs(_, elements) = &buffer.elements else { panic!("{:?}", buffer.form()) };
        elements.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect()
    };
    // Elements 0 and 1 of the page's slots 0 and 1, elements 2 and 3 of both, ..; elements 0 of slots 0 and 1, elements 1, ..
    assert_eq!(numbers(&keys)[..8], [0.0, 4.0, 1.0, 5.0, 8.0, 12.0, 9.0, 13.0]);
    assert_eq!(numbers(&keys)[64..68], [2.0, 6.0, 3.0, 7.0]);
    assert_eq!(numbers(&values)[..6], [0.0, 1.0, 4.0, 5.0, 8.0, 9.0]);
    assert_eq!(numbers(&values)[64..68], [2.0, 3.0, 6.0, 7.0]);
}

#[test]
fn a_slot_past_the_end_is_refused_and_not_left_out() {
    for dtype in [KvDType::F32, KvDType::Bf16, KvDType::Int8] {
        for page_slots in [1, 2] {
            let mut buffer = KvBuffer::zeros(dtype.into(), 4, 3, page_slots).unwrap();
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
