//! Rollouts: when a newer installation restarts running models.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use kaito_cluster_tests::eventually::within;
use kube::ResourceExt;

use crate::{case::Case, installation::Provisioner};

/// The image of a workspace's pods, and whether its rollout is under way.
async fn image_of(case: &Case, name: &str) -> (String, bool) {
    let deployment: Deployment = case.exists(name).await;
    let has_turn = deployment.annotations().contains_key("kaito.sh/rollout");
    let pod = deployment.spec.unwrap().template.spec.unwrap();
    (pod.containers[0].image.clone().unwrap(), has_turn)
}

pub async fn another_tag_restarts_one_model_at_a_time(case: Case) {
    let names = ["a", "b", "c"];
    // Workspaces of earlier cases would be rolled out too.
    case.plane.kubectl(&["delete", "workspaces", "--all", "--all-namespaces", "--timeout=90s"]).await.stdout();
    case.add_node().await;
    for name in names {
        case.apply(case.falcon(name)).await;
    }
    let mut pods = Vec::new();
    for name in names {
        case.is_ready(name).await;
        pods.push(case.pods_of(name).await.remove(0).name_any());
    }
    // Outside the maintenance windows, nothing is restarted, and the status says what is due.
    let closed = "--maintenance-window=Mon 00:00-00:01";
    let closed = if k8s_openapi::jiff::Timestamp::now().to_string().contains("T00:0") {
        "--maintenance-window=Mon 12:00-12:01"
    } else {
        closed
    };
    case.install_with(&["--preset-tag=0.0.2", "--rollout-pause=2s", closed]).await;
    for (name, pod) in names.iter().zip(&pods) {
        let words = ["kaito-falcon-7b-instruct:0.0.2", "it waits for a maintenance window"];
        case.says(name, "UpToDate", "False", "RolloutDue", &words).await;
        case.is_ready(name).await;
        assert_eq!(case.pods_of(name).await.remove(0).name_any(), *pod);
    }
    // Without windows, one is rolled out after the other.
    case.install_with(&["--preset-tag=0.0.2", "--rollout-pause=2s"]).await;
    within(Duration::from_secs(240), "all run the other tag", || async {
        let mut images = Vec::new();
        for name in names {
            images.push(image_of(&case, name).await);
        }
        let turns = images.iter().filter(|(_, has_turn)| *has_turn).count();
        assert!(turns <= 1, "{images:?}");
        let is_done = images.iter().all(|(image, has_turn)| image.ends_with(":0.0.2") && !has_turn);
        if is_done { Ok(()) } else { Err(format!("{images:?}")) }
    })
    .await;
    for name in names {
        case.is_ready(name).await;
    }
    for name in names {
        case.delete_and_leave_nothing(name).await;
    }
    case.install(Provisioner::None).await;
}
