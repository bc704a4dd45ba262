//! Claims of nodes that an installation made which claims no longer.
//!
//! Without a provisioner the controller neither watches claims nor may read them. Their nodes tell of them: a node has the
//! labels of the claim that it was made for, and that claim for its owner.

use super::{
    observed::{Observed, label},
    options::{Options, Provisioner},
    text,
};
use crate::workspace::{LABEL_WORKSPACE, LABEL_WORKSPACE_NAMESPACE, Workspace};

/// What to say of the workspace's claims that nobody here will give back, if there are any.
pub fn note(workspace: &Workspace, observed: &Observed, options: &Options) -> Option<String> {
    if options.provisioner != Provisioner::None {
        return None;
    }
    let mut claims: Vec<&str> = observed
        .nodes
        .iter()
        .map(|node| &node.metadata)
        .filter(|node| {
            label(node, LABEL_WORKSPACE) == Some(workspace.name())
                && label(node, LABEL_WORKSPACE_NAMESPACE) == Some(workspace.namespace())
        })
        .filter_map(|node| {
            let mut owners = node.owner_references.iter().flatten();
            owners.find(|owner| owner.kind == "NodeClaim").map(|owner| owner.name.as_str())
        })
        .collect();
    if claims.is_empty() {
        return None;
    }
    claims.sort_unstable();
    Some(format!(
        "NodeClaim {} outlives the workspace, since the controller runs with --node-provisioner none: kubectl delete nodeclaim \
         {} gives back what it costs",
        text::list(&claims),
        claims.join(" ")
    ))
}
