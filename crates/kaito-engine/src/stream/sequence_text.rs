//! The text of one sequence as it grows, and which of its tokens stand for how much of it.

use std::collections::VecDeque;

use kaito_model::tokenizer::StreamingDecoder;

use crate::{output::Token, stop_strings::StopStrings};

/// Text that is final now, with the token that it came with.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Piece {
    pub token: Option<Token>,
    pub text: String,
}

/// How tokens become text.
#[derive(Debug, Clone)]
pub(super) struct TextOptions {
    /// Tokens that have no text, whatever the tokenizer says.
    pub skipped: Vec<u32>,
    /// Tokens of a sequence in which no stop string counts.
    pub min_tokens: usize,
    /// Whether each token waits for its text.
    pub by_token: bool,
}

/// A token whose text is not all final.
#[derive(Debug)]
struct Waiting {
    token: Option<Token>,
    /// Whether it was given away, with the beginning of its text.
    given: bool,
    /// Bytes of its text that are not final.
    bytes: usize,
}

/// The text of one sequence as it grows.
#[derive(Debug)]
pub(super) struct SequenceText {
    decoder: Option<StreamingDecoder>,
    stops: StopStrings,
    /// All text that is final.
    pub text: String,
    /// Tokens that came.
    pub tokens: usize,
    /// Those of them that were given away, where tokens wait for their texts.
    given: usize,
    waiting: VecDeque<Waiting>,
}

impl SequenceText {
    pub fn new(decoder: StreamingDecoder, stops: StopStrings) -> Self {
        let (text, waiting) = (String::new(), VecDeque::new());
        Self { decoder: Some(decoder), stops, text, tokens: 0, given: 0, waiting }
    }

    /// Whether a stop string has ended it.
    pub fn stopped(&self) -> bool {
        self.stops.hit()
    }

    /// The stop string that has ended it.
    pub fn stop_string(&self) -> Option<&str> {
        self.stops.found()
    }

    /// How many of the tokens that came the text is made of.
    pub fn kept(&self, options: &TextOptions) -> usize {
        if options.by_token { self.given } else { self.tokens }
    }

    /// Takes a token, described by `token` where somebody wants to hear of it.
    pub fn push(&mut self, id: u32, token: Option<Token>, options: &TextOptions) -> Vec<Piece> {
        self.tokens += 1;
        let text = if options.skipped.contains(&id) {
            String::new()
        } else {
            self.decoder.as_mut().map(|decoder| decoder.push(id)).unwrap_or_default()
        };
        if options.by_token {
            self.waiting.push_back(Waiting { token, given: false, bytes: text.len() });
            let text = self.pass(&text, options);
            self.give(&text)
        } else {
            vec![Piece { token, text: self.pass(&text, options) }]
        }
    }

    /// What is left when no token follows. The last piece has no token.
    pub fn finish(&mut self, options: &TextOptions) -> Vec<Piece> {
        let text = self.decoder.take().map(StreamingDecoder::finish).unwrap_or_default();
        if let Some(last) = self.waiting.back_mut() {
            last.bytes += text.len();
        }
        let mut text = self.pass(&text, options);
        let stopped = self.stopped();
        if !stopped {
            let held = self.stops.finish();
            self.text.push_str(&held);
            text.push_str(&held);
        }
        if !options.by_token {
            return vec![Piece { token: None, text }];
        }
        let mut pieces = self.give(&text);
        if !stopped {
            // What has no text; there is none left that is not final.
            for waiting in self.waiting.drain(..).filter(|waiting| !waiting.given) {
                self.given += 1;
                pieces.push(Piece { token: waiting.token, text: String::new() });
            }
        }
        if pieces.last().is_none_or(|last| last.token.is_some()) {
            pieces.push(Piece::default());
        }
        pieces
    }

    fn pass(&mut self, text: &str, options: &TextOptions) -> String {
        let text = self.stops.push(text, self.tokens > options.min_tokens);
        self.text.push_str(&text);
        text
    }

    /// Gives away the tokens whose texts begin in `text`, which is final now, each with as much of it as is its own; what belongs
    /// to a token that was given away before stands before the next one's.
    fn give(&mut self, text: &str) -> Vec<Piece> {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut before = String::new();
        let mut rest = text;
        while !rest.is_empty()
            && let Some(first) = self.waiting.front_mut()
        {
            let (own, others) = rest.split_at_checked(first.bytes.min(rest.len())).unwrap_or((rest, ""));
            rest = others;
            first.bytes -= own.len().min(first.bytes);
            before.push_str(own);
            if !std::mem::replace(&mut first.given, true) {
                self.given += 1;
                pieces.push(Piece { token: first.token.take(), text: std::mem::take(&mut before) });
            }
            if first.bytes == 0 {
                self.waiting.pop_front();
            }
        }
        before.push_str(rest);
        if !before.is_empty() {
            pieces.push(Piece { token: None, text: before });
        }
        pieces
    }
}
