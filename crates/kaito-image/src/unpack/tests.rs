use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use flate2::{Compression, write::GzEncoder};
use oci_spec::image::MediaType;
use tempfile::TempDir;

use super::*;
use crate::BlobSource;

static GOES_ON: AtomicBool = AtomicBool::new(false);

fn job() -> Job<'static> {
    Job { progress: &|_: Event<'_>| {}, cancelled: &GOES_ON }
}

fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        if path.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
        }
        archive.append_data(&mut header, path, content.as_bytes()).unwrap();
    }
    archive.into_inner().unwrap()
}

fn layer(files: &[(&str, &str)]) -> Blob {
    Blob::from_bytes(MediaType::ImageLayer, archive(files))
}

fn image(layers: Vec<Blob>) -> Image {
    let empty = Blob::from_bytes(MediaType::ImageConfig, *b"{}");
    Image { manifest: empty.clone(), config: empty, layers }
}

/// What lies in a folder, by path.
fn contents(folder: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    walk(folder, Path::new(""), &mut |path, _| {
        let name = path.to_str().unwrap().to_owned();
        if name != RECORD {
            found.insert(name, fs::read_to_string(folder.join(path)).unwrap());
        }
        Ok(())
    })
    .unwrap();
    found
}

fn files(files: &[(&str, &str)]) -> BTreeMap<String, String> {
    files.iter().map(|(path, content)| ((*path).to_owned(), (*content).to_owned())).collect()
}

/// A folder that does not exist, in one that does.
fn place() -> (TempDir, PathBuf) {
    let parent = tempfile::tempdir().unwrap();
    let to = parent.path().join("weights");
    (parent, to)
}

