//! Characters as Python 3.11 knows them.

use std::collections::HashMap;
use std::sync::LazyLock;

/// Ranges of code points that have a property, in ascending order.
pub(crate) struct Property(Vec<(u32, u32)>);

impl Property {
    fn parse(name: &str) -> Self {
        let mut end = 0;
        let ranges = fields(name).filter_map(|range| {
            let (gap, length) = range.split_once('-')?;
            let start = end + u32::from_str_radix(gap, 16).ok()?;
            end = start + u32::from_str_radix(length, 16).ok()?;
            Some((start, end))
        });
        Self(ranges.collect())
    }

    pub(crate) fn holds(&self, character: char) -> bool {
        let code = u32::from(character);
        let after = self.0.partition_point(|(start, _)| *start <= code);
        after.checked_sub(1).and_then(|at| self.0.get(at)).is_some_and(|(_, end)| code < *end)
    }
}

fn fields(name: &str) -> impl Iterator<Item = &'static str> {
    let table = include_str!("../data/unicode.txt");
    let line = table.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_default().split(' ')
}

fn mapping(name: &str) -> HashMap<char, String> {
    let code = |hex: &str| u32::from_str_radix(hex, 16).ok().and_then(char::from_u32);
    let pairs = fields(name).filter_map(|pair| {
        let (from, to) = pair.split_once('=')?;
        Some((code(from)?, to.split('+').filter_map(code).collect()))
    });
    pairs.collect()
}

macro_rules! properties {
    ($($name:ident $key:literal)*) => {
        $(pub(crate) static $name: LazyLock<Property> = LazyLock::new(|| Property::parse($key));)*
    };
}

properties! {
    PRINTABLE "printable"
    ALPHA "alpha"
    DECIMAL "decimal"
    DIGIT "digit"
    NUMERIC "numeric"
    IDENTIFIER_START "identifier_start"
    IDENTIFIER_PART "identifier_part"
    UPPER "upper"
    LOWER "lower"
}

static TITLE: LazyLock<HashMap<char, String>> = LazyLock::new(|| mapping("title"));
static FOLD: LazyLock<HashMap<char, String>> = LazyLock::new(|| mapping("fold"));

/// `str.isspace` and `\s`.
pub(crate) fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\x1c'..='\x1f').contains(&character)
}

/// `\w`, of which a template's names are made.
pub(crate) fn is_identifier_part(character: char) -> bool {
    if character.is_ascii() {
        return character.is_ascii_alphanumeric() || character == '_';
    }
    IDENTIFIER_PART.holds(character)
}

/// `\w` of regular expressions.
pub(crate) fn is_word(character: char) -> bool {
    character == '_' || is_alphanumeric(character)
}

pub(crate) fn is_alphanumeric(character: char) -> bool {
    if character.is_ascii() {
        return character.is_ascii_alphanumeric();
    }
    ALPHA.holds(character) || DECIMAL.holds(character) || DIGIT.holds(character) || NUMERIC.holds(character)
}

/// Whether `repr` writes a character as it is.
pub(crate) fn is_printable(character: char) -> bool {
    if character.is_ascii() { (' '..='~').contains(&character) } else { PRINTABLE.holds(character) }
}

/// The value of a decimal digit of any script.
pub(crate) fn decimal(character: char) -> Option<u32> {
    if character.is_ascii() {
        return character.to_digit(10);
    }
    if !DECIMAL.holds(character) {
        return None;
    }
    // The digits of a script stand in one row, from zero. Only those of mathematics have several rows in one range.
    let code = u32::from(character);
    if (0x1d7ce..=0x1d7ff).contains(&code) {
        return Some((code - 0x1d7ce) % 10);
    }
    let before = (1..10).take_while(|back| char::from_u32(code - back).is_some_and(|c| DECIMAL.holds(c))).count();
    u32::try_from(before).ok()
}

/// The title case of a character.
pub(crate) fn push_title(out: &mut String, character: char) {
    match TITLE.get(&character) {
        Some(title) => out.push_str(title),
        None => out.extend(character.to_uppercase()),
    }
}

/// `str.casefold`.
pub(crate) fn fold(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match FOLD.get(&character) {
            Some(folded) => out.push_str(folded),
            None => out.extend(character.to_lowercase()),
        }
    }
    out
}

/// Whether upper and lower case are different things for a character.
pub(crate) fn is_cased(character: char) -> bool {
    UPPER.holds(character) || LOWER.holds(character) || is_title(character)
}

/// A character that is title case itself.
pub(crate) fn is_title(character: char) -> bool {
    matches!(u32::from(character), 0x1c5 | 0x1c8 | 0x1cb | 0x1f2 | 0x1f88..=0x1f8f | 0x1f98..=0x1f9f | 0x1fa8..=0x1faf | 0x1fbc | 0x1fcc | 0x1ffc)
}
