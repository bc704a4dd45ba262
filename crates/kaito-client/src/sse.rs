//! Server-sent events as they arrive: a stream may be cut at any byte.

/// Bytes of a line or of an event's data beyond which no server of this kind goes.
const MAX_BYTES: usize = 8 << 20;

/// A server-sent event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Event {
    /// Empty for nameless events.
    pub name: String,
    /// Its data, several lines joined by line feeds.
    pub data: String,
}

/// A line or an event without end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooLong;

/// Takes bytes, gives events.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    /// Whether the last byte was a carriage return, after which a line feed ends no other line.
    after_return: bool,
    /// Whether a line was read; a byte order mark stands before the first alone.
    begun: bool,
    event: Event,
    has_data: bool,
}

impl Parser {
    /// Adds the events that `bytes` complete to `events`.
    pub(crate) fn feed(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Result<(), TooLong> {
        for &byte in bytes {
            let second_of_pair = std::mem::take(&mut self.after_return) && byte == b'\n';
            match byte {
                b'\n' if second_of_pair => {}
                b'\n' | b'\r' => {
                    self.after_return = byte == b'\r';
                    let line = std::mem::take(&mut self.line);
                    self.take_line(&line, events)?;
                }
                _ => {
                    if self.line.len() == MAX_BYTES {
                        return Err(TooLong);
                    }
                    self.line.push(byte);
                }
            }
        }
        Ok(())
    }

    fn take_line(&mut self, line: &[u8], events: &mut Vec<Event>) -> Result<(), TooLong> {
        let first = !std::mem::replace(&mut self.begun, true);
        let line = if first { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) } else { line };
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            if std::mem::take(&mut self.has_data) {
                events.push(event);
            }
            return Ok(());
        }
        let colon = line.iter().position(|&byte| byte == b':').unwrap_or(line.len());
        let (field, value) = line.split_at(colon);
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = String::from_utf8_lossy(value.strip_prefix(b" ").unwrap_or(value));
        match field {
            b"data" => {
                if self.event.data.len() + value.len() >= MAX_BYTES {
                    return Err(TooLong);
                }
                if std::mem::replace(&mut self.has_data, true) {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(&value);
            }
            b"event" => self.event.name = value.into_owned(),
            // Comments have no name; ids and times to reconnect are of no use here.
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Event> {
        let mut parser = Parser::default();
        let mut events = Vec::new();
        for piece in pieces {
            parser.feed(piece, &mut events).unwrap();
        }
        events
    }

    fn event(name: &str, data: &str) -> Event {
        Event { name: name.to_owned(), data: data.to_owned() }
    }

    /// The examples of the HTML standard's chapter on the format, and what it says about line ends.
    #[test]
    fn events_are_those_of_the_standard() {
        for (stream, expected) in [
            ("data: YHOO\ndata: +2\ndata: 10\n\n", vec![event("", "YHOO\n+2\n10")]),
            (
                ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n",
                vec![event("", "first event"), event("", "second event")],
            ),
            ("data\n\ndata\ndata\n\ndata:", vec![event("", ""), event("", "\n")]),
            ("data:test\n\ndata: test\n\n", vec![event("", "test"), event("", "test")]),
            ("event: add\ndata: 73\n\nevent: remove\n\ndata: 1\n\n", vec![event("add", "73"), event("", "1")]),
            ("data: a\r\n\r\ndata: b\r\rdata: c\n\n", vec![event("", "a"), event("", "b"), event("", "c")]),
            ("\u{feff}data: a\n\n\u{feff}data: b\n\n", vec![event("", "a")]),
            ("retry: 10\ndata: é\nunknown: x\n\n", vec![event("", "é")]),
        ] {
            assert_eq!(parse([stream.as_bytes()]), expected, "{stream:?}");
        }
    }

    #[test]
    fn what_never_ends_is_refused() {
        let mut parser = Parser::default();
        let mut events = Vec::new();
        assert_eq!(parser.feed(&vec![b'a'; MAX_BYTES], &mut events), Ok(()));
        assert_eq!(parser.feed(b"a", &mut events), Err(TooLong));
        let mut parser = Parser::default();
        let line = [b"data:".to_vec(), vec![b'a'; MAX_BYTES / 2], b"\n".to_vec()].concat();
        assert_eq!(parser.feed(&line, &mut events), Ok(()));
        assert_eq!(parser.feed(&line, &mut events), Err(TooLong));
        assert!(events.is_empty());
    }

    proptest! {
        #[test]
        fn cuts_change_nothing(
            lines in prop::collection::vec(
                prop_oneof![
                    Just(String::new()),
                    "data: ?.{0,12}",
                    "event: ?[a-z]{0,5}",
                    ":.{0,5}",
                    ".{0,8}",
                ],
                0..30,
            ),
            ends in prop::collection::vec(prop::sample::select(vec!["\n", "\r", "\r\n"]), 30),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let stream: String = lines.iter().zip(&ends).flat_map(|(line, end)| [line.as_str(), end]).collect();
            let bytes = stream.as_bytes();
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).chain([0, bytes.len()]).collect();
            at.sort_unstable();
            let pieces: Vec<&[u8]> = at.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(parse(pieces), parse([bytes]));
            prop_assert_eq!(parse(bytes.chunks(1)), parse([bytes]));
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            parse([bytes.as_slice()]);
        }

        #[test]
        fn what_is_written_is_read(texts in prop::collection::vec("[^\r\n]{0,20}", 1..10)) {
            let stream: String = texts.iter().map(|text| format!("event: x\ndata: {text}\n\n")).collect();
            let expected: Vec<Event> = texts.iter().map(|text| event("x", text)).collect();
            prop_assert_eq!(parse([stream.as_bytes()]), expected);
        }
    }
}
