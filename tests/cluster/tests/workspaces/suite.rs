//! One control plane and one installation for all cases, each of which has a namespace of its own.

use std::{
    fs,
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{Arc, atomic::AtomicUsize},
};

use futures_util::FutureExt;
use kaito_cluster_tests::{
    control_plane::ControlPlane,
    karpenter::Karpenter,
    kubelet::{Behaviour, Kubelet, Node},
    network::{self, Network},
};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::{
    runtime::Runtime,
    sync::{Mutex, OnceCell},
};

use crate::{case::Case, installation::Provisioner};

/// What all cases share.
pub struct Suite {
    pub plane: ControlPlane,
    pub kubelet: Kubelet,
    pub network: Network,
    /// The simulated Karpenter, once its kinds are installed.
    pub karpenter: OnceCell<Karpenter>,
    /// The options with which the chart is installed now.
    pub installed: Mutex<Option<Provisioner>>,
    /// The first request of the audit log for which permissions are checked.
    pub audited_from: AtomicUsize,
}

/// Where the chart is installed.
pub const SYSTEM: &str = "kaito-system";

impl Suite {
    pub async fn start() -> Self {
        let plane = ControlPlane::from_environment().await;
        let kubelet = Kubelet::start(&plane);
        let network = network::start(&plane, &kubelet);
        kubelet.pods_of(SYSTEM, Behaviour::Process);
        for name in ["system-0", "system-1"] {
            kubelet.add(Node::new(name)).await;
        }
        Self {
            plane,
            kubelet,
            network,
            karpenter: OnceCell::new(),
            installed: Mutex::default(),
            audited_from: AtomicUsize::default(),
        }
    }

    /// Waits until no pod runs as a process any more.
    pub async fn stop(&self) {
        let deleted = self.plane.kubectl(&["delete", "namespace", SYSTEM, "--ignore-not-found", "--timeout=60s"]).await;
        assert!(deleted.success, "{}", deleted.stderr);
    }
}

type Future_ = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A case by its name.
pub struct Named {
    pub name: String,
    pub run: fn(Case) -> Future_,
}

/// Cases of a module, by the names of their functions.
macro_rules! cases {
    ($($module:ident: $($case:ident),+ $(,)?);+ $(;)?) => {
        vec![$($($crate::suite::Named {
            name: concat!(stringify!($module), "::", stringify!($case)).to_owned(),
            run: |case| Box::pin($crate::$module::$case(case)),
        }),+),+]
    };
}
pub(crate) use cases;

/// Cases that run under one configuration of the installation, or before there is one.
pub struct Phase {
    pub provisioner: Option<Provisioner>,
    /// How many at the same time.
    pub threads: usize,
    pub cases: Vec<Named>,
}

/// Runs cases; whether all succeeded.
pub fn run(
    arguments: &Arguments,
    runtime: &Arc<Runtime>,
    suite: &Arc<Suite>,
    provisioner: Option<Provisioner>,
    cases: Vec<Named>,
) -> bool {
    let asked_for = |name: &str| arguments.filter.as_ref().is_none_or(|filter| name.contains(filter));
    let cases: Vec<_> = cases.into_iter().filter(|case| asked_for(&case.name)).collect();
    if cases.is_empty() {
        return true;
    }
    if let Some(provisioner) = provisioner {
        runtime.block_on(suite.install(provisioner));
    }
    let trials = cases.into_iter().map(|Named { name, run }| {
        let (suite, runtime) = (suite.clone(), runtime.clone());
        let namespace = name.rsplit("::").next().unwrap_or_default().replace('_', "-");
        Trial::test(name, move || runtime.block_on(tried(suite, namespace, run)))
    });
    !libtest_mimic::run(arguments, trials.collect()).has_failed()
}

impl Suite {
    /// The last lines of the controllers' logs about a namespace, a lease or a broken watch.
    fn logs_about(&self, namespace: &str) -> String {
        let mut shown = String::new();
        for file in fs::read_dir(self.plane.folder.join("logs")).into_iter().flatten().flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            let (true, Ok(log)) = (name.starts_with("kaito-"), fs::read_to_string(file.path())) else { continue };
            let lines =
                log.lines().filter(|line| [namespace, "lease", "leader", "watch"].iter().any(|it| line.contains(it)));
            let lines: Vec<_> = lines.collect();
            shown += &format!("log of {name}:\n{}\n", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
        shown
    }
}

/// A failure shows what is in the case's namespace, and what the controllers logged about it.
async fn tried(suite: Arc<Suite>, namespace: String, run: fn(Case) -> Future_) -> Result<(), Failed> {
    let case = Case::new(suite.clone(), namespace.clone()).await;
    let Err(panic) = AssertUnwindSafe(run(case)).catch_unwind().await else { return Ok(()) };
    let message = panic.downcast_ref::<String>().cloned();
    let message = message.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default();
    let mut shown = String::new();
    for kinds in ["workspaces", "all", "events"] {
        let output = if kinds == "workspaces" { "yaml" } else { "wide" };
        let printed = suite.plane.kubectl(&["get", kinds, "--namespace", &namespace, "--output", output]).await;
        shown += &format!("{}{}\n", printed.stdout, printed.stderr);
    }
    shown += &suite.logs_about(&namespace);
    Err(format!("{message}\n\n{shown}").into())
}
