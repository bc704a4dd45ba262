//! The Deployment or StatefulSet of a workspace, and its pods.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::{
        apps::v1::{
            Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment, StatefulSet, StatefulSetSpec,
            StatefulSetUpdateStrategy,
        },
        core::v1::{
            Affinity, LocalObjectReference, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm,
            PodAffinityTerm, PodAntiAffinity, PodSecurityContext, PodSpec, PodTemplateSpec, PreferredSchedulingTerm,
            SeccompProfile, Toleration,
        },
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use kaito_presets::{Preset, WorkloadKind};

use super::{
    Problem, adapters,
    layout::Layout,
    nodes::{GPU, INSTANCE_TYPE},
    object::{Object, metadata},
    observed::{Config, Observed},
    options::Options,
    services::headless_name,
};
use crate::{
    runtime::{self, Images, Launch, Ranks, Server, ServerConfig},
    workspace::{
        AccessMode, AdapterSpec, InferenceSpec, LABEL_WORKSPACE, PresetOptions, PresetSpec, Runtime, Workspace,
    },
};

/// The user and group of pods: nobody's on any common image.
const USER: i64 = 65532;
/// The server's limit for the end, which is that for a request, 180 s, and time to break off what is left then.
pub const TERMINATION_GRACE_SECONDS: i64 = 200;
const HOSTNAME: &str = "kubernetes.io/hostname";

/// The catalogue's preset that a workspace names.
///
/// # Errors
///
/// Where there is no such preset.
pub fn preset(spec: &PresetSpec) -> Result<&'static Preset, Problem> {
    kaito_presets::find(&spec.name)
        .map_err(|unknown| Problem { reason: "PresetUnknown", message: format!("{unknown}; see `kaito presets`") })
}

/// Said of an inference that names no model.
pub fn empty() -> Problem {
    Problem {
        reason: "InferenceEmpty",
        message: "inference has neither preset nor template; set one of them".to_owned(),
    }
}

