//! The chart, as Helm renders it, applied by kubectl.

use std::time::UNIX_EPOCH;

use k8s_openapi::api::{
    apps::v1::Deployment,
    coordination::v1::Lease,
    core::v1::{Namespace, Pod},
};
use kaito_cluster_tests::{
    control_plane::{printed, repository},
    eventually::eventually,
    kubelet::Process,
};
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;
use tokio::process::Command;

use crate::suite::{SYSTEM, Suite};

/// The node class that node claims refer to.
pub const NODE_CLASS: &str = "AKSNodeClass.karpenter.azure.com/default";

/// The metrics port of the controllers' containers.
pub const METRICS: u16 = 8080;

/// How many controllers the chart runs.
pub const CONTROLLERS: u32 = 2;

/// Where nodes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provisioner {
    /// Nobody provisions them.
    None,
    /// Karpenter provisions them.
    Karpenter,
}

/// The chart's manifests.
async fn rendered(provisioner: Provisioner) -> String {
    let mut helm = Command::new("helm");
    helm.arg("template").arg("kaito").arg(repository().join("charts/kaito")).args(["--namespace", SYSTEM]);
    helm.args(["--set", "registry=registry.example.com/team"]);
    match provisioner {
        Provisioner::None => helm.args(["--set", "nodeProvisioner=none"]),
        Provisioner::Karpenter => {
            helm.args(["--set", "nodeProvisioner=karpenter", "--set", &format!("karpenter.nodeClass={NODE_CLASS}")])
        }
    };
    printed(&mut helm, "").await.stdout()
}

impl Suite {
    /// Installs the chart, or changes the installation, and waits until it answers.
    pub async fn install(&self, provisioner: Provisioner) {
        let mut installed = self.installed.lock().await;
        if *installed == Some(provisioner) {
            return;
        }
        let namespaces = Api::<Namespace>::all(self.plane.client.clone());
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}});
        namespaces.patch(SYSTEM, &PatchParams::apply("tests"), &Patch::Apply(namespace)).await.unwrap();
        let arguments = ["apply", "--server-side", "--filename", "-"];
        self.plane.kubectl_with(&arguments, &rendered(provisioner).await).await.stdout();
        self.rolled_out().await;
        *installed = Some(provisioner);
    }

    /// Gives the controllers other flags than the chart does, until the chart is installed again.
    pub async fn install_with(&self, flags: &[&str]) {
        let mut installed = self.installed.lock().await;
        let mut chart = rendered(Provisioner::None).await;
        for flag in flags {
            let name = flag.split('=').next().unwrap();
            let lines: Vec<&str> = chart.lines().filter(|line| !line.contains(&format!("- {name}="))).collect();
            chart = lines
                .join("\n")
                .replace("            - controller\n", &format!("            - controller\n            - {flag}\n"));
        }
        let arguments = ["apply", "--server-side", "--filename", "-"];
        self.plane.kubectl_with(&arguments, &chart).await.stdout();
        self.rolled_out().await;
        *installed = None;
    }

    /// Waits until all replicas are ready and the admission webhook answers.
    pub async fn rolled_out(&self) {
        self.plane
            .kubectl(&["rollout", "status", "deployment/kaito", "--namespace", SYSTEM, "--timeout=90s"])
            .await
            .stdout();
        let probe = json!({
            "apiVersion": "kaito.sh/v1beta1",
            "kind": "Workspace",
            "metadata": {"name": "probe", "namespace": "default"},
            "resource": {"labelSelector": {"matchLabels": {"apps": "probe"}}},
            "inference": {"preset": {"name": "falcon-7b"}},
        });
        eventually("admission is answered", || async {
            let arguments = ["create", "--dry-run=server", "--filename", "-"];
            let printed = self.plane.kubectl_with(&arguments, &probe.to_string()).await;
            if printed.success {
                return Ok(());
            }
            if printed.stderr.contains("no ready endpoint") {
                // A controller manager whose watch of slices lags gives the Service up, until something happens to it.
                let now =
                    format!("tests/looked={:?}", std::time::SystemTime::now().duration_since(UNIX_EPOCH).unwrap());
                let annotate = ["annotate", "service", "kaito-webhook", "--namespace", SYSTEM, "--overwrite", &now];
                self.plane.kubectl(&annotate).await;
            }
            Err(printed.stderr)
        })
        .await;
    }

    /// The processes of the controllers, by their pods' names.
    pub async fn controllers(&self) -> Vec<(String, Process)> {
        let pods = Api::<Pod>::namespaced(self.plane.client.clone(), SYSTEM);
        let pods = pods.list(&ListParams::default().labels("app.kubernetes.io/name=kaito")).await.unwrap();
        let names = pods.iter().map(ResourceExt::name_any);
        names.filter_map(|name| Some((name.clone(), self.kubelet.process(SYSTEM, &name)?))).collect()
    }

    /// The holder of the lease, by the Lease itself.
    pub async fn leader(&self) -> Option<String> {
        let leases = Api::<Lease>::namespaced(self.plane.client.clone(), SYSTEM);
        let leases = leases.list(&ListParams::default()).await.unwrap();
        let lease = leases.items.into_iter().next()?;
        lease.spec?.holder_identity.filter(|holder| !holder.is_empty())
    }

    /// The leader's process.
    pub async fn leading(&self) -> (String, Process) {
        eventually("a controller leads", || async {
            let leader = self.leader().await.ok_or("nobody holds the lease")?;
            let found = self.controllers().await.into_iter().find(|(name, _)| leader.contains(name));
            found.ok_or_else(|| format!("{leader} does not run"))
        })
        .await
    }

    /// How many controllers the Deployment has.
    pub async fn scale(&self, replicas: u32) {
        let deployments = Api::<Deployment>::namespaced(self.plane.client.clone(), SYSTEM);
        let patch = json!({"spec": {"replicas": replicas}});
        deployments.patch_scale("kaito", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
        self.controllers_run(replicas).await;
    }

    /// Waits until so many controllers run: those of an earlier rollout may take a while to end.
    pub async fn controllers_run(&self, replicas: u32) {
        eventually(&format!("{replicas} controllers run"), || async {
            let running = self.controllers().await.len();
            if running == replicas as usize { Ok(()) } else { Err(format!("{running}")) }
        })
        .await;
    }
}
