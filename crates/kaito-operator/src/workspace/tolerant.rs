//! Reads what Kubernetes' Go types read: `null` for a list or object that is left out, `""` for a string that is left out.

use serde::{Deserialize, Deserializer};

/// `null` is the default.
pub fn null<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// `""` is nothing.
pub fn empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.filter(|text| !text.is_empty()))
}
