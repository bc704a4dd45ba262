//! The header Accept, as RFC 9110 has it in section 12.5.1.

/// A media type that can be had.
pub(crate) struct Offer {
    pub(crate) kind: &'static str,
    pub(crate) subtype: &'static str,
    pub(crate) parameters: &'static [(&'static str, &'static str)],
}

/// How much a client wants an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wish {
    /// Thousandths; 0 is a refusal.
    pub(crate) quality: u16,
    /// Whether the client named the type, and not something that includes it.
    pub(crate) named: bool,
}

/// What the client would have, each with its quality: `text/*;q=0.5, ...`.
pub(crate) struct Accept(Vec<Range>);

struct Range {
    kind: String,
    subtype: String,
    parameters: Vec<(String, String)>,
    quality: u16,
}

impl Accept {
    /// Of the values of all such headers of a request. What is no media range is passed over.
    pub(crate) fn parse<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let values = values.into_iter().map(String::from_utf8_lossy);
        Self(values.flat_map(|value| split(&value, ',').map(Range::parse).collect::<Vec<_>>()).flatten().collect())
    }

    /// The range that describes `offer` most closely decides.
    pub(crate) fn wish(&self, offer: &Offer) -> Wish {
        if self.0.is_empty() {
            return Wish { quality: 1000, named: false };
        }
        let matching = self.0.iter().filter_map(|range| Some((range.closeness(offer)?, range.quality)));
        match matching.max() {
            Some(((_, named, _), quality)) => Wish { quality, named },
            None => Wish { quality: 0, named: false },
        }
    }
}

impl Range {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = split(text, ';');
        let (kind, subtype) = parts.next()?.split_once('/')?;
        let [kind, subtype] = [kind, subtype].map(|part| part.trim().to_ascii_lowercase());
        if kind.is_empty() || subtype.is_empty() || (kind == "*" && subtype != "*") {
            return None;
        }
        let mut range = Self { kind, subtype, parameters: Vec::new(), quality: 1000 };
        for parameter in parts.filter(|part| !part.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let (name, value) = (name.trim().to_ascii_lowercase(), unquoted(value.trim()));
            if name == "q" {
                range.quality = quality(&value)?;
                // What follows belongs to no media type.
                break;
            }
            range.parameters.push((name, value));
        }
        Some(range)
    }

    /// How closely this describes `offer`: by its type, its subtype, and the number of its parameters. `None` if it does not.
    /// A parameter that the offer does not know (scrapers send `escaping`) changes nothing.
    fn closeness(&self, offer: &Offer) -> Option<(bool, bool, usize)> {
        let is = |range: &str, offered: &str| match range {
            "*" => Some(false),
            range => (range == offered).then_some(true),
        };
        let (kind, subtype) = (is(&self.kind, offer.kind)?, is(&self.subtype, offer.subtype)?);
        let known = self.parameters.iter().filter_map(|(name, value)| {
            let (_, offered) = offer.parameters.iter().find(|(offered, _)| offered == name)?;
            Some(offered.eq_ignore_ascii_case(value))
        });
        let (mut same, mut number) = (true, 0);
        known.for_each(|equal| (same, number) = (same && equal, number + 1));
        same.then_some((kind, subtype, number))
    }
}

/// Thousandths of `0.5`, of which there are at most three places.
fn quality(text: &str) -> Option<u16> {
    let (whole, places) = text.split_once('.').unwrap_or((text, ""));
    if !places.bytes().all(|byte| byte.is_ascii_digit()) || places.len() > 3 {
        return None;
    }
    let thousandths: u16 = format!("{places:0<3}").parse().ok()?;
    match whole {
        "0" => Some(thousandths),
        "1" if thousandths == 0 => Some(1000),
        _ => None,
    }
}

/// The parts between separators that stand in no quotes.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |c: char| {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ => return c == separator && !quoted,
        }
        false
    })
    .map(str::trim)
}