fn unpacked_from(layers: Vec<Blob>, directory: &str) -> Result<BTreeMap<String, String>, Error> {
    let (parent, to) = place();
    unpack(&image(layers), "a:1", directory, &to, job())?;
    let beside: Vec<_> = fs::read_dir(parent.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(beside, ["weights"], "nothing is left beside the folder");
    Ok(contents(&to))
}

/// The specification of image layers says what files with these names mean.
#[test]
fn upper_layers_hide_and_take_away_what_lower_ones_have() {
    let lower = || {
        layer(&[
            ("./models/w/a", "old"),
            ("models/w/x/b", "b"),
            ("models/w/x/y/c", "c"),
            ("models/database/d", "no"),
            ("e", "no"),
        ])
    };
    let all = [("a", "old"), ("x/b", "b"), ("x/y/c", "c")];
    for (upper, expected) in [
        (&[][..], &all[..]),
        (&[("models/w/a", "new")], &[("a", "new"), ("x/b", "b"), ("x/y/c", "c")]),
        (&[("models/w/.wh.a", "")], &[("x/b", "b"), ("x/y/c", "c")]),
        (&[("models/w/.wh.x", "")], &[("a", "old")]),
        (&[("models/w/x/.wh.y", "")], &[("a", "old"), ("x/b", "b")]),
        (&[("models/w/x/.wh..wh..opq", ""), ("models/w/x/n", "n")], &[("a", "old"), ("x/n", "n")]),
        (&[("models/w/x/n", "n"), ("models/w/x/.wh..wh..opq", "")], &[("a", "old"), ("x/n", "n")]),
        (&[("models/w/.wh..wh..opq", ""), ("models/w/a", "new")], &[("a", "new")]),
        (&[("models/.wh.w", ""), ("models/w/n", "n")], &[("n", "n")]),
        (&[("models/.wh..wh..opq", ""), ("models/w/n", "n")], &[("n", "n")]),
        (&[(".wh.models", ""), ("models/w/n", "n")], &[("n", "n")]),
        // A file where a folder was, and the other way round.
        (&[("models/w/.wh.x", ""), ("models/w/x", "file")], &[("a", "old"), ("x", "file")]),
        (&[("models/w/.wh.a", ""), ("models/w/a/b", "b")], &[("a/b", "b"), ("x/b", "b"), ("x/y/c", "c")]),
        // Not in the folder.
        (&[("models/.wh.database", ""), (".wh.e", ""), ("models/wo/f", "no")], &all),
    ] {
        assert_eq!(unpacked_from(vec![lower(), layer(upper)], "/models/w/").unwrap(), files(expected), "{upper:?}");
    }
}

#[test]
fn compressed_layers_and_the_same_layer_twice_are_read() {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(&archive(&[("weights/", ""), ("weights/a", "a")])).unwrap();
    let packed = Blob::from_bytes(MediaType::ImageLayerGzip, packed.finish().unwrap());
    let layers = vec![packed.clone(), layer(&[("weights/b", "b")]), packed];
    assert_eq!(unpacked_from(layers, "weights").unwrap(), files(&[("a", "a"), ("b", "b")]));
}

#[test]
fn second_names_of_a_file_are_files_and_other_links_are_left_out() {
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.set_entry_type(tar::EntryType::Link);
    let mut links = tar::Builder::new(Vec::new());
    let mut file = tar::Header::new_gnu();
    file.set_size(1);
    links.append_data(&mut file, "weights/a", &b"a"[..]).unwrap();
    links.append_link(&mut header, "weights/b", "weights/a").unwrap();
    header.set_entry_type(tar::EntryType::Symlink);
    links.append_link(&mut header, "weights/c", "/etc/passwd").unwrap();
    let layer = Blob::from_bytes(MediaType::ImageLayer, links.into_inner().unwrap());
    assert_eq!(unpacked_from(vec![layer], "weights").unwrap(), files(&[("a", "a"), ("b", "a")]));
}

#[test]
fn no_entry_leads_out_of_the_folder() {
    let named = |name: &str, link: Option<&str>| {
        let mut header = tar::Header::new_gnu();
        let field = &mut header.as_gnu_mut().unwrap().name;
        field[..name.len()].copy_from_slice(name.as_bytes());
        if let Some(link) = link {
            header.set_entry_type(tar::EntryType::Link);
            header.set_link_name(link).unwrap();
        }
        header.set_size(0);
        header.set_cksum();
        let mut archive = tar::Builder::new(Vec::new());
        archive.append(&header, io::empty()).unwrap();
        Blob::from_bytes(MediaType::ImageLayer, archive.into_inner().unwrap())
    };
    for (name, link) in [
        ("weights/../../b", None),
        ("weights/../../.wh.b", None),
        ("weights/.wh...", None),
        ("weights/a", Some("etc/passwd")),
        ("weights/a", Some("weights/../../b")),
    ] {
        let error = unpacked_from(vec![named(name, link)], "weights").unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("leads out of the folder") || cause.contains("which is elsewhere"), "{name}: {cause}");
    }
}

/// A layer that counts how often it is read, and breaks while it is told to.
#[derive(Debug, Clone)]
struct Watched {
    bytes: Arc<[u8]>,
    reads: Arc<AtomicUsize>,
    breaks: Arc<AtomicBool>,
}

impl Watched {
    fn of(files: &[(&str, &str)]) -> Self {
        Self { bytes: archive(files).into(), reads: Arc::default(), breaks: Arc::default() }
    }

    fn blob(&self) -> Blob {
        let same = Blob::from_bytes(MediaType::ImageLayer, self.bytes.to_vec());
        Blob::new(same.descriptor().clone(), self.clone())
    }

    fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }
}

impl BlobSource for Watched {
    fn open_at(&self, _: u64) -> io::Result<Box<dyn Read + Send>> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let bytes = self.bytes.to_vec();
        if self.breaks.load(Ordering::Relaxed) {
            let broken = io::Cursor::new(bytes[..700].to_vec());
            return Ok(Box::new(broken.chain(Broken)));
        }
        Ok(Box::new(io::Cursor::new(bytes)))
    }
}

struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("the connection is gone"))
    }
}

