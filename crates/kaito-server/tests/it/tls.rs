//! HTTPS: both protocols on one port, a certificate that changes, and connections that are given up or end in good order.

use std::fs;
use std::future::poll_fn;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kaito_engine::testing::NullModel;
use kaito_server::{Error, Server, ServerOptions, ShutdownHandle, Tls};
use kaito_testing::files::letters;
use kaito_testing::http::{ask_and_wait, blocking};
use kaito_testing::server::{keys, options, parse_events};
use kaito_testing::wait::eventually;
use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::null_model::{stream, tokens};

/// An authority, and files with what it signed.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Self { issuer, folder: tempfile::tempdir().unwrap() };
        authority.renew();
        authority
    }

    fn files(&self) -> [PathBuf; 2] {
        ["tls.crt", "tls.key"].map(|name| self.folder.path().join(name))
    }

    /// Writes a certificate with another key, and gives the certificate.
    fn renew(&self) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(["localhost".to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        let [certificate_file, key_file] = self.files();
        fs::write(certificate_file, certificate.pem()).unwrap();
        fs::write(key_file, key.serialize_pem()).unwrap();
        certificate.der().clone()
    }

    fn tls(&self) -> Tls {
        let [certificate, key]: [PathBuf; 2] = self.files();
        Tls::open(Path::new(&certificate), Path::new(&key)).unwrap()
    }
}

/// A server of the null model that speaks HTTPS.
struct Secure {
    address: std::net::SocketAddr,
    authority: Authority,
    null: NullModel,
    handle: ShutdownHandle,
    running: JoinHandle<Result<(), Error>>,
}

impl Secure {
    async fn start(options: ServerOptions) -> Self {
        let authority = Authority::new();
        let server = Server::bind(ServerOptions { tls: Some(authority.tls()), ..options }).await.unwrap();
        let (address, handle) = (server.local_addr(), server.shutdown_handle());
        let null = NullModel::start(&letters(), 400, 8).unwrap();
        let model = null.model.clone();
        let running = tokio::spawn(server.run(move |_| Ok::<_, Error>(model)));
        let server = Self { address, authority, null, handle, running };
        eventually("the server is healthy", async || {
            let mut client = server.client(&[b"h2"], None).await;
            client.get("/healthz").await.status() == 200
        })
        .await;
        server
    }

    /// A TLS connection that asks for these protocols.
    async fn connect(&self, protocols: &[&[u8]]) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.issuer.der().clone()).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }

    /// A client that speaks what was agreed on, with room for so many bytes of each answer that it does not read.
    async fn client(&self, protocols: &[&[u8]], window: Option<u32>) -> Client {
        let stream = self.connect(protocols).await;
        let is_http_2 = stream.get_ref().1.alpn_protocol() == Some(&b"h2"[..]);
        let stream = TokioIo::new(stream);
        if is_http_2 {
            let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                .initial_stream_window_size(window)
                .handshake(stream)
                .await
                .unwrap();
            return Client::new(Sender::Http2(sender), connection);
        }
        let (sender, connection) = http1::handshake(stream).await.unwrap();
        Client::new(Sender::Http1(sender), connection)
    }

    async fn ended(self) {
        tokio::time::timeout(Duration::from_secs(60), self.running).await.expect("the server ends").unwrap().unwrap();
    }

    async fn stop(self) {
        self.handle.shutdown();
        self.ended().await;
    }

    fn runs(&self) -> usize {
        self.null.model.stats().running
    }
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

struct Client {
    sender: Sender,
    /// Whether the connection ended in good order.
    connection: JoinHandle<bool>,
    /// While this is set, nothing is read from the connection, nor written to it.
    silent: Arc<AtomicBool>,
}

