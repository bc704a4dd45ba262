//! A registry in memory, by the OCI distribution specification, which can be made as awkward as those in the world.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
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
    Anybody,
    /// A user's name and password.
    Basic(&'static str, &'static str),
    /// With a token that is good for so many requests, for a user's name and password or the identity token `identity`.
    Token(&'static str, &'static str, u64),
}

#[derive(Debug, Clone)]
pub struct Config {
    pub broken: Broken,
    pub access: Access,
    pub takes_chunks: bool,
    /// Whether a chunk may come with the request that ends the upload.
    pub takes_last_with_put: bool,
    /// Whether the status of an upload says how much there is.
    pub tells_range: bool,
    pub absolute_locations: bool,
    pub min_chunk: usize,
    /// Larger requests are refused.
    pub max_request: Option<u64>,
    pub immutable_tags: bool,
    /// Whether answers have `Docker-Content-Digest`.
    pub tells_digests: bool,
    /// Blobs are given by redirects to this host.
    pub storage: Option<SocketAddr>,
    /// Every answer takes so long.
    pub answers_slowly: Option<Duration>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            broken: Broken::Kept,
            access: Access::Anybody,
            takes_chunks: true,
            takes_last_with_put: true,
            tells_range: true,
            absolute_locations: false,
            min_chunk: 0,
            max_request: None,
            immutable_tags: false,
            tells_digests: true,
            storage: None,
            answers_slowly: None,
        }
    }
}

#[derive(Default)]
struct Upload {
    repository: String,
    data: Vec<u8>,
    received: u64,
    given_up: bool,
    finished: Option<String>,
}

#[derive(Default)]
struct Contents {
    /// By repository and digest.
    blobs: HashMap<(String, String), Vec<u8>>,
    /// By repository and tag or digest.
    manifests: HashMap<(String, String), (String, Vec<u8>)>,
}

pub struct Registry {
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
    pub tokens_given: AtomicU64,
    commits: Mutex<HashMap<(String, String), u64>>,
}

pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

fn error(status: u16, code: &str, message: &str) -> Response {
    let body = serde_json::json!({ "errors": [{ "code": code, "message": message, "detail": null }] });
    (StatusCode::from_u16(status).unwrap(), body.to_string()).into_response()
}

fn parameters(uri: &Uri) -> HashMap<String, String> {
    url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned().collect()
}

impl Registry {
    pub async fn start(config: Config) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
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

    pub fn configure(&self, change: impl FnOnce(&mut Config)) {
        change(&mut self.config.lock().unwrap());
    }

    fn config(&self) -> Config {
        self.config.lock().unwrap().clone()
    }

    pub fn blob(&self, repository: &str, digest: &str) -> Option<Vec<u8>> {
        self.contents.lock().unwrap().blobs.get(&(repository.to_owned(), digest.to_owned())).cloned()
    }

    pub fn put_blob(&self, repository: &str, bytes: &[u8]) {
        self.contents.lock().unwrap().blobs.insert((repository.to_owned(), digest(bytes)), bytes.to_vec());
    }

    /// Lets a repository give damaged bytes.
    pub fn damage_blob(&self, repository: &str, digest: &str, bytes: &[u8]) {
        self.contents.lock().unwrap().blobs.insert((repository.to_owned(), digest.to_owned()), bytes.to_vec());
    }

    pub fn manifest(&self, repository: &str, place: &str) -> Option<(String, Vec<u8>)> {
        self.contents.lock().unwrap().manifests.get(&(repository.to_owned(), place.to_owned())).cloned()
    }

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

