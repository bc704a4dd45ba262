//! The registry client against registries that others wrote. `tests/image/push` starts them and says by variables where
//! they are.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failing helper fails its test")]

#[path = "../it/registry/images.rs"]
mod images;

use std::{
    env, fs,
    io::{self, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use kaito_image::{
    Blob, BlobSource, Image, Platform,
    registry::{Access, Delivery, Options, PushOptions, PushReport, Repository, parse_reference},
};
use kaito_testing::proxy::Proxy;
use oci_spec::image::{Descriptor, Digest, MediaType};
use sha2::{Digest as _, Sha256};

use crate::images::{Recorder, image_of, options, password, random_image};

const PUSHES: u64 = 50;
const CUTS: usize = 4;
const CHUNK: u64 = 512 << 10;
const AT_ONCE: usize = 25;

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("{name} is not set; run tests/image/push"))
}

/// Where the registry listens.
fn address() -> SocketAddr {
    variable("KAITO_TEST_REGISTRY").parse().unwrap()
}

/// Where the registry keeps a blob.
fn stored(digest: &Digest) -> PathBuf {
    let hex = digest.digest();
    let blobs = Path::new(&variable("KAITO_TEST_REGISTRY_DATA")).join("docker/registry/v2/blobs/sha256");
    blobs.join(&hex[..2]).join(hex).join("data")
}

