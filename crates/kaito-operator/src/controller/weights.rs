//! What no watch tells of weights: the claim that keeps them, and how far those are that are on their way into pods.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Mutex,
    time::Duration,
};

use futures_util::future::join_all;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::{Api, ResourceExt, api::LogParams, runtime::reflector::ObjectRef};

use super::{
    backoff::lock,
    reconcile::{Context, Error},
};
use crate::{
    decide::WeightsClaim,
    runtime::weights::{FETCHER, progress, running_fetcher},
    workspace::{LABEL_WORKSPACE, Workspace},
};

/// Most pods of a workspace whose progress is read: the status names one of them.
const MOST_PODS: usize = 4;
/// How much of a log's end is read, in lines and in bytes.
const LINES: i64 = 10;
const BYTES: i64 = 8 << 10;
/// How long a node may take to answer. A reconcile is not to wait for one that is away.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is known of the weights of one workspace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// The claim that keeps them.
    pub claim: WeightsClaim,
    /// How far they are, by the names of pods.
    pub progress: BTreeMap<String, String>,
}

/// What is known of the weights of all workspaces.
#[derive(Debug, Default)]
pub struct WeightsOfAll(Mutex<HashMap<ObjectRef<Workspace>, Known>>);

impl WeightsOfAll {
    /// What is known of those of one workspace.
    pub fn of(&self, workspace: &Workspace) -> Known {
        lock(&self.0).get(&ObjectRef::from_obj(workspace)).cloned().unwrap_or_default()
    }

    fn set(&self, workspace: &Workspace, known: Known) {
        let key = ObjectRef::from_obj(workspace);
        if known == Known::default() {
            lock(&self.0).remove(&key);
        } else {
            lock(&self.0).insert(key, known);
        }
    }
}

impl Context {
    /// Asks for the claim that a workspace names, and for the progress of its weights.
    pub(super) async fn learn_of_weights(&self, workspace: &Workspace) -> Result<(), Error> {
        let known =
            Known { claim: self.weights_claim(workspace).await?, progress: self.weights_progress(workspace).await };
        self.weights.set(workspace, known);
        Ok(())
    }

    async fn weights_claim(&self, workspace: &Workspace) -> Result<WeightsClaim, Error> {
        let options = workspace.preset().map(|preset| &preset.preset_options);
        let name = options.and_then(|options| options.weights_claim.as_deref()).filter(|name| !name.is_empty());
        let Some(name) = name else { return Ok(WeightsClaim::NotRead) };
        let api = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), workspace.namespace());
        match api.get_opt(name).await {
            Ok(Some(claim)) => {
                // What the volume can do, which may be more than was asked for.
                let bound = claim.status.and_then(|status| status.access_modes).filter(|modes| !modes.is_empty());
                let wanted = || claim.spec.and_then(|spec| spec.access_modes);
                Ok(WeightsClaim::Modes(bound.or_else(wanted).unwrap_or_default()))
            }
            Ok(None) => Ok(WeightsClaim::Missing),
            Err(source) => Err(Error::Request {
                what: format!("cannot read PersistentVolumeClaim {name}"),
                source: Box::new(source),
            }),
        }
    }

    /// From the ends of logs: a container that runs tells nothing of itself in its pod's status. A log that cannot be read is no
    /// failure, for the pods start without it.
    async fn weights_progress(&self, workspace: &Workspace) -> BTreeMap<String, String> {
        let (namespace, name) = (workspace.namespace(), workspace.name());
        let mut pods = self.caches.pods.all(|pod| {
            pod.metadata.namespace.as_deref() == Some(namespace)
                && pod.labels().get(LABEL_WORKSPACE).is_some_and(|label| label == name)
                && running_fetcher(pod).is_some()
        });
        pods.sort_by_key(|pod| pod.name_any());
        let api = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let read = pods.iter().take(MOST_PODS).map(|pod| read(&api, pod.name_any()));
        join_all(read).await.into_iter().flatten().collect()
    }
}

/// A pod's name, and how far its weights are.
async fn read(api: &Api<Pod>, pod: String) -> Option<(String, String)> {
    let end = LogParams {
        container: Some(FETCHER.to_owned()),
        tail_lines: Some(LINES),
        limit_bytes: Some(BYTES),
        ..LogParams::default()
    };
    match tokio::time::timeout(PATIENCE, api.logs(&pod, &end)).await {
        Ok(Ok(log)) => Some((pod, progress(&log)?)),
        Ok(Err(error)) => {
            tracing::debug!(pod, %error, "the progress of its weights cannot be read");
            None
        }
        Err(_) => {
            tracing::debug!(pod, "the progress of its weights is not told in time");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::Full;
    use hyper::{Request, Response};
    use kube::{Client, client::Body};

    use super::*;

    fn api(status: u16, log: &'static str) -> Api<Pod> {
        let answer = move |request: Request<Body>| {
            assert_eq!(request.uri().path(), "/api/v1/namespaces/team/pods/falcon-1/log");
            let query = request.uri().query().unwrap_or_default();
            for part in ["container=weights", "tailLines=10", "limitBytes=8192"] {
                assert!(query.contains(part), "{part}: {query}");
            }
            let answer = Response::builder().status(status).body(Full::new(bytes::Bytes::from_static(log.as_bytes())));
            std::future::ready(Ok::<_, Infallible>(answer.unwrap()))
        };
        Api::namespaced(Client::new(tower::service_fn(answer), "team"), "team")
    }

    #[tokio::test]
    async fn the_end_of_a_log_tells_the_progress_and_what_cannot_be_read_is_no_failure() {
        let log = "INFO pulling: 3 % of 13.5 GiB\nINFO pulling: 43 % of 13.5 GiB, 5 minutes left\n";
        let read = async |status, log| read(&api(status, log), "falcon-1".to_owned()).await;
        let told = ("falcon-1".to_owned(), "43 % of 13.5 GiB, 5 minutes left".to_owned());
        assert_eq!(read(200, log).await, Some(told));
        assert_eq!(read(200, "").await, None);
        let refused = r#"{"kind":"Status","status":"Failure","message":"no","reason":"Forbidden","code":403}"#;
        assert_eq!(read(403, refused).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_does_not_answer_holds_nothing_up() {
        let silent = |_: Request<Body>| std::future::pending::<Result<Response<Full<bytes::Bytes>>, Infallible>>();
        let api = Api::namespaced(Client::new(tower::service_fn(silent), "team"), "team");
        assert_eq!(super::read(&api, "falcon-1".to_owned()).await, None);
    }
}
