//! Long work on many blobs: several at the same time, with progress, and cancellable.

use std::{
    io::{Read, Write},
    num::NonZeroUsize,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use oci_spec::image::Digest;
use sha2::{Digest as _, Sha256};

use crate::{
    Error,
    blob::{Blob, finish},
    progress::{Event, Item, Progress},
};

/// Bytes that are read at a time. Hashing and writing need one such buffer for each thread, and no other memory to speak of.
const PIECE: usize = 1 << 20;
/// Most files that are read at the same time: more readers make no disk faster.
const MAX_THREADS: usize = 8;

/// How long work reports its progress, and how it is cancelled.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// Told how far it is.
    pub progress: &'a dyn Progress,
    /// Once true, the work ends with [`Error::Interrupted`] and leaves nothing behind.
    pub cancelled: &'a AtomicBool,
}

impl Job<'_> {
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.cancelled.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Does `work` for the numbers of all items, several at once and the largest first. The first failure ends all.
    pub(crate) fn each<T: Send>(
        &self,
        phase: &'static str,
        items: &[Item],
        work: impl Fn(usize) -> Result<T, Error> + Sync,
    ) -> Result<Vec<T>, Error> {
        self.progress.event(Event::Planned { phase, items });
        let mut order: Vec<usize> = (0..items.len()).collect();
        order.sort_by_key(|&item| std::cmp::Reverse(items.get(item).map(|item| item.size)));
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let results: Mutex<Vec<(usize, Result<T, Error>)>> = Mutex::default();
        let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(MAX_THREADS).min(items.len());
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some(&item) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if failed.load(Ordering::Relaxed) {
                            break;
                        }
                        let result = self.check().and_then(|()| work(item));
                        match &result {
                            Ok(_) => self.progress.event(Event::Finished { item }),
                            Err(_) => failed.store(true, Ordering::Relaxed),
                        }
                        results.lock().unwrap_or_else(PoisonError::into_inner).push((item, result));
                    }
                });
            }
        });
        let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        results.sort_by_key(|(item, _)| *item);
        results.into_iter().map(|(_, result)| result).collect()
    }

    /// Reads `reader` to its end, gives every byte to `write` and tells what their digest is.
    pub(crate) fn hash(
        &self,
        item: usize,
        mut reader: impl Read,
        read_error: impl Fn(std::io::Error) -> Error,
        mut write: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(Digest, u64), Error> {
        let mut buffer = vec![0; PIECE];
        let mut hasher = Sha256::new();
        let mut bytes = 0;
        loop {
            self.check()?;
            let read = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(read_error(error)),
            };
            let piece = buffer.get(..read).unwrap_or_default();
            hasher.update(piece);
            write(piece)?;
            bytes += read as u64;
            self.progress.event(Event::Position { item, bytes });
        }
        Ok((finish(hasher).into(), bytes))
    }

    /// Reads a whole blob, writes it to `write` and compares it with its descriptor.
    pub(crate) fn copy(
        &self,
        item: usize,
        blob: &Blob,
        write: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let digest = blob.digest().to_string();
        let read_error = |source| Error::ReadBlob { digest: digest.clone(), source };
        let reader = blob.open_at(0).map_err(read_error)?;
        let (found, size) = self.hash(item, reader, read_error, write)?;
        if found == *blob.digest() && size == blob.size() {
            Ok(())
        } else {
            Err(Error::BlobDiffers { digest: digest.clone(), found: found.to_string(), size })
        }
    }
}

/// Writes to `writer`, naming it in the error.
pub(crate) fn to<'a, W: Write>(
    writer: &'a mut W,
    error: impl Fn(std::io::Error) -> Error + 'a,
) -> impl FnMut(&[u8]) -> Result<(), Error> + 'a {
    move |bytes| writer.write_all(bytes).map_err(&error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(sizes: &[u64]) -> Vec<Item> {
        sizes.iter().map(|&size| Item { name: size.to_string(), size }).collect()
    }

    #[test]
    fn results_come_in_the_order_of_the_items() {
        let cancelled = AtomicBool::new(false);
        let job = Job { progress: &|_: Event<'_>| {}, cancelled: &cancelled };
        let results = job.each("testing", &items(&[5, 900, 1, 33]), |item| Ok(item * 10)).unwrap();
        assert_eq!(results, [0, 10, 20, 30]);
        assert!(job.each("testing", &[], Ok).unwrap().is_empty());
    }

    #[test]
    fn the_first_failure_ends_all_and_is_told() {
        let cancelled = AtomicBool::new(false);
        let job = Job { progress: &|_: Event<'_>| {}, cancelled: &cancelled };
        let error = job
            .each("testing", &items(&[1; 1000]), |item| {
                if item == 0 {
                    return Err(Error::NotAFile { path: "first".into() });
                }
                Ok(())
            })
            .unwrap_err();
        assert!(error.to_string().contains("first"), "{error}");
    }

    #[test]
    fn work_that_is_cancelled_ends_soon() {
        let cancelled = AtomicBool::new(false);
        let read = AtomicUsize::new(0);
        let stop = |event: Event<'_>| {
            if let Event::Position { bytes, .. } = event {
                read.fetch_max(bytes as usize, Ordering::Relaxed);
                cancelled.store(bytes > 3 << 20, Ordering::Relaxed);
            }
        };
        let job = Job { progress: &stop, cancelled: &cancelled };
        let work = |item| job.hash(item, std::io::repeat(0), |_| Error::Interrupted, |_| Ok(()));
        assert!(matches!(job.each("testing", &items(&[1]), work), Err(Error::Interrupted)));
        assert!(read.into_inner() < 5 << 20);
    }
}
