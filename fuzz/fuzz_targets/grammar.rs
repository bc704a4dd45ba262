//! A grammar of any bytes: a JSON schema, a regular expression or a grammar in Lark's syntax. It is refused in one sentence or
//! can be followed, or goes over a limit on the way and says so; `-timeout` of libFuzzer bounds all of it.
#![no_main]
#![allow(clippy::expect_used, clippy::panic, reason = "a finding is a panic")]

use std::path::Path;
use std::sync::OnceLock;

use kaito_engine::{Cancel, TokenMask};
use kaito_grammar::{Error, Grammar, Grammars};
use kaito_model::tokenizer::Tokenizer;
use libfuzzer_sys::fuzz_target;

const STEPS: usize = 24;

struct Model {
    grammars: Grammars,
    rows: usize,
}

fn model() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo");
        let tokenizer = Tokenizer::open(&directory).expect("the demo model's tokenizer");
        let rows = tokenizer.vocab_size();
        let end = tokenizer.eos_token_id().into_iter().collect();
        Model { grammars: Grammars::new(tokenizer, rows, end), rows }
    })
}

fn grammar(kind: u8, text: &str) -> Option<Grammar> {
    Some(match kind % 4 {
        strictness @ (0 | 1) => {
            Grammar::JsonSchema { schema: serde_json::from_str(text).ok()?, strict: strictness == 0, whitespace: None }
        }
        2 => Grammar::Regex(text.to_owned()),
        _ => Grammar::Lark(text.to_owned()),
    })
}

/// Whether it is one sentence that a client can be told.
fn is_told(reason: &str) -> bool {
    reason.len() < 4096 && !reason.contains('\n')
}

fuzz_target!(|data: &[u8]| {
    let Some((&kind, text)) = data.split_first() else { return };
    let Some(grammar) = std::str::from_utf8(text).ok().and_then(|text| grammar(kind, text)) else { return };
    let Model { grammars, rows } = model();
    match grammars.constraint(&grammar, &Cancel::default()) {
        Err(error @ (Error::Internal { .. } | Error::Cancelled | Error::Tokenizer { .. })) => panic!("{error}"),
        Err(error) => assert!(is_told(&error.to_string()), "{error}"),
        Ok(mut constraint) => {
            for step in 0..STEPS {
                if constraint.is_finished() {
                    break;
                }
                let mut mask = TokenMask::of(*rows, &[]);
                constraint.mask(&mut mask);
                let words = mask.words_mut();
                let allowed = |token: &u32| words[*token as usize / 64] >> (token % 64) & 1 == 1;
                // The end token has no place in a text.
                let Some(token) = (3..*rows as u32).cycle().skip(step * 37).take(*rows).find(allowed) else { break };
                if !constraint.accept(token) {
                    // Looking ahead for forced tokens may go over a limit, after which nothing is accepted.
                    let fault = constraint.fault().map(str::to_owned);
                    assert!(fault.is_some_and(|reason| is_told(&reason)), "{token} was allowed");
                    break;
                }
            }
        }
    }
});
