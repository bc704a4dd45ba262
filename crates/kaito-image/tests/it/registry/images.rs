//! Images of random bytes, and what a push said about itself.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use kaito_image::{
    Blob, Event, Image, Progress,
    registry::{Credentials, Options, RetryPolicy, Secret},
};
use oci_spec::image::{Descriptor, ImageManifestBuilder, MediaType};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// An image whose layers have these sizes.
pub fn random_image(seed: u64, sizes: &[usize]) -> Image {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let layers: Vec<_> = sizes
        .iter()
        .map(|size| {
            let mut bytes = vec![0; *size];
            random.fill(&mut bytes[..]);
            Blob::from_bytes(MediaType::ImageLayer, bytes)
        })
        .collect();
    image_of(format!("{{\"seed\":{seed}}}"), layers)
}

/// An image with these layers.
pub fn image_of(config: String, layers: Vec<Blob>) -> Image {
    let config = Blob::from_bytes(MediaType::ImageConfig, config);
    let manifest = ImageManifestBuilder::default()
        .schema_version(2u32)
        .media_type(MediaType::ImageManifest)
        .config(config.descriptor().clone())
        .layers(layers.iter().map(Blob::descriptor).cloned().collect::<Vec<Descriptor>>())
        .build()
        .unwrap();
    let manifest = Blob::from_bytes(MediaType::ImageManifest, manifest.to_string().unwrap());
    Image { manifest, config, layers }
}

/// Options that fail fast, and read no credentials of the user who runs the tests.
pub fn options() -> Options {
    Options {
        credential_files: Vec::new(),
        chunk_size: 256 << 10,
        stall_timeout: Duration::from_secs(60),
        retry: RetryPolicy {
            attempts: 8,
            first_delay: Duration::from_millis(20),
            max_delay: Duration::from_millis(200),
        },
        ..Options::default()
    }
}

/// A user and a password.
pub fn password(user: &str, password: &str) -> Option<Credentials> {
    Some(Credentials::Password { user: user.to_owned(), password: Secret::new(password) })
}

/// Keeps what a push tells.
#[derive(Default)]
pub struct Recorder {
    pub retries: Mutex<Vec<(String, Duration)>>,
    /// How many of them were of each item.
    pub breaks: Mutex<HashMap<usize, u64>>,
    pub skipped: Mutex<Vec<String>>,
    pub sizes: Mutex<Vec<u64>>,
    pub positions: Mutex<HashMap<usize, u64>>,
    /// By how many bytes the position of each item went back, all times together.
    pub went_back: Mutex<HashMap<usize, u64>>,
}

impl Progress for Recorder {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Planned { items, .. } => *self.sizes.lock().unwrap() = items.iter().map(|item| item.size).collect(),
            Event::Position { item, bytes } => {
                assert!(bytes <= self.sizes.lock().unwrap()[item], "position {bytes} of item {item}");
                let before = self.positions.lock().unwrap().insert(item, bytes).unwrap_or(0);
                *self.went_back.lock().unwrap().entry(item).or_default() += before.saturating_sub(bytes);
            }
            Event::Retrying { item, cause, delay } => {
                self.retries.lock().unwrap().push((cause.to_owned(), delay));
                if let Some(item) = item {
                    *self.breaks.lock().unwrap().entry(item).or_default() += 1;
                }
            }
            Event::Skipped { reason, .. } => self.skipped.lock().unwrap().push(reason.to_owned()),
            _ => {}
        }
    }
}

impl Recorder {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn causes(&self) -> Vec<String> {
        self.retries.lock().unwrap().iter().map(|(cause, _)| cause.clone()).collect()
    }
}
