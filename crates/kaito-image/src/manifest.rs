//! Manifests and configurations: written so that the same input gives the same bytes, read with a bound.

use std::collections::HashMap;

use oci_spec::image::{
    Arch, Config, ConfigBuilder, Descriptor, HistoryBuilder, ImageConfiguration, ImageConfigurationBuilder,
    ImageManifest, ImageManifestBuilder, MediaType, Os, RootFsBuilder,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    Blob, Error, Image,
    base::{EXECUTABLE, USER},
};

/// Manifests and indexes are read up to this size, as registries do.
pub(crate) const MAX_MANIFEST: u64 = 4 << 20;
/// Configurations are read up to this size.
pub(crate) const MAX_CONFIG: u64 = 16 << 20;

/// Names of labels and annotations. The same stand in the configuration and in the manifest.
pub mod labels {
    /// The preset's name, or what the user calls the model.
    pub const PRESET: &str = "io.kaito.preset";
    /// Family of the model.
    pub const FAMILY: &str = "io.kaito.family";
    /// Element type of the weights.
    pub const DTYPE: &str = "io.kaito.dtype";
    /// Number of parameters.
    pub const PARAMETERS: &str = "io.kaito.parameters";
    /// Directory of the weights in the image.
    pub const WEIGHTS: &str = "io.kaito.weights";
    /// Directory of the adapter in the image.
    pub const ADAPTER: &str = "io.kaito.adapter";
    /// Largest rank of the adapter.
    pub const RANK: &str = "io.kaito.adapter.rank";
    /// Version of the server in the image.
    pub const SERVER: &str = "io.kaito.server";
}

/// The platform that an image is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// As Go calls it: `amd64`, `arm64`.
    pub architecture: Arch,
    /// As Go calls it: `linux`.
    pub os: Os,
}

impl Platform {
    /// Linux on `architecture`.
    pub fn linux(architecture: Arch) -> Self {
        Self { architecture, os: Os::Linux }
    }

    /// The platform that this program runs on, if that is Linux; else Linux on the same architecture.
    pub fn of_this_machine() -> Self {
        Self::linux(Arch::default())
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

impl std::str::FromStr for Platform {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "linux/amd64" => Ok(Self::linux(Arch::Amd64)),
            "linux/arm64" | "linux/arm64/v8" => Ok(Self::linux(Arch::ARM64)),
            _ => Err(format!("{text:?} is not supported: expected linux/amd64 or linux/arm64")),
        }
    }
}

/// What an image of several layers is, before its layers are known.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// Labels of the configuration and annotations of the manifest.
    pub labels: HashMap<String, String>,
    /// What is below, if anything is.
    pub base: Option<BaseImage>,
    /// Where the weights lie, for images that run.
    pub runs: Option<Runs>,
    pub platform: Option<Platform>,
}

/// How an image runs.
#[derive(Debug)]
pub(crate) struct Runs {
    /// Directory of the weights in the image.
    pub weights: String,
    /// Name of the model.
    pub model: String,
}

/// An image that others are built on.
#[derive(Debug, Clone)]
pub(crate) struct BaseImage {
    pub image: Image,
    pub configuration: ImageConfiguration,
}

/// A layer that was hashed.
#[derive(Debug, Clone)]
pub(crate) struct Hashed {
    pub descriptor: Descriptor,
    /// How the layer came to be, for people.
    pub created_by: String,
}

impl Contents {
    /// Configuration and manifest of an image with these layers on top of its base.
    pub fn assemble(&self, layers: &[Hashed]) -> Result<(Blob, Blob), Error> {
        let config = Blob::from_bytes(MediaType::ImageConfig, reproducible(&self.configuration(layers)?)?);
        let below = self.base.iter().flat_map(|base| &base.image.layers).map(|layer| {
            let mut descriptor = layer.descriptor().clone();
            descriptor.set_media_type(oci_layer(layer.media_type()));
            descriptor
        });
        let manifest: ImageManifest = ImageManifestBuilder::default()
            .schema_version(2_u32)
            .media_type(MediaType::ImageManifest)
            .config(config.descriptor().clone())
            .layers(below.chain(layers.iter().map(|layer| layer.descriptor.clone())).collect::<Vec<_>>())
            .annotations(self.labels.clone())
            .build()?;
        let manifest = Blob::from_bytes(MediaType::ImageManifest, reproducible(&manifest)?);
        Ok((config, manifest))
    }

    fn configuration(&self, layers: &[Hashed]) -> Result<ImageConfiguration, Error> {
        let below = self.base.as_ref().map(|base| &base.configuration);
        let mut diff_ids = below.map(|below| below.rootfs().diff_ids().clone()).unwrap_or_default();
        // Uncompressed layers: what a layer unpacks to is the layer itself.
        diff_ids.extend(layers.iter().map(|layer| layer.descriptor.digest().to_string()));
        let mut history = below.and_then(|below| below.history().clone()).unwrap_or_default();
        for layer in layers {
            history.push(HistoryBuilder::default().created(EPOCH).created_by(&layer.created_by).build()?);
        }
        let platform = self.platform.clone().unwrap_or_else(Platform::of_this_machine);
        let mut configuration = ImageConfigurationBuilder::default()
            .created(EPOCH)
            .architecture(platform.architecture)
            .os(platform.os)
            .config(self.config(below.and_then(|below| below.config().as_ref()))?)
            .rootfs(RootFsBuilder::default().typ("layers").diff_ids(diff_ids).build()?)
            .history(history)
            .build()?;
        if let Some(variant) = below.and_then(|below| below.variant().clone()) {
            configuration.set_variant(Some(variant));
        }
        Ok(configuration)
    }

