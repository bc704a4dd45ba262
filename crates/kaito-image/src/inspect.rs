//! Describes an image from its manifest and configuration alone.

use std::collections::{BTreeMap, HashMap};

use oci_spec::image::{ANNOTATION_TITLE, ImageConfiguration, ImageManifest};
use serde::Serialize;

use crate::{
    Error, Image,
    manifest::{self, MAX_CONFIG, MAX_MANIFEST, labels},
    output::short,
};

/// What is known of an image without reading its layers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// Digest of the manifest.
    pub digest: String,
    /// The model, if the image says which.
    pub preset: Option<String>,
    /// Its family.
    pub family: Option<String>,
    /// Element type of its weights.
    pub dtype: Option<String>,
    /// Number of its parameters.
    pub parameters: Option<u64>,
    /// Directory of the weights.
    pub weights: Option<String>,
    /// Directory of the adapter, in an image of one.
    pub adapter: Option<String>,
    /// Version of the server in the image.
    pub server: Option<String>,
    /// `linux/amd64`.
    pub platform: String,
    /// Bytes of all layers and the configuration.
    pub size: u64,
    /// What it runs.
    pub entrypoint: Vec<String>,
    /// With which arguments.
    pub command: Vec<String>,
    /// As which user.
    pub user: Option<String>,
    /// `5000/tcp`.
    pub ports: Vec<String>,
    /// Labels of the configuration and annotations of the manifest.
    pub labels: BTreeMap<String, String>,
    /// Lowest first.
    pub layers: Vec<LayerInfo>,
}

/// What is known of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LayerInfo {
    /// What is in it, as far as the image says: a file's name, or the command that made it.
    pub content: Option<String>,
    /// Bytes.
    pub size: u64,
    /// Digest.
    pub digest: String,
    /// Media type.
    pub media_type: String,
}

impl Inspection {
    /// Reads manifest and configuration.
    ///
    /// # Errors
    /// When they can't be read.
    pub fn of(image: &Image) -> Result<Self, Error> {
        let manifest: ImageManifest = manifest::read(&image.manifest, MAX_MANIFEST)?;
        let configuration: ImageConfiguration = manifest::read(&image.config, MAX_CONFIG)?;
        let annotations = manifest.annotations().iter().flatten();
        let mut all: BTreeMap<String, String> = configuration
            .labels_of_config()
            .into_iter()
            .flatten()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        all.extend(annotations.map(|(key, value)| (key.clone(), value.clone())));
        let label = |name: &str| all.get(name).cloned();
        let config = configuration.config().clone().unwrap_or_default();
        let mut ports = config.exposed_ports().clone().unwrap_or_default();
        ports.sort();
        Ok(Self {
            digest: image.digest().to_string(),
            preset: label(labels::PRESET),
            family: label(labels::FAMILY),
            dtype: label(labels::DTYPE),
            parameters: label(labels::PARAMETERS).and_then(|number| number.parse().ok()),
            weights: label(labels::WEIGHTS),
            adapter: label(labels::ADAPTER),
            server: label(labels::SERVER),
            platform: format!("{}/{}", configuration.os(), configuration.architecture()),
            size: image.size(),
            entrypoint: config.entrypoint().clone().unwrap_or_default(),
            command: config.cmd().clone().unwrap_or_default(),
            user: config.user().clone(),
            ports,
            layers: layers(image, &configuration),
            labels: all,
        })
    }
}

fn layers(image: &Image, configuration: &ImageConfiguration) -> Vec<LayerInfo> {
    // One entry of the history for each layer, beside those that made none.
    let history = configuration.history().iter().flatten().filter(|entry| entry.empty_layer() != Some(true));
    let commands: Vec<Option<String>> = history.map(|entry| entry.created_by().clone()).collect();
    let commands = if commands.len() == image.layers.len() { commands } else { vec![None; image.layers.len()] };
    image
        .layers
        .iter()
        .zip(commands)
        .map(|(layer, command)| LayerInfo {
            content: title(layer.descriptor().annotations().as_ref()).or(command),
            size: layer.size(),
            digest: layer.digest().to_string(),
            media_type: layer.media_type().to_string(),
        })
        .collect()
}

/// What a layer's annotations say is in it.
pub(crate) fn title(annotations: Option<&HashMap<String, String>>) -> Option<String> {
    annotations?.get(ANNOTATION_TITLE).cloned()
}

impl LayerInfo {
    /// The beginning of the digest, for tables.
    pub fn short_digest(&self) -> String {
        self.digest.parse().map_or_else(|_| self.digest.clone(), |digest| short(&digest))
    }
}
