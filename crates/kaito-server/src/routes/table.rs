//! All routes, as data.
//!
//! A route is an entry of [`ROUTES`]: where it is, whose error shape it has, whom it answers, and what answers it. Metrics and the
//! log name requests by these paths, refusals list them, and the router is made of them.

use std::sync::Arc;

use axum::http::Method;
use axum::routing::{MethodRouter, get, post};

use crate::dialect::{Parse, llama, text_generation};
use crate::openai::{adapters, chat, completions, embeddings, models, responses, tokens};
use crate::state::App;
use crate::{anthropic, ollama, tgi};

/// Whose shape errors have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// `{"detail": ...}`
    Kaito,
    /// `{"error": {"message", "type", "param", "code"}}`
    OpenAi,
    /// `{"type": "error", "error": {"type", "message"}}`
    Anthropic,
    /// `{"error": ...}`
    Ollama,
}

/// Whom a route answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Everybody.
    Open,
    /// Who shows an API key, where the server has one.
    Key,
    /// The route's handler decides.
    Own,
}

/// What answers.
#[derive(Clone, Copy)]
pub(crate) enum Answer {
    /// The model: the body is read by this function, and goes the way of a request that generates.
    Work(Parse),
    /// A handler of its own.
    Handler(fn() -> MethodRouter<Arc<App>>),
}

/// How a route is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    /// GET, and HEAD.
    Get,
    /// POST.
    Post,
}

/// A route.
#[derive(Clone, Copy)]
pub(crate) struct Route {
    /// Its path, as the router writes it: a last part `{*name}` stands for any rest.
    pub(crate) path: &'static str,
    pub(crate) verb: Verb,
    pub(crate) family: Family,
    pub(crate) access: Access,
    pub(crate) answer: Answer,
}

impl Route {
    const fn get(path: &'static str, family: Family, access: Access, handler: fn() -> MethodRouter<Arc<App>>) -> Self {
        Self { path, verb: Verb::Get, family, access, answer: Answer::Handler(handler) }
    }

    const fn work(path: &'static str, family: Family, parse: Parse) -> Self {
        Self { path, verb: Verb::Post, family, access: Access::Key, answer: Answer::Work(parse) }
    }

    fn matches(&self, path: &str) -> bool {
        match self.path.split_once("{*") {
            Some((start, _)) => path.len() > start.len() && path.starts_with(start),
            None => self.path == path,
        }
    }

    fn generates(&self) -> bool {
        matches!(self.answer, Answer::Work(_))
    }
}

/// Every route. Aliases are entries of their own.
pub(crate) const ROUTES: &[Route] = &[
    Route::get("/", Family::Kaito, Access::Open, || get(super::home)),
    Route::work("/", Family::Kaito, tgi::parse_root),
    Route::get("/healthz", Family::Kaito, Access::Open, || get(super::healthz)),
    Route::get("/health", Family::Kaito, Access::Open, || get(super::probe)),
    Route::get("/ping", Family::Kaito, Access::Open, || get(super::probe)),
    Route::get("/version", Family::Kaito, Access::Open, || get(super::version)),
    Route::get("/openapi.json", Family::Kaito, Access::Open, || get(crate::openapi::document)),
    Route::get("/docs", Family::Kaito, Access::Open, || get(crate::openapi::docs)),
    Route::get("/metrics", Family::Kaito, Access::Open, || get(super::show_metrics)),
    Route::work("/generate", Family::Kaito, llama::parse_completion),
    Route::work("/chat", Family::Kaito, text_generation::parse_chat),
    Route::work("/v1/chat/completions", Family::OpenAi, chat::parse),
    Route::work("/v1/completions", Family::OpenAi, completions::parse),
    Route::get("/v1/models", Family::OpenAi, Access::Key, || get(models::list)),
    Route::get("/v1/models/{*id}", Family::OpenAi, Access::Key, || get(models::retrieve)),
    Route::work("/v1/embeddings", Family::OpenAi, embeddings::parse),
    Route::work("/v1/responses", Family::OpenAi, responses::parse),
    Route::get("/v1/responses/{*id}", Family::OpenAi, Access::Key, || {
        get(responses::not_stored).post(responses::not_stored).delete(responses::not_stored)
    }),
    Route::work("/v1/messages", Family::Anthropic, anthropic::parse),
    Route::work("/v1/messages/count_tokens", Family::Anthropic, anthropic::parse_count),
    Route::work("/v1/load_lora_adapter", Family::OpenAi, adapters::parse_load),
    Route::work("/v1/unload_lora_adapter", Family::OpenAi, adapters::parse_unload),
    // For clients whose base URL lacks /v1.
    Route::work("/chat/completions", Family::OpenAi, chat::parse),
    Route::work("/completions", Family::OpenAi, completions::parse),
    Route::work("/embeddings", Family::OpenAi, embeddings::parse),
    Route::work("/responses", Family::OpenAi, responses::parse),
    Route::get("/models", Family::OpenAi, Access::Key, || get(models::list)),
    Route::get("/models/{*id}", Family::OpenAi, Access::Key, || get(models::retrieve)),
    Route::work("/generate_stream", Family::OpenAi, tgi::parse_stream),
    Route::get("/info", Family::OpenAi, Access::Key, || get(tgi::info)),
    Route::work("/tokenize", Family::OpenAi, tokens::parse_tokenize),
    Route::work("/detokenize", Family::OpenAi, tokens::parse_detokenize),
    Route::work("/apply-template", Family::OpenAi, tokens::parse_apply_template),
    Route::get("/api/version", Family::Ollama, Access::Key, || get(ollama::version)),
    Route::get("/api/tags", Family::Ollama, Access::Key, || get(ollama::tags)),
    Route::get("/api/ps", Family::Ollama, Access::Key, || get(ollama::running)),
    Route::work("/api/show", Family::Ollama, ollama::parse_show),
    Route::work("/api/chat", Family::Ollama, ollama::parse_chat),
    Route::work("/api/generate", Family::Ollama, ollama::parse_generate),
    Route::work("/api/embed", Family::Ollama, ollama::parse_embed),
    Route {
        path: "/shutdown",
        verb: Verb::Post,
        family: Family::Kaito,
        access: Access::Own,
        answer: Answer::Handler(|| post(super::shut_down)),
    },
];

