//! What can be said of the Helm chart without Helm; charts/check says the rest.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failing helper fails its test")]

use std::{fs, path::PathBuf};

use kaito_operator::{crd::custom_resource_definition, yaml};

fn chart(file: &str) -> String {
    fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../charts/kaito").join(file)).unwrap()
}

#[test]
fn the_chart_has_the_crd_that_kaito_crd_prints() {
    let printed = yaml::to_string(&custom_resource_definition()).unwrap();
    assert_eq!(chart("files/crd.yaml"), printed, "run: kaito crd > charts/kaito/files/crd.yaml");
}

/// `helm show values` is the documentation: every value has a comment, except mappings, whose values have theirs.
#[test]
fn every_value_is_explained() {
    let values = chart("values.yaml");
    let lines: Vec<_> = values.lines().collect();
    let mut explained = 0;
    for (above, line) in lines.iter().zip(&lines[1..]) {
        let is_leaf = line.trim_end().len() > line.find(':').map_or(usize::MAX, |colon| colon + 1);
        let name = line.split(':').next().unwrap().trim();
        // What stands below a Kubernetes type is that type's, not ours.
        let is_ours = !["cpu", "memory", "kubernetes.io/os"].contains(&name);
        if is_leaf && is_ours && !line.trim_start().starts_with('#') {
            explained += 1;
            assert!(above.trim_start().starts_with("# "), "{line}");
        }
    }
    assert!(explained > 30, "{explained}");
}
