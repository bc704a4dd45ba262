//! Numbers of tokens, as the OpenAI dialect reports them.

use serde::Serialize;

/// What a request took. All choices count, and end tokens too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptDetails,
    completion_tokens_details: CompletionDetails,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct PromptDetails {
    cached_tokens: usize,
}

/// Nothing that this server does; clients read the fields without asking whether they are there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
struct CompletionDetails {
    reasoning_tokens: usize,
    accepted_prediction_tokens: usize,
    rejected_prediction_tokens: usize,
}

impl Usage {
    /// Of a request that has come so far.
    pub(crate) fn new(prompt_tokens: usize, cached_tokens: usize, completion_tokens: usize) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptDetails { cached_tokens },
            completion_tokens_details: CompletionDetails::default(),
        }
    }
}

impl From<kaito_engine::Usage> for Usage {
    fn from(usage: kaito_engine::Usage) -> Self {
        Self::new(usage.prompt_tokens, usage.cached_tokens, usage.generated_tokens)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn is_written_with_all_its_details() {
        assert_eq!(
            serde_json::to_value(Usage::new(7, 4, 3)).unwrap(),
            json!({
                "prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10,
                "prompt_tokens_details": { "cached_tokens": 4 },
                "completion_tokens_details": {
                    "reasoning_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0
                }
            })
        );
    }
}
