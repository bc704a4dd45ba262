//! Whatever is drawn from the masks is JSON of the schema.

use kaito_engine::Constraint;
use proptest::prelude::*;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::common::{FOLDERS, Model, strict};
use crate::json::pair;

/// Longest walk; numbers without a bound go on as long as they like.
const STEPS: usize = 400;

/// Draws tokens until the text ends; `None` where it does not within [`STEPS`].
fn walk(model: &Model, constraint: &mut dyn Constraint, random: &mut impl Rng) -> Option<Vec<u32>> {
    let mut tokens = Vec::new();
    while tokens.len() < STEPS {
        if constraint.is_finished() || (constraint.may_end() && random.random_bool(0.5)) {
            return Some(tokens);
        }
        let allowed: Vec<u32> = model.allowed(constraint).into_iter().filter(|&token| token != model.end).collect();
        assert!(!allowed.is_empty(), "nothing may come after {:?}", model.text(&tokens));
        let closes = |token: &&u32| model.tokenizer.token_bytes(**token).is_some_and(|b| b"\"}],".contains(&b[0]));
        let closing: Vec<u32> = allowed.iter().filter(closes).copied().collect();
        let from = if !closing.is_empty() && random.random_bool(0.3) { &closing } else { &allowed };
        let token = from[random.random_range(0..from.len())];
        assert!(constraint.accept(token), "{token} was allowed after {:?}", model.text(&tokens));
        tokens.push(token);
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_random_walk_ends_with_a_value_of_the_schema(
        (schema, _) in pair(),
        folder in 0..FOLDERS.len(),
        seed in any::<u64>(),
    ) {
        let model = Model::open(FOLDERS[folder]);
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        for _ in 0..4 {
            let mut constraint = model.constraint(&strict(schema.clone()));
            let Some(tokens) = walk(&model, &mut *constraint, &mut random) else { continue };
            let text = model.text(&tokens);
            let value = serde_json::from_str(&text);
            prop_assert!(value.is_ok(), "{schema}: {text:?}");
            prop_assert!(jsonschema::is_valid(&schema, &value.unwrap()), "{schema}: {text}");
        }
    }
}
