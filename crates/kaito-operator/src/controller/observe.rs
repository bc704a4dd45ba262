//! The caches as one workspace sees them.

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Debug,
    sync::Arc,
};

use k8s_openapi::{
    api::core::v1::{Event as KubeEvent, Pod},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    jiff::Timestamp,
};
use kube::{Api, Resource, ResourceExt, api::ListParams, runtime::reflector::ObjectRef};
use serde::de::DeserializeOwned;

use super::{
    backoff::lock,
    cache::Cache,
    reconcile::{Context, Error},
    watches::Watches,
};
use crate::{
    decide::{
        ClaimFailure, Claims, Config, InVain, Observed, PodFailure, Refusal, Rollouts, Taken, claim_names, gpus_of_pod,
        has_ended, is_going, under_way_since,
    },
    workspace::{LABEL_WORKSPACE, Workspace},
};

/// Reasons of Karpenter's events about nodes that it could not provision, as opposed to events of a node's later life.
const CLAIM_FAILURES: &[&str] =
    &["InsufficientCapacity", "LaunchFailed", "CreateError", "NodeClassNotReady", "Unauthorized", "QuotaExceeded"];

impl Context {
    /// What the caches hold of the cluster, as far as `workspace` is concerned.
    pub fn observe(&self, workspace: &Workspace, config: Config, refusals: Vec<Refusal>) -> Observed {
        let caches = &self.caches;
        let (namespace, name) = (workspace.namespace(), workspace.name());
        let own = |suffix: &str| format!("{name}{suffix}");
        let belongs = |pod: &Pod| {
            pod.metadata.namespace.as_deref() == Some(namespace)
                && pod.labels().get(LABEL_WORKSPACE).is_some_and(|label| label == name)
        };
        let stateful_set = caches.stateful_sets.get(&ObjectRef::new(name).within(namespace));
        let claim_names = claim_names(workspace).into_iter().collect();
        let set_uid = stateful_set.as_ref().and_then(|set| set.metadata.uid.clone());
        let weights = self.weights.of(workspace);
        Observed {
            nodes: caches.nodes.store().state(),
            taken: taken(&caches.pods.all(|pod| !belongs(pod))),
            claims: claims(caches, workspace, &claim_names),
            claim_failures: claim_failures(caches, workspace, &claim_names),
            services: ["", "-headless"]
                .iter()
                .filter_map(|suffix| caches.services.get(&ObjectRef::new(&own(suffix)).within(namespace)))
                .collect(),
            network_policy: caches.network_policies.get(&ObjectRef::new(name).within(namespace)),
            deployment: caches.deployments.get(&ObjectRef::new(name).within(namespace)),
            pods: caches.pods.all(belongs),
            config,
            weights_claim: weights.claim,
            weights_progress: weights.progress,
            pod_failures: pod_failures(caches, set_uid.as_deref()),
            stateful_set,
            without_image_volumes: self.image_volumes.are_left_out(),
            refusals,
            in_vain: self.in_vain(namespace),
            rollouts: Rollouts {
                under_way: rollouts(caches, namespace, name),
                leading_since: Some(self.leading_since),
            },
        }
    }
}

impl Context {
    /// Writes of objects of workspaces in a namespace that changed nothing.
    fn in_vain(&self, namespace: &str) -> Vec<InVain> {
        let futile = lock(&self.futile);
        let here = futile.iter().filter(|((_, its, _), _)| its == namespace);
        here.map(|((kind, _, name), version)| InVain { kind: *kind, name: name.clone(), version: version.clone() })
            .collect()
    }

