//! The texts of one prompt's sequences, as their tokens come and when they have ended.

use std::{
    collections::{HashMap, VecDeque},
    mem,
};

use crate::{
    generate::{self, Chosen, FinishReason, SequenceOutput},
    output::{Delta, LikelyToken, OutputSequence, StreamEvent, Token, TokenScore},
    stop_strings::StopStrings,
};
use kaito_model::tokenizer::{DecodeOptions, Special, StreamingDecoder, Tokenizer};

/// The text of one sequence as it grows.
#[derive(Debug)]
struct SequenceText {
    decoder: Option<StreamingDecoder>,
    stops: StopStrings,
    text: String,
    tokens: usize,
}

impl SequenceText {
    /// Takes a token, which has no text if it is among `skipped`.
    fn push(&mut self, token: u32, skipped: &[u32]) -> String {
        if self.stops.hit() {
            return String::new();
        }
        self.tokens += 1;
        if skipped.contains(&token) {
            return String::new();
        }
        let text = self.decoder.as_mut().map(|decoder| decoder.push(token)).unwrap_or_default();
        self.pass(&text)
    }

    /// What is left when no token follows.
    fn finish(&mut self) -> String {
        let text = self.decoder.take().map(StreamingDecoder::finish).unwrap_or_default();
        let mut text = self.pass(&text);
        if !self.stops.hit() {
            let held = self.stops.finish();
            self.text.push_str(&held);
            text.push_str(&held);
        }
        text
    }

    fn pass(&mut self, text: &str) -> String {
        let text = self.stops.push(text);
        self.text.push_str(&text);
        text
    }
}

/// Turns the tokens of one prompt's sequences into their texts.
#[derive(Debug)]
pub(crate) struct Assembler {
    /// A sequence before its first token.
    fresh: (StreamingDecoder, StopStrings),
    /// Tokens that have no text, whatever the tokenizer says.
    skipped: Vec<u32>,
    prompt_len: usize,
    /// Index of the prompt's first sequence among those of the request.
    first: usize,
    /// Whether tokens come one by one, and not all at the end.
    streams: bool,
    sequences: Vec<SequenceText>,
    token_texts: TokenTexts,
    ending: Option<Ending>,
    complete: Option<Vec<OutputSequence>>,
}

/// The sequences while they are put together.
#[derive(Debug)]
struct Ending {
    outputs: std::vec::IntoIter<SequenceOutput>,
    sequence: Option<EndingSequence>,
    done: Vec<OutputSequence>,
}

/// A sequence whose tokens are all there.
#[derive(Debug)]
struct EndingSequence {
    /// Its new tokens.
    tokens: Vec<u32>,
    finish_reason: FinishReason,
    beam_score: Option<f32>,
    scores: Option<(std::vec::IntoIter<generate::TokenScore>, Vec<TokenScore>)>,
    /// Whether its text is complete.
    complete: bool,
}

impl EndingSequence {
    fn new(output: SequenceOutput, prompt_len: usize) -> Self {
        let SequenceOutput { mut tokens, score, finish_reason, scores } = output;
        tokens.drain(..prompt_len.min(tokens.len()));
        let scores = scores.map(|scores| (scores.into_iter(), Vec::new()));
        Self { tokens, finish_reason, beam_score: score, scores, complete: false }
    }
}

impl Assembler {
    /// For a prompt of `prompt_len` tokens. `decoder` stands where its answer begins.
    pub(crate) fn new(
        tokenizer: &Tokenizer,
        decoder: StreamingDecoder,
        stops: StopStrings,
        skipped: Vec<u32>,
        prompt_len: usize,
        streams: bool,
    ) -> Self {
        Self {
            fresh: (decoder, stops),
            skipped,
            prompt_len,
            first: 0,
            streams,
            sequences: Vec::new(),
            token_texts: TokenTexts {
                tokenizer: tokenizer.clone(),
                fresh: None,
                known: HashMap::new(),
                gives_bytes: false,
            },
            ending: None,
            complete: None,
        }
    }

    /// Says whether tokens come with their bytes; they don't otherwise.
    pub(crate) fn give_token_bytes(&mut self, gives_bytes: bool) {
        self.token_texts.gives_bytes = gives_bytes;
    }

    /// Numbers the sequences from `first` on in what becomes known of them.
    pub(super) fn number_from(&mut self, first: usize) {
        self.first = first;
    }

    /// Takes a token. The second value says that the sequence has come to a stop string.
    pub(super) fn push(&mut self, chosen: &Chosen) -> (Option<Delta>, bool) {
        let Some(sequence) = sequence(&mut self.sequences, &self.fresh, chosen.sequence) else { return (None, false) };
        if sequence.stops.hit() {
            // The engine was a step ahead of the stop.
            return (None, false);
        }
        let text = sequence.push(chosen.token, &self.skipped);
        let hit = sequence.stops.hit();
        let token = Token {
            id: chosen.token,
            log_prob: chosen.score.as_ref().map(|score| score.log_prob),
            bytes: self.token_texts.bytes(chosen.token),
        };
        (Some(Delta { sequence: self.first + chosen.sequence, text, token: Some(token), finish_reason: None }), hit)
    }

