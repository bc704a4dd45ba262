//! Writes images as OCI layouts. Weights are hashed while they are written, several files at the same time. Files get their
//! names only when they are complete, so that a failure leaves nothing behind.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
};

use oci_spec::image::{Descriptor, Digest, ImageIndex, ImageIndexBuilder, MediaType};
use serde_json::json;
use tar::EntryType;
use tempfile::NamedTempFile;

use crate::{
    Blob, Error, FileRange, Image, Item, Job, Layout, Output, Plan,
    job::to,
    layer::{Access, header},
    layout::{OCI_LAYOUT, REF_NAME, entry},
    manifest::reproducible,
};

/// Small files of a layout, all together, at most.
const SMALL: u64 = 1 << 20;
const BLOCK: u64 = 512;
/// Header of a file in an archive: one block, since all names are short.
const HEADER: u64 = BLOCK;

impl Plan {
    /// Writes the image as an OCI layout, hashing as it writes.
    ///
    /// A directory that is a layout already gets this image added.
    ///
    /// # Errors
    /// When there is no room, a file can't be read or written, or the job is cancelled.
    pub fn write(&self, output: &Output, job: Job<'_>) -> Result<Image, Error> {
        let parent = parent(&output.path);
        let is_archive = output.path.extension().is_some_and(|extension| extension == "tar");
        if let Ok(found) = fs::metadata(&output.path)
            && found.is_dir() == is_archive
        {
            let found = if is_archive { "directory" } else { "file" };
            return Err(Error::OutputInTheWay { path: output.path.clone(), found });
        }
        fs::create_dir_all(&parent).map_err(|source| Error::Write { path: parent.clone(), source })?;
        let needed = self.size() + SMALL;
        let free = free_space(&parent)?;
        if free < needed {
            return Err(Error::NoRoom { path: parent, needed, free });
        }
        if is_archive {
            archive(self, output, &parent, job)
        } else if output.path.is_dir() && fs::read_dir(&output.path).is_ok_and(|mut entries| entries.next().is_some()) {
            let layout = Layout::open(&output.path)?;
            add(self, output, &layout, job)
        } else {
            create(self, output, &parent, job)
        }
    }

    /// Blobs of the base and own layers, as things to do.
    fn all_items(&self) -> Vec<Item> {
        let below = self.below().iter().map(|blob| Item { name: short(blob.digest()), size: blob.size() });
        below.chain(self.items()).collect()
    }
}

/// Twelve digits tell blobs apart for people.
pub(crate) fn short(digest: &Digest) -> String {
    digest.digest().chars().take(12).collect()
}

fn parent(path: &Path) -> PathBuf {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

pub(crate) fn free_space(directory: &Path) -> Result<u64, Error> {
    let stat = rustix::fs::statvfs(directory)
        .map_err(|error| Error::Read { path: directory.to_owned(), source: error.into() })?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// What the system said, without the name of a temporary file.
fn cause(error: io::Error) -> io::Error {
    match (error.raw_os_error(), error.kind()) {
        (Some(code), _) => io::Error::from_raw_os_error(code),
        (None, io::ErrorKind::Other) => error,
        (None, kind) => kind.into(),
    }
}

fn write_error(path: &Path) -> impl Fn(io::Error) -> Error + '_ {
    move |source| Error::Write { path: path.to_owned(), source }
}

/// A new directory: everything goes to a temporary one beside it, which gets the name at the end.
fn create(plan: &Plan, output: &Output, parent: &Path, job: Job<'_>) -> Result<Image, Error> {
    let aside = tempfile::Builder::new().prefix(".partial-").tempdir_in(parent);
    let aside = aside.map_err(|error| Error::Write { path: output.path.clone(), source: cause(error) })?;
    let root = aside.path();
    let mut blobs = Blobs::new(root, &output.path)?;
    let image = blobs.write(plan, job)?;
    write_file(&root.join("oci-layout"), OCI_LAYOUT.as_bytes())?;
    let index = index(vec![entry(&image, &plan.platform(), output.tag.as_deref(), output.name.as_deref())])?;
    write_file(&root.join("index.json"), &index)?;
    write_file(&root.join("manifest.json"), &docker_manifest(&image, output)?)?;
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).map_err(write_error(root))?;
    // An empty directory may be replaced.
    fs::rename(root, &output.path).map_err(write_error(&output.path))?;
    blobs.keep();
    let _ = aside.keep();
    relocated(&image, &output.path)
}

