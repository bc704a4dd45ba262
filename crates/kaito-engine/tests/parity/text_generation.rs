//! Requests for text generation against transformers' answers.

use std::collections::{BTreeMap, HashMap};

use kaito_engine::dialects::transformers::TextRequest;
use kaito_engine::{Cancel, GenerateOptions, LanguageModel, Output, Prompt, StreamEvent};
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
            same("sequences", &answer.sequences(), sequences)?;
            same("texts", &answer.texts(), texts)?;
            same("prompt tokens", &answer.output.usage.prompt_tokens, &prompt_ids.len().max(1))?;
            if !parameters.contains_key("num_beams") {
                answer.check_stream(texts, case)?;
            }
            let output = answer.output.sequences;
            if let Some(expected) = sequences_scores {
                let got: Vec<f32> = output.iter().filter_map(|sequence| sequence.beam_score).collect();
                near("sequences_scores", &got, expected)?;
            }
            if let Some(expected) = log_probs {
                let scores = output.iter().flat_map(|sequence| sequence.scores.iter().flatten());
                let got: Vec<f32> = scores.map(|score| score.log_prob).collect();
                near("log-probabilities", &got, expected)?;
            }
            Ok(())
        }
        other => Err(format!("not an answer of transformers: {other:?}")),
    }
}

/// A whole answer and the pieces that were streamed before.
struct Answer {
    prompt: Vec<u32>,
    /// What the texts begin with.
    shown: String,
    output: Output,
    streamed: BTreeMap<usize, String>,
}

impl Answer {
    /// The tokens of each sequence, prompt included, as transformers returns them.
    fn sequences(&self) -> Vec<Vec<u32>> {
        let sequences = self.output.sequences.iter();
        sequences.map(|sequence| [self.prompt.as_slice(), &sequence.tokens].concat()).collect()
    }

    fn texts(&self) -> Vec<String> {
        self.output.sequences.iter().map(|sequence| format!("{}{}", self.shown, sequence.text)).collect()
    }

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
        Some(dialog) => Prompt::Messages(messages(&dialog)),
        None => Prompt::Text(case.field("prompt").ok_or("the case has neither prompt nor messages")?),
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
    let prepared = request.prepare(model.context(), &Cancel::default()).map_err(|error| error.to_string())?;
    let (prompt, shown) = (prepared.prompt.prompt().to_vec(), prepared.shown);
    let mut stream = model.start(vec![prepared.prompt]).map_err(|error| error.to_string())?;
    let mut streamed: BTreeMap<usize, String> = BTreeMap::new();
    while let Some(event) = stream.next().await {
        match event.map_err(|error| error.to_string())? {
            StreamEvent::Started | StreamEvent::PromptScored(_) => {}
            StreamEvent::Delta(delta) => streamed.entry(delta.sequence).or_default().push_str(&delta.text),
            StreamEvent::Finished(output) => return Ok(Answer { prompt, shown, output, streamed }),
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
    let answer = answer(model, case, &parameters).await?;
    same("number of sequences", &answer.output.sequences.len(), &DRAWS)?;
    let expected: HashMap<u32, f32> = distribution.iter().copied().collect();
    let mut drawn = Vec::new();
    for (sequence, tokens) in answer.output.sequences.iter().zip(answer.sequences()) {
        let [score] = sequence.scores.as_deref().ok_or("no scores")? else {
            return Err(format!("{} tokens and not one score", tokens.len()));
        };
        let mut with_token = prompt_ids.to_vec();
        with_token.push(score.id);
        same("sequence", &tokens, &with_token)?;
        check_probability(score.id, score.log_prob, &expected)?;
        let top: Vec<(u32, f32)> = score.top.iter().map(|likely| (likely.id, likely.log_prob)).collect();
        check_probabilities(&top, &expected)?;
        drawn.push(score.id);
    }
    check_frequencies(&drawn, &expected, DRAWS)
}
