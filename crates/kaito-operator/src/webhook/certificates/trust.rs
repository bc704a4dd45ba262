//! Makes the API server trust the webhook: writes the authorities into the `caBundle` of webhook configurations.

use std::fmt;

use json_patch::{AddOperation, Patch, PatchOperation, TestOperation, jsonptr::PointerBuf};
use k8s_openapi::{
    ByteString, ClusterResourceScope,
    api::admissionregistration::v1::{
        MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
    },
};
use kube::{Api, Client, api::PatchParams};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::Error;

/// A kind of webhook configuration.
pub trait Configuration:
    kube::Resource<DynamicType = (), Scope = ClusterResourceScope> + Clone + fmt::Debug + DeserializeOwned + Send + 'static
{
    /// Each webhook's name, and how the API server reaches it.
    fn webhooks(&self) -> Vec<(&str, &WebhookClientConfig)>;
}

impl Configuration for ValidatingWebhookConfiguration {
    fn webhooks(&self) -> Vec<(&str, &WebhookClientConfig)> {
        self.webhooks.iter().flatten().map(|webhook| (webhook.name.as_str(), &webhook.client_config)).collect()
    }
}

impl Configuration for MutatingWebhookConfiguration {
    fn webhooks(&self) -> Vec<(&str, &WebhookClientConfig)> {
        self.webhooks.iter().flatten().map(|webhook| (webhook.name.as_str(), &webhook.client_config)).collect()
    }
}

/// Writes `authorities` into the configuration of that name, if it exists and has others.
pub async fn establish<K: Configuration>(client: &Client, name: &str, authorities: &ByteString) -> Result<(), Error> {
    let api = Api::<K>::all(client.clone());
    let kind = K::kind(&());
    let failed = |action: &str, source| Error::api(format!("{action} the {kind} {name}"), source);
    let Some(found) = api.get_opt(name).await.map_err(|source| failed("read", source))? else { return Ok(()) };
    let Some(patch) = patch(&found.webhooks(), authorities) else { return Ok(()) };
    api.patch(name, &PatchParams::default(), &kube::api::Patch::Json::<()>(patch))
        .await
        .map_err(|source| failed("write the webhook's authority into", source))?;
    tracing::info!(%kind, name, "wrote the webhook's authority");
    Ok(())
}

/// A JSON patch of the authorities alone, which fails where the order of the webhooks has changed meanwhile.
fn patch(webhooks: &[(&str, &WebhookClientConfig)], authorities: &ByteString) -> Option<Patch> {
    let mut operations = Vec::new();
    for (index, (name, config)) in webhooks.iter().enumerate() {
        if config.ca_bundle.as_ref() == Some(authorities) {
            continue;
        }
        let index = index.to_string();
        operations.push(PatchOperation::Test(TestOperation {
            path: PointerBuf::from_tokens(["webhooks", &index, "name"]),
            value: json!(name),
        }));
        operations.push(PatchOperation::Add(AddOperation {
            path: PointerBuf::from_tokens(["webhooks", &index, "clientConfig", "caBundle"]),
            value: json!(authorities),
        }));
    }
    (!operations.is_empty()).then_some(Patch(operations))
}
