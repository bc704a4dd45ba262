//! What becomes of each parameter of a request, as a table: `docs/runtimes.md` shows it.
//!
//! What an engine elsewhere does otherwise than the reference is refused by name: nothing is dropped or approximated in silence.

use kaito_engine::{
    ConstraintSource, GenerationParams, ParameterError, RequestContext,
    remote::{Processors, RawProcessors, Strategy, Warper},
};
use serde_json::{Map, Value, json};

use crate::bad_words::BadWords;

/// A parameter of requests.
pub struct Parameter {
    /// Its names, which differ between dialects.
    pub names: &'static [&'static str],
    /// What becomes of it.
    pub treatment: Treatment,
}

/// What becomes of a parameter.
pub enum Treatment {
    /// The engine gets it, in these fields of its own.
    Engine(&'static [&'static str], Write),
    /// This side does it, whichever engine computes.
    Front,
    /// A request that asks for it is refused.
    Refused(Asks),
}

/// Writes the engine's fields.
type Write = fn(&Asked<'_>, &mut Map<String, Value>) -> Result<(), ParameterError>;
/// The name by which a request asks for it, if it does.
type Asks = fn(&GenerationParams) -> Option<&'static str>;

/// What a request asks for.
pub struct Asked<'a> {
    pub(crate) params: &'a GenerationParams,
    pub(crate) context: &'a RequestContext,
    pub(crate) bad_words: &'a BadWords,
}

const fn engine(names: &'static [&'static str], fields: &'static [&'static str], write: Write) -> Parameter {
    Parameter { names, treatment: Treatment::Engine(fields, write) }
}

const fn front(names: &'static [&'static str]) -> Parameter {
    Parameter { names, treatment: Treatment::Front }
}

const fn refused(names: &'static [&'static str], asks: Asks) -> Parameter {
    Parameter { names, treatment: Treatment::Refused(asks) }
}

/// What makes a beam search, and what only such a search reads.
const BEAMS: &[&str] =
    &["use_beam_search", "num_beams", "num_beam_groups", "diversity_penalty", "early_stopping", "length_penalty"];

