//! The parameters of text generation as a client names them.
//!
//! One table says everything about a parameter: its name, its type, what is allowed and what it means. The struct, the
//! reader of requests and the reader of `generation_config.json` all come from it.

use serde_json::{Map, Value};

/// What is wrong with a parameter. Displayed, it is the one sentence that a client reads.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// No parameter has this name.
    #[error("unknown parameter `{name}`{}", match nearest { Some(nearest) => format!("; did you mean `{nearest}`?"), None => String::new() })]
    Unknown {
        /// The name as sent, shortened where it is very long.
        name: String,
        /// The known name most like it, if any is like it at all.
        nearest: Option<String>,
    },
    /// The value is of the wrong type or out of range.
    #[error("`{name}` is {value}: it must be {allowed}")]
    Invalid {
        /// The parameter.
        name: String,
        /// Its value as sent, shortened where it is very long.
        value: String,
        /// What is allowed.
        allowed: String,
    },
    /// The value is at odds with another parameter's.
    #[error("{0}")]
    Conflict(String),
    /// The value is at odds with the model, the server or another parameter.
    #[error("{sentence}")]
    Refused {
        /// The parameter.
        name: String,
        /// What is wrong.
        sentence: String,
    },
    /// The prompt leaves no room for a new token.
    #[error(
        "the prompt has {prompt} tokens, but {limit_name} is {limit}: at least one token must be left for the answer"
    )]
    PromptTooLong {
        /// Tokens of the prompt, special ones included.
        prompt: usize,
        /// The length that it reaches or exceeds.
        limit: usize,
        /// Which length that is.
        limit_name: &'static str,
    },
}

impl ParameterError {
    /// An unknown name, with the nearest of `known`.
    pub fn unknown<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        let name = shorten(name, 60);
        let nearest = known
            .into_iter()
            .map(|candidate| (strsim::osa_distance(&name.to_ascii_lowercase(), candidate), candidate))
            .min_by_key(|(distance, _)| *distance)
            .filter(|(distance, candidate)| *distance <= 2.max(candidate.len() / 3))
            .map(|(_, candidate)| candidate.to_owned());
        Self::Unknown { name, nearest }
    }

    /// The parameter that must change, where it is a single one.
    pub fn parameter(&self) -> Option<&str> {
        match self {
            Self::Unknown { name, .. } | Self::Invalid { name, .. } | Self::Refused { name, .. } => Some(name),
            Self::Conflict(_) | Self::PromptTooLong { .. } => None,
        }
    }

    /// A value that is at odds with something else.
    pub(crate) fn refused(name: &str, sentence: String) -> Self {
        Self::Refused { name: name.to_owned(), sentence }
    }

    /// A value of the wrong type or out of range.
    pub fn invalid(name: &str, value: impl std::fmt::Display, allowed: impl Into<String>) -> Self {
        Self::Invalid { name: name.to_owned(), value: shorten(&value.to_string(), 80), allowed: allowed.into() }
    }
}

/// The first `limit` characters, marked where something is missing.
fn shorten(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// When a beam search with enough finished hypotheses stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EarlyStopping {
    /// As soon as there are as many finished hypotheses as beams.
    Immediately,
    /// When the best open beam, at its present length, can't beat the worst finished hypothesis.
    Heuristic,
    /// When no open beam can beat it at any length still allowed.
    Never,
}

/// What is allowed for a parameter: a sentence for people, and bounds for numbers.
struct Allowed {
    text: &'static str,
    min: f64,
    max: f64,
    /// Whether `min` itself is excluded.
    above_min: bool,
    /// Most numbers in all, for lists.
    most: usize,
}

impl Allowed {
    const fn range(text: &'static str, min: f64, max: f64) -> Self {
        Self { text, min, max, above_min: false, most: usize::MAX }
    }

    const fn above(text: &'static str, min: f64, max: f64) -> Self {
        Self { text, min, max, above_min: true, most: usize::MAX }
    }

    const fn tokens(text: &'static str, most: usize) -> Self {
        Self { most, ..Self::range(text, 0.0, u32::MAX as f64) }
    }

    const fn kind(text: &'static str) -> Self {
        Self::range(text, f64::NEG_INFINITY, f64::INFINITY)
    }

