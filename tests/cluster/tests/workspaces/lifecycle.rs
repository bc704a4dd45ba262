//! Deletes workspaces at every stage, repairs drift, follows changes.

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Pod, Service},
};
use kaito_cluster_tests::{eventually::eventually, kubelet::Behaviour};
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;

use crate::case::Case;

pub async fn deleting_at_every_stage(case: Case) {
    let falcon = case.falcon("falcon");
    let again = async |stage: &str| {
        case.delete_and_leave_nothing("falcon").await;
        println!("deleted while {stage}");
        case.apply(&falcon).await;
    };

    case.apply(&falcon).await;
    case.says("falcon", "ResourceReady", "False", "NodesMissing", &[]).await;
    again("nodes are missing").await;
    // At once, while its finalizer is being written: the API server may not see that any more, and let it go before the rest.
    case.delete("falcon").await;
    case.nothing_is_left("falcon").await;
    println!("deleted while new");
    case.apply(&falcon).await;
    case.add_node().await;
    case.kubelet.pods_of(&case.namespace, Behaviour::Pulling);
    case.says("falcon", "InferenceReady", "False", "PodsStarting", &[]).await;
    again("the image is being pulled").await;
    case.kubelet.pods_of(&case.namespace, Behaviour::Loading);
    case.says("falcon", "InferenceReady", "False", "ModelLoading", &[]).await;
    again("the model loads").await;
    case.kubelet.pods_of(&case.namespace, Behaviour::OUT_OF_MEMORY);
    case.says("falcon", "InferenceReady", "False", "ContainerOOMKilled", &[]).await;
    again("the server crashes").await;
    case.kubelet.pods_of(&case.namespace, Behaviour::Ready);
    case.is_ready("falcon").await;
    case.delete_and_leave_nothing("falcon").await;
}

pub async fn deleting_the_namespace(case: Case) {
    case.add_node().await;
    case.apply(case.falcon("falcon")).await;
    case.is_ready("falcon").await;
    case.plane.kubectl(&["delete", "namespace", &case.namespace, "--timeout=90s"]).await.stdout();
}

pub async fn somebody_elses_finalizer_is_left_alone(case: Case) {
    let mut falcon = case.falcon("falcon");
    falcon["metadata"]["finalizers"] = json!(["example.com/backup"]);
    case.apply(falcon).await;
    case.says("falcon", "ResourceReady", "False", "NodesMissing", &[]).await;
    case.workspaces().delete("falcon", &DeleteParams::default()).await.unwrap();
    eventually("only the other finalizer is left", || async {
        let finalizers = case.workspaces().get("falcon").await.unwrap().finalizers().to_vec();
        if finalizers == ["example.com/backup"] { Ok(()) } else { Err(format!("{finalizers:?}")) }
    })
    .await;
    let without = json!({"metadata": {"finalizers": null}});
    case.workspaces().patch("falcon", &PatchParams::default(), &Patch::Merge(without)).await.unwrap();
    eventually("it is gone", || async {
        match case.workspaces().get_opt("falcon").await.unwrap() {
            None => Ok(()),
            Some(workspace) => Err(format!("{workspace:?}")),
        }
    })
    .await;
}

