//! Names of the resource, its labels, annotations and finalizer.

/// The API group.
pub const GROUP: &str = "kaito.sh";
/// The kind.
pub const KIND: &str = "Workspace";
/// The kind's plural, as in the paths of the API.
pub const PLURAL: &str = "workspaces";

/// On everything that a workspace owns: the workspace's name.
pub const LABEL_WORKSPACE: &str = "kaito.sh/workspace";
/// On node claims, which have no namespace: the workspace's namespace.
pub const LABEL_WORKSPACE_NAMESPACE: &str = "kaito.sh/workspacenamespace";

/// On nodes, by the cloud's node controller: the instance type.
pub const LABEL_INSTANCE_TYPE: &str = "node.kubernetes.io/instance-type";

/// Makes the service one of type LoadBalancer when `"True"`.
pub const ANNOTATION_ENABLE_LB: &str = "kaito.sh/enablelb";
/// Makes insufficient hardware a warning when `"True"`.
pub const ANNOTATION_BYPASS_RESOURCE_CHECKS: &str = "kaito.sh/bypass-resource-checks";
/// Leaves it to the user who reaches the pods when `"True"`.
pub const ANNOTATION_DISABLE_NETWORK_POLICY: &str = "kaito.sh/disable-network-policy";
/// Names the [`Runtime`](super::Runtime).
pub const ANNOTATION_RUNTIME: &str = "kaito.sh/runtime";

/// The controller's finalizer: keeps a workspace until what it owns and its node claims are deleted.
pub const FINALIZER: &str = "workspace.finalizer.kaito.sh";
