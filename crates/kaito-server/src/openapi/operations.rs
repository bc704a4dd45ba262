//! What each route does, for the description of the API.

use schemars::generate::SchemaGenerator;
use schemars::{JsonSchema, Schema};

use super::types::{OpenAiError, anthropic, kaito, ollama, openai, responses, server, streams, tgi, tokens};
use crate::routes::Verb;

/// The schema of a body.
pub(super) type Make = fn(&mut SchemaGenerator) -> Schema;

/// What an answer holds.
#[derive(Clone, Copy)]
pub(super) enum Body {
    Json(Make),
    /// Text of these types.
    Text(&'static [&'static str]),
    Empty,
}

/// What the routes at some paths do.
pub(super) struct Operation {
    /// The first is the usual one.
    pub(super) paths: &'static [&'static str],
    pub(super) verb: Verb,
    pub(super) id: &'static str,
    pub(super) tag: &'static str,
    pub(super) summary: &'static str,
    pub(super) request: Option<Make>,
    pub(super) answer: Body,
    /// What it answers with `stream`.
    pub(super) stream: Option<Stream>,
}

/// An answer in pieces.
#[derive(Clone, Copy)]
pub(super) struct Stream {
    /// When there is one, and what its pieces are.
    pub(super) about: &'static str,
    pub(super) pieces: Pieces,
}

/// What an answer in pieces is made of.
#[derive(Clone, Copy)]
pub(super) enum Pieces {
    /// Server-sent events.
    Events(&'static [Event]),
    /// Lines of JSON.
    Lines(Make),
}

/// One kind of server-sent event.
#[derive(Clone, Copy)]
pub(super) enum Event {
    /// Its name, where it has one, and the JSON that it holds.
    Json(Option<&'static str>, Make),
    /// This text, which is the last of the stream.
    Last(&'static str),
}

/// Pieces of one kind, or an error; then the end.
const fn chunks(chunk: Make) -> [Event; 3] {
    [Event::Json(None, chunk), Event::Json(None, of::<OpenAiError>), Event::Last("[DONE]")]
}

/// Tokens, then the answer as it is without a stream, or an error.
const fn tokens_then(result: Make) -> [Event; 3] {
    [
        Event::Json(None, of::<streams::KaitoToken>),
        Event::Json(Some("result"), result),
        Event::Json(Some("error"), of::<streams::KaitoFailure>),
    ]
}

const CHAT_CHUNKS: [Event; 3] = chunks(of::<streams::ChatChunk>);
const COMPLETION_CHUNKS: [Event; 3] = chunks(of::<streams::CompletionChunk>);
const RESPONSE_EVENTS: [Event; 1] = [Event::Json(None, of::<streams::ResponseStreamEvent>)];
const MESSAGE_EVENTS: [Event; 1] = [Event::Json(None, of::<streams::MessageEvent>)];
const CHAT_TOKENS: [Event; 3] = tokens_then(of::<kaito::ChatAnswer>);
const TGI_EVENTS: [Event; 1] = [Event::Json(None, of::<streams::TgiEvent>)];
/// `/generate` speaks two dialects.
const GENERATE_TOKENS: [Event; 4] = {
    let [token, result, error] = tokens_then(of::<kaito::GenerateAnswer>);
    [token, result, error, Event::Json(None, of::<streams::TgiEvent>)]
};

fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

const fn get(
    paths: &'static [&'static str],
    id: &'static str,
    tag: &'static str,
    summary: &'static str,
    answer: Body,
) -> Operation {
    Operation { paths, verb: Verb::Get, id, tag, summary, request: None, answer, stream: None }
}

const fn post(
    paths: &'static [&'static str],
    id: &'static str,
    tag: &'static str,
    summary: &'static str,
    request: Make,
    answer: Make,
) -> Operation {
    Operation {
        paths,
        verb: Verb::Post,
        id,
        tag,
        summary,
        request: Some(request),
        answer: Body::Json(answer),
        stream: None,
    }
}

impl Operation {
    const fn streams(self, about: &'static str, events: &'static [Event]) -> Self {
        Self { stream: Some(Stream { about, pieces: Pieces::Events(events) }), ..self }
    }

