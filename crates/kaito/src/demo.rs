//! The demo model: part of the executable, so that it is there from any working directory.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!("../../../models/demo/", $name)))),*]
    };
}

const FILES: &[(&str, &[u8])] =
    files!["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];

/// The demo model's files on disk, where the engine can map them as it maps any model's.
#[derive(Debug)]
pub struct DemoModel {
    directory: PathBuf,
    /// Removed with the value; what is mapped by then stays readable.
    _temporary: Option<TempDir>,
}

impl DemoModel {
    /// Writes the files into the cache folder, if they are not there; into a temporary one where none can be written.
    pub fn materialise() -> anyhow::Result<Self> {
        let cached = cache_folder().ok_or_else(|| io::Error::other("no HOME")).and_then(|cache| place(&cache));
        match cached {
            Ok(directory) => Ok(Self { directory, _temporary: None }),
            Err(error) => {
                tracing::debug!(%error, "no cache folder, the demo model goes to a temporary one");
                // A container on a read-only root has this folder, if no other.
                let temporary = tempfile::tempdir()
                    .or_else(|error| tempfile::tempdir_in("/dev/shm").map_err(|_| error))
                    .context("cannot write the demo model to a temporary folder")?;
                let directory = write(temporary.path())
                    .with_context(|| format!("cannot write the demo model to {}", temporary.path().display()))?;
                Ok(Self { directory, _temporary: Some(temporary) })
            }
        }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

/// The folder of what kaito keeps on this machine and can make again.
pub fn cache_folder() -> Option<PathBuf> {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")))?;
    Some(cache.join("kaito"))
}

/// The folder's name is the contents' digest: another version of kaito has its own.
fn place(cache: &Path) -> io::Result<PathBuf> {
    let directory = cache.join(format!("demo-{}", digest()));
    if is_whole(&directory) {
        return Ok(directory);
    }
    fs::create_dir_all(cache)?;
    // Written aside and renamed, so that nobody sees half of it.
    let aside = tempfile::Builder::new().prefix(".demo-").tempdir_in(cache)?;
    write(aside.path())?;
    if directory.exists() {
        // Damaged, or written by another process a moment ago.
        if is_whole(&directory) {
            return Ok(directory);
        }
        fs::remove_dir_all(&directory)?;
    }
    match fs::rename(aside.path(), &directory) {
        Err(_) if is_whole(&directory) => Ok(directory),
        Err(error) => Err(error),
        Ok(()) => {
            // Renamed away: there is nothing left to remove.
            let _ = aside.keep();
            Ok(directory)
        }
    }
}

fn write(directory: &Path) -> io::Result<PathBuf> {
    for (name, contents) in FILES {
        fs::write(directory.join(name), contents)?;
    }
    Ok(directory.to_owned())
}

fn is_whole(directory: &Path) -> bool {
    FILES.iter().all(|(name, contents)| fs::read(directory.join(name)).is_ok_and(|found| found == *contents))
}

fn digest() -> String {
    let mut hasher = Sha256::new();
    for (name, contents) in FILES {
        hasher.update(name);
        hasher.update((contents.len() as u64).to_le_bytes());
        hasher.update(contents);
    }
    hasher.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn the_files_are_written_once_and_again_when_damaged() {
        let cache = tempfile::tempdir().unwrap();
        let directory = place(cache.path()).unwrap();
        assert!(is_whole(&directory));
        let written = fs::metadata(directory.join("config.json")).unwrap().modified().unwrap();
        assert_eq!(place(cache.path()).unwrap(), directory);
        assert_eq!(fs::metadata(directory.join("config.json")).unwrap().modified().unwrap(), written);

        fs::write(directory.join("config.json"), "{}").unwrap();
        assert_eq!(place(cache.path()).unwrap(), directory);
        assert!(is_whole(&directory));
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 1, "nothing is left aside");
    }

    #[test]
    fn several_processes_may_begin_at_once() {
        let cache = tempfile::tempdir().unwrap();
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| assert!(is_whole(&place(cache.path()).unwrap())));
            }
        });
    }
}
