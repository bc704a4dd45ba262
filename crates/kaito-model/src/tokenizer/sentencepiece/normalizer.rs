//! What SentencePiece does to a text before it segments it: character replacements and white space.

use super::ModelError;
use super::common_prefix_search::CommonPrefixSearch;
use super::proto::{NormalizerSpec, TrainerSpec};

/// Stands for a space inside pieces.
pub(super) const SPACE_SYMBOL: char = '\u{2581}';

/// Rewrites a text into the form that pieces are matched against.
#[derive(Debug, Clone)]
pub(super) struct Normalizer {
    charsmap: Option<CharsMap>,
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
    treat_whitespace_as_suffix: bool,
    space: char,
}

impl Normalizer {
    pub(super) fn new(spec: &NormalizerSpec, trainer: &TrainerSpec) -> Result<Self, ModelError> {
        let charsmap = match spec.precompiled_charsmap.as_slice() {
            [] => None,
            bytes => Some(CharsMap::parse(bytes)?),
        };
        Ok(Self {
            charsmap,
            add_dummy_prefix: spec.add_dummy_prefix,
            remove_extra_whitespaces: spec.remove_extra_whitespaces,
            treat_whitespace_as_suffix: trainer.treat_whitespace_as_suffix,
            space: if spec.escape_whitespaces { SPACE_SYMBOL } else { ' ' },
        })
    }

    /// Whether no character of a text is dropped.
    pub(super) fn keeps_all(&self) -> bool {
        self.charsmap.is_none() && !self.remove_extra_whitespaces
    }

    /// The normalised text; pieces in `user_defined` stay as they are.
    pub(super) fn normalize(&self, text: &str, user_defined: &CommonPrefixSearch) -> String {
        let mut rest = text;
        if self.remove_extra_whitespaces {
            while let Some((" ", consumed)) = self.next_unit(rest, user_defined) {
                rest = rest.get(consumed..).unwrap_or_default();
            }
        }
        let mut normalized = String::with_capacity(rest.len() + rest.len() / 2 + 3);
        if rest.is_empty() {
            return normalized;
        }
        if self.add_dummy_prefix && !self.treat_whitespace_as_suffix {
            normalized.push(self.space);
        }
        let mut after_space = self.remove_extra_whitespaces;
        while let Some((unit, consumed)) = self.next_unit(rest, user_defined) {
            rest = rest.get(consumed..).unwrap_or_default();
            let unit = if after_space { unit.trim_start_matches(' ') } else { unit };
            if !unit.is_empty() {
                normalized.extend(unit.chars().map(|c| if c == ' ' { self.space } else { c }));
                after_space = unit.ends_with(' ') && self.remove_extra_whitespaces;
            }
        }
        if self.remove_extra_whitespaces {
            normalized.truncate(normalized.trim_end_matches(self.space).len());
        }
        if self.add_dummy_prefix && self.treat_whitespace_as_suffix {
            normalized.push(self.space);
        }
        normalized
    }

    /// The replacement for the beginning of `rest`, and how many of its bytes that stands for; at least one character.
    fn next_unit<'a>(&'a self, rest: &'a str, user_defined: &CommonPrefixSearch) -> Option<(&'a str, usize)> {
        let character = rest.chars().next()?;
        let (mut unit, mut consumed) = (None, 0);
        if let Some(length) = user_defined.longest(rest) {
            (unit, consumed) = (rest.get(..length), length);
        } else if let Some(charsmap) = &self.charsmap
            && let Some((replacement, length)) = charsmap.longest(rest)
        {
            (unit, consumed) = (Some(replacement), length);
        }
        match unit {
            Some(unit) => Some((unit, consumed)),
            None => rest.get(..character.len_utf8()).map(|unit| (unit, character.len_utf8())),
        }
    }
}

/// The compiled replacement rules of a model: a double-array trie over the bytes of what is replaced, whose values point
/// into a table of zero-terminated replacements.
///
/// A unit of the trie is 32 bits, in the layout of the darts-clone library: bit 8 tells that a value hangs below it,
/// bits 0..8 and 31 are its label, bits 10..31 the offset to its children, shifted by eight more if bit 9 is set.
#[derive(Debug, Clone)]
struct CharsMap {
    units: Vec<u32>,
    replacements: String,
}

impl CharsMap {
    fn parse(bytes: &[u8]) -> Result<Self, ModelError> {
        let error = |what: &str| ModelError::CharsMap { what: what.to_owned() };
        let (size, rest) = bytes.split_first_chunk::<4>().ok_or_else(|| error("it has no size"))?;
        let size = u32::from_le_bytes(*size) as usize;
        if size >= rest.len() || !size.is_multiple_of(4) {
            return Err(error(&format!("its trie has {size} bytes of {}", rest.len())));
        }
        let (trie, replacements) = rest.split_at(size);
        let units = trie.chunks_exact(4).map(|unit| {
            let mut little_endian = [0; 4];
            little_endian.copy_from_slice(unit);
            u32::from_le_bytes(little_endian)
        });
        let replacements = std::str::from_utf8(replacements).map_err(|_| error("its replacements are not UTF-8"))?;
        Ok(Self { units: units.collect(), replacements: replacements.to_owned() })
    }

    /// The rule for the longest beginning of `text`: the replacement, and how many bytes it replaces.
    fn longest<'a>(&'a self, text: &str) -> Option<(&'a str, usize)> {
        let offset = |unit: u32| ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
        let mut node = offset(*self.units.first()?);
        let mut longest = None;
        for (depth, byte) in text.bytes().enumerate() {
            node ^= usize::from(byte);
            let Some(&unit) = self.units.get(node) else { break };
            if unit & (1 << 31 | 0xff) != u32::from(byte) {
                break;
            }
            node ^= offset(unit);
            if unit & (1 << 8) != 0
                && let Some(value) = self.units.get(node)
            {
                longest = Some(((value & !(1 << 31)) as usize, depth + 1));
            }
        }
        let (start, length) = longest?;
        text.is_char_boundary(length).then_some(())?;
        let replacement = self.replacements.get(start..)?;
        Some((replacement.split('\0').next()?, length))
    }
}
