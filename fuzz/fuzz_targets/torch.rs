//! A file of `torch.save` of any bytes, or the pickle in it alone: an error, or tensors that lie inside the file.
#![no_main]

use kaito_model::checkpoint::{pickle, torch};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    if !file.starts_with(b"PK") {
        let _ = pickle::parse(file);
    }
    for tensor in torch::parse(file).unwrap_or_default() {
        let span = &file[tensor.range.clone()];
        let Some(strides) = &tensor.strides else {
            let elements: usize = tensor.shape.iter().product();
            assert_eq!(span.len(), elements * tensor.element.size, "{tensor:?}");
            continue;
        };
        // The element that lies farthest ends the span.
        let last: usize = tensor.shape.iter().zip(strides).map(|(dim, stride)| (dim - 1) * stride).sum();
        assert_eq!(span.len(), (last + 1) * tensor.element.size, "{tensor:?}");
    }
});
