//! The requests to the API server that carry a decision out: server-side apply, delete, status, finalizers, events.

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, StatefulSet},
        core::v1::{ObjectReference, Pod, Service},
        events::v1::Event,
        networking::v1::NetworkPolicy,
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    runtime::reflector::ObjectRef,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{
    MANAGER,
    backoff::lock,
    cache::Cache,
    manifest::Manifest,
    metrics::Metrics,
    reconcile::{Context, Error},
};
use crate::{
    decide::{Change, Decision, Notice, Object, ObjectKind, Refusal, Replaced},
    karpenter::NodeClaim,
    reason::Reason,
    workspace::{Workspace, WorkspaceStatus},
};

/// What became of an object that was applied.
enum Applied {
    /// The API server has taken all of it.
    Whole,
    /// Nothing was written: the API server would have left out the image volumes.
    WithoutImageVolumes,
}

/// Answers that say that a write is wrong, rather than that the API server has trouble.
const REFUSALS: &[u16] = &[400, 403, 409, 422];
/// Bytes that the API server takes of an event's note.
const LONGEST_NOTE: usize = 1024;

impl Context {
    /// Applies and deletes what the decision says. An object that the API server refuses is returned, and does not hold up the
    /// others.
    pub async fn carry_out(&self, workspace: &Workspace, decision: &Decision) -> Result<Vec<Refusal>, Error> {
        let mut refusals = Vec::new();
        for (place, change) in &decision.writes {
            let Some(object) = decision.objects.get(*place) else { continue };
            match self.apply(workspace, object, change).await {
                Ok(Applied::Whole) => {
                    if !object.image_volumes().is_empty() {
                        self.image_volumes.were_taken();
                    }
                }
                Ok(Applied::WithoutImageVolumes) => {
                    self.image_volumes.were_left_out();
                    refusals.push(Refusal::without_image_volumes(object));
                }
                Err(kube::Error::Api(status)) if REFUSALS.contains(&status.code) => refusals.push(Refusal {
                    kind: object.kind(),
                    name: object.name().to_owned(),
                    reason: Reason::ApplyRefused,
                    message: status.message.clone(),
                }),
                Err(source) => return Err(failed(format!("cannot apply {} {}", object.kind(), object.name()), source)),
            }
        }
        for (kind, name) in &decision.deletes {
            self.delete(workspace, *kind, name)
                .await
                .map_err(|source| failed(format!("cannot delete {kind} {name}"), source))?;
        }
        for pod in &decision.replaced {
            self.replace(workspace, pod)
                .await
                .map_err(|source| failed(format!("cannot delete Pod {}", pod.name), source))?;
        }
        Ok(refusals)
    }

