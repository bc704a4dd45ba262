//! A hub and the storage behind it, served on this machine, with faults on demand. It has one model, under every name.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::background::Background;
use axum::{
    Json, Router,
    body::Body,
    extract::{Path as UrlPath, State},
    http::{HeaderMap, Method, Response, StatusCode, header},
    routing::{any, get},
};
use serde_json::json;
use sha2::{Digest, Sha256};

/// The commit that the hub names.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the hub does wrong at the next request for a file's contents.
#[derive(Debug, Clone)]
pub enum Fault {
    /// It answers with this status and nothing more.
    Status(u16),
    /// It asks for a pause of so many seconds.
    RetryAfter(u64),
    /// It breaks the connection after so many bytes.
    BreakAfter(usize),
    /// Its last byte is wrong.
    Corrupt,
    /// It sends the whole file, whatever part is asked for.
    IgnoreRange,
    /// It sends more than the file has.
    TooMuch,
}

/// A request that came.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Whether it came to the hub; to its storage otherwise.
    pub on_hub: bool,
    /// Its method.
    pub method: Method,
    /// Its path.
    pub path: String,
    /// Its `Range`.
    pub range: Option<String>,
    /// Its `Authorization`.
    pub authorization: Option<String>,
}

/// What the hub has and does.
#[derive(Debug, Default)]
pub struct Contents {
    /// Contents by name.
    pub files: BTreeMap<String, Vec<u8>>,
    /// The names that it lists, where they are not those of the files.
    pub listed_as: Option<Vec<String>>,
    /// The commit that it names, where that is not [`COMMIT`].
    pub commit: Option<String>,
    /// Status and `X-Error-Code` of every answer about the repository.
    pub refusal: Option<(u16, Option<&'static str>)>,
    /// What it says of files in place of their digests.
    pub etags: HashMap<String, String>,
    /// What it says of files in place of their sizes.
    pub sizes: HashMap<String, u64>,
    /// The faults of files, each for one request.
    pub faults: HashMap<String, VecDeque<Fault>>,
    /// A fault that never ends.
    pub always: HashMap<String, Fault>,
    /// All requests, in order.
    pub seen: Vec<Seen>,
    storage: String,
}

type Shared = Arc<Mutex<Contents>>;

/// A running hub.
#[derive(Debug)]
pub struct TestHub {
    /// Where it is.
    pub url: String,
    contents: Shared,
    background: Background,
}

impl TestHub {
    /// Serves these files; those over 1 kB lie on the storage, as large files do.
    pub fn start(files: &[(&str, Vec<u8>)]) -> Self {
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.clone()));
        Self::serve(files.collect())
    }

    /// Serves the files of a folder.
    pub fn of_folder(folder: &Path) -> Self {
        let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        Self::serve(paths.map(|path| (name(&path), fs::read(path).unwrap())).collect())
    }

    fn serve(files: BTreeMap<String, Vec<u8>>) -> Self {
        let background = Background::new();
        let contents: Shared = Arc::default();
        let hub = Router::new()
            .route("/api/models/{org}/{name}/revision/{revision}", get(info))
            .route("/{org}/{name}/resolve/{commit}/{*file}", any(resolve))
            .route("/api/resolve-cache/{*file}", any(small_file))
            .with_state(contents.clone());
        let storage = Router::new().route("/blob/{*file}", any(blob)).with_state(contents.clone());
        let storage = background.listen(|listener| async { axum::serve(listener, storage).await.unwrap() });
        let hub = background.listen(|listener| async { axum::serve(listener, hub).await.unwrap() });
        *contents.lock().unwrap() = Contents { files, storage: format!("http://{storage}"), ..Contents::default() };
        Self { url: format!("http://{hub}"), contents, background }
    }

    /// Changes what it has and does.
    pub fn set(&self, change: impl FnOnce(&mut Contents)) {
        change(&mut self.contents.lock().unwrap());
    }

    /// Gives a file these faults, one for each of the next requests.
    pub fn fault(&self, file: &str, faults: &[Fault]) {
        self.set(|contents| {
            contents.faults.insert(file.to_owned(), faults.iter().cloned().collect());
        });
    }

    /// All requests so far, in order.
    pub fn seen(&self) -> Vec<Seen> {
        self.contents.lock().unwrap().seen.clone()
    }

    /// Requests for contents, in order.
    pub fn fetches(&self, file: &str) -> Vec<Seen> {
        let wanted = format!("/blob/{file}");
        self.seen().into_iter().filter(|seen| seen.method == Method::GET && seen.path == wanted).collect()
    }

    /// The repositories that were asked for, in order.
    pub fn asked(&self) -> Vec<String> {
        let repository =
            |seen: &Seen| Some(seen.path.strip_prefix("/api/models/")?.split_once("/revision/")?.0.to_owned());
        self.seen().iter().filter_map(repository).collect()
    }

    /// Ends the hub; its address answers no more.
    pub fn stop(self) -> String {
        self.background.stop();
        self.url
    }
}

/// The digest of `bytes`, as the hub writes it.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
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
        .header("location", format!("{}/blob/{file}", contents.storage))
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
