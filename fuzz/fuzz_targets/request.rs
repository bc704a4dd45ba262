//! A request's body of any bytes: a request, or a client's error in one sentence.
#![no_main]

use kaito_server::dialect::{Endpoint, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    for endpoint in [Endpoint::Generate, Endpoint::Chat] {
        if let Err(error) = parse(endpoint, body) {
            assert!([400, 422].contains(&error.status().as_u16()), "{error:?}");
            assert!(error.detail().len() < 1000 && error.detail().ends_with(['.', '?', '!']), "{error:?}");
        }
    }
});
