//! The decoders of tokenizer.json, one token at a time.
//!
//! The `tokenizers` crate defines a decoder as a function of the whole list of tokens. Here the same functions are state
//! machines that put out text as soon as no later token can change it, so that decoding a whole list and streaming a
//! generation are the same code. A chain is stages that map tokens to tokens, then a join, then filters on the joined text.

use serde_json::Value;

use super::text_filter::TextFilter;

/// Most decoders a chain may have; the published ones have four.
const MAX_STAGES: usize = 16;

/// A chain of decoders before the first token.
#[derive(Debug, Clone)]
pub(super) struct DecoderChain {
    stages: Vec<Stage>,
    join: Join,
    filters: Vec<TextFilter>,
}

/// Maps tokens to tokens.
#[derive(Debug, Clone)]
enum Stage {
    Replace {
        pattern: String,
        content: String,
    },
    Strip {
        content: char,
        start: usize,
        stop: usize,
    },
    /// Word marks become spaces, but vanish from the first token if encoding adds one there.
    Metaspace {
        replacement: char,
        strip: bool,
    },
    ByteFallback(ByteRun),
}

/// Tokens of the form `<0x0A>` that follow one another: a text if they are valid together, else U+FFFD for each.
#[derive(Debug, Clone, Default)]
struct ByteRun {
    bytes: Vec<u8>,
    /// Where the last character begins that may be incomplete.
    checked: usize,
    invalid: bool,
}

/// Makes one text of the tokens.
#[derive(Debug, Clone)]
enum Join {
    Concatenate,
    /// The rule for a tokenizer without decoder; holds whether a token has come.
    WithSpaces(bool),
    /// Byte-level BPE (`ByteLevel`): the characters stand for bytes, whose invalid sequences become U+FFFD.
    Bytes(Vec<u8>),
}

impl DecoderChain {
    /// Reads the `decoder` of a tokenizer.json; the error names what isn't supported.
    pub(super) fn new(json: Option<&Value>) -> Result<Self, String> {
        let Some(json) = json else {
            return Ok(Self { stages: Vec::new(), join: Join::WithSpaces(false), filters: Vec::new() });
        };
        let mut flat = Vec::new();
        flatten(json, &mut flat)?;
        let mut chain = Self { stages: Vec::new(), join: Join::Concatenate, filters: Vec::new() };
        let mut joined = false;
        for decoder in flat {
            let kind = decoder.get("type").and_then(Value::as_str).unwrap_or_default();
            match (kind, joined) {
                ("Fuse", _) => joined = true,
                ("ByteLevel", false) => {
                    chain.join = Join::Bytes(Vec::new());
                    joined = true;
                }
                ("Replace", false) => {
                    let (pattern, content) = replacement(decoder)?;
                    chain.stages.push(Stage::Replace { pattern, content });
                }
                ("Replace", true) => {
                    let (pattern, content) = replacement(decoder)?;
                    chain.filters.push(TextFilter::replace(pattern, content));
                }
                ("Strip", _) => {
                    let content = character(decoder, "content")?;
                    let (start, stop) = (number(decoder, "start")?, number(decoder, "stop")?);
                    if joined {
                        chain
                            .filters
                            .extend([TextFilter::strip_start(content, start), TextFilter::strip_end(content, stop)]);
                    } else {
                        chain.stages.push(Stage::Strip { content, start, stop });
                    }
                }
                ("Metaspace", false) => {
                    let replacement = character(decoder, "replacement")?;
                    let strip = decoder.get("prepend_scheme").and_then(Value::as_str) != Some("never");
                    chain.stages.push(Stage::Metaspace { replacement, strip });
                }
                ("ByteFallback", false) => chain.stages.push(Stage::ByteFallback(ByteRun::default())),
                (kind, false) => return Err(format!("a decoder of type \"{kind}\"")),
                (kind, true) => return Err(format!("a decoder of type \"{kind}\" after one that joins the tokens")),
            }
        }
        Ok(chain)
    }

    /// What transformers gives a tokenizer that it makes of a Llama tokenizer.model.
    pub(super) fn llama(strip_first_space: bool) -> Self {
        let word_mark = Stage::Replace { pattern: "\u{2581}".to_owned(), content: " ".to_owned() };
        Self {
            stages: vec![word_mark, Stage::ByteFallback(ByteRun::default())],
            join: Join::Concatenate,
            filters: strip_first_space.then(|| TextFilter::strip_start(' ', 1)).into_iter().collect(),
        }
    }

    /// The filters that the joined text goes through, besides those that the caller adds.
    pub(super) fn filters(&self) -> &[TextFilter] {
        &self.filters
    }

