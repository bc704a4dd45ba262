//! Copies files out of an image, as an init container does with `cp`.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::Path,
};

use crate::{
    Blob, Error, Image, Item, Job,
    job::to,
    verify::{layer_reader, path_in},
};

/// The largest file that is copied.
const MAX_FILE: u64 = 64 << 30;

/// Writes those of `names` that are files of the image's folder `directory` into the folder `into`, which exists, and says which. An
/// upper layer's file hides a lower one's, and what it takes away is not there.
///
/// Every layer is read to its end, and so compared with its digest if it comes from a registry; that must not happen on a thread of
/// an asynchronous runtime.
///
/// # Errors
/// When a layer can't be read or a file can't be written.
pub(crate) fn extract(
    image: &Image,
    directory: &str,
    names: &[&'static str],
    into: &Path,
    job: Job<'_>,
) -> Result<BTreeSet<&'static str>, Error> {
    // One layer after the other, for their order decides what hides what.
    let size = image.layers.iter().map(Blob::size).sum();
    let whole = Item { name: format!("/{directory}"), size };
    let found = job.each("reading", &[whole], |item| {
        let mut found = BTreeSet::new();
        for layer in &image.layers {
            job.check()?;
            from_layer(item, layer, directory, names, into, job, &mut found)?;
        }
        Ok(found)
    })?;
    Ok(found.into_iter().flatten().collect())
}

fn from_layer(
    item: usize,
    layer: &Blob,
    directory: &str,
    names: &[&'static str],
    into: &Path,
    job: Job<'_>,
    found: &mut BTreeSet<&'static str>,
) -> Result<(), Error> {
    let digest = layer.digest().to_string();
    let unreadable = |source| Error::ReadBlob { digest: digest.clone(), source };
    let mut archive = tar::Archive::new(layer_reader(layer)?);
    // A layer takes away what is below it, wherever in it that is said.
    let mut own = BTreeSet::new();
    for entry in archive.entries().map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let path = path_in(&entry).map_err(unreadable)?;
        let all_removed = path == format!(".wh.{directory}") || path == format!("{directory}/.wh..wh..opq");
        let inner = path.strip_prefix(directory).and_then(|rest| rest.strip_prefix('/')).unwrap_or_default();
        let removed = inner.strip_prefix(".wh.");
        for name in names.iter().filter(|name| all_removed || removed == Some(**name)) {
            if !own.contains(name) && found.remove(name) {
                let path = into.join(name);
                fs::remove_file(&path).map_err(|source| Error::Write { path, source })?;
            }
        }
        let Some(name) = names.iter().find(|name| **name == inner) else { continue };
        if !entry.header().entry_type().is_file() {
            continue;
        }
        if entry.size() > MAX_FILE {
            return Err(Error::BlobTooLarge { digest, size: entry.size(), limit: MAX_FILE });
        }
        let path = into.join(name);
        let failed = |source| Error::Write { path: path.clone(), source };
        let mut file = File::create(&path).map_err(failed)?;
        job.hash(item, entry, unreadable, to(&mut file, failed))?;
        found.insert(*name);
        own.insert(*name);
    }
    // The digest is compared where the bytes end.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(unreadable)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use oci_spec::image::MediaType;

    use super::*;

    const NAMES: [&str; 2] = ["a.json", "b.bin"];

    fn layer(files: &[(&str, &str)]) -> Blob {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            archive.append_data(&mut header, path, content.as_bytes()).unwrap();
        }
        Blob::from_bytes(MediaType::ImageLayer, archive.into_inner().unwrap())
    }

    /// What is found, with its contents.
    fn extracted(layers: Vec<Blob>) -> Vec<(&'static str, String)> {
        let into = tempfile::tempdir().unwrap();
        let empty = Blob::from_bytes(MediaType::ImageConfig, *b"{}");
        let image = Image { manifest: empty.clone(), config: empty, layers };
        let cancelled = AtomicBool::new(false);
        let job = Job { progress: &|_: crate::Event<'_>| {}, cancelled: &cancelled };
        let found = extract(&image, "data", &NAMES, into.path(), job).unwrap();
        assert_eq!(fs::read_dir(into.path()).unwrap().count(), found.len());
        found.into_iter().map(|name| (name, fs::read_to_string(into.path().join(name)).unwrap())).collect()
    }

    #[test]
    fn files_come_from_the_uppermost_layer_that_has_them() {
        let lower =
            || layer(&[("./data/a.json", "old"), ("data/b.bin", "b"), ("data/c", "c"), ("a.json", "elsewhere")]);
        let b = ("b.bin", "b".to_owned());
        for (upper, expected) in [
            (&[][..], vec![("a.json", "old".to_owned()), b.clone()]),
            (&[("data/a.json", "new")], vec![("a.json", "new".to_owned()), b.clone()]),
            (&[("data/.wh.a.json", "")], vec![b.clone()]),
            (&[("data/.wh..wh..opq", ""), ("data/a.json", "new")], vec![("a.json", "new".to_owned())]),
            (&[("data/a.json", "new"), ("data/.wh..wh..opq", "")], vec![("a.json", "new".to_owned())]),
            (&[(".wh.data", "")], vec![]),
            // Deeper, or beside it.
            (&[("data/x/a.json", "no"), ("database/a.json", "no")], vec![("a.json", "old".to_owned()), b]),
        ] {
            assert_eq!(extracted(vec![lower(), layer(upper)]), expected, "{upper:?}");
        }
    }

    #[test]
    fn links_are_not_followed() {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        archive.append_link(&mut header, "data/a.json", "/etc/passwd").unwrap();
        let layer = Blob::from_bytes(MediaType::ImageLayer, archive.into_inner().unwrap());
        assert_eq!(extracted(vec![layer]), []);
    }
}