/// The workload that serves a workspace's model.
///
/// # Errors
///
/// Where the workspace asks for what cannot be had.
pub fn workload(
    workspace: &Workspace,
    inference: &InferenceSpec,
    layout: &Layout,
    observed: &Observed,
    options: &Options,
) -> Result<Object, Problem> {
    let mut template = match (&inference.preset, &inference.template) {
        (Some(spec), _) => preset_pods(workspace, inference, spec, layout, observed, options)?,
        (None, Some(template)) => template_pods(workspace, template),
        (None, None) => return Err(empty()),
    };
    spread(&mut template, workspace, layout);
    let metadata = metadata(workspace, workspace.name().to_owned());
    let selector = LabelSelector { match_labels: Some(pod_labels(workspace)), match_expressions: None };
    let replicas = i32::try_from(layout.pods).ok();
    Ok(match layout.kind {
        WorkloadKind::Deployment => Object::Deployment(Deployment {
            metadata,
            spec: Some(DeploymentSpec {
                replicas,
                selector,
                // There is no spare node to start a new pod on before an old one ends.
                strategy: Some(DeploymentStrategy {
                    type_: Some("RollingUpdate".to_owned()),
                    rolling_update: Some(RollingUpdateDeployment {
                        max_surge: Some(IntOrString::Int(0)),
                        max_unavailable: Some(IntOrString::Int(1)),
                    }),
                }),
                progress_deadline_seconds: progress_deadline(inference),
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
                // No rank becomes ready before all run.
                pod_management_policy: Some("Parallel".to_owned()),
                update_strategy: Some(StatefulSetUpdateStrategy {
                    type_: Some("RollingUpdate".to_owned()),
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

/// As long as the preset may take to start, and a while for the image.
fn progress_deadline(inference: &InferenceSpec) -> Option<i32> {
    let preset = preset(inference.preset.as_ref()?).ok()?;
    i32::try_from(preset.workload.ready_within.as_secs().saturating_add(600)).ok()
}

fn pod_labels(workspace: &Workspace) -> BTreeMap<String, String> {
    BTreeMap::from([(LABEL_WORKSPACE.to_owned(), workspace.name().to_owned())])
}

/// What the ConfigMap that a workspace names says for its runtime.
///
/// # Errors
///
/// Where there is none, or it holds what cannot be.
pub fn config(
    workspace: &Workspace,
    runtime: Runtime,
    preset: &Preset,
    observed: &Observed,
) -> Result<ServerConfig, Problem> {
    match &observed.config {
        Config::NotRead => Ok(ServerConfig::default()),
        Config::Data(data) => runtime::config(runtime, preset, data),
        Config::Missing => Err(Problem {
            reason: "ConfigMissing",
            message: format!(
                "there is no ConfigMap {} in namespace {}, which inference.config names",
                workspace.inference.as_ref().and_then(|inference| inference.config.as_deref()).unwrap_or_default(),
                workspace.namespace()
            ),
        }),
    }
}

/// What serves a workspace's model.
///
/// # Errors
///
/// Where its annotation names nothing that there is.
pub fn runtime(workspace: &Workspace) -> Result<Runtime, Problem> {
    workspace.runtime().map_err(|unknown| Problem { reason: "RuntimeUnknown", message: unknown.to_string() })
}

/// The images of a preset, the user's own or the installation's: of the server, and of the weights where that is another.
fn images<'a>(
    spec: &'a PresetSpec,
    preset: &Preset,
    runtime: Runtime,
    public: Option<&'a str>,
    options: &'a Options,
) -> Result<(&'a str, Option<&'a str>), Problem> {
    let PresetOptions { image, weights_image, .. } = &spec.preset_options;
    let given = |image: &'a Option<String>| image.as_deref().filter(|image| !image.is_empty());
    let images = match spec.access_mode {
        AccessMode::Private => match (given(image), given(weights_image)) {
            (None, None) => {
                return Err(Problem {
                    reason: "ImageMissing",
                    message: format!(
                        "{} is private, so inference.preset.presetOptions.image must name your image of it; `kaito image \
                         build {0}` makes one",
                        preset.name
                    ),
                });
            }
            (server, None) => Images { server, weights: None, vllm: &options.vllm_image },
            (server, weights) => {
                Images { server: server.or(options.server_image.as_deref()), weights, vllm: &options.vllm_image }
            }
        },
        AccessMode::Public if public.is_none() => {
            return Err(Problem {
                reason: "RegistryMissing",
                message: format!(
                    "the controller knows no registry with an image of {}: give it --preset-registry, or set accessMode: \
                     private and presetOptions.image",
                    preset.name
                ),
            });
        }
        AccessMode::Public => Images { server: public, weights: None, vllm: &options.vllm_image },
    };
    match images.of(runtime) {
        (Some(server), weights) => Ok((server, weights)),
        (None, _) => Err(Problem {
            reason: "ServerImageMissing",
            message: "inference.preset.presetOptions.weightsImage holds no server: name an image with one in \
                      presetOptions.image beside it, or give the controller --server-image"
                .to_owned(),
        }),
    }
}

fn preset_pods(
    workspace: &Workspace,
    inference: &InferenceSpec,
    spec: &PresetSpec,
    layout: &Layout,
    observed: &Observed,
    options: &Options,
) -> Result<PodTemplateSpec, Problem> {
    let preset = preset(spec)?;
    let runtime = runtime(workspace)?;
    let public = options.public_image(preset.name);
    let (image, weights) = images(spec, preset, runtime, public.as_deref(), options)?;
    let config = config(workspace, runtime, preset, observed)?;
    let launch = Launch {
        preset,
        image,
        weights,
        gpus: layout.gpus,
        division: layout.division,
        hardware: layout.hardware,
        // Those of the nodes that are there come and go, and the pods are not to be made anew for that.
        cpus: workspace.resource.instance_type.as_deref().and_then(|name| options.instance_types.find(name).ok()?.cpus),
        ranks: (layout.has_ranks() && layout.pods > 1).then(|| Ranks { pods: layout.pods, master: master(workspace) }),
        adapters: &inference.adapters,
        config: &config,
    };
    let Server { mut container, mut volumes } = runtime::server(runtime, &launch)?;
    let adapters = adapters::parts(&inference.adapters)?;
    volumes.extend(adapters.volumes);
    container.volume_mounts.get_or_insert_default().extend(adapters.mounts);
    Ok(PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(pod_labels(workspace)), ..ObjectMeta::default() }),
        spec: Some(PodSpec {
            containers: vec![container],
            init_containers: (!adapters.fetchers.is_empty()).then_some(adapters.fetchers),
            volumes: Some(volumes),
            image_pull_secrets: pull_secrets(spec, &inference.adapters),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(USER),
                run_as_group: Some(USER),
                fs_group: Some(USER),
                seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
                ..PodSecurityContext::default()
            }),
            // A model needs nothing of the API server.
            automount_service_account_token: Some(false),
            // A service called `kaito` would set KAITO_PORT, which is a flag of the server.
            enable_service_links: Some(false),
            termination_grace_period_seconds: Some(TERMINATION_GRACE_SECONDS),
            ..PodSpec::default()
        }),
    })
}

/// The user's pods, with the labels by which they are found.
fn template_pods(workspace: &Workspace, template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    template.metadata.get_or_insert_default().labels.get_or_insert_default().extend(pod_labels(workspace));
    template
}

/// The first rank's name in the cluster.
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

/// Says where pods may go: to any node that the workspace selects, one on each.
///
/// The nodes that were chosen are not named: a choice changes when a node is unready for a moment, and every change of a
/// template starts the model anew.
fn spread(template: &mut PodTemplateSpec, workspace: &Workspace, layout: &Layout) {
    let Some(spec) = &mut template.spec else { return };
    let affinity = spec.affinity.get_or_insert_default();
    let required = required_nodes(workspace);
    let preferred = preferred_nodes(workspace);
    let node_affinity = affinity.node_affinity.get_or_insert_default();
    if !required.is_empty() {
        let terms = &mut node_affinity
            .required_during_scheduling_ignored_during_execution
            .get_or_insert_with(NodeSelector::default)
            .node_selector_terms;
        *terms = both(terms, &required);
    }
    if let Some(preferred) = preferred {
        node_affinity.preferred_during_scheduling_ignored_during_execution.get_or_insert_default().push(preferred);
    }
    if *node_affinity == NodeAffinity::default() {
        affinity.node_affinity = None;
    }
    if layout.pods > 1 {
        let anti_affinity = affinity.pod_anti_affinity.get_or_insert_with(PodAntiAffinity::default);
        anti_affinity.required_during_scheduling_ignored_during_execution.get_or_insert_default().push(
            PodAffinityTerm {
                label_selector: Some(LabelSelector {
                    match_labels: Some(pod_labels(workspace)),
                    match_expressions: None,
                }),
                topology_key: HOSTNAME.to_owned(),
                ..PodAffinityTerm::default()
            },
        );
    }
    if *affinity == Affinity::default() {
        spec.affinity = None;
    }
    tolerate_gpu_nodes(spec.tolerations.get_or_insert_default());
}

fn tolerate_gpu_nodes(tolerations: &mut Vec<Toleration>) {
    for toleration in tolerations_of_gpu_nodes() {
        if !tolerations.contains(&toleration) {
            tolerations.push(toleration);
        }
    }
}

/// What the pods of a workspace would tolerate, where they cannot be made.
pub fn tolerations(inference: Option<&InferenceSpec>) -> Vec<Toleration> {
    let template = inference.and_then(|inference| inference.template.as_ref()?.spec.as_ref());
    let mut tolerations = template.and_then(|spec| spec.tolerations.clone()).unwrap_or_default();
    tolerate_gpu_nodes(&mut tolerations);
    tolerations
}

/// Terms are alternatives; the requirements within one all hold. One of both lists, in every combination.
fn both(ours: &[NodeSelectorTerm], theirs: &[NodeSelectorTerm]) -> Vec<NodeSelectorTerm> {
    if ours.is_empty() {
        return theirs.to_vec();
    }
    let join = |a: &NodeSelectorTerm, b: &NodeSelectorTerm| {
        let mut joined = a.clone();
        joined.match_expressions.get_or_insert_default().extend(b.match_expressions.iter().flatten().cloned());
        joined
    };
    ours.iter().flat_map(|a| theirs.iter().map(move |b| join(a, b))).collect()
}

fn required_nodes(workspace: &Workspace) -> Vec<NodeSelectorTerm> {
    let requirement = |key: &str, operator: &str, values: Option<Vec<String>>| NodeSelectorRequirement {
        key: key.to_owned(),
        operator: operator.to_owned(),
        values,
    };
    let selector = &workspace.resource.label_selector;
    let mut labels: Vec<_> = selector
        .match_labels
        .iter()
        .flatten()
        .map(|(key, value)| requirement(key, "In", Some(vec![value.clone()])))
        .collect();
    labels.extend(
        selector.match_expressions.iter().flatten().map(|term| {
            requirement(&term.key, &term.operator, term.values.clone().filter(|values| !values.is_empty()))
        }),
    );
    let alternatives = match &workspace.resource.instance_type {
        // A node that does not say its type is taken at the user's word.
        Some(instance_type) => vec![
            Some(requirement(INSTANCE_TYPE, "In", Some(vec![instance_type.clone()]))),
            Some(requirement(INSTANCE_TYPE, "DoesNotExist", None)),
        ],
        None => vec![None],
    };
    alternatives
        .into_iter()
        .map(|alternative| labels.iter().cloned().chain(alternative).collect::<Vec<_>>())
        .filter(|requirements| !requirements.is_empty())
        .map(|requirements| NodeSelectorTerm { match_expressions: Some(requirements), match_fields: None })
        .collect()
}

fn preferred_nodes(workspace: &Workspace) -> Option<PreferredSchedulingTerm> {
    let preferred = &workspace.resource.preferred_nodes;
    (!preferred.is_empty()).then(|| PreferredSchedulingTerm {
        weight: 100,
        preference: NodeSelectorTerm {
            match_expressions: Some(vec![NodeSelectorRequirement {
                key: HOSTNAME.to_owned(),
                operator: "In".to_owned(),
                values: Some(preferred.clone()),
            }]),
            match_fields: None,
        },
    })
}

fn tolerations_of_gpu_nodes() -> [Toleration; 2] {
    [
        Toleration { key: Some(GPU.to_owned()), operator: Some("Exists".to_owned()), ..Toleration::default() },
        Toleration {
            key: Some("sku".to_owned()),
            operator: Some("Equal".to_owned()),
            value: Some("gpu".to_owned()),
            effect: Some("NoSchedule".to_owned()),
            ..Toleration::default()
        },
    ]
}