async fn open(host: SocketAddr, path: &str, options: &Options) -> Repository {
    Repository::open(&parse_reference(&format!("{host}/{path}")).unwrap(), Access::Push, options).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_is_cut_anywhere_completes() {
    let resumes = variable("KAITO_TEST_REGISTRY_RESUMES") == "yes";
    let sizes = [4 << 20, 2_700_001, 600_000, 40_000];
    let total: u64 = sizes.iter().map(|size| *size as u64).sum();
    let mut options = Options { chunk_size: CHUNK, stall_timeout: Duration::from_secs(5), ..options() };
    options.retry.attempts = 30;
    // The registry needs a moment to see that a connection is gone and to put away what came by it.
    options.retry.first_delay = Duration::from_millis(200);
    options.retry.max_delay = Duration::from_secs(1);
    let options = &options;
    let outcomes: Vec<_> = stream::iter(0..PUSHES)
        .map(|seed| async move {
            let proxy = Proxy::random(address(), seed, CUTS, total / 4 * 3).await;
            let image = random_image(seed, &sizes);
            let repository = open(proxy.address, &format!("cut/{seed}:latest"), options).await;
            let recorder = Recorder::new();
            let report = repository.push(&image, &PushOptions::default(), &*recorder).await;
            let report = report.unwrap_or_else(|error| panic!("push {seed}: {error}; {:?}", recorder.causes()));
            assert_eq!(proxy.left(), 0, "push {seed} was not cut {CUTS} times");
            for blob in image.blobs().chain([&image.manifest]) {
                let found = fs::read(stored(blob.digest())).unwrap();
                assert!(found == blob.bytes(u64::MAX).unwrap(), "push {seed}: {} is damaged", blob.digest());
            }
            let direct = open(address(), &format!("cut/{seed}:latest"), options).await;
            let tagged = direct.image(&Platform::of_this_machine()).await.unwrap();
            assert_eq!(tagged.digest(), image.digest(), "push {seed}");
            let retries = recorder.retries.lock().unwrap().len() as u64;
            for (item, blob) in report.blobs.iter().enumerate() {
                let breaks = recorder.breaks.lock().unwrap().get(&item).copied().unwrap_or(0);
                let went_back = recorder.went_back.lock().unwrap().get(&item).copied().unwrap_or(0);
                let bound = if resumes {
                    // What is sent again was sent by an attempt that broke, or had been confirmed before the upload went back.
                    // The first is a chunk at most for each break. Of the second nothing can be said beforehand: a registry
                    // may give an upload up, or lose step with it, after any break, and what takes its place begins at 0. But
                    // the position went back by as much then: what is confirmed is reported after each chunk, before
                    // anything else is sent. That confirmed bytes are kept where the registry keeps them is tested by a
                    // registry that counts what arrives (`registry::faults`).
                    CHUNK * breaks + went_back
                } else {
                    // A break costs what was sent of that blob, never more than the blob; without one it is sent once.
                    blob.size * breaks
                };
                let resent = blob.resent();
                assert!(
                    resent <= bound,
                    "push {seed}: of {} bytes {resent} were sent again, at most {bound} by {breaks} breaks and {went_back} \
                     bytes that the position went back; {:?}",
                    blob.size,
                    recorder.causes()
                );
            }
            (report.sent(), report.resent(), retries)
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    println!(
        "{PUSHES} pushes of {total} bytes, each cut {CUTS} times: {} bytes sent, {} of them again, at most {} in a push; {} retries",
        outcomes.iter().map(|outcome| outcome.0).sum::<u64>(),
        outcomes.iter().map(|outcome| outcome.1).sum::<u64>(),
        outcomes.iter().map(|outcome| outcome.1).max().unwrap(),
        outcomes.iter().map(|outcome| outcome.2).sum::<u64>(),
    );
}

#[tokio::test]
async fn blobs_are_mounted_and_images_come_back() {
    let image = random_image(1000, &[3_000_000, 500]);
    let push = async |path: &str, options: &PushOptions| -> PushReport {
        open(address(), path, &images::options()).await.push(&image, options, &*Recorder::new()).await.unwrap()
    };
    let first = push("mount/from:1", &PushOptions::default()).await;
    assert_eq!((first.sent(), first.resent()), (image.size(), 0));
    let mounts = image.blobs().map(|blob| (blob.digest().clone(), "mount/from".to_owned())).collect();
    let second = push("mount/to:1", &PushOptions { mounts, ..PushOptions::default() }).await;
    assert_eq!((second.sent(), second.mounted()), (0, image.size()));
    let mounted = Delivery::Mounted { from: "mount/from".to_owned() };
    assert!(second.blobs.iter().all(|blob| blob.delivery == mounted), "{second:?}");
    assert!(push("mount/to:1", &PushOptions::default()).await.unchanged);

    let found = open(address(), "mount/to:1", &options()).await.image(&Platform::of_this_machine()).await.unwrap();
    let (layer, expected) = (found.layers[0].clone(), image.layers[0].bytes(u64::MAX).unwrap());
    let read = move || {
        let mut rest = Vec::new();
        layer.open_at(1_234_567).unwrap().read_to_end(&mut rest).unwrap();
        (layer.bytes(u64::MAX).unwrap(), rest)
    };
    let (whole, rest) = tokio::task::spawn_blocking(read).await.unwrap();
    assert!(whole == expected && rest == expected[1_234_567..]);
}

#[tokio::test]
async fn a_registry_with_passwords_lets_in_who_has_one() {
    let host: SocketAddr = variable("KAITO_TEST_REGISTRY_WITH_PASSWORDS").parse().unwrap();
    let image = random_image(1001, &[1_000_000]);
    let push = async |credentials| {
        let options = Options { credentials, ..options() };
        open(host, "private/phi:1", &options).await.push(&image, &PushOptions::default(), &*Recorder::new()).await
    };
    let error = push(None).await.unwrap_err().to_string();
    assert!(error.contains("wants credentials"), "{error}");
    let error = push(password("ada", "guess")).await.unwrap_err().to_string();
    assert!(error.contains("refuses user \"ada\""), "{error}");
    assert_eq!(push(password("ada", "secret")).await.unwrap().sent(), image.size());
    let unchanged = push(password("ada", "secret")).await.unwrap();
    assert!(unchanged.unchanged);
}

/// Zeros, as many as anybody wants.
#[derive(Debug)]
struct Zeros(u64);

impl BlobSource for Zeros {
    fn open_at(&self, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(io::repeat(0).take(self.0.saturating_sub(offset))))
    }
}

fn zeros(size: u64) -> Blob {
    let mut hasher = Sha256::new();
    let piece = vec![0; 1 << 20];
    let mut left = size;
    while left > 0 {
        let count = left.min(piece.len() as u64);
        hasher.update(&piece[..count as usize]);
        left -= count;
    }
    let digest = hasher.finalize().iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"));
    Blob::new(Descriptor::new(MediaType::ImageLayer, size, digest.parse::<Digest>().unwrap()), Zeros(size))
}

/// The most memory that this process has had, in bytes.
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

/// In a process of its own, whose memory is then this push's.
#[tokio::test(flavor = "multi_thread")]
async fn memory_stays_flat() {
    const LIMIT: u64 = 200 << 20;
    let size: u64 = variable("KAITO_TEST_LARGE_BLOB").parse().unwrap();
    let image: Image = image_of("{}".to_owned(), vec![zeros(size), zeros(size / 4), zeros(size / 4 + 1)]);
    let options = Options { chunk_size: Options::default().chunk_size, ..options() };
    let repository = open(address(), "large/zeros:1", &options).await;
    let report = repository.push(&image, &PushOptions::default(), &*Recorder::new()).await.unwrap();
    assert_eq!((report.sent(), report.resent()), (image.size(), 0));
    let rate = report.sent() as f64 / report.elapsed.as_secs_f64() / f64::from(1 << 20);
    println!("pushed {} bytes at {rate:.0} MiB/s with {} MiB of memory", report.sent(), peak_memory() >> 20);
    assert!(peak_memory() < LIMIT, "{} bytes of memory", peak_memory());
}