/// A layout that is there already: new blobs first, then the index, at once.
fn add(plan: &Plan, output: &Output, layout: &Layout, job: Job<'_>) -> Result<Image, Error> {
    let mut blobs = Blobs::new(&output.path, &output.path)?;
    let image = blobs.write(plan, job)?;
    let new = entry(&image, &plan.platform(), output.tag.as_deref(), output.name.as_deref());
    let name = |descriptor: &Descriptor| descriptor.annotations().as_ref().and_then(|all| all.get(REF_NAME).cloned());
    let mut all: Vec<Descriptor> = layout.index().manifests().clone();
    all.retain(|old| name(old) != name(&new) && !(name(old).is_none() && old.digest() == new.digest()));
    all.push(new);
    let path = output.path.join("index.json");
    let mut file = NamedTempFile::new_in(&output.path).map_err(write_error(&output.path))?;
    file.write_all(&index(all)?).map_err(write_error(&path))?;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644)).map_err(write_error(&path))?;
    file.persist(&path).map_err(|error| Error::Write { path: path.clone(), source: error.error })?;
    blobs.keep();
    // It lists one image; Docker reads the index where there is none.
    let _ = fs::remove_file(output.path.join("manifest.json"));
    relocated(&image, &output.path)
}

/// Blobs of a layout's directory; those that were written anew go away again unless they are kept.
struct Blobs {
    directory: PathBuf,
    /// What errors name: temporary files mean nothing to anybody.
    output: PathBuf,
    written: Vec<PathBuf>,
}

impl Blobs {
    fn new(root: &Path, output: &Path) -> Result<Self, Error> {
        let directory = root.join("blobs/sha256");
        fs::create_dir_all(&directory).map_err(write_error(output))?;
        Ok(Self { directory, output: output.to_owned(), written: Vec::new() })
    }

    fn keep(&mut self) {
        self.written.clear();
    }

    fn write(&mut self, plan: &Plan, job: Job<'_>) -> Result<Image, Error> {
        let below = plan.below();
        let placed = job.each("writing", &plan.all_items(), |item| {
            if let Some(blob) = below.get(item) {
                let mut file = self.temporary()?;
                job.copy(item, blob, to(file.as_file_mut(), write_error(&self.output)))?;
                return Ok((blob.digest().clone(), file));
            }
            let planned = plan.planned(item - below.len())?;
            let mut file = self.temporary()?;
            let reader = crate::BlobSource::open_at(&planned.layer, 0).map_err(|source| planned.unreadable(source))?;
            let (digest, _) = job.hash(
                item,
                reader,
                |source| planned.unreadable(source),
                to(file.as_file_mut(), write_error(&self.output)),
            )?;
            Ok((digest, file))
        })?;
        let mut digests = Vec::new();
        for (digest, file) in placed {
            self.persist(&digest, file)?;
            digests.push(digest);
        }
        let image = plan.image(digests.get(below.len()..).unwrap_or_default())?;
        for blob in [&image.config, &image.manifest] {
            let mut file = self.temporary()?;
            file.as_file_mut().write_all(&blob.bytes(u64::MAX)?).map_err(write_error(&self.output))?;
            self.persist(blob.digest(), file)?;
        }
        Ok(image)
    }

    fn temporary(&self) -> Result<NamedTempFile, Error> {
        let file = tempfile::Builder::new().prefix(".partial-").tempfile_in(&self.directory);
        file.map_err(|error| Error::Write { path: self.output.clone(), source: cause(error) })
    }

    fn persist(&mut self, digest: &Digest, file: NamedTempFile) -> Result<(), Error> {
        let path = self.directory.join(digest.digest());
        file.as_file().set_permissions(fs::Permissions::from_mode(0o644)).map_err(write_error(&path))?;
        match file.persist_noclobber(&path) {
            Ok(_) => self.written.push(path),
            // The same bytes are there, unless something cut them short: the temporary file goes away.
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
                if fs::metadata(&path).map(|there| there.len()).ok()
                    != error.file.path().metadata().map(|new| new.len()).ok()
                {
                    error.file.persist(&path).map_err(|error| Error::Write { path, source: error.error })?;
                }
            }
            Err(error) => return Err(Error::Write { path, source: error.error }),
        }
        Ok(())
    }
}

impl Drop for Blobs {
    fn drop(&mut self) {
        for path in &self.written {
            let _ = fs::remove_file(path);
        }
    }
}

/// The image with its blobs where they were written.
fn relocated(image: &Image, root: &Path) -> Result<Image, Error> {
    let layout = Layout::open(root)?;
    let layers = image.layers.iter().map(|layer| layout.blob(layer.descriptor())).collect::<Result<_, _>>()?;
    Ok(Image { manifest: image.manifest.clone(), config: image.config.clone(), layers })
}

