//! What images have, on this machine.

use std::{
    path::{Path, PathBuf},
    sync::Mutex,
};

use tokio::process::Command;

use super::super::lock;
use crate::control_plane::{kaito, printed, repository};

/// What an image has besides this machine's own programs.
#[derive(Debug, Clone, Default)]
pub struct Image {
    /// Files or folders of this machine, and their paths in the image.
    pub(super) files: Vec<(PathBuf, String)>,
    pub(super) environment: Vec<(String, String)>,
    /// What runs where a container has no command.
    pub(super) entrypoint: Vec<String>,
}

impl Image {
    /// The program under test, and nothing else.
    pub fn kaito() -> Self {
        Self {
            files: vec![(kaito(), "/usr/local/bin/kaito".to_owned())],
            entrypoint: vec!["kaito".to_owned()],
            ..Self::default()
        }
    }

    /// With further variables in its environment.
    pub fn with_environment(mut self, variables: &[(&str, &str)]) -> Self {
        self.environment.extend(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        self
    }

    /// Files without a program, such as weights.
    pub fn of_files(folder: &Path, at: &str) -> Self {
        Self { files: vec![(folder.to_owned(), at.to_owned())], ..Self::default() }
    }

    /// vLLM's build for CPUs, of an environment of Python: what its image for GPUs is told by nothing, this build is told by the
    /// environment.
    pub async fn vllm(python: &Path) -> Self {
        // The environment's Python is that of another folder.
        let mut command = Command::new(python);
        let base = printed(command.args(["-c", "import sys; print(sys.base_prefix)"]), "").await.stdout();
        let folder = python.ancestors().nth(2).unwrap();
        let startup = repository().join("tests/vllm/startup");
        let folders =
            [folder, Path::new(base.trim()), &startup].map(|path| (path.to_owned(), path.display().to_string()));
        let path = format!("{}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", folder.display());
        let environment = [
            ("PATH", path.as_str()),
            ("VIRTUAL_ENV", &folder.display().to_string()),
            ("PYTHONPATH", &startup.display().to_string()),
            ("TORCHDYNAMO_DISABLE", "1"),
            ("VLLM_CPU_KVCACHE_SPACE", "1"),
            ("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
            ("OMP_NUM_THREADS", "1"),
            ("GLOO_SOCKET_IFNAME", super::network::INTERFACE),
            ("DO_NOT_TRACK", "1"),
        ];
        Self {
            files: folders.into_iter().filter(|(path, _)| !path.starts_with("/usr")).collect(),
            environment: environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            entrypoint: vec!["vllm".to_owned(), "serve".to_owned()],
        }
    }
}

/// The registries of this cluster: images by what their references contain.
#[derive(Debug, Default)]
pub(in crate::kubelet) struct Images(Mutex<Vec<(String, Image)>>);

impl Images {
    pub fn push(&self, part: &str, image: Image) {
        lock(&self.0).push((part.to_owned(), image));
    }

    pub fn pull(&self, reference: &str) -> Option<Image> {
        lock(&self.0).iter().find(|(part, _)| reference.contains(part)).map(|(_, image)| image.clone())
    }
}
