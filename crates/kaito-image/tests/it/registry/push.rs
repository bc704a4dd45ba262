//! What a push sends, and what it does not.

use std::{
    io::{self, Read},
    sync::Arc,
    time::Duration,
};

use kaito_image::{
    Blob, BlobSource, Image,
    registry::{Access, Delivery, Error, Options, PushOptions, PushReport, Repository, parse_reference},
};
use kaito_testing::{
    proxy::{Fault, Proxy},
    registry::{Config, Registry},
};
use oci_spec::image::MediaType;

use super::images::{Recorder, image_of, options, random_image};

/// As Harbor says it.
const IMMUTABLE: (u16, &str, &str) = (412, "PRECONDITION", "a:1 is configured as immutable");

async fn open(registry: &Registry, path: &str, options: &Options) -> Repository {
    let reference = parse_reference(&format!("{}/{path}", registry.address)).unwrap();
    Repository::open(&reference, Access::Push, options).await.unwrap()
}

async fn push(registry: &Registry, path: &str, image: &Image, options: &PushOptions) -> Result<PushReport, Error> {
    open(registry, path, &super::images::options()).await.push(image, options, &*Recorder::new()).await
}

pub fn assert_there(registry: &Registry, repository: &str, tag: &str, image: &Image) {
    for blob in image.blobs() {
        let found = registry.blob(repository, blob.digest().as_ref());
        assert!(found.as_deref() == Some(&blob.bytes(u64::MAX).unwrap()[..]), "{} in {repository}", blob.digest());
    }
    let (media_type, manifest) = registry.manifest(repository, tag).unwrap();
    assert_eq!(media_type, "application/vnd.oci.image.manifest.v1+json");
    assert_eq!(manifest, image.manifest.bytes(u64::MAX).unwrap());
}

#[tokio::test]
async fn what_is_there_is_not_sent_again() {
    let registry = Registry::start(Config::default()).await;
    let first = random_image(1, &[600_000, 100, 0]);
    let report = push(&registry, "team/phi:1", &first, &PushOptions::default()).await.unwrap();
    assert_there(&registry, "team/phi", "1", &first);
    assert_eq!((report.sent(), report.resent(), report.existed()), (first.size(), 0, 0));
    assert_eq!((report.unchanged, report.replaced.as_deref()), (false, None));
    // 600000 bytes go as two chunks and the last one; the other blobs in one request each.
    assert_eq!((registry.requests("PATCH"), registry.requests("PUT /v2/team/phi/blobs")), (2, 4));

    let same = push(&registry, "team/phi:1", &first, &PushOptions::default()).await.unwrap();
    assert!(same.unchanged);
    assert_eq!((same.sent(), same.existed()), (0, first.size()));

    let mut layers = first.layers.clone();
    layers.push(Blob::from_bytes(MediaType::ImageLayer, "one more"));
    let second = image_of("{}".to_owned(), layers);
    let recorder = Recorder::new();
    let repository = open(&registry, "team/phi:1", &options()).await;
    let report = repository.push(&second, &PushOptions::default(), &*recorder).await.unwrap();
    assert_there(&registry, "team/phi", "1", &second);
    assert_eq!((report.sent(), report.existed()), (10, 600_100));
    assert_eq!(report.replaced, Some(first.digest().to_string()));
    assert_eq!(*recorder.skipped.lock().unwrap(), ["exists already"; 3]);
}

#[tokio::test]
async fn whether_a_push_is_possible_is_asked_without_sending_anything() {
    let registry = Registry::start(Config::default()).await;
    open(&registry, "a:1", &options()).await.check_push(&*Recorder::new()).await.unwrap();
    assert_eq!((registry.requests("POST /v2/a/blobs/uploads/"), registry.requests("DELETE")), (1, 1));
    assert_eq!((registry.requests("PATCH"), registry.requests("PUT")), (0, 0));
    assert!(registry.manifest("a", "1").is_none());
}

