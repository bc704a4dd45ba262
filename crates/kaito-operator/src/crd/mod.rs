//! The CustomResourceDefinition: what the API server knows of a workspace.
//!
//! Both versions have one schema. What the API server can check by itself, it checks by rules in the Common Expression
//! Language (CEL), which hold even where no webhook is installed. A rule that an existing object could break is a transition
//! rule, or holds at creation only, so that every existing object can be updated and deleted.

mod fields;
mod schema;

use k8s_openapi::{
    apiextensions_apiserver::pkg::apis::apiextensions::v1::{
        CustomResourceColumnDefinition, CustomResourceDefinition, CustomResourceDefinitionNames,
        CustomResourceDefinitionSpec, CustomResourceDefinitionVersion, CustomResourceSubresourceStatus,
        CustomResourceSubresources, CustomResourceValidation,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::workspace::{
    ApiVersion,
    ConditionType::{self, InferenceReady, ResourceReady, WorkspaceReady},
    GROUP, KIND, PLURAL,
};

/// The definition of the kind [`Workspace`](crate::workspace::Workspace).
pub fn custom_resource_definition() -> CustomResourceDefinition {
    CustomResourceDefinition {
        metadata: ObjectMeta { name: Some(format!("{PLURAL}.{GROUP}")), ..ObjectMeta::default() },
        spec: CustomResourceDefinitionSpec {
            group: GROUP.to_owned(),
            scope: "Namespaced".to_owned(),
            names: CustomResourceDefinitionNames {
                kind: KIND.to_owned(),
                list_kind: Some(format!("{KIND}List")),
                plural: PLURAL.to_owned(),
                singular: Some("workspace".to_owned()),
                short_names: Some(vec!["wk".to_owned(), "wks".to_owned()]),
                categories: Some(vec!["workspace".to_owned()]),
            },
            versions: ApiVersion::ALL.map(version).into(),
            ..CustomResourceDefinitionSpec::default()
        },
        status: None,
    }
}

fn version(version: ApiVersion) -> CustomResourceDefinitionVersion {
    CustomResourceDefinitionVersion {
        name: version.version().to_owned(),
        served: true,
        storage: version == ApiVersion::default(),
        schema: Some(CustomResourceValidation { open_api_v3_schema: Some(fields::workspace().build()) }),
        subresources: Some(CustomResourceSubresources {
            status: Some(CustomResourceSubresourceStatus(serde_json::Value::Object(serde_json::Map::new()))),
            scale: None,
        }),
        additional_printer_columns: Some(columns()),
        ..CustomResourceDefinitionVersion::default()
    }
}

/// What `kubectl get` prints; `--output wide` adds the columns of priority 1.
fn columns() -> Vec<CustomResourceColumnDefinition> {
    let condition = |type_: ConditionType, field: &str| format!(".status.conditions[?(@.type==\"{type_}\")].{field}");
    let column =
        |name: &str, type_: &str, priority: i32, json_path: String, description: &str| CustomResourceColumnDefinition {
            name: name.to_owned(),
            type_: type_.to_owned(),
            json_path,
            description: Some(description.to_owned()),
            priority: (priority > 0).then_some(priority),
            format: None,
        };
    vec![
        column("Instance", "string", 0, ".resource.instanceType".to_owned(), "Instance type of the nodes"),
        column("ResourceReady", "string", 0, condition(ResourceReady, "status"), "Whether the nodes are there"),
        column("InferenceReady", "string", 0, condition(InferenceReady, "status"), "Whether the model answers"),
        column("WorkspaceReady", "string", 0, condition(WorkspaceReady, "status"), "Whether all is ready"),
        column("State", "string", 0, ".status.state".to_owned(), "The conditions in one word"),
        column("Age", "date", 0, ".metadata.creationTimestamp".to_owned(), "Time since the workspace was created"),
        column("Preset", "string", 1, ".inference.preset.name".to_owned(), "The model"),
        column("Nodes", "integer", 1, ".resource.count".to_owned(), "How many nodes are asked for"),
        column("Message", "string", 1, condition(WorkspaceReady, "message"), "Why the workspace is in its state"),
    ]
}

#[cfg(test)]
mod tests;
