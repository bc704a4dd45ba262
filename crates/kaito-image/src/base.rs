//! The base of an image, below the weights: an image that somebody else built, nothing at all, or a base of our own, which is
//! this executable with exactly the libraries that it loads, certificates, and a user without privileges.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use goblin::elf::{Elf, header};
use oci_spec::image::Arch;

use crate::{
    Error,
    layer::{Access, Layer, LayerBuilder, SourceFile},
};

/// The user of every image, by number: Kubernetes can tell that it is not root.
pub const USER: u32 = 65532;
/// Where the executable lies in an image.
pub const EXECUTABLE: &str = "usr/local/bin/kaito";
const HOME: &str = "home/kaito";
/// Where most programs look for certificates.
const CERTIFICATES: &str = "etc/ssl/certs/ca-certificates.crt";
/// An executable is read whole to see which libraries it needs.
const MAX_EXECUTABLE: u64 = 2 << 30;

/// The ELF file that an image runs.
#[derive(Debug)]
pub struct Executable {
    file: SourceFile,
    architecture: Arch,
    /// The loader's path and the libraries' files, by their places in the image; none for a static executable.
    libraries: BTreeMap<String, SourceFile>,
    /// Names of what it loads, for messages.
    needs: Vec<String>,
    /// The place of its loader in the image.
    loader: Option<String>,
}

impl Executable {
    /// Reads which libraries the executable at `path` needs and finds them as its loader would.
    ///
    /// # Errors
    /// When it is no Linux executable, or a library is not there.
    pub fn inspect(path: &Path) -> Result<Self, Error> {
        let object = Object::read(path)?;
        let mut executable = Self {
            file: SourceFile::new(path)?,
            architecture: object.architecture.clone(),
            libraries: BTreeMap::new(),
            needs: object.needed.clone(),
            loader: object.loader.as_deref().map(|loader| in_image(Path::new(loader))),
        };
        let Some(loader) = object.loader.clone() else { return Ok(executable) };
        let search = Search::of_this_machine();
        let mut found: BTreeMap<String, PathBuf> = BTreeMap::new();
        let mut queue: VecDeque<(String, Vec<PathBuf>)> = object.wanted();
        while let Some((name, own)) = queue.pop_front() {
            if found.contains_key(&name) {
                continue;
            }
            let place = search
                .find(&name, &own, &object.architecture)
                .ok_or_else(|| Error::NoLibrary { executable: path.to_owned(), library: name.clone() })?;
            queue.extend(Object::read(&place)?.wanted());
            found.insert(name, place);
        }
        // Everything beside the C library, where its loader looks even without a cache of paths.
        let beside = found.get("libc.so.6").and_then(|path| path.parent()).unwrap_or(Path::new("/lib"));
        let beside = in_image(beside);
        let loader_name = file_name(&loader).to_owned();
        for (name, place) in found {
            // The loader is also listed as a library; it has one place, which the executable names.
            if name != loader_name {
                executable.libraries.insert(format!("{beside}/{name}"), SourceFile::new(place)?);
            }
        }
        executable.libraries.insert(in_image(Path::new(&loader)), SourceFile::new(&loader)?);
        Ok(executable)
    }

    /// Writes what it needs into `folder`, so that it runs in a container of any image of its architecture, with whatever libraries
    /// or none: `ld.so --library-path lib kaito`.
    ///
    /// # Errors
    /// When a file can't be written, or it is linked statically.
    pub fn carry(&self, folder: &Path) -> Result<(), Error> {
        let loader = self.loader.as_ref().and_then(|place| self.libraries.get(place));
        let loader = loader.ok_or_else(|| Error::IsStatic { executable: self.file.path.clone() })?;
        let libraries = self.libraries.iter().filter(|(place, _)| Some(*place) != self.loader.as_ref());
        let libraries = libraries.map(|(place, file)| (format!("lib/{}", file_name(place)), file));
        let own = [("ld.so".to_owned(), loader), ("kaito".to_owned(), &self.file)];
        let lib = folder.join("lib");
        fs::create_dir_all(&lib).map_err(|source| Error::Write { path: lib, source })?;
        for (name, file) in libraries.chain(own) {
            let path = folder.join(&name);
            let aside = path.with_extension("new");
            let copied = fs::copy(&file.path, &aside)
                .and_then(|_| fs::set_permissions(&aside, fs::Permissions::from_mode(0o755)))
                .and_then(|()| fs::rename(&aside, &path));
            copied.map_err(|source| Error::Write { path, source })?;
        }
        Ok(())
    }

    /// The architecture it runs on.
    pub fn architecture(&self) -> &Arch {
        &self.architecture
    }

    /// The executable alone, for a base that has its libraries.
    ///
    /// # Errors
    /// None that the path of the executable could cause.
    pub(crate) fn alone(&self) -> Result<Layer, Error> {
        let mut layer = LayerBuilder::default();
        layer.file(EXECUTABLE, Access::EXECUTE, self.file.clone())?;
        Ok(layer.finish())
    }

