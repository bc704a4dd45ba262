//! The webhook as the API server calls it: over TLS, by the names of its Service.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use k8s_openapi::ByteString;
use kaito_presets::InstanceTypes;
use prometheus_client::{encoding::text::encode, registry::Registry};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{oneshot, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{fake_api_server::FakeApiServer, *};

const CONFIGURATION: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/kaito-webhook";
/// Far longer than anything takes: it is reached only where something is broken.
const LIMIT: Duration = Duration::from_secs(60);
/// Longer than a serving certificate is used, shorter than it is valid.
const RENEWAL: Duration = Duration::from_secs(70 * 24 * 60 * 60);

struct Running {
    api_server: FakeApiServer,
    address: SocketAddr,
    time: Arc<Mutex<SystemTime>>,
    ready: watch::Receiver<bool>,
    metrics: Metrics,
    end: oneshot::Sender<()>,
    served: JoinHandle<Result<(), Error>>,
}

async fn run() -> Running {
    let api_server = FakeApiServer::new();
    api_server.put(
        CONFIGURATION,
        json!({"webhooks": [{"name": "validate.workspaces.kaito.sh", "clientConfig": {},
        "admissionReviewVersions": ["v1"], "sideEffects": "None"}]}),
    );
    // Clients use the system's clock, by which both the old and the new certificate are valid.
    let time = Arc::new(Mutex::new(SystemTime::now() - RENEWAL));
    let clock = Arc::clone(&time);
    let (ready_sender, ready) = watch::channel(false);
    let metrics = Metrics::default();
    let options = Options {
        address: ([127, 0, 0, 1], 0).into(),
        certificates: CertificateOptions {
            namespace: "kaito".to_owned(),
            secret: "kaito-webhook-tls".to_owned(),
            configuration: "kaito-webhook".to_owned(),
            names: service_names("kaito-webhook", "kaito"),
            lifetimes: Lifetimes::default(),
            clock: Arc::new(move || *clock.lock().unwrap()),
        },
        instance_types: watch::channel(Arc::new(InstanceTypes::built_in())).1,
        metrics: metrics.clone(),
        ready: ready_sender,
    };
    let server = Server::bind(options).await.unwrap();
    let address = server.address();
    let (end, ended) = oneshot::channel();
    let shutdown = async {
        let _ = ended.await;
    };
    let served = tokio::spawn(server.run(api_server.client(), shutdown));
    let mut running = Running { api_server, address, time, ready, metrics, end, served };
    timeout(LIMIT, running.ready.wait_for(|ready| *ready)).await.unwrap().unwrap();
    running
}

impl Running {
    fn authority(&self) -> Vec<CertificateDer<'static>> {
        let configuration = self.api_server.get(CONFIGURATION).unwrap();
        let bundle: ByteString =
            serde_json::from_value(configuration["webhooks"][0]["clientConfig"]["caBundle"].clone())
                .unwrap_or_default();
        CertificateDer::pem_slice_iter(&bundle.0).map(Result::unwrap).collect()
    }

    /// A client like the API server: it trusts the configuration's `caBundle`, and calls the Service by name.
    async fn connect(&self, name: &str) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(self.authority());
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(self.address).await?;
        TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(name.to_owned()).unwrap(), stream).await
    }

    async fn send(&self, request: &str, body: &[u8]) -> String {
        let mut stream = self.connect("kaito-webhook.kaito.svc").await.unwrap();
        let head = format!(
            "{request} HTTP/1.1\r\nHost: kaito-webhook.kaito.svc:443\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // A request that is refused by its head may not be read to its end.
        let _ = stream.write_all(body).await;
        // What the socket did not take at once stays with the TLS session, and reading does not send it.
        let _ = stream.flush().await;
        let mut answer = Vec::new();
        let _ = timeout(LIMIT, stream.read_to_end(&mut answer)).await.unwrap();
        String::from_utf8(answer).unwrap()
    }

    async fn leaf(&self) -> CertificateDer<'static> {
        let stream = self.connect("kaito-webhook.kaito.svc").await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
    }

    async fn end(self) {
        self.end.send(()).unwrap();
        timeout(LIMIT, self.served).await.unwrap().unwrap().unwrap();
        assert!(!*self.ready.borrow(), "ready, and nobody serves");
    }
}

