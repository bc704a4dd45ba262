//! An API server as far as the webhook needs one: objects by path, optimistic concurrency, JSON patches, watches.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{Method, Request, Response, StatusCode, body::Frame};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::sync::broadcast;

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// Shared by the clients that it gives out.
#[derive(Clone)]
pub struct FakeApiServer {
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<Value>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    version: u64,
    /// Method, path and status of each write.
    writes: Vec<(String, String, u16)>,
    forbidden: Vec<Method>,
}

impl FakeApiServer {
    pub fn new() -> Self {
        Self { state: Arc::default(), events: broadcast::channel(100).0 }
    }

    pub fn client(&self) -> Client {
        let server = self.clone();
        Client::new(
            tower::service_fn(move |request| {
                let server = server.clone();
                async move { Ok::<_, Infallible>(server.answer(request).await) }
            }),
            "default",
        )
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.state.lock().unwrap().objects.get(path).cloned()
    }

    /// Stores an object as another client would, whatever the version.
    pub fn put(&self, path: &str, mut object: Value) {
        let (_, name) = path.rsplit_once('/').unwrap();
        object["metadata"]["name"] = json!(name);
        self.store(&mut self.state.lock().unwrap(), path, object);
    }

    pub fn forbid(&self, method: Method) {
        self.state.lock().unwrap().forbidden.push(method);
    }

    pub fn take_writes(&self) -> Vec<(String, String, u16)> {
        std::mem::take(&mut self.state.lock().unwrap().writes)
    }

    fn store(&self, state: &mut State, path: &str, mut object: Value) -> Value {
        state.version += 1;
        object["metadata"]["resourceVersion"] = json!(state.version.to_string());
        state.objects.insert(path.to_owned(), object.clone());
        // There may be no watch.
        let _ = self.events.send(json!({"path": path, "type": "MODIFIED", "object": object.clone()}));
        object
    }

    async fn answer(&self, request: Request<Body>) -> Answer {
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let query = request.uri().query().unwrap_or_default().to_owned();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        // Lets requests of other clients come between.
        tokio::task::yield_now().await;
        if method == Method::GET {
            return self.read(&path, &query);
        }
        let body: Value = serde_json::from_slice(&body).unwrap();
        let mut state = self.state.lock().unwrap();
        let (status, value) = self.write(&mut state, &method, &path, body);
        state.writes.push((method.to_string(), path, status.as_u16()));
        json_answer(status, &value)
    }

    fn read(&self, path: &str, query: &str) -> Answer {
        if !query.contains("fieldSelector") {
            return match self.get(path) {
                Some(object) => json_answer(StatusCode::OK, &object),
                None => failure(StatusCode::NOT_FOUND, "NotFound", path),
            };
        }
        let (_, selected) = query.split_once("metadata.name%3D").unwrap();
        let selected = format!("{path}/{}", selected.split('&').next().unwrap());
        if !query.contains("watch=true") {
            let state = self.state.lock().unwrap();
            let items: Vec<_> = state.objects.get(&selected).into_iter().collect();
            let list = json!({"metadata": {"resourceVersion": state.version.to_string()}, "items": items});
            return json_answer(StatusCode::OK, &list);
        }
        let events =
            stream::unfold(self.events.subscribe(), |mut events| async { Some((events.recv().await.ok()?, events)) });
        let frames = events.filter_map(move |event| {
            let line = (event["path"] == json!(selected)).then(|| Bytes::from(format!("{event}\n")));
            async move { line.map(|line| Ok::<_, Infallible>(Frame::data(line))) }
        });
        Response::new(BodyExt::boxed_unsync(StreamBody::new(frames)))
    }

    fn write(&self, state: &mut State, method: &Method, path: &str, body: Value) -> (StatusCode, Value) {
        if state.forbidden.contains(method) {
            return (StatusCode::FORBIDDEN, status("Forbidden", path));
        }
        match *method {
            Method::POST => {
                let path = format!("{path}/{}", body["metadata"]["name"].as_str().unwrap());
                if state.objects.contains_key(&path) {
                    return (StatusCode::CONFLICT, status("AlreadyExists", &path));
                }
                (StatusCode::CREATED, self.store(state, &path, body))
            }
            Method::PUT => {
                let version = &state.objects[path]["metadata"]["resourceVersion"];
                if body["metadata"]["resourceVersion"] != *version {
                    return (StatusCode::CONFLICT, status("Conflict", path));
                }
                (StatusCode::OK, self.store(state, path, body))
            }
            Method::PATCH => {
                let patch: json_patch::Patch = serde_json::from_value(body).unwrap();
                let mut object = state.objects[path].clone();
                match json_patch::patch(&mut object, &patch) {
                    Ok(()) => (StatusCode::OK, self.store(state, path, object)),
                    Err(_) => (StatusCode::UNPROCESSABLE_ENTITY, status("Invalid", path)),
                }
            }
            _ => (StatusCode::METHOD_NOT_ALLOWED, status("MethodNotAllowed", path)),
        }
    }
}

fn status(reason: &str, path: &str) -> Value {
    json!({"kind": "Status", "status": "Failure", "reason": reason, "message": format!("{reason} at {path}")})
}

fn failure(code: StatusCode, reason: &str, path: &str) -> Answer {
    json_answer(code, &status(reason, path))
}

fn json_answer(code: StatusCode, value: &Value) -> Answer {
    let mut value = value.clone();
    if value["kind"] == "Status" {
        value["code"] = json!(code.as_u16());
    }
    let mut response = Response::new(BodyExt::boxed_unsync(Full::from(value.to_string())));
    *response.status_mut() = code;
    response
}
