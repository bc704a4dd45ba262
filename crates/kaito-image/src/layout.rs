//! OCI layouts on disk, read: a directory, or the same in one tar file.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, MediaType, OciLayout};

use crate::{
    Blob, Error, FileRange, Image,
    manifest::{self, MAX_MANIFEST, Platform},
};

/// The tag of an image in a layout's index.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Its full name, as containerd and Docker read it.
pub(crate) const IMAGE_NAME: &str = "io.containerd.image.name";
/// Most files in an archive; an image has some dozens.
const MAX_ENTRIES: usize = 100_000;
/// How deep indexes may lie in each other.
const MAX_DEPTH: usize = 3;

/// An OCI layout.
#[derive(Debug)]
pub struct Layout {
    path: PathBuf,
    /// Where files begin and how long they are, in an archive.
    archive: Option<HashMap<String, (u64, u64)>>,
    index: ImageIndex,
}

impl Layout {
    /// Opens a directory or a tar file.
    ///
    /// # Errors
    /// When it is no layout.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let metadata = fs::metadata(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let archive = if metadata.is_dir() { None } else { Some(list(path)?) };
        let mut layout = Self { path: path.to_owned(), archive, index: ImageIndex::default() };
        let version: OciLayout = layout.json("oci-layout")?;
        if !version.image_layout_version().starts_with("1.") {
            return Err(Error::NotALayout {
                path: path.to_owned(),
                reason: format!("its version is {}, expected 1.0.0", version.image_layout_version()),
            });
        }
        layout.index = layout.json("index.json")?;
        Ok(layout)
    }

    /// What the index lists.
    pub fn index(&self) -> &ImageIndex {
        &self.index
    }

    /// The blob that `descriptor` speaks of; its bytes are compared when they are read.
    ///
    /// # Errors
    /// When it is not there, or has another size.
    pub fn blob(&self, descriptor: &Descriptor) -> Result<Blob, Error> {
        let digest = descriptor.digest();
        let range = self.find(&format!("blobs/{}/{}", digest.algorithm(), digest.digest()))?;
        if range.len != descriptor.size() {
            return Err(Error::BlobSize {
                digest: digest.to_string(),
                path: self.path.clone(),
                found: range.len,
                expected: descriptor.size(),
            });
        }
        Ok(Blob::new(descriptor.clone(), range))
    }

    /// The image with that tag, or the only one; of one for several platforms, that for `platform`.
    ///
    /// # Errors
    /// When there is none or more than one, or a part of it is not there.
    pub fn image(&self, tag: Option<&str>, platform: &Platform) -> Result<Image, Error> {
        let name =
            |descriptor: &Descriptor| descriptor.annotations().as_ref().and_then(|all| all.get(REF_NAME).cloned());
        let all: Vec<(Option<String>, &Descriptor)> =
            self.index.manifests().iter().map(|descriptor| (name(descriptor), descriptor)).collect();
        let wanted = all.iter().filter(|(name, _)| tag.is_none() || name.as_deref() == tag);
        let wanted: Vec<&Descriptor> = wanted.map(|(_, descriptor)| *descriptor).collect();
        let names = || {
            let names =
                all.iter().map(|(name, descriptor)| name.clone().unwrap_or_else(|| descriptor.digest().to_string()));
            names.collect::<Vec<_>>().join(", ")
        };
        let tags: BTreeSet<_> = wanted.iter().map(|descriptor| name(descriptor)).collect();
        match wanted.as_slice() {
            [] => Err(Error::NoSuchImage {
                path: self.path.clone(),
                tag: tag.unwrap_or("any").to_owned(),
                names: names(),
            }),
            // A layout may list an image's platforms without an index between.
            several if tags.len() > 1 || several.len() > 1 && several.iter().any(|one| one.platform().is_none()) => {
                Err(Error::SeveralImages { path: self.path.clone(), names: names() })
            }
            several => self.of_platform(&several.iter().map(|one| (*one).clone()).collect::<Vec<_>>(), platform, 0),
        }
    }

    fn of_platform(&self, manifests: &[Descriptor], platform: &Platform, depth: usize) -> Result<Image, Error> {
        let descriptor =
            choose(manifests, platform).filter(|_| depth <= MAX_DEPTH).ok_or_else(|| Error::NoPlatform {
                what: self.path.display().to_string(),
                platform: platform.to_string(),
                found: platforms(manifests),
            })?;
        let blob = self.blob(descriptor)?;
        match descriptor.media_type().as_ref() {
            "application/vnd.oci.image.index.v1+json" | "application/vnd.docker.distribution.manifest.list.v2+json" => {
                let index: ImageIndex = manifest::read(&blob, MAX_MANIFEST)?;
                self.of_platform(index.manifests(), platform, depth + 1)
            }
            _ => {
                let manifest: ImageManifest = manifest::read(&blob, MAX_MANIFEST)?;
                let layers = manifest.layers().iter().map(|layer| self.blob(layer)).collect::<Result<_, _>>()?;
                Ok(Image { config: self.blob(manifest.config())?, layers, manifest: blob })
            }
        }
    }

    fn find(&self, name: &str) -> Result<FileRange, Error> {
        let missing = || Error::NotInLayout { path: self.path.clone(), name: name.to_owned() };
        match &self.archive {
            None => {
                let path = self.path.join(name);
                let metadata = fs::metadata(&path).map_err(|source| match source.kind() {
                    io::ErrorKind::NotFound => missing(),
                    _ => Error::Read { path: path.clone(), source },
                })?;
                if !metadata.is_file() {
                    return Err(missing());
                }
                Ok(FileRange { path, start: 0, len: metadata.len() })
            }
            Some(entries) => {
                let &(start, len) = entries.get(name).ok_or_else(missing)?;
                Ok(FileRange { path: self.path.clone(), start, len })
            }
        }
    }

    fn json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T, Error> {
        let range = self.find(name).map_err(|error| match error {
            Error::NotInLayout { path, name } => {
                Error::NotALayout { path, reason: format!("there is no {name} in it") }
            }
            other => other,
        })?;
        if range.len > MAX_MANIFEST {
            let reason = format!("{name} has {} bytes, more than {MAX_MANIFEST}", range.len);
            return Err(Error::NotALayout { path: self.path.clone(), reason });
        }
        let mut bytes = Vec::new();
        let read = |source| Error::Read { path: range.path.clone(), source };
        crate::BlobSource::open_at(&range, 0).and_then(|mut reader| reader.read_to_end(&mut bytes)).map_err(read)?;
        let what = format!("{name} of {}", self.path.display());
        serde_json::from_slice(&bytes).map_err(|source| Error::Json { what, source })
    }
}

