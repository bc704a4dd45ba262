//! Pushes through a proxy that breaks them.

use std::{net::SocketAddr, sync::Arc};

use futures_util::{StreamExt, stream};
use kaito_image::registry::{Access, Options, PushOptions, PushReport, Repository, parse_reference};
use kaito_testing::{
    proxy::Proxy,
    registry::{Broken, Config, Registry},
};

use super::images::{Recorder, options, random_image};

const PUSHES: u64 = 50;
const CUTS: usize = 5;
const CHUNK: u64 = 128 << 10;
/// Pushes at once; most of the time they wait for stalls to be noticed.
const AT_ONCE: usize = 25;

async fn push_through(
    proxy: SocketAddr,
    options: &Options,
    seed: u64,
    sizes: &[usize],
) -> (Arc<Recorder>, PushReport, kaito_image::Image) {
    let image = random_image(seed, sizes);
    let reference = parse_reference(&format!("{proxy}/cut/{seed}:latest")).unwrap();
    let repository = Repository::open(&reference, Access::Push, options).await.unwrap();
    let recorder = Recorder::new();
    let report = repository.push(&image, &PushOptions::default(), &*recorder).await;
    let report = report.unwrap_or_else(|error| panic!("push {seed}: {error}; {:?}", recorder.causes()));
    (recorder, report, image)
}

async fn check_arrived(registry: &Registry, seed: u64, image: &kaito_image::Image) {
    let repository = format!("cut/{seed}");
    for blob in image.blobs() {
        let digest = blob.digest().to_string();
        assert!(registry.blob(&repository, &digest).unwrap() == blob.bytes(u64::MAX).unwrap(), "push {seed}: {digest}");
        assert_eq!(registry.commits(&repository, &digest), 1, "push {seed}: {digest} was completed more than once");
    }
    let (_, manifest) = registry.manifest(&repository, "latest").unwrap();
    assert!(manifest == image.manifest.bytes(u64::MAX).unwrap(), "push {seed}");
}

fn cut_options() -> Options {
    let mut options = Options { chunk_size: CHUNK, stall_timeout: std::time::Duration::from_secs(3), ..options() };
    options.retry.attempts = 30;
    options
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_is_cut_anywhere_completes_and_sends_no_blob_twice() {
    let registry = Registry::start(Config::default()).await;
    let sizes = [1 << 20, 700_001, 300_000, 40_000, 1];
    let total: u64 = sizes.iter().map(|size| *size as u64).sum();
    let (registry, options) = (&registry, &cut_options());
    let outcomes: Vec<_> = stream::iter(0..PUSHES)
        .map(|seed| async move {
            let proxy = Proxy::random(registry.address, seed, CUTS, total / 4 * 3).await;
            let (recorder, report, image) = push_through(proxy.address, options, seed, &sizes).await;
            check_arrived(registry, seed, &image).await;
            assert_eq!(proxy.left(), 0, "push {seed} was not cut {CUTS} times");
            let repository = format!("cut/{seed}");
            for blob in image.blobs() {
                let (arrived, _) = registry.received(&repository, blob.digest().as_ref()).await;
                // What arrived is kept, so it must not come again: not one byte.
                assert_eq!(arrived, blob.size(), "push {seed}: {} arrived", blob.digest());
            }
            for blob in report.blobs.iter().filter(|blob| blob.size > CHUNK * CUTS as u64) {
                assert!(blob.sent < 2 * blob.size, "push {seed}: of {} bytes {} were sent", blob.size, blob.sent);
            }
            let retries = recorder.retries.lock().unwrap().len();
            let bound = CHUNK * retries as u64;
            assert!(report.resent() <= bound, "push {seed}: {} of {bound} bytes resent", report.resent());
            assert!(report.sent() >= total, "push {seed}: {} sent of {total}", report.sent());
            (report.sent(), report.resent(), retries)
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    // A lost answer to the request that ends an upload is no retry: the blob is found to be there.
    let retries: usize = outcomes.iter().map(|outcome| outcome.2).sum();
    assert!(retries > PUSHES as usize * CUTS / 2, "{retries} retries");
    let sum = |of: fn(&(u64, u64, usize)) -> u64| outcomes.iter().map(of).sum::<u64>();
    println!(
        "{PUSHES} pushes of {total} bytes, each cut {CUTS} times: {} bytes sent, {} of them again, at most {} in a push; {retries} retries",
        sum(|outcome| outcome.0),
        sum(|outcome| outcome.1),
        outcomes.iter().map(|outcome| outcome.1).max().unwrap(),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn registries_that_keep_nothing_of_what_broke_get_it_again() {
    for broken in [Broken::Dropped, Broken::GivenUp] {
        let registry = Registry::start(Config { broken, ..Config::default() }).await;
        let sizes = [1 << 20, 300_000, 40_000];
        let total: u64 = sizes.iter().map(|size| *size as u64).sum();
        let (registry, options) = (&registry, &cut_options());
        stream::iter(100..110)
            .map(|seed| async move {
                let proxy = Proxy::random(registry.address, seed, 3, total / 4 * 3).await;
                let (recorder, report, image) = push_through(proxy.address, options, seed, &sizes).await;
                check_arrived(registry, seed, &image).await;
                assert_eq!(proxy.left(), 0, "{broken:?} push {seed}");
                let bound = CHUNK * recorder.retries.lock().unwrap().len() as u64;
                if broken == Broken::Dropped {
                    assert!(report.resent() <= bound, "push {seed}: {} of {bound} bytes", report.resent());
                }
            })
            .buffer_unordered(AT_ONCE)
            .collect::<Vec<_>>()
            .await;
    }
}

/// By way of chance a cut leaves nothing or one byte of a blob, which registries cannot tell apart.
#[tokio::test(flavor = "multi_thread")]
async fn a_cut_after_the_first_byte_is_no_damage() {
    let registry = Registry::start(Config::default()).await;
    for after in 0..900 {
        if after % 9 != 0 {
            continue;
        }
        let proxy = Proxy::start(registry.address, vec![(after, kaito_testing::proxy::Fault::Reset)]).await;
        let (_, _, image) = push_through(proxy.address, &cut_options(), 1000 + after, &[2]).await;
        let repository = format!("cut/{}", 1000 + after);
        for blob in image.blobs() {
            let found = registry.blob(&repository, blob.digest().as_ref()).unwrap();
            assert_eq!(found, blob.bytes(100).unwrap(), "{after}");
        }
    }
}
