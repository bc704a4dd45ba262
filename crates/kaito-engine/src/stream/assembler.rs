//! The texts of one prompt's sequences, as their tokens come and when they have ended.

use std::{collections::VecDeque, mem, sync::Arc};

use super::{
    sequence_text::{Piece, SequenceText, TextOptions},
    token_texts::TokenTexts,
};
use crate::{
    generate::{self, Chosen, FinishReason, GenerationParams, PromptNumbers, Returns, SequenceOutput, Strategy},
    output::{Delta, OutputSequence, PromptOutput, PromptScored, StopReason, StreamEvent, TokenScore},
    request::Decoding,
    stop_strings::StopStrings,
};
use kaito_model::tokenizer::{DecodeOptions, StreamingDecoder, Tokenizer};

/// Turns the tokens of one prompt's sequences into their texts.
#[derive(Debug)]
pub(crate) struct Assembler {
    /// A sequence before its first token.
    fresh: (StreamingDecoder, StopStrings),
    text_options: TextOptions,
    stop_tokens: Vec<u32>,
    prompt_len: usize,
    /// What of the prompt is no text yet, and what is known of it.
    of_prompt: OfPrompt,
    returns: Returns,
    /// Index of the prompt's first sequence among those of the request.
    first: usize,
    /// Whether tokens come one by one, and not all at the end.
    streams: bool,
    sequences: Vec<SequenceText>,
    token_texts: TokenTexts,
    ending: Option<Ending>,
    complete: Option<Complete>,
}

/// What is known of a prompt.
#[derive(Debug, Default)]
struct OfPrompt {
    /// Scores whose tokens have no texts yet.
    coming: std::vec::IntoIter<generate::TokenScore>,
    /// All others, where they are asked for; the first token has none.
    scored: Option<Vec<Option<TokenScore>>>,
    scores: Option<Arc<[Option<TokenScore>]>>,
    pooled: Option<Vec<f32>>,
}

/// What a prompt came to.
#[derive(Debug, Default)]
pub(super) struct Complete {
    pub sequences: Vec<OutputSequence>,
    pub prompt: PromptOutput,
    /// Tokens that were generated.
    pub generated: usize,
}

/// The sequences while they are put together.
#[derive(Debug)]
struct Ending {
    outputs: std::vec::IntoIter<SequenceOutput>,
    sequence: Option<EndingSequence>,
    /// The sequences that are done, each with the mean of its tokens' log-probabilities.
    done: Vec<(OutputSequence, f32)>,
    generated: usize,
}

/// A sequence whose tokens are all there.
#[derive(Debug)]
struct EndingSequence {
    /// Its new tokens.
    tokens: Vec<u32>,
    finish_reason: FinishReason,
    stop_reason: Option<StopReason>,
    beam_score: Option<f32>,
    scores: Option<(std::vec::IntoIter<generate::TokenScore>, Vec<TokenScore>)>,
    mean_log_prob: f32,
    /// Whether its text is complete.
    complete: bool,
}

impl EndingSequence {
    fn new(output: SequenceOutput, prompt_len: usize) -> Self {
        let SequenceOutput { mut tokens, score, finish_reason, scores } = output;
        tokens.drain(..prompt_len.min(tokens.len()));
        let scores = scores.map(|scores| (scores.into_iter(), Vec::new()));
        Self {
            tokens,
            finish_reason,
            stop_reason: None,
            beam_score: score,
            scores,
            mean_log_prob: 0.0,
            complete: false,
        }
    }

    /// Says why it ended, once its text is complete, and which of its tokens are its own.
    fn end(&mut self, text: &SequenceText, options: &TextOptions, stop_tokens: &[u32], returns: Returns) {
        self.tokens.truncate(text.tokens);
        if let Some(stop) = text.stop_string() {
            self.finish_reason = FinishReason::Stop;
            self.stop_reason = Some(StopReason::StopString(stop.to_owned()));
        } else if self.finish_reason == FinishReason::Stop {
            let last = self.tokens.last().filter(|token| stop_tokens.contains(token));
            self.stop_reason = last.map(|&token| StopReason::Token(token));
        }
        if let Some((scores, _)) = &self.scores {
            let own = scores.as_slice().iter().take(self.tokens.len());
            let sum: f64 = own.map(|score| f64::from(score.log_prob)).sum();
            self.mean_log_prob = (sum / self.tokens.len().max(1) as f64) as f32;
        }
        if matches!(returns, Returns::Best(_, false)) {
            self.scores = None;
        }
        self.tokens.truncate(text.kept(options));
        self.complete = true;
    }
}