/// One file. Sizes are known beforehand, so every blob has its place in it and all are written at once; only the
/// header, which has the digest, comes after.
fn archive(plan: &Plan, output: &Output, parent: &Path, job: Job<'_>) -> Result<Image, Error> {
    let file = tempfile::Builder::new().prefix(".partial-").suffix(".tar").tempfile_in(parent);
    let file = file.map_err(|error| Error::Write { path: output.path.clone(), source: cause(error) })?;
    let path = &output.path;
    let items = plan.all_items();
    let mut begin = Vec::new();
    for directory in ["blobs/", "blobs/sha256/"] {
        begin.extend(header(directory, EntryType::Directory, Access::EXECUTE, 0).map_err(write_error(path))?);
    }
    begin.extend(small("oci-layout", OCI_LAYOUT.as_bytes()).map_err(write_error(path))?);
    write_at(file.as_file(), &begin, 0, path)?;
    let mut places = Vec::new();
    let mut end = begin.len() as u64;
    for item in &items {
        places.push(end + HEADER);
        end += HEADER + item.size.next_multiple_of(BLOCK);
    }
    let below = plan.below();
    let digests = job.each("writing", &items, |item| {
        let start = places.get(item).copied().unwrap_or_default();
        let mut at = start;
        let write = |bytes: &[u8]| {
            write_at(file.as_file(), bytes, at, path)?;
            at += bytes.len() as u64;
            Ok(())
        };
        let digest = match below.get(item) {
            Some(blob) => {
                job.copy(item, blob, write)?;
                blob.digest().clone()
            }
            None => {
                let planned = plan.planned(item - below.len())?;
                let reader =
                    crate::BlobSource::open_at(&planned.layer, 0).map_err(|source| planned.unreadable(source))?;
                job.hash(item, reader, |source| planned.unreadable(source), write)?.0
            }
        };
        let name = format!("blobs/sha256/{}", digest.digest());
        let header = header(&name, EntryType::Regular, Access::READ, at - start).map_err(write_error(path))?;
        write_at(file.as_file(), &header, start - HEADER, path)?;
        Ok(digest)
    })?;
    let image = plan.image(digests.get(below.len()..).unwrap_or_default())?;
    let mut rest = Vec::new();
    for blob in [&image.config, &image.manifest] {
        let name = format!("blobs/sha256/{}", blob.digest().digest());
        rest.extend(small(&name, &blob.bytes(u64::MAX)?).map_err(write_error(path))?);
    }
    let index = index(vec![entry(&image, &plan.platform(), output.tag.as_deref(), output.name.as_deref())])?;
    rest.extend(small("index.json", &index).map_err(write_error(path))?);
    rest.extend(small("manifest.json", &docker_manifest(&image, output)?).map_err(write_error(path))?);
    rest.extend([0; 2 * BLOCK as usize]);
    write_at(file.as_file(), &rest, end, path)?;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644)).map_err(write_error(path))?;
    file.persist(path).map_err(|error| Error::Write { path: path.clone(), source: error.error })?;
    let layers = image.layers.iter().zip(&places).map(|(layer, &start)| {
        Blob::new(layer.descriptor().clone(), FileRange { path: path.clone(), start, len: layer.size() })
    });
    Ok(Image { layers: layers.collect(), ..image })
}

fn write_at(file: &File, bytes: &[u8], at: u64, path: &Path) -> Result<(), Error> {
    file.write_all_at(bytes, at).map_err(write_error(path))
}

/// A small file of an archive, whole.
fn small(name: &str, content: &[u8]) -> io::Result<Vec<u8>> {
    let len = content.len() as u64;
    let mut bytes = header(name, EntryType::Regular, Access::READ, len)?;
    bytes.extend(content);
    bytes.resize(bytes.len() + (len.next_multiple_of(BLOCK) - len) as usize, 0);
    Ok(bytes)
}

fn write_file(path: &Path, content: &[u8]) -> Result<(), Error> {
    fs::write(path, content).map_err(write_error(path))
}

fn index(manifests: Vec<Descriptor>) -> Result<Vec<u8>, Error> {
    let index: ImageIndex = ImageIndexBuilder::default()
        .schema_version(2_u32)
        .media_type(MediaType::ImageIndex)
        .manifests(manifests)
        .build()?;
    reproducible(&index)
}

/// What `docker load` read before it knew OCI layouts.
fn docker_manifest(image: &Image, output: &Output) -> Result<Vec<u8>, Error> {
    let unique: BTreeSet<&str> = output.name.iter().map(String::as_str).collect();
    let place = |blob: &Blob| format!("blobs/sha256/{}", blob.digest().digest());
    reproducible(&json!([{
        "Config": place(&image.config),
        "RepoTags": unique,
        "Layers": image.layers.iter().map(place).collect::<Vec<_>>(),
    }]))
}
