use std::borrow::Cow;

use serde::Deserialize;

use super::{Cloud, ComputeCapability, Gpu, GpuVendor, InstanceType};
use crate::GIB;

/// A type of node as a user describes it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CustomInstanceType {
    /// What the nodes' label `node.kubernetes.io/instance-type` says.
    pub name: String,
    /// GPUs of a node.
    pub gpus: u32,
    /// Memory of one GPU that a program can have, a Kubernetes quantity like `24Gi`.
    pub gpu_memory: String,
    /// Who makes them; NVIDIA unless something else is said.
    #[serde(default)]
    pub gpu_vendor: GpuVendor,
    /// `NVIDIA L4`.
    #[serde(default)]
    pub gpu_model: Option<String>,
    /// `8.9`; of NVIDIA's GPUs only.
    #[serde(default)]
    pub compute_capability: Option<String>,
    /// CPUs of a node.
    #[serde(default)]
    pub cpus: Option<u32>,
    /// Main memory of a node, a Kubernetes quantity.
    #[serde(default)]
    pub memory: Option<String>,
}

/// An invalid description of an instance type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("instance type {name:?}: {field} {problem}")]
pub struct InvalidInstanceType {
    name: String,
    field: &'static str,
    problem: String,
}

impl InvalidInstanceType {
    pub(super) fn new(name: &str, field: &'static str, problem: impl Into<String>) -> Self {
        Self { name: name.to_owned(), field, problem: problem.into() }
    }
}

/// Nobody builds nodes with more; a larger number is taken for a mistake.
const MOST_GPUS: u32 = 64;
const MOST_GPU_MEMORY: u64 = 1024 * GIB;
const MOST_MEMORY: u64 = 1024 * MOST_GPU_MEMORY;
/// Longest value of a label in Kubernetes.
const LONGEST_LABEL: usize = 63;

impl TryFrom<CustomInstanceType> for InstanceType {
    type Error = InvalidInstanceType;

    fn try_from(described: CustomInstanceType) -> Result<Self, InvalidInstanceType> {
        let invalid = |field, problem: String| InvalidInstanceType::new(&described.name, field, problem);
        if !is_label_value(&described.name) {
            return Err(invalid(
                "name",
                format!(
                    "must be the value of a label: 1 to {LONGEST_LABEL} letters, digits, '-', '_' and '.', beginning and \
                     ending with a letter or a digit"
                ),
            ));
        }
        if described.gpus == 0 || described.gpus > MOST_GPUS {
            return Err(invalid("gpus", format!("is {}, but must be from 1 to {MOST_GPUS}", described.gpus)));
        }
        let size = |field, text: &str, most: u64| match quantity(text) {
            None => Err(invalid(field, format!("is {text:?}, but must be a quantity like 24Gi"))),
            Some(bytes) if bytes < GIB => Err(invalid(field, format!("is {text:?}, which is less than 1Gi"))),
            Some(bytes) if bytes > most => {
                Err(invalid(field, format!("is {text:?}, which is more than {}Gi", most / GIB)))
            }
            Some(bytes) => Ok(bytes),
        };
        let gpu_memory = size("gpuMemory", &described.gpu_memory, MOST_GPU_MEMORY)?;
        let memory = described.memory.as_deref().map(|text| size("memory", text, MOST_MEMORY)).transpose()?;
        if described.gpu_vendor != GpuVendor::Nvidia && described.compute_capability.is_some() {
            let vendor = described.gpu_vendor;
            return Err(invalid(
                "computeCapability",
                format!("is given, but GPUs of {vendor} have none: leave it out"),
            ));
        }
        let compute_capability = match described.compute_capability.as_deref() {
            None => None,
            Some(text) => Some(capability(text).ok_or_else(|| {
                invalid("computeCapability", format!("is {text:?}, but must be two numbers like \"8.9\", in quotes"))
            })?),
        };
        if described.cpus == Some(0) {
            return Err(invalid("cpus", "is 0".to_owned()));
        }
        let model = described.gpu_model.filter(|model| !model.is_empty()).unwrap_or_else(|| "GPU".to_owned());
        Ok(Self {
            cloud: Cloud::Custom,
            gpus: described.gpus,
            gpu: Gpu {
                vendor: described.gpu_vendor,
                model: Cow::Owned(model),
                memory: gpu_memory,
                usable_memory: gpu_memory,
                compute_capability,
            },
            cpus: described.cpus,
            memory,
            name: Cow::Owned(described.name),
        })
    }
}

fn is_label_value(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    bytes.len() <= LONGEST_LABEL
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

fn capability(text: &str) -> Option<ComputeCapability> {
    let (major, minor) = text.split_once('.')?;
    Some(ComputeCapability { major: major.parse().ok()?, minor: minor.parse().ok()? })
}

/// Bytes of a Kubernetes quantity of memory; fractions of a byte are cut off.
pub(crate) fn quantity(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let unit: u128 = match suffix {
        "" => 1,
        "k" => 1000,
        "M" => 1000_u128.pow(2),
        "G" => 1000_u128.pow(3),
        "T" => 1000_u128.pow(4),
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || whole.len() > 18 || fraction.len() > 9 {
        return None;
    }
    let digits = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<u128>().ok() };
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let bytes = digits(whole)?.checked_mul(unit)?.checked_add(digits(fraction)?.checked_mul(unit)? / scale)?;
    u64::try_from(bytes).ok()
}
