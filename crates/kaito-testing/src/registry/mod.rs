//! A registry in memory, by the OCI distribution specification, which can be made as awkward as those in the world.

mod access;
mod upload;

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::Duration,
};

use axum::{
    Router,
    extract::{Request, State},
    http::{Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use futures_util::StreamExt;
use sha2::{Digest, Sha256};
use tokio::{net::TcpListener, sync::Mutex as AsyncMutex};

/// What becomes of a chunk whose request breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// What arrived is kept, and the status of the upload says how much.
    Kept,
    /// The chunk is dropped.
    Dropped,
    /// The whole upload is given up, as docker-registry 2.8 does.
    GivenUp,
}

/// Whom the registry lets in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// Anybody.
    Anybody,
    /// A user's name and password.
    Basic(&'static str, &'static str),
    /// With a token that is good for so many requests, for a user's name and password or the identity token `identity`.
    Token(&'static str, &'static str, u64),
    /// With a token that everybody gets who shows no password, and nobody who shows one.
    AnonymousToken,
}

/// What the `Range` of an upload says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// How much there is.
    All,
    /// The same, with a unit before it.
    WithUnit,
    /// Where the first chunk ended, as Amazon's registries do, which keep all others.
    FirstChunk,
    /// `0-0`.
    Zero,
    /// It is not there.
    Nothing,
}

/// What the `Location` of an upload says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Located {
    /// A path.
    Path,
    /// An address with scheme and host.
    WholeAddress,
    /// Relative to the address that was asked.
    Relative,
    /// Only `Docker-Upload-UUID` is there.
    ByUuid,
    /// It is there when the upload is opened, and not after that.
    Once,
}

/// What becomes of content that comes with the request that ends an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastChunk {
    /// It is the end of the blob.
    Taken,
    /// It is refused.
    Refused,
    /// Not looked at if there were chunks before.
    PassedOver,
    /// Never looked at.
    AlwaysPassedOver,
    /// Not looked at, and the blob is stored without it.
    StoredWithout,
}

/// What the registry does other than the specification's examples.
#[derive(Debug, Clone)]
pub struct Config {
    /// What becomes of a chunk whose request breaks.
    pub broken: Broken,
    /// Whom it lets in.
    pub access: Access,
    /// Whether blobs may come in chunks.
    pub takes_chunks: bool,
    /// Further chunks are answered with 416.
    pub most_chunks: u64,
    /// Chunks are kept up to this many bytes, and the answer says so.
    pub keeps_of_chunk: usize,
    /// What becomes of content that comes with the request that ends an upload.
    pub last_chunk: LastChunk,
    /// What the `Range` of an upload says.
    pub tells: Told,
    /// How a chunk is answered that was taken.
    pub chunk_status: u16,
    /// How the request is answered that ended an upload.
    pub end_status: u16,
    /// How it is answered when asked for the status of an upload, if it does not tell.
    pub status_refused: Option<u16>,
    /// What the `Location` of an upload says.
    pub located: Located,
    /// Smaller chunks are refused.
    pub min_chunk: usize,
    /// Larger requests are refused.
    pub max_request: Option<u64>,
    /// How those are refused.
    pub too_large: (u16, &'static str, &'static str),
    /// How blobs are refused, if they are.
    pub upload_refusal: Option<(u16, &'static str, &'static str)>,
    /// How mounts are refused, if they are.
    pub mount_refusal: Option<u16>,
    /// How manifests are refused of tags that exist, if they are.
    pub tag_refusal: Option<(u16, &'static str, &'static str)>,
    /// So many manifests are refused for want of a blob that is there.
    pub lacking: usize,
    /// Whether answers have `Docker-Content-Digest`.
    pub tells_digests: bool,
    /// Blobs are given by redirects to this host.
    pub storage: Option<SocketAddr>,
    /// It is also asked by redirects whether something is there.
    pub storage_for_heads: bool,
    /// Manifests lie there too.
    pub storage_for_manifests: bool,
    /// Methods that are refused with a status, whatever they ask for.
    pub refused_methods: Vec<(Method, u16)>,
    /// How the first requests for tokens are answered.
    pub token_failures: Vec<(u16, &'static str)>,
    /// Tokens for this repository are denied, with this status.
    pub denied_repository: Option<(&'static str, u16)>,
    /// Tokens are given at another path, to which the service redirects.
    pub token_moved: bool,
    /// Every answer takes so long.
    pub answers_slowly: Option<Duration>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            broken: Broken::Kept,
            access: Access::Anybody,
            takes_chunks: true,
            most_chunks: u64::MAX,
            keeps_of_chunk: usize::MAX,
            last_chunk: LastChunk::Taken,
            tells: Told::All,
            chunk_status: 202,
            end_status: 201,
            status_refused: None,
            located: Located::Path,
            min_chunk: 0,
            max_request: None,
            too_large: (413, "SIZE_INVALID", "request entity too large"),
            upload_refusal: None,
            mount_refusal: None,
            tag_refusal: None,
            lacking: 0,
            tells_digests: true,
            storage: None,
            storage_for_heads: false,
            storage_for_manifests: false,
            refused_methods: Vec::new(),
            token_failures: Vec::new(),
            denied_repository: None,
            token_moved: false,
            answers_slowly: None,
        }
    }
}

