//! Every manifest of examples/ is admitted, and the files that the models' documentation links to are there.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failing helper fails its test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use kaito_operator::{
    admission::{Verdict, defaults, validate_create},
    workspace::{Runtime, RuntimeChoice, Workspace, strict},
    yaml,
};
use kaito_presets::{InstanceTypes, PRESETS};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples")
}

/// The workspaces by their file's name.
fn examples() -> BTreeMap<String, Workspace> {
    let files = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    files
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let documents = yaml::documents(&fs::read_to_string(&path).unwrap()).unwrap();
            let [document] = documents.as_slice() else { panic!("{name} has {} documents", documents.len()) };
            let read = strict::read(document).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(read.unknown_fields, [""; 0], "{name}");
            (name, read.object)
        })
        .collect()
}

#[test]
fn every_example_is_admitted() {
    let mut names = BTreeSet::new();
    for (file, workspace) in examples() {
        let Verdict { errors, warnings } = validate_create(&defaults(&workspace), &InstanceTypes::built_in());
        assert!(errors.is_empty(), "{file}: {errors:?}");
        let expected: &[&str] = match file.as_str() {
            // A node pool of one's own is known only where the installation describes it.
            "kaito_workspace_custom_nodes.yaml" => &["resource.instanceType: "],
            _ => &[],
        };
        assert_eq!(warnings.len(), expected.len(), "{file}: {warnings:?}");
        for (warning, expected) in warnings.iter().zip(expected) {
            assert!(warning.starts_with(expected), "{file}: {warning}");
        }
        assert!(names.insert(workspace.name().to_owned()), "{file}: another example has the name {}", workspace.name());
    }
}

#[test]
fn every_preset_has_an_example_that_its_documentation_links_to() {
    let examples = examples();
    for (link, preset) in [
        ("kaito_workspace_falcon_7b.yaml", "falcon-7b"),
        ("kaito_workspace_falcon_7b-instruct.yaml", "falcon-7b-instruct"),
        ("kaito_workspace_falcon_40b.yaml", "falcon-40b"),
        ("kaito_workspace_falcon_40b-instruct.yaml", "falcon-40b-instruct"),
        ("kaito_workspace_llama2_7b.yaml", "llama-2-7b"),
        ("kaito_workspace_llama2_7b-chat.yaml", "llama-2-7b-chat"),
        ("kaito_workspace_llama2_13b.yaml", "llama-2-13b"),
        ("kaito_workspace_llama2_13b-chat.yaml", "llama-2-13b-chat"),
        ("kaito_workspace_llama2_70b.yaml", "llama-2-70b"),
        ("kaito_workspace_llama2_70b-chat.yaml", "llama-2-70b-chat"),
        ("inference/kaito_workspace_llama2_7b.yaml", "llama-2-7b"),
        ("inference/kaito_workspace_llama2_13b.yaml", "llama-2-13b"),
        ("inference/kaito_workspace_llama2_70b.yaml", "llama-2-70b"),
        ("inference/kaito_workspace_mistral_7b.yaml", "mistral-7b"),
        ("inference/kaito_workspace_mistral_7b-instruct.yaml", "mistral-7b-instruct"),
        // The page of the Phi-3 models links to Phi-2's name.
        ("inference/kaito_workspace_phi-2.yaml", "phi-3-mini-4k-instruct"),
    ] {
        assert!(folder().join(link).is_file(), "{link}");
        let example = &examples[link.trim_start_matches("inference/")];
        assert_eq!(example.preset().unwrap().name, preset, "{link}");
    }
    let shown: BTreeSet<_> =
        examples.values().filter_map(|workspace| Some(workspace.preset()?.name.as_str())).collect();
    for preset in PRESETS {
        assert!(shown.contains(preset.name), "{}", preset.name);
    }
}

#[test]
fn what_a_workspace_can_ask_for_has_an_example() {
    let examples: Vec<_> = examples().into_values().collect();
    let any = |what: &str, test: &dyn Fn(&Workspace) -> bool| assert!(examples.iter().any(test), "{what}");
    any("two nodes", &|workspace| workspace.resource.count == 2);
    any("any instance type", &|workspace| workspace.resource.instance_type.is_none());
    any("expressions", &|workspace| workspace.resource.label_selector.match_expressions.is_some());
    any("preferred nodes", &|workspace| !workspace.resource.preferred_nodes.is_empty());
    any("adapters", &|workspace| workspace.inference.as_ref().is_some_and(|inference| !inference.adapters.is_empty()));
    any("a template", &|workspace| workspace.inference.as_ref().is_some_and(|inference| inference.template.is_some()));
    any("vLLM on two nodes", &|workspace| {
        workspace.runtime() == Ok(RuntimeChoice::Fixed(Runtime::Vllm)) && workspace.resource.count == 2
    });
    any("a load balancer", &Workspace::wants_load_balancer);
    let secrets = |workspace: &Workspace| Some(!workspace.preset()?.preset_options.image_pull_secrets.is_empty());
    any("pull secrets", &|workspace| secrets(workspace) == Some(true));
    any("weights from the hub", &|workspace| {
        workspace.preset().is_some_and(|preset| preset.preset_options.model_access_secret.is_some())
    });
}
