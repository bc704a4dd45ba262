//! Registries with a certificate.

use std::{fmt::Display, net::SocketAddr, path::PathBuf, process::Command, sync::Arc, time::Duration};

use kaito_image::registry::{Access, Error, Options, PushOptions, Repository, parse_reference};
use kaito_testing::registry::{Config, Located, Registry};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use super::images::{Recorder, options, random_image};

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// How one who speaks TLS answers who does not.
#[derive(Debug, Clone, Copy)]
enum Plain {
    /// As TLS does, by an alert.
    Alert,
    /// By closing the connection.
    Closed,
    /// Not at all, until the client is gone.
    Silent,
    /// In words that HTTP understands.
    Http(&'static str),
}

/// Ends TLS before the registry, which does not know of it, as in most installations.
async fn tls_before(name: &str, registry: SocketAddr, authority: &CertifiedIssuer<'static, KeyPair>) -> SocketAddr {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, authority).unwrap();
    tls_with(certificate.der().clone(), &key, registry, Plain::Alert).await
}

async fn tls_with(
    certificate: CertificateDer<'static>,
    key: &KeyPair,
    registry: SocketAddr,
    plain: Plain,
) -> SocketAddr {
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move { end_tls(client, acceptor, registry, plain).await });
        }
    });
    address
}

