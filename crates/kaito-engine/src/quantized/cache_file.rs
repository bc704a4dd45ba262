//! A file of quantised weights.
//!
//! ```text
//! "KAITO-QW"  version: u32  matrices: u32  key: [u8; 32]  CRC-32 of each matrix: [u32]  CRC-32 of all before: u32
//! the matrices, each at a multiple of 64 bytes, the first at a multiple of 4096
//! ```
//!
//! Numbers are little-endian. Where a matrix lies follows from the shapes of the model, which the key stands for; so
//! nothing that is read decides how much is read. Several programs may share a folder, on several machines too: each writes
//! under a name that no other has, and what has the file's own name is whole and on the disk. A program that wrote
//! a file uses what it wrote, whatever others rename meanwhile.

use std::{
    fmt::Write as _,
    fs::{self, File},
    hash::{BuildHasher, RandomState},
    io::{self, Seek, SeekFrom, Write},
    ops::Range,
    path::{Path, PathBuf},
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use kaito_kernels::{MappedFile, Quantization, ThreadPool};

use super::{Matrix, key::KEY_BYTES};
use kaito_model::checkpoint::SharedBytes;

const MAGIC: &[u8; 8] = b"KAITO-QW";
/// Of the file and of the layout of its matrices: what an older program wrote is made again.
const VERSION: u32 = 2;
const MATRIX_ALIGNMENT: usize = 64;
const HEADER_ALIGNMENT: usize = 4096;
/// A file that is being written is that of a program which has ended if nobody wrote to it for so long.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Where the matrices lie.
pub(super) struct Layout {
    matrices: Vec<Range<usize>>,
    len: usize,
}

impl Layout {
    pub(super) fn of(matrices: &[Matrix]) -> Self {
        let mut at = header_bytes(matrices.len()).next_multiple_of(HEADER_ALIGNMENT);
        let place = |matrix: &Matrix| {
            let range = at..at + matrix.bytes;
            at = range.end.next_multiple_of(MATRIX_ALIGNMENT);
            range
        };
        let matrices: Vec<_> = matrices.iter().map(place).collect();
        Self { len: matrices.last().map_or(at, |last| last.end), matrices }
    }
}

/// The version that a file says it has, if it is such a file at all.
fn version(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.strip_prefix(MAGIC)?.first_chunk()?))
}

fn header_bytes(matrices: usize) -> usize {
    MAGIC.len() + 4 + 4 + KEY_BYTES + 4 * matrices + 4
}

pub(super) struct CacheFile<'a> {
    path: PathBuf,
    key: [u8; KEY_BYTES],
    layout: &'a Layout,
}

