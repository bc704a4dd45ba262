//! Keeps the certificates in a Secret that all replicas share, and renews them.

use std::{
    fmt,
    sync::{Arc, RwLock},
    time::{Duration, SystemTime},
};

use futures_util::{Stream, StreamExt, stream};
use k8s_openapi::{
    ByteString,
    api::{
        admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
        core::v1::Secret,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client,
    api::PostParams,
    runtime::{WatchStreamExt, watcher},
};
use rustls::{
    crypto::CryptoProvider,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::{
    bundle::{self, Bundle, Current},
    issue::Lifetimes,
    trust,
};
use crate::{Error, webhook::Metrics};

/// The time.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// How often writing the Secret is tried when other replicas write it first.
const ATTEMPTS: u32 = 10;
/// Pauses after failures double from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// No pause is longer than this, so that a change of the system's clock is noticed.
const LONGEST_PAUSE: Duration = Duration::from_secs(60 * 60);

/// Where certificates are kept, and for what.
#[derive(Clone)]
pub struct CertificateOptions {
    /// The namespace of the Secret.
    pub namespace: String,
    /// The Secret's name. It may exist without data.
    pub secret: String,
    /// The name that the ValidatingWebhookConfiguration and the MutatingWebhookConfiguration have.
    pub configuration: String,
    /// Names in the certificate: the DNS names of [`service_names`], or addresses.
    pub names: Vec<String>,
    /// How long certificates are valid.
    pub lifetimes: Lifetimes,
    /// The time, by which certificates are made and renewed.
    pub clock: Clock,
}

impl fmt::Debug for CertificateOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateOptions")
            .field("namespace", &self.namespace)
            .field("secret", &self.secret)
            .field("configuration", &self.configuration)
            .field("names", &self.names)
            .field("lifetimes", &self.lifetimes)
            .finish_non_exhaustive()
    }
}

/// The names by which a Service is called from within the cluster. The API server uses the first.
pub fn service_names(service: &str, namespace: &str) -> Vec<String> {
    vec![
        format!("{service}.{namespace}.svc"),
        format!("{service}.{namespace}.svc.cluster.local"),
        format!("{service}.{namespace}"),
        service.to_owned(),
    ]
}

/// Keeps one replica's certificate, and the webhook configurations, in step with the Secret.
///
/// Every replica may create or renew certificates. A write carries the version of the Secret that was read (optimistic
/// concurrency), so that of several replicas one succeeds, and the others use what it wrote.
pub struct CertificateManager {
    client: Client,
    secrets: Api<Secret>,
    options: CertificateOptions,
    provider: Arc<CryptoProvider>,
    shown: Arc<Shown>,
    metrics: Metrics,
}

