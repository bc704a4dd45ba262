//! Layers: tar archives that are described instead of being held in memory or on disk.
//!
//! A layer is a list of segments: headers and padding are in memory, contents stay in their files. The same contents give the
//! same bytes whenever and wherever they are packed, since nothing else of a file is used: times are zero, and owner, mode and
//! order are chosen here.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::PathBuf,
    sync::Arc,
    time::SystemTime,
};

use tar::{EntryType, Header};

use crate::{BlobSource, Error};

/// A tar archive consists of blocks of this size; two empty ones end it.
const BLOCK: u64 = 512;

/// Where a file is, and what shows that it was changed: its length and its time of modification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its length in bytes.
    pub len: u64,
    modified: Option<SystemTime>,
}

impl SourceFile {
    /// Looks at the file; links are followed.
    ///
    /// # Errors
    /// When it is not there, or is no regular file.
    pub fn new(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => {
                Ok(Self { len: metadata.len(), modified: metadata.modified().ok(), path })
            }
            Ok(_) => Err(Error::NotAFile { path }),
            Err(source) => Err(Error::Read { path, source }),
        }
    }

    fn open(&self, offset: u64) -> io::Result<File> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", self.path.display()));
        let mut file = File::open(&self.path).map_err(named)?;
        let metadata = file.metadata().map_err(named)?;
        if metadata.len() != self.len || metadata.modified().ok() != self.modified {
            let reason = format!("{} has changed since the image was begun", self.path.display());
            return Err(io::Error::other(reason));
        }
        file.seek(SeekFrom::Start(offset)).map_err(named)?;
        Ok(file)
    }
}

/// Who owns an entry, and what may be done with it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Access {
    pub mode: u32,
    /// User and group.
    pub owner: u32,
}

impl Access {
    pub const READ: Self = Self { mode: 0o644, owner: 0 };
    pub const EXECUTE: Self = Self { mode: 0o755, owner: 0 };
}

/// A layer that is being described.
#[derive(Debug, Default)]
pub(crate) struct LayerBuilder {
    segments: Vec<Segment>,
}

impl LayerBuilder {
    pub fn directory(&mut self, path: &str, access: Access) -> Result<(), Error> {
        self.header(&format!("{path}/"), EntryType::Directory, access, 0)
    }

    pub fn bytes(&mut self, path: &str, access: Access, content: impl Into<Vec<u8>>) -> Result<(), Error> {
        let content = content.into();
        let len = content.len() as u64;
        self.header(path, EntryType::Regular, access, len)?;
        self.segments.push(Segment::Bytes(content.into()));
        self.pad(len);
        Ok(())
    }

    pub fn file(&mut self, path: &str, access: Access, file: SourceFile) -> Result<(), Error> {
        let len = file.len;
        self.header(path, EntryType::Regular, access, len)?;
        self.segments.push(Segment::File(file));
        self.pad(len);
        Ok(())
    }

    pub fn finish(mut self) -> Layer {
        self.segments.push(Segment::Bytes(vec![0; 2 * BLOCK as usize].into()));
        let size = self.segments.iter().map(Segment::len).sum();
        Layer { segments: self.segments.into(), size }
    }

    fn header(&mut self, path: &str, kind: EntryType, access: Access, len: u64) -> Result<(), Error> {
        let header =
            header(path, kind, access, len).map_err(|source| Error::EntryName { path: path.to_owned(), source })?;
        self.segments.push(Segment::Bytes(header.into()));
        Ok(())
    }

    fn pad(&mut self, len: u64) {
        let padding = len.next_multiple_of(BLOCK) - len;
        if padding > 0 {
            self.segments.push(Segment::Bytes(vec![0; padding as usize].into()));
        }
    }
}

/// An entry's header, with whatever a long name needs before it. A size that octal digits can't hold is written in
/// base 256, as GNU tar does.
pub(crate) fn header(path: &str, kind: EntryType, access: Access, len: u64) -> io::Result<Vec<u8>> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(access.mode);
    header.set_uid(access.owner.into());
    header.set_gid(access.owner.into());
    header.set_mtime(0);
    header.set_size(len);
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_data(&mut header, path, io::empty())?;
    // Without the end that `into_inner` would write.
    Ok(std::mem::take(builder.get_mut()))
}

/// A tar archive, described.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    segments: Arc<[Segment]>,
    size: u64,
}

impl Layer {
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl BlobSource for Layer {
    fn open_at(&self, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        let mut start = 0;
        for (next, segment) in self.segments.iter().enumerate() {
            if offset < start + segment.len() {
                let current = segment.open_at(offset - start)?;
                return Ok(Box::new(LayerReader { segments: self.segments.clone(), next: next + 1, current }));
            }
            start += segment.len();
        }
        Ok(Box::new(io::empty()))
    }
}

#[derive(Debug)]
enum Segment {
    Bytes(Arc<[u8]>),
    File(SourceFile),
}

impl Segment {
    fn len(&self) -> u64 {
        match self {
            Segment::Bytes(bytes) => bytes.len() as u64,
            Segment::File(file) => file.len,
        }
    }