#[derive(Debug, Default)]
struct Upload {
    repository: String,
    data: Vec<u8>,
    chunks: u64,
    /// Where the first chunk ended.
    first_end: usize,
    received: u64,
    given_up: bool,
    finished: Option<String>,
}

#[derive(Debug, Default)]
struct Contents {
    /// By repository and digest.
    blobs: HashMap<(String, String), Vec<u8>>,
    /// By repository and tag or digest.
    manifests: HashMap<(String, String), (String, Vec<u8>)>,
}

/// A running registry.
#[derive(Debug)]
pub struct Registry {
    /// Where it listens.
    pub address: SocketAddr,
    config: Mutex<Config>,
    contents: Mutex<Contents>,
    uploads: Mutex<HashMap<u64, Arc<AsyncMutex<Upload>>>>,
    tokens: Mutex<HashMap<String, (u64, String)>>,
    next: AtomicU64,
    /// Method and path of each request, with its parameters.
    pub log: Mutex<Vec<String>>,
    /// Hosts that were shown an `Authorization`.
    pub shown: Mutex<HashSet<String>>,
    /// How many tokens it gave.
    pub tokens_given: AtomicU64,
    commits: Mutex<HashMap<(String, String), u64>>,
}

/// The digest of `bytes`, with its algorithm.
pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

fn error(status: u16, code: &str, message: &str) -> Response {
    let body = serde_json::json!({ "errors": [{ "code": code, "message": message, "detail": null }] });
    (StatusCode::from_u16(status).unwrap(), body.to_string()).into_response()
}

/// Takes what comes, so that a client that sends it gets to read why it is refused.
async fn drain(request: Request) {
    let mut stream = request.into_body().into_data_stream();
    while let Some(Ok(_)) = stream.next().await {}
}

fn parameters(uri: &Uri) -> HashMap<String, String> {
    url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned().collect()
}

impl Registry {
    /// Starts one on a port of the system's choice.
    pub async fn start(config: Config) -> Arc<Self> {
        Self::start_at("127.0.0.1:0", config).await
    }