/// The manifest for `platform`, where there are several to choose from.
pub(crate) fn choose<'a>(manifests: &'a [Descriptor], platform: &Platform) -> Option<&'a Descriptor> {
    let fits = |descriptor: &&Descriptor| {
        descriptor
            .platform()
            .as_ref()
            .is_some_and(|found| *found.architecture() == platform.architecture && *found.os() == platform.os)
    };
    match manifests {
        [only] => Some(only),
        _ => manifests.iter().find(fits),
    }
}

/// The platforms that there are, for messages.
pub(crate) fn platforms(manifests: &[Descriptor]) -> String {
    let names: Vec<String> = manifests
        .iter()
        .filter_map(|descriptor| descriptor.platform().as_ref())
        .map(|platform| format!("{}/{}", platform.os(), platform.architecture()))
        .collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// Splits `PATH[:TAG]` where the path before the colon is there and the whole is not.
///
/// `None` where neither is: then the text means something else.
pub fn split_path(text: &str) -> Option<(PathBuf, Option<String>)> {
    if Path::new(text).exists() {
        return Some((text.into(), None));
    }
    let (path, tag) = text.rsplit_once(':')?;
    Path::new(path).exists().then(|| (path.into(), Some(tag.to_owned())))
}

fn list(path: &Path) -> Result<HashMap<String, (u64, u64)>, Error> {
    let not = |reason: String| Error::NotALayout { path: path.to_owned(), reason };
    let file = File::open(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let len = file.metadata().map_err(|source| Error::Read { path: path.to_owned(), source })?.len();
    let mut archive = tar::Archive::new(file);
    let mut entries = HashMap::new();
    let broken = |error: io::Error| not(format!("it is no tar file: {error}"));
    for entry in archive.entries_with_seek().map_err(broken)? {
        let entry = entry.map_err(broken)?;
        let name = entry.path().map_err(broken)?.to_string_lossy().trim_start_matches("./").to_owned();
        let (start, size) = (entry.raw_file_position(), entry.size());
        if start.checked_add(size).is_none_or(|end| end > len) {
            return Err(not(format!(
                "the file is truncated: {name} should end at byte {}, the file has {len}",
                start.saturating_add(size)
            )));
        }
        if entry.header().entry_type().is_file() {
            entries.insert(name, (start, size));
        }
        if entries.len() > MAX_ENTRIES {
            return Err(not(format!("it holds more than {MAX_ENTRIES} files")));
        }
    }
    Ok(entries)
}

/// What the file `oci-layout` says.
pub(crate) const OCI_LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// A descriptor of `image` for an index, with its platform and the names by which tools find it.
pub(crate) fn entry(image: &Image, platform: &Platform, tag: Option<&str>, name: Option<&str>) -> Descriptor {
    let mut descriptor = image.manifest.descriptor().clone();
    descriptor.set_media_type(MediaType::ImageManifest);
    let mut found = oci_spec::image::Platform::default();
    found.set_architecture(platform.architecture.clone());
    found.set_os(platform.os.clone());
    descriptor.set_platform(Some(found));
    let annotations: HashMap<String, String> = [(REF_NAME, tag), (IMAGE_NAME, name)]
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned())))
        .collect();
    descriptor.set_annotations((!annotations.is_empty()).then_some(annotations));
    descriptor
}