fn unquoted(value: &str) -> String {
    let Some(inner) = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else { return value.to_owned() };
    let mut text = String::new();
    let mut characters = inner.chars();
    while let Some(c) = characters.next() {
        text.extend(if c == '\\' { characters.next() } else { Some(c) });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const HTML_LEVEL_1: Offer = Offer { kind: "text", subtype: "html", parameters: &[("level", "1")] };
    const HTML_LEVEL_3: Offer = Offer { kind: "text", subtype: "html", parameters: &[("level", "3")] };
    const HTML: Offer = Offer { kind: "text", subtype: "html", parameters: &[] };
    const PLAIN: Offer = Offer { kind: "text", subtype: "plain", parameters: &[] };
    const JPEG: Offer = Offer { kind: "image", subtype: "jpeg", parameters: &[] };

    /// The table of RFC 9110, section 12.5.1, without its last row, which contradicts its own text.
    #[test]
    fn the_example_of_the_rfc() {
        let values =
            [&b"text/*;q=0.3, text/plain;q=0.7, text/plain;format=flowed,"[..], b"text/plain;format=fixed;q=0.4"];
        let accept = Accept::parse(values.into_iter().chain([&b"*/*;q=0.5"[..]]));
        let flowed = Offer { kind: "text", subtype: "plain", parameters: &[("format", "flowed")] };
        let fixed = Offer { kind: "text", subtype: "plain", parameters: &[("format", "fixed")] };
        let delsp = Offer { kind: "text", subtype: "plain", parameters: &[("format", "other")] };
        for (offer, quality) in [(flowed, 1000), (delsp, 700), (HTML, 300), (JPEG, 500), (fixed, 400)] {
            assert_eq!(accept.wish(&offer).quality, quality, "{}/{} {:?}", offer.kind, offer.subtype, offer.parameters);
        }
    }

    #[test]
    fn ranges_as_they_come() {
        for (text, offer, quality, named) in [
            ("", &HTML, 1000, false),
            (" , ,", &HTML, 1000, false),
            ("text/html", &HTML, 1000, true),
            ("TEXT/HTML; Q=0.25", &HTML, 250, true),
            ("text/html ; q=0.5 ; extension=7", &HTML, 500, true),
            ("text/*", &HTML, 1000, false),
            ("*/*;q=0.001", &HTML, 1, false),
            ("text/html;q=0, */*", &HTML, 0, true),
            ("text/html;q=0.000", &HTML, 0, true),
            ("image/png", &HTML, 0, false),
            ("text/html;level=1", &HTML_LEVEL_1, 1000, true),
            ("text/html;level=\"1\";q=0.5", &HTML_LEVEL_1, 500, true),
            ("text/html;level=1", &HTML_LEVEL_3, 0, false),
            ("text/html;level=1, text/html;q=0.4", &HTML_LEVEL_3, 400, true),
            ("text/html;q=0.4;level=1", &HTML_LEVEL_3, 400, true),
            ("text/html;unknown=1", &HTML_LEVEL_1, 1000, true),
            ("image/png;a=\"x,text/html;q=1\", text/html;q=0.2", &HTML, 200, true),
            ("image/png;a=\"\\\",\", text/html;q=0.2", &HTML, 200, true),
            // No media ranges, or none with a weight.
            ("html, text/plain", &HTML, 0, false),
            ("*/html, text/plain", &HTML, 0, false),
            ("text/html;q=2, text/plain", &HTML, 0, false),
            ("text/html;q=0.1234, text/plain", &HTML, 0, false),
            ("text/html;q=-1, text/plain", &HTML, 0, false),
            ("text/html;q=, text/plain", &HTML, 0, false),
            ("text/html;q=1.001, text/plain", &HTML, 0, false),
            ("text/html;q=1., text/plain;q=0.", &HTML, 1000, true),
            ("text/plain", &PLAIN, 1000, true),
        ] {
            assert_eq!(Accept::parse([text.as_bytes()]).wish(offer), Wish { quality, named }, "{text}");
        }
        assert_eq!(Accept::parse([]).wish(&JPEG).quality, 1000, "who says nothing accepts everything");
        assert_eq!(Accept::parse([&b"\xff/\xff, image/jpeg;q=0.5"[..]]).wish(&JPEG).quality, 500);
    }
}