    /// Starts one at this address.
    pub async fn start_at(address: &str, config: Config) -> Arc<Self> {
        let listener = TcpListener::bind(address).await.unwrap();
        let registry = Arc::new(Self {
            address: listener.local_addr().unwrap(),
            config: Mutex::new(config),
            contents: Mutex::default(),
            uploads: Mutex::default(),
            tokens: Mutex::default(),
            next: AtomicU64::new(1),
            log: Mutex::default(),
            shown: Mutex::default(),
            tokens_given: AtomicU64::new(0),
            commits: Mutex::default(),
        });
        let app = Router::new().fallback(answer).with_state(registry.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        registry
    }

    /// Changes what it does.
    pub fn configure(&self, change: impl FnOnce(&mut Config)) {
        change(&mut self.config.lock().unwrap());
    }

    fn config(&self) -> Config {
        self.config.lock().unwrap().clone()
    }

    /// A blob of a repository.
    pub fn blob(&self, repository: &str, digest: &str) -> Option<Vec<u8>> {
        self.contents.lock().unwrap().blobs.get(&(repository.to_owned(), digest.to_owned())).cloned()
    }

    /// Puts a blob into a repository.
    pub fn put_blob(&self, repository: &str, bytes: &[u8]) {
        self.contents.lock().unwrap().blobs.insert((repository.to_owned(), digest(bytes)), bytes.to_vec());
    }

    /// Lets a repository give damaged bytes.
    pub fn damage_blob(&self, repository: &str, digest: &str, bytes: &[u8]) {
        self.contents.lock().unwrap().blobs.insert((repository.to_owned(), digest.to_owned()), bytes.to_vec());
    }

    /// Media type and bytes of the manifest under a tag or digest.
    pub fn manifest(&self, repository: &str, place: &str) -> Option<(String, Vec<u8>)> {
        self.contents.lock().unwrap().manifests.get(&(repository.to_owned(), place.to_owned())).cloned()
    }

    /// Puts a manifest under a tag, and under its digest.
    pub fn put_manifest(&self, repository: &str, place: &str, media_type: &str, bytes: &[u8]) {
        let mut contents = self.contents.lock().unwrap();
        for place in [place.to_owned(), digest(bytes)] {
            contents.manifests.insert((repository.to_owned(), place), (media_type.to_owned(), bytes.to_vec()));
        }
    }

    /// How often an upload of the blob was completed in a repository.
    pub fn commits(&self, repository: &str, digest: &str) -> u64 {
        self.commits.lock().unwrap().get(&(repository.to_owned(), digest.to_owned())).copied().unwrap_or(0)
    }

    /// Bytes of content that arrived for a repository, by uploads that became the blob and by others.
    pub async fn received(&self, repository: &str, digest: &str) -> (u64, u64) {
        let uploads: Vec<_> = self.uploads.lock().unwrap().values().cloned().collect();
        let (mut of_blob, mut of_none) = (0, 0);
        for upload in uploads {
            let upload = upload.lock().await;
            if upload.repository == repository {
                match &upload.finished {
                    Some(finished) if finished == digest => of_blob += upload.received,
                    Some(_) => {}
                    None => of_none += upload.received,
                }
            }
        }
        (of_blob, of_none)
    }

    /// To where the storage has it, if it is not to be had here.
    fn to_storage(&self, request: &Request) -> Option<Response> {
        let config = self.config();
        let storage = config.storage.filter(|_| *request.method() == Method::GET || config.storage_for_heads)?;
        // Signed for this request, as storage wants it.
        let target = format!("http://{storage}{}?signature=1", request.uri().path());
        Some((StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, target)]).into_response())
    }

    /// How many requests begin like this: with a method, and perhaps a path.
    pub fn requests(&self, prefix: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|line| line.starts_with(prefix)).count()
    }

    fn location(&self, path: &str) -> String {
        if self.config().located == Located::WholeAddress {
            format!("http://{}{path}", self.address)
        } else {
            path.to_owned()
        }
    }
}

async fn answer(State(registry): State<Arc<Registry>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    registry.log.lock().unwrap().push(format!("{} {}", request.method(), request.uri()));
    if request.headers().contains_key(header::AUTHORIZATION) {
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        registry.shown.lock().unwrap().insert(host.to_owned());
    }
    if let Some(delay) = registry.config().answers_slowly {
        tokio::time::sleep(delay).await;
    }
    if path.starts_with("/token") {
        return registry.token(request).await;
    }
    if let Some((_, status)) = registry.config().refused_methods.iter().find(|(method, _)| method == request.method()) {
        return error(*status, "UNSUPPORTED", "not by this method");
    }
    let Some(rest) = path.strip_prefix("/v2/") else { return error(404, "UNSUPPORTED", "nothing here") };
    let split = |middle: &str| rest.split_once(middle).map(|(name, end)| (name.to_owned(), end.to_owned()));
    let query = parameters(request.uri());
    let (kind, (repository, end)) = if let Some(parts) = split("/blobs/uploads/") {
        ("upload", parts)
    } else if let Some(parts) = split("/blobs/") {
        ("blob", parts)
    } else if let Some(parts) = split("/manifests/") {
        ("manifest", parts)
    } else {
        return error(404, "UNSUPPORTED", "nothing here");
    };
    if !registry.allows(request.headers(), &repository, request.method(), &query) {
        return registry.challenge();
    }
    if let Some(limit) = registry.config().max_request {
        let length = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        if length.is_some_and(|length: u64| length > limit) {
            drain(request).await;
            let (status, code, message) = registry.config().too_large;
            return error(status, code, message);
        }
    }
    match kind {
        "upload" => upload::upload(&registry, &repository, &end, &query, request).await,
        "blob" => blob(&registry, &repository, &end, &request),
        _ => manifest(&registry, &repository, &end, request).await,
    }
}

