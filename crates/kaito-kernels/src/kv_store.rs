//! Storing the keys and values of a step in the KV cache.

use crate::{AttentionSequence, KvBuffer, KvLayout, Rows, ThreadPool, kv::SlotsMut};

/// Up to so many elements are stored by the calling thread: that takes less time than waking another.
const ALONE_ELEMENTS: usize = 16 * 1024;

/// Stores the keys and values of all query tokens of `sequences`, where their page tables say. Row `r` of `qkv` has those of the
/// query token in row `r`; the key, and the value, of KV head `h` begin at element `key_offsets[h]`, and `value_offsets[h]`, of it.
///
/// # Panics
/// If a shape does not fit its data, or a page is not in the pool.
#[allow(clippy::too_many_arguments)]
pub fn store_kv(
    pool: &ThreadPool,
    layout: KvLayout,
    qkv: Rows,
    key_offsets: &[usize],
    value_offsets: &[usize],
    keys: &mut KvBuffer,
    values: &mut KvBuffer,
    sequences: &[AttentionSequence],
) {
    let (heads, head_dim) = (layout.num_kv_heads, keys.head_dim());
    assert_eq!((key_offsets.len(), value_offsets.len()), (heads, heads), "keys and values of {heads} heads");
    assert_eq!([Some(keys.slots()), Some(values.slots())], [layout.slots(); 2], "slots of {layout:?}");
    // Keys come with where their values begin.
    let store = |(mut slots, offset, value_offset): (SlotsMut, usize, Option<usize>)| {
        for sequence in sequences {
            for row in 0..sequence.rows {
                let position = sequence.context - sequence.rows + row;
                let page = sequence.pages[position / layout.page_size] as usize;
                let head = |offset| &qkv.row(sequence.first_row + row, offset + head_dim)[offset..];
                let slot = page * layout.page_size + position % layout.page_size;
                match value_offset {
                    Some(value_offset) => slots.write_key(slot, head(offset), head(value_offset)),
                    None => slots.write(slot, head(offset)),
                }
            }
        }
    };
    let slots = layout.pages * layout.page_size;
    let offsets = key_offsets.iter().zip(value_offsets);
    let keys = keys.parts(slots).zip(offsets).map(|(slots, (&key, &value))| (slots, key, Some(value)));
    let values = values.parts(slots).zip(value_offsets).map(|(slots, &value)| (slots, value, None));
    let parts = keys.chain(values);
    let rows: usize = sequences.iter().map(|sequence| sequence.rows).sum();
    if 2 * rows * heads * head_dim <= ALONE_ELEMENTS {
        parts.for_each(store);
    } else {
        pool.for_each_item(2 * heads, parts, store);
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::{KvDType, KvForm, matmul::tests::numbers};

    /// As they are found slot by slot, with few tokens and with so many that all threads store them.
    #[test]
    fn heads_lie_where_the_page_tables_say_and_the_rest_stays() {
        let (pool, head_dim) = (ThreadPool::new(NonZeroUsize::new(3).unwrap()), 32);
        let layout = KvLayout { num_kv_heads: 3, pages: 40, page_size: 16 };
        let slots = layout.slots().unwrap();
        // Two heads of queries, which are not stored; then keys and values, not in the order of their heads.
        let (key_offsets, value_offsets, width) = ([160, 64, 96], [128, 192, 224], 256);
        let tables: [Vec<u32>; 2] = [(0..20).map(|i| 39 - i).collect(), vec![7, 3]];
        for form in [KvDType::F32.into(), KvDType::Bf16.into(), KvDType::Int8.into(), KvForm::tiles()] {
            for (long, before) in [(1, 17), (300, 5)] {
                let mut next = numbers(9);
                let qkv: Vec<f32> = (0..(long + 4) * (width + 1)).map(|_| next()).collect();
                let sequences = [
                    AttentionSequence { first_row: 1, rows: long, context: before + long, pages: &tables[0] },
                    AttentionSequence { first_row: 1 + long, rows: 3, context: 20, pages: &tables[1] },
                ];
                let buffers = || {
                    let keys = KvBuffer::keys(form, slots, head_dim, layout.page_size).unwrap();
                    (keys, KvBuffer::values(form, slots, head_dim).unwrap())
                };
                let (mut keys, mut values) = buffers();
                let rows = Rows { data: &qkv, stride: width + 1, offset: 1 };
                store_kv(&pool, layout, rows, &key_offsets, &value_offsets, &mut keys, &mut values, &sequences);
                let (mut expected_keys, mut expected_values) = buffers();
                for sequence in &sequences {
                    for (row, position) in (sequence.context - sequence.rows..sequence.context).enumerate() {
                        for head in 0..3 {
                            let slot = layout.slot(head, sequence.pages[position / 16]) + position % 16;
                            let row = &qkv[(sequence.first_row + row) * (width + 1) + 1..];
                            expected_keys.write(slot, &row[key_offsets[head]..][..head_dim]);
                            expected_values.write(slot, &row[value_offsets[head]..][..head_dim]);
                        }
                    }
                }
                for slot in 0..slots {
                    assert_eq!(keys.read(slot), expected_keys.read(slot), "{form:?}: key {slot}");
                    assert_eq!(values.read(slot), expected_values.read(slot), "{form:?}: value {slot}");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "slot 640 is not one of 640")]
    fn a_page_that_is_not_there_is_refused() {
        let pool = ThreadPool::new(NonZeroUsize::MIN);
        let layout = KvLayout { num_kv_heads: 2, pages: 40, page_size: 16 };
        let mut keys = KvBuffer::keys(KvDType::F32, 1280, 4, 16).unwrap();
        let mut values = KvBuffer::values(KvDType::F32, 1280, 4).unwrap();
        let sequences = [AttentionSequence { first_row: 0, rows: 1, context: 1, pages: &[40] }];
        store_kv(&pool, layout, Rows::new(&[0.0; 16], 16), &[0, 4], &[8, 12], &mut keys, &mut values, &sequences);
    }
}
