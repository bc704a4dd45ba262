//! Which programs an image has, by the names of its files.

use std::{collections::BTreeSet, io};

use tar::EntryType;

use crate::{
    Blob, Error, Image, Item, Job,
    verify::{layer_reader, path_in},
};

/// Folders of programs in common images, as `PATH` has them.
const FOLDERS: [&str; 6] = ["usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin"];
/// The shell that an init container of a workspace starts, and where it lies once `bin` is a link.
const SHELL: [&str; 2] = ["bin/sh", "usr/bin/sh"];
/// What that shell starts to copy an adapter out of its image.
const COPYING: [&str; 2] = ["mkdir", "cp"];

/// Checks that the base with this name has what an init container of a workspace starts to copy an adapter out of the image.
///
/// Every layer is read, which must not happen on a thread of an asynchronous runtime.
///
/// # Errors
/// When a program is missing, or a layer can't be read.
pub fn check_copies_itself(name: &str, image: &Image, job: Job<'_>) -> Result<(), Error> {
    let size = image.layers.iter().map(Blob::size).sum();
    let whole = Item { name: name.to_owned(), size };
    let programs = job.each("looking for a shell", &[whole], |_| programs(image, job))?;
    let programs: BTreeSet<String> = programs.into_iter().flatten().collect();
    let [shell, behind_link] = SHELL.map(|path| programs.contains(path));
    let has_shell = shell || (behind_link && programs.contains("bin"));
    let has = |program: &str| FOLDERS.iter().any(|folder| programs.contains(&format!("{folder}/{program}")));
    let missing: Vec<&str> = (!has_shell)
        .then_some("/bin/sh")
        .into_iter()
        .chain(COPYING.into_iter().filter(|program| !has(program)))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::NoPrograms { base: name.to_owned(), missing: missing.join(", ") })
}

/// Paths of the programs, and `bin` where that is a link to `usr/bin`, as in Debian.
fn programs(image: &Image, job: Job<'_>) -> Result<BTreeSet<String>, Error> {
    let mut programs = BTreeSet::new();
    for layer in &image.layers {
        let unreadable = |source| Error::ReadBlob { digest: layer.digest().to_string(), source };
        let mut archive = tar::Archive::new(layer_reader(layer)?);
        // A layer takes away what is below it, wherever in it that is said.
        let mut added = Vec::new();
        for entry in archive.entries().map_err(unreadable)? {
            job.check()?;
            let entry = entry.map_err(unreadable)?;
            let path = path_in(&entry).map_err(unreadable)?;
            let (folder, file) = path.rsplit_once('/').unwrap_or(("", &path));
            if file == ".wh..wh..opq" {
                remove_below(&mut programs, folder);
            } else if let Some(removed) = file.strip_prefix(".wh.") {
                let removed = if folder.is_empty() { removed.to_owned() } else { format!("{folder}/{removed}") };
                programs.remove(&removed);
                remove_below(&mut programs, &removed);
            } else if matters(folder, file, entry.header().entry_type()) {
                added.push(path);
            }
        }
        programs.extend(added);
        // The digest is compared where the bytes end.
        io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(unreadable)?;
    }
    Ok(programs)
}

fn matters(folder: &str, file: &str, kind: EntryType) -> bool {
    if folder.is_empty() { file == "bin" && kind.is_symlink() } else { FOLDERS.contains(&folder) && !kind.is_dir() }
}

fn remove_below(programs: &mut BTreeSet<String>, folder: &str) {
    programs.retain(|path| !path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/')));
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use oci_spec::image::MediaType;

    use super::*;

    /// A layer with these files, or links where the name has an arrow.
    fn layer(paths: &[&str]) -> Blob {
        let mut archive = tar::Builder::new(Vec::new());
        for path in paths {
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            match path.split_once(" -> ") {
                Some((path, target)) => {
                    header.set_entry_type(EntryType::Symlink);
                    archive.append_link(&mut header, path, target).unwrap();
                }
                None => archive.append_data(&mut header, path, &b""[..]).unwrap(),
            }
        }
        Blob::from_bytes(MediaType::ImageLayer, archive.into_inner().unwrap())
    }

    fn checked(layers: &[&[&str]]) -> Result<(), String> {
        let empty = Blob::from_bytes(MediaType::ImageConfig, *b"{}");
        let image =
            Image { manifest: empty.clone(), config: empty, layers: layers.iter().map(|paths| layer(paths)).collect() };
        let cancelled = AtomicBool::new(false);
        let job = Job { progress: &|_: crate::Event<'_>| {}, cancelled: &cancelled };
        check_copies_itself("base:v1", &image, job).map_err(|error| error.to_string())
    }

    #[test]
    fn a_base_has_a_shell_and_what_it_starts() {
        let busybox =
            ["bin/busybox", "bin/sh -> /bin/busybox", "./bin/cp -> /bin/busybox", "bin/mkdir -> /bin/busybox"];
        let debian = ["bin -> usr/bin", "usr/bin/sh -> dash", "usr/bin/dash", "usr/bin/cp", "usr/bin/mkdir"];
        assert_eq!(checked(&[&busybox]), Ok(()));
        assert_eq!(checked(&[&debian]), Ok(()));
        assert_eq!(checked(&[&["usr/bin/cp", "usr/local/bin/mkdir"], &["bin/sh"]]), Ok(()));
        assert_eq!(checked(&[&["bin/sh"], &["bin/.wh.sh", "bin/sh", "bin/cp", "bin/mkdir"]]), Ok(()), "replaced");
        for (layers, missing) in [
            (&[][..], "/bin/sh, mkdir, cp"),
            (&[&["usr/local/bin/kaito"][..]], "/bin/sh, mkdir, cp"),
            // Of which the shell is elsewhere.
            (&[&["busybox/sh", "busybox/cp", "busybox/mkdir"]], "/bin/sh, mkdir, cp"),
            (&[&["usr/bin/sh", "usr/bin/cp", "usr/bin/mkdir"]], "/bin/sh"),
            (&[&busybox, &["bin/.wh.cp"]], "cp"),
            (&[&busybox, &["bin/.wh..wh..opq", "bin/sh"]], "mkdir, cp"),
            (&[&debian, &[".wh.usr"]], "/bin/sh, mkdir, cp"),
        ] {
            let error = checked(layers).unwrap_err();
            assert!(
                error.contains(&format!("base:v1 has no {missing}: ")) && error.contains("--base scratch"),
                "{error}"
            );
        }
    }
}
