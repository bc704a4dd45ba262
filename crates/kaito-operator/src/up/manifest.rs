//! The file that `kaito up` is given.

use std::{collections::BTreeMap, fmt::Write};

use k8s_openapi::api::core::v1::ConfigMap;
use kaito_presets::InstanceTypes;
use serde_json::Value;

use crate::{
    admission,
    workspace::{KIND, Workspace, strict},
    yaml,
};

/// A workspace that passes admission, and the ConfigMap that it refers to.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// The workspace, with its defaults.
    pub workspace: Workspace,
    /// Data of the ConfigMap that `inference.config` names, if it stands in the same file.
    pub config: Option<BTreeMap<String, String>>,
}

/// Why a file does not say what to run.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// No YAML.
    #[error(transparent)]
    Yaml(#[from] crate::Error),
    /// No workspace.
    #[error("there is no Workspace in it{}", if kinds.is_empty() { String::new() } else { format!(", only {}", kinds.join(", ")) })]
    NoWorkspace {
        /// What there is.
        kinds: Vec<String>,
    },
    /// Several workspaces.
    #[error("it has {} workspaces, {}; --workspace NAME chooses one", names.len(), names.join(", "))]
    Several {
        /// Their names.
        names: Vec<String>,
    },
    /// None of that name.
    #[error("it has no workspace {wanted:?}; there is {}", names.join(", "))]
    NotThere {
        /// The name asked for.
        wanted: String,
        /// Names of those there are.
        names: Vec<String>,
    },
    /// Refused by the rules that hold in a cluster.
    #[error("the workspace {name:?} is refused, as a cluster would refuse it:{}", lines(errors))]
    Refused {
        /// Its name.
        name: String,
        /// Every reason, with the path of the field.
        errors: Vec<String>,
    },
}

fn lines(errors: &[String]) -> String {
    errors.iter().fold(String::new(), |mut lines, error| {
        let _ = write!(lines, "\n  {error}");
        lines
    })
}

impl Manifest {
    /// Reads a file's text. The second value is the warnings of admission.
    ///
    /// # Errors
    ///
    /// [`ManifestError`], with every reason.
    pub fn read(text: &str, name: Option<&str>) -> Result<(Self, Vec<String>), ManifestError> {
        let documents = yaml::documents(text)?;
        let document = choose(&documents, name)?;
        let refused = |errors| ManifestError::Refused { name: name_of(document).to_owned(), errors };
        let read = strict::read(document).map_err(|error| refused(vec![error.to_string()]))?;
        let mut errors: Vec<_> =
            read.unknown_fields.iter().map(|path| format!("{path}: there is no such field")).collect();
        let workspace = admission::defaults(&read.object);
        let verdict = admission::validate_create(&workspace, &InstanceTypes::built_in());
        errors.extend(verdict.errors.iter().map(ToString::to_string));
        if !errors.is_empty() {
            return Err(refused(errors));
        }
        let config = workspace.inference.as_ref().and_then(|inference| inference.config.as_deref());
        let config = config.and_then(|name| config_map(&documents, name));
        Ok((Self { workspace, config }, verdict.warnings))
    }
}

fn choose<'a>(documents: &'a [Value], name: Option<&str>) -> Result<&'a Value, ManifestError> {
    let kind =
        |document: &Value| document.get("kind").and_then(Value::as_str).unwrap_or("something without kind").to_owned();
    let workspaces: Vec<_> = documents.iter().filter(|document| kind(document) == KIND).collect();
    let names = || workspaces.iter().map(|document| name_of(document).to_owned()).collect();
    match (workspaces.as_slice(), name) {
        ([], _) => Err(ManifestError::NoWorkspace { kinds: documents.iter().map(kind).collect() }),
        ([only], None) => Ok(only),
        (_, None) => Err(ManifestError::Several { names: names() }),
        (several, Some(wanted)) => several
            .iter()
            .find(|document| name_of(document) == wanted)
            .copied()
            .ok_or_else(|| ManifestError::NotThere { wanted: wanted.to_owned(), names: names() }),
    }
}

fn name_of(document: &Value) -> &str {
    document.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default()
}

fn config_map(documents: &[Value], name: &str) -> Option<BTreeMap<String, String>> {
    let is_config_map = |document: &&Value| document.get("kind").is_some_and(|kind| kind == "ConfigMap");
    let document = documents.iter().filter(is_config_map).find(|document| name_of(document) == name)?;
    serde_json::from_value::<ConfigMap>(document.clone()).ok().map(|config_map| config_map.data.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEMO: &str = include_str!("../../../../examples/kaito_workspace_demo.yaml");
    const LLAMA: &str = include_str!("../../../../examples/kaito_workspace_llama2_7b-chat.yaml");

    fn refusal(text: &str, name: Option<&str>) -> String {
        Manifest::read(text, name).unwrap_err().to_string()
    }

    #[test]
    fn a_workspace_is_found_by_itself_or_by_its_name() {
        let (manifest, _) = Manifest::read(DEMO, None).unwrap();
        assert_eq!(manifest.workspace.name(), "workspace-demo");
        let both = format!("{DEMO}---\n{LLAMA}");
        let (manifest, _) = Manifest::read(&both, Some("workspace-llama-2-7b-chat")).unwrap();
        assert_eq!(manifest.workspace.preset().unwrap().name, "llama-2-7b-chat");
        let several = refusal(&both, None);
        for part in ["2 workspaces", "workspace-demo, workspace-llama-2-7b-chat", "--workspace"] {
            assert!(several.contains(part), "{several}");
        }
        assert!(refusal(&both, Some("other")).contains("no workspace \"other\""));
    }

    #[test]
    fn what_a_cluster_refuses_is_refused_with_every_reason() {
        let public = LLAMA.replace("accessMode: private", "accessMode: public\n    acessMode: x");
        let message = refusal(&public, None);
        for part in ["\"workspace-llama-2-7b-chat\"", "inference.preset.acessMode", "inference.preset.accessMode"] {
            assert!(message.contains(part), "{part}: {message}");
        }
        assert!(refusal("a: [", None).contains("line"), "{}", refusal("a: [", None));
        assert!(refusal("", None).contains("no Workspace"));
        assert!(refusal("kind: Pod\n", None).contains("only Pod"));
        assert!(refusal("kind: Workspace\nresource: 1\n", None).contains("resource"));
    }

    #[test]
    fn the_config_map_is_taken_from_the_same_file() {
        let with_config = LLAMA.replace("inference:\n", "inference:\n  config: flags\n");
        let config_map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: flags}\ndata: {max-batch-size: \"2\"}\n";
        let (alone, _) = Manifest::read(&with_config, None).unwrap();
        assert_eq!(alone.config, None);
        let (together, _) = Manifest::read(&format!("{with_config}---\n{config_map}"), None).unwrap();
        assert_eq!(together.config.unwrap().get("max-batch-size").map(String::as_str), Some("2"));
    }
}
