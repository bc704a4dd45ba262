//! Unpacks a folder of an image onto this machine, and goes on after an interruption: what has arrived whole is kept.
//!
//! Layers are unpacked beside the folder, several at once, each into a folder of its own. A layer counts once its record is there,
//! which is written when its digest was right and its files are on the disk. When all are there, the folder is put together of links
//! to their files, and gets its name:
//!
//! ```text
//! .NAME.partial/DIGEST/...    what a layer has of the folder
//! .NAME.partial/DIGEST.json   its record
//! .NAME.partial/whole/...     the folder, while it is put together
//! NAME/.kaito-image           what the folder is of
//! ```

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Component, Path, PathBuf},
};

use oci_spec::image::DigestAlgorithm;
use serde::{Deserialize, Serialize};

use crate::{
    Blob, Error, Event, Image, Job,
    job::to as writing,
    output::free_space,
    verify::{item, path_in, unpacked},
};

/// Says in a folder what it was unpacked from. Readers of models pass over files with such names.
const RECORD: &str = ".kaito-image";
/// Beside the folder while it is made: what is held, and what it is of.
const LOCK: &str = "lock";
const SOURCE: &str = "source.json";
/// Most files of a folder; models have some dozens.
const MAX_FILES: usize = 100_000;
/// Largest record that is read.
const MAX_RECORD: u64 = 32 << 20;

/// What a folder was unpacked from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpacked {
    /// The image, as it was called.
    pub image: String,
    /// The digest of its manifest.
    pub digest: String,
    /// The folder in it.
    pub path: String,
}

impl Unpacked {
    /// What the whole folder `folder` was unpacked from, if it was.
    pub fn found(folder: &Path) -> Option<Self> {
        read_record(&folder.join(RECORD))
    }
}

/// What a layer says of the folder besides its files.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Layer {
    /// What it takes away of the layers below it; an empty path is all.
    removed: BTreeSet<String>,
}

/// Unpacks the folder `directory` of `image`, which is called `name`, into the folder `to`. An upper layer's files hide a lower
/// one's, and what it takes away is not there. Links are left out.
///
/// Layers are read to their ends, which must not happen on a thread of an asynchronous runtime. If the job is cancelled, or fails,
/// the layers that have arrived whole are not fetched again the next time.
///
/// # Errors
/// When a layer can't be read or is damaged, there is no such folder in the image, there is no room, or `to` is something else.
pub fn unpack(image: &Image, name: &str, directory: &str, to: &Path, job: Job<'_>) -> Result<Unpacked, Error> {
    let staging = Staging::open(to)?;
    let directory = directory.trim_matches('/');
    let source = Unpacked { image: name.to_owned(), digest: image.digest().to_string(), path: format!("/{directory}") };
    // A layer of another image may be one of this image too, but what lies here of it is of this folder alone.
    staging.of_one_source(&Unpacked { image: String::new(), digest: String::new(), ..source.clone() })?;
    let layers = staging.layers(image)?;
    let missing: Vec<_> = layers.iter().filter(|layer| staging.record(layer).is_none()).copied().collect();
    staging.check_room(missing.iter().map(|layer| layer.size()).sum())?;
    let items: Vec<_> = layers.iter().map(|layer| item(layer)).collect();
    job.each("pulling", &items, |item| {
        let Some(layer) = layers.get(item) else { return Ok(()) };
        if staging.record(layer).is_some() {
            job.progress.event(Event::Skipped { item, reason: "there already" });
            return Ok(());
        }
        staging.unpack(item, layer, directory, job)
    })?;
    if !staging.put_together(image)? {
        return Err(Error::NoFolderInImage { digest: source.digest, path: source.path });
    }
    staging.finish(&source)?;
    Ok(source)
}

