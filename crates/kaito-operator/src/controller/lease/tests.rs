use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use axum::http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::time::advance;

use super::*;

/// An API server with one Lease.
#[derive(Debug, Default, Clone)]
struct Server {
    lease: Arc<Mutex<Option<Value>>>,
    versions: Arc<AtomicU32>,
}

/// A replica's way to the API server.
#[derive(Debug, Default)]
struct Link {
    /// Requests fail.
    is_cut: AtomicBool,
    /// Writes take effect at once, but are answered after this many seconds.
    delay: AtomicU32,
}

impl Server {
    fn client(&self, link: Arc<Link>) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let (server, link) = (server.clone(), Arc::clone(&link));
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let (code, answer_body) = if link.is_cut.load(Ordering::SeqCst) {
                    refusal(503)
                } else {
                    server.answer(&head.method, serde_json::from_slice(&body).unwrap_or_default())
                };
                let delay = link.delay.load(Ordering::SeqCst);
                if delay > 0 && head.method != Method::GET {
                    sleep(Duration::from_secs(delay.into())).await;
                }
                let answer = Response::builder().status(StatusCode::from_u16(code).unwrap());
                Ok::<_, Infallible>(answer.body(Body::from(answer_body.to_string().into_bytes())).unwrap())
            }
        });
        Client::new(service, "default")
    }

    fn answer(&self, method: &Method, body: Value) -> (u16, Value) {
        let mut lease = self.lease.lock().unwrap();
        let version = |lease: &Value| lease["metadata"]["resourceVersion"].clone();
        match (method, lease.as_ref()) {
            (&Method::GET, Some(lease)) => (200, lease.clone()),
            (&Method::GET, None) => refusal(404),
            (&Method::POST, Some(_)) => refusal(409),
            (&Method::PUT, Some(current)) if version(current) != version(&body) => refusal(409),
            _ => {
                let mut body = body;
                let version = self.versions.fetch_add(1, Ordering::SeqCst) + 1;
                body["metadata"]["resourceVersion"] = version.to_string().into();
                *lease = Some(body.clone());
                (200, body)
            }
        }
    }

    fn holder(&self) -> Option<String> {
        let lease = self.lease.lock().unwrap();
        lease.as_ref()?["spec"]["holderIdentity"].as_str().map(str::to_owned)
    }
}

fn refusal(code: u16) -> (u16, Value) {
    let reason = match code {
        404 => "NotFound",
        409 => "Conflict",
        _ => "ServiceUnavailable",
    };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": "no",
    });
    (code, status)
}

struct Replica {
    lease: Arc<Lease>,
    link: Arc<Link>,
    leads: Arc<AtomicBool>,
}

/// A replica that leads whenever it may.
fn replica(server: &Server, identity: &str) -> Replica {
    linked(server, identity, Arc::default())
}

fn linked(server: &Server, identity: &str, link: Arc<Link>) -> Replica {
    let leads = Arc::new(AtomicBool::new(false));
    let lease = Arc::new(Lease::new(server.client(Arc::clone(&link)), "default", identity, Timing::default()));
    let (held, leading) = (Arc::clone(&lease), Arc::clone(&leads));
    tokio::spawn(async move {
        loop {
            let acquired = held.acquire().await;
            leading.store(true, Ordering::SeqCst);
            held.keep(acquired).await;
            leading.store(false, Ordering::SeqCst);
        }
    });
    Replica { lease, link, leads }
}

/// Lets time pass in small steps, and checks all along that no two lead.
async fn pass(seconds: u32, replicas: &[&Replica]) {
    for _ in 0..seconds * 10 {
        advance(Duration::from_millis(100)).await;
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        let leaders = replicas.iter().filter(|replica| replica.leads.load(Ordering::SeqCst)).count();
        assert!(leaders <= 1, "{leaders} replicas lead");
    }
}

fn leads(replica: &Replica) -> bool {
    replica.leads.load(Ordering::SeqCst)
}

#[tokio::test(start_paused = true)]
async fn one_of_two_leads_and_the_other_takes_over_when_it_is_cut_off() {
    let server = Server::default();
    let a = replica(&server, "a");
    pass(3, &[&a]).await;
    let b = replica(&server, "b");
    pass(60, &[&a, &b]).await;
    assert!(leads(&a) && !leads(&b));

    a.link.is_cut.store(true, Ordering::SeqCst);
    pass(11, &[&a, &b]).await;
    assert!(!leads(&a), "it cannot know whether it still leads");
    pass(15, &[&a, &b]).await;
    assert!(leads(&b));
    assert_eq!(server.holder().as_deref(), Some("b"));

    a.link.is_cut.store(false, Ordering::SeqCst);
    pass(60, &[&a, &b]).await;
    assert!(leads(&b) && !leads(&a), "the lease is not fought over");
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_restarts_is_survived() {
    let server = Server::default();
    let a = replica(&server, "a");
    pass(5, &[&a]).await;
    a.link.is_cut.store(true, Ordering::SeqCst);
    pass(6, &[&a]).await;
    a.link.is_cut.store(false, Ordering::SeqCst);
    pass(10, &[&a]).await;
    assert!(leads(&a));
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_somebody_took_is_let_go_at_once() {
    let server = Server::default();
    let a = replica(&server, "a");
    pass(3, &[&a]).await;
    {
        let mut lease = server.lease.lock().unwrap();
        let lease = lease.as_mut().unwrap();
        lease["spec"]["holderIdentity"] = "thief".into();
        lease["metadata"]["resourceVersion"] = "1000".into();
    }
    pass(3, &[&a]).await;
    assert!(!leads(&a));
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_released_is_taken_at_once() {
    let server = Server::default();
    let a = Lease::new(server.client(Arc::default()), "default", "a", Timing::default());
    a.acquire().await;
    let b = replica(&server, "b");
    pass(3, &[&b]).await;
    assert!(!leads(&b));
    a.release().await;
    pass(3, &[&b]).await;
    assert!(leads(&b));
    let lease = b.lease.held.lock().await.clone().unwrap();
    assert_eq!(lease.spec.unwrap().lease_transitions, Some(1));
}

/// Counted from its answer, it would have led at a time at which the other could take the lease already.
#[tokio::test(start_paused = true)]
async fn a_lease_that_was_granted_too_long_ago_is_none() {
    let server = Server::default();
    let slow = Arc::new(Link { delay: AtomicU32::new(20), ..Link::default() });
    let a = linked(&server, "a", Arc::clone(&slow));
    let b = replica(&server, "b");
    pass(60, &[&a, &b]).await;
    assert!(!leads(&a));
    slow.delay.store(0, Ordering::SeqCst);
    pass(60, &[&a, &b]).await;
    assert!(leads(&a) != leads(&b));
}