/// All parameters.
pub const PARAMETERS: &[Parameter] = &[
    engine(&["temperature", "do_sample"], &["temperature"], temperature),
    engine(&["top_k"], &["top_k"], top_k),
    engine(&["top_p"], &["top_p"], top_p),
    engine(&["min_p"], &["min_p"], min_p),
    engine(&["repetition_penalty"], &["repetition_penalty"], |asked, fields| {
        let of_raw = asked.raw().map(|raw| raw.repetition_penalty);
        set(fields, "repetition_penalty", of_raw.or(asked.params.processors.repetition_penalty).unwrap_or(1.0))
    }),
    engine(&["presence_penalty"], &["presence_penalty"], |asked, fields| {
        set(fields, "presence_penalty", asked.raw().map_or(0.0, |raw| raw.presence_penalty))
    }),
    engine(&["frequency_penalty"], &["frequency_penalty"], |asked, fields| {
        set(fields, "frequency_penalty", asked.raw().map_or(0.0, |raw| raw.frequency_penalty))
    }),
    engine(&["logit_bias"], &["logit_bias"], logit_bias),
    engine(&["allowed_token_ids"], &["allowed_token_ids"], allowed),
    engine(&["bad_words", "bad_words_ids"], &["bad_words", "allowed_token_ids"], |asked, fields| {
        match asked.bad_words.texts.as_slice() {
            [] => Ok(()),
            texts => set(fields, "bad_words", texts),
        }
    }),
    engine(&["max_tokens", "max_new_tokens", "max_length"], &["max_tokens"], written_later),
    engine(&["min_tokens", "min_new_tokens", "min_length"], &["min_tokens"], written_later),
    engine(&["stop_token_ids", "eos_token_id", "ignore_eos"], &["stop_token_ids", "ignore_eos"], ends),
    engine(&["seed"], &["seed"], written_later),
    engine(&["logprobs", "top_logprobs"], &["logprobs"], |asked, fields| match asked.params.log_probs {
        Some(likeliest) => set(fields, "logprobs", likeliest),
        None => Ok(()),
    }),
    engine(&["prompt_logprobs"], &["prompt_logprobs"], written_later),
    engine(&["cache_salt"], &["cache_salt"], |asked, fields| match asked.params.cache_salt {
        Some(salt) => set(fields, "cache_salt", format!("{salt:016x}")),
        None => Ok(()),
    }),
    engine(
        &[
            "response_format",
            "structured_outputs",
            "guided_json",
            "guided_regex",
            "guided_choice",
            "guided_grammar",
            "tools",
        ],
        &["structured_outputs"],
        structured_outputs,
    ),
    front(&["n", "num_return_sequences", "best_of"]),
    front(&["stop", "include_stop_str_in_output"]),
    front(&["skip_special_tokens", "clean_up_tokenization_spaces", "echo", "return_full_text"]),
    refused(BEAMS, |params| match params.strategy {
        Strategy::Beams(_) if params.raw_processors.is_some() => Some("use_beam_search"),
        Strategy::Beams(beams) if beams.num_groups > 1 => Some("num_beam_groups"),
        Strategy::Beams(_) => Some("num_beams"),
        _ => None,
    }),
    refused(&["typical_p"], |params| {
        let typical = params.warpers.steps.iter().any(|step| matches!(step, Warper::TypicalP(_)));
        typical.then_some("typical_p")
    }),
    refused(&["no_repeat_ngram_size"], |params| params.processors.no_repeat_ngram_size.map(|_| "no_repeat_ngram_size")),
    refused(&["encoder_no_repeat_ngram_size"], |params| {
        params.processors.encoder_no_repeat_ngram_size.map(|_| "encoder_no_repeat_ngram_size")
    }),
    refused(&["forced_bos_token_id"], |params| params.processors.forced_bos.map(|_| "forced_bos_token_id")),
    refused(&["forced_eos_token_id"], |params| params.processors.forced_eos.as_ref().map(|_| "forced_eos_token_id")),
    refused(&["remove_invalid_values"], |params| params.processors.remove_invalid.then_some("remove_invalid_values")),
    refused(&["output_scores"], |params| params.output_scores.then_some("output_scores")),
    refused(&["embeddings"], |params| matches!(params.strategy, Strategy::Pool(_)).then_some("embeddings")),
];

impl Asked<'_> {
    fn raw(&self) -> Option<&RawProcessors> {
        self.params.raw_processors.as_deref()
    }

    fn samples(&self) -> bool {
        matches!(self.params.strategy, Strategy::Sample { .. })
    }

    /// What a warper says, if there is one; the likeliest token needs none.
    fn warper<T>(&self, read: impl Fn(&Warper) -> Option<T>) -> Option<T> {
        self.params.warpers.steps.iter().filter(|_| self.samples()).find_map(read)
    }

    fn nucleus(&self) -> Option<f64> {
        self.warper(|step| match step {
            // The same but for a token before which exactly this mass lies, as docs/runtimes.md says.
            Warper::TopP(mass) | Warper::MetaTopP(mass) => Some(*mass),
            _ => None,
        })
    }
}

/// The engine's fields for what is asked, all but those that change from one attempt to the next.
///
/// # Errors
/// A parameter that the engine has not, by its name.
pub(crate) fn fields(asked: &Asked<'_>) -> Result<Map<String, Value>, ParameterError> {
    let mut fields = Map::new();
    for parameter in PARAMETERS {
        match &parameter.treatment {
            Treatment::Front => {}
            Treatment::Refused(asks) => {
                if let Some(name) = asks(asked.params) {
                    return Err(not_here(
                        name,
                        "vLLM, which computes this model's tokens, does not have it as the reference does",
                    ));
                }
            }
            Treatment::Engine(_, write) => write(asked, &mut fields)?,
        }
    }
    Ok(fields)
}