/// Copies the folder `from` of this machine into the folder `to`, as [`unpack`] does of an image. Links are followed.
///
/// # Errors
/// When a file can't be read or written, there is no room, or `to` is something else.
pub fn copy_folder(from: &Path, to: &Path, job: Job<'_>) -> Result<Unpacked, Error> {
    let staging = Staging::open(to)?;
    let source = Unpacked { image: "/".to_owned(), digest: String::new(), path: from.display().to_string() };
    staging.of_one_source(&source)?;
    let whole = staging.whole();
    let mut files = Vec::new();
    walk(from, Path::new(""), &mut |path, len| {
        files.push((path.to_owned(), len));
        Ok(())
    })?;
    if files.is_empty() {
        return Err(Error::NoFolderInImage { digest: source.image, path: source.path });
    }
    // A file has its name there once all of it was copied.
    let is_there = |(path, len): &(PathBuf, u64)| fs::metadata(whole.join(path)).is_ok_and(|found| found.len() == *len);
    staging.check_room(files.iter().filter(|file| !is_there(file)).map(|(_, len)| len).sum())?;
    let items: Vec<_> =
        files.iter().map(|(path, size)| crate::Item { name: path.display().to_string(), size: *size }).collect();
    job.each("copying", &items, |item| {
        let Some(file) = files.get(item) else { return Ok(()) };
        if is_there(file) {
            job.progress.event(Event::Skipped { item, reason: "there already" });
            return Ok(());
        }
        let (source, target) = (from.join(&file.0), whole.join(&file.0));
        let unreadable = |error| Error::Read { path: source.clone(), source: error };
        let reader = File::open(&source).map_err(unreadable)?;
        create_folder_of(&target)?;
        let aside = staging.folder.join(format!("{item}.part"));
        let mut bytes = 0;
        write_file(&aside, reader, unreadable, job, |read| {
            bytes += read;
            job.progress.event(Event::Position { item, bytes });
        })?;
        fs::rename(&aside, &target).map_err(write_error(&target))
    })?;
    staging.finish(&source)?;
    Ok(source)
}

/// Where a folder is made ready.
struct Staging {
    to: PathBuf,
    folder: PathBuf,
    /// Held so long, for another process may be doing the same.
    _lock: File,
}

impl Staging {
    fn open(to: &Path) -> Result<Self, Error> {
        let in_the_way = || Error::FolderInTheWay { path: to.to_owned() };
        let name = to.file_name().ok_or_else(in_the_way)?;
        let is_empty = || fs::read_dir(to).is_ok_and(|mut entries| entries.next().is_none());
        if fs::symlink_metadata(to).is_ok() && Unpacked::found(to).is_none() && !is_empty() {
            return Err(in_the_way());
        }
        let folder = to.with_file_name(format!(".{}.partial", name.to_string_lossy()));
        fs::create_dir_all(&folder).map_err(write_error(&folder))?;
        let lock = folder.join(LOCK);
        let file = File::create(&lock).map_err(write_error(&lock))?;
        file.lock().map_err(write_error(&lock))?;
        Ok(Self { to: to.to_owned(), folder, _lock: file })
    }

    fn whole(&self) -> PathBuf {
        self.folder.join("whole")
    }

    /// What lies here of another source goes.
    fn of_one_source(&self, source: &Unpacked) -> Result<(), Error> {
        let record = self.folder.join(SOURCE);
        if read_record::<Unpacked>(&record).as_ref() != Some(source) {
            self.keep(&BTreeSet::new())?;
            write_record(&record, source)?;
        }
        Ok(())
    }

    fn folder_of(&self, layer: &Blob) -> PathBuf {
        self.folder.join(name_of(layer))
    }

    fn record_of(&self, layer: &Blob) -> PathBuf {
        self.folder.join(format!("{}.json", name_of(layer)))
    }

    /// The record of a layer that has arrived whole.
    fn record(&self, layer: &Blob) -> Option<Layer> {
        read_record(&self.record_of(layer))
    }

