//! A pod's own: its namespaces, its volumes, its names of others.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::{Container, Pod, Volume};
use kube::ResourceExt;
use tokio::process::Child;

use super::{
    image::Image,
    network::{PodNetwork, hold},
};

/// What all containers of a pod share, for as long as it runs.
pub struct Sandbox {
    pub ip: String,
    pub folder: PathBuf,
    /// Holds the namespaces, and the volumes that are in memory.
    holder: Child,
}

/// Something of this machine at a path of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub source: PathBuf,
    pub path: String,
    pub read_only: bool,
}

impl Sandbox {
    /// `folder` is the pod's own, and not there yet.
    pub async fn start(network: &PodNetwork, pod: &Pod, folder: PathBuf) -> Self {
        fs::create_dir_all(folder.join("containers")).unwrap();
        let mut in_memory = Vec::new();
        for volume in volumes(pod) {
            let Some(directory) = &volume.empty_dir else { continue };
            let path = folder.join("volumes").join(&volume.name);
            fs::create_dir_all(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
            if directory.medium.as_deref() == Some("Memory") {
                in_memory.push(path.to_str().unwrap().to_owned());
            }
        }
        let hosts = folder.join("hosts");
        fs::write(&hosts, "").unwrap();
        fs::write(folder.join("resolv.conf"), "").unwrap();
        let script = "ip link set lo up
            echo \"$1\" >/proc/sys/kernel/hostname
            shift
            for volume; do mount -t tmpfs -o mode=0777 memory \"$volume\"; done";
        let name = pod.name_any();
        let arguments: Vec<&str> = [name.as_str()].into_iter().chain(in_memory.iter().map(String::as_str)).collect();
        let holder = hold(&["--mount", "--net", "--uts", "--ipc"], script, &arguments).await;
        let ip = network.join(pod, holder.id().unwrap(), &hosts).await;
        Self { ip, folder, holder }
    }

    /// The process that holds the namespaces.
    pub fn pid(&self) -> u32 {
        self.holder.id().unwrap()
    }

    /// Ends what is left of the pod.
    pub async fn end(mut self, network: &PodNetwork, pod: &Pod) {
        network.leave(&pod.uid().unwrap());
        self.holder.kill().await.unwrap();
        // Other processes of the pod may still be ending, and write.
        let _ = fs::remove_dir_all(&self.folder);
    }

    /// What a container has where, parents first.
    ///
    /// # Errors
    ///
    /// The image of a volume, where there is none.
    pub fn mounts(
        &self,
        pod: &Pod,
        container: &Container,
        image: &Image,
        pull: impl Fn(&str) -> Option<Image>,
    ) -> Result<Vec<Mount>, String> {
        let mut mounts = files_of(image, "");
        for name in ["hosts", "resolv.conf"] {
            mounts.push(Mount { source: self.folder.join(name), path: format!("/etc/{name}"), read_only: true });
        }
        for mount in container.volume_mounts.iter().flatten() {
            let volume = volumes(pod).find(|volume| volume.name == mount.name);
            let volume =
                volume.unwrap_or_else(|| panic!("{} mounts {}, which is no volume", container.name, mount.name));
            if volume.empty_dir.is_some() {
                let source =
                    self.folder.join("volumes").join(&volume.name).join(mount.sub_path.as_deref().unwrap_or(""));
                let read_only = mount.read_only == Some(true);
                mounts.push(Mount { source, path: mount.mount_path.clone(), read_only });
            } else if let Some(reference) = volume.image.as_ref().and_then(|image| image.reference.as_deref()) {
                mounts.extend(files_of(&pull(reference).ok_or(reference)?, &mount.mount_path));
            } else {
                panic!("the simulated kubelet does not know such volumes: {volume:?}");
            }
        }
        mounts.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(mounts)
    }
}

/// What an image has, below a path.
fn files_of(image: &Image, below: &str) -> Vec<Mount> {
    let mount = |(source, path): &(PathBuf, String)| Mount {
        source: source.clone(),
        path: format!("{}{path}", below.trim_end_matches('/')),
        read_only: true,
    };
    image.files.iter().map(mount).collect()
}

fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten())
}

/// Where the folders of pods are.
pub fn folder(plane: &Path, pod: &Pod) -> PathBuf {
    plane.join("pods").join(pod.uid().unwrap())
}
