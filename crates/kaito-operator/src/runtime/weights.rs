//! How a pod gets the weights of its model, where the image of its server does not hold them.
//!
//! Every way ends in one volume, [`VOLUME`], which the containers of the runtimes mount read-only at [`WEIGHTS`]. An image is mounted
//! where the cluster has image volumes; else an init container, [`FETCHER`], fills the volume before the others start. What it does can
//! be repeated: whatever lies there whole stays when the container is restarted.

use k8s_openapi::{
    api::core::v1::{
        Container, ContainerStatus, EnvVar, EnvVarSource, ImageVolumeSource, KeyToPath,
        PersistentVolumeClaimVolumeSource, Pod, PodSpec, ProjectedVolumeSource, SecretKeySelector, SecretProjection,
        Volume, VolumeMount, VolumeProjection,
    },
    apimachinery::pkg::api::resource::Quantity,
};
use kaito_presets::{GIB, Preset};

use super::{IMAGE_WEIGHTS, Mounted, WEIGHTS, container, empty_dir, mount, program::CarriedProgram, strings, variable};

/// The volume of the weights.
const VOLUME: &str = "weights";
/// The init container that fills it.
pub const FETCHER: &str = "weights";
/// The init container that lays our program ready for [`FETCHER`], where that runs an image which may lack it, and every other.
const TOOL: &str = "weights-tool";
/// Where both have it.
const TOOL_FOLDER: &str = "/mnt/weights-tool";
/// The volume of the secrets by which [`FETCHER`] pulls an image, and its folder.
const PULL_SECRETS: &str = "pull-secrets";
const PULL_SECRETS_FOLDER: &str = "/etc/kaito/pull-secrets";
/// The key of a secret of the type `kubernetes.io/dockerconfigjson`.
const DOCKER_CONFIG: &str = ".dockerconfigjson";
/// The key, in a secret, of a token of the hub, and the variable that our program reads it from.
const HUB_TOKEN: &str = "HF_TOKEN";

