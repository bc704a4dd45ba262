//! Adapters of a pod: each lies in a folder of its name, copied from an image or mounted as a volume.

use k8s_openapi::api::core::v1::{Container, Volume, VolumeMount};

use crate::{
    reason::{Problem, Reason},
    runtime::{ADAPTERS, empty_dir, restricted},
    workspace::AdapterSpec,
};

/// The volume that init containers copy adapters to.
const VOLUME: &str = "adapters";

/// What the adapters of a workspace add to its pods.
#[derive(Debug, Default)]
pub struct Parts {
    /// Init containers that copy adapters out of their images.
    pub fetchers: Vec<Container>,
    /// Volumes of the pod.
    pub volumes: Vec<Volume>,
    /// Mounts of the server.
    pub mounts: Vec<VolumeMount>,
}

/// What the adapters of a workspace add to its pods.
///
/// # Errors
///
/// Where an adapter has no source, or a name that cannot be a folder's.
pub fn parts(adapters: &[AdapterSpec]) -> Result<Parts, Problem> {
    let mut parts = Parts::default();
    for adapter in adapters {
        let name = &adapter.source.name;
        let is_name =
            !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        let path = format!("{ADAPTERS}/{name}");
        let mount = VolumeMount { mount_path: path.clone(), read_only: Some(true), ..VolumeMount::default() };
        match (is_name, volume(adapter), &adapter.source.image) {
            (true, Some(volume), _) => {
                parts.mounts.push(VolumeMount { name: volume.name.clone(), ..mount });
                parts.volumes.push(volume);
            }
            (true, None, Some(image)) => {
                if parts.fetchers.is_empty() {
                    parts.volumes.push(empty_dir(VOLUME));
                }
                parts.fetchers.push(fetcher(name, image, &path));
                parts.mounts.push(VolumeMount { name: VOLUME.to_owned(), sub_path: Some(name.clone()), ..mount });
            }
            _ => {
                return Err(Problem {
                    reason: Reason::AdapterInvalid,
                    message: format!(
                        "the adapter {name:?} cannot be fetched: it needs a name of lower-case letters, digits and dashes, \
                         and source.image or source.volumeSource"
                    ),
                });
            }
        }
    }
    Ok(parts)
}

/// An init container that copies an image's `/data`. The name becomes part of a shell command, so it must have been checked.
fn fetcher(name: &str, image: &str, path: &str) -> Container {
    Container {
        name: format!("adapter-{name}"),
        image: Some(image.to_owned()),
        command: Some(vec!["/bin/sh".to_owned(), "-c".to_owned()]),
        args: Some(vec![format!("mkdir -p {path} && cp -r /data/. {path}/")]),
        volume_mounts: Some(vec![VolumeMount {
            name: VOLUME.to_owned(),
            mount_path: ADAPTERS.to_owned(),
            ..VolumeMount::default()
        }]),
        security_context: Some(restricted()),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..Container::default()
    }
}

/// The adapter's volume. Kubernetes has a volume's name and its source in one object.
fn volume(adapter: &AdapterSpec) -> Option<Volume> {
    let mut volume = serde_json::to_value(adapter.source.volume_source.as_deref()?).ok()?;
    volume.as_object_mut()?.insert("name".to_owned(), format!("adapter-{}", adapter.source.name).into());
    serde_json::from_value(volume).ok()
}