    /// Takes what the generation came to. What is left to do is for [`Self::go_on`].
    pub(super) fn end(&mut self, outputs: Vec<SequenceOutput>) {
        self.ending =
            Some(Ending { done: Vec::with_capacity(outputs.len()), outputs: outputs.into_iter(), sequence: None });
    }

    /// Whether the generation has ended.
    pub(super) fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    /// The sequences, once [`Self::go_on`] has put them together.
    pub(super) fn take_complete(&mut self) -> Option<Vec<OutputSequence>> {
        self.complete.take()
    }

    /// Puts the sequences together for as long as some `budget` tokens take, and says how long that was.
    pub(super) fn go_on(&mut self, budget: usize, events: &mut VecDeque<StreamEvent>) -> usize {
        let Self { fresh, skipped, prompt_len, first, streams, sequences, token_texts, ending, complete } = self;
        let mut worked = 0;
        while worked < budget {
            let Some(of_all) = ending else { break };
            worked += 1;
            let index = of_all.done.len();
            let Some(own) = &mut of_all.sequence else {
                match of_all.outputs.next() {
                    Some(output) => of_all.sequence = Some(EndingSequence::new(output, *prompt_len)),
                    None => *complete = ending.take().map(|ending| ending.done),
                }
                continue;
            };
            let Some(text) = sequence(sequences, fresh, index) else { break };
            if !own.complete {
                if let Some(&token) = own.tokens.get(text.tokens).filter(|_| !text.stops.hit()) {
                    text.push(token, skipped);
                    continue;
                }
                let rest = text.finish();
                own.tokens.truncate(text.tokens);
                if text.stops.hit() {
                    own.finish_reason = FinishReason::Stop;
                }
                if *streams {
                    events.push_back(StreamEvent::Delta(Delta {
                        sequence: *first + index,
                        text: rest,
                        token: None,
                        finish_reason: Some(own.finish_reason),
                    }));
                }
                own.complete = true;
                continue;
            }
            if let Some((scores, done)) = &mut own.scores
                && done.len() < own.tokens.len()
                && let Some(score) = scores.next()
            {
                worked += score.top.len();
                done.push(token_texts.score(&score));
                continue;
            }
            of_all.done.push(OutputSequence {
                text: mem::take(&mut text.text),
                tokens: mem::take(&mut own.tokens),
                finish_reason: own.finish_reason,
                beam_score: own.beam_score,
                scores: own.scores.take().map(|(_, done)| done),
            });
            of_all.sequence = None;
        }
        worked
    }
}

/// The sequence at `index`; it begins like `fresh`.
fn sequence<'a>(
    sequences: &'a mut Vec<SequenceText>,
    fresh: &(StreamingDecoder, StopStrings),
    index: usize,
) -> Option<&'a mut SequenceText> {
    while sequences.len() <= index {
        let (decoder, stops) = fresh.clone();
        sequences.push(SequenceText { decoder: Some(decoder), stops, text: String::new(), tokens: 0 });
    }
    sequences.get_mut(index)
}

/// The texts of single tokens, each decoded once, and their bytes.
#[derive(Debug)]
struct TokenTexts {
    tokenizer: Tokenizer,
    /// A decoder that stands inside a text.
    fresh: Option<StreamingDecoder>,
    known: HashMap<u32, String>,
    /// Whether anybody asks for bytes.
    gives_bytes: bool,
}

impl TokenTexts {
    fn score(&mut self, score: &generate::TokenScore) -> TokenScore {
        let text = self.text(score.token);
        let likely =
            |&(id, log_prob): &(u32, f32)| LikelyToken { id, text: self.text(id), log_prob, bytes: self.bytes(id) };
        let top = score.top.iter().map(likely).collect();
        TokenScore { id: score.token, text, log_prob: score.log_prob, bytes: self.bytes(score.token), top }
    }

    fn bytes(&self, id: u32) -> Option<Vec<u8>> {
        if self.gives_bytes { self.tokenizer.token_bytes(id) } else { None }
    }

    /// A token's text where it stands inside a text: alone, many tokenizers would drop its leading space.
    fn text(&mut self, id: u32) -> String {
        let Self { tokenizer, fresh, known, .. } = self;
        let decoded = || {
            let fresh = fresh.get_or_insert_with(|| {
                let decode = DecodeOptions { skip_special_tokens: false, clean_up_tokenization_spaces: false };
                let anchor = tokenizer.encode("a", Special::Skip).unwrap_or_default();
                StreamingDecoder::new(tokenizer, &anchor, decode)
            });
            let mut decoder = fresh.clone();
            let text = decoder.push(id);
            text + &decoder.finish()
        };
        known.entry(id).or_insert_with(decoded).clone()
    }
}