    /// The image's layers, each once; what lies here of another image goes.
    fn layers<'a>(&self, image: &'a Image) -> Result<Vec<&'a Blob>, Error> {
        let mut layers: Vec<&Blob> = Vec::new();
        for layer in &image.layers {
            if *layer.digest().algorithm() != DigestAlgorithm::Sha256 {
                let cause = io::Error::other("digests of its kind are not verified here");
                return Err(Error::ReadBlob { digest: layer.digest().to_string(), source: cause });
            }
            if !layers.iter().any(|other| other.digest() == layer.digest()) {
                layers.push(layer);
            }
        }
        let known: BTreeSet<_> =
            layers.iter().flat_map(|layer| [self.folder_of(layer), self.record_of(layer)]).collect();
        self.keep(&known)?;
        Ok(layers)
    }

    /// Removes everything else.
    fn keep(&self, known: &BTreeSet<PathBuf>) -> Result<(), Error> {
        for entry in fs::read_dir(&self.folder).map_err(read_error(&self.folder))? {
            let path = entry.map_err(read_error(&self.folder))?.path();
            if !known.contains(&path) && !path.ends_with(LOCK) && !path.ends_with(SOURCE) {
                remove(&path)?;
            }
        }
        Ok(())
    }

    fn check_room(&self, needed: u64) -> Result<(), Error> {
        let free = free_space(&self.folder)?;
        if free < needed {
            return Err(Error::NoRoomToUnpack { path: self.to.clone(), needed, free });
        }
        Ok(())
    }

    fn unpack(&self, item: usize, layer: &Blob, directory: &str, job: Job<'_>) -> Result<(), Error> {
        let folder = self.folder_of(layer);
        remove(&folder)?;
        fs::create_dir_all(&folder).map_err(write_error(&folder))?;
        let unreadable = |source| Error::ReadBlob { digest: layer.digest().to_string(), source };
        let raw = layer.open_at(0).map_err(unreadable)?;
        let mut archive = tar::Archive::new(unpacked(layer, Counted { raw, bytes: 0, item, job })?);
        let mut record = Layer::default();
        let mut files = 0;
        for entry in archive.entries().map_err(unreadable)? {
            job.check()?;
            let entry = entry.map_err(unreadable)?;
            let path = path_in(&entry).map_err(unreadable)?;
            let path = path.trim_end_matches('/');
            if let Some(removed) = removed(path, directory) {
                within(&folder, &removed).map_err(unreadable)?;
                record.removed.insert(removed);
                continue;
            }
            let Some(inner) = inside(path, directory).filter(|inner| !inner.is_empty()) else { continue };
            let kind = entry.header().entry_type();
            let target = within(&folder, inner).map_err(unreadable)?;
            if kind.is_dir() {
                fs::create_dir_all(&target).map_err(write_error(&target))?;
                continue;
            }
            files += 1;
            if files > MAX_FILES {
                return Err(Error::TooManyFiles { directory: PathBuf::from(directory), limit: MAX_FILES });
            }
            if kind.is_hard_link() {
                let link = entry.link_name().map_err(unreadable)?.unwrap_or_default();
                let link = link.to_string_lossy();
                let link = link.trim_start_matches("./").trim_start_matches('/');
                let of = inside(link, directory).ok_or_else(|| {
                    unreadable(io::Error::other(format!("{path} is a link to {link}, which is elsewhere")))
                })?;
                create_folder_of(&target)?;
                link_file(&within(&folder, of).map_err(unreadable)?, &target)?;
            } else if kind.is_file() {
                create_folder_of(&target)?;
                write_file(&target, entry, unreadable, job, |_| {})?;
            } else {
                tracing::warn!(path, "links and devices are left out");
            }
        }
        // The digest is compared where the bytes end.
        io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(unreadable)?;
        write_record(&self.record_of(layer), &record)
    }

    /// Puts the layers' files together, the lowest layer first. Whether there are any.
    fn put_together(&self, image: &Image) -> Result<bool, Error> {
        let whole = self.whole();
        remove(&whole)?;
        fs::create_dir(&whole).map_err(write_error(&whole))?;
        let mut any = false;
        for layer in &image.layers {
            for path in self.record(layer).unwrap_or_default().removed {
                remove(&within(&whole, &path).map_err(write_error(&whole))?)?;
                fs::create_dir_all(&whole).map_err(write_error(&whole))?;
            }
            let folder = self.folder_of(layer);
            walk(&folder, Path::new(""), &mut |path, _| {
                any = true;
                let target = whole.join(path);
                create_folder_of(&target)?;
                link_file(&folder.join(path), &target)
            })?;
        }
        Ok(any)
    }

    /// Gives the whole folder its name.
    fn finish(self, source: &Unpacked) -> Result<(), Error> {
        let whole = self.whole();
        write_record(&whole.join(RECORD), source)?;
        if fs::symlink_metadata(&self.to).is_ok() {
            let old = self.folder.join("old");
            remove(&old)?;
            fs::rename(&self.to, &old).map_err(write_error(&old))?;
        }
        fs::rename(&whole, &self.to).map_err(write_error(&self.to))?;
        remove(&self.folder)
    }
}

/// Reports how much of a layer was read.
struct Counted<'a> {
    raw: Box<dyn Read + Send>,
    bytes: u64,
    item: usize,
    job: Job<'a>,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.raw.read(buffer)?;
        self.bytes += read as u64;
        self.job.progress.event(Event::Position { item: self.item, bytes: self.bytes });
        Ok(read)
    }
}

fn name_of(layer: &Blob) -> String {
    layer.digest().to_string().replace(':', "-")
}

/// The rest of a path of the image in the folder; empty for the folder itself.
fn inside<'a>(path: &'a str, directory: &str) -> Option<&'a str> {
    if directory.is_empty() {
        return Some(path);
    }
    let rest = path.strip_prefix(directory)?;
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix('/') }
}

