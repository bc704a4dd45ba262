//! The safetensors format: a length, a JSON header, and the tensors' bytes.
//!
//! <https://github.com/huggingface/safetensors#format>

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, Visitor},
};

use super::{
    element::{ElementType, StoredTensor},
    error::{FormatError, shorten},
    tensor::byte_len,
};

/// Longest header that is read; the limit of the format's own library.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes before the header.
const LENGTH_FIELD: usize = 8;
/// Most dimensions of a tensor.
pub(crate) const MAX_DIMENSIONS: usize = 8;

/// Reads the header of a safetensors file; `file` is the whole file.
///
/// # Errors
/// Every offset, shape and type is checked against each other and against the file's length.
pub fn parse(file: &[u8]) -> Result<Vec<StoredTensor>, FormatError> {
    let found = file.len() as u64;
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_FIELD>() else {
        return Err(FormatError::Truncated { expected: LENGTH_FIELD as u64, found });
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(FormatError::malformed(format!(
            "not a safetensors file: its first 8 bytes announce a header of {length} bytes, at most {MAX_HEADER} are possible"
        )));
    }
    let Some((header, data)) = rest.split_at_checked(length as usize) else {
        return Err(FormatError::Truncated { expected: LENGTH_FIELD as u64 + length, found });
    };
    let Header(mut entries) = serde_json::from_slice(header)
        .map_err(|error| FormatError::malformed(format!("the safetensors header is not valid: {error}")))?;
    entries.sort_by_key(|(_, entry)| entry.data_offsets);

    let data_start = file.len() - data.len();
    let mut tensors = Vec::with_capacity(entries.len());
    let mut previous_end = 0;
    for (name, entry) in entries {
        let element = ElementType::from_safetensors(&entry.dtype)
            .ok_or_else(|| FormatError::tensor(&name, format!("unknown element type {:?}", shorten(&entry.dtype))))?;
        let (begin, end) = entry.data_offsets;
        if entry.shape.len() > MAX_DIMENSIONS {
            let dimensions = entry.shape.len();
            return Err(FormatError::tensor(&name, format!("{dimensions} dimensions, at most {MAX_DIMENSIONS}")));
        }
        let expected = byte_len(&entry.shape, element.size)
            .ok_or_else(|| FormatError::tensor(&name, format!("shape {:?} is too large", entry.shape)))?;
        if begin > end || end - begin != expected as u64 {
            let reason = format!(
                "data offsets {begin}..{end} do not hold its {expected} bytes ({} of shape {:?})",
                element.name, entry.shape
            );
            return Err(FormatError::tensor(&name, reason));
        }
        if begin != previous_end {
            let relation =
                if begin < previous_end { "overlaps the tensor before it" } else { "leaves a gap before it" };
            let reason = format!("begins at data offset {begin}, which {relation} (it ends at {previous_end})");
            return Err(FormatError::tensor(&name, reason));
        }
        previous_end = end;
        let Some(range) = file_range(data_start, begin, end) else {
            return Err(FormatError::tensor(&name, format!("data offset {end} is too large")));
        };
        tensors.push(StoredTensor { name, element, shape: entry.shape, strides: None, range });
    }
    let expected = data_start as u64 + previous_end;
    if expected > found {
        return Err(FormatError::Truncated { expected, found });
    }
    if expected < found {
        return Err(FormatError::malformed(format!("the file has {found} bytes, but its tensors end at {expected}")));
    }
    Ok(tensors)
}

fn file_range(data_start: usize, begin: u64, end: u64) -> Option<std::ops::Range<usize>> {
    let place = |offset: u64| data_start.checked_add(usize::try_from(offset).ok()?);
    Some(place(begin)?..place(end)?)
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// The header's tensors in file order. A map type would let the second of two equal names win in silence.
struct Header(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut seen = std::collections::HashSet::new();
        let mut entries = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format!("{} occurs twice", shorten(&name))));
            }
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
            } else {
                entries.push((name, map.next_value()?));
            }
        }
        Ok(Header(entries))
    }
}