/// Refuses a parameter that another runtime has.
pub(crate) fn not_here(name: &str, why: &str) -> ParameterError {
    let sentence = format!("`{name}` can't be used here: {why}; Kaito's own engine (the runtime kaito) has it");
    ParameterError::Refused { name: name.to_owned(), sentence }
}

fn set(fields: &mut Map<String, Value>, name: &str, value: impl serde::Serialize) -> Result<(), ParameterError> {
    let value = serde_json::to_value(value).map_err(|error| ParameterError::Conflict(format!("`{name}`: {error}")))?;
    fields.insert(name.to_owned(), value);
    Ok(())
}

/// For a field that depends on how much of a sequence is there already: [`crate::plan::Plan`] writes it.
fn written_later(_: &Asked<'_>, _: &mut Map<String, Value>) -> Result<(), ParameterError> {
    Ok(())
}

fn temperature(asked: &Asked<'_>, fields: &mut Map<String, Value>) -> Result<(), ParameterError> {
    /// vLLM raises lower ones to this.
    const LOWEST: f32 = 0.01;
    let temperature = asked.warper(|step| match step {
        Warper::Temperature(temperature) => Some(*temperature),
        _ => None,
    });
    let temperature = temperature.unwrap_or(if asked.samples() { 1.0 } else { 0.0 });
    if asked.samples() && temperature < LOWEST {
        let why =
            format!("it is {temperature}, and vLLM, which computes this model's tokens, takes 0 or at least {LOWEST}");
        return Err(not_here("temperature", &why));
    }
    set(fields, "temperature", temperature)
}

fn top_k(asked: &Asked<'_>, fields: &mut Map<String, Value>) -> Result<(), ParameterError> {
    let top_k = asked.warper(|step| match step {
        Warper::TopK(k) => Some(*k),
        _ => None,
    });
    // A nucleus without any mass is the likeliest token; vLLM knows no such nucleus.
    let none = asked.nucleus().is_some_and(|mass| mass <= 0.0);
    set(fields, "top_k", if none { 1 } else { top_k.unwrap_or(0).min(asked.context.vocab_size) })
}

fn top_p(asked: &Asked<'_>, fields: &mut Map<String, Value>) -> Result<(), ParameterError> {
    set(fields, "top_p", asked.nucleus().filter(|mass| *mass > 0.0).unwrap_or(1.0).min(1.0))
}

fn min_p(asked: &Asked<'_>, fields: &mut Map<String, Value>) -> Result<(), ParameterError> {
    let min_p = asked.warper(|step| match step {
        Warper::MinP(part) => Some(*part),
        _ => None,
    });
    set(fields, "min_p", min_p.unwrap_or(0.0))
}

fn logit_bias(asked: &Asked<'_>, fields: &mut Map<String, Value>) -> Result<(), ParameterError> {
    let Some(biases) = asked.raw().map(|raw| &raw.logit_bias).filter(|biases| !biases.is_empty()) else {
        return Ok(());
    };
    let mut sums = std::collections::BTreeMap::<u32, f32>::new();
    for &(token, bias) in biases {
        *sums.entry(token).or_default() += bias;
    }
    let object: Map<String, Value> = sums.into_iter().map(|(token, bias)| (token.to_string(), json!(bias))).collect();
    set(fields, "logit_bias", object)
}

fn allowed(asked: &Asked<'_>, fields: &mut Map<String, Value>) -> Result<(), ParameterError> {
    let banned = &asked.bad_words.tokens;
    let among = asked.raw().and_then(|raw| raw.allowed.as_ref());
    let kept = |token: &u32| !banned.contains(token);
    let allowed: Vec<u32> = match among {
        None if banned.is_empty() => return Ok(()),
        None => (0..u32::try_from(asked.context.vocab_size).unwrap_or(u32::MAX)).filter(kept).collect(),
        Some(mask) => mask.allowed().filter(kept).collect(),
    };
    if allowed.is_empty() {
        let sentence = "the parameters of the request rule out every token".to_owned();
        return Err(ParameterError::Conflict(sentence));
    }
    set(fields, "allowed_token_ids", allowed)
}