/// What an entry takes away of the folder in the layers below, if it is one that takes something away; empty for all of it.
fn removed(path: &str, directory: &str) -> Option<String> {
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    let gone = match name.strip_prefix(".wh.")? {
        ".wh..opq" => parent.to_owned(),
        gone if parent.is_empty() => gone.to_owned(),
        gone => format!("{parent}/{gone}"),
    };
    // The folder itself, or one that it lies in.
    if inside(directory, &gone).is_some() { Some(String::new()) } else { inside(&gone, directory).map(str::to_owned) }
}

/// A path in a folder, and no way out of it. No link is ever made in the folder.
fn within(folder: &Path, inner: &str) -> io::Result<PathBuf> {
    let mut path = folder.to_owned();
    for part in Path::new(inner).components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(io::Error::other(format!("{inner:?} leads out of the folder")));
            }
        }
    }
    Ok(path)
}

/// Tells the regular files below a folder, links to such included but not those to folders, with their lengths, in the order of their names.
fn walk(folder: &Path, below: &Path, found: &mut dyn FnMut(&Path, u64) -> Result<(), Error>) -> Result<(), Error> {
    const DEEPEST: usize = 16;
    if below.components().count() > DEEPEST {
        return Err(Error::TooManyFiles { directory: folder.join(below), limit: MAX_FILES });
    }
    let here = folder.join(below);
    let mut names: Vec<_> = match fs::read_dir(&here) {
        Ok(entries) => entries.collect::<Result<Vec<_>, _>>().map_err(read_error(&here))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound && below == Path::new("") => return Ok(()),
        Err(error) => return Err(read_error(&here)(error)),
    };
    if names.len() > MAX_FILES {
        return Err(Error::TooManyFiles { directory: here, limit: MAX_FILES });
    }
    names.sort_by_key(fs::DirEntry::file_name);
    for entry in names {
        let path = below.join(entry.file_name());
        let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        let metadata = match fs::metadata(entry.path()) {
            Err(error) if is_link && error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata.map_err(read_error(&entry.path()))?,
        };
        if metadata.is_dir() && !is_link {
            walk(folder, &path, found)?;
        } else if metadata.is_file() {
            found(&path, metadata.len())?;
        }
    }
    Ok(())
}

/// Writes a file, and to the disk, so that what counts as whole is so after a crash of the machine too.
fn write_file(
    path: &Path,
    mut reader: impl Read,
    unreadable: impl Fn(io::Error) -> Error,
    job: Job<'_>,
    mut told: impl FnMut(u64),
) -> Result<(), Error> {
    remove(path)?;
    let failed = write_error(path);
    let mut file = File::create(path).map_err(&failed)?;
    let mut write = writing(&mut file, &failed);
    let mut buffer = vec![0; 1 << 20];
    loop {
        job.check()?;
        match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => {
                write(buffer.get(..read).unwrap_or_default())?;
                told(read as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
    drop(write);
    file.sync_all().map_err(failed)
}

/// Another name for a file, or a copy of it where the file system has no such.
fn link_file(file: &Path, target: &Path) -> Result<(), Error> {
    remove(target)?;
    if fs::hard_link(file, target).is_err() {
        fs::copy(file, target).map_err(write_error(target))?;
    }
    Ok(())
}

fn create_folder_of(path: &Path) -> Result<(), Error> {
    path.parent().map_or(Ok(()), |folder| fs::create_dir_all(folder).map_err(write_error(folder)))
}

/// Removes a file, or a folder with all that is in it; nothing where there is neither.
fn remove(path: &Path) -> Result<(), Error> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => return Ok(()),
    };
    removed.map_err(write_error(path))
}

fn read_record<T: for<'a> Deserialize<'a>>(path: &Path) -> Option<T> {
    let mut text = Vec::new();
    File::open(path).ok()?.take(MAX_RECORD).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Under another name first, so that there is none or a whole one.
fn write_record(path: &Path, record: &impl Serialize) -> Result<(), Error> {
    let aside = path.with_extension("new");
    let text = serde_json::to_vec(record).map_err(Error::Serialize)?;
    let failed = write_error(&aside);
    let mut file = File::create(&aside).map_err(&failed)?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&aside, path).map_err(write_error(path))
}

fn write_error(path: &Path) -> impl Fn(io::Error) -> Error + '_ {
    move |source| Error::Write { path: path.to_owned(), source }
}

fn read_error(path: &Path) -> impl Fn(io::Error) -> Error + '_ {
    move |source| Error::Read { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