    /// The executable alone, for an image without a base.
    pub(crate) fn on_scratch(&self) -> Result<Layer, Error> {
        if !self.libraries.is_empty() {
            return Err(Error::NotStatic { executable: self.file.path.clone(), libraries: self.needs.join(", ") });
        }
        self.alone()
    }

    /// All that is needed to run it.
    pub(crate) fn with_base(&self) -> Result<Layer, Error> {
        let mut layer = LayerBuilder::default();
        let directories = ["etc", "etc/ssl", "etc/ssl/certs", "home", "usr", "usr/local", "usr/local/bin"];
        let libraries = self.libraries.keys().flat_map(|path| ancestors(path));
        let all: std::collections::BTreeSet<String> =
            directories.iter().map(|path| (*path).to_owned()).chain(libraries).collect();
        for path in &all {
            layer.directory(path, Access::EXECUTE)?;
        }
        layer.directory(HOME, Access { mode: 0o755, owner: USER })?;
        layer.directory("tmp", Access { mode: 0o1777, owner: 0 })?;
        layer.bytes("etc/passwd", Access::READ, passwd())?;
        layer.bytes("etc/group", Access::READ, format!("root:x:0:\nkaito:x:{USER}:\n"))?;
        layer.bytes(CERTIFICATES, Access::READ, certificates())?;
        for (place, file) in &self.libraries {
            layer.file(place, Access::EXECUTE, file.clone())?;
        }
        layer.file(EXECUTABLE, Access::EXECUTE, self.file.clone())?;
        Ok(layer.finish())
    }
}

fn passwd() -> String {
    format!("root:x:0:0:root:/root:/sbin/nologin\nkaito:x:{USER}:{USER}:kaito:/{HOME}:/sbin/nologin\n")
}

/// Mozilla's root certificates as PEM: those of the build, not of this machine, so that they are the same everywhere.
fn certificates() -> String {
    let mut text = String::new();
    for certificate in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        let encoded = STANDARD.encode(certificate);
        for line in encoded.as_bytes().chunks(64) {
            text.push_str(&String::from_utf8_lossy(line));
            text.push('\n');
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}

/// `/usr/lib/x` as `usr/lib/x`.
fn in_image(path: &Path) -> String {
    path.to_string_lossy().trim_start_matches('/').to_owned()
}

fn file_name(place: &str) -> &str {
    place.rsplit('/').next().unwrap_or_default()
}

/// `a`, `a/b` for `a/b/c`.
fn ancestors(path: &str) -> impl Iterator<Item = String> + '_ {
    path.match_indices('/').filter_map(|(end, _)| path.get(..end)).map(str::to_owned)
}

/// The facts of an ELF file that matter here.
struct Object {
    architecture: Arch,
    loader: Option<String>,
    needed: Vec<String>,
    /// Directories of its own to look in, `$ORIGIN` resolved.
    search: Vec<PathBuf>,
}

impl Object {
    fn read(path: &Path) -> Result<Self, Error> {
        let file = SourceFile::new(path)?;
        if file.len > MAX_EXECUTABLE {
            return Err(Error::NotAnExecutable {
                path: path.to_owned(),
                reason: format!("it has {} bytes, more than {MAX_EXECUTABLE}", file.len),
            });
        }
        let bytes = fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let refuse = |reason: String| Error::NotAnExecutable { path: path.to_owned(), reason };
        let elf = Elf::parse(&bytes).map_err(|error| refuse(error.to_string()))?;
        let architecture = match (elf.header.e_machine, elf.is_64) {
            (header::EM_X86_64, true) => Arch::Amd64,
            (header::EM_AARCH64, true) => Arch::ARM64,
            (machine, _) => return Err(refuse(format!("machine {machine} of ELF is not supported"))),
        };
        let origin = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let origin = origin.parent().unwrap_or(Path::new("/")).to_string_lossy().into_owned();
        let paths = if elf.runpaths.is_empty() { &elf.rpaths } else { &elf.runpaths };
        let search = paths
            .iter()
            .flat_map(|paths| paths.split(':'))
            .filter(|path| !path.is_empty())
            .map(|path| path.replace("${ORIGIN}", &origin).replace("$ORIGIN", &origin).into())
            .collect();
        Ok(Self {
            architecture,
            loader: elf.interpreter.map(str::to_owned),
            needed: elf.libraries.iter().map(|&name| name.to_owned()).collect(),
            search,
        })
    }

    fn wanted(&self) -> VecDeque<(String, Vec<PathBuf>)> {
        self.needed.iter().map(|name| (name.clone(), self.search.clone())).collect()
    }
}

/// Where the loader of this machine looks for libraries.
struct Search(Vec<PathBuf>);

