//! Registries with a certificate.

use std::{fmt::Display, net::SocketAddr, path::PathBuf, process::Command, sync::Arc};

use kaito_image::registry::{Access, Error, Options, PushOptions, Repository, parse_reference};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use crate::{
    images::{Recorder, options, random_image},
    server::{Config, Registry},
};

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Ends TLS before the registry, which does not know of it, as in most installations.
async fn tls_before(name: &str, registry: SocketAddr, authority: &CertifiedIssuer<'static, KeyPair>) -> SocketAddr {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, authority).unwrap();
    let chain: Vec<CertificateDer<'static>> = vec![certificate.der().clone()];
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut server = TcpStream::connect(registry).await.unwrap();
                if let Ok(mut client) = acceptor.accept(client).await {
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                }
            });
        }
    });
    address
}

async fn push(address: impl Display, authority: &CertifiedIssuer<'static, KeyPair>) -> Result<(), Error> {
    let folder = tempfile::tempdir().unwrap();
    let ca_file = folder.path().join("ca.pem");
    std::fs::write(&ca_file, authority.pem()).unwrap();
    push_with(address, ca_file).await
}

async fn push_with(address: impl Display, ca_file: PathBuf) -> Result<(), Error> {
    let reference = parse_reference(&format!("{address}/a:1")).unwrap();
    let options = Options { ca_files: vec![ca_file], ..options() };
    let repository = Repository::open(&reference, Access::Push, &options).await?;
    let image = random_image(1, &[700_000]);
    repository.push(&image, &PushOptions::default(), &*Recorder::new()).await.map(|_| ())
}

#[tokio::test]
async fn a_registry_is_trusted_by_its_authority_and_no_other() {
    // The registry's addresses begin with http, as it does not know better.
    let registry = Registry::start(Config { absolute_locations: true, ..Config::default() }).await;
    let right = authority();
    let address = tls_before("127.0.0.1", registry.address, &right).await;
    push(address, &right).await.unwrap();
    assert!(registry.manifest("a", "1").is_some());

    let error = push(address, &authority()).await.unwrap_err().to_string();
    for says in [&format!("https://{address}"), "certificate", "--ca-file"] {
        assert!(error.contains(says), "{error}");
    }
    let error = push(registry.address, &right).await.unwrap_err().to_string();
    assert!(error.contains("--plain-http"), "{error}");
}

/// A proxy that knows one host, by a name that nothing else resolves, and asks for a password.
async fn tunnel_to(host: &'static str, address: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(client.read_u8().await.unwrap());
                }
                let request = String::from_utf8(request).unwrap();
                assert!(request.starts_with(&format!("CONNECT {host} HTTP/1.1\r\n")), "{request}");
                // "ada:secret".
                assert!(request.to_lowercase().contains("proxy-authorization: basic ywrhonnly3jlda=="), "{request}");
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                let mut server = TcpStream::connect(address).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    proxy
}

/// Variables belong to the process; so a process of its own has them.
#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_tunnelled_through() {
    const CHILD: &str = "KAITO_TEST_CA";
    if let Some(pem) = std::env::var_os(CHILD) {
        push_with("registry.test:8443", pem.into()).await.unwrap();
        return;
    }
    let registry = Registry::start(Config::default()).await;
    let authority = authority();
    let address = tls_before("registry.test", registry.address, &authority).await;
    let proxy = tunnel_to("registry.test:8443", address).await;
    let folder = tempfile::tempdir().unwrap();
    let ca_file = folder.path().join("ca.pem");
    std::fs::write(&ca_file, authority.pem()).unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tls::a_proxy_is_tunnelled_through", "--nocapture"])
        .env(CHILD, &ca_file)
        .env("HTTPS_PROXY", format!("http://ada:secret@{proxy}"))
        .env_remove("NO_PROXY")
        .env_remove("no_proxy")
        .spawn()
        .unwrap();
    let status = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap().status).await.unwrap();
    assert!(status.success());
    assert!(registry.manifest("a", "1").is_some());
}

#[tokio::test]
async fn a_file_without_certificates_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let reference = parse_reference("registry.test/a:1").unwrap();
    for (name, content, says) in [("none", Some(""), "no certificate in PEM"), ("missing", None, "No such file")] {
        let path = folder.path().join(name);
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let options = Options { ca_files: vec![path.clone()], ..options() };
        let error = Repository::open(&reference, Access::Pull, &options).await.unwrap_err().to_string();
        assert!(error.contains(says) && error.contains(path.to_str().unwrap()), "{error}");
    }
}
