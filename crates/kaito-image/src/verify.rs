//! Whether an image holds just the weights of a directory, and whether its blobs are whole.

use std::{
    collections::BTreeMap,
    io::{self, Read},
};

use flate2::read::MultiGzDecoder;
use oci_spec::image::Digest;
use serde::Serialize;

use crate::{
    Blob, Error, Image, Inspection, Item, Job, Model, ModelFile,
    build::{COMPANIONS_TITLE, Planned, companions, weights},
    inspect::title,
    model::TEMPLATES,
    output::short,
};

/// What differs between an image and a directory of weights. Names are in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// The same in both.
    pub same: Vec<String>,
    /// In both, but with other contents.
    pub differ: Vec<String>,
    /// Only in the directory.
    pub missing: Vec<String>,
    /// Only in the image.
    pub extra: Vec<String>,
}

impl Verification {
    /// Whether there is no difference.
    pub fn holds(&self) -> bool {
        self.differ.is_empty() && self.missing.is_empty() && self.extra.is_empty()
    }

    fn compare<D: PartialEq>(expected: BTreeMap<String, D>, mut found: BTreeMap<String, D>) -> Self {
        let mut result = Self::default();
        for (name, digest) in expected {
            match found.remove(&name) {
                Some(there) if there == digest => result.same.push(name),
                Some(_) => result.differ.push(name),
                None => result.missing.push(name),
            }
        }
        result.extra = found.into_keys().collect();
        result
    }
}

/// Reads every blob of an image that lies on this machine and compares it with its digest.
///
/// # Errors
/// For the first that is damaged.
pub fn verify_blobs(image: &Image, job: Job<'_>) -> Result<(), Error> {
    let blobs: Vec<&Blob> = image.blobs().collect();
    let items = blobs.iter().map(|blob| item(blob)).collect::<Vec<_>>();
    job.each("checking", &items, |item| match blobs.get(item) {
        Some(blob) => job.copy(item, blob, |_| Ok(())),
        None => Ok(()),
    })?;
    Ok(())
}

/// What is told of a blob's progress.
pub(crate) fn item(blob: &Blob) -> Item {
    Item {
        name: title(blob.descriptor().annotations().as_ref()).unwrap_or_else(|| short(blob.digest())),
        size: blob.size(),
    }
}

/// Compares the weights in `image` with those of `model`.
///
/// Layers that were packed here are compared by their digests, without reading them. Of other images every layer is
/// read.
///
/// # Errors
/// When files or layers can't be read, or the image does not say where its weights are.
pub fn verify_weights(image: &Image, model: &Model, job: Job<'_>) -> Result<Verification, Error> {
    let Some(directory) = Inspection::of(image)?.weights else {
        return Err(Error::NoWeightsLabel { digest: image.digest().to_string() });
    };
    let directory = directory.trim_matches('/');
    let titles: Vec<Option<String>> =
        image.layers.iter().map(|layer| title(layer.descriptor().annotations().as_ref())).collect();
    if titles.iter().flatten().any(|title| title == COMPANIONS_TITLE) {
        by_layers(image, model, &titles, job)
    } else {
        by_contents(image, model, directory, job)
    }
}

fn by_layers(image: &Image, model: &Model, titles: &[Option<String>], job: Job<'_>) -> Result<Verification, Error> {
    let mut layers: Vec<Planned> = vec![companions(&model.companions)?];
    for file in &model.weights {
        layers.push(weights(file)?);
    }
    let items: Vec<Item> =
        layers.iter().map(|planned| Item { name: planned.title.clone(), size: planned.layer.size() }).collect();
    let digests = job.each("hashing", &items, |item| {
        let planned = layers.get(item).ok_or(Error::Interrupted)?;
        let reader = crate::BlobSource::open_at(&planned.layer, 0).map_err(|source| planned.unreadable(source))?;
        Ok(job.hash(item, reader, |source| planned.unreadable(source), |_| Ok(()))?.0)
    })?;
    let expected = layers.into_iter().map(|planned| planned.title).zip(digests).collect();
    let found = image
        .layers
        .iter()
        .zip(titles)
        .filter_map(|(layer, title)| Some((title.clone().filter(|title| title != "kaito")?, layer.digest().clone())))
        .collect();
    Ok(Verification::compare(expected, found))
}

