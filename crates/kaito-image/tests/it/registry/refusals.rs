//! What registries refuse, and what that does not mean.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::Method;
use kaito_image::{
    Image, Platform,
    registry::{Access as Wanted, Delivery, Error, Options, PushOptions, PushReport, Repository, parse_reference},
};
use kaito_testing::registry::{Access, Config, Registry};
use oci_spec::image::{Arch, Os};

use super::{
    images::{Recorder, options, password, random_image},
    push::assert_there,
};

async fn push(
    host: SocketAddr,
    path: &str,
    image: &Image,
    push_options: &PushOptions,
    options: &Options,
) -> (Result<PushReport, Error>, Arc<Recorder>) {
    let reference = parse_reference(&format!("{host}/{path}")).unwrap();
    let repository = Repository::open(&reference, Wanted::Push, options).await.unwrap();
    let recorder = Recorder::new();
    (repository.push(image, push_options, &*recorder).await, recorder)
}

fn mounting(image: &Image, from: &str) -> PushOptions {
    let mounts = image.blobs().map(|blob| (blob.digest().clone(), from.to_owned())).collect();
    PushOptions { mounts, ..PushOptions::default() }
}

#[tokio::test]
async fn a_mount_that_is_refused_is_sent() {
    let open = Config::default();
    let closed = Config { access: Access::Token("ada", "x", u64::MAX), ..Config::default() };
    let mut configs: Vec<_> = [400, 401, 403, 404, 405, 429, 500, 502, 503]
        .into_iter()
        .map(|status| Config { mount_refusal: Some(status), ..open.clone() })
        .collect();
    configs.extend([401, 403, 500].map(|status| Config { mount_refusal: Some(status), ..closed.clone() }));
    // The service that gives tokens denies those for the other repository.
    let denied = [400, 401, 403, 500, 503];
    configs.extend(denied.map(|status| Config { denied_repository: Some(("team/base", status)), ..closed.clone() }));
    for config in configs {
        let what = format!("{:?}, {:?}, {:?}", config.access, config.mount_refusal, config.denied_repository);
        let registry = Registry::start(config).await;
        let image = random_image(1, &[50_000, 60_000, 70_000, 10]);
        registry.put_blob("team/base", &image.layers[0].bytes(u64::MAX).unwrap());
        let options = Options { credentials: password("ada", "x"), ..options() };
        let (report, _) = push(registry.address, "team/phi:1", &image, &mounting(&image, "team/base"), &options).await;
        let report = report.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(report.blobs.iter().all(|blob| blob.delivery == Delivery::Sent), "{what}: {report:?}");
        assert_there(&registry, "team/phi", "1", &image);
        // A handful of attempts; not as many as a blob would get.
        assert!(registry.requests("POST /v2/team/phi/blobs/uploads/?mount") <= 12, "{what}");
    }
}

#[tokio::test]
async fn a_mount_that_is_allowed_needs_no_token_but_its_own() {
    let access = Access::Token("ada", "x", u64::MAX);
    let registry = Registry::start(Config { access, ..Config::default() }).await;
    let image = random_image(2, &[50_000]);
    registry.put_blob("team/base", &image.layers[0].bytes(u64::MAX).unwrap());
    let options = Options { credentials: password("ada", "x"), ..options() };
    let (report, _) = push(registry.address, "team/phi:1", &image, &mounting(&image, "team/base"), &options).await;
    assert_eq!(report.unwrap().mounted(), 50_000);
    assert_eq!(registry.tokens_given.load(std::sync::atomic::Ordering::Relaxed), 2);
}

/// A registry whose blobs and manifests lie in a storage that it sends to for everything, with what `image` has there.
async fn with_storage(image: &Image, refused: &[(Method, u16)]) -> (Arc<Registry>, Arc<Registry>) {
    let refused_methods = refused.to_vec();
    let storage = Registry::start(Config { refused_methods, tells_digests: false, ..Config::default() }).await;
    let (access, address) = (Access::Basic("ada", "x"), Some(storage.address));
    let registry = Registry::start(Config { access, ..Config::default() }).await;
    for place in [&registry, &storage] {
        for blob in image.blobs() {
            place.put_blob("a", &blob.bytes(u64::MAX).unwrap());
        }
        place.put_manifest("a", "1", image.manifest.media_type().as_ref(), &image.manifest.bytes(u64::MAX).unwrap());
    }
    registry.configure(|config| {
        (config.storage, config.storage_for_heads, config.storage_for_manifests) = (address, true, true);
    });
    (registry, storage)
}

