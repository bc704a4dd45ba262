//! Node claims that are left from a time when the installation used Karpenter.
//!
//! Without a provisioner the controller neither watches node claims nor has the permission to read them. But their nodes show
//! them: a node has the labels of its claim, and names the claim as its owner.

use super::{
    object::ObjectKind,
    observed::Observed,
    options::{Options, Provisioner},
};
use crate::{text, workspace::Workspace};

/// What the status says of such node claims, if there are any: this controller will not delete them.
pub fn note(workspace: &Workspace, observed: &Observed, options: &Options) -> Option<String> {
    if options.provisioner != Provisioner::None {
        return None;
    }
    let mut claims: Vec<&str> = observed
        .nodes
        .iter()
        .map(|node| &node.metadata)
        .filter(|node| workspace.is_on_labels_of(node))
        .filter_map(|node| {
            let mut owners = node.owner_references.iter().flatten();
            owners.find(|owner| owner.kind == ObjectKind::NodeClaim.as_str()).map(|owner| owner.name.as_str())
        })
        .collect();
    if claims.is_empty() {
        return None;
    }
    claims.sort_unstable();
    Some(format!(
        "NodeClaim {} is not deleted with the workspace, since the controller runs with --node-provisioner none. Its node costs \
         money until you run kubectl delete nodeclaim {}",
        text::list(&claims),
        claims.join(" ")
    ))
}
