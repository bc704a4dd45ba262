//! Texts or token ids, one or several: `prompt` of a completion, `input` of embeddings.

use kaito_engine::{Cancel, Special};
use serde_json::Value;

use super::parameters::Parameters;
use super::prompt;
use crate::dialect::Context;
use crate::error::ApiError;
use crate::fields::{self, Fields};

/// Most texts of a request.
const MAX_INPUTS: usize = 2048;
const WANTED: &str = "a string, a list of strings, a list of token ids or a list of such lists";

/// One text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    Text(String),
    Tokens(Vec<u32>),
}

impl Input {
    /// Its tokens, which the model knows and which fit; `at` is where it stands in the request.
    ///
    /// # Errors
    /// 400 for a text that leaves no room for an answer and for unknown tokens, and cancellation.
    pub(crate) fn tokens(
        self,
        special: Special,
        at: &str,
        parameters: &Parameters,
        context: &Context<'_>,
        cancel: &Cancel,
    ) -> Result<Vec<u32>, ApiError> {
        match self {
            Self::Text(text) => prompt::encode(&text, special, at, parameters, context, cancel),
            Self::Tokens(tokens) => {
                check_ids(&tokens, at, context)?;
                prompt::fit(tokens, at, parameters, context)
            }
        }
    }
}

/// Where each of `count` inputs of the field `name` stands.
pub(crate) fn place(name: &str, count: usize, index: usize) -> String {
    if count > 1 { format!("{name}[{index}]") } else { name.to_owned() }
}

/// The field `name`: a text, texts, token ids, or lists of them.
///
/// # Errors
/// 400 where it is missing, empty, or of another shape.
pub(crate) fn take(body: &mut Fields, name: &str) -> Result<Vec<Input>, ApiError> {
    let at = body.path(name);
    let list = match body.take(name) {
        None => return Err(fields::missing(&at, WANTED)),
        Some(Value::String(text)) => return Ok(vec![Input::Text(text)]),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(fields::wrong_shape(&at, WANTED, &other)),
    };
    let ids = |at: &str, list: &[Value]| {
        let ids = list.iter().enumerate().map(|(i, value)| fields::token_id(&format!("{at}[{i}]"), value));
        ids.collect::<Result<Vec<_>, _>>().map(Input::Tokens)
    };
    match list.first() {
        None => return Err(fields::invalid(&at, "[]", WANTED)),
        Some(Value::Number(_)) => return Ok(vec![ids(&at, &list)?]),
        Some(_) if list.len() > MAX_INPUTS => {
            let count = list.len();
            return Err(fields::invalid(&at, format_args!("a list of {count} {name}s"), "of at most 2048"));
        }
        Some(_) => {}
    }
    let input = |(i, value)| {
        let at = format!("{at}[{i}]");
        match value {
            Value::String(text) => Ok(Input::Text(text)),
            Value::Array(list) if !list.is_empty() => ids(&at, &list),
            other => Err(fields::wrong_shape(&at, "a string or a list of at least one token id", &other)),
        }
    };
    list.into_iter().enumerate().map(input).collect()
}

/// Refuses ids that the model does not know.
fn check_ids(tokens: &[u32], at: &str, context: &Context<'_>) -> Result<(), ApiError> {
    let known = context.request.vocab_size;
    match tokens.iter().enumerate().find(|(_, id)| **id as usize >= known) {
        None => Ok(()),
        Some((i, id)) => Err(fields::invalid(
            &format!("{at}[{i}]"),
            id,
            &format!("a token id below {known}, the size of the vocabulary"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn inputs_have_four_shapes() {
        let take =
            |given: Value| take(&mut Fields::root([("prompt".to_owned(), given)].into_iter().collect()), "prompt");
        let text = |text: &str| Input::Text(text.to_owned());
        for (given, expected) in [
            (json!("a"), vec![text("a")]),
            (json!(["a", "b"]), vec![text("a"), text("b")]),
            (json!([1, 2]), vec![Input::Tokens(vec![1, 2])]),
            (json!([[1], [2, 3]]), vec![Input::Tokens(vec![1]), Input::Tokens(vec![2, 3])]),
        ] {
            assert_eq!(take(given).unwrap(), expected);
        }
        for (given, param) in [
            (json!([]), "prompt"),
            (json!([[]]), "prompt[0]"),
            (json!([1, "a"]), "prompt[1]"),
            (json!([[1], [-1]]), "prompt[1][0]"),
            (json!(5), "prompt"),
            (json!(vec!["a"; 2049]), "prompt"),
        ] {
            let error = take(given).unwrap_err();
            assert!(error.detail().contains(&format!("`{param}`")), "{error}");
        }
    }
}