    pub fn requests(&self, prefix: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|line| line.starts_with(prefix)).count()
    }

    fn allows(&self, headers: &HeaderMap, repository: &str, method: &Method, query: &HashMap<String, String>) -> bool {
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        match self.config().access {
            Access::Anybody => true,
            Access::Basic(user, password) => given == basic(user, password),
            Access::Token(..) => {
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

    fn challenge(&self) -> Response {
        let challenge = match self.config().access {
            Access::Token(..) => format!("Bearer realm=\"http://{}/token\",service=\"test\"", self.address),
            _ => "Basic realm=\"test\"".to_owned(),
        };
        let mut response = error(401, "UNAUTHORIZED", "authentication required");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge.parse().unwrap());
        response
    }

    async fn token(&self, request: Request) -> Response {
        let Access::Token(user, password, requests) = self.config().access else {
            return error(404, "UNSUPPORTED", "no tokens here");
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
            if given != Some(&basic(user, password)) {
                return error(401, "UNAUTHORIZED", "incorrect username or password");
            }
            let query = request.uri().query().unwrap_or_default().as_bytes().to_vec();
            let pairs = url::form_urlencoded::parse(&query).into_owned();
            scopes = pairs.filter(|(key, _)| key == "scope").map(|(_, scope)| scope).collect();
        }
        let number = self.tokens_given.fetch_add(1, Ordering::Relaxed);
        let token = format!("token-{number}");
        self.tokens.lock().unwrap().insert(token.clone(), (requests, scopes.join(" ")));
        serde_json::json!({ "token": token, "expires_in": 3600 }).to_string().into_response()
    }

    fn location(&self, path: &str) -> String {
        if self.config().absolute_locations { format!("http://{}{path}", self.address) } else { path.to_owned() }
    }

    /// Headers that say how far an upload is.
    fn upload_headers(&self, id: u64, upload: &Upload) -> [(header::HeaderName, String); 2] {
        let config = self.config();
        let end = if config.tells_range { upload.data.len().saturating_sub(1) } else { 0 };
        // Parameters hold state that must come back as it is.
        let path = format!("/v2/{}/blobs/uploads/{id}?_state=a%2Fb%3D{}&x=", upload.repository, upload.data.len());
        [(header::LOCATION, self.location(&path)), (header::RANGE, format!("0-{end}"))]
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
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
    if path == "/token" {
        return registry.token(request).await;
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
            return error(413, "SIZE_INVALID", "request entity too large");
        }
    }
    match kind {
        "upload" => upload(&registry, &repository, &end, &query, request).await,
        "blob" => blob(&registry, &repository, &end, &request),
        _ => manifest(&registry, &repository, &end, request).await,
    }
}

fn blob(registry: &Registry, repository: &str, digest: &str, request: &Request) -> Response {
    let Some(bytes) = registry.blob(repository, digest) else { return error(404, "BLOB_UNKNOWN", "blob unknown") };
    if let Some(storage) = registry.config().storage.filter(|_| *request.method() == Method::GET) {
        let target = format!("http://{storage}/v2/{repository}/blobs/{digest}");
        return (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, target)]).into_response();
    }
    let range = request.headers().get(header::RANGE).and_then(|value| value.to_str().ok());
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
        if config.immutable_tags && registry.manifest(repository, place).is_some() {
            return error(412, "PRECONDITION", &format!("{repository}:{place} is configured as immutable"));
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
    let told = config.tells_digests.then(|| digest(&bytes));
    let mut response = ([(header::CONTENT_TYPE, media_type)], bytes).into_response();
    if let Some(told) = told {
        response.headers_mut().insert("docker-content-digest", told.parse().unwrap());
    }
    response
}