    fn contains(&self, value: f64) -> bool {
        value <= self.max && if self.above_min { value > self.min } else { value >= self.min }
    }
}

/// Most sequences that one request may ask for. `MAX_ANSWER_TOKENS` bounds what is in them.
pub const MAX_SEQUENCES: usize = 4096;
/// Most beams, which all run at the same time.
pub const MAX_BEAMS: usize = 256;
/// Most end tokens, which are looked for at every step.
pub const MAX_END_TOKENS: usize = 256;
/// Most ids of all bad words: as many as there are in any vocabulary of today, since each is looked at at every step.
pub const MAX_BAD_WORD_IDS: usize = 1 << 17;

const LENGTH: Allowed = Allowed::range("an integer of at least 1", 1.0, u32::MAX as f64);
const COUNT: Allowed = Allowed::range("an integer of at least 0", 0.0, u32::MAX as f64);
const SEQUENCES: Allowed = Allowed::range("an integer from 1 to 4096", 1.0, MAX_SEQUENCES as f64);
const BEAMS: Allowed = Allowed::range("an integer from 1 to 256", 1.0, MAX_BEAMS as f64);
const FLAG: Allowed = Allowed::kind("true or false");
const NUMBER: Allowed = Allowed::range("a number from -1000 to 1000", -1000.0, 1000.0);
const AT_LEAST_0: Allowed = Allowed::range("a number of at least 0", 0.0, f32::MAX as f64);
const ABOVE_0: Allowed = Allowed::above("a number greater than 0", 0.0, f32::MAX as f64);
const FROM_0_TO_1: Allowed = Allowed::range("a number from 0 to 1", 0.0, 1.0);
const ABOVE_0_TO_1: Allowed = Allowed::above("a number greater than 0 and at most 1", 0.0, 1.0);
const STOPPING: Allowed = Allowed::kind("true, false or \"never\"");
const TOKEN: Allowed = Allowed::range("a token id (an integer of at least 0)", 0.0, u32::MAX as f64);
const TOKENS: Allowed =
    Allowed::tokens("a token id (an integer of at least 0) or a list of at most 256 token ids", MAX_END_TOKENS);
const WORDS: Allowed = Allowed::tokens(
    "a list of words, each a list of one or more token ids (integers of at least 0), not empty and of at most 131072 ids in all",
    MAX_BAD_WORD_IDS,
);
const SEED: Allowed = Allowed::range("an integer from 0 to 18446744073709551615", 0.0, u64::MAX as f64);

/// A type that a parameter's value can have.
trait FromJson: Sized {
    /// The value, or `None` if it is not what `allowed` says.
    fn from_json(value: &Value, allowed: &Allowed) -> Option<Self>;
}

impl FromJson for bool {
    fn from_json(value: &Value, _: &Allowed) -> Option<Self> {
        value.as_bool()
    }
}

impl FromJson for f64 {
    fn from_json(value: &Value, allowed: &Allowed) -> Option<Self> {
        value.as_f64().filter(|number| allowed.contains(*number))
    }
}

impl FromJson for u64 {
    fn from_json(value: &Value, allowed: &Allowed) -> Option<Self> {
        // Clients written in dynamic languages send integers as 3.0.
        let whole = |number: f64| (number.fract() == 0.0 && number.abs() < 2f64.powi(53)).then_some(number as u64);
        value
            .as_f64()
            .filter(|number| allowed.contains(*number))
            .and_then(|number| value.as_u64().or_else(|| whole(number)))
    }
}

impl FromJson for usize {
    fn from_json(value: &Value, allowed: &Allowed) -> Option<Self> {
        u64::from_json(value, allowed)?.try_into().ok()
    }
}

impl FromJson for u32 {
    fn from_json(value: &Value, allowed: &Allowed) -> Option<Self> {
        u64::from_json(value, allowed)?.try_into().ok()
    }
}

impl FromJson for EarlyStopping {
    fn from_json(value: &Value, _: &Allowed) -> Option<Self> {
        match value {
            Value::Bool(true) => Some(Self::Immediately),
            Value::Bool(false) => Some(Self::Heuristic),
            Value::String(text) if text == "never" => Some(Self::Never),
            _ => None,
        }
    }
}

