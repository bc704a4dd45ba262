//! Nodes that Karpenter provisions.

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kaito_cluster_tests::{
    eventually::{LIMIT, eventually},
    karpenter::{Fate, Karpenter},
};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::{
    case::{Case, ONE_A100},
    installation::Provisioner,
    suite::Suite,
};

const NO_MACHINE: &str = "insufficient capacity: no Standard_NC24ads_A100_v4 in westus3";

impl Suite {
    async fn karpenter(&self) -> &Karpenter {
        self.karpenter.get_or_init(|| Karpenter::install(&self.plane, &self.kubelet)).await
    }
}

/// Runs alone, since it installs the kinds at its end.
pub async fn without_karpenters_kinds(case: Case) {
    let crds = Api::<CustomResourceDefinition>::all(case.plane.client.clone());
    assert!(crds.get_opt("nodeclaims.karpenter.sh").await.unwrap().is_none());
    case.apply(case.falcon("falcon")).await;
    case.says("falcon", "NodeClaimReady", "False", "KarpenterMissing", &["karpenter.sh/v1"]).await;
    // Without the kind, nothing waits for node claims.
    case.delete_and_leave_nothing("falcon").await;
    // Existing nodes can be used as before.
    case.add_node().await;
    case.apply(case.falcon("falcon")).await;
    case.is_ready("falcon").await;
    case.delete_and_leave_nothing("falcon").await;
    case.kubelet.remove(&format!("{}-0", case.namespace)).await;

    case.apply(case.falcon("falcon")).await;
    case.says("falcon", "NodeClaimReady", "False", "KarpenterMissing", &[]).await;
    let karpenter = case.karpenter().await;
    karpenter.claims_of(&case.namespace, Fate::Provisioned { gpus: 1 }).await;
    case.is_ready("falcon").await;
}

pub async fn nodes_are_claimed_and_given_back(case: Case) {
    let karpenter = case.karpenter().await;
    case.apply(case.falcon("falcon")).await;
    case.says("falcon", "NodeClaimReady", "False", "NodeClaimsPending", &[]).await;
    let claims = karpenter.claims(&case.namespace).await;
    let [claim] = claims.as_slice() else { panic!("{claims:?}") };
    assert_eq!(claim.labels()["kaito.sh/workspace"], "falcon");
    assert_eq!(claim.labels()["apps"], case.namespace);
    let spec = &claim.data["spec"];
    assert_eq!(spec["taints"], json!([{"key": "sku", "value": "gpu", "effect": "NoSchedule"}]));
    let class = json!({"group": "karpenter.azure.com", "kind": "AKSNodeClass", "name": "default"});
    assert_eq!(spec["nodeClassRef"], class);
    let requirement = |key: &str| -> Value {
        let all = spec["requirements"].as_array().unwrap();
        all.iter().find(|requirement| requirement["key"] == key).unwrap()["values"].clone()
    };
    assert_eq!(requirement("node.kubernetes.io/instance-type"), json!([ONE_A100]));
    assert_eq!(requirement("kubernetes.io/os"), json!(["linux"]));
    assert_eq!(requirement("kubernetes.io/arch"), json!(["amd64"]));

    karpenter.claims_of(&case.namespace, Fate::Provisioned { gpus: 1 }).await;
    let ready = case.is_ready("falcon").await;
    assert_eq!(ready.data["status"]["workerNodes"], json!([claim.name_any()]));
    case.says("falcon", "NodeClaimReady", "True", "NodeClaimsReady", &[]).await;
    assert_eq!(karpenter.claims(&case.namespace).await.len(), 1);

    // A node claim that somebody deletes is created again.
    let first = claim.uid();
    case.plane.kubectl(&["delete", "nodeclaim", &claim.name_any(), "--timeout=60s"]).await.stdout();
    eventually("another claim", || async {
        match karpenter.claims(&case.namespace).await.as_slice() {
            [claim] if claim.uid() != first => Ok(()),
            claims => Err(format!("{claims:?}")),
        }
    })
    .await;
    case.is_ready("falcon").await;

    case.delete_and_leave_nothing("falcon").await;
    let claims = karpenter.claims(&case.namespace).await;
    assert!(claims.is_empty(), "the finalizer waits for claims: {claims:?}");
}