async fn end_tls(mut client: TcpStream, acceptor: TlsAcceptor, registry: SocketAddr, plain: Plain) {
    // By which every message of a handshake begins.
    const HANDSHAKE: u8 = 22;
    let mut first = [0];
    let encrypted = client.peek(&mut first).await.is_ok_and(|count| count == 1) && first[0] == HANDSHAKE;
    match plain {
        Plain::Closed if !encrypted => return,
        Plain::Silent if !encrypted => {
            let _ = tokio::io::copy(&mut client, &mut tokio::io::sink()).await;
            return;
        }
        Plain::Http(answer) if !encrypted => {
            let _ = client.read(&mut [0; 4096]).await;
            let _ = client.write_all(answer.as_bytes()).await;
            return;
        }
        _ => {}
    }
    let mut server = TcpStream::connect(registry).await.unwrap();
    if let Ok(mut client) = acceptor.accept(client).await {
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    }
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
    let registry = Registry::start(Config { located: Located::WholeAddress, ..Config::default() }).await;
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

#[tokio::test]
async fn a_certificate_that_is_named_is_trusted_as_it_is() {
    let registry = Registry::start(Config::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let other = authority();
    let year = |year: i32| date_time_ymd(year, 1, 1);
    for (what, name, is_ca, until, says) in [
        // As `openssl req -x509` makes them.
        ("an authority of its own", "localhost", IsCa::Ca(BasicConstraints::Unconstrained), year(4000), None),
        ("signed by itself", "localhost", IsCa::NoCa, year(4000), None),
        ("signed by itself, no authority", "localhost", IsCa::ExplicitNoCa, year(4000), None),
        ("an authority without a name", "", IsCa::Ca(BasicConstraints::Unconstrained), year(4000), None),
        ("without a name", "", IsCa::NoCa, year(4000), None),
        ("of another name, no authority", "registry.test", IsCa::NoCa, year(4000), Some("subjectAltName")),
        (
            "of another name",
            "registry.test",
            IsCa::Ca(BasicConstraints::Unconstrained),
            year(4000),
            Some("subjectAltName"),
        ),
        ("ended", "localhost", IsCa::Ca(BasicConstraints::Unconstrained), year(2020), Some("clock")),
        ("ended, no authority", "localhost", IsCa::NoCa, year(2020), Some("clock")),
    ] {
        let key = KeyPair::generate().unwrap();
        let names: Vec<_> = Some(name.to_owned()).filter(|name| !name.is_empty()).into_iter().collect();
        let mut params = CertificateParams::new(names).unwrap();
        (params.is_ca, params.not_before, params.not_after) = (is_ca, year(2000), until);
        let certificate = params.self_signed(&key).unwrap();
        let port = tls_with(certificate.der().clone(), &key, registry.address, Plain::Alert).await.port();
        let address = format!("localhost:{port}");
        let (pem, der, bundle) = ("right.pem", "right.der", "bundle.pem");
        let together = format!("# ours\n{}\n{}# and\r\n{}", other.pem(), key.serialize_pem(), certificate.pem());
        for (file, content) in
            [(pem, certificate.pem().into_bytes()), (der, certificate.der().to_vec()), (bundle, together.into_bytes())]
        {
            let path = folder.path().join(file);
            std::fs::write(&path, content).unwrap();
            match (push_with(&address, path).await, says) {
                (Ok(()), None) => {}
                (Err(error), Some(says)) => assert!(error.to_string().contains(says), "{what}: {error}"),
                (result, _) => panic!("{what}, {file}: {result:?}"),
            }
        }
        let error = push(&address, &other).await.unwrap_err().to_string();
        assert!(error.contains("--ca-file") || until == year(2020), "{what}: {error}");
    }
}

#[tokio::test]
async fn a_certificate_of_an_authority_that_nobody_knows_is_trusted_if_it_is_named() {
    let registry = Registry::start(Config::default()).await;
    let (key, folder) = (KeyPair::generate().unwrap(), tempfile::tempdir().unwrap());
    let certificate = CertificateParams::new(["localhost".to_owned()]).unwrap().signed_by(&key, &authority()).unwrap();
    let address = tls_with(certificate.der().clone(), &key, registry.address, Plain::Alert).await;
    let path = folder.path().join("right.pem");
    std::fs::write(&path, certificate.pem()).unwrap();
    push_with(format!("localhost:{}", address.port()), path).await.unwrap();
}

#[tokio::test]
async fn a_registry_with_tls_on_this_machine_is_said_to_have_it() {
    let registry = Registry::start(Config::default()).await;
    for plain in [
        Plain::Alert,
        Plain::Closed,
        Plain::Silent,
        // As Go and nginx answer, and as those that send to their other self.
        Plain::Http("HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"),
        Plain::Http("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
        Plain::Http("HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
        Plain::Http(
            "HTTP/1.1 301 Moved Permanently\r\nLocation: https://localhost/v2/a/manifests/1\r\nContent-Length: 0\r\n\
             Connection: close\r\n\r\n",
        ),
    ] {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
        let port = tls_with(certificate.der().clone(), &key, registry.address, plain).await.port();
        for (plain_http, says) in [(false, "--ca-file"), (true, "leave --plain-http out")] {
            let reference = parse_reference(&format!("localhost:{port}/a:1")).unwrap();
            let options = Options { plain_http, stall_timeout: Duration::from_secs(2), ..options() };
            let repository = Repository::open(&reference, Access::Push, &options).await.unwrap();
            let recorder = Recorder::new();
            let error = repository.check_push(&*recorder).await.unwrap_err();
            assert!(matches!(error, Error::Tls { .. }), "{plain:?}: {error}");
            let error = error.to_string();
            assert!(error.contains("speaks TLS") && error.contains(says), "{plain:?}: {error}");
            assert_eq!(recorder.causes(), [""; 0], "{plain:?}: it waited");
        }
    }
}

#[tokio::test]
async fn a_registry_without_tls_that_refuses_is_not_taken_for_one_with_it() {
    let refused_methods = vec![(http::Method::HEAD, 400)];
    let registry = Registry::start(Config { refused_methods, ..Config::default() }).await;
    let reference = parse_reference(&format!("{}/a:1", registry.address)).unwrap();
    let repository = Repository::open(&reference, Access::Push, &options()).await.unwrap();
    let error = repository.check_push(&*Recorder::new()).await.unwrap_err();
    assert!(matches!(error, Error::Refused { status: 400, .. }), "{error}");
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
        .args(["--exact", "registry::tls::a_proxy_is_tunnelled_through", "--nocapture"])
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