impl Search {
    fn of_this_machine() -> Self {
        let mut directories = configured(Path::new("/etc/ld.so.conf"), 0);
        let usual = ["/lib64", "/usr/lib64", "/lib", "/usr/lib"];
        let multiarch = ["x86_64", "aarch64"]
            .iter()
            .flat_map(|arch| ["/lib", "/usr/lib"].map(|lib| format!("{lib}/{arch}-linux-gnu")));
        directories.extend(multiarch.chain(usual.map(str::to_owned)).map(PathBuf::from));
        directories.retain(|directory| directory.is_dir());
        Self(directories)
    }

    /// A library of another architecture under the same name is passed over, as the loader does.
    fn find(&self, name: &str, own: &[PathBuf], architecture: &Arch) -> Option<PathBuf> {
        own.iter()
            .chain(&self.0)
            .map(|directory| directory.join(name))
            .find(|path| path.is_file() && Object::read(path).is_ok_and(|object| object.architecture == *architecture))
    }
}

/// Directories of an `ld.so.conf` and of the files that it includes.
fn configured(path: &Path, depth: usize) -> Vec<PathBuf> {
    const DEEPEST: usize = 4;
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut directories = Vec::new();
    for line in text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()) {
        match line.strip_prefix("include ") {
            Some(pattern) if depth < DEEPEST => {
                // In practice `/etc/ld.so.conf.d/*.conf`.
                let pattern = Path::new(pattern.trim());
                let entries = pattern.parent().and_then(|folder| fs::read_dir(folder).ok());
                let mut files: Vec<PathBuf> =
                    entries.into_iter().flatten().flatten().map(|entry| entry.path()).collect();
                files.retain(|file| file.extension() == pattern.extension());
                files.sort();
                directories.extend(files.iter().flat_map(|file| configured(file, depth + 1)));
            }
            None if !line.is_empty() => directories.push(line.into()),
            _ => {}
        }
    }
    directories
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, io::Read, process::Command};

    use super::*;
    use crate::BlobSource;

    /// What the machine's own loader says it would load.
    fn listed_by_the_loader(executable: &Path) -> BTreeSet<String> {
        let output = Command::new("ldd").arg(executable).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let names = text.lines().filter_map(|line| line.split_whitespace().next());
        names
            .filter(|name| !name.starts_with("linux-vdso"))
            .map(|name| name.rsplit('/').next().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn just_the_libraries_that_the_loader_lists() {
        let this = std::env::current_exe().unwrap();
        let executable = Executable::inspect(&this).unwrap();
        let names: BTreeSet<String> =
            executable.libraries.keys().map(|path| path.rsplit('/').next().unwrap().to_owned()).collect();
        assert_eq!(names, listed_by_the_loader(&this));
        assert_eq!(executable.architecture(), &Arch::default());
    }

    #[test]
    fn an_own_base_has_all_that_a_program_wants() {
        let executable = Executable::inspect(&std::env::current_exe().unwrap()).unwrap();
        let mut bytes = Vec::new();
        executable.with_base().unwrap().open_at(0).unwrap().read_to_end(&mut bytes).unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut entries = BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            let (path, header) = (entry.path().unwrap().to_str().unwrap().to_owned(), entry.header());
            // A program that unpacks it has made the folder before.
            let parent = path.trim_end_matches('/').rsplit_once('/').map(|(parent, _)| format!("{parent}/"));
            assert!(parent.is_none_or(|parent| entries.contains_key(&parent)), "{path} comes before its folder");
            entries.insert(path, (header.mode().unwrap(), header.uid().unwrap(), content));
        }
        assert_eq!(entries["tmp/"].0, 0o1777);
        assert_eq!((entries["home/kaito/"].0, entries["home/kaito/"].1), (0o755, 65532));
        assert_eq!(entries[EXECUTABLE].0, 0o755);
        assert!(String::from_utf8_lossy(&entries["etc/passwd"].2).contains("kaito:x:65532:65532:"));
        let certificates = String::from_utf8(entries[CERTIFICATES].2.clone()).unwrap();
        assert!(certificates.matches("BEGIN CERTIFICATE").count() > 100);
        assert!(certificates.lines().all(|line| line.len() <= 64));
    }

    #[test]
    fn what_cannot_run_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("script");
        fs::write(&script, "#!/bin/sh\n").unwrap();
        let truncated = directory.path().join("truncated");
        fs::write(&truncated, &fs::read(std::env::current_exe().unwrap()).unwrap()[..100]).unwrap();
        for path in [&script, &truncated] {
            let error = Executable::inspect(path).unwrap_err();
            assert!(matches!(error, Error::NotAnExecutable { .. }), "{error}");
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
        let executable = Executable::inspect(&std::env::current_exe().unwrap()).unwrap();
        let error = executable.on_scratch().unwrap_err().to_string();
        assert!(error.contains("libc.so.6") && error.contains("--base"), "{error}");
    }
}