/// The routes at a path: one for each way in which it can be asked.
pub(crate) fn at(path: &str) -> impl Iterator<Item = &'static Route> {
    ROUTES.iter().filter(move |route| route.matches(path))
}

/// The route as metrics and logs name it. Clients may ask for any path, and metrics must have few labels.
pub(crate) fn label(path: &str) -> &'static str {
    at(path).next().map_or("other", |route| route.path)
}

/// Whether a request to `path` by `method` is for text to be generated. Where there is more than one route, a GET is for the other.
pub(crate) fn is_work(path: &str, method: &Method) -> bool {
    let reads = [Method::GET, Method::HEAD].contains(method);
    at(path).any(Route::generates) && !(reads && at(path).any(|route| route.verb == Verb::Get))
}

/// Who reads the bodies of requests to a path, if it generates.
pub(crate) fn parser(path: &str) -> Option<Parse> {
    at(path).find_map(|route| match route.answer {
        Answer::Work(parse) => Some(parse),
        Answer::Handler(_) => None,
    })
}

/// Whose error shape a path has, whether there is a route or not.
pub(crate) fn family(path: &str) -> Family {
    let below = |root: &str| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    match at(path).next() {
        Some(route) => route.family,
        None if below("/v1/messages") => Family::Anthropic,
        None if below("/v1") => Family::OpenAi,
        None if below("/api") => Family::Ollama,
        None => Family::Kaito,
    }
}

/// The paths of a family's routes, for the sentence that refuses another.
pub(crate) fn paths(family: Family) -> impl Iterator<Item = &'static str> {
    let of_family = ROUTES.iter().enumerate().filter(move |(_, route)| route.family == family);
    // A path that can be asked in two ways is named once.
    of_family
        .filter(|(i, route)| !ROUTES.iter().take(*i).any(|earlier| earlier.path == route.path))
        .map(|(_, route)| route.path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_outside_the_table_have_one_label() {
        for (path, expected) in [("/chat", "/chat"), ("/chat/", "other"), ("/v1", "other"), ("", "other")] {
            assert_eq!(label(path), expected, "{path}");
        }
    }

    #[test]
    fn looking_at_the_root_is_no_work() {
        for (method, path, expected) in [
            (Method::GET, "/", false),
            (Method::HEAD, "/", false),
            (Method::POST, "/", true),
            (Method::POST, "/chat", true),
            (Method::GET, "/chat", true),
            (Method::GET, "/api/tags", false),
            (Method::POST, "/nothing", false),
        ] {
            assert_eq!(is_work(path, &method), expected, "{method} {path}");
        }
    }

    #[test]
    fn a_path_that_is_no_route_still_has_a_family() {
        for (path, expected) in [
            ("/nothing", Family::Kaito),
            ("/v1", Family::OpenAi),
            ("/v1/nothing", Family::OpenAi),
            ("/v1x", Family::Kaito),
            ("/v1/messages/nothing", Family::Anthropic),
            ("/api", Family::Ollama),
            ("/api/pull", Family::Ollama),
            ("/apis", Family::Kaito),
        ] {
            assert_eq!(family(path), expected, "{path}");
        }
    }
}
