//! Machines that a cluster can have, as data.

mod aws;
mod azure;
mod custom;
mod google;
mod gpu;
mod vendor;

use std::{borrow::Cow, fmt};

pub use custom::{CustomInstanceType, InvalidInstanceType};
pub use gpu::{ComputeCapability, Gpu};
use serde::Serialize;
pub use vendor::GpuVendor;

use crate::GIB;

/// One type of node. Its name is the value of the node's label `node.kubernetes.io/instance-type`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InstanceType {
    /// The cloud's name for it; case counts.
    pub name: Cow<'static, str>,
    /// The cloud that offers it.
    pub cloud: Cloud,
    /// GPUs of a node.
    pub gpus: u32,
    /// All of them are of this model.
    pub gpu: Gpu,
    /// CPUs of a node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Bytes of main memory of a node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
}

impl InstanceType {
    /// An entry of the tables; memory in GiB.
    const fn published(name: &'static str, cloud: Cloud, gpus: u32, gpu: Gpu, cpus: u32, memory: u64) -> Self {
        Self { name: Cow::Borrowed(name), cloud, gpus, gpu, cpus: Some(cpus), memory: Some(memory * GIB) }
    }

    /// Published memory of all GPUs of a node, in bytes.
    pub fn gpu_memory(&self) -> u64 {
        self.gpu.memory.saturating_mul(self.gpus.into())
    }
}

/// Who offers a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cloud {
    /// Microsoft Azure.
    Azure,
    /// Amazon Web Services.
    Aws,
    /// Google Cloud.
    Google,
    /// Described by the user.
    Custom,
}

impl fmt::Display for Cloud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Cloud::Azure => "Azure",
            Cloud::Aws => "AWS",
            Cloud::Google => "Google",
            Cloud::Custom => "custom",
        })
    }
}

/// The built-in entry of that name.
///
/// # Errors
/// [`UnknownInstanceType`], with the name that may be meant.
pub fn find_instance_type(name: &str) -> Result<&'static InstanceType, UnknownInstanceType> {
    built_in().find(|known| known.name == name).ok_or_else(|| UnknownInstanceType::among(built_in(), name))
}

fn built_in<'a>() -> impl Iterator<Item = &'a InstanceType> {
    const CLOUDS: [&[InstanceType]; 3] = [azure::INSTANCE_TYPES, aws::INSTANCE_TYPES, google::INSTANCE_TYPES];
    CLOUDS.into_iter().flatten()
}

/// Every known type: the built-in ones and those that a user described.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InstanceTypes {
    custom: Vec<InstanceType>,
}

impl InstanceTypes {
    /// The built-in ones alone.
    pub fn built_in() -> Self {
        Self::default()
    }

    /// With these too. One that has the name of a built-in type replaces it: who runs the nodes knows best.
    ///
    /// # Errors
    /// For a description that is invalid, and for two with one name.
    pub fn with_custom(described: impl IntoIterator<Item = CustomInstanceType>) -> Result<Self, InvalidInstanceType> {
        let mut custom: Vec<InstanceType> = Vec::new();
        for one in described {
            let one = InstanceType::try_from(one)?;
            if custom.iter().any(|other| other.name == one.name) {
                return Err(InvalidInstanceType::new(&one.name, "name", "is given twice"));
            }
            custom.push(one);
        }
        Ok(Self { custom })
    }

    /// All, the user's first.
    pub fn iter(&self) -> impl Iterator<Item = &InstanceType> {
        let replaced = move |known: &InstanceType| self.custom.iter().any(|custom| custom.name == known.name);
        self.custom.iter().chain(built_in().filter(move |known| !replaced(known)))
    }

    /// The one of that name; case counts.
    ///
    /// # Errors
    /// [`UnknownInstanceType`], with the name that may be meant.
    pub fn find(&self, name: &str) -> Result<&InstanceType, UnknownInstanceType> {
        self.iter().find(|known| known.name == name).ok_or_else(|| UnknownInstanceType::among(self.iter(), name))
    }
}

/// No instance type has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct UnknownInstanceType {
    /// The name as it was given.
    pub name: String,
    /// The type that may be meant.
    pub nearest: Option<String>,
}

impl UnknownInstanceType {
    /// The nearest by edit distance, if at most a quarter of the name would have to change.
    fn among<'a>(known: impl Iterator<Item = &'a InstanceType>, name: &str) -> Self {
        let bare = |name: &str| name.trim().to_lowercase().replace("standard_", "");
        let wanted = bare(name);
        let nearest = known
            .map(|known| (strsim::osa_distance(&wanted, &bare(&known.name)), known))
            .min_by_key(|&(distance, _)| distance)
            .filter(|&(distance, _)| 4 * distance <= wanted.chars().count() && !wanted.is_empty())
            .map(|(_, known)| known.name.clone().into_owned());
        Self { name: name.to_owned(), nearest }
    }
}

impl fmt::Display for UnknownInstanceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "there is no instance type {:?} in the table", self.name)?;
        match &self.nearest {
            Some(nearest) if nearest.eq_ignore_ascii_case(&self.name) => {
                write!(f, "; did you mean {nearest}? The case of its letters counts")
            }
            Some(nearest) => write!(f, "; did you mean {nearest}?"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