fn blob(registry: &Registry, repository: &str, digest: &str, request: &Request) -> Response {
    let Some(bytes) = registry.blob(repository, digest) else { return error(404, "BLOB_UNKNOWN", "blob unknown") };
    if let Some(redirect) = registry.to_storage(request) {
        return redirect;
    }
    let range = request.headers().get(header::RANGE).and_then(|value| value.to_str().ok());
    if range == Some("bytes=0-0") {
        let range = format!("bytes 0-0/{}", bytes.len());
        return (StatusCode::PARTIAL_CONTENT, [(header::CONTENT_RANGE, range)], bytes[..1].to_vec()).into_response();
    }
    let from = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    match from {
        Some(from) if from < bytes.len() => {
            let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
            (StatusCode::PARTIAL_CONTENT, [(header::CONTENT_RANGE, range)], bytes[from..].to_vec()).into_response()
        }
        Some(_) => StatusCode::RANGE_NOT_SATISFIABLE.into_response(),
        None => bytes.into_response(),
    }
}

async fn manifest(registry: &Registry, repository: &str, place: &str, request: Request) -> Response {
    let config = registry.config();
    if *request.method() == Method::PUT {
        let media_type = request.headers()[header::CONTENT_TYPE].to_str().unwrap().to_owned();
        let Ok(bytes) = axum::body::to_bytes(request.into_body(), 4 << 20).await else {
            return error(400, "MANIFEST_INVALID", "the request broke");
        };
        if let Some((status, code, message)) = config.tag_refusal
            && registry.manifest(repository, place).is_some()
        {
            return error(status, code, message);
        }
        if registry.requests(&format!("PUT /v2/{repository}/manifests/{place}")) <= config.lacking {
            return error(404, "MANIFEST_BLOB_UNKNOWN", "blob unknown to registry");
        }
        let parsed: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let layers = parsed["layers"].as_array().cloned().unwrap_or_default();
        for part in layers.iter().chain([&parsed["config"]]) {
            let digest = part["digest"].as_str().unwrap();
            if registry.blob(repository, digest).is_none() {
                return error(404, "MANIFEST_BLOB_UNKNOWN", digest);
            }
        }
        registry.put_manifest(repository, place, &media_type, &bytes);
        let mut response = StatusCode::CREATED.into_response();
        let location = registry.location(&format!("/v2/{repository}/manifests/{place}"));
        response.headers_mut().insert(header::LOCATION, location.parse().unwrap());
        if config.tells_digests {
            response.headers_mut().insert("docker-content-digest", digest(&bytes).parse().unwrap());
        }
        return response;
    }
    let Some((media_type, bytes)) = registry.manifest(repository, place) else {
        return error(404, "MANIFEST_UNKNOWN", "manifest unknown");
    };
    if (config.storage_for_manifests || *request.method() == Method::HEAD)
        && let Some(redirect) = registry.to_storage(&request)
    {
        return redirect;
    }
    let told = config.tells_digests.then(|| digest(&bytes));
    let mut response = ([(header::CONTENT_TYPE, media_type)], bytes).into_response();
    if let Some(told) = told {
        response.headers_mut().insert("docker-content-digest", told.parse().unwrap());
    }
    response
}