#[tokio::test]
async fn a_layer_that_is_listed_twice_is_sent_once() {
    let registry = Registry::start(Config::default()).await;
    let layer = Blob::from_bytes(MediaType::ImageLayer, "twice");
    let image = image_of("{}".to_owned(), vec![layer.clone(), layer.clone()]);
    let report = push(&registry, "a:1", &image, &PushOptions::default()).await.unwrap();
    assert_eq!((report.blobs.len(), registry.commits("a", layer.digest().as_ref())), (2, 1));
    assert_there(&registry, "a", "1", &image);
}

#[tokio::test]
async fn blobs_of_another_repository_are_mounted_or_sent() {
    let registry = Registry::start(Config::default()).await;
    let image = random_image(2, &[50_000, 60_000]);
    let [base, weights] = &image.layers[..] else { panic!() };
    registry.put_blob("base/os", &base.bytes(u64::MAX).unwrap());
    // The registry does not have the second there.
    let mounts = [base, weights].map(|blob| (blob.digest().clone(), "base/os".to_owned())).into();
    let options = PushOptions { mounts, ..PushOptions::default() };
    let report = push(&registry, "team/phi:1", &image, &options).await.unwrap();
    assert_there(&registry, "team/phi", "1", &image);
    let deliveries: Vec<_> = report.blobs.iter().map(|blob| blob.delivery.clone()).collect();
    assert_eq!(deliveries, [Delivery::Mounted { from: "base/os".to_owned() }, Delivery::Sent, Delivery::Sent]);
    assert_eq!((report.mounted(), report.sent()), (50_000, image.size() - 50_000));
}

#[tokio::test]
async fn a_blob_in_one_piece_completes_after_a_cut() {
    let registry = Registry::start(Config { takes_chunks: false, ..Config::default() }).await;
    let proxy = Proxy::start(registry.address, vec![(200_000, Fault::Reset), (500_000, Fault::LostAnswer)]).await;
    let image = random_image(4, &[600_000]);
    let reference = parse_reference(&format!("{}/a:1", proxy.address)).unwrap();
    let repository = Repository::open(&reference, Access::Push, &options()).await.unwrap();
    repository.push(&image, &PushOptions::default(), &*Recorder::new()).await.unwrap();
    assert_there(&registry, "a", "1", &image);
}

#[tokio::test]
async fn the_wait_that_a_registry_asks_for_is_kept() {
    let registry = Registry::start(Config::default()).await;
    let proxy = Proxy::start(registry.address, vec![(100_000, Fault::Status(429))]).await;
    let reference = parse_reference(&format!("{}/a:1", proxy.address)).unwrap();
    let repository = Repository::open(&reference, Access::Push, &options()).await.unwrap();
    let recorder = Recorder::new();
    repository.push(&random_image(5, &[300_000]), &PushOptions::default(), &*recorder).await.unwrap();
    let retries = recorder.retries.lock().unwrap().clone();
    assert_eq!(retries, [("status 429".to_owned(), Duration::from_secs(1))]);
}

#[tokio::test]
async fn a_tag_is_not_moved_against_the_users_or_the_registrys_will() {
    let registry = Registry::start(Config { tag_refusal: Some(IMMUTABLE), ..Config::default() }).await;
    let (first, second) = (random_image(6, &[10]), random_image(7, &[200_000]));
    push(&registry, "a:1", &first, &PushOptions::default()).await.unwrap();

    let keep = PushOptions { keep_existing: true, ..PushOptions::default() };
    let error = push(&registry, "a:1", &second, &keep).await.unwrap_err().to_string();
    assert!(error.contains(&format!("exists already, as {}; nothing was sent", first.digest())), "{error}");
    assert!(registry.blob("a", second.layers[0].digest().as_ref()).is_none(), "nothing was to be sent");
    assert!(push(&registry, "a:1", &first, &keep).await.unwrap().unchanged);
    push(&registry, "a:2", &second, &keep).await.unwrap();

    let error = push(&registry, "a:1", &second, &PushOptions::default()).await.unwrap_err().to_string();
    for says in ["does not let it be replaced: 412: ", "a:1 is configured as immutable", first.digest().as_ref()] {
        assert!(error.contains(says), "{error}");
    }
    assert_there(&registry, "a", "1", &first);
}

