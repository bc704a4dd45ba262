//! The pod of a workspace, as the controller would make it.

use std::{collections::BTreeMap, net::SocketAddr, path::Path};

use k8s_openapi::api::core::v1::PodSpec;
use kaito_presets::{Dialect, Preset};

use super::{
    Manifest, UpError, UpOptions, free_address,
    plan::{self, Local, PodPlan},
};
use crate::{
    decide::{self, Config, Observed, Options},
    layout,
    runtime::ADAPTERS,
    workspace::{ANNOTATION_RUNTIME, AccessMode, AdapterSpec, PresetOptions, Runtime, RuntimeChoice, Workspace},
};

/// Variables of a preset's pod that say where files are in it. This machine has its own places for them.
const PLACES_IN_THE_POD: &[&str] = &["HF_HOME", "KAITO_WEIGHTS"];

/// Plans the processes of a workspace.
pub fn plan(manifest: &Manifest, options: &UpOptions<'_>) -> Result<PodPlan, UpError> {
    let workspace = &manifest.workspace;
    let preset = preset(workspace);
    let mut image_env = BTreeMap::new();
    if let Some(weights) = options.weights {
        if preset.is_none() {
            return Err(UpError::WeightsOfTemplate);
        }
        let path = weights.canonicalize().unwrap_or_else(|_| weights.to_owned());
        if !path.is_dir() {
            return Err(UpError::WeightsMissing { path });
        }
        image_env.insert("KAITO_WEIGHTS".to_owned(), path.display().to_string());
    }
    let mut pod = pod(manifest)?;
    if preset.is_some() {
        adapters_are_there(workspace, options.adapters)?;
        replace_images(&mut pod, options.adapters);
    }
    let name = format!("{}-0", workspace.name());
    let namespace = if workspace.namespace().is_empty() { "default" } else { workspace.namespace() };
    plan::plan(&pod, &Local { kaito: options.kaito, image_env, free_address: &free_address, pod: &name, namespace })
}

fn preset(workspace: &Workspace) -> Option<&'static Preset> {
    kaito_presets::find(&workspace.preset()?.name).ok()
}

/// What the controller would make on nodes that fit.
fn pod(Manifest { workspace, config }: &Manifest) -> Result<PodSpec, UpError> {
    let inference = workspace.inference.as_ref();
    let observed = match config {
        Some(data) => Observed { config: Config::Data(data.clone()), ..Observed::default() },
        None => match inference.and_then(|inference| inference.config.clone()) {
            Some(name) => return Err(UpError::ConfigMissing { name }),
            None => Observed::default(),
        },
    };
    if preset(workspace).is_some() && workspace.runtime() == Ok(RuntimeChoice::Fixed(Runtime::Vllm)) {
        return Err(UpError::OtherRuntime);
    }
    // Whatever the nodes have that the workspace asks for: this machine is the node.
    let mut workspace = workspace.clone();
    if workspace.runtime() == Ok(RuntimeChoice::Auto) {
        let annotations = workspace.metadata.annotations.get_or_insert_default();
        annotations.insert(ANNOTATION_RUNTIME.to_owned(), Runtime::Kaito.to_string());
    }
    // Nor are weights fetched for a pod: here they come from a folder, or the server itself downloads them.
    if let Some(preset) = workspace.inference.as_mut().and_then(|inference| inference.preset.as_mut()) {
        preset.access_mode = AccessMode::Public;
        preset.preset_options = PresetOptions::default();
    }
    let workspace = &workspace;
    // No image is pulled, but a public preset has to have one.
    let options = Options { preset_registry: Some("localhost".to_owned()), ..Options::default() };
    if let Some(preset) = preset(workspace)
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
pub fn adapter_images(manifest: &Manifest) -> Result<Vec<(&str, &str)>, UpError> {
    let adapters = adapters(&manifest.workspace);
    if !adapters.is_empty() {
        pod(manifest)?;
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

/// Removes volumes and variables for files of images: here the files come from --weights or the hub, and adapters from a folder.
fn replace_images(pod: &mut PodSpec, adapters: Option<&Path>) {
    pod.volumes = None;
    // They copy adapters out of their images.
    pod.init_containers = None;
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
