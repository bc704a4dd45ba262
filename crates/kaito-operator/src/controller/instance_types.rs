//! Follows the ConfigMap that describes further instance types.

use std::{pin::pin, sync::Arc};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kaito_presets::InstanceTypes;
use kube::{
    Api, Client,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use tokio::sync::watch;

use super::Options;
use crate::instance_types::from_config_map;

/// Follows the ConfigMap for ever. One that cannot be read leaves the instance types as they were.
pub async fn follow(client: &Client, options: &Options, types: watch::Sender<Arc<InstanceTypes>>) {
    let Some(name) = &options.instance_types else {
        return std::future::pending().await;
    };
    let api = Api::<ConfigMap>::namespaced(client.clone(), &options.own_namespace);
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = pin!(watcher(api, config).default_backoff());
    while let Some(event) = events.next().await {
        let described = match event {
            Ok(Event::Apply(map) | Event::InitApply(map)) => from_config_map(&map.data.unwrap_or_default()),
            Ok(Event::Delete(_)) => Ok(InstanceTypes::built_in()),
            Ok(Event::Init | Event::InitDone) => continue,
            Err(error) => {
                tracing::warn!(config_map = name, %error, "cannot watch the instance types, trying again");
                continue;
            }
        };
        match described {
            Ok(described) => {
                let described = Arc::new(described);
                let replace = |known: &mut Arc<InstanceTypes>| {
                    let is_new = *known != described;
                    known.clone_from(&described);
                    is_new
                };
                if types.send_if_modified(replace) {
                    tracing::info!(config_map = name, "read the instance types");
                }
            }
            Err(error) => tracing::warn!(config_map = name, %error, "the instance types cannot be read"),
        }
    }
    std::future::pending().await
}
