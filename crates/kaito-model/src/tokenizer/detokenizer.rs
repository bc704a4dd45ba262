//! Text from ids, all at once or one at a time.

use super::decoder_chain::DecoderChain;
use super::sentencepiece;
use super::text_filter::TextFilter;
use super::{DecodeOptions, Implementation, Tokenizer};

/// The state of decoding between two ids.
#[derive(Debug, Clone)]
pub(super) struct Detokenizer {
    state: State,
    skip_special_tokens: bool,
    filters: Vec<TextFilter>,
}

#[derive(Debug, Clone)]
enum State {
    HuggingFace(DecoderChain),
    SentencePiece(sentencepiece::Decoder),
}

impl Detokenizer {
    pub(super) fn new(implementation: &Implementation, options: DecodeOptions) -> Self {
        let (state, mut filters) = match implementation {
            Implementation::HuggingFace(implementation) => {
                (State::HuggingFace(implementation.decoder().clone()), implementation.decoder().filters().to_vec())
            }
            Implementation::SentencePiece(_) => (State::SentencePiece(sentencepiece::Decoder::default()), Vec::new()),
        };
        if options.clean_up_tokenization_spaces {
            filters.extend(TextFilter::clean_up());
        }
        Self { state, skip_special_tokens: options.skip_special_tokens, filters }
    }

    /// Takes an id and gives the text that is certain now.
    pub(super) fn push(&mut self, implementation: &Implementation, id: u32) -> String {
        let mut text = String::new();
        match (&mut self.state, implementation) {
            (State::HuggingFace(chain), Implementation::HuggingFace(implementation)) => {
                let token = implementation
                    .token(id)
                    .filter(|token| !self.skip_special_tokens || !implementation.is_special(token));
                if let Some(token) = token {
                    chain.push(token, &mut text);
                }
            }
            (State::SentencePiece(decoder), Implementation::SentencePiece(model)) => decoder.push(model, id, &mut text),
            // A state is made for its tokenizer.
            (State::HuggingFace(_), Implementation::SentencePiece(_))
            | (State::SentencePiece(_), Implementation::HuggingFace(_)) => {}
        }
        self.filters.iter_mut().fold(text, |text, filter| if text.is_empty() { text } else { filter.push(&text) })
    }

    /// Gives what was held back.
    pub(super) fn finish(&mut self) -> String {
        let mut text = String::new();
        match &mut self.state {
            State::HuggingFace(chain) => chain.finish(&mut text),
            State::SentencePiece(decoder) => decoder.finish(&mut text),
        }
        self.filters.iter_mut().fold(text, |text, filter| {
            let mut text = filter.push(&text);
            text.push_str(&filter.finish());
            text
        })
    }
}

/// Follows a generation: gives the text that each new token adds, as soon as it is certain.
///
/// The pieces together are what decoding the whole sequence gives, cut at the length of the decoded prompt in code
/// points, for any sequence of tokens.
#[derive(Debug, Clone)]
pub struct StreamingDecoder {
    tokenizer: Tokenizer,
    detokenizer: Detokenizer,
    /// Code points that belong to the prompt and have not come yet.
    skip: usize,
}

impl StreamingDecoder {
    /// Begins after a prompt, which may be empty.
    pub fn new(tokenizer: &Tokenizer, prompt_ids: &[u32], options: DecodeOptions) -> Self {
        let implementation = tokenizer.implementation();
        let mut detokenizer = Detokenizer::new(implementation, options);
        for &id in prompt_ids {
            detokenizer.push(implementation, id);
        }
        // The prompt's own text ends with what is held back now, as if nothing followed.
        let skip = detokenizer.clone().finish().chars().count();
        Self { tokenizer: tokenizer.clone(), detokenizer, skip }
    }

    /// Takes the next token and gives the text that is certain now, often "" while a character is incomplete.
    pub fn push(&mut self, id: u32) -> String {
        let text = self.detokenizer.push(self.tokenizer.implementation(), id);
        self.without_prompt(text)
    }

    /// Ends the text and gives what was held back.
    pub fn finish(mut self) -> String {
        let text = self.detokenizer.finish();
        self.without_prompt(text)
    }

    fn without_prompt(&mut self, text: String) -> String {
        let mut characters = text.chars();
        while self.skip > 0 && characters.next().is_some() {
            self.skip -= 1;
        }
        characters.as_str().to_owned()
    }
}
