//! Refuses a pod template that the API server would refuse later, in the Deployment that is made from it.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, PodSpec, PodTemplateSpec};

use super::{Verdict, image, syntax};
use crate::workspace::LABEL_WORKSPACE;

const SPEC: &str = "inference.template.spec";

pub fn check(template: &PodTemplateSpec, verdict: &mut Verdict) {
    let labels = template.metadata.as_ref().and_then(|metadata| metadata.labels.as_ref());
    for (key, value) in labels.into_iter().flatten() {
        let path = format!("inference.template.metadata.labels[{key}]");
        if !syntax::is_label_key(key) {
            verdict.refuse(&path, format!("{key:?} is not the key of a label: {}", syntax::A_LABEL_KEY));
        }
        if !syntax::is_label_value(value) {
            verdict.refuse(&path, format!("{value:?} is not the value of a label: {}", syntax::A_LABEL_VALUE));
        }
        if key == LABEL_WORKSPACE {
            verdict.warn(&path, "is replaced by the workspace's name");
        }
    }
    match &template.spec {
        None => verdict.refuse(SPEC, "is missing; a template has a pod's spec, with its containers"),
        Some(spec) => check_spec(spec, verdict),
    }
}

fn check_spec(spec: &PodSpec, verdict: &mut Verdict) {
    if spec.containers.is_empty() {
        verdict.refuse(
            format!("{SPEC}.containers"),
            "is empty; give the container of the server, which listens on port 5000",
        );
    }
    if let Some(policy) = spec.restart_policy.as_deref().filter(|policy| *policy != "Always") {
        let message = format!("is {policy:?}, but pods of a Deployment must have \"Always\", which is the default");
        verdict.refuse(format!("{SPEC}.restartPolicy"), message);
    }
    if spec.active_deadline_seconds.is_some() {
        verdict.refuse(format!("{SPEC}.activeDeadlineSeconds"), "pods of a Deployment cannot have a deadline");
    }
    if spec.ephemeral_containers.as_ref().is_some_and(|containers| !containers.is_empty()) {
        verdict.refuse(format!("{SPEC}.ephemeralContainers"), "a template cannot have ephemeral containers");
    }
    if let Some(node) = &spec.node_name {
        let message = format!(
            "is {node:?}, which goes past the scheduler; give the node's labels in resource.labelSelector, or its name in \
             resource.preferredNodes"
        );
        verdict.refuse(format!("{SPEC}.nodeName"), message);
    }
    let mut names = BTreeSet::new();
    let init_containers = spec.init_containers.as_deref().unwrap_or_default();
    for (list, containers) in [("initContainers", init_containers), ("containers", &spec.containers)] {
        for (index, container) in containers.iter().enumerate() {
            check_container(container, &format!("{SPEC}.{list}[{index}]"), &mut names, verdict);
        }
    }
    check_volumes(spec, verdict);
}

fn check_container<'a>(container: &'a Container, path: &str, names: &mut BTreeSet<&'a str>, verdict: &mut Verdict) {
    let name = container.name.as_str();
    if !syntax::is_dns_label(name, syntax::LABEL) {
        let message = format!("{name:?} is not the name of a container: at most 63 {}", syntax::A_DNS_LABEL);
        verdict.refuse(format!("{path}.name"), message);
    } else if !names.insert(name) {
        verdict.refuse(format!("{path}.name"), format!("{name:?} is the name of another container already"));
    }
    match container.image.as_deref().filter(|image| !image.is_empty()) {
        None => verdict.refuse(format!("{path}.image"), "is missing; name the image to run"),
        Some(text) => {
            if let Err(problem) = image::read(text) {
                verdict.refuse(format!("{path}.image"), problem);
            }
        }
    }
}

/// Refuses two volumes of one name, and mounts of volumes that are not there.
fn check_volumes(spec: &PodSpec, verdict: &mut Verdict) {
    let mut names = BTreeSet::new();
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        let path = format!("{SPEC}.volumes[{index}].name");
        if !syntax::is_dns_label(&volume.name, syntax::LABEL) {
            let message = format!("{:?} is not the name of a volume: at most 63 {}", volume.name, syntax::A_DNS_LABEL);
            verdict.refuse(path, message);
        } else if !names.insert(volume.name.as_str()) {
            verdict.refuse(path, format!("{:?} is the name of another volume already", volume.name));
        }
    }
    let init_containers = spec.init_containers.as_deref().unwrap_or_default();
    for (list, containers) in [("initContainers", init_containers), ("containers", &spec.containers)] {
        for (index, container) in containers.iter().enumerate() {
            for (number, mount) in container.volume_mounts.iter().flatten().enumerate() {
                if !names.contains(mount.name.as_str()) {
                    let path = format!("{SPEC}.{list}[{index}].volumeMounts[{number}].name");
                    verdict.refuse(path, format!("there is no volume {:?} in {SPEC}.volumes", mount.name));
                }
            }
        }
    }
}