#[test]
fn what_has_arrived_whole_is_not_fetched_again() {
    let (lower, upper) = (Watched::of(&[("weights/a", "aa")]), Watched::of(&[("weights/b", "bb"), ("weights/c", "c")]));
    let image = image(vec![lower.blob(), upper.blob()]);
    let (_parent, to) = place();
    let unpack = || unpack(&image, "a:1", "weights", &to, job());
    upper.breaks.store(true, Ordering::Relaxed);
    let error = unpack().unwrap_err();
    assert!(
        matches!(&error, Error::ReadBlob { digest, .. } if *digest == upper.blob().digest().to_string()),
        "{error}"
    );
    assert!(!to.exists(), "a folder that is there is whole");
    // Perhaps the one that broke came first, and the other one was not begun.
    let read = lower.reads();
    upper.breaks.store(false, Ordering::Relaxed);
    let unpacked = unpack().unwrap();
    assert_eq!(lower.reads(), 1, "{read} before");
    assert_eq!(upper.reads(), 2);
    assert_eq!(contents(&to), files(&[("a", "aa"), ("b", "bb"), ("c", "c")]));
    assert_eq!(Unpacked::found(&to), Some(unpacked));
}

#[test]
fn another_image_replaces_a_folder_of_this_kind_and_nothing_else() {
    let (_parent, to) = place();
    let of = |file: &str| image(vec![layer(&[(format!("weights/{file}").as_str(), "1")])]);
    unpack(&of("old"), "a:1", "weights", &to, job()).unwrap();
    unpack(&of("new"), "a:2", "weights", &to, job()).unwrap();
    assert_eq!(contents(&to), files(&[("new", "1")]));
    assert_eq!(Unpacked::found(&to).unwrap().image, "a:2");
    fs::remove_file(to.join(RECORD)).unwrap();
    let error = unpack(&of("old"), "a:1", "weights", &to, job()).unwrap_err();
    assert!(matches!(error, Error::FolderInTheWay { .. }), "{error}");
    assert_eq!(contents(&to), files(&[("new", "1")]));
    let (_parent, to) = place();
    fs::create_dir(&to).unwrap();
    unpack(&of("new"), "a:2", "weights", &to, job()).unwrap();
    let (_parent, to) = place();
    let error = unpack(&of("new"), "a:2", "data", &to, job()).unwrap_err();
    assert!(error.to_string().ends_with("has no files in /data"), "{error}");
    assert!(!to.exists());
    // What was read for another folder of it says nothing of this one.
    unpack(&of("new"), "a:2", "weights", &to, job()).unwrap();
    assert_eq!(contents(&to), files(&[("new", "1")]));
}

#[test]
fn a_folder_of_this_machine_is_copied_file_by_file() {
    let from = tempfile::tempdir().unwrap();
    fs::create_dir(from.path().join("templates")).unwrap();
    fs::write(from.path().join("templates/rag.jinja"), "{{ a }}").unwrap();
    fs::write(from.path().join("a.bin"), "abc").unwrap();
    std::os::unix::fs::symlink("a.bin", from.path().join("b.bin")).unwrap();
    std::os::unix::fs::symlink("gone", from.path().join("c.bin")).unwrap();
    let expected = files(&[("a.bin", "abc"), ("b.bin", "abc"), ("templates/rag.jinja", "{{ a }}")]);
    let (_parent, to) = place();
    // What an interrupted copy left: a file has its name once all of it was copied.
    let whole = to.with_file_name(".weights.partial").join("whole");
    let left = |path: &str| {
        fs::create_dir_all(&whole).unwrap();
        fs::write(whole.join("a.bin"), "abc").unwrap();
        let source = Unpacked { image: "/".to_owned(), digest: String::new(), path: path.to_owned() };
        write_record(&whole.with_file_name(SOURCE), &source).unwrap();
    };
    let skipped = AtomicUsize::new(0);
    let count = |event: Event<'_>| {
        if let Event::Skipped { .. } = event {
            skipped.fetch_add(1, Ordering::Relaxed);
        }
    };
    for (path, there) in [(from.path().to_str().unwrap(), 1), ("/another", 0)] {
        left(path);
        skipped.store(0, Ordering::Relaxed);
        copy_folder(from.path(), &to, Job { progress: &count, cancelled: &GOES_ON }).unwrap();
        assert_eq!(skipped.load(Ordering::Relaxed), there, "what was copied of {path}");
    }
    assert_eq!(contents(&to), expected);
    let error = copy_folder(Path::new("/no/such/folder"), &place().1, job()).unwrap_err();
    assert!(error.to_string().contains("/no/such/folder"), "{error}");
}
