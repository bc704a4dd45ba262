//! Kaito's own routes: `/chat` and `/generate`.

use schemars::JsonSchema;

/// A request to `/chat`, in one of three shapes.
#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "KaitoChatRequest")]
pub(in super::super) enum ChatRequest {
    /// A text to continue.
    Prompt(PromptRequest),
    /// A conversation, which the model's chat template turns into a text.
    Messages(MessagesRequest),
    /// Dialogs.
    Dialogs(DialogsRequest),
}

/// A text to continue.
#[derive(JsonSchema)]
#[schemars(rename = "KaitoPromptRequest")]
pub(in super::super) struct PromptRequest {
    prompt: String,
    #[serde(flatten)]
    options: GenerateOptions,
    /// The same parameters; both places together, none twice.
    generate_kwargs: Option<GenerateOptions>,
}

/// A conversation to continue.
#[derive(JsonSchema)]
#[schemars(rename = "KaitoMessagesRequest")]
pub(in super::super) struct MessagesRequest {
    messages: Vec<Message>,
    #[serde(flatten)]
    options: GenerateOptions,
    /// The same parameters; both places together, none twice.
    generate_kwargs: Option<GenerateOptions>,
}

/// One message of a conversation.
#[derive(JsonSchema)]
#[schemars(rename = "KaitoMessage", deny_unknown_fields)]
pub(in super::super) struct Message {
    role: String,
    content: String,
}

/// How transformers generates.
#[derive(JsonSchema)]
#[schemars(rename = "KaitoGenerateOptions")]
pub(in super::super) struct GenerateOptions {
    /// Most tokens of the answer; wins over `max_length`.
    max_new_tokens: Option<u64>,
    /// Most tokens of prompt and answer together; 200 unless set.
    max_length: Option<u64>,
    /// Fewest tokens of the answer.
    min_new_tokens: Option<u64>,
    /// Fewest tokens of prompt and answer together.
    min_length: Option<u64>,
    /// Draw tokens at random (the default), or take the likeliest one each time.
    do_sample: Option<bool>,
    /// Divides the logits before sampling.
    temperature: Option<f64>,
    /// Sample among so many likeliest tokens; 0 is no limit, 10 unless set.
    top_k: Option<u64>,
    /// Sample among the likeliest tokens that together have this probability.
    top_p: Option<f64>,
    /// Sample among the most typical tokens that together have this probability.
    typical_p: Option<f64>,
    /// Above 1, a factor against tokens that are in the text already.
    repetition_penalty: Option<f64>,
    /// No n-gram of this size occurs twice.
    no_repeat_ngram_size: Option<u64>,
    /// No n-gram of this size of the prompt occurs in the answer.
    encoder_no_repeat_ngram_size: Option<u64>,
    /// Lists of token ids that are not generated.
    bad_words_ids: Option<Vec<Vec<u32>>>,
    /// Beams of a beam search; 1 is none.
    num_beams: Option<u64>,
    /// Groups of beams of a diverse beam search.
    num_beam_groups: Option<u64>,
    /// What a group loses for a token that an earlier group chose at the same step.
    diversity_penalty: Option<f64>,
    /// When a beam search ends.
    early_stopping: Option<EarlyStopping>,
    /// Exponent of the length by which a beam's score is divided.
    length_penalty: Option<f64>,
    /// Texts to return.
    num_return_sequences: Option<u64>,
    /// Seed of the random numbers.
    seed: Option<u64>,
    /// Token id or ids that end a text.
    eos_token_id: Option<OneOrMany<u32>>,
    /// Fills up finished beams.
    pad_token_id: Option<u32>,
    /// Token forced at position 1.
    forced_bos_token_id: Option<u32>,
    /// Token forced at the last position.
    forced_eos_token_id: Option<OneOrMany<u32>>,
    /// Replace logits that are infinite or no numbers.
    remove_invalid_values: Option<bool>,
    /// Add log-probabilities.
    output_scores: Option<bool>,
    /// Add token ids.
    return_dict_in_generate: Option<bool>,
    /// The text ends before the first of these that occurs.
    stop: Option<OneOrMany<String>>,
    /// Answer by server-sent events.
    stream: Option<bool>,
    /// Put the prompt before the answer; true unless set.
    return_full_text: Option<bool>,
    /// Take away spaces before punctuation.
    clean_up_tokenization_spaces: Option<bool>,
    /// Text before the prompt, which the answer leaves out.
    prefix: Option<String>,
    /// `hole` cuts the beginning off a prompt that is too long.
    handle_long_generation: Option<String>,
    /// Whether the prompt gets the tokenizer's special tokens.
    add_special_tokens: Option<bool>,
}

