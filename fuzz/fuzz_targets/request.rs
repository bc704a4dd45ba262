//! A request's body of any bytes: a request, or a client's error in one sentence.
#![no_main]
#![allow(clippy::expect_used, clippy::panic, reason = "a finding is a panic")]

use kaito_server::dialect::parse;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    for path in ["/generate", "/chat"] {
        let parsed = parse(path, body).expect("the route generates");
        if let Err(error) = parsed {
            assert!([400, 422].contains(&error.status().as_u16()), "{error:?}");
            assert!(error.detail().len() < 1000 && error.detail().ends_with(['.', '?', '!']), "{error:?}");
        }
    }
});
