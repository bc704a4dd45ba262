//! A body of the OpenAI API of any bytes: a request, or a client's error in one sentence.
#![no_main]
#![allow(clippy::expect_used, clippy::panic, reason = "a finding is a panic")]

use kaito_server::dialect::parse;
use libfuzzer_sys::fuzz_target;

const PATHS: [&str; 8] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/tokenize",
    "/detokenize",
    "/apply-template",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
];

fuzz_target!(|body: &[u8]| {
    for path in PATHS {
        let parsed = parse(path, body).expect("the route takes a body");
        if let Err(error) = parsed {
            assert!([400, 422].contains(&error.status().as_u16()), "{error:?}");
            assert!(error.detail().len() < 1000 && error.detail().ends_with(['.', '?', '!']), "{error:?}");
        }
    }
});
