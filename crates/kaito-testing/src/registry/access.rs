//! Who is let in.

use std::{collections::HashMap, sync::atomic::Ordering};

use axum::{
    extract::Request,
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};

use super::{Access, Registry, error};

impl Registry {
    pub(super) fn allows(
        &self,
        headers: &HeaderMap,
        repository: &str,
        method: &Method,
        query: &HashMap<String, String>,
    ) -> bool {
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        match self.config().access {
            Access::Anybody => true,
            Access::Basic(user, password) => given == basic(user, password),
            Access::Token(..) | Access::AnonymousToken => {
                let mut tokens = self.tokens.lock().unwrap();
                let Some((left, scopes)) = given.strip_prefix("Bearer ").and_then(|token| tokens.get_mut(token)) else {
                    return false;
                };
                let may = |repository: &str, action: &str| {
                    scopes.split(' ').any(|scope| {
                        scope
                            .strip_prefix(&format!("repository:{repository}:"))
                            .is_some_and(|actions| actions.split(',').any(|found| found == action))
                    })
                };
                let action = if matches!(*method, Method::GET | Method::HEAD) { "pull" } else { "push" };
                let from = query.get("from").is_none_or(|from| may(from, "pull"));
                let used_up = *left == 0;
                *left = left.saturating_sub(1);
                !used_up && may(repository, action) && from
            }
        }
    }

    pub(super) fn challenge(&self) -> Response {
        let challenge = match self.config().access {
            Access::Token(..) | Access::AnonymousToken => {
                format!("Bearer realm=\"http://{}/token\",service=\"test\"", self.address)
            }
            _ => "Basic realm=\"test\"".to_owned(),
        };
        let mut response = error(401, "UNAUTHORIZED", "authentication required");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge.parse().unwrap());
        response
    }

    pub(super) async fn token(&self, request: Request) -> Response {
        let config = self.config();
        let asked = self.requests("GET /token") + self.requests("POST /token");
        if let Some((status, wait)) = config.token_failures.get(asked - 1) {
            let mut response = error(*status, "TOOMANYREQUESTS", "later");
            response.headers_mut().insert(header::RETRY_AFTER, wait.parse().unwrap());
            return response;
        }
        if config.token_moved && request.uri().path() == "/token" {
            let target = format!("/token/moved?{}", request.uri().query().unwrap_or_default());
            return (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, target)]).into_response();
        }
        let (expected, requests) = match config.access {
            Access::Token(user, password, requests) => (Some(basic(user, password)), requests),
            Access::AnonymousToken => (None, u64::MAX),
            _ => return error(404, "UNSUPPORTED", "no tokens here"),
        };
        let scopes: Vec<String>;
        if request.method() == Method::POST {
            let body = axum::body::to_bytes(request.into_body(), 1 << 16).await.unwrap();
            let form: HashMap<String, String> = url::form_urlencoded::parse(&body).into_owned().collect();
            if form.get("grant_type").map(String::as_str) != Some("refresh_token")
                || form.get("refresh_token").map(String::as_str) != Some("identity")
                || form.get("service").map(String::as_str) != Some("test")
            {
                return error(401, "UNAUTHORIZED", "not this token");
            }
            scopes = form.get("scope").into_iter().flat_map(|scope| scope.split(' ')).map(str::to_owned).collect();
        } else {
            let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
            if given != expected.as_deref() {
                return error(401, "UNAUTHORIZED", "incorrect username or password");
            }
            let query = request.uri().query().unwrap_or_default().as_bytes().to_vec();
            let pairs = url::form_urlencoded::parse(&query).into_owned();
            scopes = pairs.filter(|(key, _)| key == "scope").map(|(_, scope)| scope).collect();
        }
        if let Some((repository, status)) = config.denied_repository
            && scopes.iter().any(|scope| scope.starts_with(&format!("repository:{repository}:")))
        {
            return error(status, "DENIED", "requested access to the resource is denied");
        }
        let number = self.tokens_given.fetch_add(1, Ordering::Relaxed);
        let token = format!("token-{number}");
        self.tokens.lock().unwrap().insert(token.clone(), (requests, scopes.join(" ")));
        serde_json::json!({ "token": token, "expires_in": 3600 }).to_string().into_response()
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}
