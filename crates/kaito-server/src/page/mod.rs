//! The web page: one file without outside resources, filled with what it needs to know of the model.

use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{Html, IntoResponse, Response};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::state::App;

const PAGE: &str = include_str!("index.html");

/// The page, which may run its own script and style, talk to this server, and nothing else.
pub(crate) fn respond(app: &App) -> Response {
    let nonce = format!("{:032x}", rand::random::<u128>());
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let Ok(policy) = HeaderValue::try_from(policy) else {
        return ApiError::internal("The page could not be written.").into_response();
    };
    let headers: [(HeaderName, HeaderValue); 4] = [
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    (headers, Html(fill(&nonce, &info(app)))).into_response()
}

fn info(app: &App) -> Value {
    let model = app.model().map(|model| model.info());
    json!({
        "name": app.options.model_name,
        "ready": model.is_some(),
        "chatTemplate": model.is_some_and(|info| info.chat_template),
        "maxSeqLen": model.map(|info| info.max_seq_len),
    })
}

fn fill(nonce: &str, info: &Value) -> String {
    // A script element ends at "</" whatever it holds, so no "<" may stand in it.
    PAGE.replace("{{nonce}}", nonce).replace("{{info}}", &info.to_string().replace('<', "\\u003c"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_name_cannot_break_out_of_the_script() {
        let name = "</script><script>alert(1)</script>{{nonce}}";
        let page = fill("N", &json!({ "name": name }));
        assert!(!page.contains(name));
        assert!(page.contains(r#"\u003c/script>\u003cscript>alert(1)"#));
        assert_eq!(page.matches("{{").count(), 1, "only the name's own braces are left");
    }

    #[test]
    fn the_page_needs_nothing_from_outside() {
        for outside in ["http://", "https://", "//cdn", "@import", "url(", "innerHTML", " onclick", "eval("] {
            assert!(!PAGE.replace("http://www.w3.org/2000/svg", "").contains(outside), "{outside}");
        }
    }
}
