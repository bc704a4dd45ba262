use kaito_presets::{ImageAccess, InstanceType, Preset};

use super::{ANEW, Verdict, adapters, image, immutable, names, quoted, syntax, template};
use crate::{
    layout,
    runtime::{self, Circumstances},
    workspace::{AccessMode, InferenceSpec, PresetOptions, PresetSpec, Runtime, RuntimeChoice, Workspace},
};

pub fn check(workspace: &Workspace, nodes: Option<&InstanceType>, verdict: &mut Verdict) {
    let Some(inference) = &workspace.inference else {
        verdict.refuse("inference", "is missing; it names the model to serve, as a preset or as a template of pods");
        return;
    };
    match (&inference.preset, &inference.template) {
        (None, None) => verdict.refuse("inference", "Preset or Template must be specified: exactly one of them"),
        (Some(_), Some(_)) => {
            verdict.refuse("inference", "Preset and Template cannot be set at the same time: give exactly one of them");
        }
        (Some(preset), None) => check_preset(preset, verdict),
        (None, Some(template)) => template::check(template, verdict),
    }
    check_rest(inference, verdict);
    check_runtime(workspace, nodes, verdict);
}

pub fn check_update(old: &Workspace, new: &Workspace, verdict: &mut Verdict) {
    let (old, new) = match (&old.inference, &new.inference) {
        (Some(old), Some(new)) => (old, new),
        (None, None) => return,
        (Some(_), None) | (None, Some(_)) => {
            verdict.refuse("inference", format!("Inference field cannot be toggled once set; {ANEW}"));
            return;
        }
    };
    check_same_preset(old.preset.as_ref(), new.preset.as_ref(), verdict);
    match (&old.template, &new.template) {
        (Some(old), Some(new)) if old != new => template::check(new, verdict),
        (Some(_), None) | (None, Some(_)) => {
            let message =
                format!("field cannot be unset/set if it was set/unset: a template may change, no more; {ANEW}");
            verdict.refuse("inference.template", message);
        }
        (Some(_), Some(_)) | (None, None) => {}
    }
    if old.adapters != new.adapters || old.config != new.config {
        check_rest(new, verdict);
    }
}

/// Warns of what the runtime cannot do, as far as it can be told which one it will be: where the hardware decides, the type of the
/// nodes must be known. That is no reason to refuse the workspace: a private image may hold another server.
pub fn check_runtime(workspace: &Workspace, nodes: Option<&InstanceType>, verdict: &mut Verdict) {
    let (Some(inference), Ok(choice)) = (&workspace.inference, workspace.runtime()) else { return };
    let preset = inference.preset.as_ref().and_then(|preset| kaito_presets::find(&preset.name).ok());
    let Some(preset) = preset else { return };
    let runtime = match (choice, nodes) {
        (RuntimeChoice::Fixed(runtime), _) => runtime,
        (RuntimeChoice::Auto, None) => return,
        (RuntimeChoice::Auto, Some(nodes)) => by_hardware(workspace, inference, preset, nodes),
    };
    if let Some(problem) = runtime::adapters_problem(runtime, preset, &inference.adapters) {
        verdict.warn("inference.adapters", problem.message);
    }
    let ranks = layout::ranks(workspace, preset);
    if let Some(problem) = runtime::ranks_problem(runtime).filter(|_| ranks.is_some()) {
        verdict.warn("resource.count", problem.message);
    }
}

/// The runtime that nodes of this type lead to.
pub fn by_hardware(
    workspace: &Workspace,
    inference: &InferenceSpec,
    preset: &'static Preset,
    nodes: &InstanceType,
) -> Runtime {
    let circumstances = Circumstances {
        preset,
        adapters: &inference.adapters,
        ranks: layout::ranks(workspace, preset).unwrap_or(1),
        gpus: nodes.gpus,
        gpu_memory: Some(nodes.gpu.usable_memory),
    };
    runtime::choose(RuntimeChoice::Auto, circumstances).runtime
}

fn check_same_preset(old: Option<&PresetSpec>, new: Option<&PresetSpec>, verdict: &mut Verdict) {
    let (old, new) = match (old, new) {
        (Some(old), Some(new)) => (old, new),
        (None, None) => return,
        (old, new) => {
            let name = |preset: Option<&PresetSpec>| quoted(preset.map(|preset| preset.name.as_str()));
            verdict.refuse("inference.preset", immutable(name(old), name(new)));
            return;
        }
    };
    if old.name != new.name {
        verdict.refuse("inference.preset.name", immutable(quoted(Some(&old.name)), quoted(Some(&new.name))));
    }
    if old.access_mode != new.access_mode {
        let word = |mode| if mode == AccessMode::Private { "private" } else { "public" };
        verdict.refuse("inference.preset.accessMode", immutable(word(old.access_mode), word(new.access_mode)));
    }
    let (old, new) = (&old.preset_options, &new.preset_options);
    for (field, old, new) in [
        ("image", &old.image, &new.image),
        ("weightsImage", &old.weights_image, &new.weights_image),
        ("modelAccessSecret", &old.model_access_secret, &new.model_access_secret),
        ("weightsClaim", &old.weights_claim, &new.weights_claim),
    ] {
        if old != new {
            verdict.refuse(
                format!("inference.preset.presetOptions.{field}"),
                immutable(quoted(old.as_deref()), quoted(new.as_deref())),
            );
        }
    }
    if old.image_pull_secrets != new.image_pull_secrets {
        let list = |names: &[String]| if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
        verdict.refuse(
            "inference.preset.presetOptions.imagePullSecrets",
            immutable(list(&old.image_pull_secrets), list(&new.image_pull_secrets)),
        );
    }
}