#[tokio::test]
async fn an_image_is_pushed_by_digest_if_it_is_that_image() {
    let registry = Registry::start(Config::default()).await;
    let image = random_image(8, &[10]);
    push(&registry, &format!("a@{}", image.digest()), &image, &PushOptions::default()).await.unwrap();
    assert_there(&registry, "a", image.digest().as_ref(), &image);
    let error = push(&registry, &format!("a@{}", image.layers[0].digest()), &image, &PushOptions::default()).await;
    assert!(matches!(error, Err(Error::DigestDiffers { .. })), "{error:?}");
}

/// Reads other bytes than were hashed, or ends early, or fails.
#[derive(Debug)]
enum Wrong {
    Other,
    Short,
    Fails,
}

impl BlobSource for Wrong {
    fn open_at(&self, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        match self {
            Wrong::Other => Ok(Box::new(io::repeat(1).take(500_000 - offset))),
            Wrong::Short => Ok(Box::new(io::repeat(0).take(400_000_u64.saturating_sub(offset)))),
            Wrong::Fails => Err(io::Error::other("weights.bin: the disk is gone")),
        }
    }
}

#[tokio::test]
async fn weights_that_changed_since_they_were_hashed_are_an_error_and_no_image() {
    let registry = Registry::start(Config::default()).await;
    let hashed = Blob::from_bytes(MediaType::ImageLayer, vec![0; 500_000]);
    for (wrong, says) in [
        (Wrong::Other, "the file changed since it was hashed"),
        (Wrong::Short, "it ends"),
        (Wrong::Fails, "weights.bin: the disk is gone"),
    ] {
        let layer = Blob::new(hashed.descriptor().clone(), wrong);
        let image = image_of("{}".to_owned(), vec![layer]);
        let error = push(&registry, "a:1", &image, &PushOptions::default()).await.unwrap_err().to_string();
        assert!(error.contains(says) && error.contains(hashed.digest().as_ref()), "{error}");
        assert!(registry.manifest("a", "1").is_none());
        assert!(registry.blob("a", hashed.digest().as_ref()).is_none());
    }
    assert_eq!(registry.requests("DELETE"), 3, "uploads are to be cancelled");
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_an_error_with_its_address() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let reference = parse_reference(&format!("{address}/a:1")).unwrap();
    let repository = Repository::open(&reference, Access::Push, &options()).await.unwrap();
    let error = repository.push(&random_image(9, &[1]), &PushOptions::default(), &*Recorder::new()).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains(&format!("http://{address}/v2/a/manifests/1")), "{error}");
    // Of 8 that it would get if it had ever answered.
    assert!(error.contains("refused") && error.contains("after 5 attempts"), "{error}");
}

#[tokio::test]
async fn a_registry_that_never_answers_is_given_up() {
    let registry =
        Registry::start(Config { answers_slowly: Some(Duration::from_secs(600)), ..Config::default() }).await;
    let mut options = Options { stall_timeout: Duration::from_millis(50), ..options() };
    options.retry.attempts = 2;
    let repository = open(&registry, "a:1", &options).await;
    let error = repository.push(&random_image(9, &[1]), &PushOptions::default(), &*Recorder::new()).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("no answer, and nothing sent, for 50ms"), "{error}");
}

#[tokio::test]
async fn several_blobs_travel_at_once() {
    /// Opens only when all sources are waited for.
    #[derive(Debug)]
    struct Together(Arc<std::sync::Barrier>, u8);
    impl BlobSource for Together {
        fn open_at(&self, offset: u64) -> io::Result<Box<dyn Read + Send>> {
            self.0.wait();
            Ok(Box::new(io::repeat(self.1).take(1000 - offset)))
        }
    }
    let registry = Registry::start(Config::default()).await;
    let barrier = Arc::new(std::sync::Barrier::new(4));
    let layer = |byte: u8| {
        let hashed = Blob::from_bytes(MediaType::ImageLayer, vec![byte; 1000]);
        Blob::new(hashed.descriptor().clone(), Together(barrier.clone(), byte))
    };
    let image = image_of("{}".to_owned(), (0..4).map(layer).collect());
    let options = PushOptions::default();
    let pushing = push(&registry, "a:1", &image, &options);
    tokio::time::timeout(Duration::from_secs(60), pushing).await.expect("blobs wait for each other").unwrap();
}
