//! What every answer and every chunk of a stream says about itself.

use std::time::{SystemTime, UNIX_EPOCH};

use kaito_engine::ModelInfo;
use rand::RngExt;
use serde::Serialize;

use super::body;

/// Letters and digits of an id behind its prefix.
const ID_LEN: usize = 24;

/// The id, the time, and who answers: the same in all chunks of a stream.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    /// Prefix and random letters, as `chatcmpl-…`.
    pub(crate) id: String,
    /// Seconds since 1970.
    pub(crate) created: u64,
    /// The served model's canonical name.
    pub(crate) model: String,
    /// Version and precision, which together decide the texts of a seed.
    pub(crate) system_fingerprint: String,
}

impl Head {
    /// The head of a new answer, whose id begins with `prefix`.
    pub(crate) fn new(prefix: &str, model: &str, info: &ModelInfo) -> Self {
        Self {
            id: new_id(prefix),
            created: seconds(SystemTime::now()),
            model: model.to_owned(),
            system_fingerprint: format!("kaito-{}-{}", env!("CARGO_PKG_VERSION"), info.precision()),
        }
    }

    /// A body of this kind: the head, then the fields of `rest`.
    pub(crate) fn write(&self, object: &'static str, rest: &impl Serialize) -> String {
        let Self { id, created, model, system_fingerprint } = self;
        body::write(&Headed { id, object, created: *created, model, system_fingerprint, rest })
    }
}

/// A body, whole or a chunk.
#[derive(Serialize)]
struct Headed<'a, T> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
    #[serde(flatten)]
    rest: &'a T,
}

/// `prefix` and random letters and digits.
pub(crate) fn new_id(prefix: &str) -> String {
    let mut id = String::with_capacity(prefix.len() + ID_LEN);
    id.push_str(prefix);
    let mut random = rand::rng();
    id.extend((0..ID_LEN).map(|_| char::from(random.sample(rand::distr::Alphanumeric))));
    id
}

/// Whole seconds since 1970.
pub(crate) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_begins_with_its_head() {
        let head = Head { id: "a-1".to_owned(), created: 7, model: "m".to_owned(), system_fingerprint: "f".to_owned() };
        #[derive(Serialize)]
        struct Rest {
            choices: [u8; 2],
            usage: Option<Option<u8>>,
        }
        assert_eq!(
            head.write("chunk", &Rest { choices: [1, 2], usage: Some(None) }),
            r#"{"id":"a-1","object":"chunk","created":7,"model":"m","system_fingerprint":"f","choices":[1,2],"usage":null}"#
        );
    }

    #[test]
    fn ids_differ_and_are_letters_and_digits() {
        let [one, other] = [new_id("cmpl-"), new_id("cmpl-")];
        assert_ne!(one, other);
        let random = one.strip_prefix("cmpl-").unwrap();
        assert_eq!(random.len(), ID_LEN);
        assert!(random.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    }
}