/// Where the weights of a pod come from. All but the first two take an init container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weights<'a> {
    /// The server's own image holds them.
    Inside,
    /// An image, which is mounted.
    Mounted(&'a str),
    /// An image with a file system of its own, which the init container runs and copies them out of.
    Copied(&'a str),
    /// An image of weights alone, which cannot run: its layers are fetched from the registry.
    Pulled {
        /// The image.
        image: &'a str,
        /// Names of secrets to pull it with.
        secrets: &'a [String],
    },
    /// The hub.
    Downloaded {
        /// The name of the secret with a token for it.
        secret: Option<&'a str>,
        /// The name of the claim of the volume that they are kept in; without one they go with the pod.
        claim: Option<&'a str>,
    },
}

/// What an init container adds to a pod.
#[derive(Debug, Default)]
pub struct Fetching {
    /// The init containers, in their order.
    pub containers: Vec<Container>,
    /// Volumes of theirs alone.
    pub volumes: Vec<Volume>,
}

impl Weights<'_> {
    /// The folder of the weights in the containers that mount them; none where the image's environment says it.
    pub fn folder(self, preset: &Preset) -> Option<String> {
        match self {
            Self::Inside => None,
            Self::Mounted(_) | Self::Copied(_) | Self::Pulled { .. } => Some(format!("{WEIGHTS}{IMAGE_WEIGHTS}")),
            // A claim may hold several models.
            Self::Downloaded { .. } => Some(format!("{WEIGHTS}/{}", preset.name)),
        }
    }

    /// The volume, and where containers have it, read-only.
    pub(super) fn mounted(self) -> Option<Mounted> {
        let volume = match self {
            Self::Inside => return None,
            Self::Mounted(image) => Volume {
                name: VOLUME.to_owned(),
                image: Some(ImageVolumeSource { reference: Some(image.to_owned()), pull_policy: None }),
                ..Volume::default()
            },
            Self::Downloaded { claim: Some(claim), .. } => Volume {
                name: VOLUME.to_owned(),
                persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                    claim_name: claim.to_owned(),
                    read_only: None,
                }),
                ..Volume::default()
            },
            Self::Copied(_) | Self::Pulled { .. } | Self::Downloaded { claim: None, .. } => empty_dir(VOLUME),
        };
        Some((volume, VolumeMount { read_only: Some(true), ..mount(VOLUME, WEIGHTS) }))
    }

    /// The init containers that fill the volume. `kaito` is an image of our program; `hub` is the address of another hub than the
    /// usual one.
    pub fn fetching(self, preset: &Preset, kaito: &str, hub: Option<&str>) -> Fetching {
        let Some(to) = self.folder(preset) else { return Fetching::default() };
        let filled = |image: &str, command: &[&str], arguments: Vec<String>| Container {
            command: Some(strings(command)),
            args: Some(arguments),
            volume_mounts: Some(vec![mount(VOLUME, WEIGHTS)]),
            ..container(FETCHER, image)
        };
        let extract = |image: &str| strings(&["image", "extract", image, "--path", IMAGE_WEIGHTS, "--to", &to]);
        let mut fetching = match self {
            Self::Inside | Self::Mounted(_) => return Fetching::default(),
            Self::Copied(image) => {
                let at = |name: &str| format!("{TOOL_FOLDER}/{name}");
                let (loader, libraries, program) = (at("ld.so"), at("lib"), at("kaito"));
                let command = [loader.as_str(), "--library-path", &libraries, &program];
                let mut fetcher = filled(image, &command, extract("/"));
                // With its loader and libraries, which the image may have others of.
                let tool = CarriedProgram::new(TOOL, TOOL_FOLDER, kaito, &["image", "program", "--to", TOOL_FOLDER]);
                fetcher.volume_mounts.get_or_insert_default().push(tool.mount);
                Fetching { containers: vec![tool.carrier, fetcher], volumes: vec![tool.volume] }
            }
            Self::Pulled { image, secrets } => {
                let mut fetcher = filled(kaito, &["kaito"], extract(image));
                let mut volumes = Vec::new();
                if !secrets.is_empty() {
                    let files = secrets.iter().map(|secret| format!("{PULL_SECRETS_FOLDER}/{secret}.json"));
                    let files = files.collect::<Vec<_>>().join(",");
                    fetcher.args.get_or_insert_default().extend(["--authfile".to_owned(), files]);
                    let mounted = VolumeMount { read_only: Some(true), ..mount(PULL_SECRETS, PULL_SECRETS_FOLDER) };
                    fetcher.volume_mounts.get_or_insert_default().push(mounted);
                    volumes.push(pull_secrets(secrets));
                }
                Fetching { containers: vec![fetcher], volumes }
            }
            Self::Downloaded { secret, .. } => {
                // The log tells the progress.
                let download = strings(&["download", preset.name, "--link", &to, "--log", "info"]);
                let mut fetcher = filled(kaito, &["kaito"], download);
                let cache = variable("HF_HUB_CACHE", &format!("{WEIGHTS}/hub"));
                let endpoint = hub.map(|hub| variable("HF_ENDPOINT", hub));
                fetcher.env = Some([Some(cache), endpoint, secret.map(token)].into_iter().flatten().collect());
                Fetching { containers: vec![fetcher], volumes: Vec::new() }
            }
        };
        if let (Some(fetcher), Some((Volume { empty_dir: Some(_), .. }, _))) =
            (fetching.containers.last_mut(), self.mounted())
        {
            // The node has to have room for them: a pod that fills its disk would be evicted.
            let bytes = preset.shape.weights_bytes(preset.dtype);
            let room = Quantity(format!("{}Gi", bytes.div_ceil(GIB) + 1));
            fetcher.resources.get_or_insert_default().requests = Some([("ephemeral-storage".to_owned(), room)].into());
        }
        fetching
    }
}

