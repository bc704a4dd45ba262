//! The directory of a zip archive, whose entries PyTorch stores without compression.
//!
//! Field offsets follow PKWARE's APPNOTE 6.3, sections 4.3 and 4.5.3.

use std::{
    collections::{HashMap, hash_map},
    ops::Range,
};

use super::error::{FormatError, shorten};

const END_RECORD: [u8; 4] = *b"PK\x05\x06";
const END_RECORD_LEN: usize = 22;
const LOCATOR64: [u8; 4] = *b"PK\x06\x07";
const LOCATOR64_LEN: usize = 20;
const END_RECORD64: [u8; 4] = *b"PK\x06\x06";
const DIRECTORY_ENTRY: [u8; 4] = *b"PK\x01\x02";
const DIRECTORY_ENTRY_LEN: usize = 46;
const LOCAL_HEADER: [u8; 4] = *b"PK\x03\x04";
const LOCAL_HEADER_LEN: usize = 30;
/// Field of the extra data that holds 64-bit sizes.
const ZIP64_FIELD: u16 = 1;
/// Longest comment after the end record.
const MAX_COMMENT: usize = u16::MAX as usize;

/// The entries of an archive by name.
#[derive(Debug)]
pub struct Archive<'a> {
    file: &'a [u8],
    entries: HashMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    /// Why its bytes cannot be used in place, if they cannot.
    obstacle: Option<String>,
    range: Range<usize>,
}

impl<'a> Archive<'a> {
    /// Names of all entries, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Where the bytes of the entry `name` lie in the file; `None` if there is no such entry.
    ///
    /// # Errors
    /// When the entry is compressed or encrypted.
    pub fn range(&self, name: &str) -> Result<Option<&Range<usize>>, FormatError> {
        match self.entries.get(name) {
            None => Ok(None),
            Some(Entry { obstacle: None, range }) => Ok(Some(range)),
            Some(Entry { obstacle: Some(obstacle), .. }) => Err(malformed_entry(name, obstacle)),
        }
    }

    /// The bytes of the entry `name`; `None` if there is no such entry.
    ///
    /// # Errors
    /// When the entry is compressed or encrypted.
    pub fn bytes(&self, name: &str) -> Result<Option<&'a [u8]>, FormatError> {
        Ok(self.range(name)?.and_then(|range| self.file.get(range.clone())))
    }
}

fn malformed_entry(name: &str, reason: impl std::fmt::Display) -> FormatError {
    FormatError::malformed(format!("zip entry {}: {reason}", shorten(name)))
}

/// Lists the entries of the archive `file`.
///
/// # Errors
/// When the archive is truncated, or its directory contradicts itself or the file.
pub fn parse(file: &[u8]) -> Result<Archive<'_>, FormatError> {
    let directory = Directory::find(file)?;
    let mut entries = HashMap::new();
    let mut at = directory.range.start;
    for number in 0..directory.entries {
        let entry = Fields { file, at, what: "the zip directory" };
        if at >= directory.range.end || entry.bytes(0)? != DIRECTORY_ENTRY {
            return Err(FormatError::malformed(format!(
                "the zip directory announces {} entries, but number {number} is not there",
                directory.entries
            )));
        }
        let (name_len, extra_len) = (entry.u16(28)?.into(), entry.u16(30)?.into());
        let comment_len: usize = entry.u16(32)?.into();
        let name = String::from_utf8_lossy(entry.slice(DIRECTORY_ENTRY_LEN, name_len)?).into_owned();
        let extra = entry.slice(DIRECTORY_ENTRY_LEN + name_len, extra_len)?;
        let [size, stored, header] = wide_fields(&entry, extra)?;
        let obstacle = if entry.u16(8)? & 1 != 0 {
            Some("is encrypted".to_owned())
        } else {
            match entry.u16(10)? {
                0 if size == stored => None,
                0 => Some(format!("has {size} bytes, but {stored} are stored")),
                method => Some(format!(
                    "is compressed (method {method}); weights are used in place, so they must be stored uncompressed"
                )),
            }
        };
        let range = entry_range(file, header, stored, &name)?;
        match entries.entry(name) {
            hash_map::Entry::Vacant(place) => drop(place.insert(Entry { obstacle, range })),
            hash_map::Entry::Occupied(place) => return Err(malformed_entry(place.key(), "occurs twice")),
        }
        at += DIRECTORY_ENTRY_LEN + name_len + extra_len + comment_len;
    }
    Ok(Archive { file, entries })
}

struct Directory {
    range: Range<usize>,
    entries: u64,
}

