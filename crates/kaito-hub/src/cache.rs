use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use crate::{Error, Repo, Snapshot, error::io_error, repo::is_safe_component, select};

const LOCK_POLL: Duration = Duration::from_millis(200);

/// One repository's folder in the cache.
pub(crate) struct RepoCache {
    cache: PathBuf,
    folder: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    pub(crate) fn new(cache: &Path, repo: &Repo) -> Self {
        let folder = repo.folder();
        Self { cache: cache.to_owned(), locks: cache.join(".locks").join(&folder), folder: cache.join(folder) }
    }

    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    pub(crate) fn incomplete(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// Whether the snapshot has this file, contents included.
    pub(crate) fn has(&self, commit: &str, file: &str) -> bool {
        self.snapshot(commit).join(file).is_file()
    }

    /// The snapshot of a revision, if it holds a whole model: that of `variant`, where it is one of several.
    ///
    /// # Errors
    ///
    /// What is missing.
    pub(crate) fn complete_snapshot(
        &self,
        revision: &str,
        variant: Option<&str>,
        weights: bool,
    ) -> Result<Snapshot, String> {
        let commit = if is_commit(revision) {
            revision.to_owned()
        } else {
            let path = self.ref_path(revision);
            match fs::read_to_string(&path) {
                Ok(text) if is_safe_component(text.trim()) => text.trim().to_owned(),
                Ok(_) => return Err(format!("{} does not hold a commit", path.display())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(format!("no download of revision {revision:?} was ever completed"));
                }
                Err(error) => return Err(format!("{}: {error}", path.display())),
            }
        };
        let directory = self.snapshot(&commit);
        let gguf = select::check_complete(&directory, variant, weights)?;
        Ok(Snapshot { directory, commit, gguf })
    }

    pub(crate) fn create_folders(&self, commit: &str) -> Result<(), Error> {
        for folder in [self.folder.join("blobs"), self.snapshot(commit), self.locks.clone()] {
            fs::create_dir_all(&folder).map_err(io_error("create", folder))?;
        }
        Ok(())
    }

    /// Bytes that can still be written to the cache's disk; its folders must exist.
    pub(crate) fn available_bytes(&self) -> Result<u64, Error> {
        let stat = rustix::fs::statvfs(&self.folder)
            .map_err(|errno| io_error("ask for the free space of", &self.folder)(errno.into()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Locks a blob against other processes, as the hub's own client does; waits as long as it takes.
    pub(crate) fn lock(&self, etag: &str, waiting: impl FnOnce()) -> Result<File, Error> {
        let path = self.locks.join(format!("{etag}.lock"));
        let file = File::create(&path).map_err(io_error("create", &path))?;
        let mut waiting = Some(waiting);
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => {
                    if let Some(waiting) = waiting.take() {
                        waiting();
                    }
                    thread::sleep(LOCK_POLL);
                }
                Err(TryLockError::Error(error)) => return Err(io_error("lock", &path)(error)),
            }
        }
    }

    /// Makes the snapshot's file a relative link to the blob, so that the cache can be moved as a whole.
    pub(crate) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), Error> {
        let link = self.snapshot(commit).join(file);
        // A file in a folder of the repository is one level deeper.
        let mut target = PathBuf::from("../../blobs");
        for _ in file.matches('/') {
            target = Path::new("..").join(target);
        }
        target.push(etag);
        if let Some(folder) = link.parent() {
            fs::create_dir_all(folder).map_err(io_error("create", folder))?;
        }
        match fs::read_link(&link) {
            Ok(current) if current == target => return Ok(()),
            Ok(_) => fs::remove_file(&link).map_err(io_error("replace", &link))?,
            Err(_) => {}
        }
        match std::os::unix::fs::symlink(&target, &link) {
            // Another process made it in the meantime.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other.map_err(io_error("create", &link)),
        }
    }

    /// Notes which commit a branch or tag points to.
    pub(crate) fn write_ref(&self, revision: &str, commit: &str) -> Result<(), Error> {
        if is_commit(revision) {
            return Ok(());
        }
        let path = self.ref_path(revision);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(io_error("create", parent))?;
        }
        // Written to another name and renamed, so that a reader sees the old commit or the new one and nothing between.
        static WRITERS: AtomicU64 = AtomicU64::new(0);
        let writer = WRITERS.fetch_add(1, Ordering::Relaxed);
        let aside = path.with_extension(format!("{}-{writer}.tmp", std::process::id()));
        fs::write(&aside, commit).map_err(io_error("write", &aside))?;
        fs::rename(&aside, &path).map_err(io_error("write", &path))
    }

    fn ref_path(&self, revision: &str) -> PathBuf {
        self.folder.join("refs").join(revision)
    }

    /// For messages.
    pub(crate) fn root(&self) -> &Path {
        &self.cache
    }
}

/// Whether a revision names a commit for good, rather than a branch or tag that may move.
pub(crate) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