/// The token of the hub, from a secret. Where the secret or its key is missing, the kubelet says so and starts nothing.
fn token(secret: &str) -> EnvVar {
    EnvVar {
        name: HUB_TOKEN.to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            secret_key_ref: Some(SecretKeySelector {
                name: secret.to_owned(),
                key: HUB_TOKEN.to_owned(),
                optional: None,
            }),
            ..EnvVarSource::default()
        }),
    }
}

/// The secrets as files of credentials, each of its name. One that is missing does not hold the pod up without a word: our program
/// says that its file is.
fn pull_secrets(secrets: &[String]) -> Volume {
    let projection = |secret: &String| VolumeProjection {
        secret: Some(SecretProjection {
            name: secret.clone(),
            items: Some(vec![KeyToPath { key: DOCKER_CONFIG.to_owned(), path: format!("{secret}.json"), mode: None }]),
            optional: Some(true),
        }),
        ..VolumeProjection::default()
    };
    Volume {
        name: PULL_SECRETS.to_owned(),
        projected: Some(ProjectedVolumeSource {
            sources: Some(secrets.iter().map(projection).collect()),
            default_mode: None,
        }),
        ..Volume::default()
    }
}

/// Whether pods of this template copy or fetch the weights of an image, rather than to mount it.
pub fn is_copied_in(pod: &PodSpec) -> bool {
    let is_fetched = pod.init_containers.iter().flatten().any(|container| container.name == FETCHER);
    is_fetched && !pod.volumes.iter().flatten().any(|volume| volume.name == VOLUME && volume.image.is_some())
}

/// The secret from which a pod has its token of the hub.
pub fn token_secret(pod: &Pod) -> Option<&str> {
    let fetcher = pod.spec.as_ref()?.init_containers.iter().flatten().find(|container| container.name == FETCHER)?;
    let token = fetcher.env.iter().flatten().find(|variable| variable.name == HUB_TOKEN)?;
    Some(token.value_from.as_ref()?.secret_key_ref.as_ref()?.name.as_str())
}

/// The container by which the weights are on their way into a pod, if they are.
pub fn running_fetcher(pod: &Pod) -> Option<&ContainerStatus> {
    let statuses = pod.status.as_ref()?.init_container_statuses.as_ref()?;
    let is_running = |container: &&ContainerStatus| {
        container.name == FETCHER && container.state.as_ref().is_some_and(|state| state.running.is_some())
    };
    statuses.iter().find(is_running)
}

/// What the end of the log of [`FETCHER`] says of its progress, as `43 % of 12.6 GiB, 5m left`: from the percentage to the end of
/// the last line that has one.
pub fn progress(log: &str) -> Option<String> {
    const LONGEST: usize = 120;
    let found = log.lines().rev().find_map(from_percentage)?;
    Some(found.chars().filter(|c| !c.is_control()).take(LONGEST).collect())
}

fn from_percentage(line: &str) -> Option<&str> {
    let percent = line.find(" % of ")?;
    let digits = line.get(..percent)?.bytes().rev().take_while(u8::is_ascii_digit).count();
    (digits > 0).then(|| line.get(percent - digits..)).flatten().map(str::trim_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_of_a_log_that_has_a_percentage_tells_the_progress() {
        for (log, told) in [
            ("", None),
            ("no progress % of it\n", None),
            (
                "INFO pulling: 3 % of 12.6 GiB\nINFO pulling: 43 % of 12.6 GiB, 5m left\n",
                Some("43 % of 12.6 GiB, 5m left"),
            ),
            (
                "INFO pulling: 43 % of 12.6 GiB, 5m left\nWARN trying again cause=\"reset\"",
                Some("43 % of 12.6 GiB, 5m left"),
            ),
            // The beginning of a line may be cut off.
            ("7 % of 1.0 GiB\r\n", Some("7 % of 1.0 GiB")),
            ("x: 7 % of \u{1b}[2J1.0 GiB", Some("7 % of [2J1.0 GiB")),
        ] {
            assert_eq!(progress(log).as_deref(), told, "{log:?}");
        }
        assert_eq!(progress(&format!("1 % of {}", "a".repeat(9000))).unwrap().chars().count(), 120);
    }
}
