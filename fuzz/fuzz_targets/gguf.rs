//! A GGUF file of any bytes: an error, or tensors that lie inside it and values that can be read.
#![no_main]

use kaito_model::checkpoint::gguf::{self, Value};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let Ok(contents) = gguf::parse(file) else { return };
    for tensor in contents.tensors {
        let bytes = file.get(tensor.range.clone()).map(<[u8]>::len);
        assert_eq!(bytes, tensor.element.bytes_of(&tensor.shape), "{tensor:?}");
    }
    for (_, value) in contents.metadata.below("") {
        if let Value::Array(list) = value {
            assert_eq!(list.iter().count(), list.len(), "{value}");
        }
    }
});