#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
enum EarlyStopping {
    When(bool),
    Never(String),
}

#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(super) enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

/// What `/chat` answers.
#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "KaitoChatAnswer")]
pub(in super::super) enum ChatAnswer {
    /// To a prompt or a conversation.
    Text(TextAnswer),
    /// To dialogs.
    Dialogs(DialogsAnswer),
}

/// A text.
#[derive(JsonSchema)]
#[schemars(rename = "KaitoTextAnswer")]
pub(in super::super) struct TextAnswer {
    /// The text; of several, one behind the other.
    #[serde(rename = "Result")]
    result: String,
    /// With `return_dict_in_generate`: the token ids of each text.
    sequences: Option<Vec<Vec<u32>>>,
}

/// Dialogs to answer.
#[derive(JsonSchema)]
#[schemars(rename = "KaitoDialogsRequest", deny_unknown_fields)]
pub(in super::super) struct DialogsRequest {
    input_data: InputData,
    parameters: Option<LlamaParameters>,
    stream: Option<bool>,
}

/// The dialogs.
#[derive(JsonSchema)]
#[schemars(rename = "KaitoInputData", deny_unknown_fields)]
pub(in super::super) struct InputData {
    input_string: Vec<Vec<Message>>,
    parameters: Option<LlamaParameters>,
}

/// How Meta's Llama 2 code generates.
#[derive(JsonSchema)]
#[schemars(rename = "KaitoLlamaParameters", deny_unknown_fields)]
pub(in super::super) struct LlamaParameters {
    /// Divides the logits before sampling; 0 takes the likeliest token, 0.6 unless set.
    temperature: Option<f64>,
    /// Sample among the likeliest tokens that together have this probability; 0.9 unless set.
    top_p: Option<f64>,
    /// Most tokens of an answer.
    max_gen_len: Option<u64>,
    /// Most tokens of prompt and answer together.
    max_seq_len: Option<u64>,
    /// Most dialogs or prompts of the request.
    max_batch_size: Option<u64>,
    /// Seed of the random numbers.
    seed: Option<u64>,
    /// Answer by server-sent events.
    stream: Option<bool>,
}

/// Dialogs with their answers, roles capitalised.
#[derive(JsonSchema)]
#[schemars(rename = "KaitoDialogsAnswer", deny_unknown_fields)]
pub(in super::super) struct DialogsAnswer {
    results: Vec<Vec<Message>>,
}

/// A request to `/generate`, in one of two shapes.
#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "KaitoGenerateRequest")]
pub(in super::super) enum GenerateRequest {
    /// Prompts to continue.
    Prompts(PromptsRequest),
    /// A text to continue, as text-generation-inference takes it.
    Inputs(super::tgi::GenerateRequest),
}

/// What `/generate` answers.
#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "KaitoGenerateAnswer")]
pub(in super::super) enum GenerateAnswer {
    /// To prompts.
    Prompts(PromptsAnswer),
    /// To `inputs`.
    Inputs(super::tgi::Generated),
}

/// Prompts to continue.
#[derive(JsonSchema)]
#[schemars(rename = "KaitoPromptsRequest", deny_unknown_fields)]
pub(in super::super) struct PromptsRequest {
    prompts: Vec<String>,
    parameters: Option<LlamaParameters>,
    stream: Option<bool>,
}

/// Prompts and what continues them.
#[derive(JsonSchema)]
#[schemars(rename = "KaitoPromptsAnswer", deny_unknown_fields)]
pub(in super::super) struct PromptsAnswer {
    results: Vec<Continued>,
}

/// A prompt and what continues it.
#[derive(JsonSchema)]
#[schemars(rename = "KaitoContinued", deny_unknown_fields)]
pub(in super::super) struct Continued {
    prompt: String,
    response: String,
}
