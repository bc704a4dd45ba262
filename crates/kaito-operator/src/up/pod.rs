//! The pod of a workspace, as the controller would make it.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
};

use k8s_openapi::api::core::v1::PodSpec;
use kaito_presets::{Dialect, Preset};

use super::{
    Host, Manifest, UpError, UpOptions, free_address,
    host::{Computing, INSTANCE_TYPE},
    plan::{self, Local, PodPlan},
    ranks::{self, Substitutes},
};
use crate::{
    decide::{self, Config, Observed, Options},
    layout,
    runtime::ADAPTERS,
    workspace::{ANNOTATION_RUNTIME, AccessMode, AdapterSpec, PresetOptions, Runtime, Workspace},
};

/// Variables of a preset's pod that say where files are in it. This machine has its own places for them.
pub const PLACES_IN_THE_POD: &[&str] = &[
    "HF_HOME",
    "HOME",
    "KAITO_WEIGHTS",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "USER",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
];

/// Plans the processes of a workspace.
pub fn plan(manifest: &Manifest, options: &UpOptions<'_>) -> Result<PodPlan, UpError> {
    let workspace = &manifest.workspace;
    let preset = preset(workspace);
    let weights = options.weights.map(|weights| weights.canonicalize().unwrap_or_else(|_| weights.to_owned()));
    if let Some(path) = &weights {
        if preset.is_none() {
            return Err(UpError::WeightsOfTemplate);
        }
        if !path.is_dir() {
            return Err(UpError::WeightsMissing { path: path.clone() });
        }
    }
    let computing = computing(workspace, options.host)?;
    let mut pod = pod(manifest, computing)?;
    let name = format!("{}-0", workspace.name());
    let namespace = if workspace.namespace().is_empty() { "default" } else { workspace.namespace() };
    let mut local = Local {
        kaito: options.kaito,
        image_env: BTreeMap::new(),
        free_address: &free_address,
        pod: &name,
        namespace,
        address: Ipv4Addr::LOCALHOST,
        rank: 0,
    };
    let Some(preset) = preset else { return plan::plan(&pod, &local) };
    adapters_are_there(workspace, options.adapters)?;
    // They copy files out of images.
    pod.volumes = None;
    pod.init_containers = None;
    match computing {
        Computing::Kaito => {
            replace_images(&mut pod, options.adapters);
            local.image_env.extend(weights.map(|path| ("KAITO_WEIGHTS".to_owned(), path.display().to_string())));
            plan::plan(&pod, &local)
        }
        Computing::Vllm { vllm, gpus, .. } => {
            let weights = weights.ok_or_else(|| UpError::WeightsUnknown { preset: preset.name.to_owned() })?;
            let ranks = layout::ranks(workspace, preset).unwrap_or(1);
            ranks::plan(&pod, &local, &Substitutes { weights: &weights, adapters: options.adapters, vllm, gpus, ranks })
        }
    }
}

/// The preset whose weights have to be in a directory before the workspace can run here: that of vLLM, which does not fetch them as
/// kaito does.
///
/// # Errors
/// As for a start.
pub fn needs_weights(manifest: &Manifest, host: &Host) -> Result<Option<&'static Preset>, UpError> {
    let computing = computing(&manifest.workspace, host)?;
    if computing.runtime() != Runtime::Vllm {
        return Ok(None);
    }
    // What cannot run needs no files.
    pod(manifest, computing)?;
    Ok(preset(&manifest.workspace))
}

fn preset(workspace: &Workspace) -> Option<&'static Preset> {
    kaito_presets::find(&workspace.preset()?.name).ok()
}

fn computing<'a>(workspace: &Workspace, host: &'a Host) -> Result<Computing<'a>, UpError> {
    preset(workspace).map_or(Ok(Computing::Kaito), |preset| host.runtime(workspace, preset))
}