impl CertificateManager {
    /// Does nothing until [`Self::run`] or [`Self::reconcile`].
    pub fn new(client: Client, options: CertificateOptions, metrics: Metrics) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), &options.namespace),
            client,
            options,
            provider: Arc::new(rustls::crypto::ring::default_provider()),
            shown: Arc::default(),
            metrics,
        }
    }

    /// Gives a TLS server its certificate; there is none before the first reconcile.
    pub fn resolver(&self) -> Arc<dyn ResolvesServerCert> {
        Arc::clone(&self.shown) as Arc<dyn ResolvesServerCert>
    }

    /// Reconciles whenever the Secret or a configuration changes and when certificates are due, until it is dropped.
    /// `ready` becomes true after the first success.
    pub async fn run(&self, ready: &watch::Sender<bool>) {
        let mut changes = stream::select_all([
            changes(self.secrets.clone(), &self.options.secret),
            changes(Api::<ValidatingWebhookConfiguration>::all(self.client.clone()), &self.options.configuration),
            changes(Api::<MutatingWebhookConfiguration>::all(self.client.clone()), &self.options.configuration),
        ]);
        let mut failures = 0_u32;
        loop {
            let pause = match self.reconcile().await {
                Ok(next) => {
                    failures = 0;
                    ready.send_replace(true);
                    let until_next = next.duration_since((self.options.clock)()).unwrap_or_default();
                    until_next.clamp(FIRST_PAUSE, LONGEST_PAUSE)
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot see to the webhook's certificates");
                    failures = failures.saturating_add(1);
                    FIRST_PAUSE.saturating_mul(1 << failures.min(10)).min(LAST_PAUSE)
                }
            };
            let again = tokio::time::sleep(pause);
            tokio::pin!(again);
            loop {
                tokio::select! {
                    () = &mut again => break,
                    // A change does not shorten the pause after a failure: the failed attempt itself may have caused it.
                    Some(()) = changes.next() => if failures == 0 { break },
                }
            }
        }
    }

    /// Reads the Secret, creates or renews what is due, serves with it, and makes the API server trust it. Returns when to
    /// reconcile again.
    ///
    /// # Errors
    ///
    /// Those of the API server, and of making a certificate.
    pub async fn reconcile(&self) -> Result<SystemTime, Error> {
        let current = self.agree().await?;
        self.metrics.set_certificate_end(current.end);
        self.shown.set(current.certified_key);
        let authorities = ByteString(current.bundle.authorities.into_bytes());
        let configuration = &self.options.configuration;
        trust::establish::<ValidatingWebhookConfiguration>(&self.client, configuration, &authorities).await?;
        trust::establish::<MutatingWebhookConfiguration>(&self.client, configuration, &authorities).await?;
        Ok(current.next)
    }

    /// The content of the Secret, after whatever was due has been renewed.
    async fn agree(&self) -> Result<Current, Error> {
        let CertificateOptions { namespace, secret: name, names, lifetimes, clock, .. } = &self.options;
        let at = || format!("the Secret {namespace}/{name}");
        for _ in 0..ATTEMPTS {
            let found =
                self.secrets.get_opt(name).await.map_err(|source| Error::api(format!("read {}", at()), source))?;
            let held = found.as_ref().and_then(|secret| Bundle::from_data(secret.data.as_ref()?));
            let current = bundle::current(held.as_ref(), names, *lifetimes, clock(), &self.provider)?;
            if !current.is_changed {
                return Ok(current);
            }
            let data = Some(current.bundle.to_data());
            let written = match found {
                Some(secret) => {
                    let secret = Secret { data, ..secret };
                    self.secrets.replace(name, &PostParams::default(), &secret).await
                }
                None => {
                    let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
                    let secret = Secret { metadata, data, type_: Some("Opaque".to_owned()), ..Secret::default() };
                    self.secrets.create(&PostParams::default(), &secret).await
                }
            };
            match written {
                Ok(_) => {
                    tracing::info!(secret = %at(), end = ?current.end, "made certificates for the webhook");
                    return Ok(current);
                }
                Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => {
                    tracing::debug!(secret = %at(), "another replica has written it; reading again");
                }
                Err(source) => return Err(Error::api(format!("write {}", at()), source)),
            }
        }
        Err(Error::Contended { object: at(), attempts: ATTEMPTS })
    }
}

/// An item for each change of the object of that name.
fn changes<K>(api: Api<K>, name: &str) -> stream::BoxStream<'static, ()>
where
    K: kube::Resource + Clone + fmt::Debug + DeserializeOwned + Send + 'static,
{
    let named = watcher::Config::default().fields(&format!("metadata.name={name}"));
    logged(watcher(api, named).default_backoff()).boxed()
}

fn logged<T>(events: impl Stream<Item = Result<T, watcher::Error>>) -> impl Stream<Item = ()> {
    events.filter_map(|event| async move {
        match event {
            Ok(_) => Some(()),
            Err(error) => {
                tracing::warn!(%error, "cannot watch what the webhook's certificates depend on; trying again");
                None
            }
        }
    })
}

/// The certificate to serve with.
#[derive(Debug, Default)]
struct Shown(RwLock<Option<Arc<CertifiedKey>>>);

impl Shown {
    fn set(&self, key: CertifiedKey) {
        // After a panic the value is still whole: an assignment cannot be interrupted.
        *self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(Arc::new(key));
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}
