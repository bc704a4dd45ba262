//! A grammar of any bytes: a JSON schema, a regular expression or a grammar in Lark's syntax. It is refused in one sentence or
//! can be followed, and neither takes longer than the limits say.
#![no_main]
#![allow(clippy::expect_used, clippy::panic, reason = "a finding is a panic")]

use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use kaito_engine::Cancel;
use kaito_engine::generate::TokenMask;
use kaito_grammar::{Error, Grammar, Grammars};
use kaito_model::tokenizer::Tokenizer;
use libfuzzer_sys::fuzz_target;

/// Within 5 s, and then some for a machine with other work.
const COMPILED: Duration = Duration::from_secs(8);
const MASKED: Duration = Duration::from_secs(2);
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
        0 | 1 => {
            Grammar::JsonSchema { schema: serde_json::from_str(text).ok()?, strict: kind % 4 == 0, whitespace: None }
        }
        2 => Grammar::Regex(text.to_owned()),
        _ => Grammar::Lark(text.to_owned()),
    })
}

fuzz_target!(|data: &[u8]| {
    let Some((&kind, text)) = data.split_first() else { return };
    let Some(grammar) = std::str::from_utf8(text).ok().and_then(|text| grammar(kind, text)) else { return };
    let Model { grammars, rows } = model();
    let start = Instant::now();
    let compiled = grammars.constraint(&grammar, &Cancel::default());
    assert!(start.elapsed() < COMPILED, "compiled in {:?}", start.elapsed());
    match compiled {
        Err(error @ (Error::Internal { .. } | Error::Cancelled | Error::Tokenizer { .. })) => panic!("{error}"),
        Err(error) => assert!(error.to_string().len() < 4096 && !error.to_string().contains('\n'), "{error}"),
        Ok(mut constraint) => {
            for step in 0..STEPS {
                if constraint.is_finished() {
                    break;
                }
                let mut mask = TokenMask::of(*rows, &[]);
                let start = Instant::now();
                constraint.mask(&mut mask);
                assert!(start.elapsed() < MASKED, "a mask in {:?}", start.elapsed());
                let words = mask.words_mut();
                let allowed = |token: &u32| words[*token as usize / 64] >> (token % 64) & 1 == 1;
                // The end token has no place in a text.
                let Some(token) = (3..*rows as u32).cycle().skip(step * 37).take(*rows).find(allowed) else { break };
                assert!(constraint.accept(token), "{token} was allowed");
            }
        }
    }
});