    fn open_at(&self, offset: u64) -> io::Result<Open> {
        Ok(match self {
            Segment::Bytes(bytes) => {
                let mut cursor = io::Cursor::new(bytes.clone());
                cursor.set_position(offset);
                Open::Bytes(cursor)
            }
            Segment::File(file) => {
                Open::File { file: file.open(offset)?, left: file.len - offset, path: file.path.clone() }
            }
        })
    }
}

enum Open {
    Bytes(io::Cursor<Arc<[u8]>>),
    File { file: File, left: u64, path: PathBuf },
}

impl Read for Open {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Open::Bytes(bytes) => bytes.read(buffer),
            Open::File { left: 0, .. } => Ok(0),
            Open::File { file, left, path } => {
                let wanted = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
                let read = file
                    .read(&mut buffer[..wanted])
                    .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
                if read == 0 && wanted > 0 {
                    let reason = format!("{} became shorter by {left} bytes while it was read", path.display());
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, reason));
                }
                *left -= read as u64;
                Ok(read)
            }
        }
    }
}

struct LayerReader {
    segments: Arc<[Segment]>,
    next: usize,
    current: Open,
}

impl Read for LayerReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.current.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            let Some(segment) = self.segments.get(self.next) else { return Ok(0) };
            self.current = segment.open_at(0)?;
            self.next += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn bytes(layer: &Layer, offset: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        layer.open_at(offset).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn sample(directory: &Path, content: &[u8], long: &str) -> Layer {
        let path = directory.join("file");
        fs::write(&path, content).unwrap();
        let mut builder = LayerBuilder::default();
        builder.directory("models", Access::EXECUTE).unwrap();
        builder.file("models/weights", Access::READ, SourceFile::new(&path).unwrap()).unwrap();
        builder.bytes(long, Access { mode: 0o600, owner: 65532 }, *b"abc").unwrap();
        builder.finish()
    }

    #[test]
    fn other_tools_read_what_was_described() {
        let directory = tempfile::tempdir().unwrap();
        let content = vec![7; 1000];
        let long = format!("models/{}", "long".repeat(60));
        let layer = sample(directory.path(), &content, &long);
        let whole = bytes(&layer, 0);
        assert_eq!(whole.len() as u64, layer.size());
        assert!(layer.size().is_multiple_of(BLOCK));
        let mut archive = tar::Archive::new(whole.as_slice());
        let mut found = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            let header = entry.header();
            assert_eq!(header.mtime().unwrap(), 0);
            found.push((
                entry.path().unwrap().to_str().unwrap().to_owned(),
                header.mode().unwrap(),
                header.uid().unwrap(),
                header.gid().unwrap(),
                content,
            ));
        }
        assert_eq!(
            found,
            [
                ("models/".to_owned(), 0o755, 0, 0, vec![]),
                ("models/weights".to_owned(), 0o644, 0, 0, content),
                (long, 0o600, 65532, 65532, b"abc".to_vec()),
            ]
        );
    }

    /// Times, names of folders and who owns the files do not get in.
    #[test]
    fn the_same_files_give_the_same_bytes() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = sample(one.path(), b"content", "x");
        let second = sample(other.path(), b"content", "x");
        assert_eq!(bytes(&first, 0), bytes(&second, 0));
    }

    /// Meta's files of 13 GB are longer than eleven octal digits can say.
    #[test]
    fn a_file_of_more_than_eight_gibibytes_keeps_its_size() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("consolidated.00.pth");
        let size = 13_016_334_699;
        File::create(&path).unwrap().set_len(size).unwrap();
        let mut builder = LayerBuilder::default();
        builder.file("consolidated.00.pth", Access::READ, SourceFile::new(&path).unwrap()).unwrap();
        let layer = builder.finish();
        assert_eq!(layer.size(), BLOCK + size.next_multiple_of(BLOCK) + 2 * BLOCK);
        let mut begin = [0; BLOCK as usize];
        layer.open_at(0).unwrap().read_exact(&mut begin).unwrap();
        // POSIX leaves it open; GNU tar: the first bit is set, the rest is the number, big-endian.
        assert_eq!(begin[124], 0x80);
        assert_eq!(begin[128..136], size.to_be_bytes());
        assert_eq!(bytes(&layer, layer.size() - 2 * BLOCK - 10), vec![0; 2 * BLOCK as usize + 10]);
    }

    #[test]
    fn a_file_that_changes_meanwhile_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let layer = sample(directory.path(), &[1; 5000], "x");
        let path = directory.path().join("file");
        let mut reader = layer.open_at(0).unwrap();
        let mut begin = vec![0; 2000];
        reader.read_exact(&mut begin).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(2000).unwrap();
        let error = reader.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(error.to_string().contains("became shorter"), "{error}");
        // The directory's header comes first, then the file is opened.
        let error = layer.open_at(0).unwrap().read_to_end(&mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("has changed"), "{error}");
        fs::remove_file(&path).unwrap();
        assert!(layer.open_at(1024).is_err_and(|error| error.to_string().contains(path.to_str().unwrap())));
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(SourceFile::new(directory.path()), Err(Error::NotAFile { .. })));
        assert!(matches!(SourceFile::new(directory.path().join("no")), Err(Error::Read { .. })));
    }

    proptest! {
        #[test]
        fn reading_from_any_place_gives_the_rest(content in proptest::collection::vec(any::<u8>(), 0..3000), at in 0_u64..8000) {
            let directory = tempfile::tempdir().unwrap();
            let layer = sample(directory.path(), &content, "x");
            let whole = bytes(&layer, 0);
            let rest = whole.get(at as usize..).unwrap_or_default();
            prop_assert_eq!(bytes(&layer, at), rest);
        }
    }
}