impl Directory {
    fn find(file: &[u8]) -> Result<Self, FormatError> {
        let found = file.len() as u64;
        let tail = file.len().saturating_sub(END_RECORD_LEN + MAX_COMMENT);
        let last = file.len().checked_sub(END_RECORD_LEN);
        let end = last.and_then(|last| (tail..=last).rev().find(|&at| file[at..].starts_with(&END_RECORD)));
        let Some(end) = end else {
            return Err(FormatError::malformed(format!(
                "the file is truncated: it begins as a zip archive, but none ends in its {found} bytes"
            )));
        };
        let record = Fields { file, at: end, what: "the zip end record" };
        let (mut entries, mut size, mut start): (u64, u64, u64) =
            (record.u16(10)?.into(), record.u32(12)?.into(), record.u32(16)?.into());
        // PyTorch always writes the 64-bit record too; where there is one, its numbers hold.
        if let Some(at) = end.checked_sub(LOCATOR64_LEN)
            && file[at..].starts_with(&LOCATOR64)
        {
            let locator = Fields { file, at, what: "the zip64 locator" };
            let at = usize::try_from(locator.u64(8)?).unwrap_or(usize::MAX);
            let record = Fields { file, at, what: "the zip64 end record" };
            if record.bytes(0)? != END_RECORD64 {
                return Err(FormatError::malformed("the zip64 end record is not where its locator says"));
            }
            (entries, size, start) = (record.u64(32)?, record.u64(40)?, record.u64(48)?);
        }
        let range = bounded_range(start, size, end as u64).ok_or_else(|| {
            FormatError::malformed(format!("the zip directory at {start}, {size} bytes long, leaves the file"))
        })?;
        if entries > size / DIRECTORY_ENTRY_LEN as u64 {
            return Err(FormatError::malformed(format!(
                "a zip directory of {size} bytes cannot hold {entries} entries"
            )));
        }
        Ok(Self { range, entries })
    }
}

/// An entry's size, stored size and header offset; those that do not fit 32 bits stand in the zip64 field, in this
/// order, each only if its 32-bit field is all ones.
fn wide_fields(entry: &Fields, extra: &[u8]) -> Result<[u64; 3], FormatError> {
    let narrow = [entry.u32(24)?, entry.u32(20)?, entry.u32(42)?];
    let mut wide = zip64_field(extra);
    let mut values = [0; 3];
    for (value, narrow) in values.iter_mut().zip(narrow) {
        *value = if narrow == u32::MAX {
            let Some((first, rest)) = wide.split_first_chunk::<8>() else {
                return Err(FormatError::malformed("a zip64 entry lacks its 64-bit sizes"));
            };
            wide = rest;
            u64::from_le_bytes(*first)
        } else {
            narrow.into()
        };
    }
    Ok(values)
}

fn zip64_field(mut extra: &[u8]) -> &[u8] {
    while let Some((&[a, b, c, d], rest)) = extra.split_first_chunk::<4>() {
        let Some((data, rest)) = rest.split_at_checked(u16::from_le_bytes([c, d]).into()) else { break };
        if u16::from_le_bytes([a, b]) == ZIP64_FIELD {
            return data;
        }
        extra = rest;
    }
    &[]
}

/// The bytes of an entry: they follow its local header, whose name and padding have lengths of their own.
fn entry_range(file: &[u8], header: u64, size: u64, name: &str) -> Result<Range<usize>, FormatError> {
    let at = usize::try_from(header).unwrap_or(usize::MAX);
    let local = Fields { file, at, what: "a zip entry's header" };
    if local.bytes(0)? != LOCAL_HEADER {
        return Err(malformed_entry(name, format!("does not begin at offset {header}, where the directory places it")));
    }
    let skip = LOCAL_HEADER_LEN as u64 + u64::from(local.u16(26)?) + u64::from(local.u16(28)?);
    bounded_range(header + skip, size, file.len() as u64)
        .ok_or_else(|| malformed_entry(name, format!("its {size} bytes leave the file of {} bytes", file.len())))
}

fn bounded_range(start: u64, size: u64, limit: u64) -> Option<Range<usize>> {
    let end = start.checked_add(size).filter(|&end| end <= limit)?;
    Some(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
}

/// Little-endian fields at offsets from `at`.
struct Fields<'a> {
    file: &'a [u8],
    at: usize,
    what: &'static str,
}

impl<'a> Fields<'a> {
    fn slice(&self, offset: usize, len: usize) -> Result<&'a [u8], FormatError> {
        let start = self.at.checked_add(offset);
        let range = start.and_then(|start| Some(start..start.checked_add(len)?));
        range.and_then(|range| self.file.get(range)).ok_or_else(|| {
            FormatError::malformed(format!(
                "{} at offset {} leaves the file of {} bytes",
                self.what,
                self.at,
                self.file.len()
            ))
        })
    }

    fn bytes<const N: usize>(&self, offset: usize) -> Result<[u8; N], FormatError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.slice(offset, N)?);
        Ok(bytes)
    }

    fn u16(&self, offset: usize) -> Result<u16, FormatError> {
        self.bytes(offset).map(u16::from_le_bytes)
    }

    fn u32(&self, offset: usize) -> Result<u32, FormatError> {
        self.bytes(offset).map(u32::from_le_bytes)
    }

    fn u64(&self, offset: usize) -> Result<u64, FormatError> {
        self.bytes(offset).map(u64::from_le_bytes)
    }
}
