//! The admission webhook, as the API server calls it and kubectl shows it.

use kaito_cluster_tests::control_plane::Printed;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::case::{Case, ONE_A100};

async fn refused(case: &Case, manifest: &Value, words: &[&str]) {
    let Printed { success, stdout, stderr } = case.try_apply(manifest).await;
    assert!(!success, "admitted: {manifest}\n{stdout}");
    for words in words {
        assert!(stderr.contains(words), "{words:?} is not in: {stderr}");
    }
}

pub async fn what_cannot_work_is_refused_with_its_numbers(case: Case) {
    let preset = |name: &str| json!({"preset": {"name": name}});
    let private = |name: &str| {
        json!({"preset": {
            "name": name,
            "accessMode": "private",
            "presetOptions": {"image": "registry.example.com/llama:1"},
        }})
    };
    let on = |instance_type: &str, inference: Value| case.workspace("refused", 1, instance_type, inference);
    let falcon = preset("falcon-7b");
    refused(&case, &on(ONE_A100, preset("falcon-70b")), &["inference.preset.name", "falcon-70b"]).await;
    refused(&case, &on(ONE_A100, preset("llama-2-7b")), &["accessMode", "private"]).await;
    refused(&case, &on(ONE_A100, private("llama-2-13b")), &["Insufficient number of GPUs:", "2"]).await;
    refused(&case, &on("Standard_NV36ads_A10_v5", preset("falcon-40b")), &["Insufficient number of GPUs:"]).await;
    refused(&case, &on("Standard_NC12s_v3", preset("falcon-40b")), &["Insufficient total GPU memory:", "90 GiB"]).await;
    let both = json!({"preset": {"name": "falcon-7b"}, "template": {"spec": {"containers": []}}});
    refused(&case, &on(ONE_A100, both), &["preset", "template"]).await;
    refused(&case, &on(ONE_A100, json!({})), &["preset", "template"]).await;
    refused(&case, &case.workspace("refused", 5001, ONE_A100, falcon.clone()), &["resource.count", "5000"]).await;
    let mut without_selector = on(ONE_A100, falcon);
    without_selector["resource"].as_object_mut().unwrap().remove("labelSelector");
    refused(&case, &without_selector, &["labelSelector"]).await;
    assert!(case.kubectl(&["get", "workspaces"]).await.stderr.contains("No resources found"));
}

pub async fn defaults_warnings_and_both_versions(case: Case) {
    // A manifest of the first version, with a name that the documents use.
    let mut old = case.workspace("old", 1, "Standard_Unheard_of", json!({"preset": {"name": "falcon_7b-instruct"}}));
    old["apiVersion"] = json!("kaito.sh/v1alpha1");
    old["resource"].as_object_mut().unwrap().remove("count");
    let printed = case.apply(old).await;
    assert!(printed.contains("workspace.kaito.sh/old created"), "{printed}");
    assert!(printed.contains("Warning:") && printed.contains("Standard_Unheard_of"), "{printed}");
    let stored = case.workspaces().get("old").await.unwrap();
    assert_eq!(stored.data["resource"]["count"], 1);
    assert_eq!(stored.data["inference"]["preset"]["accessMode"], "public");
    let shown =
        case.kubectl(&["get", "workspaces.v1alpha1.kaito.sh", "old", "--output", "jsonpath={.apiVersion}"]).await;
    assert_eq!(shown.stdout(), "kaito.sh/v1alpha1");
    for short in ["wk", "wks"] {
        assert!(case.kubectl(&["get", short, "--output", "name"]).await.stdout().contains("workspace.kaito.sh/old"));
    }

    // What would be refused is only a warning where its user says so.
    let mut bypass = case.workspace("bypass", 1, "Standard_NC6s_v3", json!({"preset": {"name": "falcon-40b"}}));
    bypass["metadata"]["annotations"] = json!({"kaito.sh/bypass-resource-checks": "True"});
    let printed = case.apply(bypass).await;
    assert!(printed.contains("Warning:") && printed.contains("Insufficient"), "{printed}");
}

pub async fn what_is_fixed_cannot_be_changed(case: Case) {
    let made = case.falcon("fixed");
    case.apply(&made).await;
    let changed = |path: &[&str], value: Value| {
        let mut changed = made.clone();
        let mut at = &mut changed;
        for key in path {
            at = &mut at[*key];
        }
        *at = value;
        changed
    };
    for (path, value) in [
        (&["resource", "count"][..], json!(2)),
        (&["resource", "instanceType"], json!("Standard_NC48ads_A100_v4")),
        (&["resource", "labelSelector", "matchLabels", "apps"], json!("other")),
        (&["inference", "preset", "name"], json!("falcon-7b")),
    ] {
        refused(&case, &changed(path, value), &["field is immutable"]).await;
    }
    let template = json!({"template": {"spec": {"containers": [{"name": "server", "image": "a/b:1"}]}}});
    refused(&case, &changed(&["inference"], template), &["inference"]).await;

    // It does not hold up the controller's own writes, or writes of others to metadata.
    let label = json!({"metadata": {"labels": {"team": "a"}}});
    case.workspaces().patch("fixed", &PatchParams::default(), &Patch::Merge(label)).await.unwrap();
}
