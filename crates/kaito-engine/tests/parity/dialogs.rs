//! Completions and dialogs against the answers of Meta's code.

use std::collections::{BTreeMap, HashMap};

use kaito_engine::dialects::meta::{ChatRequest, CompletionRequest, MetaOptions, SPECIAL_TAGS_ERROR};
use kaito_engine::{Cancel, FinishReason, LanguageModel, OutputSequence, StreamEvent};
use serde_json::{Map, Value};

use super::case::{Case, Expectation, check_frequencies, messages, same};

/// How often a token is drawn to see that all tokens come as often as they should.
const DRAWS: usize = 256;

/// Checks one case, and says what is wrong.
pub async fn check(model: &LanguageModel, case: &Case) -> Result<(), String> {
    match &case.expect {
        Expectation::Completions { prompt_ids, tokens, texts, unsafe_tags } => {
            let Answers { outputs, streamed, prompt_tokens } = answer(model, case, options(case)?, 1).await?;
            same("texts", &outputs.iter().map(|output| output.text.clone()).collect(), texts)?;
            let expected = unsafe_tags.clone().unwrap_or_else(|| vec![false; texts.len()]);
            let refused = outputs.iter().map(|output| output.text == SPECIAL_TAGS_ERROR && output.tokens.is_empty());
            same("unsafe tags", &refused.collect(), &expected)?;
            let answered = prompt_ids.iter().zip(&expected).filter(|&(_, &refused)| !refused);
            same("prompt tokens", &prompt_tokens, &answered.map(|(ids, _)| ids.len()).sum())?;
            // Meta's code computes what nobody will see: the refusal stands in its place.
            let seen =
                tokens.iter().zip(expected).map(|(tokens, refused)| if refused { Vec::new() } else { tokens.clone() });
            same("tokens", &outputs.iter().map(without_end).collect(), &seen.collect::<Vec<_>>())?;
            same("streamed texts", &streamed, texts)
        }
        Expectation::Draw { distribution, .. } => {
            let Answers { outputs, .. } =
                answer(model, case, MetaOptions { seed: Some(1), ..options(case)? }, DRAWS).await?;
            let drawn: Vec<u32> = outputs.iter().flat_map(|output| output.tokens.first().copied()).collect();
            check_frequencies(&drawn, &distribution.iter().copied().collect::<HashMap<_, _>>(), DRAWS)
        }
        other => Err(format!("not an answer of Meta's code: {other:?}")),
    }
}

/// Meta's code returns no end token.
fn without_end(output: &OutputSequence) -> Vec<u32> {
    let end = usize::from(output.finish_reason == FinishReason::EndToken);
    output.tokens[..output.tokens.len() - end].to_vec()
}

fn options(case: &Case) -> Result<MetaOptions, String> {
    let parameters: Map<String, Value> = case.field("parameters").unwrap_or_default();
    let number = |name: &str| parameters.get(name).and_then(Value::as_f64);
    let count = |name: &str| parameters.get(name).and_then(Value::as_u64).map(|count| count as usize);
    Ok(MetaOptions {
        temperature: number("temperature"),
        top_p: number("top_p"),
        max_gen_len: count("max_gen_len"),
        max_seq_len: count("max_seq_len"),
        max_batch_size: count("max_batch_size"),
        seed: None,
    })
}

struct Answers {
    outputs: Vec<OutputSequence>,
    /// The joined pieces for each prompt or dialog.
    streamed: Vec<String>,
    prompt_tokens: usize,
}

/// Asks for all prompts or dialogs of the case, `times` times in one request.
async fn answer(model: &LanguageModel, case: &Case, options: MetaOptions, times: usize) -> Result<Answers, String> {
    let cancel = Cancel::default();
    let prompts = match case.field::<Vec<String>>("prompts") {
        Some(prompts) => {
            CompletionRequest { prompts: vec![prompts; times].concat(), options }.prepare(model.context(), &cancel)
        }
        None => {
            let dialogs: Vec<Vec<BTreeMap<String, String>>> = case.field("input_data").ok_or("no input")?;
            let dialogs: Vec<_> = dialogs.iter().map(|dialog| messages(dialog)).collect();
            ChatRequest { dialogs: vec![dialogs; times].concat(), options }.prepare(model.context(), &cancel)
        }
    };
    let stream = prompts.and_then(|prompts| model.start(prompts));
    let mut stream = stream.map_err(|error| error.to_string())?;
    let mut streamed: BTreeMap<usize, String> = BTreeMap::new();
    while let Some(event) = stream.next().await {
        match event.map_err(|error| error.to_string())? {
            StreamEvent::Started | StreamEvent::PromptScored(_) => {}
            StreamEvent::Delta(delta) => streamed.entry(delta.sequence).or_default().push_str(&delta.text),
            StreamEvent::Finished(output) => {
                let outputs = output.sequences;
                let streamed = (0..outputs.len()).map(|i| streamed.get(&i).cloned().unwrap_or_default()).collect();
                return Ok(Answers { outputs, streamed, prompt_tokens: output.usage.prompt_tokens });
            }
        }
    }
    Err("the stream ended without an answer".to_owned())
}
