//! HTML: character references and tags.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::chars::is_space;

static ENTITIES: LazyLock<HashMap<&'static str, String>> = LazyLock::new(|| {
    let lines = include_str!("../data/entities.txt").lines();
    let entity = |line: &'static str| {
        let (name, codes) = line.split_once(' ')?;
        let text = codes.split(' ').filter_map(|code| char::from_u32(u32::from_str_radix(code, 16).ok()?)).collect();
        Some((name, text))
    };
    lines.filter_map(entity).collect()
});

/// Longest name of a character reference, with its `;`.
const LONGEST: usize = 33;

/// What Windows-1252 has where Unicode has control characters, from 0x80 on.
const WINDOWS_1252: [u32; 32] = [
    0x20ac, 0x81, 0x201a, 0x192, 0x201e, 0x2026, 0x2020, 0x2021, 0x2c6, 0x2030, 0x160, 0x2039, 0x152, 0x8d, 0x17d,
    0x8f, 0x90, 0x2018, 0x2019, 0x201c, 0x201d, 0x2022, 0x2013, 0x2014, 0x2dc, 0x2122, 0x161, 0x203a, 0x153, 0x9d,
    0x17e, 0x178,
];

/// `html.unescape`.
pub(crate) fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = reference(&rest[1..], &mut out);
        if length == 0 {
            out.push('&');
        }
        rest = &rest[1 + length..];
    }
    out.push_str(rest);
    out
}

/// Appends the character that a reference stands for, and returns the reference's length; 0 if there is none.
fn reference(text: &str, out: &mut String) -> usize {
    if let Some(number) = text.strip_prefix('#') {
        let (digits, radix) = match number.strip_prefix(['x', 'X']) {
            Some(digits) => (digits, 16),
            None => (number, 10),
        };
        let length = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
        if length == 0 {
            return 0;
        }
        let code = u32::from_str_radix(&digits[..length], radix).unwrap_or(u32::MAX);
        push_code(code, out);
        let end = text.len() - digits.len() + length;
        return end + usize::from(text[end..].starts_with(';'));
    }
    let stop = |c: char| matches!(c, '\t' | '\n' | '\x0c' | ' ' | '<' | '&' | '#' | ';');
    let length = text.char_indices().take(LONGEST - 1).find(|(_, c)| stop(*c)).map(|(at, _)| at);
    let most = text.char_indices().nth(LONGEST - 1).map_or(text.len(), |(at, _)| at);
    let mut length = length.unwrap_or(most);
    if length == 0 {
        return 0;
    }
    length += usize::from(text[length..].starts_with(';'));
    let name = &text[..length];
    if let Some(entity) = ENTITIES.get(name) {
        out.push_str(entity);
        return length;
    }
    // Some names are known without `;`, whatever follows them.
    for (at, _) in name.char_indices().rev() {
        if let Some(entity) = ENTITIES.get(&name[..at]).filter(|_| at > 1) {
            out.push_str(entity);
            return at;
        }
    }
    0
}

fn push_code(code: u32, out: &mut String) {
    match code {
        0 | 0xd800..=0xdfff => out.push('\u{fffd}'),
        0x0d => out.push('\r'),
        0x80..=0x9f => {
            let code = usize::try_from(code - 0x80).ok().and_then(|at| WINDOWS_1252.get(at));
            out.extend(code.copied().and_then(char::from_u32));
        }
        0x110000.. => out.push('\u{fffd}'),
        // References to characters that HTML does not allow are removed.
        0x1..=0x8 | 0xe..=0x1f | 0x7f | 0xb | 0xfdd0..=0xfdef => {}
        _ if code & 0xfffe == 0xfffe => {}
        _ => out.extend(char::from_u32(code)),
    }
}

/// The string without tags and comments, with single spaces, and with character references replaced.
pub(crate) fn strip_tags(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut at = 0;
    while let Some(found) = text[at..].find('<') {
        let start = at + found;
        let (marker, skip) = if text[start..].starts_with("<!--") { ("-->", 4) } else { (">", 0) };
        let Some(end) = text[start + skip..].find(marker) else { break };
        kept.push_str(&text[at..start]);
        at = start + skip + end + marker.len();
    }
    kept.push_str(&text[at..]);
    let words: Vec<&str> = kept.split(is_space).filter(|word| !word.is_empty()).collect();
    unescape(&words.join(" "))
}
