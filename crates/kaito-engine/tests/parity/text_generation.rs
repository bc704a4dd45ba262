//! Requests for text generation against transformers' answers.

use std::collections::{BTreeMap, HashMap};

use kaito_engine::generate::GenerateOptions;
use kaito_engine::{LanguageModel, TextEvent, TextInput, TextOutput, TextRequest};
use serde_json::{Map, Value, json};

use super::case::{
    Case, Expectation, PromptIds, check_frequencies, check_probabilities, check_probability, messages, near, same,
};

/// How often a token is drawn to see that all tokens come as often as they should.
const DRAWS: usize = 256;

/// Checks one case, and says what is wrong.
pub async fn check(model: &LanguageModel, case: &Case) -> Result<(), String> {
    let parameters: Map<String, Value> = case.field("generate_kwargs").unwrap_or_default();
    match &case.expect {
        Expectation::Draw { prompt_ids: PromptIds::One(prompt_ids), distribution } => {
            check_draws(model, case, parameters, prompt_ids, distribution).await
        }
        Expectation::Sequences { prompt_ids, sequences, texts, sequences_scores, log_probs } => {
            let answer = answer(model, case, &parameters).await?;
            same("sequences", &answer.output.sequences, sequences)?;
            same("texts", &answer.output.texts, texts)?;
            same("prompt tokens", &answer.output.prompt_tokens, &prompt_ids.len().max(1))?;
            if !parameters.contains_key("num_beams") {
                answer.check_stream(texts, case)?;
            }
            if let Some(expected) = sequences_scores {
                near("sequences_scores", &answer.output.sequences_scores.unwrap_or_default(), expected)?;
            }
            if let Some(expected) = log_probs {
                let scores = answer.output.scores.unwrap_or_default();
                let got: Vec<f32> = scores.iter().flatten().map(|score| score.log_prob).collect();
                near("log-probabilities", &got, expected)?;
            }
            Ok(())
        }
        other => Err(format!("not an answer of transformers: {other:?}")),
    }
}

/// A whole answer and the pieces that were streamed before.
struct Answer {
    output: TextOutput,
    streamed: BTreeMap<usize, String>,
}

impl Answer {
    /// Streamed pieces are the new text alone, whatever the final text begins with.
    fn check_stream(&self, texts: &[String], case: &Case) -> Result<(), String> {
        let full = !case.request.contains_key("messages") && case.field("return_full_text").unwrap_or(true);
        let prompt = if full { case.field("prompt").unwrap_or_default() } else { String::new() };
        for (sequence, text) in texts.iter().enumerate() {
            let streamed = self.streamed.get(&sequence).cloned().unwrap_or_default();
            same("streamed text", &format!("{prompt}{streamed}"), text)?;
        }
        Ok(())
    }
}

async fn answer(model: &LanguageModel, case: &Case, parameters: &Map<String, Value>) -> Result<Answer, String> {
    let input = match case.field::<Vec<BTreeMap<String, String>>>("messages") {
        Some(dialog) => TextInput::Messages(messages(&dialog)),
        None => TextInput::Prompt(case.field("prompt").ok_or("the case has neither prompt nor messages")?),
    };
    let request = TextRequest {
        input,
        return_full_text: case.field("return_full_text"),
        clean_up_tokenization_spaces: case
            .request
            .get("clean_up_tokenization_spaces")
            .map(|given| given.as_bool().unwrap_or(true)),
        prefix: case.field("prefix"),
        handle_long_generation: case.field("handle_long_generation"),
        add_special_tokens: case.field("add_special_tokens"),
        options: GenerateOptions::from_json(parameters).map_err(|error| error.to_string())?,
        stop: Vec::new(),
    };
    let mut stream = model.generate_text(request).map_err(|error| error.to_string())?;
    let mut streamed: BTreeMap<usize, String> = BTreeMap::new();
    while let Some(event) = stream.next().await {
        match event.map_err(|error| error.to_string())? {
            TextEvent::Started => {}
            TextEvent::Delta { sequence, text, .. } | TextEvent::Rest { sequence, text } => {
                streamed.entry(sequence).or_default().push_str(&text);
            }
            TextEvent::Finished(output) => return Ok(Answer { output, streamed }),
        }
    }
    Err("the stream ended without an answer".to_owned())
}

/// Draws one token many times: each must have the probability that it should have, and come about as often.
async fn check_draws(
    model: &LanguageModel,
    case: &Case,
    mut parameters: Map<String, Value>,
    prompt_ids: &[u32],
    distribution: &[(u32, f32)],
) -> Result<(), String> {
    parameters.extend([
        ("num_return_sequences".to_owned(), json!(DRAWS)),
        ("output_scores".to_owned(), json!(true)),
        ("seed".to_owned(), json!(1)),
    ]);
    let output = answer(model, case, &parameters).await?.output;
    let scores = output.scores.ok_or("no scores")?;
    same("number of sequences", &scores.len(), &DRAWS)?;
    let expected: HashMap<u32, f32> = distribution.iter().copied().collect();
    let mut drawn = Vec::new();
    for (sequence, scores) in output.sequences.iter().zip(&scores) {
        let [score] = scores.as_slice() else { return Err(format!("{} scores for one token", scores.len())) };
        let mut with_token = prompt_ids.to_vec();
        with_token.push(score.id);
        same("sequence", sequence, &with_token)?;
        check_probability(score.id, score.log_prob, &expected)?;
        let top: Vec<(u32, f32)> = score.top.iter().map(|likely| (likely.id, likely.log_prob)).collect();
        check_probabilities(&top, &expected)?;
        drawn.push(score.id);
    }
    check_frequencies(&drawn, &expected, DRAWS)
}
