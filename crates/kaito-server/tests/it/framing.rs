//! Messages that are framed in ways that servers and proxies disagree about: each is refused, or taken as the RFCs say.

use kaito_testing::http::{ask_and_wait, post};
use kaito_testing::server::{CHAT_MODEL, TestServer};

/// A request and the status of its answer.
struct Case {
    name: &'static str,
    request: Vec<u8>,
    status: u16,
}

fn cases() -> Vec<Case> {
    let get = |lines: &str| format!("GET /healthz HTTP/1.1\r\n{lines}\r\n").into_bytes();
    let with = |lines: &str, body: &str| post("/chat", lines, body.as_bytes());
    // The body is JSON of the wrong shape: 422 says that it was read.
    let chunked = "2\r\n{}\r\n0\r\n\r\n";
    let many: String = (0..101).map(|i| format!("X-{i}: 1\r\n")).collect();
    let case = |name, request, status| Case { name, request, status };
    vec![
        // RFC 9112, 3.2: Host.
        case("no Host", get("Connection: close\r\n"), 400),
        case("two Hosts", get("Host: localhost\r\nHost: localhost\r\nConnection: close\r\n"), 400),
        case("two Hosts in one line", get("Host: a, b\r\nConnection: close\r\n"), 400),
        case("a Host that is no name", get("Host: a b\r\nConnection: close\r\n"), 400),
        case("HTTP/1.0 has no Host", b"GET /healthz HTTP/1.0\r\n\r\n".to_vec(), 200),
        case(
            "the absolute form",
            b"GET http://localhost/healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".to_vec(),
            200,
        ),
        case("the absolute form without Host", b"GET http://localhost/healthz HTTP/1.1\r\n\r\n".to_vec(), 400),
        case(
            "a request without Host whose body is missing",
            b"POST /chat HTTP/1.1\r\nContent-Length: 9\r\n\r\n".to_vec(),
            400,
        ),
        // 6.1 and 7: codings.
        case("chunked", with("Transfer-Encoding: chunked\r\nConnection: close\r\n", chunked), 422),
        case("Chunked", with("Transfer-Encoding: Chunked\r\nConnection: close\r\n", chunked), 422),
        case("gzip, chunked", with("Transfer-Encoding: gzip, chunked\r\n", chunked), 501),
        case("gzip and chunked", with("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", chunked), 501),
        case("chunked twice", with("Transfer-Encoding: chunked, chunked\r\n", chunked), 400),
        case("chunked not last", with("Transfer-Encoding: chunked, gzip\r\n", chunked), 400),
        case("gzip", with("Transfer-Encoding: gzip\r\n", "{}"), 400),
        case("identity", with("Transfer-Encoding: identity\r\nContent-Length: 2\r\n", "{}"), 400),
        case("a space before the colon", with("Transfer-Encoding : chunked\r\n", chunked), 400),
        case("TE names chunked", with("TE: gzip, chunked\r\nContent-Length: 2\r\n", "{}"), 400),
        case(
            "chunked in HTTP/1.0",
            b"POST /chat HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec(),
            400,
        ),
        case("a chunk without size", with("Transfer-Encoding: chunked\r\n", "zz\r\n{}\r\n0\r\n\r\n"), 400),
        case("a chunk of 2^64 bytes", with("Transfer-Encoding: chunked\r\n", "10000000000000000\r\n{}\r\n"), 400),
        // 6.2 and 6.3: lengths.
        case("a length and chunked", with("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", chunked), 422),
        case("chunked and a length", with("Transfer-Encoding: chunked\r\nContent-Length: 2\r\n", chunked), 422),
        case("two lengths", with("Content-Length: 2\r\nContent-Length: 3\r\n", "{}"), 400),
        case("two lengths in a line", with("Content-Length: 2, 3\r\n", "{}"), 400),
        case("a signed length", with("Content-Length: +2\r\n", "{}"), 400),
        case("a negative length", with("Content-Length: -2\r\n", "{}"), 400),
        case("a length of 2^64", with("Content-Length: 18446744073709551616\r\n", "{}"), 400),
        // 5: lines.
        case("a folded line", with("X-A: 1\r\n 2\r\nContent-Length: 2\r\n", "{}"), 400),
        case("a zero byte in a value", with("X-A: \0\r\nContent-Length: 2\r\n", "{}"), 400),
        case("a bare carriage return", with("X-A: 1\rX-B: 2\r\nContent-Length: 2\r\n", "{}"), 400),
        case("a name that is none", with("X A: 1\r\nContent-Length: 2\r\n", "{}"), 400),
        case("101 lines", with(&many, ""), 431),
        case("a line of 100 KB", with(&format!("X-A: {}\r\n", "a".repeat(100_000)), ""), 431),
        case("lines of 100 KB", with(&format!("X-A: {}\r\n", "a".repeat(2000)).repeat(50), ""), 431),
        // RFC 9110, 8.3 and 8.4.
        case(
            "an encoding in the second line",
            with("Content-Encoding: identity\r\nContent-Encoding: gzip\r\nConnection: close\r\n", ""),
            415,
        ),
        case("an encoding in a list", with("Content-Encoding: identity, br\r\nConnection: close\r\n", ""), 415),
        case("two types", with("Content-Type: text/plain\r\nConnection: close\r\n", ""), 415),
        // Other targets.
        case("OPTIONS *", b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".to_vec(), 404),
        case(
            "CONNECT",
            b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost:80\r\nConnection: close\r\n\r\n".to_vec(),
            404,
        ),
        // Nothing that a client of another protocol could read.
        case("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), 0),
        case("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), 400),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn ambiguous_messages_are_refused_and_end_their_connection() {
    let server = TestServer::start(CHAT_MODEL).await;
    let mut wrong = String::new();
    for case in cases() {
        // A second request that must not be taken out of the first one's rest.
        let smuggled = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let answer = ask_and_wait(server.address(), [&case.request[..], smuggled].concat()).await;
        let answers = answer.text.matches("HTTP/1.").count();
        if (answer.status(), answers) != (case.status, usize::from(case.status > 0)) || answer.reset {
            wrong += &format!("{}: {} instead of {}: {answer:?}\n", case.name, answer.status(), case.status);
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert_eq!(server.get("/healthz").await.status(), 200);
    server.stop().await;
}