fn by_contents(image: &Image, model: &Model, directory: &str, job: Job<'_>) -> Result<Verification, Error> {
    let files: Vec<&ModelFile> = model.weights.iter().chain(&model.companions).collect();
    let items: Vec<Item> = files.iter().map(|file| Item { name: file.name.clone(), size: file.file.len }).collect();
    let digests = job.each("hashing", &items, |item| {
        let file = files.get(item).ok_or(Error::Interrupted)?;
        let unreadable = |source| Error::Read { path: file.file.path.clone(), source };
        let reader = std::fs::File::open(&file.file.path).map_err(unreadable)?;
        Ok(job.hash(item, reader, unreadable, |_| Ok(()))?.0)
    })?;
    let expected = files.iter().map(|file| file.name.clone()).zip(digests).collect();
    let items: Vec<Item> = image.layers.iter().map(item).collect();
    let layers = job.each("reading", &items, |item| match image.layers.get(item) {
        Some(layer) => contents(item, layer, directory, job),
        None => Ok(BTreeMap::new()),
    })?;
    // An upper layer's file hides a lower one's, and a whiteout takes it away, or a folder with all that is in it.
    let mut found: BTreeMap<String, Option<Digest>> = BTreeMap::new();
    for layer in layers {
        for removed in layer.iter().filter(|(_, digest)| digest.is_none()).map(|(name, _)| format!("{name}/")) {
            found.retain(|name, _| !name.starts_with(&removed));
        }
        found.extend(layer);
    }
    // Files that serving does not need may be in the image as they may be in the directory.
    let left_out = |name: &str| model.left_out.iter().any(|file| file.name == name);
    let found = found.into_iter().filter_map(|(name, digest)| Some((name, digest?)));
    Ok(Verification::compare(expected, found.filter(|(name, _)| !left_out(name)).collect()))
}

/// Digests of the files that a layer has in `directory`; `None` for those that it removes.
fn contents(
    item: usize,
    layer: &Blob,
    directory: &str,
    job: Job<'_>,
) -> Result<BTreeMap<String, Option<Digest>>, Error> {
    let digest = layer.digest().to_string();
    let unreadable = |source| Error::ReadBlob { digest: digest.clone(), source };
    let mut archive = tar::Archive::new(layer_reader(layer)?);
    let mut found = BTreeMap::new();
    for entry in archive.entries().map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let path = path_in(&entry).map_err(unreadable)?;
        let path = path.as_str();
        let name = match directory {
            "" => Some(path),
            _ => path.strip_prefix(directory).and_then(|rest| rest.strip_prefix('/')),
        };
        let Some(name) = name.filter(|name| !name.is_empty()) else { continue };
        let (folder, file) = match name.split_once('/') {
            Some((TEMPLATES, file)) if !file.is_empty() && !file.contains('/') => (&name[..=TEMPLATES.len()], file),
            Some(_) => continue,
            None => ("", name),
        };
        if let Some(removed) = file.strip_prefix(".wh.") {
            found.insert(format!("{folder}{removed}"), None);
        } else if entry.header().entry_type().is_file() {
            let name = name.to_owned();
            found.insert(name, Some(job.hash(item, entry, unreadable, |_| Ok(()))?.0));
        }
    }
    Ok(found)
}

/// The archive that a layer is, unpacked.
pub(crate) fn layer_reader(layer: &Blob) -> Result<Box<dyn Read>, Error> {
    let unreadable = |source| Error::ReadBlob { digest: layer.digest().to_string(), source };
    unpacked(layer, layer.open_at(0).map_err(unreadable)?)
}

/// The archive that the bytes of a layer are, unpacked.
pub(crate) fn unpacked<'a>(layer: &Blob, raw: impl Read + 'a) -> Result<Box<dyn Read + 'a>, Error> {
    let media_type = layer.media_type().to_string();
    if media_type.ends_with("gzip") {
        Ok(Box::new(MultiGzDecoder::new(io::BufReader::with_capacity(1 << 20, raw))))
    } else if media_type.ends_with("tar") {
        Ok(Box::new(raw))
    } else {
        let source = io::Error::other(format!("layers of type {media_type} can't be read here"));
        Err(Error::ReadBlob { digest: layer.digest().to_string(), source })
    }
}

/// The path of an entry in the image.
pub(crate) fn path_in<R: Read>(entry: &tar::Entry<'_, R>) -> io::Result<String> {
    let path = entry.path()?.to_string_lossy().into_owned();
    Ok(path.trim_start_matches("./").trim_start_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use oci_spec::image::MediaType;

    use super::*;

    #[test]
    fn the_files_of_a_model_are_found_in_any_layer() {
        let mut archive = tar::Builder::new(Vec::new());
        for path in [
            "./weights/config.json",
            "weights/additional_chat_templates/rag.jinja",
            "weights/additional_chat_templates/.wh.tool_use.jinja",
            "weights/additional_chat_templates/x/y.jinja",
            "weights/.wh.tokenizer.json",
            "weights/other/config.json",
            "elsewhere/config.json",
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_size(path.len() as u64);
            archive.append_data(&mut header, path, path.as_bytes()).unwrap();
        }
        let layer = Blob::from_bytes(MediaType::ImageLayer, archive.into_inner().unwrap());
        let job = Job { progress: &|_: crate::Event<'_>| {}, cancelled: &AtomicBool::new(false) };
        let found = contents(0, &layer, "weights", job).unwrap();
        let found: Vec<_> = found.iter().map(|(name, digest)| (&name[..], digest.is_some())).collect();
        assert_eq!(
            found,
            [
                ("additional_chat_templates/rag.jinja", true),
                ("additional_chat_templates/tool_use.jinja", false),
                ("config.json", true),
                ("tokenizer.json", false),
            ]
        );
    }
}
