use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use serde::Deserialize;
use sha2::{Digest, Sha256};
use ureq::http::{Method, header};

use crate::{
    Error, Event, HubOptions, PlannedFile, Progress, Repo, RetryPolicy,
    cache::{RepoCache, is_commit},
    error::io_error,
    http::{Failure, Follow, Http, is_success, text_header, with_retries},
    repo::is_safe_component,
    select,
};

/// Files fetched at the same time: one connection often does not use the whole bandwidth, several do.
const PARALLEL_FILES: usize = 4;
const CHUNK_BYTES: usize = 256 << 10;
/// Longest answer about a repository.
const MAX_INFO_BYTES: u64 = 16 << 20;

/// A hub, and the cache of what was downloaded from it.
pub struct Hub {
    options: HubOptions,
    http: Http,
    /// Whether weights are wanted.
    weights: bool,
}

/// A repository's files at a commit, in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Holds the files, as links to their contents.
    pub directory: PathBuf,
    /// The commit that the revision stands for.
    pub commit: String,
    /// The first file of the model, where it is in GGUF files. Others may lie beside it.
    pub gguf: Option<String>,
}

impl Snapshot {
    /// What is to be loaded: the directory, or the GGUF file.
    pub fn model(&self) -> PathBuf {
        self.gguf.as_ref().map_or_else(|| self.directory.clone(), |file| self.directory.join(file))
    }
}

/// The hub's answer about a revision.
#[derive(Deserialize)]
struct RevisionInfo {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// A file as the hub announces it.
struct RemoteFile {
    name: String,
    url: String,
    etag: String,
    size: Option<u64>,
    sha256: Option<String>,
}

/// What every step of one download needs.
struct Job<'a> {
    repo: &'a Repo,
    cache: RepoCache,
    commit: &'a str,
    progress: &'a dyn Progress,
    /// Set as soon as one file has failed for good.
    stop: AtomicBool,
}

impl Hub {
    /// Prepares a client; nothing is sent yet.
    pub fn new(options: HubOptions) -> Self {
        Self { http: Http::new(&options), options, weights: true }
    }

    /// The same for what a model has beside its weights.
    #[must_use]
    pub fn without_weights(self) -> Self {
        Self { weights: false, ..self }
    }

    /// Downloads those model files of a repository that the cache does not have, and returns where all of them are.
    ///
    /// After a broken connection, or in a later call, a download continues where it ended. If the hub cannot be reached but
    /// the cache holds a complete model of that revision, that one is used.
    ///
    /// # Errors
    ///
    /// Every [`Error`] says what to do about it.
    pub fn download(&self, repo: &Repo, progress: &dyn Progress) -> Result<Snapshot, Error> {
        let cache = RepoCache::new(&self.options.cache, repo);
        let cached = cache.complete_snapshot(repo.revision(), repo.variant(), self.weights);
        if self.options.offline {
            return cached.map_err(|why| Error::NotCached {
                repo: repo.to_string(),
                cache: cache.root().display().to_string(),
                why,
            });
        }
        if is_commit(repo.revision())
            && let Ok(snapshot) = cached
        {
            return Ok(snapshot);
        }
        let patience = RetryPolicy {
            // With a copy in the cache, nobody should have to wait for a hub that does not answer.
            attempts: if cached.is_ok() { 1 } else { self.options.retry.attempts },
            ..self.options.retry
        };
        let info = match (self.revision_info(repo, patience, progress), cached) {
            (Ok(info), _) => info,
            (Err(error @ Error::Unreachable { .. }), Ok(snapshot)) => {
                tracing::warn!(%repo, commit = snapshot.commit, "{error}; using the copy in the cache");
                return Ok(snapshot);
            }
            (Err(error), _) => return Err(error),
        };
        let job = Job { repo, cache, commit: &info.sha, progress, stop: AtomicBool::new(false) };
        let gguf = self.fetch_missing(&job, &info)?;
        job.cache.write_ref(repo.revision(), &info.sha)?;
        Ok(Snapshot { directory: job.cache.snapshot(&info.sha), commit: info.sha, gguf })
    }

    fn revision_info(&self, repo: &Repo, retry: RetryPolicy, progress: &dyn Progress) -> Result<RevisionInfo, Error> {
        let url = format!("{}/api/models/{}/revision/{}", self.options.endpoint, repo.id(), repo.escaped_revision());
        with_retries(retry, &url, progress, &AtomicBool::new(false), || {
            let mut answer = self.http.send(Method::GET, &url, None, Follow::OnHub)?;
            if !answer.response.status().is_success() {
                return Err(self.http.refusal(repo, &url, &answer));
            }
            let text = answer
                .response
                .body_mut()
                .with_config()
                .limit(MAX_INFO_BYTES)
                .read_to_vec()
                .map_err(|error| Failure::transient(error.to_string()))?;
            let protocol = |what: String| Failure::Fatal(Error::Protocol { url: url.clone(), what });
            let info: RevisionInfo = serde_json::from_slice(&text)
                .map_err(|error| protocol(format!("not the hub's description of a repository: {error}")))?;
            if !is_safe_component(&info.sha) {
                return Err(protocol(format!("{:?} is not a commit", info.sha)));
            }
            Ok(info)
        })
    }