impl Assembler {
    /// For a prompt whose answers are decoded as `decoding` says, until any of `stops`.
    pub(crate) fn new(
        tokenizer: &Tokenizer,
        prompt: &[u32],
        params: &GenerationParams,
        decoding: Decoding,
        stops: StopStrings,
    ) -> Self {
        let options = DecodeOptions {
            skip_special_tokens: decoding.skip_special_tokens,
            clean_up_tokenization_spaces: decoding.clean_up_tokenization_spaces,
        };
        let before: &[u32] = if decoding.after_prompt { prompt } else { &[] };
        let decoder = StreamingDecoder::new(tokenizer, before, options);
        let skipped = if decoding.skip_end_tokens {
            [params.end_tokens.as_slice(), &params.stop_tokens].concat()
        } else {
            Vec::new()
        };
        Self {
            fresh: (decoder, stops.include(decoding.include_stop_string)),
            text_options: TextOptions {
                skipped,
                min_tokens: params.raw_processors.as_ref().map_or(0, |raw| raw.min_new_tokens),
                by_token: decoding.by_token,
            },
            stop_tokens: params.stop_tokens.clone(),
            prompt_len: prompt.len(),
            of_prompt: OfPrompt { scored: params.prompt_log_probs.map(|_| vec![None]), ..OfPrompt::default() },
            returns: params.returns,
            first: 0,
            // Which sequences are the best is known at the end.
            streams: !matches!(params.strategy, Strategy::Beams(_)) && !matches!(params.returns, Returns::Best(..)),
            sequences: Vec::new(),
            token_texts: TokenTexts::new(tokenizer, decoding.token_bytes),
            ending: None,
            complete: None,
        }
    }

    /// Numbers the sequences from `first` on in what becomes known of them.
    pub(super) fn number_from(&mut self, first: usize) {
        self.first = first;
    }

    /// Takes a token; says whether its sequence has come to a stop string, and how much work that was.
    pub(super) fn push(&mut self, chosen: &Chosen, events: &mut VecDeque<StreamEvent>) -> (bool, usize) {
        let Self { fresh, text_options, returns, first, streams, sequences, token_texts, .. } = self;
        let Some(sequence) = sequence(sequences, fresh, chosen.sequence) else { return (false, 1) };
        if sequence.stopped() {
            // The engine was a step ahead of the stop.
            return (false, 1);
        }
        let token = streams.then(|| token_texts.token(chosen.token, chosen.score.as_ref()));
        let worked = 1 + token.as_ref().map_or(0, |token| token.top.len());
        let pieces = sequence.push(chosen.token, token, text_options);
        if *streams {
            for Piece { token, text } in pieces {
                let delta = Delta { sequence: chosen.sequence, text, token, finish_reason: None, stop_reason: None };
                give(events, delta, *first, *returns);
            }
        }
        (sequence.stopped(), worked)
    }

    /// Takes what became known of the prompt.
    pub(super) fn learn(&mut self, numbers: PromptNumbers) {
        let PromptNumbers { scores, pooled } = numbers;
        self.of_prompt.coming = scores.into_iter();
        self.of_prompt.pooled = pooled;
    }

    /// Whether scores of the prompt are left to [`Self::score_prompt`].
    pub(super) fn is_scoring(&self) -> bool {
        self.of_prompt.coming.len() > 0
    }

    /// Gives texts to the next tokens of the prompt that were scored, for as long as some `budget` tokens take, and says how long
    /// that was. `prompt` is the prompt's index.
    pub(super) fn score_prompt(&mut self, budget: usize, prompt: usize, events: &mut VecDeque<StreamEvent>) -> usize {
        let OfPrompt { coming, scored: Some(scored), .. } = &mut self.of_prompt else { return 1 };
        let mut worked = 0;
        while worked < budget
            && let Some(score) = coming.next()
        {
            worked += 1 + score.top.len();
            scored.push(Some(self.token_texts.score(&score)));
        }
        if coming.len() == 0 {
            let scores = self.of_prompt.all_scores();
            if self.text_options.by_token {
                events.extend(scores.map(|scores| StreamEvent::PromptScored(PromptScored { prompt, scores })));
            }
        }
        worked
    }

    /// Takes what the generation came to. What is left to do is for [`Self::go_on`].
    pub(super) fn end(&mut self, outputs: Vec<SequenceOutput>) {
        self.ending = Some(Ending {
            done: Vec::with_capacity(outputs.len()),
            outputs: outputs.into_iter(),
            sequence: None,
            generated: 0,
        });
    }