    fn config(&self, below: Option<&Config>) -> Result<Config, Error> {
        let mut labels = below.and_then(|below| below.labels().clone()).unwrap_or_default();
        labels.extend(self.labels.clone());
        let Some(runs) = &self.runs else {
            // What was below is run as it was.
            let mut config = below.cloned().unwrap_or_default();
            config.set_labels(Some(labels));
            return Ok(config);
        };
        let config = ConfigBuilder::default().labels(labels);
        let mut env = below.and_then(|below| below.env().clone()).unwrap_or_default();
        for (name, value) in [
            ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            ("KAITO_HOST", "0.0.0.0"),
            ("KAITO_MODEL", &runs.model),
            ("KAITO_WEIGHTS", &runs.weights),
        ] {
            let set = |entry: &String| entry.split('=').next() == Some(name);
            // The base knows best where its programs are.
            if name == "PATH" && env.iter().any(set) {
                continue;
            }
            env.retain(|entry| !set(entry));
            env.push(format!("{name}={value}"));
        }
        Ok(config
            .user(format!("{USER}:{USER}"))
            .exposed_ports(vec!["5000/tcp".to_owned()])
            .env(env)
            .entrypoint(vec![format!("/{EXECUTABLE}")])
            .cmd(vec!["serve".to_owned()])
            .working_dir("/")
            .stop_signal("SIGTERM")
            .build()?)
    }
}

/// When an image says it was made: a time of its own for each build would give each build another digest.
const EPOCH: &str = "1970-01-01T00:00:00Z";

/// Docker's types of layers have twins in the OCI's; a manifest does not mix them.
fn oci_layer(media_type: &MediaType) -> MediaType {
    match media_type.as_ref() {
        "application/vnd.docker.image.rootfs.diff.tar" => MediaType::ImageLayer,
        "application/vnd.docker.image.rootfs.diff.tar.gzip" => MediaType::ImageLayerGzip,
        "application/vnd.docker.image.rootfs.diff.tar.zstd" => MediaType::ImageLayerZstd,
        _ => media_type.clone(),
    }
}

/// JSON with sorted keys: the maps of the types that are written have no order.
pub(crate) fn reproducible(value: &impl Serialize) -> Result<Vec<u8>, Error> {
    let mut value = serde_json::to_value(value).map_err(Error::Serialize)?;
    sort(&mut value);
    serde_json::to_vec(&value).map_err(Error::Serialize)
}

fn sort(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(map) => {
            let mut entries: Vec<_> = std::mem::take(map).into_iter().collect();
            entries.sort_by(|(one, _), (other, _)| one.cmp(other));
            entries.iter_mut().for_each(|(_, value)| sort(value));
            map.extend(entries);
        }
        serde_json::Value::Array(values) => values.iter_mut().for_each(sort),
        _ => {}
    }
}

/// Reads a small JSON blob.
pub(crate) fn read<T: DeserializeOwned>(blob: &Blob, limit: u64) -> Result<T, Error> {
    let bytes = blob.bytes(limit)?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Json { what: format!("blob {}", blob.digest()), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents() -> Contents {
        let labels = (0..20).map(|number| (format!("label-{number}"), number.to_string())).collect();
        Contents {
            labels,
            runs: Some(Runs { weights: "/models/x".to_owned(), model: "x".to_owned() }),
            platform: Some(Platform::linux(Arch::ARM64)),
            ..Contents::default()
        }
    }

    fn layer(content: &str) -> Hashed {
        let blob = Blob::from_bytes(MediaType::ImageLayer, content);
        Hashed { descriptor: blob.descriptor().clone(), created_by: content.to_owned() }
    }

    #[test]
    fn the_same_contents_give_the_same_digest() {
        let digest = || contents().assemble(&[layer("a"), layer("b")]).unwrap().1.digest().to_string();
        let first = digest();
        for _ in 0..20 {
            assert_eq!(digest(), first);
        }
    }

    #[test]
    fn a_configuration_says_how_the_image_runs() {
        let (config, manifest) = contents().assemble(&[layer("a")]).unwrap();
        let config: serde_json::Value = read(&config, MAX_CONFIG).unwrap();
        assert_eq!(config["architecture"], "arm64");
        assert_eq!(config["config"]["User"], "65532:65532");
        assert_eq!(config["config"]["ExposedPorts"], serde_json::json!({"5000/tcp": {}}));
        assert_eq!(config["config"]["Entrypoint"], serde_json::json!(["/usr/local/bin/kaito"]));
        assert_eq!(config["config"]["Cmd"], serde_json::json!(["serve"]));
        assert!(config["config"]["Env"].as_array().unwrap().contains(&"KAITO_WEIGHTS=/models/x".into()));
        assert_eq!(config["rootfs"]["diff_ids"], serde_json::json!([layer("a").descriptor.digest().to_string()]));
        let manifest: ImageManifest = read(&manifest, MAX_MANIFEST).unwrap();
        assert_eq!(manifest.annotations().as_ref().unwrap()["label-7"], "7");
    }

    #[test]
    fn platforms() {
        assert_eq!("linux/arm64".parse::<Platform>().unwrap().to_string(), "linux/arm64");
        for text in ["windows/amd64", "amd64", "", "linux/arm"] {
            assert!(text.parse::<Platform>().unwrap_err().contains("linux/amd64"), "{text}");
        }
    }
}
