//! The services of a workspace.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::object::metadata;
use crate::{
    layout::Layout,
    runtime::{PORT, RANK_PORT},
    workspace::{LABEL_WORKSPACE, Workspace},
};

/// The port that clients use.
const HTTP: u16 = 80;
/// The label by which a StatefulSet tells its pods apart.
const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";

/// The service by which ranks find each other.
pub fn headless_name(workspace: &Workspace) -> String {
    format!("{}-headless", workspace.name())
}

/// The services of a workspace: one for clients, and, with ranks, one for the ranks themselves.
pub fn services(workspace: &Workspace, layout: &Layout) -> Vec<Service> {
    let mut services = vec![main(workspace, layout)];
    if layout.has_ranks() {
        services.push(headless(workspace));
    }
    services
}

fn main(workspace: &Workspace, layout: &Layout) -> Service {
    let mut selector = selector(workspace);
    if layout.has_ranks() {
        // Only the first rank serves HTTP.
        selector.insert(POD_NAME.to_owned(), format!("{}-0", workspace.name()));
    }
    let type_ = if workspace.wants_load_balancer() { "LoadBalancer" } else { "ClusterIP" };
    service(
        workspace,
        workspace.name().to_owned(),
        ServiceSpec {
            type_: Some(type_.to_owned()),
            selector: Some(selector),
            ports: Some(vec![port("http", HTTP, container_port(workspace))]),
            ..ServiceSpec::default()
        },
    )
}

fn headless(workspace: &Workspace) -> Service {
    service(
        workspace,
        headless_name(workspace),
        ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            cluster_ip: Some("None".to_owned()),
            selector: Some(selector(workspace)),
            ports: Some(vec![port("ranks", RANK_PORT, RANK_PORT.into())]),
            // Ranks must find each other before they are ready.
            publish_not_ready_addresses: Some(true),
            ..ServiceSpec::default()
        },
    )
}

fn service(workspace: &Workspace, name: String, spec: ServiceSpec) -> Service {
    Service { metadata: metadata(workspace, name), spec: Some(spec), status: None }
}

fn selector(workspace: &Workspace) -> BTreeMap<String, String> {
    BTreeMap::from([(LABEL_WORKSPACE.to_owned(), workspace.name().to_owned())])
}

fn port(name: &str, port: u16, target: i32) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port: port.into(),
        protocol: Some("TCP".to_owned()),
        target_port: Some(IntOrString::Int(target)),
        ..ServicePort::default()
    }
}

/// The first port that a template's containers declare, else the port of our own pods.
fn container_port(workspace: &Workspace) -> i32 {
    let template = workspace.inference.as_ref().and_then(|inference| inference.template.as_ref());
    template
        .and_then(|template| template.spec.as_ref())
        .and_then(|spec| spec.containers.iter().flat_map(|container| container.ports.iter().flatten()).next())
        .map_or(PORT.into(), |port| port.container_port)
}