    /// Asks the API server for what `workspace` owns, and tells the caches. Whether there is anything that holds it.
    ///
    /// A cache does not know of a write whose answer was lost, for a timeout or a lost lease, until its watch tells of it.
    pub async fn learn_of_owned(&self, workspace: &Workspace) -> Result<bool, Error> {
        let (client, caches, namespace) = (&self.client, &self.caches, workspace.namespace());
        let label = format!("{LABEL_WORKSPACE}={}", workspace.name());
        let owns = |metadata: &ObjectMeta| workspace.owns(metadata) && !is_going(metadata);
        let mut found = learn(Api::namespaced(client.clone(), namespace), &caches.deployments, &label, owns).await?;
        found |= learn(Api::namespaced(client.clone(), namespace), &caches.stateful_sets, &label, owns).await?;
        found |= learn(Api::namespaced(client.clone(), namespace), &caches.services, &label, owns).await?;
        found |= learn(Api::namespaced(client.clone(), namespace), &caches.network_policies, &label, owns).await?;
        if *caches.claims_exist.borrow() == Some(true) {
            let owns = |metadata: &ObjectMeta| workspace.is_on_labels_of(metadata);
            found |= learn(Api::all(client.clone()), &caches.claims, &label, owns).await?;
        }
        Ok(found)
    }
}

async fn learn<K>(
    api: Api<K>,
    cache: &Cache<K>,
    label: &str,
    holds: impl Fn(&ObjectMeta) -> bool,
) -> Result<bool, Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + 'static,
{
    let listed = api.list(&ListParams::default().labels(label)).await;
    let listed = listed.map_err(|source| Error::Request {
        what: format!("cannot list what is left of kind {}", K::kind(&())),
        source: Box::new(source),
    })?;
    let mut is_held = false;
    for object in listed.items.into_iter().filter(|object| holds(object.meta())) {
        cache.wrote(object);
        is_held = true;
    }
    Ok(is_held)
}

/// The other workspaces whose rollout is under way, as `namespace/name`.
fn rollouts(caches: &Watches, namespace: &str, name: &str) -> Vec<String> {
    let is_other = |metadata: &ObjectMeta| {
        let is_own = metadata.namespace.as_deref() == Some(namespace) && metadata.name.as_deref() == Some(name);
        !is_own && metadata.deletion_timestamp.is_none() && under_way_since(metadata).is_some()
    };
    let deployments = caches.deployments.all(|deployment| is_other(&deployment.metadata));
    let sets = caches.stateful_sets.all(|set| is_other(&set.metadata));
    let full = |metadata: &ObjectMeta| {
        let part = |part: &Option<String>| part.clone().unwrap_or_default();
        format!("{}/{}", part(&metadata.namespace), part(&metadata.name))
    };
    let mut names: Vec<_> = deployments.iter().map(|deployment| full(&deployment.metadata)).collect();
    names.extend(sets.iter().map(|set| full(&set.metadata)));
    names.sort();
    names
}

/// GPUs that pods of other workspaces hold.
fn taken(pods: &[Arc<Pod>]) -> BTreeMap<String, Vec<Taken>> {
    let mut taken: BTreeMap<String, Vec<Taken>> = BTreeMap::new();
    for pod in pods {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        let gpus = gpus_of_pod(pod);
        if let (Some(node), false, 1..) = (node, has_ended(pod), gpus) {
            let workspace = pod.labels().get(LABEL_WORKSPACE).cloned().unwrap_or_default();
            let workspace = format!("{}/{workspace}", pod.namespace().unwrap_or_default());
            taken.entry(node).or_default().push(Taken { workspace, gpus });
        }
    }
    for held in taken.values_mut() {
        // The order of a cache is arbitrary, and messages must not depend on it.
        held.sort_by(|a, b| a.workspace.cmp(&b.workspace));
    }
    taken
}

fn claims(caches: &Watches, workspace: &Workspace, names: &HashSet<String>) -> Claims {
    if *caches.claims_exist.borrow() != Some(true) {
        return Claims::Absent;
    }
    Claims::Present(caches.claims.all(|claim| claim.belongs_to(workspace) || names.contains(&claim.name_any())))
}

