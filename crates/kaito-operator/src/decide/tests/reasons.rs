//! The table of reasons in docs/kubernetes.md has every reason there is, and no other.

use std::{collections::BTreeSet, fs, path::Path};

/// Names that stand in the code and are no reasons of ours: kinds, values and reasons of Kubernetes.
const OTHERS: &str = "AdaptersReady ConfigApplied UpToDate NoExecute Mon Tue Wed Thu Fri Sat Sun Alive Apply AwaitingReconciliation ClusterIP CrashLoopBackOff \
    CreateContainerConfigError CreateContainerError Created Delete Deleted Deployment DoesNotExist Equal ErrImageNeverPull \
    ErrImagePull Evicted Exists Failed FallbackToLogsOnError False ImageInspectError ImagePullBackOff In Initialized \
    InvalidImageName Launched LoadBalancer Memory NoSchedule NodeClaim NodeClaimReady None OOMKilled Parallel PodScheduled \
    PostStartHookError PreCreateHookError Ready Registered RegistryUnavailable Repaired ReplicaFailure ResourceReady \
    RollingUpdate RunContainerError RuntimeDefault Service SignatureValidationFailed StatefulSet Succeeded True Unknown \
    Updated";

fn is_name(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_uppercase())
        && word.chars().all(|c| c.is_ascii_alphabetic())
        && word.chars().any(|c| c.is_ascii_lowercase())
}

#[test]
fn the_documented_reasons_are_those_of_the_code() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let others: BTreeSet<&str> = OTHERS.split_whitespace().collect();
    let mut reasons = BTreeSet::new();
    for folder in ["decide", "runtime"] {
        for entry in fs::read_dir(sources.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if !path.is_file() {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap();
            for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
                // Between every second pair of quotation marks.
                let literals = line.split('"').skip(1).step_by(2).filter(|literal| is_name(literal));
                reasons.extend(literals.filter(|literal| !others.contains(literal)).map(str::to_owned));
            }
        }
    }
    let guide = include_str!("../../../../../docs/kubernetes.md");
    let (_, table) = guide.split_once("| reason | cause | what to do |").unwrap();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let documented: BTreeSet<String> = rows
        .flat_map(|row| row.split('|').nth(1).unwrap_or_default().split('`').skip(1).step_by(2))
        .map(str::to_owned)
        .collect();
    assert_eq!(documented, reasons);
    assert!(reasons.len() > 30, "{reasons:?}");
}