    /// Gives the first GGUF file, if the model is in such.
    fn fetch_missing(&self, job: &Job<'_>, info: &RevisionInfo) -> Result<Option<String>, Error> {
        let names: Vec<&str> = info.siblings.iter().map(|sibling| sibling.rfilename.as_str()).collect();
        let select = |names| {
            if self.weights { select::needed(names, job.repo.variant()) } else { select::beside_weights(names) }
        };
        let needed = select(names.as_slice()).map_err(|why| Error::NoModel { repo: job.repo.to_string(), why })?;
        let gguf = select::first_gguf(&needed);
        let missing: Vec<&str> = needed.into_iter().filter(|name| !job.cache.has(job.commit, name)).collect();
        if missing.is_empty() {
            return Ok(gguf);
        }
        job.cache.create_folders(job.commit)?;
        let files = in_parallel(&missing, &job.stop, |_, name| self.describe(job, name))?;
        check_room(job, &files)?;
        let planned: Vec<PlannedFile> =
            files.iter().map(|file| PlannedFile { name: file.name.clone(), size: file.size }).collect();
        job.progress.event(Event::Planned { files: &planned });
        in_parallel(&files, &job.stop, |index, file| {
            self.fetch(job, index, file)?;
            job.cache.link(job.commit, &file.name, &file.etag)?;
            job.progress.event(Event::Finished { file: index });
            Ok(())
        })?;
        Ok(gguf)
    }

    /// Asks for a file's length and digest without its contents.
    fn describe(&self, job: &Job<'_>, name: &str) -> Result<RemoteFile, Error> {
        let url = format!("{}/{}/resolve/{}/{name}", self.options.endpoint, job.repo.id(), job.commit);
        with_retries(self.options.retry, &url, job.progress, &job.stop, || {
            let answer = self.http.send(Method::HEAD, &url, None, Follow::OnHub)?;
            if !is_success(answer.response.status()) {
                return Err(self.http.refusal(job.repo, &url, &answer));
            }
            let response = &answer.response;
            let linked = text_header(response, "x-linked-etag").map(bare_etag);
            let etag = linked.or_else(|| text_header(response, "etag").map(bare_etag)).unwrap_or_default();
            if !is_safe_component(etag) {
                let what = format!("its ETag {etag:?} cannot name a file of the cache");
                return Err(Failure::Fatal(Error::Protocol { url: url.clone(), what }));
            }
            let own_length = response.status().is_success().then(|| text_header(response, "content-length")).flatten();
            let size = text_header(response, "x-linked-size").or(own_length).and_then(|size| size.parse().ok());
            Ok(RemoteFile {
                name: name.to_owned(),
                url: url.clone(),
                etag: etag.to_owned(),
                size,
                // Large files are named by their SHA-256; other digests are of no known kind.
                sha256: linked.filter(|etag| etag.len() == 64).map(str::to_ascii_lowercase),
            })
        })
    }

    fn fetch(&self, job: &Job<'_>, index: usize, file: &RemoteFile) -> Result<(), Error> {
        let blob = job.cache.blob(&file.etag);
        if blob.is_file() {
            return Ok(());
        }
        let _lock = job.cache.lock(&file.etag, || job.progress.event(Event::Waiting { file: index }))?;
        // Another process may have brought it while this one waited.
        if blob.is_file() {
            return Ok(());
        }
        let mut partial = Partial::open(job.cache.incomplete(&file.etag), file.size)?;
        for last_try in [false, true] {
            job.progress.event(Event::Position { file: index, bytes: partial.len });
            with_retries(self.options.retry, &file.url, job.progress, &job.stop, || {
                self.receive(job, index, file, &mut partial)
            })?;
            let actual = partial.sha256();
            match &file.sha256 {
                Some(expected) if *expected != actual => {
                    partial.restart()?;
                    if last_try {
                        return Err(Error::Damaged {
                            repo: job.repo.to_string(),
                            file: file.name.clone(),
                            expected: expected.clone(),
                            actual,
                        });
                    }
                    tracing::warn!(file = file.name, expected, actual, "download is damaged, fetching it again");
                }
                _ => break,
            }
        }
        partial.complete(&blob)
    }