    /// Deletes a pod, unless another one has its name now. It has the time that it gives itself to end.
    async fn replace(&self, workspace: &Workspace, pod: &Replaced) -> kube::Result<()> {
        let api = Api::<Pod>::namespaced(self.client.clone(), workspace.namespace());
        let only_it = Preconditions { uid: Some(pod.uid.clone()), resource_version: None };
        let parameters = DeleteParams { preconditions: Some(only_it), ..DeleteParams::default() };
        self.metrics.wrote("Pod", "delete");
        match api.delete(&pod.name, &parameters).await {
            // It is known to be ending before the watch tells of it, and is not deleted again.
            Ok(answer) => answer.left().into_iter().for_each(|ending| self.caches.pods.wrote(ending)),
            Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn apply(&self, workspace: &Workspace, object: &Object, change: &Change) -> kube::Result<Applied> {
        let json = object.to_json();
        let client = self.client.clone();
        let namespace = workspace.namespace();
        if !object.image_volumes().is_empty() && self.drops_image_volumes(namespace, object, &json).await? {
            return Ok(Applied::WithoutImageVolumes);
        }
        match object {
            Object::Service(_) => {
                let api = Api::<Service>::namespaced(client, namespace);
                self.apply_to(workspace, api, &self.caches.services, object, json, change).await
            }
            Object::NetworkPolicy(_) => {
                let api = Api::<NetworkPolicy>::namespaced(client, namespace);
                self.apply_to(workspace, api, &self.caches.network_policies, object, json, change).await
            }
            Object::Deployment(_) => {
                let api = Api::<Deployment>::namespaced(client, namespace);
                self.apply_to(workspace, api, &self.caches.deployments, object, json, change).await
            }
            Object::StatefulSet(_) => {
                let api = Api::<StatefulSet>::namespaced(client, namespace);
                self.apply_to(workspace, api, &self.caches.stateful_sets, object, json, change).await
            }
            Object::NodeClaim(_) => {
                let api = Api::<NodeClaim>::all(client);
                self.apply_to(workspace, api, &self.caches.claims, object, json, change).await
            }
        }?;
        Ok(Applied::Whole)
    }

    /// Whether the API server would take the workload and leave its image volumes out, as it does with the fields of every
    /// feature that is not enabled; found out by a dry run.
    async fn drops_image_volumes(&self, namespace: &str, object: &Object, json: &Value) -> kube::Result<bool> {
        let (name, patch) = (object.name(), Patch::Apply(json));
        let client = self.client.clone();
        let trial = PatchParams::apply(MANAGER).force().dry_run();
        let taken = match object {
            Object::Deployment(_) => {
                Object::Deployment(Api::namespaced(client, namespace).patch(name, &trial, &patch).await?)
            }
            Object::StatefulSet(_) => {
                Object::StatefulSet(Api::namespaced(client, namespace).patch(name, &trial, &patch).await?)
            }
            Object::Service(_) | Object::NetworkPolicy(_) | Object::NodeClaim(_) => return Ok(false),
        };
        let kept = taken.image_volumes();
        Ok(object.image_volumes().iter().any(|volume| !kept.contains(volume)))
    }

    async fn apply_to<K>(
        &self,
        workspace: &Workspace,
        api: Api<K>,
        cache: &Cache<K>,
        object: &Object,
        json: Value,
        change: &Change,
    ) -> kube::Result<()>
    where
        K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + 'static,
    {
        let (kind, name) = (object.kind(), object.name());
        let patch = Patch::Apply(&json);
        let key = key(name, object.metadata().namespace.as_deref());
        self.metrics.wrote(kind.as_str(), "apply");
        let applied = match change {
            // Without force: an object of this name may belong to somebody else.
            Change::Create => match api.patch(name, &PatchParams::apply(MANAGER), &patch).await {
                Err(kube::Error::Api(status)) if status.code == 409 && self.owns(workspace, &api, name).await? => {
                    self.metrics.wrote(kind.as_str(), "apply");
                    api.patch(name, &PatchParams::apply(MANAGER).force(), &patch).await?
                }
                applied => applied?,
            },
            Change::Update | Change::Repair(_) => {
                let version = |object: &K| object.meta().resource_version.clone();
                let before = cache.get(&key).as_deref().and_then(version);
                let applied = api.patch(name, &PatchParams::apply(MANAGER).force(), &patch).await?;
                if let Some(before) = before.filter(|before| Some(before) == version(&applied).as_ref()) {
                    tracing::warn!(
                        kind = kind.as_str(),
                        name,
                        "applying changes nothing, though the object differs from what is wanted"
                    );
                    lock(&self.futile).insert((kind, workspace.namespace().to_owned(), name.to_owned()), before);
                } else {
                    lock(&self.futile).remove(&(kind, workspace.namespace().to_owned(), name.to_owned()));
                }
                applied
            }
        };
        cache.wrote(applied);
        Ok(())
    }

    /// Whether the object of that name is the workspace's, though it lacks the label by which the watch would know it.
    async fn owns<K>(&self, workspace: &Workspace, api: &Api<K>, name: &str) -> kube::Result<bool>
    where
        K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
    {
        Ok(api.get_opt(name).await?.is_some_and(|existing| workspace.owns(existing.meta())))
    }

    async fn delete(&self, workspace: &Workspace, kind: ObjectKind, name: &str) -> kube::Result<()> {
        let (client, caches, namespace) = (self.client.clone(), &self.caches, workspace.namespace());
        self.metrics.wrote(kind.as_str(), "delete");
        match kind {
            ObjectKind::Service => delete(Api::namespaced(client, namespace), &caches.services, name).await,
            ObjectKind::NetworkPolicy => {
                delete(Api::namespaced(client, namespace), &caches.network_policies, name).await
            }
            ObjectKind::Deployment => delete(Api::namespaced(client, namespace), &caches.deployments, name).await,
            ObjectKind::StatefulSet => delete(Api::namespaced(client, namespace), &caches.stateful_sets, name).await,
            ObjectKind::NodeClaim => delete(Api::all(client), &caches.claims, name).await,
        }
    }

    /// Writes the finalizers, and returns the workspace with them; `None` where it no longer exists, or cannot be read.
    pub async fn write_finalizers(
        &self,
        workspace: &Workspace,
        finalizers: &[String],
    ) -> Result<Option<Workspace>, Error> {
        // With the version, the write fails where somebody else has changed the list meanwhile.
        let patch = json!({"metadata": {
            "finalizers": finalizers,
            "resourceVersion": workspace.metadata.resource_version,
        }});
        self.metrics.wrote("Workspace", "patch");
        let manifests = manifests(&self.client, workspace);
        match manifests.patch(workspace.name(), &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(current) => Ok(current.read().inspect(|current| self.caches.workspaces.wrote(current.clone()))),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(source) => Err(failed("cannot write the finalizers".to_owned(), source)),
        }
    }

    /// Applies the status. Whether the workspace still exists.
    pub async fn write_status(&self, workspace: &Workspace, status: &WorkspaceStatus) -> Result<bool, Error> {
        self.metrics.wrote("Workspace", "apply status");
        match apply_status(&self.client, workspace, status).await {
            Ok(current) => {
                if let Some(current) = current.read() {
                    self.caches.workspaces.wrote(current);
                }
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(source) => Err(failed("cannot write the status".to_owned(), source)),
        }
    }

    /// Sends events.
    pub async fn tell(&self, workspace: &Workspace, notices: impl Iterator<Item = &Notice>) {
        tell(&self.client, &self.identity, &self.metrics, workspace, notices).await;
    }
}

fn manifests(client: &Client, workspace: &Workspace) -> Api<Manifest> {
    Api::namespaced(client.clone(), workspace.namespace())
}

/// Applies a workspace's status.
pub async fn apply_status(client: &Client, workspace: &Workspace, status: &WorkspaceStatus) -> kube::Result<Manifest> {
    let mut json = json!({
        "apiVersion": Workspace::api_version(&()),
        "kind": Workspace::kind(&()),
        // With the uid, so that a workspace that was deleted meanwhile is not created again.
        "metadata": {"name": workspace.name(), "namespace": workspace.namespace(), "uid": workspace.metadata.uid},
        "status": status,
    });
    json.sort_all_objects();
    let parameters = PatchParams::apply(MANAGER).force();
    manifests(client, workspace).patch_status(workspace.name(), &parameters, &Patch::Apply(&json)).await
}

/// Sends events. They are for people, so one that cannot be sent is not a failure.
pub async fn tell<'a>(
    client: &Client,
    identity: &str,
    metrics: &Metrics,
    workspace: &Workspace,
    notices: impl IntoIterator<Item = &'a Notice>,
) {
    let api = Api::<Event>::namespaced(client.clone(), workspace.namespace());
    for notice in notices {
        let event = event(workspace, notice, identity, Timestamp::now());
        metrics.wrote("Event", "create");
        if let Err(error) = api.create(&PostParams::default(), &event).await {
            tracing::warn!(workspace = workspace.name(), reason = notice.reason.as_str(), %error, "an event was lost");
        }
    }
}

async fn delete<K>(api: Api<K>, cache: &Cache<K>, name: &str) -> kube::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + 'static,
{
    match api.delete(name, &DeleteParams::background()).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => return Err(error),
    }
    cache.forget(&key(name, api.namespace()));
    Ok(())
}

/// Names an object in a cache.
fn key<K: Resource<DynamicType = ()>>(name: &str, namespace: Option<&str>) -> ObjectRef<K> {
    let object = ObjectRef::new(name);
    match namespace {
        Some(namespace) => object.within(namespace),
        None => object,
    }
}

fn failed(what: String, source: kube::Error) -> Error {
    Error::Request { what, source: Box::new(source) }
}

fn cut(note: &str) -> String {
    let fits = note.char_indices().take_while(|(start, c)| start + c.len_utf8() <= LONGEST_NOTE);
    fits.map(|(_, c)| c).collect()
}

fn event(workspace: &Workspace, notice: &Notice, identity: &str, now: Timestamp) -> Event {
    let regarding = ObjectReference {
        api_version: Some(Workspace::api_version(&()).into_owned()),
        kind: Some(Workspace::kind(&()).into_owned()),
        name: workspace.metadata.name.clone(),
        namespace: workspace.metadata.namespace.clone(),
        uid: workspace.metadata.uid.clone(),
        ..ObjectReference::default()
    };
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{:x}", workspace.name(), now.as_nanosecond())),
            namespace: workspace.metadata.namespace.clone(),
            ..ObjectMeta::default()
        },
        action: Some(notice.action.to_string()),
        event_time: Some(MicroTime(now)),
        note: Some(cut(&notice.message)),
        reason: Some(notice.reason.to_string()),
        regarding: Some(regarding),
        reporting_controller: Some(MANAGER.to_owned()),
        reporting_instance: Some(identity.to_owned()),
        type_: Some(if notice.is_warning { "Warning" } else { "Normal" }.to_owned()),
        ..Event::default()
    }
}