fn claim_failures(caches: &Watches, workspace: &Workspace, names: &HashSet<String>) -> BTreeMap<String, ClaimFailure> {
    let born = workspace.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let mut failures: BTreeMap<String, ClaimFailure> = BTreeMap::new();
    let told = caches.claim_failures.all(|event| {
        let reason = event.reason.as_deref().unwrap_or_default();
        event.involved_object.name.as_ref().is_some_and(|name| names.contains(name))
            && CLAIM_FAILURES.iter().any(|known| reason.contains(known))
    });
    for event in told {
        let (Some(claim), Some(at)) = (event.involved_object.name.clone(), when(&event)) else { continue };
        // Events older than the workspace are about another one that had its name.
        let is_old = born.is_some_and(|born| at < born);
        if is_old || failures.get(&claim).is_some_and(|known| known.at >= at) {
            continue;
        }
        failures.insert(
            claim,
            ClaimFailure {
                reason: event.reason.clone().unwrap_or_default(),
                message: event.message.clone().unwrap_or_default(),
                at,
            },
        );
    }
    failures
}

fn pod_failures(caches: &Watches, set: Option<&str>) -> Vec<PodFailure> {
    let Some(set) = set else { return Vec::new() };
    let mut events = caches.pod_failures.all(|event| event.involved_object.uid.as_deref() == Some(set));
    events.sort_by_key(|event| when(event));
    events.iter().filter_map(|event| event.message.clone()).map(|message| PodFailure { message }).collect()
}

/// When an event happened last.
fn when(event: &KubeEvent) -> Option<Timestamp> {
    let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref()).map(|time| time.0);
    let times = [
        series,
        event.last_timestamp.as_ref().map(|time| time.0),
        event.event_time.as_ref().map(|time| time.0),
        event.metadata.creation_timestamp.as_ref().map(|time| time.0),
    ];
    times.into_iter().flatten().max()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::Full;
    use hyper::{Request, Response};
    use k8s_openapi::api::core::v1::Service;
    use kube::{Client, client::Body};
    use serde_json::json;

    use super::*;

    /// The write's answer was lost, so that only the API server knows of the Service.
    #[tokio::test]
    async fn deleting_at_every_stage_left_a_service_behind() {
        let service = |name: &str, uid: &str| {
            json!({"metadata": {
                "name": name, "namespace": "team", "resourceVersion": "7", "labels": {LABEL_WORKSPACE: "falcon"},
                "ownerReferences": [{"apiVersion": "kaito.sh/v1beta1", "kind": "Workspace", "name": "falcon", "uid": uid}],
            }})
        };
        let list = json!({
            "apiVersion": "v1", "kind": "ServiceList", "metadata": {"resourceVersion": "9"},
            "items": [service("falcon", "1"), service("another", "2")],
        });
        let answer = move |request: Request<Body>| {
            assert_eq!(request.uri().path(), "/api/v1/namespaces/team/services");
            let query = request.uri().query().unwrap_or_default();
            assert!(query.contains("labelSelector=kaito.sh%2Fworkspace%3Dfalcon"), "{query}");
            std::future::ready(Ok::<_, Infallible>(Response::new(Full::new(bytes::Bytes::from(list.to_string())))))
        };
        let client = Client::new(tower::service_fn(answer), "team");
        let (cache, _filler) = Cache::<Service>::new();
        let owned_by = |uid: &'static str| {
            move |metadata: &ObjectMeta| metadata.owner_references.iter().flatten().any(|owner| owner.uid == uid)
        };
        let label = format!("{LABEL_WORKSPACE}=falcon");
        let services = || Api::namespaced(client.clone(), "team");
        assert!(!learn(services(), &cache, &label, owned_by("3")).await.unwrap());
        assert!(cache.all(|_| true).is_empty());
        assert!(learn(services(), &cache, &label, owned_by("1")).await.unwrap());
        let known: Vec<_> = cache.all(|_| true).iter().map(|service| service.name_any()).collect();
        assert_eq!(known, ["falcon"], "the next decision deletes it");
    }
}
