//! The Deployment or StatefulSet of a workspace, and its pods.

use std::collections::BTreeSet;

use k8s_openapi::{
    api::{
        apps::v1::{
            Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment, StatefulSet, StatefulSetSpec,
            StatefulSetUpdateStrategy,
        },
        core::v1::{LocalObjectReference, PodSecurityContext, PodSpec, PodTemplateSpec, SeccompProfile},
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use kaito_presets::{ImageAccess, Preset, WorkloadKind};

use super::{
    adapters,
    model::{Model, PresetModel},
    object::{Object, metadata},
    options::Options,
    placement,
    replacement::ON_DELETE,
    services::headless_name,
};
use crate::{
    layout::Layout,
    reason::{Problem, Reason},
    runtime::{self, Images, Launch, Ranks, Server, Weights},
    workspace::{AccessMode, AdapterSpec, PresetOptions, PresetSpec, Runtime, Workspace},
};

/// The user and group of pods, which no common image uses.
const USER: i64 = 65532;
/// How long a pod may take to end. Its server gives running requests 180 s, and needs a moment to break off the rest. The supervisor
/// of an engine beside it sees that it has gone and tells the engine to end, which has
/// [`ENGINE_GRACE_SECONDS`](runtime::ENGINE_GRACE_SECONDS); those of other ranks hear of it and do the same. What remains of the 20 s
/// is for the noticing.
pub const TERMINATION_GRACE_SECONDS: i64 = 200;

/// The workload that serves a workspace's model.
///
/// # Errors
///
/// Where the workspace asks for what cannot be had.
pub fn workload(
    workspace: &Workspace,
    model: &Model<'_>,
    layout: &Layout,
    options: &Options,
) -> Result<Object, Problem> {
    let mut template = match model {
        Model::Preset(model) => preset_pods(workspace, model, layout, options)?,
        Model::Template(template) => template_pods(workspace, template),
    };
    placement::spread(&mut template, workspace, layout);
    let metadata = metadata(workspace, workspace.name().to_owned());
    let selector = LabelSelector { match_labels: Some(workspace.owned_labels()), match_expressions: None };
    let replicas = i32::try_from(layout.pods).ok();
    Ok(match layout.kind {
        WorkloadKind::Deployment => Object::Deployment(Deployment {
            metadata,
            spec: Some(DeploymentSpec {
                replicas,
                selector,
                // There is no spare node to start a new pod on before an old one has ended.
                strategy: Some(DeploymentStrategy {
                    type_: Some("RollingUpdate".to_owned()),
                    rolling_update: Some(RollingUpdateDeployment {
                        max_surge: Some(IntOrString::Int(0)),
                        max_unavailable: Some(IntOrString::Int(1)),
                    }),
                }),
                progress_deadline_seconds: model.as_preset().and_then(|model| progress_deadline(model.preset)),
                revision_history_limit: Some(3),
                template,
                ..DeploymentSpec::default()
            }),
            status: None,
        }),
        WorkloadKind::StatefulSet => Object::StatefulSet(StatefulSet {
            metadata,
            spec: Some(StatefulSetSpec {
                replicas,
                selector,
                service_name: Some(headless_name(workspace)),
                // No rank becomes ready before all of them run.
                pod_management_policy: Some("Parallel".to_owned()),
                update_strategy: Some(StatefulSetUpdateStrategy {
                    type_: Some(if layout.pods > 1 { ON_DELETE } else { "RollingUpdate" }.to_owned()),
                    rolling_update: None,
                }),
                revision_history_limit: Some(3),
                template,
                ..StatefulSetSpec::default()
            }),
            status: None,
        }),
    })
}

/// As long as the preset may take to load, and ten minutes to pull the image.
fn progress_deadline(preset: &Preset) -> Option<i32> {
    i32::try_from(preset.workload.ready_within.as_secs().saturating_add(600)).ok()
}

/// The image of our server, the user's own or the installation's, and where the weights come from.
fn images<'a>(
    model: &PresetModel<'a>,
    runtime: Runtime,
    public: Option<&'a str>,
    options: &'a Options,
) -> Result<(&'a str, Weights<'a>), Problem> {
    let PresetModel { preset, spec, mounts_weights, .. } = *model;
    let PresetOptions { image, weights_image, image_pull_secrets, model_access_secret, weights_claim } =
        &spec.preset_options;
    let given = |image: &'a Option<String>| image.as_deref().filter(|image| !image.is_empty());
    let own = options.server_image.as_deref();
    let (secret, claim) = (given(model_access_secret), given(weights_claim));
    let from_hub = secret.is_some() || claim.is_some();
    let download = || match own {
        Some(server) => Ok((server, Weights::Downloaded { secret, claim })),
        None => Err(Problem {
            reason: Reason::ServerImageMissing,
            message: format!(
                "the controller knows no image of a server to download the weights of {} with: give it --server-image",
                preset.name
            ),
        }),
    };
    let images = match spec.access_mode {
        AccessMode::Private => match (given(image), given(weights_image)) {
            (None, None) if from_hub => return download(),
            (None, None) => {
                return Err(Problem {
                    reason: Reason::ImageMissing,
                    message: format!(
                        "{} is private, so inference.preset.presetOptions.image must name your image of it, which `kaito image \
                         build {0}` makes, or modelAccessSecret a secret with a token of the hub",
                        preset.name
                    ),
                });
            }
            (Some(image), None) => Images::Together(image),
            (server, Some(weights)) => Images::Apart { server, weights },
        },
        AccessMode::Public => match public {
            _ if from_hub => return download(),
            Some(public) => Images::Together(public),
            // Nobody has to build images of what anybody may download.
            None if own.is_some() && preset.workload.image == ImageAccess::Public => return download(),
            None => {
                return Err(Problem {
                    reason: Reason::RegistryMissing,
                    message: format!(
                        "the controller knows no registry with an image of {}, nor an image of a server to download it with: give it \
                         --preset-registry or --server-image, or set accessMode: private and presetOptions.image",
                        preset.name
                    ),
                });
            }
        },
    };
    match images.of(runtime, own, image_pull_secrets, mounts_weights) {
        (Some(server), weights) => Ok((server, weights)),
        (None, _) => Err(Problem {
            reason: Reason::ServerImageMissing,
            message: "inference.preset.presetOptions.weightsImage holds no server: name an image with one in \
                      presetOptions.image beside it, or give the controller --server-image"
                .to_owned(),
        }),
    }
}

fn preset_pods(
    workspace: &Workspace,
    model: &PresetModel<'_>,
    layout: &Layout,
    options: &Options,
) -> Result<PodTemplateSpec, Problem> {
    let PresetModel { preset, spec, adapters, runtime, config, mounts_weights: _, claim_problem } = model;
    let runtime = runtime.clone()?;
    if let Some(problem) = claim_problem {
        return Err(problem.clone());
    }
    let public = options.public_image(preset.name);
    let (image, weights) = images(model, runtime, public.as_deref(), options)?;
    let config = config.as_ref().map_err(Clone::clone)?;
    let launch = Launch {
        preset,
        image,
        vllm_image: options.engine_image(layout.vendor),
        weights,
        gpus: layout.gpus,
        vendor: layout.vendor,
        division: layout.division,
        hardware: layout.hardware,
        // By the instance type, not by the nodes that exist: those come and go, and the pods are not to be restarted for that.
        cpus: workspace.resource.instance_type.as_deref().and_then(|name| options.instance_types.find(name).ok()?.cpus),
        ranks: (layout.has_ranks() && layout.pods > 1).then(|| Ranks { pods: layout.pods, master: master(workspace) }),
        adapters,
        config,
    };
    let mut server = runtime::server(runtime, &launch)?;
    let parts = adapters::parts(adapters)?;
    let fetching = weights.fetching(preset, image, options.hub_endpoint.as_deref());
    server.volumes.extend(parts.volumes);
    server.volumes.extend(fetching.volumes);
    server.mount(parts.mounts);
    let Server { init_containers, containers, volumes } = server;
    // The small before the large: what is wrong with an adapter is to be seen before hours of copying.
    let init_containers = [init_containers, parts.fetchers, fetching.containers].concat();
    Ok(PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(workspace.owned_labels()), ..ObjectMeta::default() }),
        spec: Some(PodSpec {
            containers,
            init_containers: (!init_containers.is_empty()).then_some(init_containers),
            volumes: Some(volumes),
            image_pull_secrets: pull_secrets(spec, adapters),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(USER),
                run_as_group: Some(USER),
                fs_group: Some(USER),
                seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
                ..PodSecurityContext::default()
            }),
            // A server needs nothing of the API server.
            automount_service_account_token: Some(false),
            // For a service called `kaito`, Kubernetes would set KAITO_PORT, which is a flag of the server.
            enable_service_links: Some(false),
            termination_grace_period_seconds: Some(TERMINATION_GRACE_SECONDS),
            ..PodSpec::default()
        }),
    })
}

/// The user's pods, with the labels by which the workload finds them.
fn template_pods(workspace: &Workspace, template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    template.metadata.get_or_insert_default().labels.get_or_insert_default().extend(workspace.owned_labels());
    template
}

/// The first rank's DNS name in the cluster.
fn master(workspace: &Workspace) -> String {
    format!("{0}-0.{1}.{2}.svc", workspace.name(), headless_name(workspace), workspace.namespace())
}

fn pull_secrets(spec: &PresetSpec, adapters: &[AdapterSpec]) -> Option<Vec<LocalObjectReference>> {
    let of_adapters = adapters.iter().flat_map(|adapter| &adapter.source.image_pull_secrets);
    let mut seen = BTreeSet::new();
    let secrets: Vec<_> = spec
        .preset_options
        .image_pull_secrets
        .iter()
        .chain(of_adapters)
        .filter(|secret| seen.insert(secret.as_str()))
        .map(|secret| LocalObjectReference { name: secret.clone() })
        .collect();
    (!secrets.is_empty()).then_some(secrets)
}
