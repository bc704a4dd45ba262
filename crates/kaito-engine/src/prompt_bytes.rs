//! Refusing prompts that cannot fit, by their bytes: tokenising a text takes a hundred times its memory, and a second for
//! some megabytes.

use std::fmt::Display;

use crate::Error;
use kaito_model::tokenizer::Tokenizer;

/// A request with so many bytes of text is tokenised in a moment, and then refused with its exact number of tokens.
const SHORT: usize = 32 << 10;

/// Checks that the texts in `parts`, one prompt together, may have as few as `limit` tokens. `whole` is how many bytes of text
/// the request has.
///
/// # Errors
/// [`Error::InvalidRequest`] with both numbers; `what` names the prompt.
pub(crate) fn check<'a>(
    tokenizer: &Tokenizer,
    what: impl Display,
    parts: impl Iterator<Item = &'a str>,
    limit: usize,
    whole: usize,
) -> Result<(), Error> {
    if whole <= SHORT {
        return Ok(());
    }
    let (mut bytes, mut tokens) = (0usize, 0usize);
    for part in parts {
        bytes = bytes.saturating_add(part.len());
        tokens = tokens.saturating_add(tokenizer.min_tokens(part));
    }
    if tokens <= limit {
        return Ok(());
    }
    Err(Error::InvalidRequest(format!(
        "{what} has {bytes} bytes, which are at least {tokens} tokens, but at most {limit} are taken"
    )))
}
