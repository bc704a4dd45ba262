//! `kaito controller`: workspaces become running models.

use std::{env, sync::Arc, time::SystemTime};

use anyhow::{Context, bail};
use kaito_operator::{
    controller::{self, WebhookOptions},
    decide::{self, Provisioner, RolloutPolicy},
    webhook::{CertificateOptions, Lifetimes, service_names},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::{
    args::{ControllerArgs, NodeProvisioner, WebhookArgs},
    logging, network,
};

/// Where the documents of the Kaito project have the registry.
const REGISTRY_VARIABLE: &str = "PRESET_REGISTRY_NAME";

pub fn run(args: ControllerArgs) -> anyhow::Result<()> {
    let options = options(&args, &|name| env::var(name).ok().filter(|value| !value.trim().is_empty()))?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the threads of the controller")?;
    runtime.block_on(async {
        let client = kube::Client::try_default()
            .await
            .context("there is no cluster: not in a pod, and no kubeconfig (KUBECONFIG or ~/.kube/config) names one")?;
        let (end, shutdown) = watch::channel(false);
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            tracing::info!("ending");
            end.send_replace(true);
            // The sender must outlive the receivers that wait for its value.
            end.closed().await;
        });
        controller::run(client, options, shutdown).await.map_err(anyhow::Error::from)
    })
}

fn options(args: &ControllerArgs, variable: &dyn Fn(&str) -> Option<String>) -> anyhow::Result<controller::Options> {
    let provisioner = match (args.nodes.node_provisioner, &args.nodes.node_class) {
        (NodeProvisioner::None, _) => Provisioner::None,
        (NodeProvisioner::Karpenter, Some(class)) => Provisioner::Karpenter(class.clone()),
        (NodeProvisioner::Karpenter, None) => bail!("--node-provisioner karpenter needs --node-class"),
    };
    let address = |port| network::address(args.ports.host.as_deref(), port);
    // Set by the Deployment, from the pod's own fields.
    let own_namespace = variable("POD_NAMESPACE").unwrap_or_else(|| "default".to_owned());
    let WebhookArgs { no_webhook, webhook_port, webhook_service, webhook_secret } = &args.webhook;
    let webhook = match no_webhook {
        true => None,
        false => Some(WebhookOptions {
            address: address(*webhook_port)?,
            certificates: CertificateOptions {
                namespace: own_namespace.clone(),
                secret: webhook_secret.clone(),
                configuration: webhook_service.clone(),
                names: service_names(webhook_service, &own_namespace),
                lifetimes: Lifetimes::default(),
                clock: Arc::new(SystemTime::now),
            },
        }),
    };
    Ok(controller::Options {
        decide: decide::Options {
            preset_registry: args.preset_registry.clone().or_else(|| variable(REGISTRY_VARIABLE)),
            preset_tag: args.preset_tag.clone(),
            server_image: args.server_image.clone(),
            vllm_image: args.vllm_image.clone(),
            vllm_rocm_image: args.vllm_rocm_image.clone(),
            hub_endpoint: args.hub_endpoint.as_ref().map(|url| url.as_str().trim_end_matches('/').to_owned()),
            provisioner,
            rollouts: RolloutPolicy {
                at_once: args.rollouts.max_rollouts.get(),
                windows: args.rollouts.maintenance_window.clone(),
                pause: args.rollouts.rollout_pause,
            },
            ..decide::Options::default()
        },
        namespace: args.namespace.clone(),
        own_namespace,
        identity: variable("POD_NAME")
            .or_else(|| variable("HOSTNAME"))
            .map_or_else(|| format!("kaito-{}", std::process::id()), |name| format!("{name}-{}", std::process::id())),
        elects_leader: !args.no_leader_election,
        instance_types: args.instance_types.clone(),
        metrics_address: address(args.ports.metrics_port)?,
        health_address: address(args.ports.health_port)?,
        dropped_log_lines: logging::dropped_lines(),
        webhook,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn parsed(args: &[&str]) -> Result<ControllerArgs, clap::Error> {
        Cli::try_parse_from(["kaito", "controller"].iter().chain(args)).map(|cli| match cli.command {
            Command::Controller(args) => args,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn flags_win_over_the_documents_variable() {
        let from = |args: &[&str]| {
            let variable = |name: &str| (name == REGISTRY_VARIABLE).then(|| "registry.example/old".to_owned());
            options(&parsed(args).unwrap(), &variable).unwrap().decide.preset_registry
        };
        assert_eq!(from(&[]).as_deref(), Some("registry.example/old"));
        assert_eq!(from(&["--preset-registry", "registry.example/new"]).as_deref(), Some("registry.example/new"));
    }

    #[test]
    fn karpenter_needs_a_node_class_of_the_right_form() {
        for (args, part) in [
            (&["--node-provisioner", "karpenter"][..], "--node-class"),
            (&["--node-class", "default"], "KIND.GROUP/NAME"),
            (&["--node-provisioner", "magic"], "none, karpenter"),
        ] {
            let error = parsed(args).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(part), "{error}");
        }
        let args = ["--node-provisioner", "karpenter", "--node-class", "EC2NodeClass.karpenter.k8s.aws/default"];
        let options = options(&parsed(&args).unwrap(), &|_| None).unwrap();
        assert!(matches!(options.decide.provisioner, Provisioner::Karpenter(class) if class.kind == "EC2NodeClass"));
    }

    #[test]
    fn restarts_are_few_at_a_time_and_in_windows() {
        let rollouts = |args: &[&str]| options(&parsed(args).unwrap(), &|_| None).unwrap().decide.rollouts;
        assert_eq!(rollouts(&[]), RolloutPolicy::default());
        let windows =
            ["--maintenance-window", "Sat 02:00-06:00", "--maintenance-window=Mon-Fri 03:00-04:00;23:00-01:00"];
        let read = rollouts(&[&windows[..], &["--max-rollouts", "3", "--rollout-pause", "5m"]].concat());
        let written: Vec<_> = read.windows.iter().map(ToString::to_string).collect();
        assert_eq!(written, ["Sat 02:00-06:00", "Mon-Fri 03:00-04:00", "23:00-01:00"]);
        assert_eq!((read.at_once, read.pause.as_secs()), (3, 300));
        for (args, part) in [
            (["--max-rollouts", "0"], "--max-rollouts"),
            (["--maintenance-window", "weekends"], "is not a maintenance window"),
            (["--preset-tag", "a b"], "expected a tag"),
            (["--preset-tag", ""], "expected a tag"),
        ] {
            let error = parsed(&args).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn another_hub_is_an_address_that_paths_can_follow() {
        let hub = |args: &[&str]| options(&parsed(args).unwrap(), &|_| None).unwrap().decide.hub_endpoint;
        assert_eq!(hub(&[]), None);
        assert_eq!(hub(&["--hub-endpoint", "https://hub.example/m/"]).as_deref(), Some("https://hub.example/m"));
        assert!(parsed(&["--hub-endpoint", "ftp://hub.example"]).is_err());
    }

    #[test]
    fn a_replica_is_told_from_others() {
        let variable = |name: &str| match name {
            "POD_NAME" => Some("kaito-abc".to_owned()),
            "POD_NAMESPACE" => Some("kaito-system".to_owned()),
            _ => None,
        };
        let options = options(&parsed(&[]).unwrap(), &variable).unwrap();
        assert!(options.identity.starts_with("kaito-abc-"), "{}", options.identity);
        assert_eq!(options.own_namespace, "kaito-system");
    }
}
