//! Metadata: values by key, lists of values among them.

use std::{collections::BTreeMap, fmt};

use super::cursor::Cursor;
use crate::checkpoint::error::{FormatError, shorten};

/// Most entries; published files have some fifty.
const MAX_ENTRIES: u64 = 1 << 14;
/// Longest key in bytes, as the format has it.
const MAX_KEY: u64 = 65_535;

/// Kind of a value, by the number that stands for it: bytes of one, and how it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Unsigned(usize),
    Signed(usize),
    Float(usize),
    Bool,
    Text,
    Array,
}

const KINDS: [Kind; 13] = [
    Kind::Unsigned(1),
    Kind::Signed(1),
    Kind::Unsigned(2),
    Kind::Signed(2),
    Kind::Unsigned(4),
    Kind::Signed(4),
    Kind::Float(4),
    Kind::Bool,
    Kind::Text,
    Kind::Array,
    Kind::Unsigned(8),
    Kind::Signed(8),
    Kind::Float(8),
];

impl Kind {
    fn read(cursor: &mut Cursor, key: &str) -> Result<Self, FormatError> {
        let number = cursor.u32("a type of a value")?;
        let kind = usize::try_from(number).ok().and_then(|number| KINDS.get(number));
        kind.copied().ok_or_else(|| FormatError::malformed(format!("{}: unknown type of value {number}", shorten(key))))
    }

    /// Bytes of a value, where all have the same number.
    fn size(self) -> Option<usize> {
        match self {
            Self::Unsigned(size) | Self::Signed(size) | Self::Float(size) => Some(size),
            Self::Bool => Some(1),
            Self::Text | Self::Array => None,
        }
    }

    /// The value that the bytes of one stand for.
    fn value(self, bytes: &[u8]) -> Value<'_> {
        let mut wide = [0; 8];
        if let Some(low) = wide.get_mut(..bytes.len()) {
            low.copy_from_slice(bytes);
        }
        let number = u64::from_le_bytes(wide);
        let unused = 64 - 8 * bytes.len().min(8) as u32;
        match self {
            Self::Unsigned(_) => Value::Unsigned(number),
            // The sign is moved to where that of an i64 is, and back.
            Self::Signed(_) => Value::Signed(number.checked_shl(unused).map_or(0, |number| (number as i64) >> unused)),
            Self::Float(4) => Value::Float(f64::from(f32::from_bits(number as u32))),
            Self::Float(_) => Value::Float(f64::from_bits(number)),
            Self::Bool => Value::Bool(number != 0),
            Self::Text | Self::Array => Value::Text(bytes),
        }
    }
}

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// A whole number without sign, of 8 to 64 bits.
    Unsigned(u64),
    /// A whole number, of 8 to 64 bits.
    Signed(i64),
    /// A number of 32 or 64 bits.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// A string, UTF-8 as a rule.
    Text(&'a [u8]),
    /// A list.
    Array(Array<'a>),
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned(number) => number.fmt(f),
            Self::Signed(number) => number.fmt(f),
            Self::Float(number) => number.fmt(f),
            Self::Bool(value) => value.fmt(f),
            Self::Text(text) => write!(f, "{:?}", shorten(&String::from_utf8_lossy(text))),
            Self::Array(array) => write!(f, "a list of {}", array.len()),
        }
    }
}

/// A list of values of one type, in the file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Array<'a> {
    kind: Kind,
    len: usize,
    /// All elements. Those of a list of strings are known to be there.
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    fn read(cursor: &mut Cursor<'a>, key: &str) -> Result<Self, FormatError> {
        let kind = Kind::read(cursor, key)?;
        let count = cursor.u64("the length of a list")?;
        let refused = |reason: String| FormatError::malformed(format!("{}: {reason}", shorten(key)));
        let too_long = || refused(format!("a list of {count} elements is longer than the file"));
        let len = usize::try_from(count).map_err(|_| too_long())?;
        let bytes = match kind.size() {
            Some(size) => {
                let bytes = len.checked_mul(size).filter(|bytes| *bytes <= cursor.left()).ok_or_else(too_long)?;
                cursor.bytes(bytes as u64, "a list")?
            }
            None if kind == Kind::Array => return Err(refused("lists of lists are not read".to_owned())),
            None => {
                // Each string has 8 bytes of length at least.
                if len > cursor.left() / 8 {
                    return Err(too_long());
                }
                cursor.spanned(|cursor| (0..len).try_for_each(|_| cursor.string("a string of a list").map(drop)))?
            }
        };
        Ok(Self { kind, len, bytes })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements, in order.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let Self { kind, len, bytes } = *self;
        let mut cursor = Cursor::new(bytes);
        (0..len).map_while(move |_| match kind.size() {
            Some(size) => cursor.bytes(size as u64, "").ok().map(|bytes| kind.value(bytes)),
            None => cursor.string("").ok().map(Value::Text),
        })
    }
}

/// Values by key.
#[derive(Debug)]
pub struct Metadata<'a>(BTreeMap<&'a str, Value<'a>>);

impl<'a> Metadata<'a> {
    /// Reads `count` entries.
    pub(super) fn parse(cursor: &mut Cursor<'a>, count: u64) -> Result<Self, FormatError> {
        if count > MAX_ENTRIES {
            return Err(FormatError::malformed(format!("{count} entries of metadata, at most {MAX_ENTRIES} are read")));
        }
        let mut entries = BTreeMap::new();
        for _ in 0..count {
            let key = cursor.text(MAX_KEY, "a key")?;
            let value = match Kind::read(cursor, key)? {
                Kind::Text => Value::Text(cursor.string("a string")?),
                Kind::Array => Value::Array(Array::read(cursor, key)?),
                kind => kind.value(cursor.bytes(kind.size().unwrap_or(0) as u64, "a value")?),
            };
            if entries.insert(key, value).is_some() {
                return Err(FormatError::malformed(format!("the metadata has {} twice", shorten(key))));
            }
        }
        Ok(Self(entries))
    }

    /// The value under a key.
    pub fn get(&self, key: &str) -> Option<&Value<'a>> {
        self.0.get(key)
    }

    /// The text under a key; `None` also where the value is none, or no UTF-8.
    pub fn text(&self, key: &str) -> Option<&'a str> {
        match self.get(key) {
            Some(Value::Text(text)) => std::str::from_utf8(text).ok(),
            _ => None,
        }
    }

    /// The entries whose keys begin with `prefix`, without it.
    pub fn below<'m>(&'m self, prefix: &'m str) -> impl Iterator<Item = (&'a str, &'m Value<'a>)> {
        self.0.iter().filter_map(move |(key, value)| Some((key.strip_prefix(prefix)?, value)))
    }
}