pub async fn a_claim_that_fails(case: Case) {
    let karpenter = case.karpenter().await;
    let message = "creating instance, OperationNotAllowed: quota exceeded for family standardNCADSA100v4Family";
    karpenter.claims_of(&case.namespace, Fate::LaunchFailed { message }).await;
    case.apply(case.falcon("falcon")).await;
    case.says("falcon", "NodeClaimReady", "False", "QuotaExceeded", &["LaunchFailed", message]).await;
    case.says("falcon", "ResourceReady", "False", "QuotaExceeded", &[]).await;
    case.tells("falcon", "Warning", "QuotaExceeded", &["LaunchFailed", message]).await;
    karpenter.claims_of(&case.namespace, Fate::Provisioned { gpus: 1 }).await;
    case.is_ready("falcon").await;
}

pub async fn a_cloud_without_machines(case: Case) {
    let karpenter = case.karpenter().await;
    karpenter.claims_of(&case.namespace, Fate::InsufficientCapacity { message: NO_MACHINE }).await;
    case.apply(case.falcon("falcon")).await;
    case.tells("falcon", "Warning", "InsufficientCapacity", &[NO_MACHINE]).await;
    karpenter.claims_of(&case.namespace, Fate::Provisioned { gpus: 1 }).await;
    // The controller claims again a minute after the failure.
    case.is_ready_within(LIMIT + Duration::from_secs(60), "falcon").await;
}

pub async fn deleting_while_claims_are_pending(case: Case) {
    let karpenter = case.karpenter().await;
    case.apply(case.falcon("falcon")).await;
    eventually("a claim", || async {
        let claims = karpenter.claims(&case.namespace).await;
        if claims.len() == 1 { Ok(()) } else { Err(format!("{claims:?}")) }
    })
    .await;
    case.delete_and_leave_nothing("falcon").await;
    assert!(karpenter.claims(&case.namespace).await.is_empty());
}

pub async fn one_claim_for_the_node_that_is_missing(case: Case) {
    let karpenter = case.karpenter().await;
    karpenter.claims_of(&case.namespace, Fate::Provisioned { gpus: 2 }).await;
    let type_ = "Standard_NC12s_v3";
    case.kubelet.add(case.node(0, type_, 2)).await;
    let preset = json!({"preset": {
        "name": "llama-2-13b-chat",
        "accessMode": "private",
        "presetOptions": {"image": "registry.example.com/llama-2-13b-chat:1"},
    }});
    let mut workspace = case.workspace("llama", 2, type_, preset);
    workspace["metadata"]["annotations"] = json!({"kaito.sh/runtime": "vllm"});
    case.apply(workspace).await;
    case.is_ready("llama").await;
    assert_eq!(karpenter.claims(&case.namespace).await.len(), 1);
    case.delete_and_leave_nothing("llama").await;
    assert!(karpenter.claims(&case.namespace).await.is_empty());
}

pub async fn a_node_is_claimed_in_place_of_a_tainted_one(case: Case) {
    let karpenter = case.karpenter().await;
    karpenter.claims_of(&case.namespace, Fate::Provisioned { gpus: 1 }).await;
    case.add_node().await;
    let node = format!("{}-0", case.namespace);
    case.plane.kubectl(&["taint", "node", &node, "scalesetpriority=spot:NoSchedule"]).await.stdout();
    case.apply(case.falcon("falcon")).await;
    let ready = case.is_ready("falcon").await;
    let claims = karpenter.claims(&case.namespace).await;
    let [claim] = claims.as_slice() else { panic!("{claims:?}") };
    assert_eq!(ready.data["status"]["workerNodes"], json!([claim.name_any()]));
    case.delete_and_leave_nothing("falcon").await;
}

pub async fn without_a_provisioner_they_are_told_of(case: Case) {
    case.install(Provisioner::Karpenter).await;
    let karpenter = case.karpenter().await;
    karpenter.claims_of(&case.namespace, Fate::Provisioned { gpus: 1 }).await;
    case.apply(case.falcon("falcon")).await;
    case.is_ready("falcon").await;
    let claim = karpenter.claims(&case.namespace).await[0].name_any();
    case.install(Provisioner::None).await;
    let words = ["is not deleted with the workspace", &format!("kubectl delete nodeclaim {claim}")];
    case.says("falcon", "ResourceReady", "True", "NodesReady", &words).await;
    case.delete_and_leave_nothing("falcon").await;
    case.tells("falcon", "Warning", "NodeClaimsLeft", &words).await;
    case.plane.kubectl(&["delete", "nodeclaim", &claim, "--timeout=60s"]).await.stdout();
}
