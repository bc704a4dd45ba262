//! What comes from a registry, and what is refused.

use std::io::{self, Read};

use kaito_image::{
    Image, Platform,
    registry::{Access, Error, Options, PushOptions, Repository, parse_reference},
};
use kaito_testing::{
    proxy::{Fault, Proxy},
    registry::{Config, Registry},
};
use oci_spec::image::{Arch, Os};

use super::images::{Recorder, options, random_image};

const AMD64: Platform = Platform { os: Os::Linux, architecture: Arch::Amd64 };
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

async fn image_at(reference: &str, options: &Options) -> Result<Image, Error> {
    let reference = parse_reference(reference).unwrap();
    Repository::open(&reference, Access::Pull, options).await.unwrap().image(&AMD64).await
}

async fn read(image: &Image, offset: u64) -> io::Result<Vec<u8>> {
    let layer = image.layers[0].clone();
    let reading = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        layer.open_at(offset)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    });
    reading.await.unwrap()
}

async fn pushed(registry: &Registry, path: &str, seed: u64) -> Image {
    let image = random_image(seed, &[900_000, 10]);
    let reference = parse_reference(&format!("{}/{path}", registry.address)).unwrap();
    let repository = Repository::open(&reference, Access::Push, &options()).await.unwrap();
    repository.push(&image, &PushOptions::default(), &*Recorder::new()).await.unwrap();
    image
}

#[tokio::test]
async fn an_image_comes_as_it_was_pushed() {
    let registry = Registry::start(Config::default()).await;
    let image = pushed(&registry, "a/b:1", 1).await;
    for place in [":1".to_owned(), format!("@{}", image.digest()), format!(":1@{}", image.digest())] {
        let found = image_at(&format!("{}/a/b{place}", registry.address), &options()).await.unwrap();
        assert_eq!(found.digest(), image.digest());
        assert_eq!(found.manifest.bytes(u64::MAX).unwrap(), image.manifest.bytes(u64::MAX).unwrap());
        let descriptors = |image: &Image| image.blobs().map(|blob| blob.descriptor().clone()).collect::<Vec<_>>();
        assert_eq!(descriptors(&found), descriptors(&image));
        let whole = image.layers[0].bytes(u64::MAX).unwrap();
        assert!(read(&found, 0).await.unwrap() == whole);
        assert!(read(&found, 123_456).await.unwrap() == whole[123_456..]);
        assert!(read(&found, 900_000).await.unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_breaks_on_the_way_goes_on_where_it_was() {
    let registry = Registry::start(Config::default()).await;
    let image = pushed(&registry, "a:1", 2).await;
    // A request of some hundred bytes each: later cuts are met by later attempts.
    let cuts = vec![(300, Fault::LostAnswer), (900, Fault::Reset), (1000, Fault::Status(500))];
    let proxy = Proxy::start(registry.address, cuts).await;
    let found = image_at(&format!("{}/a:1", proxy.address), &options()).await.unwrap();
    for _ in 0..10 {
        assert!(read(&found, 0).await.unwrap() == image.layers[0].bytes(u64::MAX).unwrap());
        if proxy.left() == 0 {
            return;
        }
    }
    panic!("{} cuts were not met", proxy.left());
}

#[tokio::test]
async fn damaged_bytes_are_refused() {
    let registry = Registry::start(Config::default()).await;
    let image = pushed(&registry, "a:1", 3).await;
    let digest = image.layers[0].digest().to_string();
    let mut bytes = image.layers[0].bytes(u64::MAX).unwrap();
    bytes[800_000] ^= 1;
    registry.damage_blob("a", &digest, &bytes);
    let found = image_at(&format!("{}/a:1", registry.address), &options()).await.unwrap();
    let error = read(&found, 0).await.unwrap_err().to_string();
    assert!(error.contains(&format!("should be {digest}")), "{error}");
    bytes.push(0);
    registry.damage_blob("a", &digest, &bytes);
    let error = read(&found, 0).await.unwrap_err().to_string();
    assert!(error.contains("more than the 900000 bytes"), "{error}");

    let other = random_image(4, &[1]).manifest.bytes(u64::MAX).unwrap();
    registry.put_manifest("a", image.digest().as_ref(), "application/vnd.oci.image.manifest.v1+json", &other);
    let error = image_at(&format!("{}/a@{}", registry.address, image.digest()), &options()).await.unwrap_err();
    assert!(matches!(error, Error::DigestDiffers { .. }), "{error}");
}

#[tokio::test]
async fn the_image_for_the_platform_is_chosen() {
    let registry = Registry::start(Config::default()).await;
    let image = pushed(&registry, "a:amd64", 5).await;
    let other = pushed(&registry, "a:arm64", 6).await;
    let entry = |image: &Image, platform: serde_json::Value| {
        let mut entry = serde_json::to_value(image.manifest.descriptor()).unwrap();
        if !platform.is_null() {
            entry["platform"] = platform;
        }
        entry
    };
    let on = |architecture: &str, os: &str| serde_json::json!({ "architecture": architecture, "os": os });
    for (tag, entries, found) in [
        ("both", vec![entry(&other, on("arm64", "linux")), entry(&image, on("amd64", "linux"))], Ok(&image)),
        ("silent", vec![entry(&other, serde_json::Value::Null)], Ok(&other)),
        (
            "none",
            vec![entry(&other, on("arm64", "linux")), entry(&image, on("unknown", "unknown"))],
            Err("has no image for linux/amd64; it has linux/arm64"),
        ),
    ] {
        let index = serde_json::json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
        registry.put_manifest("a", tag, INDEX, index.to_string().as_bytes());
        match (image_at(&format!("{}/a:{tag}", registry.address), &options()).await, found) {
            (Ok(chosen), Ok(image)) => assert_eq!(chosen.digest(), image.digest(), "{tag}"),
            (Err(error), Err(says)) => assert!(error.to_string().contains(says), "{error}"),
            (result, _) => panic!("{tag}: {result:?}"),
        }
    }
}

#[tokio::test]
async fn what_is_not_there_or_no_manifest_is_said() {
    let registry = Registry::start(Config::default()).await;
    let error = image_at(&format!("{}/a:1", registry.address), &options()).await.unwrap_err().to_string();
    assert!(error.contains("/a:1, or does not show it to anybody"), "{error}");
    registry.put_manifest("a", "1", "application/json", b"{\"layers\": 5}");
    let error = image_at(&format!("{}/a:1", registry.address), &options()).await.unwrap_err().to_string();
    assert!(error.contains("is damaged"), "{error}");
}
