//! `inference`: the model, its images, its adapters.

use k8s_openapi::api::core::v1::{PodTemplateSpec, Volume};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use serde_json::Value;

use super::tolerant;

/// The model, as a preset or as pods of the user's own.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InferenceSpec {
    /// A model of the catalogue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<PresetSpec>,
    /// The pods to run instead of a preset's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<Box<PodTemplateSpec>>,
    /// Adapters to merge into the model.
    #[serde(default, deserialize_with = "tolerant::null", skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<AdapterSpec>,
    /// The ConfigMap, in the workspace's namespace, that holds flags of the server.
    #[serde(default, deserialize_with = "tolerant::empty", skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
}

/// A model of the catalogue, and where its image is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PresetSpec {
    /// Any spelling that [`kaito_presets::find`] accepts.
    pub name: String,
    /// Whose image is used.
    #[serde(default, deserialize_with = "tolerant::null")]
    pub access_mode: AccessMode,
    /// Where a private image is.
    #[serde(default, deserialize_with = "tolerant::null", skip_serializing_if = "PresetOptions::is_empty")]
    pub preset_options: PresetOptions,
}

/// Whose image of a preset is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessMode {
    /// The registry of the installation.
    #[default]
    Public,
    /// The user: [`PresetOptions::image`].
    Private,
}

/// The images of a preset, or how its weights are downloaded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PresetOptions {
    /// The image, with its tag or digest. Beside [`Self::weights_image`], the one of the server.
    #[serde(default, deserialize_with = "tolerant::empty", skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// An image of weights alone.
    #[serde(default, deserialize_with = "tolerant::empty", skip_serializing_if = "Option::is_none")]
    pub weights_image: Option<String>,
    /// Names of secrets, in the workspace's namespace, to pull them with.
    #[serde(default, deserialize_with = "tolerant::null", skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<String>,
    /// The name of a secret, in the workspace's namespace, with a token of the hub in its key `HF_TOKEN`.
    #[serde(default, deserialize_with = "tolerant::empty", skip_serializing_if = "Option::is_none")]
    pub model_access_secret: Option<String>,
    /// The name of a PersistentVolumeClaim, in the workspace's namespace, that keeps what is downloaded.
    #[serde(default, deserialize_with = "tolerant::empty", skip_serializing_if = "Option::is_none")]
    pub weights_claim: Option<String>,
}

impl PresetOptions {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// An adapter, and how strongly it acts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdapterSpec {
    /// Where the adapter comes from.
    pub source: AdapterSource,
    /// Multiplier of the adapter's weights, a number from 0 to 1 as text; 1 if absent.
    #[serde(default, deserialize_with = "tolerant::empty", skip_serializing_if = "Option::is_none")]
    pub strength: Option<String>,
}

/// Where an adapter comes from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdapterSource {
    /// Names the init container, and the folder that the adapter goes to.
    pub name: String,
    /// The image that holds the adapter in its folder `/data`.
    #[serde(default, deserialize_with = "tolerant::empty", skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Names of secrets, in the workspace's namespace, to pull it with.
    #[serde(default, deserialize_with = "tolerant::null", skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<String>,
    /// Addresses of the adapter's files.
    #[serde(default, deserialize_with = "tolerant::null", skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// A volume that holds the adapter; it is named when it is mounted.
    #[serde(default, with = "nameless", skip_serializing_if = "Option::is_none")]
    pub volume_source: Option<Box<Volume>>,
}

/// A volume's source without a name. Kubernetes' OpenAPI document, which our types come from, has it as part of [`Volume`] only.
mod nameless {
    use super::{Deserialize, Deserializer, Serialize, Serializer, Value, Volume, de, ser};

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<Volume>>, D::Error> {
        let volume = Option::<Box<Volume>>::deserialize(deserializer)?;
        match volume {
            Some(volume) if !volume.name.is_empty() => {
                Err(de::Error::custom("a volume source has no name; the volume is named for you"))
            }
            volume => Ok(volume),
        }
    }

    pub fn serialize<S: Serializer>(volume: &Option<Box<Volume>>, serializer: S) -> Result<S::Ok, S::Error> {
        let mut value = serde_json::to_value(volume).map_err(ser::Error::custom)?;
        if let Value::Object(fields) = &mut value {
            fields.shift_remove("name");
        }
        value.sort_all_objects();
        value.serialize(serializer)
    }
}