    /// One request for what is still missing of a file.
    fn receive(&self, job: &Job<'_>, index: usize, file: &RemoteFile, partial: &mut Partial) -> Result<(), Failure> {
        if file.size == Some(partial.len) {
            return Ok(());
        }
        let from = (partial.len > 0).then_some(partial.len);
        let answer = self.http.send(Method::GET, &file.url, from, Follow::All)?;
        match answer.response.status().as_u16() {
            200 if partial.len > 0 => partial.restart()?,
            200 => {}
            206 if range_start(text_header(&answer.response, header::CONTENT_RANGE.as_str())) == from => {}
            206 | 416 => {
                partial.restart()?;
                return Err(Failure::transient("the server could not go on where the last download ended"));
            }
            _ => return Err(self.http.refusal(job.repo, &file.url, &answer)),
        }
        let reached = partial.reached;
        let broken =
            |cause: String, len: u64| Failure::Transient { cause, retry_after: None, progressed: len > reached };
        let mut reader = answer.response.into_body().into_reader();
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            if job.stop.load(Ordering::Relaxed) {
                return Err(Failure::Fatal(stopped(file)));
            }
            let read = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(broken(error.to_string(), partial.len)),
            };
            if let Some(size) = file.size.filter(|size| partial.len + read as u64 > *size) {
                partial.restart()?;
                return Err(Failure::transient(format!("more came than the announced {size} bytes")));
            }
            partial.append(buffer.get(..read).unwrap_or_default()).map_err(|error| {
                if error.kind() == io::ErrorKind::StorageFull {
                    let needed = file.size.unwrap_or(0).saturating_sub(partial.len);
                    Error::DiskFull { path: job.cache.root().to_owned(), needed, available: 0 }
                } else {
                    io_error("write", &partial.path)(error)
                }
            })?;
            job.progress.event(Event::Position { file: index, bytes: partial.len });
        }
        match file.size {
            Some(size) if partial.len < size => {
                Err(broken(format!("the connection closed after {} of {size} bytes", partial.len), partial.len))
            }
            _ => Ok(()),
        }
    }
}

/// A file that is being downloaded: its beginning, as far as it has arrived.
struct Partial {
    path: PathBuf,
    file: File,
    len: u64,
    /// The greatest length it ever had: only bytes beyond it count as progress.
    reached: u64,
    hasher: Sha256,
}

impl Partial {
    fn open(path: PathBuf, size: Option<u64>) -> Result<Self, Error> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io_error("create", &path))?;
        let mut partial = Self { path, file, len: 0, reached: 0, hasher: Sha256::new() };
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let read = partial.file.read(&mut buffer).map_err(io_error("read", &partial.path))?;
            if read == 0 {
                break;
            }
            partial.hasher.update(buffer.get(..read).unwrap_or_default());
            partial.len += read as u64;
        }
        partial.reached = partial.len;
        if size.is_some_and(|size| partial.len > size) {
            partial.restart()?;
        }
        Ok(partial)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        self.reached = self.reached.max(self.len);
        Ok(())
    }

    fn restart(&mut self) -> Result<(), Error> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)))
            .map_err(io_error("truncate", &self.path))?;
        self.len = 0;
        self.hasher = Sha256::new();
        Ok(())
    }

    fn sha256(&self) -> String {
        self.hasher.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Written to the disk before it is renamed into place, so that a crash leaves no blob with holes.
    fn complete(self, blob: &Path) -> Result<(), Error> {
        self.file.sync_data().map_err(io_error("write", &self.path))?;
        fs::rename(&self.path, blob).map_err(io_error("create", blob))
    }
}

fn check_room(job: &Job<'_>, files: &[RemoteFile]) -> Result<(), Error> {
    let missing = |file: &RemoteFile| {
        let arrived = [job.cache.blob(&file.etag), job.cache.incomplete(&file.etag)]
            .iter()
            .find_map(|path| fs::metadata(path).ok())
            .map_or(0, |metadata| metadata.len());
        file.size.unwrap_or(0).saturating_sub(arrived)
    };
    let needed = files.iter().map(missing).fold(0, u64::saturating_add);
    let available = job.cache.available_bytes()?;
    if needed > available {
        return Err(Error::DiskFull { path: job.cache.root().to_owned(), needed, available });
    }
    Ok(())
}

/// Ends a thread because another file failed. It is never returned: the other failure is.
fn stopped(file: &RemoteFile) -> Error {
    Error::Protocol { url: file.url.clone(), what: "stopped because another file failed".to_owned() }
}

/// The bare tag of an ETag header: `abc` for `W/"abc"`.
fn bare_etag(etag: &str) -> &str {
    etag.trim().trim_start_matches("W/").trim_matches('"')
}

/// The first byte of `bytes 100-199/200`.
fn range_start(content_range: Option<&str>) -> Option<u64> {
    content_range?.trim().strip_prefix("bytes")?.trim_start().split('-').next()?.parse().ok()
}

/// Works on several items at once; the first error stops the rest and is the one returned.
fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    stop: &AtomicBool,
    work: impl Fn(usize, &T) -> Result<R, Error> + Sync,
) -> Result<Vec<R>, Error> {
    let next = AtomicUsize::new(0);
    let first_error = Mutex::new(None);
    let done = Mutex::new(Vec::with_capacity(items.len()));
    thread::scope(|scope| {
        for _ in 0..PARALLEL_FILES.min(items.len()) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(index) else { break };
                    match work(index, item) {
                        Ok(result) => done.lock().unwrap_or_else(PoisonError::into_inner).push((index, result)),
                        Err(error) => {
                            first_error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                            stop.store(true, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    if let Some(error) = first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(index, _)| *index);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}
