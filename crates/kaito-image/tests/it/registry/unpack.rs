//! Folders out of images in a registry: whole, whatever breaks on the way.

use std::{
    fs,
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};

use kaito_image::{
    Blob, Error, Image, Job, Platform, Unpacked,
    registry::{Access, PushOptions, Repository, parse_reference},
    unpack,
};
use kaito_testing::{
    proxy::{Fault, Proxy},
    registry::{Config, Registry},
};
use oci_spec::image::MediaType;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::images::{Recorder, image_of, options};

const FILES: [(&str, usize); 3] = [("a.bin", 700_000), ("b.bin", 600_000), ("config.json", 100)];

fn contents(name: &str) -> Vec<u8> {
    let size = FILES.iter().find(|(file, _)| *file == name).unwrap().1;
    let mut bytes = vec![0; size];
    ChaCha8Rng::seed_from_u64(size as u64).fill(&mut bytes[..]);
    bytes
}

/// An image with a layer for each file.
async fn pushed(registry: &Registry) -> Image {
    let layers = FILES.iter().map(|(name, size)| {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(*size as u64);
        archive.append_data(&mut header, format!("weights/{name}"), &contents(name)[..]).unwrap();
        Blob::from_bytes(MediaType::ImageLayer, archive.into_inner().unwrap())
    });
    let image = image_of("{}".to_owned(), layers.collect());
    let reference = parse_reference(&format!("{}/a:1", registry.address)).unwrap();
    let repository = Repository::open(&reference, Access::Push, &options()).await.unwrap();
    repository.push(&image, &PushOptions::default(), &*Recorder::new()).await.unwrap();
    image
}

async fn unpacked(address: String, to: &Path, recorder: Arc<Recorder>) -> Result<Unpacked, Error> {
    let reference = parse_reference(&format!("{address}/a:1")).unwrap();
    let repository = Repository::open(&reference, Access::Pull, &options()).await.unwrap();
    let image = repository.image(&Platform::of_this_machine()).await.unwrap();
    let to = to.to_owned();
    let job = move || {
        let cancelled = AtomicBool::new(false);
        unpack(&image, "a:1", "/weights", &to, Job { progress: &*recorder, cancelled: &cancelled })
    };
    tokio::task::spawn_blocking(job).await.unwrap()
}

fn assert_whole(folder: &Path) {
    for (name, _) in FILES {
        assert!(fs::read(folder.join(name)).unwrap() == contents(name), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_comes_whole_over_connections_that_break() {
    let registry = Registry::start(Config::default()).await;
    pushed(&registry).await;
    // Requests have some hundred bytes each.
    let cuts = vec![(300, Fault::Reset), (500, Fault::LostAnswer), (700, Fault::Status(500))];
    let proxy = Proxy::start(registry.address, cuts).await;
    let parent = tempfile::tempdir().unwrap();
    let to = parent.path().join("weights");
    let recorder = Recorder::new();
    unpacked(proxy.address.to_string(), &to, recorder.clone()).await.unwrap();
    assert_eq!(proxy.left(), 0);
    assert_whole(&to);
    let (sizes, positions) = (recorder.sizes.lock().unwrap(), recorder.positions.lock().unwrap());
    for (item, size) in sizes.iter().enumerate() {
        assert_eq!(positions[&item], *size, "all of a layer is told of");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_layer_is_refused_and_fetched_again_alone() {
    let registry = Registry::start(Config::default()).await;
    let image = pushed(&registry).await;
    let damaged = image.layers[1].digest().to_string();
    let whole = image.layers[1].bytes(u64::MAX).unwrap();
    let mut bytes = whole.clone();
    bytes[300_000] ^= 1;
    registry.damage_blob("a", &damaged, &bytes);
    let parent = tempfile::tempdir().unwrap();
    let to = parent.path().join("weights");
    let address = registry.address.to_string();
    let error = unpacked(address.clone(), &to, Recorder::new()).await.unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains(&format!("should be {damaged}")), "{error}: {cause}");
    assert!(!to.exists());

    registry.damage_blob("a", &damaged, &whole);
    let recorder = Recorder::new();
    unpacked(address.clone(), &to, recorder).await.unwrap();
    assert_whole(&to);
    let asked = |layer: &Blob| registry.requests(&format!("GET /v2/a/blobs/{}", layer.digest()));
    assert_eq!(asked(&image.layers[0]), 1, "what has arrived whole is not asked for again");
    assert_eq!(asked(&image.layers[1]), 2);
}
