//! A safetensors file of any bytes: an error, or tensors that lie inside it.
#![no_main]

use kaito_model::checkpoint::safetensors;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    for tensor in safetensors::parse(file).unwrap_or_default() {
        let elements: usize = tensor.shape.iter().product();
        assert_eq!(file[tensor.range.clone()].len(), elements * tensor.element.size, "{tensor:?}");
    }
});
