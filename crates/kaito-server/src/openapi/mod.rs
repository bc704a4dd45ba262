//! The description of the API: `/openapi.json`, made of the table of routes and of the [types] of bodies, and `/docs`, a page
//! that shows it.

mod document;
mod operations;
mod types;

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use crate::page;
use crate::state::App;

const PAGE: &str = include_str!("page.html");

/// `/openapi.json`
pub(crate) async fn document(State(app): State<Arc<App>>) -> Response {
    let text = document::text(app.options.api_keys.are_asked_for());
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// `/docs`
pub(crate) async fn docs() -> Response {
    page::isolated(|nonce| PAGE.replace("{{nonce}}", nonce))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_nothing_from_outside() {
        for outside in ["http:", "https:", "//cdn", "@import", "url(", "innerHTML", " onclick", "eval(", "src="] {
            assert!(!PAGE.contains(outside), "{outside}");
        }
        assert!(PAGE.len() < 16 << 10, "{}", PAGE.len());
    }
}