    /// The bytes that `token` adds inside a text, be they whole characters or a part of one. What a chain strips at the ends of a
    /// text stays; what it replaces in the joined text is replaced where the token holds all of it.
    pub(super) fn token_bytes(&self, mut token: String) -> Vec<u8> {
        for stage in &self.stages {
            token = match (stage, byte_of_token(&token)) {
                (Stage::ByteFallback(_), Some(byte)) if byte.is_ascii() => char::from(byte).to_string(),
                // The later stages know characters only.
                (Stage::ByteFallback(_), Some(byte)) => return vec![byte],
                _ => stage.inside(&token),
            };
        }
        match String::from_utf8(self.join.token_bytes(token)) {
            Ok(text) => self.filters.iter().fold(text, |text, filter| filter.inside(text)).into_bytes(),
            Err(error) => error.into_bytes(),
        }
    }

    /// Appends the joined text that is certain once `token` has come; not yet filtered.
    pub(super) fn push(&mut self, token: String, text: &mut String) {
        let join = &mut self.join;
        feed(&mut self.stages, token, &mut |token| join.push(&token, text));
    }

    /// Appends what was held back; not yet filtered.
    pub(super) fn finish(&mut self, text: &mut String) {
        let join = &mut self.join;
        let mut stages = self.stages.as_mut_slice();
        while let [first, rest @ ..] = stages {
            if let Stage::ByteFallback(run) = first {
                run.end(&mut |token| feed(rest, token, &mut |token| join.push(&token, text)));
            }
            stages = rest;
        }
        join.finish(text);
    }
}

/// Sequences in sequences become one list.
fn flatten<'a>(json: &'a Value, flat: &mut Vec<&'a Value>) -> Result<(), String> {
    let mut stack = vec![json];
    while let Some(decoder) = stack.pop() {
        match decoder.get("decoders").and_then(Value::as_array) {
            Some(inner) => stack.extend(inner.iter().rev()),
            None => flat.push(decoder),
        }
        if flat.len() > MAX_STAGES {
            return Err(format!("a chain of more than {MAX_STAGES} decoders"));
        }
    }
    Ok(())
}

fn replacement(decoder: &Value) -> Result<(String, String), String> {
    let pattern = decoder.get("pattern").and_then(|pattern| pattern.get("String")).and_then(Value::as_str);
    let content = decoder.get("content").and_then(Value::as_str);
    match (pattern, content) {
        (Some(pattern), Some(content)) if !pattern.is_empty() => Ok((pattern.to_owned(), content.to_owned())),
        _ => Err("a decoder that replaces something other than a fixed text".to_owned()),
    }
}

fn character(decoder: &Value, name: &str) -> Result<char, String> {
    let text = decoder.get(name).and_then(Value::as_str).unwrap_or_default();
    let mut characters = text.chars();
    match (characters.next(), characters.next()) {
        (Some(character), None) => Ok(character),
        _ => Err(format!("a decoder whose {name} is not one character")),
    }
}

fn number(decoder: &Value, name: &str) -> Result<usize, String> {
    let number = decoder.get(name).and_then(Value::as_u64).and_then(|number| usize::try_from(number).ok());
    number.ok_or_else(|| format!("a decoder whose {name} is not a number"))
}

/// Sends a token through the stages; at most [`MAX_STAGES`] deep.
fn feed(stages: &mut [Stage], token: String, sink: &mut dyn FnMut(String)) {
    let [first, rest @ ..] = stages else { return sink(token) };
    match first {
        Stage::Metaspace { replacement, strip } if *strip => {
            *strip = false;
            feed(rest, token.replace(*replacement, ""), sink);
        }
        Stage::ByteFallback(run) => match byte_of_token(&token) {
            Some(byte) => run.push(byte, &mut |token| feed(rest, token, sink)),
            None => {
                run.end(&mut |token| feed(rest, token, sink));
                feed(rest, token, sink);
            }
        },
        stage => feed(rest, stage.inside(&token), sink),
    }
}

impl Stage {
    /// What becomes of a token inside a text; bytes are not joined.
    fn inside(&self, token: &str) -> String {
        match self {
            Self::Replace { pattern, content } => token.replace(pattern.as_str(), content),
            Self::Strip { content, start, stop } => strip(token, *content, *start, *stop).to_owned(),
            Self::Metaspace { replacement, .. } => token.replace(*replacement, " "),
            Self::ByteFallback(_) => token.to_owned(),
        }
    }
}

fn strip(token: &str, content: char, start: usize, stop: usize) -> &str {
    let mut rest = token;
    for _ in 0..start {
        let Some(shorter) = rest.strip_prefix(content) else { break };
        rest = shorter;
    }
    for _ in 0..stop {
        let Some(shorter) = rest.strip_suffix(content) else { break };
        rest = shorter;
    }
    rest
}

/// The byte that a token of the form `<0x0A>` stands for; digits of either case.
fn byte_of_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

impl ByteRun {
    /// Takes a byte; once the run can't be valid any more, each of its bytes is a token U+FFFD.
    fn push(&mut self, byte: u8, sink: &mut dyn FnMut(String)) {
        self.bytes.push(byte);
        if !self.invalid {
            let tail = self.bytes.get(self.checked..).unwrap_or_default();
            match std::str::from_utf8(tail) {
                Ok(_) => self.checked = self.bytes.len(),
                Err(error) => {
                    self.checked += error.valid_up_to();
                    self.invalid = error.error_len().is_some();
                }
            }
        }
        if self.invalid {
            self.replace(sink);
        }
    }