impl Client {
    fn new(sender: Sender, connection: impl Future<Output = hyper::Result<()>> + Send + 'static) -> Self {
        let silent = Arc::new(AtomicBool::new(false));
        let is_silent = Arc::clone(&silent);
        let mut connection = Box::pin(connection);
        let connection = tokio::spawn(poll_fn(move |cx| {
            if is_silent.load(Ordering::Relaxed) {
                return Poll::Pending;
            }
            connection.as_mut().poll(cx).map(|ended| ended.is_ok())
        }));
        Self { sender, connection, silent }
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        match &mut self.sender {
            Sender::Http1(sender) => {
                sender.ready().await?;
                let (mut parts, body) = request.into_parts();
                parts.uri = parts.uri.path().parse().unwrap();
                parts.headers.insert("host", "localhost".parse().unwrap());
                sender.send_request(Request::from_parts(parts, body)).await
            }
            Sender::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }

    async fn get(&mut self, path: &str) -> Response<Incoming> {
        let request = Request::get(format!("https://localhost{path}")).body(Full::default()).unwrap();
        self.send(request).await.unwrap()
    }

    async fn try_chat(&mut self, body: &Value) -> hyper::Result<Response<Incoming>> {
        let request = Request::post("https://localhost/chat")
            .header("content-type", "application/json")
            .body(Full::from(body.to_string()))
            .unwrap();
        self.send(request).await
    }

    async fn chat(&mut self, body: &Value) -> Response<Incoming> {
        self.try_chat(body).await.unwrap()
    }
}

async fn text(response: Response<Incoming>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn both_protocols_give_the_same_answers() {
    let server = Secure::start(options()).await;
    let mut answers = Vec::new();
    for (protocols, version) in [
        (&[&b"h2"[..], b"http/1.1"][..], Version::HTTP_2),
        (&[b"http/1.1", b"h2"], Version::HTTP_2),
        (&[b"http/1.1"], Version::HTTP_11),
        (&[], Version::HTTP_11),
    ] {
        let mut client = server.client(protocols, None).await;
        let whole = client.chat(&tokens(5)).await;
        assert_eq!((whole.status().as_u16(), whole.version()), (200, version), "{protocols:?}");
        assert!(whole.headers().contains_key("x-request-id"));
        let whole = text(whole).await;
        let streamed = client.chat(&stream(5)).await;
        assert_eq!(streamed.headers()["content-type"], "text/event-stream");
        assert!(!streamed.headers().contains_key("connection"));
        let events = parse_events(&text(streamed).await);
        assert_eq!(events.len(), 6, "{events:?}");
        assert_eq!(events.last().unwrap().data.to_string(), whole);
        answers.push(whole);
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_streams_share_a_connection_and_its_end_waits_for_them() {
    let server = Secure::start(options()).await;
    let mut client = server.client(&[b"h2"], None).await;
    server.null.device.allow(2);
    let mut answers = Vec::new();
    for _ in 0..4 {
        answers.push(client.chat(&stream(6)).await);
    }
    server.null.device.waits().await;
    server.handle.shutdown();
    eventually("no new ones are taken", async || {
        // Whoever comes on a connection of its own hears why.
        let mut late = server.client(&[b"h2"], None).await;
        let answer = late.chat(&tokens(1)).await;
        answer.status() == 503 && text(answer).await.contains("shutting down")
    })
    .await;
    server.null.device.release();
    for answer in answers {
        let events = parse_events(&text(answer).await);
        assert_eq!(events.last().unwrap().name, "result", "{events:?}");
    }
    assert!(client.connection.await.unwrap(), "the connection ends in good order");
    server.ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_changes_is_served_and_open_connections_go_on() {
    let server = Secure::start(options()).await;
    let mut before = server.client(&[b"h2"], None).await;
    let shown = async || server.connect(&[]).await.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned();
    let first = shown().await;
    let [certificate, key] = server.authority.files();
    let next = server.authority.renew();
    assert_ne!(first, next);
    eventually("the new certificate is served", async || shown().await == next).await;
    // A certificate without its key changes nothing.
    let kept = fs::read(&key).unwrap();
    fs::write(&key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(shown().await, next);
    fs::write(&key, kept).unwrap();
    fs::remove_file(&certificate).unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(shown().await, next);
    assert_eq!(before.chat(&tokens(2)).await.status(), 200, "the connection from before goes on");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_speaks_no_tls_hears_so_and_delays_nothing() {
    let server = Secure::start(options()).await;
    let request = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let answer = ask_and_wait(server.address, request).await;
    assert_eq!(answer.status(), 400, "{answer:?}");
    assert_eq!(answer.body(), r#"{"detail":"This port speaks HTTPS; use https:// in the address."}"#);
    let address = server.address;
    // Silent, half a handshake, and what is neither.
    let clients = blocking(move || {
        [&b""[..], b"\x16\x03\x01\x02\x00\x01", b"\x00\x01"].map(|sent| {
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            stream.write_all(sent).unwrap();
            stream
        })
    })
    .await;
    // Before its first request, the server may not have read yet that it speaks HTTP/2.
    let mut idle = server.client(&[b"h2"], None).await;
    text(idle.chat(&tokens(1)).await).await;
    server.stop().await;
    assert!(idle.connection.await.unwrap(), "an idle connection is told");
    for mut client in clients {
        let mut heard = Vec::new();
        // Reset or closed.
        let _ = client.read_to_end(&mut heard);
        assert!(heard.is_empty(), "{heard:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_nobody_reads_is_given_up_and_the_others_go_on() {
    let stall_limit = Duration::from_secs(2);
    let server = Secure::start(ServerOptions { stall_limit, ..options() }).await;
    let mut client = server.client(&[b"h2"], Some(1000)).await;
    // Both have far more events than a window holds.
    server.null.device.allow(100);
    let unread = client.chat(&stream(900)).await;
    let read = tokio::spawn(text(client.chat(&stream(900)).await));
    eventually("both run", async || {
        server.null.device.allow(1);
        server.runs() == 2
    })
    .await;
    eventually("the unread one is over, long before it would be whole", async || {
        server.null.device.allow(1);
        server.runs() == 1
    })
    .await;
    assert!(server.null.model.stats().generated_tokens_total < 1800);
    server.null.device.release();
    assert_eq!(parse_events(&read.await.unwrap()).last().unwrap().name, "result");
    assert_eq!(client.chat(&tokens(2)).await.status(), 200, "the connection goes on");
    drop(unread);

    // Where there is nothing else on the connection, it is closed.
    let unread = client.chat(&stream(300)).await;
    assert!(!client.connection.await.unwrap(), "it is broken off");
    drop(unread);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_reset_frees_its_pages() {
    let server = Secure::start(options()).await;
    let mut client = server.client(&[b"h2"], None).await;
    server.null.device.allow(5);
    let mut streamed = client.chat(&stream(900)).await;
    streamed.body_mut().frame().await.unwrap().unwrap();
    server.null.device.waits().await;
    assert!(server.runs() == 1);
    drop(streamed);
    eventually("its pages are free", async || {
        server.null.device.allow(1);
        server.null.model.stats().pages_used == 0
    })
    .await;
    assert!(server.null.model.stats().generated_tokens_total < 900);
    server.null.device.release();
    assert_eq!(client.get("/healthz").await.status(), 200, "the connection goes on");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_and_hosts_are_checked_in_http_2_too() {
    let server = Secure::start(options()).await;
    let mut client = server.client(&[b"h2"], None).await;
    for (authority, lines, status) in [
        ("localhost", &[][..], 200),
        ("localhost", &[("host", "localhost")], 200),
        ("localhost", &[("host", "other.example")], 400),
        ("evil.example", &[], 403),
        ("localhost", &[("te", "trailers")], 200),
    ] {
        let mut request = Request::get(format!("https://{authority}/healthz"));
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        let answer = client.send(request.body(Full::default()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), status, "{authority} {lines:?}");
    }
    let long = "x".repeat(100_000);
    let request = Request::get("https://localhost/healthz").header("x-long", long).body(Full::default()).unwrap();
    let refused = client.send(request).await;
    assert!(refused.as_ref().is_err() || refused.unwrap().status() == 431);
    let mut client = server.client(&[b"h2"], None).await;
    assert_eq!(client.get("/healthz").await.status(), 200);
    server.stop().await;

    let server = Secure::start(ServerOptions { api_keys: keys("secret"), ..options() }).await;
    let mut client = server.client(&[b"h2"], None).await;
    assert_eq!(client.chat(&tokens(1)).await.status(), 401);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_refused_half_way_leaves_the_connection_open() {
    let server = Secure::start(ServerOptions { body_limit: 1000, ..options() }).await;
    let mut client = server.client(&[b"h2"], None).await;
    for _ in 0..3 {
        let request = Request::post("https://localhost/chat")
            .header("content-type", "application/json")
            .body(Full::from("x".repeat(500_000)))
            .unwrap();
        assert_eq!(client.send(request).await.unwrap().status(), 413);
        assert_eq!(client.chat(&tokens(1)).await.status(), 200);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_is_told_that_it_ends() {
    let server = Secure::start(ServerOptions { idle_limit: Duration::from_millis(500), ..options() }).await;
    for protocol in [&b"h2"[..], b"http/1.1"] {
        let never_used = server.client(&[protocol], None).await;
        let mut used = server.client(&[protocol], None).await;
        text(used.chat(&tokens(1)).await).await;
        for (client, was_used) in [(never_used, false), (used, true)] {
            let ended = tokio::time::timeout(Duration::from_secs(30), client.connection).await;
            let in_order = ended.expect("it ends").unwrap();
            // hyper's client calls the end of a connection over HTTP/1 that it never used an incomplete message.
            assert!(in_order || (!was_used && protocol == b"http/1.1"), "{protocol:?}");
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_for_its_answer_is_asked_whether_it_is_there() {
    let idle_limit = Duration::from_secs(2);
    let server = Secure::start(ServerOptions { idle_limit, ..options() }).await;
    let mut there = server.client(&[b"h2"], None).await;
    let mut gone = server.client(&[b"h2"], None).await;
    server.null.device.allow(4);
    let answer = there.chat(&stream(300)).await;
    let unanswered = gone.chat(&stream(900)).await;
    eventually("both run", async || {
        server.null.device.allow(1);
        server.runs() == 2
    })
    .await;
    server.null.device.waits().await;
    // As one whose machine lost its network: the connection stays, and nothing comes of it any more.
    gone.silent.store(true, Ordering::Relaxed);
    // No token is written meanwhile, so that no write to the client can fail.
    tokio::time::sleep(idle_limit + Duration::from_secs(1)).await;
    eventually("the one that is gone is given up", async || {
        server.null.device.allow(1);
        server.runs() == 1
    })
    .await;
    server.null.device.release();
    let events = parse_events(&text(answer).await);
    assert_eq!(events.last().unwrap().name, "result", "the other has answered every ping: {events:?}");
    drop(unanswered);
    server.stop().await;
}