#[tokio::test]
async fn storage_that_refuses_head_is_no_refusal_by_the_registry() {
    let options = Options { credentials: password("ada", "x"), ..options() };
    let old = random_image(3, &[80_000, 10]);
    // One layer that is there, one that is not.
    let new = random_image(4, &[70_000]);
    let layers = vec![old.layers[0].clone(), new.layers[0].clone()];
    let image = super::images::image_of("{}".to_owned(), layers);
    for status in [400, 401, 403, 404, 405, 500, 501, 503] {
        let (registry, storage) = with_storage(&old, &[(Method::HEAD, status)]).await;
        let what = format!("HEAD is answered with {status}");
        let (same, recorder) = push(registry.address, "a:1", &old, &PushOptions::default(), &options).await;
        let same = same.unwrap_or_else(|error| panic!("{what}: {error}; {:?}", recorder.causes()));
        assert!(same.unchanged, "{what}");
        let keep = PushOptions { keep_existing: true, ..PushOptions::default() };
        let (kept, _) = push(registry.address, "a:1", &image, &keep, &options).await;
        assert!(matches!(kept, Err(Error::TagExists { .. })), "{what}: {kept:?}");
        let (report, recorder) = push(registry.address, "a:2", &image, &PushOptions::default(), &options).await;
        let report = report.unwrap_or_else(|error| panic!("{what}: {error}; {:?}", recorder.causes()));
        assert_eq!((report.existed(), report.sent()), (80_000, 70_002), "{what}");
        assert_eq!(recorder.causes(), [""; 0], "{what}");
        assert!(storage.shown.lock().unwrap().is_empty(), "{what}: the storage was shown credentials");
    }
}

#[tokio::test]
async fn storage_that_says_nothing_at_all_stops_no_push() {
    let options = Options { credentials: password("ada", "x"), ..options() };
    let old = random_image(5, &[80_000]);
    let layers = vec![old.layers[0].clone(), random_image(6, &[70_000]).layers[0].clone()];
    let image = super::images::image_of("{}".to_owned(), layers);
    for status in [403, 500] {
        let (registry, _storage) = with_storage(&old, &[(Method::HEAD, 403), (Method::GET, status)]).await;
        // A tag that is to stay is not moved.
        let keep = PushOptions { keep_existing: true, ..PushOptions::default() };
        let (kept, _) = push(registry.address, "a:1", &image, &keep, &options).await;
        let error = kept.unwrap_err().to_string();
        assert!(error.contains(&format!("{status}")) && !error.contains("docker login"), "{error}");
        let (report, _) = push(registry.address, "a:1", &image, &PushOptions::default(), &options).await;
        assert_eq!(report.unwrap_or_else(|error| panic!("{status}: {error}")).sent(), image.size());
        assert_there(&registry, "a", "1", &image);
    }
}

#[tokio::test]
async fn storage_that_refuses_is_named_and_not_taken_for_the_registry() {
    let image = random_image(7, &[10]);
    let (registry, storage) = with_storage(&image, &[(Method::GET, 403)]).await;
    let options = Options { credentials: password("ada", "x"), ..options() };
    let reference = parse_reference(&format!("{}/a:1", registry.address)).unwrap();
    let repository = Repository::open(&reference, Wanted::Pull, &options).await.unwrap();
    let error = repository.image(&Platform { os: Os::Linux, architecture: Arch::Amd64 }).await.unwrap_err().to_string();
    for says in [&format!("{}, to which {} redirects", storage.address, registry.address), "403"] {
        assert!(error.contains(says) && !error.contains("docker login"), "{error}");
    }
}