/// What the controller would make on nodes that fit, or, for vLLM, on nodes like this machine.
fn pod(Manifest { workspace, config }: &Manifest, computing: Computing<'_>) -> Result<PodSpec, UpError> {
    let inference = workspace.inference.as_ref();
    let observed = match config {
        Some(data) => Observed { config: Config::Data(data.clone()), ..Observed::default() },
        None => match inference.and_then(|inference| inference.config.clone()) {
            Some(name) => return Err(UpError::ConfigMissing { name }),
            None => Observed::default(),
        },
    };
    // Whatever the nodes have that the workspace asks for: this machine is the node.
    let mut workspace = workspace.clone();
    if workspace.runtime().is_ok() {
        let annotations = workspace.metadata.annotations.get_or_insert_default();
        annotations.insert(ANNOTATION_RUNTIME.to_owned(), computing.runtime().to_string());
    }
    if computing.runtime() == Runtime::Vllm {
        workspace.resource.instance_type = Some(INSTANCE_TYPE.to_owned());
    }
    // Nor are weights fetched for a pod: here they come from a folder, or the server itself downloads them.
    if let Some(preset) = workspace.inference.as_mut().and_then(|inference| inference.preset.as_mut()) {
        preset.access_mode = AccessMode::Public;
        preset.preset_options = PresetOptions::default();
    }
    let workspace = &workspace;
    // No image is pulled, but a public preset has to have one, and its engine one of ours.
    let options = Options {
        preset_registry: Some("localhost".to_owned()),
        server_image: Some("localhost".to_owned()),
        instance_types: computing.instance_types()?,
        ..Options::default()
    };
    if computing.runtime() == Runtime::Kaito
        && let Some(preset) = preset(workspace)
        && let Some(ranks) = layout::ranks(workspace, preset)
    {
        return Err(UpError::SeveralRanks { preset: preset.name.to_owned(), ranks });
    }
    let (_, template) = decide::pods(workspace, &observed, &options)
        .map_err(|problem| UpError::NoPod { reason: problem.reason, message: problem.message })?;
    Ok(template.spec.unwrap_or_default())
}

/// The adapters of a workspace that its pod has to have.
fn adapters(workspace: &Workspace) -> &[AdapterSpec] {
    let of_preset = workspace.inference.as_ref().filter(|inference| inference.preset.is_some());
    of_preset.map_or(&[], |inference| &inference.adapters)
}

/// The adapters that come in images, by their names; once it is known that all the rest can run here.
///
/// # Errors
/// As for a start, and for an adapter that comes in something else.
pub fn adapter_images<'a>(manifest: &'a Manifest, host: &Host) -> Result<Vec<(&'a str, &'a str)>, UpError> {
    let adapters = adapters(&manifest.workspace);
    if !adapters.is_empty() {
        pod(manifest, computing(&manifest.workspace, host)?)?;
    }
    let in_volume = |name: &str| UpError::AdapterVolume { name: name.to_owned() };
    let sources = adapters.iter().map(|adapter| (adapter.source.name.as_str(), adapter.source.image.as_deref()));
    sources.map(|(name, image)| image.map(|image| (name, image)).ok_or_else(|| in_volume(name))).collect()
}

fn adapters_are_there(workspace: &Workspace, folder: Option<&Path>) -> Result<(), UpError> {
    let is_there = |name: &str| folder.is_some_and(|folder| folder.join(name).is_dir());
    match adapters(workspace).iter().find(|adapter| !is_there(&adapter.source.name)) {
        Some(adapter) => Err(UpError::Adapter { name: adapter.source.name.clone() }),
        None => Ok(()),
    }
}

/// Removes variables for files of images: here the files come from --weights or the hub, and adapters from a folder.
fn replace_images(pod: &mut PodSpec, adapters: Option<&Path>) {
    for container in &mut pod.containers {
        for argument in container.args.iter_mut().flatten().filter(|argument| *argument == ADAPTERS) {
            if let Some(folder) = adapters {
                *argument = folder.display().to_string();
            }
        }
        if let Some(env) = &mut container.env {
            env.retain(|variable| !PLACES_IN_THE_POD.contains(&variable.name.as_str()));
        }
    }
}

/// A request to try, where the dialect is known.
pub fn example(workspace: &Workspace, service: SocketAddr) -> Option<String> {
    let preset = preset(workspace)?;
    let body = match preset.dialect() {
        Dialect::MetaCompletion => {
            r#"{"prompts":["I believe the meaning of life is"],"parameters":{"max_gen_len":64}}"#
        }
        Dialect::MetaChat => {
            r#"{"input_data":{"input_string":[[{"role":"user","content":"what is the recipe of mayonnaise?"}]]}}"#
        }
        Dialect::TextGeneration => r#"{"prompt":"I believe the meaning of life is"}"#,
    };
    let endpoint = preset.endpoint();
    Some(format!("  curl http://{service}{endpoint} -H 'Content-Type: application/json' -d '{body}'"))
}