impl FromJson for Vec<u32> {
    fn from_json(value: &Value, allowed: &Allowed) -> Option<Self> {
        match value {
            Value::Array(ids) if ids.len() > allowed.most => None,
            Value::Array(ids) => ids.iter().map(|id| u32::from_json(id, allowed)).collect(),
            id => Some(vec![u32::from_json(id, allowed)?]),
        }
    }
}

impl FromJson for Vec<Vec<u32>> {
    fn from_json(value: &Value, allowed: &Allowed) -> Option<Self> {
        let words = value.as_array()?;
        let ids = words.iter().map(|word| word.as_array().map(Vec::len)).sum::<Option<usize>>()?;
        if words.is_empty() || ids > allowed.most {
            return None;
        }
        let word = |word: &Value| Vec::<u32>::from_json(word, allowed).filter(|ids| !ids.is_empty());
        words.iter().map(word).collect()
    }
}

macro_rules! parameters {
    ($($(#[$doc:meta])* $name:ident: $type:ty, $allowed:expr;)*) => {
        /// Parameters of text generation, as far as someone has set them. The names are those of transformers'
        /// `GenerationConfig`.
        #[derive(Debug, Clone, Default, PartialEq)]
        pub struct GenerateOptions {
            $($(#[$doc])* pub $name: Option<$type>,)*
            /// The parameters that were given as null: none of the model's own values stands in for them.
            pub cleared: Vec<&'static str>,
        }

        /// The names of all parameters.
        pub const PARAMETER_NAMES: &[&str] = &[$(stringify!($name)),*];

        impl GenerateOptions {
            fn set(&mut self, name: &str, value: &Value) -> Result<(), ParameterError> {
                match name {
                    $(stringify!($name) => {
                        let allowed: &Allowed = &$allowed;
                        self.$name = Some(
                            <$type as FromJson>::from_json(value, allowed)
                                .ok_or_else(|| ParameterError::invalid(name, value, allowed.text))?,
                        );
                        Ok(())
                    })*
                    _ => Err(ParameterError::unknown(name, PARAMETER_NAMES.iter().copied())),
                }
            }

            fn clear(&mut self, name: &str) {
                match name {
                    $(stringify!($name) => self.$name = None,)*
                    _ => {}
                }
            }

            /// These options, with `defaults` where nothing is set.
            #[must_use]
            pub fn or(self, defaults: Self) -> Self {
                Self { $($name: self.$name.or(defaults.$name),)* cleared: self.cleared }
            }
        }
    };
}

parameters! {
    /// Longest sequence, prompt included.
    max_length: usize, LENGTH;
    /// Most new tokens; wins over `max_length`.
    max_new_tokens: usize, LENGTH;
    /// Length, prompt included, below which no end token is chosen.
    min_length: usize, COUNT;
    /// Number of new tokens below which no end token is chosen; wins over `min_length`.
    min_new_tokens: usize, COUNT;
    /// Draw tokens at random; otherwise take the likeliest.
    do_sample: bool, FLAG;
    /// When a beam search stops.
    early_stopping: EarlyStopping, STOPPING;
    /// Beams of the search; 1 is no beam search.
    num_beams: usize, BEAMS;
    /// Groups of a diverse beam search.
    num_beam_groups: usize, BEAMS;
    /// Penalty on tokens that earlier groups chose at the same step.
    diversity_penalty: f64, AT_LEAST_0;
    /// Divisor of the scores before sampling.
    temperature: f64, AT_LEAST_0;
    /// Sample among the `k` likeliest tokens; 0 is no limit.
    top_k: usize, COUNT;
    /// Sample among the likeliest tokens that together have this probability.
    top_p: f64, FROM_0_TO_1;
    /// Sample among the most typical tokens that together have this probability.
    typical_p: f64, ABOVE_0_TO_1;
    /// Factor against tokens already present.
    repetition_penalty: f64, ABOVE_0;
    /// Exponent of the length by which a beam's score is divided.
    length_penalty: f64, NUMBER;
    /// No n-gram of this size occurs twice; 0 is no limit.
    no_repeat_ngram_size: usize, COUNT;
    /// No n-gram of this size from the prompt occurs again; 0 is no limit.
    encoder_no_repeat_ngram_size: usize, COUNT;
    /// Token sequences that are not generated.
    bad_words_ids: Vec<Vec<u32>>, WORDS;
    /// How many sequences to return.
    num_return_sequences: usize, SEQUENCES;
    /// Return the scores of the chosen tokens.
    output_scores: bool, FLAG;
    /// Return more than the text.
    return_dict_in_generate: bool, FLAG;
    /// The token that fills up finished sequences; here it only counts for diversity between beam groups.
    pad_token_id: u32, TOKEN;
    /// The tokens that end a sequence; an empty list leaves that to the length.
    eos_token_id: Vec<u32>, TOKENS;
    /// The token forced at position 1.
    forced_bos_token_id: u32, TOKEN;
    /// The token forced at the last position.
    forced_eos_token_id: Vec<u32>, TOKENS;
    /// Replace scores that are not numbers or infinite, rather than fail.
    remove_invalid_values: bool, FLAG;
    /// Seed of the random numbers; without it every request draws differently.
    seed: u64, SEED;
}

/// Fields of `generation_config.json` that would change the tokens and that this engine does not know.
const UNSUPPORTED: &[&str] = &[
    "begin_suppress_tokens",
    "constraints",
    "encoder_repetition_penalty",
    "epsilon_cutoff",
    "eta_cutoff",
    "exponential_decay_length_penalty",
    "force_words_ids",
    "guidance_scale",
    "min_p",
    "penalty_alpha",
    "renormalize_logits",
    "sequence_bias",
    "suppress_tokens",
];

/// Where the reference falls back to the model's own value although the request has a null.
const KEPT: [&str; 2] = ["eos_token_id", "pad_token_id"];

impl GenerateOptions {
    /// Options of a request. A null has the documented default, if there is one; else it switches the parameter off, also
    /// where the model's own configuration sets it.
    ///
    /// # Errors
    /// A name that is not a parameter, a value of the wrong type or out of its range.
    pub fn from_json(parameters: &Map<String, Value>) -> Result<Self, ParameterError> {
        let mut options = Self::default();
        for (name, value) in parameters {
            if value.is_null() {
                match PARAMETER_NAMES.iter().find(|known| *known == name) {
                    Some(known) => options.cleared.push(known),
                    None => return Err(ParameterError::unknown(name, PARAMETER_NAMES.iter().copied())),
                }
            } else {
                options.set(name, value)?;
            }
        }
        Ok(options)
    }

    /// Options of a model's `generation_config.json`. The file belongs to the model and holds much that is none of
    /// ours: unknown fields and unusable values are skipped, with a warning where the tokens could differ for it.
    pub fn from_generation_config(config: &Map<String, Value>) -> Self {
        let mut options = Self::default();
        for (name, value) in config {
            if value.is_null() {
                continue;
            }
            if UNSUPPORTED.contains(&name.as_str()) {
                tracing::warn!(field = name, %value, "the model's generation defaults: this field is not supported and ignored");
            } else if PARAMETER_NAMES.contains(&name.as_str())
                && let Err(error) = options.set(name, value)
            {
                tracing::warn!(%error, "the model's generation defaults: this field is ignored");
            }
        }
        // These two ask for a richer answer, which is the client's business alone.
        options.output_scores = None;
        options.return_dict_in_generate = None;
        options
    }

    /// The documented defaults of a request.
    pub fn documented_defaults() -> Self {
        Self {
            max_length: Some(200),
            min_length: Some(0),
            do_sample: Some(true),
            early_stopping: Some(EarlyStopping::Heuristic),
            num_beams: Some(1),
            temperature: Some(1.0),
            top_k: Some(10),
            top_p: Some(1.0),
            typical_p: Some(1.0),
            repetition_penalty: Some(1.0),
            ..Self::default()
        }
    }

    /// A request's options over the documented defaults over the model's `generation_config.json`.
    ///
    /// A number of new tokens in the model's file stays, and wins over a length in the request as it would within it.
    #[must_use]
    pub fn over_model(self, mut model: Self) -> Self {
        for name in self.cleared.iter().filter(|name| !KEPT.contains(name)) {
            model.clear(name);
        }
        self.or(Self::documented_defaults()).or(model)
    }
}