fn check_preset(spec: &PresetSpec, verdict: &mut Verdict) {
    let preset = match kaito_presets::find(&spec.name) {
        Ok(preset) => Some(preset),
        Err(unknown) => {
            let hint = unknown.question().unwrap_or_else(|| "`kaito presets` lists all names".to_owned());
            let name = if spec.name.is_empty() { "\"\"" } else { &spec.name };
            verdict.refuse("inference.preset.name", format!("Unsupported inference preset name {name}; {hint}"));
            None
        }
    };
    let options = &spec.preset_options;
    let images = [("image", &options.image), ("weightsImage", &options.weights_image)];
    let images: Vec<(&str, &str)> =
        images.into_iter().filter_map(|(field, image)| Some((field, image.as_deref()?))).collect();
    let is_downloaded = check_download(options, spec.access_mode == AccessMode::Private && !images.is_empty(), verdict);
    match spec.access_mode {
        AccessMode::Public => {
            if let Some(preset) = preset.filter(|preset| preset.workload.image == ImageAccess::Private) {
                verdict.refuse("inference.preset.accessMode", private_only(preset));
            }
            for (field, image) in images {
                let message = format!("{image:?} is not used, for accessMode is public; private uses it");
                verdict.warn(format!("inference.preset.presetOptions.{field}"), message);
            }
        }
        AccessMode::Private if images.is_empty() && is_downloaded => {}
        AccessMode::Private if images.is_empty() => verdict.refuse(
            "inference.preset.presetOptions.image",
            "When AccessMode is private, an image must be provided in PresetOptions, like registry.example/llama-2-7b:1, or a \
             weightsImage, or a modelAccessSecret to download the weights with",
        ),
        AccessMode::Private => {
            for (field, image) in images {
                check_image(image, &format!("inference.preset.presetOptions.{field}"), verdict);
            }
            if options.image_pull_secrets.is_empty() {
                verdict.warn(
                    "inference.preset.presetOptions.imagePullSecrets",
                    "is empty: the image must be pullable without credentials, or with those of the nodes",
                );
            }
        }
    }
    let path = "inference.preset.presetOptions.imagePullSecrets";
    names::check(&options.image_pull_secrets, path, "a Secret", verdict);
}

/// Checks the fields that say how weights are downloaded; whether there are some. They do nothing beside an image that has the
/// weights.
fn check_download(options: &PresetOptions, has_image: bool, verdict: &mut Verdict) -> bool {
    let fields = [
        ("modelAccessSecret", "a Secret", &options.model_access_secret),
        ("weightsClaim", "a PersistentVolumeClaim", &options.weights_claim),
    ];
    let mut is_downloaded = false;
    for (field, kind, name) in fields {
        let Some(name) = name else { continue };
        is_downloaded = true;
        let path = format!("inference.preset.presetOptions.{field}");
        if !syntax::is_object_name(name) {
            verdict.refuse(path, format!("{name:?} is not the name of {kind}: {}", syntax::AN_OBJECT_NAME));
        } else if has_image {
            verdict.warn(path, format!("{name:?} is not used, for the weights come from an image"));
        }
    }
    is_downloaded
}

fn private_only(preset: &Preset) -> String {
    format!(
        "This preset only supports private AccessMode, AccessMode must be private to continue: the licence of {} lets no \
         public image be published; build yours, and give accessMode: private and presetOptions.image, or a modelAccessSecret",
        preset.name
    )
}

/// Refuses what is not a reference to an image; warns where it has neither tag nor digest.
fn check_image(text: &str, path: &str, verdict: &mut Verdict) {
    match image::read(text) {
        Err(problem) => verdict.refuse(path, problem),
        Ok(reference) if !reference.is_precise => {
            verdict.warn(path, format!("{text:?} has no tag, so that latest is pulled, which may change under you"));
        }
        Ok(_) => {}
    }
}

/// Warns of fields that are only used with a preset.
fn check_rest(inference: &InferenceSpec, verdict: &mut Verdict) {
    adapters::check(&inference.adapters, verdict);
    if let Some(name) = inference.config.as_deref().filter(|name| !syntax::is_object_name(name)) {
        let message = format!("{name:?} is not the name of a ConfigMap: {}", syntax::AN_OBJECT_NAME);
        verdict.refuse("inference.config", message);
    }
    if inference.template.is_some() {
        if !inference.adapters.is_empty() {
            verdict.warn("inference.adapters", "are not used with a template, whose pods are run as they are");
        }
        if inference.config.is_some() {
            verdict.warn("inference.config", "is not used with a template, whose pods are run as they are");
        }
    }
}