#[tokio::test]
async fn a_refusal_for_a_tag_that_exists_is_told_as_what_it_is() {
    const QUOTA: &str = "its place for images is used up";
    const MOVE: &str = "does not let it be replaced";
    const KIND: &str = "does not take a manifest of this kind";
    for (refusal, says, says_not) in [
        ((403, "DENIED", "which will exceed the configured upper limit of 1 GiB"), QUOTA, MOVE),
        ((403, "DENIED", "storage quota exceeded"), QUOTA, "docker login"),
        ((400, "MANIFEST_INVALID", "layer mediaType not accepted"), KIND, MOVE),
        ((403, "DENIED", "requested access to the resource is denied"), "does not allow this to user \"ada\"", MOVE),
        ((405, "UNSUPPORTED", "The operation is unsupported."), "405: UNSUPPORTED", MOVE),
        ((412, "PROJECTPOLICYVIOLATION", "the image is not signed"), "412: PROJECTPOLICYVIOLATION", MOVE),
        ((400, "TAG_INVALID", "the tag cannot be overwritten because the repository is immutable"), MOVE, QUOTA),
        ((403, "DENIED", "access to protected tag denied"), MOVE, "docker login"),
        ((409, "", "tag 1 already exists"), MOVE, QUOTA),
    ] {
        let registry = Registry::start(Config { tag_refusal: Some(refusal), ..Config::default() }).await;
        let options = Options { credentials: password("ada", "x"), ..options() };
        let (first, second) = (random_image(8, &[10]), random_image(9, &[20]));
        push(registry.address, "a:1", &first, &PushOptions::default(), &options).await.0.unwrap();
        let (report, _) = push(registry.address, "a:1", &second, &PushOptions::default(), &options).await;
        let error = report.unwrap_err().to_string();
        assert!(error.contains(says) && !error.contains(says_not), "{refusal:?}: {error}");
        assert!(error.contains(refusal.2), "{refusal:?}: {error}");
        assert_there(&registry, "a", "1", &first);
    }
}

#[tokio::test]
async fn a_full_quota_is_told_where_blobs_are_refused_for_it() {
    let upload_refusal = Some((403, "DENIED", "namespace quota exceeded"));
    let registry = Registry::start(Config { upload_refusal, ..Config::default() }).await;
    let (report, _) =
        push(registry.address, "a:1", &random_image(10, &[10]), &PushOptions::default(), &options()).await;
    let error = report.unwrap_err().to_string();
    assert!(error.contains("its place for images is used up") && !error.contains("docker login"), "{error}");
}

#[tokio::test]
async fn the_wait_that_a_token_service_asks_for_is_kept() {
    let access = Access::Token("ada", "x", u64::MAX);
    let options = Options { credentials: password("ada", "x"), ..options() };
    for status in [429, 503] {
        let config = Config { access: access.clone(), token_failures: vec![(status, "1")], ..Config::default() };
        let registry = Registry::start(config).await;
        let begun = std::time::Instant::now();
        let (report, _) =
            push(registry.address, "a:1", &random_image(11, &[10]), &PushOptions::default(), &options).await;
        report.unwrap_or_else(|error| panic!("{status}: {error}"));
        // Without, it would be asked again after 20 milliseconds.
        assert!(begun.elapsed() >= Duration::from_secs(1), "{status}: asked again after {:?}", begun.elapsed());
        assert_eq!(registry.requests("GET /token"), 2);
    }
}

#[tokio::test]
async fn a_token_service_that_has_moved_is_followed() {
    let access = Access::Token("ada", "x", u64::MAX);
    let registry = Registry::start(Config { access, token_moved: true, ..Config::default() }).await;
    let options = Options { credentials: password("ada", "x"), ..options() };
    let (report, _) = push(registry.address, "a:1", &random_image(12, &[10]), &PushOptions::default(), &options).await;
    report.unwrap();
}

#[tokio::test]
async fn a_registry_may_be_an_ipv6_address() {
    let registry = Registry::start_at("[::1]:0", Config::default()).await;
    let image = random_image(13, &[300_000, 10]);
    let (report, _) = push(registry.address, "a:1", &image, &PushOptions::default(), &options()).await;
    assert_eq!(report.unwrap().sent(), image.size());
    assert_there(&registry, "a", "1", &image);
    let reference = parse_reference(&format!("[0:0::1]:{}/a@{}", registry.address.port(), image.digest())).unwrap();
    let repository = Repository::open(&reference, Wanted::Pull, &options()).await.unwrap();
    let found = repository.image(&Platform { os: Os::Linux, architecture: Arch::Amd64 }).await.unwrap();
    assert_eq!(found.digest(), image.digest());
}
