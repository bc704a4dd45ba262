//! The network policy of a workspace whose pods listen where only they themselves are to be reached.
//!
//! vLLM's processes talk over TCP with torch.distributed and message queues, on ports that they choose themselves and that ask
//! nobody who he is. Over several nodes those are between pods. On one node they are within the pod, but torch's store listens
//! on every address all the same. So both have a policy; only the first lets pods of the workspace reach each other.

use k8s_openapi::{
    api::{
        core::v1::Pod,
        networking::v1::{
            NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
        },
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use super::{
    model::Model,
    object::{ObjectKind, metadata},
    observed::{Observed, is_going, name},
};
use crate::{
    layout::Layout,
    runtime::{self, ENGINE, PORT},
    workspace::Workspace,
};

/// The policy that a workspace is to have, if any.
pub fn network_policy(workspace: &Workspace, model: &Model<'_>, layout: &Layout) -> Option<NetworkPolicy> {
    let runtime = *model.as_preset()?.runtime.as_ref().ok()?;
    if workspace.declines_network_policy() || !runtime::is_reached_within(runtime) {
        return None;
    }
    let pods = LabelSelector { match_labels: Some(workspace.owned_labels()), match_expressions: None };
    let peers = layout.has_ranks().then(|| NetworkPolicyIngressRule {
        // Without a selector of namespaces: pods of this namespace.
        from: Some(vec![NetworkPolicyPeer { pod_selector: Some(pods.clone()), ..NetworkPolicyPeer::default() }]),
        ports: None,
    });
    let clients = NetworkPolicyIngressRule {
        from: None,
        ports: Some(vec![NetworkPolicyPort {
            port: Some(IntOrString::Int(PORT.into())),
            protocol: Some("TCP".to_owned()),
            end_port: None,
        }]),
    };
    Some(NetworkPolicy {
        metadata: metadata(workspace, workspace.name().to_owned()),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(pods),
            policy_types: Some(vec!["Ingress".to_owned()]),
            ingress: Some(peers.into_iter().chain([clients]).collect()),
            egress: None,
        }),
    })
}

/// The policy to be deleted, where none is wanted any more: once the last pod with an engine has gone, which may take minutes.
pub fn surplus(workspace: &Workspace, observed: &Observed) -> Option<(ObjectKind, String)> {
    let metadata = &observed.network_policy.as_ref()?.metadata;
    let is_ours = workspace.owns(metadata) && !is_going(metadata);
    let is_needed = !workspace.declines_network_policy() && observed.pods.iter().any(|pod| has_engine(pod));
    (is_ours && !is_needed).then(|| (ObjectKind::NetworkPolicy, name(metadata).to_owned()))
}

fn has_engine(pod: &Pod) -> bool {
    pod.spec.iter().flat_map(|spec| &spec.containers).any(|container| container.name == ENGINE)
}
