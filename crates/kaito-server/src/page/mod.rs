//! The web page: one file without outside resources, joined from its parts and filled with what it needs to know of the model.

use std::sync::LazyLock;

use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{Html, IntoResponse, Response};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::state::App;

/// The frame of the page, in which `{{NAME}}` stands for the part NAME.
const FRAME: &str = include_str!("index.html");

/// The parts, each of one subject. The scripts are one program: what one declares, those after it use.
const PARTS: [(&str, &str); 19] = [
    ("base.css", include_str!("base.css")),
    ("panels.css", include_str!("panels.css")),
    ("turns.css", include_str!("turns.css")),
    ("dom.js", include_str!("dom.js")),
    ("markdown-blocks.js", include_str!("markdown-blocks.js")),
    ("markdown-inline.js", include_str!("markdown-inline.js")),
    ("markdown-view.js", include_str!("markdown-view.js")),
    ("highlight.js", include_str!("highlight.js")),
    ("store.js", include_str!("store.js")),
    ("conversation.js", include_str!("conversation.js")),
    ("parameters.js", include_str!("parameters.js")),
    ("api.js", include_str!("api.js")),
    ("snippets.js", include_str!("snippets.js")),
    ("panels.js", include_str!("panels.js")),
    ("list.js", include_str!("list.js")),
    ("turns.js", include_str!("turns.js")),
    ("answer.js", include_str!("answer.js")),
    ("compose.js", include_str!("compose.js")),
    ("app.js", include_str!("app.js")),
];

/// The page but for the nonce and what is known of the model.
static PAGE: LazyLock<String> = LazyLock::new(|| {
    PARTS.iter().fold(compact(FRAME), |page, (name, text)| page.replace(&format!("{{{{{name}}}}}"), &compact(text)))
});

/// A part without indentation and lines that are comments. No string in the parts goes over a line.
fn compact(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//"));
    lines.fold(String::with_capacity(text.len()), |page, line| page + line + "\n")
}

/// The page.
pub(crate) fn respond(app: &App) -> Response {
    isolated(|nonce| fill(nonce, &info(app)))
}

/// A page that may run its own script and style, talk to this server, and nothing else. The browser itself refuses to read texts as
/// HTML, whatever its script tries. `write` makes it, with the nonce of its script and style.
pub(crate) fn isolated(write: impl FnOnce(&str) -> String) -> Response {
    let nonce = format!("{:032x}", rand::random::<u128>());
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'; trusted-types 'none'"
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
    (headers, Html(write(&nonce))).into_response()
}

fn info(app: &App) -> Value {
    let model = app.model().map(|model| model.info());
    json!({
        "chatTemplate": model.is_some_and(|info| info.chat_template),
        "maxSeqLen": model.map(|info| info.max_seq_len),
        "name": app.options.model_name,
        "ready": model.is_some(),
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
    fn every_part_has_its_place_and_all_of_them_are_small() {
        for (name, _) in PARTS {
            assert_eq!(FRAME.matches(&format!("{{{{{name}}}}}")).count(), 1, "{name}");
        }
        let left: Vec<&str> = PAGE.split("{{").skip(1).filter_map(|rest| rest.split("}}").next()).collect();
        assert_eq!(left, ["nonce", "nonce", "info", "nonce"]);
        assert!(PAGE.len() <= 150 << 10, "{} bytes", PAGE.len());
    }

    #[test]
    fn the_page_needs_nothing_from_outside() {
        for outside in ["http://", "https://", "//cdn", "@import", "url(", "innerHTML", " onclick", "eval("] {
            assert!(!PAGE.replace("http://www.w3.org/2000/svg", "").contains(outside), "{outside}");
        }
    }
}
