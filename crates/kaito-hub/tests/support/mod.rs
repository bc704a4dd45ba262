//! A hub and the storage behind it, served on this machine, with faults on demand.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path as UrlPath, State},
    http::{HeaderMap, Method, Response, StatusCode, header},
    routing::{any, get},
};
use kaito_hub::{Hub, HubOptions, RetryPolicy};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::runtime::Runtime;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the hub does wrong at the next request for a file's contents.
#[derive(Debug, Clone)]
pub enum Fault {
    Status(u16),
    RetryAfter(u64),
    BreakAfter(usize),
    Corrupt,
    IgnoreRange,
    TooMuch,
}

#[derive(Debug, Clone)]
pub struct Seen {
    pub on_hub: bool,
    pub method: Method,
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
}

#[derive(Default)]
pub struct Contents {
    pub files: BTreeMap<String, Vec<u8>>,
    pub listed_as: Option<Vec<String>>,
    pub commit: Option<String>,
    /// Status and `X-Error-Code` of every answer about the repository.
    pub refusal: Option<(u16, Option<&'static str>)>,
    pub etags: HashMap<String, String>,
    pub sizes: HashMap<String, u64>,
    pub faults: HashMap<String, VecDeque<Fault>>,
    /// A fault that never ends.
    pub always: HashMap<String, Fault>,
    pub seen: Vec<Seen>,
    cdn: String,
}

type Shared = Arc<Mutex<Contents>>;

pub struct TestHub {
    pub url: String,
    pub contents: Shared,
    runtime: Runtime,
}

impl TestHub {
    /// Serves `test/model` with these files; those over 1 kB lie on the storage, as large files do.
    pub fn start(files: &[(&str, Vec<u8>)]) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let contents: Shared = Arc::default();
        contents.lock().unwrap().files =
            files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.clone())).collect();
        let hub = Router::new()
            .route("/api/models/{org}/{name}/revision/{revision}", get(info))
            .route("/{org}/{name}/resolve/{commit}/{*file}", any(resolve))
            .route("/api/resolve-cache/{*file}", any(small_file))
            .with_state(contents.clone());
        let cdn = Router::new().route("/blob/{file}", any(blob)).with_state(contents.clone());
        let cdn_address = serve(&runtime, cdn);
        let hub_address = serve(&runtime, hub);
        contents.lock().unwrap().cdn = format!("http://{cdn_address}");
        Self { url: format!("http://{hub_address}"), contents, runtime }
    }

    pub fn set(&self, change: impl FnOnce(&mut Contents)) {
        change(&mut self.contents.lock().unwrap());
    }

    pub fn fault(&self, file: &str, faults: &[Fault]) {
        self.set(|contents| {
            contents.faults.insert(file.to_owned(), faults.iter().cloned().collect());
        });
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.contents.lock().unwrap().seen.clone()
    }

    /// Requests for contents, in order.
    pub fn fetches(&self, file: &str) -> Vec<Seen> {
        let wanted = format!("/blob/{file}");
        self.seen().into_iter().filter(|seen| seen.method == Method::GET && seen.path == wanted).collect()
    }

    pub fn client(&self, cache: &Path) -> Hub {
        Hub::new(self.options(cache))
    }

    pub fn options(&self, cache: &Path) -> HubOptions {
        HubOptions {
            endpoint: self.url.clone(),
            token: None,
            cache: cache.to_owned(),
            offline: false,
            retry: RetryPolicy {
                attempts: 3,
                first_delay: Duration::from_millis(1),
                max_delay: Duration::from_millis(5),
            },
        }
    }

    /// Ends the hub; its address answers no more.
    pub fn stop(self) -> String {
        self.runtime.shutdown_timeout(Duration::from_secs(1));
        self.url
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn serve(runtime: &Runtime, router: Router) -> SocketAddr {
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

fn note(contents: &mut Contents, on_hub: bool, method: &Method, path: String, headers: &HeaderMap) {
    let text = |name| headers.get(name).map(|value: &header::HeaderValue| value.to_str().unwrap().to_owned());
    contents.seen.push(Seen {
        on_hub,
        method: method.clone(),
        path,
        range: text(header::RANGE),
        authorization: text(header::AUTHORIZATION),
    });
}

fn refusal(contents: &Contents) -> Option<Response<Body>> {
    let (status, code) = contents.refusal?;
    let mut response = Response::builder().status(status);
    if let Some(code) = code {
        response = response.header("x-error-code", code);
    }
    Some(response.body(Body::from("refused")).unwrap())
}

async fn info(
    State(contents): State<Shared>,
    UrlPath((org, name, revision)): UrlPath<(String, String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Response<Body> {
    let mut contents = contents.lock().unwrap();
    note(&mut contents, true, &method, format!("/api/models/{org}/{name}/revision/{revision}"), &headers);
    if let Some(response) = refusal(&contents) {
        return response;
    }
    let listed = contents.listed_as.clone().unwrap_or_else(|| contents.files.keys().cloned().collect());
    let siblings: Vec<_> = listed.iter().map(|name| json!({"rfilename": name})).collect();
    let commit = contents.commit.clone().unwrap_or_else(|| COMMIT.to_owned());
    let body = Json(json!({"id": format!("{org}/{name}"), "sha": commit, "siblings": siblings}));
    axum::response::IntoResponse::into_response(body)
}

/// Large files: digest and length here, contents elsewhere. Small ones: a redirect within the hub.
async fn resolve(
    State(contents): State<Shared>,
    UrlPath((org, name, commit, file)): UrlPath<(String, String, String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Response<Body> {
    let mut contents = contents.lock().unwrap();
    note(&mut contents, true, &method, format!("/{org}/{name}/resolve/{commit}/{file}"), &headers);
    if let Some(response) = refusal(&contents) {
        return response;
    }
    let Some(bytes) = contents.files.get(&file) else {
        return Response::builder().status(404).header("x-error-code", "EntryNotFound").body(Body::empty()).unwrap();
    };
    let response = Response::builder().header("x-repo-commit", COMMIT);
    if bytes.len() <= 1000 {
        return response
            .status(307)
            .header("location", format!("/api/resolve-cache/{file}"))
            .body(Body::empty())
            .unwrap();
    }
    let etag = contents.etags.get(&file).cloned().unwrap_or_else(|| sha256(bytes));
    let size = contents.sizes.get(&file).copied().unwrap_or(bytes.len() as u64);
    response
        .status(302)
        .header("x-linked-etag", format!("\"{etag}\""))
        .header("x-linked-size", size)
        .header("location", format!("{}/blob/{file}", contents.cdn))
        .body(Body::empty())
        .unwrap()
}

async fn small_file(
    State(contents): State<Shared>,
    UrlPath(file): UrlPath<String>,
    method: Method,
    headers: HeaderMap,
) -> Response<Body> {
    let mut contents = contents.lock().unwrap();
    note(&mut contents, true, &method, format!("/api/resolve-cache/{file}"), &headers);
    let bytes = contents.files[&file].clone();
    Response::builder()
        .header("etag", format!("W/\"small-{}\"", &sha256(&bytes)[..40]))
        .body(Body::from(bytes))
        .unwrap()
}

async fn blob(
    State(contents): State<Shared>,
    UrlPath(file): UrlPath<String>,
    method: Method,
    headers: HeaderMap,
) -> Response<Body> {
    let (mut bytes, fault) = {
        let mut contents = contents.lock().unwrap();
        note(&mut contents, false, &method, format!("/blob/{file}"), &headers);
        let always = contents.always.get(&file).cloned();
        let fault = always.or_else(|| contents.faults.get_mut(&file).and_then(VecDeque::pop_front));
        (contents.files[&file].clone(), fault)
    };
    let total = bytes.len();
    let from = headers.get(header::RANGE).filter(|_| !matches!(fault, Some(Fault::IgnoreRange))).map(|range| {
        range.to_str().unwrap().trim_start_matches("bytes=").trim_end_matches('-').parse::<usize>().unwrap()
    });
    let mut broken_at = None;
    match fault {
        Some(Fault::Status(status)) => return Response::builder().status(status).body(Body::empty()).unwrap(),
        Some(Fault::RetryAfter(seconds)) => {
            return Response::builder().status(429).header("retry-after", seconds).body(Body::empty()).unwrap();
        }
        Some(Fault::BreakAfter(count)) => broken_at = Some(count),
        Some(Fault::Corrupt) => *bytes.last_mut().unwrap() ^= 1,
        Some(Fault::TooMuch) => bytes.extend_from_slice(b"more"),
        Some(Fault::IgnoreRange) | None => {}
    }
    let sent = bytes.split_off(from.unwrap_or(0));
    let mut response = Response::builder().header(header::CONTENT_LENGTH, sent.len());
    if let Some(from) = from {
        response = response
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, format!("bytes {from}-{}/{total}", total - 1));
    }
    let body = match broken_at {
        None => Body::from(sent),
        Some(count) => {
            let pieces: Vec<Result<Vec<u8>, std::io::Error>> =
                vec![Ok(sent[..count].to_vec()), Err(std::io::Error::other("broken on purpose"))];
            // A pause lets what was sent arrive before the connection is cut.
            Body::from_stream(tokio_stream::StreamExt::throttle(tokio_stream::iter(pieces), Duration::from_millis(100)))
        }
    };
    response.body(body).unwrap()
}
