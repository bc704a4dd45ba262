//! Whatever the bytes of a weight file, reading them ends with tensors that lie in the file, or with an error.
#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

use kaito_model::checkpoint::{Checkpoint, FormatError, StoredTensor, pickle, safetensors, torch};
use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
};

fn fixture(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoint").join(name)).unwrap()
}

/// A change of a file: bytes overwritten, removed or repeated.
#[derive(Debug, Clone)]
enum Change {
    Overwrite(Index, Vec<u8>),
    Remove(Index, usize),
    Repeat(Index, usize),
    Cut(Index),
}

fn change() -> impl Strategy<Value = Change> {
    // Bytes that sit at the edges of lengths, offsets and opcodes.
    let byte = prop_oneof![Just(0u8), Just(0xff), Just(0x7f), Just(0x80), any::<u8>()];
    prop_oneof![
        6 => (any::<Index>(), vec(byte, 1..9)).prop_map(|(at, bytes)| Change::Overwrite(at, bytes)),
        1 => (any::<Index>(), 1..40usize).prop_map(|(at, len)| Change::Remove(at, len)),
        1 => (any::<Index>(), 1..200usize).prop_map(|(at, len)| Change::Repeat(at, len)),
        1 => any::<Index>().prop_map(Change::Cut),
    ]
}

fn apply(mut bytes: Vec<u8>, changes: &[Change]) -> Vec<u8> {
    for change in changes {
        if bytes.is_empty() {
            break;
        }
        let len = bytes.len();
        match change {
            Change::Overwrite(at, new) => {
                let at = at.index(len);
                for (old, new) in bytes[at..].iter_mut().zip(new) {
                    *old = *new;
                }
            }
            Change::Remove(at, count) => {
                let at = at.index(len);
                bytes.drain(at..(at + count).min(len));
            }
            Change::Repeat(at, count) => {
                let at = at.index(len);
                let piece = bytes[at..(at + count).min(len)].to_vec();
                bytes.splice(at..at, piece);
            }
            Change::Cut(at) => bytes.truncate(at.index(len)),
        }
    }
    bytes
}

const OPERATIONS: &[&[u8]] = &[
    b"}",
    b"(",
    b")",
    b"]",
    b"t",
    b"\x85",
    b"\x86",
    b"\x87",
    b"u",
    b"s",
    b"e",
    b"a",
    b"q\0",
    b"h\0",
    b"\x94",
    b"R",
    b"b",
    b"Q",
    b"N",
    b"\x88",
    b".",
    b"K\x02",
    b"J\xff\xff\xff\xff",
    b"\x8a\x09123456789",
    b"X\x07\0\0\0storage",
    b"ctorch\nFloatStorage\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"ccollections\nOrderedDict\n",
];

fn check(file: &[u8], read: Result<Vec<StoredTensor>, FormatError>) -> Result<(), TestCaseError> {
    for tensor in read.unwrap_or_default() {
        prop_assert!(tensor.range.start <= tensor.range.end && tensor.range.end <= file.len(), "{tensor:?}");
        if tensor.strides.is_none() {
            let elements: usize = tensor.shape.iter().product();
            prop_assert_eq!(tensor.range.len(), elements * tensor.element.size, "{:?}", tensor);
        }
    }
    Ok(())
}

/// Asks for every tensor of a file, which copies those that are not in row-major order.
fn read_all(name: &str, file: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(name), file).unwrap();
    if let Ok(Checkpoint::HuggingFace(set)) = Checkpoint::open(dir.path()) {
        for name in set.names() {
            if let Ok(tensor) = set.tensor(name, set.shape(name).unwrap()) {
                assert_eq!(tensor.bytes().len(), tensor.elements() * tensor.dtype().size());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_bytes(bytes in vec(any::<u8>(), 0..300), header in any::<u8>()) {
        check(&bytes, safetensors::parse(&bytes))?;
        let framed = [&[header, 0, 0, 0, 0, 0, 0, 0], bytes.as_slice()].concat();
        check(&framed, safetensors::parse(&framed))?;
        let zip = [b"PK\x03\x04", bytes.as_slice(), b"PK\x05\x06", &bytes].concat();
        check(&zip, torch::parse(&zip))?;
        let _ = pickle::parse(&bytes);
    }

    /// Programs of known opcodes get deeper than random bytes.
    #[test]
    fn random_pickles(operations in vec(select(OPERATIONS), 0..60)) {
        let _ = pickle::parse(&operations.concat());
    }

    #[test]
    fn changed_safetensors(changes in vec(change(), 1..4)) {
        let file = apply(fixture("mistral/model-00003-of-00005.safetensors"), &changes);
        check(&file, safetensors::parse(&file))?;
    }

    #[test]
    fn changed_torch_files(changes in vec(change(), 1..4)) {
        let file = apply(fixture("torch/views.pth"), &changes);
        check(&file, torch::parse(&file))?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn tensors_of_changed_files(changes in vec(change(), 1..3)) {
        read_all("pytorch_model.bin", &apply(fixture("torch/views.pth"), &changes));
        read_all("model.safetensors", &apply(fixture("mistral/model-00003-of-00005.safetensors"), &changes));
    }
}
