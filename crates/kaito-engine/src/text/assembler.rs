//! The texts of a generation, as its tokens come and when they have ended.

use std::{
    collections::{HashMap, VecDeque},
    mem,
};

use super::{LikelyToken, TextEvent, TextOutput, TokenScore};
use crate::{
    generate::{self, Chosen, FinishReason, SequenceOutput},
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
    fn push(&mut self, token: u32) -> String {
        if self.stops.hit() {
            return String::new();
        }
        self.tokens += 1;
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

/// Turns the tokens of a generation into its texts.
#[derive(Debug)]
pub(crate) struct Assembler {
    /// A sequence before its first token.
    fresh: (StreamingDecoder, StopStrings),
    /// What every text begins with.
    shown: String,
    prompt_len: usize,
    sequences: Vec<SequenceText>,
    token_texts: TokenTexts,
    ending: Option<Ending>,
}

/// An answer while it is put together.
#[derive(Debug)]
struct Ending {
    outputs: std::vec::IntoIter<SequenceOutput>,
    sequence: Option<EndingSequence>,
    /// Whether the texts were streamed, so that what is left of them is, too.
    streamed: bool,
    answer: TextOutput,
    scores: Vec<Option<Vec<TokenScore>>>,
}

/// A sequence whose tokens are all there.
#[derive(Debug)]
struct EndingSequence {
    tokens: Vec<u32>,
    finish_reason: FinishReason,
    scores: Option<(std::vec::IntoIter<generate::TokenScore>, Vec<TokenScore>)>,
    /// Whether its text is complete.
    complete: bool,
}

impl Assembler {
    pub(super) fn new(
        tokenizer: &Tokenizer,
        prompt: &[u32],
        decode: DecodeOptions,
        shown: String,
        stops: StopStrings,
    ) -> Self {
        Self {
            fresh: (StreamingDecoder::new(tokenizer, prompt, decode), stops),
            shown,
            prompt_len: prompt.len(),
            sequences: Vec::new(),
            token_texts: TokenTexts { tokenizer: tokenizer.clone(), fresh: None, known: HashMap::new() },
            ending: None,
        }
    }

    /// Takes a token. The second value says that the sequence has come to a stop string.
    pub(super) fn push(&mut self, chosen: &Chosen) -> (Option<TextEvent>, bool) {
        let (index, token) = (chosen.sequence, chosen.token);
        let Some(sequence) = sequence(&mut self.sequences, &self.fresh, index) else { return (None, false) };
        if sequence.stops.hit() {
            // The engine was a step ahead of the stop.
            return (None, false);
        }
        let text = sequence.push(token);
        let hit = sequence.stops.hit();
        (Some(TextEvent::Delta { sequence: index, text, token }), hit)
    }

    /// Takes what the generation came to. What is left to do is for [`Self::go_on`].
    pub(super) fn end(&mut self, outputs: Vec<SequenceOutput>) {
        self.ending = Some(Ending {
            streamed: !self.sequences.is_empty(),
            answer: TextOutput {
                texts: Vec::new(),
                sequences: Vec::new(),
                sequences_scores: outputs.iter().map(|output| output.score).collect(),
                scores: None,
                finish_reasons: Vec::new(),
                prompt_tokens: self.prompt_len,
                generated_tokens: 0,
            },
            outputs: outputs.into_iter(),
            sequence: None,
            scores: Vec::new(),
        });
    }

    /// Whether the generation has ended.
    pub(super) fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    /// Puts the answer together for as long as some `budget` tokens take, and says how long that was. The answer is among
    /// the events when it is complete.
    pub(super) fn go_on(&mut self, budget: usize, events: &mut VecDeque<TextEvent>) -> usize {
        let Self { fresh, shown, prompt_len, sequences, token_texts, ending } = self;
        let mut worked = 0;
        while worked < budget {
            let Some(of_all) = ending else { break };
            worked += 1;
            let index = of_all.answer.texts.len();
            let Some(own) = &mut of_all.sequence else {
                match of_all.outputs.next() {
                    Some(SequenceOutput { tokens, finish_reason, scores, .. }) => {
                        let scores = scores.map(|scores| (scores.into_iter(), Vec::new()));
                        of_all.sequence = Some(EndingSequence { tokens, finish_reason, scores, complete: false });
                    }
                    None => {
                        let mut answer = ending.take().map(|Ending { mut answer, scores, .. }| {
                            answer.scores = scores.into_iter().collect();
                            answer
                        });
                        events.extend(answer.take().map(TextEvent::Finished));
                    }
                }
                continue;
            };
            let Some(text) = sequence(sequences, fresh, index) else { break };
            if !own.complete {
                if let Some(&token) = own.tokens.get(*prompt_len + text.tokens).filter(|_| !text.stops.hit()) {
                    text.push(token);
                    continue;
                }
                let rest = text.finish();
                if of_all.streamed && !rest.is_empty() {
                    events.push_back(TextEvent::Rest { sequence: index, text: rest });
                }
                own.tokens.truncate(*prompt_len + text.tokens);
                own.complete = true;
                continue;
            }
            let generated = own.tokens.len().saturating_sub(*prompt_len);
            if let Some((scores, done)) = &mut own.scores
                && done.len() < generated
                && let Some(score) = scores.next()
            {
                worked += score.top.len();
                done.push(token_texts.score(&score));
                continue;
            }
            let answer = &mut of_all.answer;
            answer.generated_tokens += generated;
            answer.texts.push(format!("{shown}{}", mem::take(&mut text.text)));
            answer.finish_reasons.push(if text.stops.hit() { FinishReason::Stop } else { own.finish_reason });
            answer.sequences.push(mem::take(&mut own.tokens));
            of_all.scores.push(own.scores.take().map(|(_, done)| done));
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

/// The texts of single tokens, each decoded once.
#[derive(Debug)]
struct TokenTexts {
    tokenizer: Tokenizer,
    /// A decoder that stands inside a text.
    fresh: Option<StreamingDecoder>,
    known: HashMap<u32, String>,
}

impl TokenTexts {
    fn score(&mut self, score: &generate::TokenScore) -> TokenScore {
        let text = self.text(score.token);
        let likely = |&(id, log_prob): &(u32, f32)| LikelyToken { id, text: self.text(id), log_prob };
        TokenScore { id: score.token, text, log_prob: score.log_prob, top: score.top.iter().map(likely).collect() }
    }

    /// A token's text where it stands inside a text: alone, many tokenizers would drop its leading space.
    fn text(&mut self, id: u32) -> String {
        let Self { tokenizer, fresh, known } = self;
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