async fn upload(
    registry: &Registry,
    repository: &str,
    id: &str,
    query: &HashMap<String, String>,
    request: Request,
) -> Response {
    let config = registry.config();
    if *request.method() == Method::POST {
        if let (Some(mount), Some(from)) = (query.get("mount"), query.get("from"))
            && let Some(bytes) = registry.blob(from, mount)
        {
            registry.put_blob(repository, &bytes);
            return (StatusCode::CREATED, [("docker-content-digest", mount.clone())]).into_response();
        }
        let id = registry.next.fetch_add(1, Ordering::Relaxed);
        let upload = Upload { repository: repository.to_owned(), ..Upload::default() };
        let headers = registry.upload_headers(id, &upload);
        registry.uploads.lock().unwrap().insert(id, Arc::new(AsyncMutex::new(upload)));
        let least = config.min_chunk.to_string();
        return (StatusCode::ACCEPTED, headers, [("oci-chunk-min-length", least)]).into_response();
    }
    let id: u64 = id.parse().unwrap();
    let unknown = || error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry");
    let Some(upload) = registry.uploads.lock().unwrap().get(&id).cloned() else { return unknown() };
    let mut upload = upload.lock().await;
    if upload.repository != repository || upload.given_up || upload.finished.is_some() {
        return unknown();
    }
    let method = request.method().clone();
    match method {
        Method::GET => (StatusCode::NO_CONTENT, registry.upload_headers(id, &upload)).into_response(),
        Method::DELETE => {
            upload.given_up = true;
            StatusCode::NO_CONTENT.into_response()
        }
        Method::PATCH if !config.takes_chunks => error(405, "UNSUPPORTED", "no chunks here"),
        Method::PATCH | Method::PUT => {
            // What was given with the last answer must come back.
            let state = format!("a/b={}", upload.data.len());
            let stale = query.get("_state") != Some(&state) || query.get("x").map(String::as_str) != Some("");
            let put = method == Method::PUT;
            if let Err(response) = take(&config, &mut upload, request, put, stale).await {
                return response;
            }
            if !put {
                return (StatusCode::ACCEPTED, registry.upload_headers(id, &upload)).into_response();
            }
            let Some(wanted) = query.get("digest") else { return error(400, "DIGEST_INVALID", "no digest") };
            let found = digest(&upload.data);
            if *wanted != found {
                upload.given_up = true;
                return error(400, "DIGEST_INVALID", &found);
            }
            let data = std::mem::take(&mut upload.data);
            registry.put_blob(repository, &data);
            upload.finished = Some(found.clone());
            *registry.commits.lock().unwrap().entry((repository.to_owned(), found.clone())).or_default() += 1;
            let location = registry.location(&format!("/v2/{repository}/blobs/{found}"));
            (StatusCode::CREATED, [(header::LOCATION, location)], [("docker-content-digest", found)]).into_response()
        }
        _ => error(405, "UNSUPPORTED", "unsupported"),
    }
}

/// Takes the content of a request into an upload.
async fn take(config: &Config, upload: &mut Upload, request: Request, put: bool, stale: bool) -> Result<(), Response> {
    let headers = request.headers().clone();
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let length: u64 = text(header::CONTENT_LENGTH).and_then(|length| length.parse().ok()).unwrap();
    let out_of_step = || error(416, "BLOB_UPLOAD_INVALID", "the chunk does not begin where the data ends");
    if let Some(range) = text(header::CONTENT_RANGE) {
        let (start, end) = range.split_once('-').unwrap();
        let (start, end): (u64, u64) = (start.parse().unwrap(), end.parse().unwrap());
        assert_eq!(end + 1 - start, length, "Content-Range and Content-Length");
        if start != upload.data.len() as u64 {
            return Err(out_of_step());
        }
    } else if length > 0 && !upload.data.is_empty() {
        return Err(out_of_step());
    }
    if stale && config.tells_range {
        return Err(out_of_step());
    }
    if put && length > 0 && !upload.data.is_empty() && !config.takes_last_with_put {
        return Err(error(400, "UNSUPPORTED", "the upload is to be ended without content"));
    }
    if !put && config.min_chunk as u64 > length {
        return Err(error(400, "SIZE_INVALID", &format!("chunks have {} bytes at least", config.min_chunk)));
    }
    let before = upload.data.len();
    let mut stream = request.into_body().into_data_stream();
    while let Some(piece) = stream.next().await {
        match piece {
            Ok(piece) => {
                upload.received += piece.len() as u64;
                upload.data.extend_from_slice(&piece);
            }
            Err(_) => {
                match config.broken {
                    Broken::Kept => {}
                    Broken::Dropped => upload.data.truncate(before),
                    Broken::GivenUp => upload.given_up = true,
                }
                return Err(error(400, "SIZE_INVALID", "the request broke"));
            }
        }
    }
    Ok(())
}
