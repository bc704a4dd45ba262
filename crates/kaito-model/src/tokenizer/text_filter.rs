//! Changes to a text that arrives in pieces. What a filter has put out never changes: it holds back just what later text
//! can still affect.

/// One change to the text.
#[derive(Debug, Clone)]
pub(super) enum TextFilter {
    Replace(Replace),
    StripStart { content: char, left: usize },
    StripEnd { content: char, limit: usize, held: usize },
}

/// Replaces every occurrence of a text, from left to right; holds back an end that may begin another.
#[derive(Debug, Clone)]
pub(super) struct Replace {
    pattern: String,
    content: String,
    held: String,
}

/// What `clean_up_tokenization_spaces` replaces, in order.
const CLEAN_UP: [(&str, &str); 10] = [
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
];

impl TextFilter {
    /// `pattern` must not be empty.
    pub(super) fn replace(pattern: impl Into<String>, content: impl Into<String>) -> Self {
        Self::Replace(Replace { pattern: pattern.into(), content: content.into(), held: String::new() })
    }

    /// Removes up to `limit` characters `content` from the beginning.
    pub(super) fn strip_start(content: char, limit: usize) -> Self {
        Self::StripStart { content, left: limit }
    }

    /// Removes up to `limit` characters `content` from the end.
    pub(super) fn strip_end(content: char, limit: usize) -> Self {
        Self::StripEnd { content, limit, held: 0 }
    }

    /// The filters of `clean_up_tokenization_spaces`.
    pub(super) fn clean_up() -> impl Iterator<Item = Self> {
        CLEAN_UP.into_iter().map(|(pattern, content)| Self::replace(pattern, content))
    }

    /// What becomes of a text that stands inside a longer one, as far as it is changed by itself.
    pub(super) fn inside(&self, text: String) -> String {
        match self {
            Self::Replace(replace) => text.replace(&replace.pattern, &replace.content),
            Self::StripStart { .. } | Self::StripEnd { .. } => text,
        }
    }

    /// Takes more text and gives what is certain.
    pub(super) fn push(&mut self, text: &str) -> String {
        match self {
            Self::Replace(replace) => replace.push(text),
            Self::StripStart { content, left } => {
                let mut rest = text;
                while *left > 0 && !rest.is_empty() {
                    match rest.strip_prefix(*content) {
                        Some(shorter) => {
                            rest = shorter;
                            *left -= 1;
                        }
                        None => *left = 0,
                    }
                }
                rest.to_owned()
            }
            Self::StripEnd { content, limit, held } => {
                let kept = text.trim_end_matches(*content);
                let trailing = text.get(kept.len()..).map_or(0, |end| end.chars().count());
                let mut out = String::new();
                if !kept.is_empty() {
                    out.extend(std::iter::repeat_n(*content, *held));
                    out.push_str(kept);
                    *held = 0;
                }
                *held += trailing;
                let certain = held.saturating_sub(*limit);
                out.extend(std::iter::repeat_n(*content, certain));
                *held -= certain;
                out
            }
        }
    }

    /// Gives what was held back and stays in the text.
    pub(super) fn finish(&mut self) -> String {
        match self {
            Self::Replace(replace) => std::mem::take(&mut replace.held),
            Self::StripStart { .. } | Self::StripEnd { .. } => String::new(),
        }
    }
}

impl Replace {
    fn push(&mut self, text: &str) -> String {
        self.held.push_str(text);
        let buffer = std::mem::take(&mut self.held);
        let mut out = String::with_capacity(buffer.len());
        let mut rest = buffer.as_str();
        while let Some((before, after)) = rest.split_once(&self.pattern) {
            out.push_str(before);
            out.push_str(&self.content);
            rest = after;
        }
        let longest = self.pattern.len().saturating_sub(1).min(rest.len());
        let may_begin = |start: &usize| rest.get(*start..).is_some_and(|end| self.pattern.starts_with(end));
        let cut = (rest.len() - longest..rest.len()).find(may_begin).unwrap_or(rest.len());
        let (certain, held) = rest.split_at(cut);
        out.push_str(certain);
        self.held = held.to_owned();
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn in_pieces(mut filters: Vec<TextFilter>, pieces: &[&str]) -> String {
        let mut out = String::new();
        for piece in pieces {
            out += &filters.iter_mut().fold((*piece).to_owned(), |text, filter| filter.push(&text));
        }
        for index in 0..filters.len() {
            let [first, rest @ ..] = filters.get_mut(index..).unwrap_or_default() else { break };
            out += &rest.iter_mut().fold(first.finish(), |text, filter| filter.push(&text));
        }
        out
    }

    proptest! {
        #[test]
        fn clean_up_in_pieces_is_clean_up_of_the_whole(pieces in prop::collection::vec("[ .?!,'nmstverx]{0,4}", 0..12)) {
            let whole = pieces.concat();
            let expected = CLEAN_UP.iter().fold(whole, |text, (pattern, content)| text.replace(pattern, content));
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            prop_assert_eq!(in_pieces(TextFilter::clean_up().collect(), &pieces), expected);
        }

        #[test]
        fn strips_in_pieces_are_strips_of_the_whole(
            pieces in prop::collection::vec("[ a]{0,3}", 0..8), start in 0usize..3, stop in 0usize..3,
        ) {
            let whole = pieces.concat();
            let mut expected = whole.as_str();
            for _ in 0..start { expected = expected.strip_prefix(' ').unwrap_or(expected); }
            for _ in 0..stop { expected = expected.strip_suffix(' ').unwrap_or(expected); }
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let filters = vec![TextFilter::strip_start(' ', start), TextFilter::strip_end(' ', stop)];
            prop_assert_eq!(in_pieces(filters, &pieces), expected);
        }
    }
}