    fn end(&mut self, sink: &mut dyn FnMut(String)) {
        match String::from_utf8(std::mem::take(&mut self.bytes)) {
            Ok(text) if text.is_empty() => {}
            Ok(text) => sink(text),
            Err(error) => {
                self.bytes = error.into_bytes();
                self.replace(sink);
            }
        }
        *self = Self::default();
    }

    fn replace(&mut self, sink: &mut dyn FnMut(String)) {
        for _ in self.bytes.drain(..) {
            sink("\u{fffd}".to_owned());
        }
    }
}

impl Join {
    /// The bytes that a token adds inside a text.
    fn token_bytes(&self, token: String) -> Vec<u8> {
        match self {
            Self::Concatenate => token.into_bytes(),
            Self::WithSpaces(_) => [" ", &token].concat().into_bytes(),
            Self::Bytes(_) => {
                let mut bytes = Vec::with_capacity(token.len());
                push_byte_level(&token, &mut bytes);
                bytes
            }
        }
    }

    fn push(&mut self, token: &str, text: &mut String) {
        match self {
            Self::Concatenate => text.push_str(token),
            Self::WithSpaces(begun) => {
                if std::mem::replace(begun, true) {
                    text.push(' ');
                }
                text.push_str(token);
            }
            Self::Bytes(pending) => {
                push_byte_level(token, pending);
                let rest = match pending.utf8_chunks().last() {
                    // Only an end that more bytes could complete is kept.
                    Some(chunk) if is_incomplete(chunk.invalid()) => chunk.invalid().to_vec(),
                    _ => Vec::new(),
                };
                let whole = pending.get(..pending.len() - rest.len()).unwrap_or_default();
                text.push_str(&String::from_utf8_lossy(whole));
                *pending = rest;
            }
        }
    }

    fn finish(&mut self, text: &mut String) {
        if let Self::Bytes(pending) = self {
            text.push_str(&String::from_utf8_lossy(pending));
            pending.clear();
        }
    }
}

fn is_incomplete(bytes: &[u8]) -> bool {
    matches!(std::str::from_utf8(bytes), Err(error) if error.error_len().is_none())
}

/// Appends the bytes that the characters of a token stand for; its own, if any of them stands for none.
fn push_byte_level(token: &str, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    if !token.chars().all(|c| byte_of_character(c).map(|byte| bytes.push(byte)).is_some()) {
        bytes.truncate(start);
        bytes.extend(token.bytes());
    }
}

/// The byte that a character of a byte-level vocabulary stands for: printable Latin-1 characters for themselves, the
/// others in order from U+0100 on.
fn byte_of_character(character: char) -> Option<u8> {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match u32::from(character) {
        code @ 0..=0xff => u8::try_from(code).ok().filter(|byte| is_printable(*byte)),
        code => (0..=0xff).filter(|byte| !is_printable(*byte)).nth((code - 0x100) as usize),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What the documentation of the decoders says, for chains that no fixture has.
    #[test]
    fn token_bytes_are_what_the_chain_makes_of_a_token_inside_a_text() {
        let replace = |from: &str, to: &str| json!({ "type": "Replace", "pattern": { "String": from }, "content": to });
        let strip = |start: u32, stop: u32| json!({ "type": "Strip", "content": "_", "start": start, "stop": stop });
        let kind = |kind: &str| json!({ "type": kind });
        let chain = |decoders: &[Value]| Some(json!({ "type": "Sequence", "decoders": decoders }));
        for (decoder, token, bytes) in [
            // Words with spaces between them.
            (None, "word", b" word".as_slice()),
            (chain(&[kind("Fuse")]), "<0x41>", b"<0x41>"),
            (chain(&[kind("ByteFallback"), kind("Fuse")]), "<0xff>", b"\xff"),
            (chain(&[kind("ByteFallback"), replace("A", "b"), kind("Fuse")]), "<0x41>", b"b"),
            (chain(&[replace("(", "<0x"), kind("ByteFallback"), kind("Fuse")]), "(E2>", b"\xe2"),
            // Before the join a token is stripped, after it the text is.
            (chain(&[strip(1, 2), kind("Fuse")]), "__a___", b"_a_"),
            (chain(&[kind("Fuse"), strip(1, 2)]), "__a___", b"__a___"),
            (chain(&[kind("Fuse"), replace("_", " ")]), "_a", b" a"),
            (chain(&[kind("ByteLevel"), replace(" ", "_")]), "\u{120}a", b"_a"),
            (chain(&[kind("ByteLevel"), replace(" ", "_")]), "\u{120}\u{c3}", b" \xc3"),
            // Added tokens may have characters that stand for no byte.
            (chain(&[kind("ByteLevel")]), "  \u{120}", b"  \xc4\xa0"),
        ] {
            let chain = DecoderChain::new(decoder.as_ref()).unwrap();
            assert_eq!(chain.token_bytes(token.to_owned()), bytes, "{token} {decoder:?}");
        }
    }
}
