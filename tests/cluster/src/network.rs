//! Simulates the network of services: through it the API server reaches webhooks by the address of their Service.

use std::{fmt::Debug, future::ready, sync::Arc};

use futures_util::StreamExt;
use k8s_openapi::{
    api::{core::v1::Service, discovery::v1::EndpointSlice},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::{
    Api, Resource, ResourceExt,
    runtime::{
        WatchStreamExt,
        reflector::{self, Store},
        watcher::{self, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpStream, UnixListener, UnixStream},
};

use crate::{control_plane::ControlPlane, kubelet::Kubelet};

/// Serves connections to services, for as long as the tests run.
pub fn start(plane: &ControlPlane, kubelet: &Kubelet) {
    let listener = UnixListener::bind(plane.folder.join("services.sock")).unwrap();
    let network = Arc::new(Network {
        kubelet: kubelet.clone(),
        services: watched(Api::all(plane.client.clone())),
        slices: watched(Api::all(plane.client.clone())),
    });
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let network = network.clone();
            tokio::spawn(async move { network.serve(connection).await });
        }
    });
}

struct Network {
    kubelet: Kubelet,
    services: Store<Service>,
    slices: Store<EndpointSlice>,
}

/// Endpoints are watched, as a node's kube-proxy does, so that a connection needs no request to the API server.
fn watched<K>(api: Api<K>) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let events = watcher(api, watcher::Config::default()).default_backoff();
    tokio::spawn(reflector::reflector(writer, events).for_each(|_| ready(())));
    store
}

impl Network {
    /// `CONNECT 10.96.1.2:443 HTTP/1.1`, then bytes in both directions.
    async fn serve(&self, mut connection: UnixStream) -> std::io::Result<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() > 4096 {
                return Ok(());
            }
            head.push(connection.read_u8().await?);
        }
        let head = String::from_utf8_lossy(&head);
        let target = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()).unwrap_or_default();
        let server = match self.endpoint(target).await {
            Ok(port) => TcpStream::connect(("127.0.0.1", port)).await.map_err(|error| error.to_string()),
            Err(error) => Err(error),
        };
        match server {
            Ok(mut server) => {
                server.set_nodelay(true)?;
                connection.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
                copy_bidirectional(&mut connection, &mut server).await?;
            }
            Err(error) => {
                let answer = format!("HTTP/1.1 503 {}\r\n\r\n", error.replace(['\r', '\n'], " "));
                connection.write_all(answer.as_bytes()).await?;
            }
        }
        Ok(())
    }

    /// The port of this machine behind a service's address, by its ready endpoints.
    async fn endpoint(&self, target: &str) -> Result<u16, String> {
        let (ip, port) = target.rsplit_once(':').ok_or_else(|| format!("not an address: {target}"))?;
        let port: i32 = port.parse().map_err(|_| format!("not a port: {target}"))?;
        let services = self.services.state();
        let found = services.iter().find_map(|service| {
            let spec = service.spec.as_ref()?;
            let at = spec.cluster_ip.as_deref() == Some(ip);
            let port = spec.ports.iter().flatten().find(|candidate| at && candidate.port == port)?;
            Some((service, port))
        });
        let (service, port) = found.ok_or_else(|| format!("no service at {target}"))?;

        let slices = self.slices.state();
        let of_service = slices.iter().filter(|slice| {
            slice.namespace() == service.namespace()
                && slice.labels().get("kubernetes.io/service-name") == Some(&service.name_any())
        });
        for slice in of_service {
            let target_port = slice.ports.iter().flatten().find(|candidate| {
                candidate.name.as_deref().unwrap_or_default() == port.name.as_deref().unwrap_or_default()
            });
            let Some(target_port) = target_port.and_then(|port| u16::try_from(port.port?).ok()) else { continue };
            for endpoint in &slice.endpoints {
                let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(true);
                let pod = endpoint.target_ref.as_ref().and_then(|target| target.name.clone()).unwrap_or_default();
                let process = self.kubelet.process(&service.namespace().unwrap_or_default(), &pod);
                if let Some(port) =
                    process.filter(|_| ready).and_then(|process| process.ports.get(&target_port).copied())
                {
                    return Ok(port);
                }
            }
        }
        let target = match &port.target_port {
            Some(IntOrString::String(name)) => name.clone(),
            Some(IntOrString::Int(port)) => port.to_string(),
            None => port.port.to_string(),
        };
        Err(format!("service {} has no ready endpoint for port {target}", service.name_any()))
    }
}