    /// Whether the generation has ended.
    pub(super) fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    /// What the prompt came to, once [`Self::go_on`] has put it together.
    pub(super) fn take_complete(&mut self) -> Option<Complete> {
        self.complete.take()
    }

    /// Puts the sequences together for as long as some `budget` tokens take, and says how long that was.
    pub(super) fn go_on(&mut self, budget: usize, events: &mut VecDeque<StreamEvent>) -> usize {
        let Self { fresh, text_options, stop_tokens, returns, first, streams, sequences, token_texts, ending, .. } =
            self;
        let mut worked = 0;
        while worked < budget {
            let Some(of_all) = ending else { break };
            worked += 1;
            let index = of_all.done.len();
            let Some(own) = &mut of_all.sequence else {
                match of_all.outputs.next() {
                    Some(output) => of_all.sequence = Some(EndingSequence::new(output, self.prompt_len)),
                    None => {
                        let OfPrompt { pooled, .. } = &mut self.of_prompt;
                        let pooled = pooled.take();
                        let prompt =
                            PromptOutput { tokens: self.prompt_len, scores: self.of_prompt.all_scores(), pooled };
                        self.complete = ending.take().map(|ending| complete(ending, prompt, *returns));
                        break;
                    }
                }
                continue;
            };
            let Some(text) = sequence(sequences, fresh, index) else { break };
            if !own.complete {
                if let Some(&token) = own.tokens.get(text.tokens).filter(|_| !text.stopped()) {
                    text.push(token, None, text_options);
                    continue;
                }
                let rest = text.finish(text_options);
                own.end(text, text_options, stop_tokens, *returns);
                of_all.generated += text.tokens;
                if *streams {
                    let last = rest.len().saturating_sub(1);
                    for (at, Piece { token, text }) in rest.into_iter().enumerate() {
                        let (finish_reason, stop_reason) = match at == last {
                            true => (Some(own.finish_reason), own.stop_reason.clone()),
                            false => (None, None),
                        };
                        let delta = Delta { sequence: index, text, token, finish_reason, stop_reason };
                        give(events, delta, *first, *returns);
                    }
                }
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
            let output = OutputSequence {
                text: mem::take(&mut text.text),
                tokens: mem::take(&mut own.tokens),
                finish_reason: own.finish_reason,
                stop_reason: own.stop_reason.take(),
                beam_score: own.beam_score,
                scores: own.scores.take().map(|(_, done)| done),
            };
            of_all.done.push((output, own.mean_log_prob));
            of_all.sequence = None;
        }
        worked
    }
}

impl OfPrompt {
    /// The scores of all tokens, where they are asked for.
    fn all_scores(&mut self) -> Option<Arc<[Option<TokenScore>]>> {
        if let Some(scored) = self.scored.take() {
            self.scores = Some(scored.into());
        }
        self.scores.clone()
    }
}

/// Puts what is returned of the sequences of a prompt together.
fn complete(ending: Ending, prompt: PromptOutput, returns: Returns) -> Complete {
    let Ending { mut done, mut generated, .. } = ending;
    match returns {
        Returns::All => {}
        Returns::Copies(count) => {
            generated *= count;
            if let Some(only) = done.pop() {
                done = vec![only; count];
            }
        }
        Returns::Best(count, _) => {
            // Of equal ones the first.
            done.sort_by(|a, b| b.1.total_cmp(&a.1));
            done.truncate(count);
        }
    }
    Complete { sequences: done.into_iter().map(|(sequence, _)| sequence).collect(), prompt, generated }
}

/// Gives away what is new of a sequence, and of its copies. The request's sequences of this prompt begin at `first`.
fn give(events: &mut VecDeque<StreamEvent>, delta: Delta, first: usize, returns: Returns) {
    let copies = if let Returns::Copies(count) = returns { count } else { 1 };
    let sequence = first + delta.sequence;
    for copy in 1..copies {
        events.push_back(StreamEvent::Delta(Delta { sequence: sequence + copy, ..delta.clone() }));
    }
    events.push_back(StreamEvent::Delta(Delta { sequence, ..delta }));
}

/// The sequence at `index`; it begins like `fresh`.
fn sequence<'a>(
    sequences: &'a mut Vec<SequenceText>,
    fresh: &(StreamingDecoder, StopStrings),
    index: usize,
) -> Option<&'a mut SequenceText> {
    while sequences.len() <= index {
        let (decoder, stops) = fresh.clone();
        sequences.push(SequenceText::new(decoder, stops));
    }
    sequences.get_mut(index)
}
