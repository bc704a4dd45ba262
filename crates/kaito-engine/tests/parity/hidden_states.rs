//! Pooled hidden states against what transformers says of the tokens that follow.
//!
//! transformers' log-probabilities are the softmax of the output head's product with the last hidden state. So a hidden state is
//! right if the head's matrix, as the checkpoint has it, makes transformers' log-probabilities of it.

use std::path::Path;

use kaito_engine::{LanguageModel, Pooling, Prepared};
use kaito_model::family;

use super::case::{Case, Expectation, PromptIds, near, same};

/// Tokens of a prompt whose mean is compared with its definition: no more than all models compute alike in a longer text.
const MEAN_OF: usize = 20;
/// How far an element of a mean may be from its definition.
const MEAN_TOLERANCE: f32 = 1e-5;

/// The output head, row by row.
struct Head(Vec<Vec<f64>>);

impl Head {
    fn read(directory: &Path) -> Self {
        let (_, weights) = family::load(directory).unwrap();
        assert!(weights.head.bias.is_none());
        let mut rows = vec![vec![0.0; weights.head.in_features]; weights.head.out_features];
        for part in &weights.head.parts {
            let tensor = part.weight.plain().unwrap();
            let columns = tensor.shape()[1];
            for (row, values) in tensor.to_f32().chunks(columns).enumerate() {
                let row = &mut rows[part.output_offset + row][part.input_offset..];
                row.iter_mut().zip(values).for_each(|(to, from)| *to = f64::from(*from));
            }
        }
        Self(rows)
    }

    /// The log-probabilities of all tokens behind a hidden state.
    fn log_probs(&self, state: &[f32]) -> Vec<f64> {
        let score = |row: &Vec<f64>| row.iter().zip(state).map(|(w, x)| w * f64::from(*x)).sum::<f64>();
        let scores: Vec<f64> = self.0.iter().map(score).collect();
        let sum: f64 = scores.iter().map(|score| score.exp()).sum();
        scores.iter().map(|score| score - sum.ln()).collect()
    }
}

async fn pooled(model: &LanguageModel, tokens: &[u32], pooling: Pooling) -> Result<Vec<f32>, String> {
    let prepared = Prepared::pooled(model.context(), tokens.to_vec(), pooling).map_err(|error| error.to_string())?;
    let stream = model.start(vec![prepared]).map_err(|error| error.to_string())?;
    let output = stream.output().await.map_err(|error| error.to_string())?;
    assert!(output.sequences.is_empty());
    assert_eq!((output.usage.prompt_tokens, output.usage.generated_tokens), (tokens.len(), 0));
    output.prompts[0].pooled.clone().ok_or_else(|| "nothing was pooled".to_owned())
}

/// Checks the states of the case whose log-probabilities are those of the raw scores. Meta's code gives none, and a model whose
/// own defaults change scores gives others.
pub async fn check(model: &LanguageModel, directory: &Path, cases: &[impl AsRef<Case>]) -> Result<(), String> {
    let head = Head::read(directory);
    let mut found = false;
    for case in cases.iter().map(AsRef::as_ref) {
        match &case.expect {
            Expectation::Sequences { prompt_ids, sequences, log_probs: Some(expected), .. }
                if case.name == "output scores" =>
            {
                found = true;
                if model.context().defaults.repetition_penalty.is_some() {
                    continue;
                }
                let tokens = &sequences[0];
                let mut got = Vec::new();
                for end in prompt_ids.len()..tokens.len() {
                    let state = pooled(model, &tokens[..end], Pooling::Last).await?;
                    got.push(head.log_probs(&state)[tokens[end] as usize] as f32);
                }
                near("log-probabilities of hidden states", &got, expected)?;
                check_mean(model, &tokens[..tokens.len().min(MEAN_OF)]).await?;
            }
            Expectation::Draw { prompt_ids: PromptIds::One(prompt), distribution }
                if case.name == "draw from everything" =>
            {
                let probabilities = head.log_probs(&pooled(model, prompt, Pooling::Last).await?);
                assert_eq!(distribution.len(), probabilities.len(), "the reference lists the whole vocabulary");
                let of = |(token, _): &(u32, f32)| probabilities[*token as usize].exp() as f32;
                let got: Vec<f32> = distribution.iter().map(of).collect();
                let expected: Vec<f32> = distribution.iter().map(|(_, p)| *p).collect();
                near("probabilities of all tokens", &got, &expected)?;
            }
            _ => {}
        }
    }
    same("whether there is a case with log-probabilities", &found, &!cases.iter().any(|case| case.as_ref().is_meta()))
}

/// The mean is that of the states of all tokens, each of which is the last one of its own beginning of the prompt.
async fn check_mean(model: &LanguageModel, tokens: &[u32]) -> Result<(), String> {
    let mean = pooled(model, tokens, Pooling::Mean).await?;
    let mut sum = vec![0.0; mean.len()];
    for end in 1..=tokens.len() {
        let state = pooled(model, &tokens[..end], Pooling::Last).await?;
        sum.iter_mut().zip(state).for_each(|(sum, x)| *sum += f64::from(x));
    }
    for (at, (got, sum)) in mean.iter().zip(sum).enumerate() {
        let expected = (sum / tokens.len() as f64) as f32;
        if (got - expected).abs() > MEAN_TOLERANCE * expected.abs().max(1.0) {
            return Err(format!("element {at} of the mean is {got}, not {expected}"));
        }
    }
    Ok(())
}
