use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::future::join_all;
use hyper::Method;
use k8s_openapi::ByteString;
use rustls::{crypto::CryptoProvider, pki_types::CertificateDer};
use serde_json::{Value, json};

use super::{
    bundle::{self, Bundle, Current},
    inspect::{self, Validity},
    *,
};
use crate::{
    Error,
    webhook::{Metrics, fake_api_server::FakeApiServer},
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const SECRET: &str = "/api/v1/namespaces/kaito/secrets/kaito-webhook-tls";
const VALIDATING: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/kaito-webhook";
const MUTATING: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/kaito-webhook";

fn start() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn names() -> Vec<String> {
    service_names("kaito-webhook", "kaito")
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn current(bundle: Option<&Bundle>, now: SystemTime) -> Current {
    bundle::current(bundle, &names(), Lifetimes::default(), now, &provider()).unwrap()
}

fn leaf(current: &Current) -> CertificateDer<'static> {
    current.certified_key.cert[0].clone()
}

fn is_trusted(leaf: &CertificateDer<'_>, authorities: &str, now: SystemTime) -> bool {
    inspect::is_trusted(leaf, &inspect::certificates(authorities), &names(), now, &provider())
}

#[test]
fn the_first_certificates_are_trusted_and_stay() {
    let made = current(None, start());
    assert!(made.is_changed && is_trusted(&leaf(&made), &made.bundle.authorities, start()));
    assert_eq!(made.end, start() + 90 * DAY);
    assert!(made.next > start() + 59 * DAY && made.next <= start() + 60 * DAY);
    for now in [start(), start() + DAY, made.next - Duration::from_secs(1)] {
        let kept = current(Some(&made.bundle), now);
        assert!(!kept.is_changed);
        assert_eq!((&kept.bundle, kept.next), (&made.bundle, made.next));
    }
    let renewed = current(Some(&made.bundle), made.next);
    assert!(renewed.is_changed && renewed.end > made.end);
    assert_eq!(renewed.bundle.authorities, made.bundle.authorities, "a serving certificate needs no new authority");
}

/// Ten years of renewals. A replica or an API server may be one step behind at any time.
#[test]
fn no_change_breaks_a_client_or_a_replica_that_is_a_step_behind() {
    let mut now = start();
    let mut before = current(None, now);
    let (mut serving, mut authorities) = (1, 1);
    while now < start() + 3650 * DAY {
        now = before.next;
        let after = current(Some(&before.bundle), now);
        assert!(after.is_changed, "it asked to be looked at for nothing");
        assert!(after.next > now);
        for leaf in [leaf(&before), leaf(&after)] {
            for trusted in [&before.bundle.authorities, &after.bundle.authorities] {
                assert!(is_trusted(&leaf, trusted, now));
            }
            // And a minute later.
            assert!(is_trusted(&leaf, &after.bundle.authorities, now + Duration::from_secs(60)));
        }
        serving += usize::from(leaf(&before) != leaf(&after));
        authorities += usize::from(before.bundle.authorities != after.bundle.authorities);
        assert!(inspect::certificates(&after.bundle.authorities).len() <= 2, "authorities that are over stay");
        before = after;
    }
    // 3650 days: an authority lasts some 487 of them, a serving certificate some 60.
    assert_eq!(authorities, 8);
    assert!((60..=75).contains(&serving), "{serving}");
}

#[test]
fn what_is_damaged_over_or_for_other_names_is_made_anew() {
    let made = current(None, start()).bundle;
    let other = current(None, start()).bundle;
    let data = made.to_data();
    let with = |key: &str, value: &[u8]| -> BTreeMap<String, ByteString> {
        let mut data = data.clone();
        data.insert(key.to_owned(), ByteString(value.to_vec()));
        data
    };
    let of_other = |key: &str| other.to_data()[key].0.clone();
    for (case, data, keeps_the_authority) in [
        ("no PEM", with("tls.crt", b"x"), true),
        ("no key", with("tls.key", b""), true),
        ("another key", with("tls.key", &of_other("tls.key")), true),
        ("by another authority", with("tls.crt", &of_other("tls.crt")), true),
        ("no authority", with("ca.crt", b""), false),
        ("another authority's key", with("ca.key", &of_other("ca.key")), false),
        ("not UTF-8", with("ca.key", &[0xff]), false),
    ] {
        let after = current(Bundle::from_data(&data).as_ref(), start());
        assert!(after.is_changed, "{case}");
        assert!(is_trusted(&leaf(&after), &after.bundle.authorities, start()), "{case}");
        assert_eq!(after.bundle.authorities == made.authorities, keeps_the_authority, "{case}");
    }
    let late = start() + 800 * DAY;
    let after = current(Some(&made), late);
    assert!(is_trusted(&leaf(&after), &after.bundle.authorities, late), "all is over");
    let renamed =
        bundle::current(Some(&made), &["127.0.0.1".to_owned()], Lifetimes::default(), start(), &provider()).unwrap();
    assert!(renamed.is_changed && renamed.bundle.authorities == made.authorities);
    let authorities = inspect::certificates(&renamed.bundle.authorities);
    assert!(inspect::is_trusted(&leaf(&renamed), &authorities, &["127.0.0.1".to_owned()], start(), &provider()));
}

/// Replicas whose clocks differ must not replace each other's certificates again and again.
#[test]
fn a_clock_that_is_behind_renews_nothing() {
    let made = current(None, start());
    assert!(!current(Some(&made.bundle), start() - Duration::from_secs(3600)).is_changed);
}

#[test]
fn lifetimes_of_minutes_work_as_those_of_years_do() {
    let lifetimes = Lifetimes { authority: Duration::from_secs(600), serving: Duration::from_secs(60) };
    let mut now = start();
    let mut bundle = None;
    for _ in 0..50 {
        let after = bundle::current(bundle.as_ref(), &names(), lifetimes, now, &provider()).unwrap();
        assert!(after.next > now && after.next < after.end, "{:?}", after.next.duration_since(now));
        assert!(is_trusted(&leaf(&after), &after.bundle.authorities, now));
        let validity = Validity::of(&leaf(&after)).unwrap();
        assert!(validity.length() <= Duration::from_secs(63));
        now = after.next;
        bundle = Some(after.bundle);
    }
}

struct Replica {
    manager: CertificateManager,
    time: Arc<Mutex<SystemTime>>,
}

fn replica(server: &FakeApiServer) -> Replica {
    let time = Arc::new(Mutex::new(start()));
    let clock = Arc::clone(&time);
    let options = CertificateOptions {
        namespace: "kaito".to_owned(),
        secret: "kaito-webhook-tls".to_owned(),
        configuration: "kaito-webhook".to_owned(),
        names: names(),
        lifetimes: Lifetimes::default(),
        clock: Arc::new(move || *clock.lock().unwrap()),
    };
    Replica { manager: CertificateManager::new(server.client(), options, Metrics::default()), time }
}

fn held(server: &FakeApiServer) -> Bundle {
    let data = serde_json::from_value(server.get(SECRET).unwrap()["data"].clone()).unwrap();
    Bundle::from_data(&data).unwrap()
}

async fn reconcile_all(replicas: &[Replica]) -> SystemTime {
    let outcomes = join_all(replicas.iter().map(|replica| replica.manager.reconcile())).await;
    let next: Vec<_> = outcomes.into_iter().map(Result::unwrap).collect();
    assert!(next.windows(2).all(|pair| pair[0] == pair[1]), "replicas differ in what they hold: {next:?}");
    next[0]
}

/// How many writes of the Secret the server took, and how many it refused because another came first.
fn secret_writes(server: &FakeApiServer) -> (usize, usize) {
    let writes = server.take_writes();
    let of_the_secret = writes.iter().filter(|(_, path, _)| SECRET.starts_with(path.as_str()));
    let (taken, refused): (Vec<_>, Vec<_>) = of_the_secret.partition(|(_, _, status)| *status < 300);
    (taken.len(), refused.len())
}

#[tokio::test]
async fn of_replicas_that_start_at_once_one_makes_the_certificates_for_all() {
    for empty_secret in [false, true] {
        let server = FakeApiServer::new();
        if empty_secret {
            server.put(SECRET, json!({"type": "Opaque", "metadata": {"labels": {"app": "kaito"}}}));
        }
        let replicas = [replica(&server), replica(&server), replica(&server)];
        let next = reconcile_all(&replicas).await;
        assert_eq!(secret_writes(&server), (1, 2));
        if empty_secret {
            assert_eq!(server.get(SECRET).unwrap()["metadata"]["labels"], json!({"app": "kaito"}));
        }
        let first = held(&server);
        assert_eq!(reconcile_all(&replicas).await, next);
        assert_eq!(secret_writes(&server), (0, 0), "nothing is due, and something was written");
        for replica in &replicas {
            *replica.time.lock().unwrap() = next;
        }
        reconcile_all(&replicas).await;
        assert_eq!(secret_writes(&server), (1, 2));
        assert_eq!(held(&server).authorities, first.authorities);
        assert_ne!(held(&server), first);
    }
}

fn configuration(authority: Option<&str>) -> Value {
    let mut webhook = json!({
        "name": "validate.workspaces.kaito.sh",
        "clientConfig": {"service": {"name": "kaito-webhook", "namespace": "kaito", "path": "/validate"}},
        "admissionReviewVersions": ["v1"], "sideEffects": "None", "failurePolicy": "Fail", "futureField": {"kept": true}
    });
    if let Some(authority) = authority {
        webhook["clientConfig"]["caBundle"] = json!(authority);
    }
    json!({"metadata": {"labels": {"helm.sh/chart": "kaito"}}, "webhooks": [webhook]})
}

#[tokio::test]
async fn the_authority_is_written_into_the_configurations_and_nothing_else_is_touched() {
    let server = FakeApiServer::new();
    let replica = replica(&server);
    replica.manager.reconcile().await.unwrap();
    assert!(server.get(VALIDATING).is_none(), "a configuration that nobody installed was made");
    for overwritten in [None, Some("Cg=="), Some("")] {
        for path in [VALIDATING, MUTATING] {
            server.put(path, configuration(overwritten));
        }
        replica.manager.reconcile().await.unwrap();
        let authority = serde_json::to_value(ByteString(held(&server).authorities.into_bytes())).unwrap();
        for path in [VALIDATING, MUTATING] {
            let mut found = server.get(path).unwrap();
            assert_eq!(found["webhooks"][0]["clientConfig"]["caBundle"], authority);
            found["metadata"].as_object_mut().unwrap().retain(|field, _| field == "labels");
            assert_eq!(found, configuration(authority.as_str()));
        }
    }
    server.take_writes();
    replica.manager.reconcile().await.unwrap();
    assert_eq!(server.take_writes(), []);
}

#[tokio::test]
async fn a_refusal_of_the_api_server_names_the_object() {
    let server = FakeApiServer::new();
    server.forbid(Method::POST);
    let error = replica(&server).manager.reconcile().await.unwrap_err();
    assert!(matches!(error, Error::Api { .. }), "{error:?}");
    assert!(error.to_string().starts_with("cannot write the Secret kaito/kaito-webhook-tls: "), "{error}");
    let server = FakeApiServer::new();
    server.put(MUTATING, configuration(None));
    server.forbid(Method::PATCH);
    let error = replica(&server).manager.reconcile().await.unwrap_err().to_string();
    let expected = "cannot write the webhook's authority into the MutatingWebhookConfiguration kaito-webhook: ";
    assert!(error.starts_with(expected), "{error}");
}