impl<'a> CacheFile<'a> {
    pub(super) fn new(
        folder: &Path,
        family: &str,
        quantization: Quantization,
        key: [u8; KEY_BYTES],
        layout: &'a Layout,
    ) -> Self {
        let mut name = format!("{family}-{quantization}-");
        for byte in &key[..12] {
            // Writing to a string does not fail.
            let _ = write!(name, "{byte:02x}");
        }
        Self { path: folder.join(name), key, layout }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Maps the file and, if its memory is to be filled, checks every matrix on the way. `None` if there is no such file.
    pub(super) fn open(
        &self,
        pool: &ThreadPool,
        whole: bool,
        progress: &(dyn Fn(f32) + Sync),
    ) -> io::Result<Option<Vec<SharedBytes>>> {
        match self.map(&self.path, pool, whole, progress) {
            Ok(data) => Ok(Some(data)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn map(
        &self,
        path: &Path,
        pool: &ThreadPool,
        whole: bool,
        progress: &(dyn Fn(f32) + Sync),
    ) -> io::Result<Vec<SharedBytes>> {
        let file = Arc::new(MappedFile::open(path)?);
        let sums = self.read_header(&file)?;
        if whole {
            let (sound, done) = (AtomicBool::new(true), AtomicUsize::new(0));
            pool.for_each(sums.len(), &|i| {
                let range = self.layout.matrices[i].clone();
                file.populate(range.start, range.len());
                if crc32fast::hash(&file.bytes()[range]) != sums[i] {
                    sound.store(false, Ordering::Relaxed);
                }
                progress((done.fetch_add(1, Ordering::Relaxed) + 1) as f32 / sums.len() as f32);
            });
            if !sound.into_inner() {
                return Err(damaged("a checksum of its weights is wrong"));
            }
        }
        self.share(file)
    }

    fn share(&self, file: Arc<MappedFile>) -> io::Result<Vec<SharedBytes>> {
        let share = |range: &Range<usize>| SharedBytes::mapped(file.clone(), range.clone());
        self.layout.matrices.iter().map(share).collect::<Option<_>>().ok_or_else(|| damaged("it is too short"))
    }

    /// The checksums of the matrices.
    fn read_header(&self, file: &MappedFile) -> io::Result<Vec<u32>> {
        let (bytes, count) = (file.bytes(), self.layout.matrices.len());
        if let Some(version) = version(bytes).filter(|version| *version != VERSION) {
            return Err(damaged(&format!("it is of version {version}, and this program has {VERSION}")));
        }
        if bytes.len() != self.layout.len {
            return Err(damaged(&format!("it has {} bytes and not {}", bytes.len(), self.layout.len)));
        }
        let (header, sum) = bytes[..header_bytes(count)].split_at(header_bytes(count) - 4);
        if crc32fast::hash(header).to_le_bytes() != sum {
            return Err(damaged("the checksum of its header is wrong"));
        }
        let (start, sums) = header.split_at(header.len() - 4 * count);
        if start != self.header_start() {
            return Err(damaged("its header is that of other weights"));
        }
        Ok(sums.as_chunks().0.iter().map(|sum| u32::from_le_bytes(*sum)).collect())
    }

    fn header_start(&self) -> Vec<u8> {
        let count = self.layout.matrices.len() as u32;
        [&MAGIC[..], &VERSION.to_le_bytes(), &count.to_le_bytes(), &self.key].concat()
    }

    /// Writes the file and maps it, as [`Self::open`] does. `fill` is given a function that takes the matrices one after the
    /// other.
    pub(super) fn create(
        &self,
        pool: &ThreadPool,
        whole: bool,
        fill: impl FnOnce(&mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()>,
    ) -> io::Result<Vec<SharedBytes>> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        fs::create_dir_all(folder)?;
        remove_abandoned(folder, &format!(".{name}."));
        let (temporary, file) = new_file(folder, &name)?;
        let data = self.write(file, fill).and_then(|()| self.map(&temporary, pool, whole, &|_| ()));
        let kept = match &data {
            Ok(_) => fs::rename(&temporary, &self.path),
            Err(_) => fs::remove_file(&temporary),
        };
        match (&data, kept) {
            (Ok(_), Ok(())) => sync_folder(folder),
            (Ok(_), Err(error)) => {
                let _ = fs::remove_file(&temporary);
                tracing::warn!(file = %self.path.display(), %error, "the quantised weights can't be kept for the next start");
            }
            // What can't be removed is removed by a later start.
            (Err(_), _) => {}
        }
        data
    }

    fn write(
        &self,
        mut file: File,
        fill: impl FnOnce(&mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut header = self.header_start();
        let mut places = self.layout.matrices.iter();
        fill(&mut |bytes| {
            let place = places.next().filter(|place| place.len() == bytes.len());
            let place = place.ok_or_else(|| io::Error::other("a matrix has no place in the file"))?;
            file.seek(SeekFrom::Start(place.start as u64))?;
            file.write_all(bytes)?;
            header.extend(crc32fast::hash(bytes).to_le_bytes());
            Ok(())
        })?;
        header.extend(crc32fast::hash(&header).to_le_bytes());
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&header)?;
        file.sync_all()
    }
}

/// A new file for what will be `name`. Containers have equal process ids, and machines that share a folder too.
fn new_file(folder: &Path, name: &str) -> io::Result<(PathBuf, File)> {
    const TRIES: usize = 16;
    let mut result = Err(io::Error::from(io::ErrorKind::AlreadyExists));
    for _ in 0..TRIES {
        // Its keys are the system's random numbers.
        let random = RandomState::new().hash_one(process::id());
        let path = folder.join(format!(".{name}.{random:016x}"));
        // To map it, it must be readable too.
        result = File::options().read(true).write(true).create_new(true).open(&path).map(|file| (path, file));
        if result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists) {
            continue;
        }
        break;
    }
    result
}

/// Makes a rename last. Where folders can't be flushed, a crash may take the file away, but leaves no other in its place.
fn sync_folder(folder: &Path) {
    if let Err(error) = File::open(folder).and_then(|folder| folder.sync_all()) {
        tracing::debug!(folder = %folder.display(), %error, "the folder of quantised weights can't be flushed");
    }
}

fn damaged(how: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the file is damaged: {how}"))
}

/// Removes what programs that ended too early left of the files they were writing.
fn remove_abandoned(folder: &Path, prefix: &str) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let age = entry.metadata().and_then(|metadata| metadata.modified()).ok().and_then(|time| time.elapsed().ok());
        let abandoned = age.is_some_and(|age| age > ABANDONED);
        if abandoned && entry.file_name().to_string_lossy().starts_with(prefix) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
