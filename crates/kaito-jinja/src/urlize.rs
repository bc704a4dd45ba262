//! The filter `urlize`: URLs in a string become links.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use regex::Regex;

use crate::budget::Buffer;
use crate::fault::{Fault, Outcome, quoted};
use crate::functions::CallArgs;
use crate::render::Renderer;
use crate::value::Value;

/// As in Jinja2.
static HTTP: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"(?xi)
        ^
        (
            (https?://|www\.)
            (([\w%-]+\.)+)?
            ( [a-z]{2,63} | xn--[\w%]{2,59} )
        |
            ([\w%-]{2,63}\.)+
            (com|net|int|edu|gov|org|info|mil)
        |
            (https?://)
            (
                (([\d]{1,3})(\.[\d]{1,3}){3})
            |
                (\[([\da-f]{0,4}:){2}([\da-f]{0,4}:?){1,6}])
            )
        )
        (?::[\d]{1,5})?
        (?:[/?\#]\S*)?
        $",
    )
    .ok()
});
static EMAIL: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^\S+@\w[\w.-]*\.\w+$").ok());
static SCHEME: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^([\w.+-]{2,}:(/){0,2})$").ok());

/// Longest word that is matched: the patterns take a microsecond for each of its bytes.
const MAX_WORD: usize = 4096;

fn matches(pattern: &Option<Regex>, text: &str) -> bool {
    pattern.as_ref().is_some_and(|pattern| pattern.is_match(text))
}

/// Cuts the characters and references that may stand around an address.
fn surroundings(word: &str) -> (usize, usize) {
    let mut start = 0;
    loop {
        let rest = &word[start..];
        start += match rest {
            _ if rest.starts_with(['(', '<']) => 1,
            _ if rest.starts_with("&lt;") => 4,
            _ => break,
        };
    }
    let mut end = word.len();
    loop {
        let rest = &word[start..end];
        end -= match rest {
            _ if rest.ends_with([')', '>', '.', ',', '\n']) => 1,
            _ if rest.ends_with("&gt;") => 4,
            _ => break,
        };
    }
    (start, end)
}

impl Renderer<'_> {
    pub(crate) fn urlize(&mut self, value: &Value, args: CallArgs) -> Outcome<Value> {
        let names = ["trim_url_limit", "nofollow", "target", "rel", "extra_schemes"];
        let [limit, nofollow, target, rel, schemes] = args.bind("urlize", names, 0)?;
        let limit = match &limit {
            None | Some(Value::None) => None,
            limit => Some(self.int_arg(limit.as_ref(), 0)?),
        };
        let mut words = BTreeSet::from(["noopener".to_owned()]);
        if let Some(rel) = rel.filter(|rel| !matches!(rel, Value::None)) {
            words.extend(self.str_arg(Some(&rel), "rel")?.split_whitespace().map(str::to_owned));
        }
        if self.bool_arg(nofollow.as_ref(), false)? {
            words.insert("nofollow".to_owned());
        }
        let rel = self.budget.str(words.into_iter().collect::<Vec<_>>().join(" "))?;
        let mut attributes = Buffer::new(&self.budget)?;
        attributes.push_str(" rel=\"")?;
        self.write_escaped(&mut attributes, &rel)?;
        attributes.push('"')?;
        if let Some(target) = &target
            && self.truth(target)?
        {
            attributes.push_str(" target=\"")?;
            self.write_escaped(&mut attributes, target)?;
            attributes.push('"')?;
        }
        let mut extra = Vec::new();
        if let Some(schemes) = schemes.filter(|schemes| !matches!(schemes, Value::None)) {
            for scheme in &self.collect(&schemes)?.items {
                let scheme = self.str_arg(Some(scheme), "a scheme")?;
                if !matches(&SCHEME, scheme) {
                    return Err(Fault::runtime(format!("{} is not a valid URI scheme prefix.", quoted(scheme))));
                }
                extra.push(scheme.to_owned());
            }
        }
        let mut text = Buffer::new(&self.budget)?;
        self.write_escaped(&mut text, value)?;
        // Matching an address takes some steps for each of its bytes.
        self.step(text.text.len())?;
        let mut buffer = Buffer::new(&self.budget)?;
        let mut rest = text.text.as_str();
        while !rest.is_empty() {
            let spaces = rest.len() - rest.trim_start_matches(crate::chars::is_space).len();
            buffer.push_str(&rest[..spaces])?;
            rest = &rest[spaces..];
            let end = rest.find(crate::chars::is_space).unwrap_or(rest.len());
            self.step(1)?;
            if end > MAX_WORD {
                return Err(Fault::unsupported(format!("urlize of a word of more than {MAX_WORD} bytes")));
            }
            link(&mut buffer, &rest[..end], limit, &attributes.text, &extra)?;
            rest = &rest[end..];
        }
        Ok(self.budget.built(buffer, self.autoescape))
    }
}

fn link(buffer: &mut Buffer, word: &str, limit: Option<i128>, attributes: &str, schemes: &[String]) -> Outcome<()> {
    let (start, mut end) = surroundings(word);
    // Brackets that are opened inside an address are closed inside it.
    for (open, close) in [("(", ")"), ("<", ">"), ("&lt;", "&gt;")] {
        let opened = word[start..end].matches(open).count();
        if opened <= word[start..end].matches(close).count() {
            continue;
        }
        for _ in 0..opened.min(word[end..].matches(close).count()) {
            let Some(at) = word[end..].find(close) else { break };
            end += at + close.len();
        }
    }
    let middle = &word[start..end];
    buffer.push_str(&word[..start])?;
    let shown = |buffer: &mut Buffer| match limit {
        Some(limit) if middle.chars().count() as i128 > limit => {
            let length = middle.chars().count() as i128;
            // A negative limit cuts from the end, as a slice does.
            let kept = if limit < 0 { (length + limit).max(0) } else { limit };
            let kept = usize::try_from(kept).unwrap_or(usize::MAX);
            let at = middle.char_indices().nth(kept).map_or(middle.len(), |(at, _)| at);
            buffer.push_str(&middle[..at])?;
            buffer.push_str("...")
        }
        _ => buffer.push_str(middle),
    };
    if matches(&HTTP, middle) {
        let scheme = if middle.starts_with("https://") || middle.starts_with("http://") { "" } else { "https://" };
        buffer.push_str(&format!("<a href=\"{scheme}{middle}\"{attributes}>"))?;
        shown(buffer)?;
        buffer.push_str("</a>")?;
    } else if let Some(address) = middle.strip_prefix("mailto:").filter(|address| matches(&EMAIL, address)) {
        buffer.push_str(&format!("<a href=\"{middle}\">{address}</a>"))?;
    } else if middle.contains('@')
        && !middle.starts_with("www.")
        && !middle.starts_with('@')
        && !middle.contains(':')
        && matches(&EMAIL, middle)
    {
        buffer.push_str(&format!("<a href=\"mailto:{middle}\">{middle}</a>"))?;
    } else {
        let mut linked = middle.to_owned();
        for scheme in schemes {
            if linked != *scheme && linked.starts_with(scheme.as_str()) {
                linked = format!("<a href=\"{linked}\"{attributes}>{linked}</a>");
            }
        }
        buffer.push_str(&linked)?;
    }
    buffer.push_str(&word[end..])
}