pub async fn drift_is_repaired(case: Case) {
    case.add_node().await;
    case.apply(case.falcon("falcon")).await;
    case.is_ready("falcon").await;
    let service: Service = case.exists("falcon").await;
    let deployment: Deployment = case.exists("falcon").await;

    // Deleted.
    case.kubectl(&["delete", "service", "falcon"]).await.stdout();
    case.settles(
        "falcon",
        |again: &Service| {
            if again.uid() == service.uid() { Err("the first".to_owned()) } else { Ok(()) }
        },
    )
    .await;
    // Without its pods, which the next Deployment adopts.
    case.kubectl(&["delete", "deployment", "falcon", "--cascade=orphan"]).await.stdout();
    case.settles(
        "falcon",
        |again: &Deployment| {
            if again.uid() == deployment.uid() { Err("the first".to_owned()) } else { Ok(()) }
        },
    )
    .await;

    // A field that the controller sets is edited.
    case.kubectl(&["scale", "deployment", "falcon", "--replicas=0"]).await.stdout();
    case.settles("falcon", |deployment: &Deployment| {
        let replicas = deployment.spec.as_ref().unwrap().replicas;
        if replicas == Some(1) { Ok(()) } else { Err(format!("{replicas:?}")) }
    })
    .await;
    let container = deployment.spec.as_ref().unwrap().template.spec.as_ref().unwrap().containers[0].clone();
    let image = container.image.unwrap();
    case.kubectl(&["set", "image", "deployment/falcon", &format!("{}=example.com/other:1", container.name)])
        .await
        .stdout();
    case.settles("falcon", |deployment: &Deployment| {
        let now = deployment.spec.as_ref().unwrap().template.spec.as_ref().unwrap().containers[0].image.clone();
        if now.as_ref() == Some(&image) { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await;
    case.kubectl(&["label", "service", "falcon", "kaito.sh/workspace=other", "--overwrite"]).await.stdout();
    case.settles("falcon", |service: &Service| {
        let label = service.labels().get("kaito.sh/workspace").cloned();
        if label.as_deref() == Some("falcon") { Ok(()) } else { Err(format!("{label:?}")) }
    })
    .await;

    // A field that the controller does not set is edited: the edit stays.
    case.kubectl(&["annotate", "service", "falcon", "example.com/owner=team-a"]).await.stdout();
    case.is_ready("falcon").await;
    let service: Service = case.exists("falcon").await;
    assert_eq!(service.annotations()["example.com/owner"], "team-a");
}

pub async fn changes_within_the_rules_are_followed(case: Case) {
    for number in 0..2 {
        case.kubelet.add(case.node(number, crate::case::ONE_A100, 1)).await;
    }
    let template = |image: &str| {
        json!({"template": {"spec": {
            "containers": [{"name": "server", "image": image, "ports": [{"containerPort": 5000}]}],
        }}})
    };
    let own = |image: &str| case.workspace("own", 1, crate::case::ONE_A100, template(image));
    case.apply(own("registry.example.com/own:1")).await;
    case.is_ready("own").await;
    case.apply(own("registry.example.com/own:2")).await;
    eventually("a pod with the new image, and no other", || async {
        let images: Vec<_> = case
            .pods_of("own")
            .await
            .into_iter()
            .map(|pod| pod.spec.unwrap().containers[0].image.clone().unwrap())
            .collect();
        if images == ["registry.example.com/own:2"] { Ok(()) } else { Err(format!("{images:?}")) }
    })
    .await;
    case.is_ready("own").await;
    case.delete_and_leave_nothing("own").await;

    // Adapters come, change and go.
    let mut falcon = case.falcon("falcon");
    case.apply(&falcon).await;
    case.is_ready("falcon").await;
    for adapters in [
        json!([{"source": {"name": "tickets", "image": "registry.example.com/tickets:1"}, "strength": "0.5"}]),
        json!([
            {"source": {"name": "tickets", "image": "registry.example.com/tickets:2"}, "strength": "0.5"},
            {"source": {"name": "letters", "image": "registry.example.com/letters:1"}},
        ]),
        json!([]),
    ] {
        falcon["inference"]["adapters"] = adapters.clone();
        case.apply(&falcon).await;
        let wanted: Vec<String> = adapters
            .as_array()
            .unwrap()
            .iter()
            .map(|adapter| adapter["source"]["image"].as_str().unwrap().to_owned())
            .collect();
        eventually(&format!("a pod with the adapters {wanted:?}, and no other"), || async {
            let fetched = |pod: &Pod| -> Vec<String> {
                let init = pod.spec.as_ref().unwrap().init_containers.as_deref().unwrap_or_default();
                init.iter()
                    .filter_map(|container| container.image.clone())
                    .filter(|image| wanted.contains(image))
                    .collect()
            };
            let inits = |pod: &Pod| pod.spec.as_ref().unwrap().init_containers.as_ref().map_or(0, Vec::len);
            let pods = case.pods_of("falcon").await;
            match pods.as_slice() {
                [pod] if fetched(pod) == wanted && (inits(pod) == 0) == wanted.is_empty() => Ok(()),
                pods => Err(format!("{:?}", pods.iter().map(|pod| (pod.name_any(), fetched(pod))).collect::<Vec<_>>())),
            }
        })
        .await;
        case.is_ready("falcon").await;
    }
}

pub async fn a_load_balancer_on_request(case: Case) {
    case.add_node().await;
    let mut falcon = case.falcon("falcon");
    falcon["metadata"]["annotations"] = json!({"kaito.sh/enablelb": "True"});
    case.apply(&falcon).await;
    let type_ = |wanted: &'static str| {
        move |service: &Service| {
            let found = service.spec.as_ref().unwrap().type_.clone();
            if found.as_deref() == Some(wanted) { Ok(()) } else { Err(format!("{found:?}")) }
        }
    };
    case.settles("falcon", type_("LoadBalancer")).await;
    case.is_ready("falcon").await;
    case.kubectl(&["annotate", "workspace", "falcon", "kaito.sh/enablelb-"]).await.stdout();
    case.settles("falcon", type_("ClusterIP")).await;
}