fn review(count: i32) -> Value {
    json!({
        "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": "1", "kind": {"group": "kaito.sh", "version": "v1beta1", "kind": "Workspace"},
            "resource": {"group": "kaito.sh", "version": "v1beta1", "resource": "workspaces"},
            "name": "falcon", "namespace": "default", "operation": "CREATE", "userInfo": {"username": "admin"},
            "object": {
                "apiVersion": "kaito.sh/v1beta1", "kind": "Workspace", "metadata": {"name": "falcon"},
                "resource": {"count": count, "labelSelector": {"matchLabels": {"apps": "falcon"}}},
                "inference": {"preset": {"name": "falcon-7b"}}
            },
            "oldObject": null, "dryRun": true
        }
    })
}

#[tokio::test]
async fn clients_that_trust_the_configuration_trust_every_name_of_the_service_and_no_other() {
    let running = run().await;
    for name in service_names("kaito-webhook", "kaito") {
        running.connect(&name).await.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    assert!(running.connect("kaito-webhook.other.svc").await.is_err());
    running.end().await;
}

#[tokio::test]
async fn reviews_are_answered_and_counted() {
    let running = run().await;
    for (path, count, allowed) in [("/validate", 1, true), ("/validate", 0, false), ("/mutate", 1, true)] {
        let answer = running.send(&format!("POST {path}?timeout=10s"), review(count).to_string().as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("content-type: application/json\r\n"), "{answer}");
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!((&body["response"]["uid"], &body["response"]["allowed"]), (&json!("1"), &json!(allowed)));
    }
    for (request, size, status, text) in [
        ("GET /validate", 0, "405", "reviews are sent by POST"),
        ("POST /", 0, "404", "there is nothing at /; reviews go to /validate and /mutate"),
        ("POST /validate", 2, "400", "the body is no AdmissionReview"),
        ("POST /mutate", (4 << 20) + 1, "413", "a review may have 4194304 bytes at most"),
    ] {
        let answer = running.send(request, &vec![b' '; size]).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(text), "{request}: {answer}");
    }
    let mut registry = Registry::with_prefix("kaito");
    running.metrics.register(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    for line in [
        r#"kaito_webhook_reviews_total{webhook="validate",operation="create",outcome="allowed"} 1"#,
        r#"kaito_webhook_reviews_total{webhook="validate",operation="create",outcome="refused"} 1"#,
        r#"kaito_webhook_reviews_total{webhook="mutate",operation="create",outcome="allowed"} 1"#,
        r#"kaito_webhook_reviews_total{webhook="mutate",operation="none",outcome="failed"} 1"#,
        "kaito_webhook_review_duration_seconds_count 5",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    let end = text.lines().find_map(|line| line.strip_prefix("kaito_webhook_certificate_end_timestamp_seconds "));
    let now = running.time.lock().unwrap().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert_eq!(end.unwrap().parse::<u64>().unwrap() / 60, (now + 90 * 24 * 60 * 60) / 60);
    running.end().await;
}

/// Somebody applies the manifest again, which removes the authority.
#[tokio::test]
async fn a_configuration_that_is_overwritten_is_mended() {
    let running = run().await;
    let mut overwritten = running.api_server.get(CONFIGURATION).unwrap();
    overwritten["webhooks"][0]["clientConfig"] = json!({});
    running.api_server.put(CONFIGURATION, overwritten);
    timeout(LIMIT, async {
        while running.authority().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    running.leaf().await;
    running.end().await;
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_without_a_pause() {
    let running = run().await;
    let first = running.leaf().await;
    let mut open = running.connect("kaito-webhook.kaito.svc").await.unwrap();
    *running.time.lock().unwrap() += RENEWAL;
    // Any change makes it reconcile; it would within the hour anyway.
    running.api_server.put(CONFIGURATION, running.api_server.get(CONFIGURATION).unwrap());
    timeout(LIMIT, async {
        while running.leaf().await == first {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    let request = format!(
        "POST /validate HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{}",
        review(1).to_string().len(),
        review(1)
    );
    open.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(LIMIT, open.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "connections outlive their certificate: {answer}");
    running.end().await;
}
