//! Escapes text from outside, which may hold control sequences for the terminal or line ends that would forge log lines.

use std::{borrow::Cow, fmt::Write};

/// One line, without what could pass for another: control characters, line ends and what changes the direction of text are
/// written as escapes.
pub fn line(text: &str) -> Cow<'_, str> {
    escaped(text, |_| None)
}

/// A line that the formatter of the log wrote; with colours its own escape sequences stay, those that set colours alone.
pub fn log_line(text: &str, colours: bool) -> Cow<'_, str> {
    escaped(text, |rest| colours.then(|| colour(rest)).flatten())
}

/// Several lines: all but the first are indented, so that none of them begins as a line of its own would.
pub fn lines(text: &str) -> String {
    text.trim_end().lines().map(|part| line(part).into_owned()).collect::<Vec<_>>().join("\n    ")
}

/// Escapes `text`, but for what `kept` finds at the beginning of a rest of it.
fn escaped(text: &str, kept: impl Fn(&str) -> Option<usize>) -> Cow<'_, str> {
    let Some(first) = text.find(is_dangerous) else { return text.into() };
    let (before, mut rest) = text.split_at(first);
    let mut out = before.to_owned();
    while let Some(c) = rest.chars().next() {
        let len = match kept(rest) {
            Some(len) => {
                out.push_str(rest.get(..len).unwrap_or_default());
                len
            }
            None if is_dangerous(c) => {
                // Writing to a string does not fail.
                let _ = write!(out, "{}", c.escape_default());
                c.len_utf8()
            }
            None => {
                out.push(c);
                c.len_utf8()
            }
        };
        rest = rest.get(len..).unwrap_or_default();
    }
    out.into()
}

fn is_dangerous(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The length of an escape sequence at the beginning that sets a colour: `ESC [ 1 ; 31 m`.
fn colour(text: &str) -> Option<usize> {
    let parameters = text.strip_prefix("\x1b[")?;
    let end = parameters.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    parameters.get(end..)?.starts_with('m').then_some("\x1b[".len() + end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_line_ends_it_or_speaks_to_the_terminal() {
        for (text, shown) in [
            ("", ""),
            ("a plain line: é 漢字 🦀 \\n", "a plain line: é 漢字 🦀 \\n"),
            ("a\nERROR forged\r\n", r"a\nERROR forged\r\n"),
            ("\ttab", r"\ttab"),
            ("\x1b[2Jcleared\x07\x08", r"\u{1b}[2Jcleared\u{7}\u{8}"),
            ("\u{85}\u{9b}31m", r"\u{85}\u{9b}31m"),
            ("\u{2028}\u{2029}", r"\u{2028}\u{2029}"),
            ("abc\u{202e}txt.exe", r"abc\u{202e}txt.exe"),
            ("\0\u{7f}", r"\u{0}\u{7f}"),
        ] {
            assert_eq!(line(text), shown);
            assert_eq!(log_line(text, false), shown);
        }
    }

    #[test]
    fn colours_of_the_log_stay_where_there_are_any() {
        for (text, shown) in [
            ("\x1b[2m12:00\x1b[0m \x1b[1;32m INFO\x1b[0m x", "\x1b[2m12:00\x1b[0m \x1b[1;32m INFO\x1b[0m x"),
            ("\x1b[m\n", "\x1b[m\\n"),
            ("\x1b[2K", r"\u{1b}[2K"),
            ("\x1b]0;title\x07", r"\u{1b}]0;title\u{7}"),
            ("\x1b[31", r"\u{1b}[31"),
            ("\x1b", r"\u{1b}"),
        ] {
            assert_eq!(log_line(text, true), shown);
        }
        assert_eq!(log_line("\x1b[31mred", false), r"\u{1b}[31mred");
    }

    #[test]
    fn several_lines_are_seen_to_belong_together() {
        assert_eq!(lines("one\ntwo\x1b\r\n\nthree\n"), "one\n    two\\u{1b}\n    \n    three");
    }

    proptest::proptest! {
        #[test]
        fn any_text_becomes_one_line(text in "\\PC*|.*|(\x1b|\\[|;|1|m|\n|é)*") {
            for shown in [line(&text), log_line(&text, true), log_line(&text, false)] {
                let harmless = shown.replace('\x1b', "");
                proptest::prop_assert!(!harmless.contains(is_dangerous), "{shown:?}");
            }
        }
    }
}
