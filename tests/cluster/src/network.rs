//! Simulates the network of services: through it the API server reaches webhooks by the address of their Service, and tests reach
//! servers.

use std::{fmt::Debug, future::ready, net::SocketAddr, sync::Arc};

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
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
};

use crate::{control_plane::ControlPlane, kubelet::Kubelet};

/// Serves connections to services, for as long as the tests run.
pub fn start(plane: &ControlPlane, kubelet: &Kubelet) -> Network {
    let listener = UnixListener::bind(plane.folder.join("services.sock")).unwrap();
    let network = Network(Arc::new(Inner {
        kubelet: kubelet.clone(),
        services: watched(Api::all(plane.client.clone())),
        slices: watched(Api::all(plane.client.clone())),
    }));
    let serving = network.clone();
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let inner = serving.0.clone();
            tokio::spawn(async move { inner.serve(connection).await });
        }
    });
    network
}

/// The network of services.
#[derive(Clone)]
pub struct Network(Arc<Inner>);

impl Network {
    /// An address of this machine that leads to a service's port: each connection to a pod that is ready then. Connections that
    /// lead nowhere are closed.
    pub async fn forward(&self, service: &Service, port: i32) -> SocketAddr {
        let ip = service.spec.as_ref().and_then(|spec| spec.cluster_ip.clone()).unwrap();
        let target = format!("{ip}:{port}");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let inner = self.0.clone();
        tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                let (inner, target) = (inner.clone(), target.clone());
                tokio::spawn(async move {
                    if let Ok(mut server) = inner.connect(&target).await {
                        let _ = copy_bidirectional(&mut connection, &mut server).await;
                    }
                });
            }
        });
        address
    }
}

struct Inner {
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

impl Inner {
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
        match self.connect(target).await {
            Ok(mut server) => {
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

    async fn connect(&self, target: &str) -> Result<TcpStream, String> {
        let (host, port) = self.endpoint(target)?;
        let server = TcpStream::connect((host.as_str(), port)).await.map_err(|error| error.to_string())?;
        server.set_nodelay(true).map_err(|error| error.to_string())?;
        Ok(server)
    }

    /// Where this machine reaches a ready endpoint of the service with this address: host and port.
    fn endpoint(&self, target: &str) -> Result<(String, u16), String> {
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
                if !ready {
                    continue;
                }
                let namespace = service.namespace().unwrap_or_default();
                if let Some(address) = self.kubelet.address_of(&namespace, &pod) {
                    return Ok((address, target_port));
                }
                let process = self.kubelet.process(&namespace, &pod);
                if let Some(port) = process.and_then(|process| process.ports.get(&target_port).copied()) {
                    return Ok(("127.0.0.1".to_owned(), port));
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
