//! Our program in a container whose image may lack it.

use k8s_openapi::api::core::v1::{Container, Volume, VolumeMount};

use super::{container, folder, strings};

/// Our program in a volume of a pod: an init container copies it there from an image of ours, before the container starts that runs it.
#[derive(Debug)]
pub struct CarriedProgram {
    /// The volume.
    pub volume: Volume,
    /// The init container that fills it.
    pub carrier: Container,
    /// Where containers have it.
    pub mount: VolumeMount,
}

impl CarriedProgram {
    /// The program in the folder `path`, where `image` copies it to when its own program gets these arguments. `name` is that of the
    /// volume and of the init container.
    pub fn new(name: &str, path: &str, image: &str, arguments: &[&str]) -> Self {
        let (volume, mount) = folder(name, path);
        let carrier = Container {
            command: Some(strings(&["kaito"])),
            args: Some(strings(arguments)),
            volume_mounts: Some(vec![mount.clone()]),
            ..container(name, image)
        };
        Self { volume, carrier, mount }
    }
}