    const fn streams_lines(self, about: &'static str, line: Make) -> Self {
        Self { stream: Some(Stream { about, pieces: Pieces::Lines(line) }), ..self }
    }
}

const LINES: &str = "Unless `stream` is false: a line of JSON for each piece, the last with `done`.";
const OPENAI: &str = "OpenAI";
const ANTHROPIC: &str = "Anthropic";
const OLLAMA: &str = "Ollama";
const KAITO: &str = "Kaito";
const SERVER: &str = "Server";
const TOKENS: &str = "Tokens";

/// All of them, in the order in which people look for them.
pub(super) const OPERATIONS: &[Operation] = &[
    post(
        &["/v1/chat/completions", "/chat/completions"],
        "createChatCompletion",
        OPENAI,
        "Continues a conversation.",
        of::<openai::ChatCompletionRequest>,
        of::<openai::ChatCompletion>,
    )
    .streams("With `stream`: events without a name, each a `chat.completion.chunk`, then `[DONE]`.", &CHAT_CHUNKS),
    post(
        &["/v1/completions", "/completions"],
        "createCompletion",
        OPENAI,
        "Continues prompts.",
        of::<openai::CompletionRequest>,
        of::<openai::CompletionAnswer>,
    )
    .streams("With `stream`: events without a name, each a `text_completion`, then `[DONE]`.", &COMPLETION_CHUNKS),
    post(
        &["/v1/responses", "/responses"],
        "createResponse",
        OPENAI,
        "Answers an input; nothing is kept.",
        of::<responses::ResponseRequest>,
        of::<responses::Response>,
    )
    .streams("With `stream`: events from `response.created` to `response.completed`, numbered.", &RESPONSE_EVENTS),
    get(
        &["/v1/responses/{*id}", "/v1/responses/{id}"],
        "retrieveResponse",
        OPENAI,
        "Responses are not kept, so there is none.",
        Body::Json(of::<responses::Response>),
    ),
    get(
        &["/v1/models", "/models"],
        "listModels",
        OPENAI,
        "The names that the model answers to.",
        Body::Json(of::<openai::ModelList>),
    ),
    get(
        &["/v1/models/{*id}", "/v1/models/{id}", "/models/{*id}", "/models/{id}"],
        "retrieveModel",
        OPENAI,
        "One of these names.",
        Body::Json(of::<openai::Model>),
    ),
    post(
        &["/v1/embeddings", "/embeddings"],
        "createEmbedding",
        OPENAI,
        "Describes texts by vectors, where the server is told to.",
        of::<openai::EmbeddingRequest>,
        of::<openai::Embeddings>,
    ),
    Operation {
        answer: Body::Text(&["text/plain"]),
        ..post(
            &["/v1/load_lora_adapter"],
            "loadAdapter",
            OPENAI,
            "Loads an adapter, where the server is told that it may.",
            of::<openai::LoadAdapterRequest>,
            of::<server::Nothing>,
        )
    },
    Operation {
        answer: Body::Text(&["text/plain"]),
        ..post(
            &["/v1/unload_lora_adapter"],
            "unloadAdapter",
            OPENAI,
            "Unloads an adapter once its last request ends; new ones do not find it.",
            of::<openai::UnloadAdapterRequest>,
            of::<server::Nothing>,
        )
    },
    post(
        &["/v1/messages"],
        "createMessage",
        ANTHROPIC,
        "Continues a conversation.",
        of::<anthropic::MessageRequest>,
        of::<anthropic::Message>,
    )
    .streams("With `stream`: events from `message_start` to `message_stop`.", &MESSAGE_EVENTS),
    post(
        &["/v1/messages/count_tokens"],
        "countTokens",
        ANTHROPIC,
        "How many tokens a conversation has.",
        of::<anthropic::CountRequest>,
        of::<anthropic::Count>,
    ),
    post(
        &["/tokenize"],
        "tokenize",
        TOKENS,
        "The tokens of a text or a conversation.",
        of::<tokens::TokenizeRequest>,
        of::<tokens::Tokens>,
    ),
    post(
        &["/detokenize"],
        "detokenize",
        TOKENS,
        "The text of tokens.",
        of::<tokens::DetokenizeRequest>,
        of::<tokens::Detokenized>,
    ),
    post(
        &["/apply-template"],
        "applyTemplate",
        TOKENS,
        "The prompt that the chat template makes of a conversation.",
        of::<tokens::ApplyTemplateRequest>,
        of::<tokens::Prompt>,
    ),
    post(
        &["/chat"],
        "chat",
        KAITO,
        "Generates text as transformers does, or answers dialogs as Meta's Llama 2 code does.",
        of::<kaito::ChatRequest>,
        of::<kaito::ChatAnswer>,
    )
    .streams("With `stream`: an event for each token, then `result` or `error`.", &CHAT_TOKENS),
    post(
        &["/generate"],
        "generate",
        KAITO,
        "Continues prompts as Meta's Llama 2 code does, or a text as text-generation-inference does.",
        of::<kaito::GenerateRequest>,
        of::<kaito::GenerateAnswer>,
    )
    .streams("With `stream`: an event for each token, then `result` or `error`.", &GENERATE_TOKENS),
    Operation {
        paths: &["/generate_stream"],
        verb: Verb::Post,
        id: "generateStream",
        tag: KAITO,
        summary: "Continues a text as text-generation-inference does, piece by piece.",
        request: Some(of::<tgi::GenerateRequest>),
        answer: Body::Text(&[]),
        stream: None,
    }
    .streams("An event for each token, the last with the whole text.", &TGI_EVENTS),
    post(
        &["/"],
        "generateAtRoot",
        KAITO,
        "Continues a text as text-generation-inference does: where huggingface_hub asks.",
        of::<tgi::GenerateRequest>,
        of::<tgi::Generated>,
    )
    .streams("With `stream`: an event for each token, the last with the whole text.", &TGI_EVENTS),
    post(
        &["/api/chat"],
        "ollamaChat",
        OLLAMA,
        "Continues a conversation.",
        of::<ollama::ChatRequest>,
        of::<ollama::ChatAnswer>,
    )
    .streams_lines(LINES, of::<ollama::ChatAnswer>),
    post(
        &["/api/generate"],
        "ollamaGenerate",
        OLLAMA,
        "Answers a prompt, or continues it.",
        of::<ollama::GenerateRequest>,
        of::<ollama::GenerateAnswer>,
    )
    .streams_lines(LINES, of::<ollama::GenerateAnswer>),
    post(
        &["/api/show"],
        "ollamaShow",
        OLLAMA,
        "What the model is and can do.",
        of::<ollama::ShowRequest>,
        of::<server::Anything>,
    ),
    post(
        &["/api/embed"],
        "ollamaEmbed",
        OLLAMA,
        "Describes texts by vectors, where the server is told to.",
        of::<ollama::EmbedRequest>,
        of::<ollama::EmbedAnswer>,
    ),
    get(&["/api/tags"], "ollamaTags", OLLAMA, "The model's names.", Body::Json(of::<ollama::Models>)),
    get(&["/api/ps"], "ollamaRunning", OLLAMA, "The models that are loaded.", Body::Json(of::<ollama::Models>)),
    get(&["/api/version"], "ollamaVersion", OLLAMA, "The version of kaito.", Body::Json(of::<server::Version>)),
    get(
        &["/info"],
        "getInfo",
        SERVER,
        "The model and its limits, as text-generation-inference tells them.",
        Body::Json(of::<server::Anything>),
    ),
    Operation {
        paths: &["/shutdown"],
        verb: Verb::Post,
        id: "shutDown",
        tag: SERVER,
        summary: "Lets running requests finish, then ends the server.",
        request: None,
        answer: Body::Json(of::<server::Nothing>),
        stream: None,
    },
    get(
        &["/healthz"],
        "getHealth",
        SERVER,
        "Whether the model is loaded and makes progress.",
        Body::Json(of::<server::Health>),
    ),
    get(&["/health", "/ping"], "probe", SERVER, "The same by the status alone.", Body::Empty),
    get(&["/version"], "getVersion", SERVER, "The version of kaito.", Body::Json(of::<server::Version>)),
    get(
        &["/metrics"],
        "getMetrics",
        SERVER,
        "Metrics for Prometheus.",
        Body::Text(&["text/plain", "application/openmetrics-text"]),
    ),
    get(
        &["/"],
        "getPage",
        SERVER,
        "Whether the server runs; for a browser, a page to talk with the model.",
        Body::Json(of::<server::Running>),
    ),
    get(&["/openapi.json"], "getDescription", SERVER, "This description.", Body::Json(of::<server::Anything>)),
    get(&["/docs"], "getDocs", SERVER, "A page that shows this description.", Body::Text(&["text/html"])),
];
