//! The controller's requests, from the API server's audit log.

use std::{collections::BTreeSet, fs, path::Path};

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

/// One request that was answered.
#[derive(Debug, Clone)]
pub struct Request {
    /// The user.
    pub user: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`.
    pub verb: String,
    /// The API group; empty for the core.
    pub group: String,
    /// The resource, as rules of RBAC write it: `workspaces/status`.
    pub resource: String,
    /// The object's namespace; empty where it has none, or where the request was for all namespaces.
    pub namespace: String,
    /// The object's name; empty where the request was for several objects.
    pub name: String,
    /// The answer's HTTP status.
    pub code: u64,
    /// Whether no role allowed it. Other answers of 403 come from admission, as for a quota.
    pub forbidden_by_rbac: bool,
    /// When the request was made.
    pub at: Timestamp,
}

/// All requests so far.
pub fn requests(folder: &Path) -> Vec<Request> {
    let log = fs::read_to_string(folder.join("audit.log")).unwrap_or_default();
    // The last line may not be complete yet.
    log.lines().filter_map(|line| serde_json::from_str(line).ok()).map(|event: Value| request(&event)).collect()
}

fn request(event: &Value) -> Request {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let object = &event["objectRef"];
    let mut resource = text(&object["resource"]);
    if let Some(subresource) = object["subresource"].as_str() {
        resource = format!("{resource}/{subresource}");
    }
    Request {
        user: text(&event["user"]["username"]),
        verb: text(&event["verb"]),
        group: text(&object["apiGroup"]),
        resource,
        namespace: text(&object["namespace"]),
        name: text(&object["name"]),
        code: event["responseStatus"]["code"].as_u64().unwrap_or_default(),
        forbidden_by_rbac: event["annotations"]["authorization.k8s.io/decision"] == "forbid"
            && !has_no_roles_yet(event),
        at: event["requestReceivedTimestamp"].as_str().and_then(|time| time.parse().ok()).unwrap_or_default(),
    }
}

/// Whether the API server had just started and had not read the roles yet, not even its own.
fn has_no_roles_yet(event: &Value) -> bool {
    let reason = event["annotations"]["authorization.k8s.io/reason"].as_str().unwrap_or_default();
    reason.contains("clusterrole.rbac.authorization.k8s.io \"system:basic-user\" not found")
}

/// How long after its start an API server may still be reading the roles.
const READING_ROLES: i64 = 30;

/// When the API server was started, each time.
pub fn starts(folder: &Path) -> Vec<Timestamp> {
    let seconds = fs::read_to_string(folder.join("api-server-starts")).unwrap_or_default();
    seconds.lines().filter_map(|line| Timestamp::from_second(line.parse().ok()?).ok()).collect()
}

/// Requests that no role allows. Not among them are those that were allowed before, and refused once by an API server that had
/// just started and was still reading the roles.
pub fn forbidden<'a>(requests: &'a [Request], starts: &[Timestamp]) -> Vec<&'a Request> {
    let is_same = |a: &Request, b: &Request| {
        (&a.user, &a.verb, &a.group, &a.resource, &a.namespace, &a.name)
            == (&b.user, &b.verb, &b.group, &b.resource, &b.namespace, &b.name)
    };
    let is_momentary = |refused: &Request| {
        let after = |start: &Timestamp| refused.at.as_second() - start.as_second();
        starts.iter().any(|start| (0..=READING_ROLES).contains(&after(start)))
            && requests.iter().any(|other| !other.forbidden_by_rbac && other.at < refused.at && is_same(other, refused))
    };
    requests.iter().filter(|request| request.forbidden_by_rbac && !is_momentary(request)).collect()
}

/// Each permission of a Role's or a ClusterRole's rules, as `verb group/resource name`.
pub fn permissions(role: &Value) -> BTreeSet<String> {
    let list = |rule: &Value, field: &str| -> Vec<String> {
        let values = rule[field].as_array().cloned().unwrap_or_default();
        values.iter().map(|value| value.as_str().unwrap().to_owned()).collect()
    };
    let mut permissions = BTreeSet::new();
    for rule in role["rules"].as_array().unwrap() {
        let mut names = list(rule, "resourceNames");
        if names.is_empty() {
            names.push(String::new());
        }
        for group in list(rule, "apiGroups") {
            for resource in list(rule, "resources") {
                for verb in list(rule, "verbs") {
                    permissions.extend(names.iter().map(|name| permission(&verb, &group, &resource, name)));
                }
            }
        }
    }
    permissions
}

impl Request {
    /// Whether it changes anything, except that a leader renews its lease.
    pub fn writes(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch") && self.resource != "leases"
    }

    /// The permissions that it needs, each for its name and for all names. Applying an object that does not exist needs `create`.
    pub fn needs(&self) -> Vec<String> {
        let created = self.verb == "patch" && self.code == 201;
        let verbs = [self.verb.as_str()].into_iter().chain(created.then_some("create"));
        verbs
            .flat_map(|verb| [self.name.as_str(), ""].map(|name| permission(verb, &self.group, &self.resource, name)))
            .collect()
    }
}

fn permission(verb: &str, group: &str, resource: &str, name: &str) -> String {
    format!("{verb} {group}/{resource} {name}").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(name: &str, at: i64, forbidden_by_rbac: bool) -> Request {
        Request {
            user: "kaito".to_owned(),
            verb: "watch".to_owned(),
            group: String::new(),
            resource: "pods".to_owned(),
            namespace: String::new(),
            name: name.to_owned(),
            code: if forbidden_by_rbac { 403 } else { 200 },
            forbidden_by_rbac,
            at: Timestamp::from_second(at).unwrap(),
        }
    }

    #[test]
    fn what_is_refused_for_a_moment_is_told_from_what_no_role_allows() {
        let starts = [0, 90].map(|second| Timestamp::from_second(second).unwrap());
        let requests = [
            request("restart", 50, false),
            request("restart", 100, true),
            request("never", 100, true),
            // Allowed only later, by a new role.
            request("came", 100, true),
            request("came", 102, false),
            // Long after a start: a role was deleted.
            request("went", 50, false),
            request("went", 121, true),
        ];
        let names: Vec<_> = forbidden(&requests, &starts).into_iter().map(|request| request.name.as_str()).collect();
        assert_eq!(names, ["never", "came", "went"]);
    }
}
