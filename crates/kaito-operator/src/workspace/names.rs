/// The API group.
pub const GROUP: &str = "kaito.sh";
/// The kind.
pub const KIND: &str = "Workspace";
/// The kind's plural, as it stands in addresses.
pub const PLURAL: &str = "workspaces";

/// On everything that a workspace owns: the workspace's name.
pub const LABEL_WORKSPACE: &str = "kaito.sh/workspace";
/// On claims of nodes, which have no namespace: the workspace's namespace.
pub const LABEL_WORKSPACE_NAMESPACE: &str = "kaito.sh/workspacenamespace";

/// Makes the service one of type LoadBalancer when `"True"`.
pub const ANNOTATION_ENABLE_LB: &str = "kaito.sh/enablelb";
/// Makes insufficient hardware a warning when `"True"`.
pub const ANNOTATION_BYPASS_RESOURCE_CHECKS: &str = "kaito.sh/bypass-resource-checks";
/// Names the [`Runtime`](super::Runtime).
pub const ANNOTATION_RUNTIME: &str = "kaito.sh/runtime";

/// Holds a workspace until its claims of nodes are gone.
pub const FINALIZER: &str = "workspace.finalizer.kaito.sh";