fn ends(asked: &Asked<'_>, fields: &mut Map<String, Value>) -> Result<(), ParameterError> {
    // What ends a sequence is said by ids alone, so that nothing of the engine's own configuration does.
    set(fields, "ignore_eos", true)?;
    let GenerationParams { end_tokens, stop_tokens, .. } = asked.params;
    let mut ids: Vec<u32> = end_tokens.iter().chain(stop_tokens).copied().collect();
    ids.retain(|&id| (id as usize) < asked.context.vocab_size);
    ids.sort_unstable();
    ids.dedup();
    set(fields, "stop_token_ids", ids)
}

fn structured_outputs(asked: &Asked<'_>, fields: &mut Map<String, Value>) -> Result<(), ParameterError> {
    let Some(constraint) = &asked.params.constraint else { return Ok(()) };
    let source =
        constraint.source().ok_or_else(|| not_here("structured_outputs", "this constraint can't be told to vLLM"))?;
    // vLLM's grammars end with the model's own end tokens.
    if let Some(missing) = asked.context.end_tokens.iter().find(|token| !asked.params.end_tokens.contains(token)) {
        let why = format!(
            "vLLM ends a structured output with the model's end token {missing}, which ends nothing in this request"
        );
        return Err(not_here("structured_outputs", &why));
    }
    set(fields, "structured_outputs", structured(&source))
}

/// A constraint, as vLLM's `StructuredOutputsParams` has it.
fn structured(source: &ConstraintSource) -> Value {
    match source {
        ConstraintSource::JsonObject => json!({ "json_object": true }),
        ConstraintSource::JsonSchema(schema) => json!({ "json": schema }),
        ConstraintSource::Regex(regex) => json!({ "regex": regex }),
        ConstraintSource::Choice(choices) => json!({ "choice": choices }),
        ConstraintSource::Lark(grammar) => json!({ "grammar": grammar }),
    }
}

/// Number of new tokens below which nothing ends a sequence, for a prompt of `prompt` tokens.
///
/// # Errors
/// A minimum that the engine would extend to end tokens which end nothing here.
pub(crate) fn min_tokens(
    params: &GenerationParams,
    context: &RequestContext,
    prompt: usize,
) -> Result<usize, ParameterError> {
    let Processors { min_length, .. } = params.processors;
    let (name, least) = match &params.raw_processors {
        Some(raw) => ("min_tokens", raw.min_new_tokens),
        None => ("min_new_tokens", min_length.saturating_sub(prompt)),
    };
    // Where nothing ends a sequence but its length, a minimum says nothing.
    if params.end_tokens.is_empty() && params.stop_tokens.is_empty() {
        return Ok(0);
    }
    if least > 0 && params.constraint.is_some() {
        let why = "vLLM would let nothing follow where a structured output ends before the minimum";
        return Err(not_here(name, why));
    }
    let ends = |token: &u32| params.end_tokens.contains(token) || params.stop_tokens.contains(token);
    match context.end_tokens.iter().find(|token| !ends(token)) {
        Some(token) if least > 0 => {
            let why = format!(
                "below the minimum vLLM rules out the model's end token {token} too, which ends nothing in this request"
            );
            Err(not_here(name, &why))
        }
        _ => Ok(least),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constraints_are_told_as_vllm_reads_them() {
        for (source, told) in [
            (ConstraintSource::JsonObject, json!({ "json_object": true })),
            (ConstraintSource::JsonSchema(json!({ "type": "array" })), json!({ "json": { "type": "array" } })),
            (ConstraintSource::Regex("a+".to_owned()), json!({ "regex": "a+" })),
            (ConstraintSource::Choice(vec!["a".to_owned()]), json!({ "choice": ["a"] })),
            (ConstraintSource::Lark("start: \"a\"".to_owned()), json!({ "grammar": "start: \"a\"" })),
        ] {
            assert_eq!(structured(&source), told);
        }
    }
}
