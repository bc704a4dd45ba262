//! Who may do what: keys, hosts, origins, the shutdown; and what is told to clients that may look.

use std::fs;
use std::path::Path;

use kaito_engine::{LanguageModel, LoadOptions};
use kaito_server::{ApiKey, ApiKeys, HostName, ServerOptions};
use kaito_testing::files::{copy_of, parity_model};
use kaito_testing::http::ask_and_wait;
use kaito_testing::server::{CHAT_MODEL, META_MODEL, TestServer, keys, load, options};
use kaito_testing::wait::eventually;
use serde_json::json;

async fn serving(options: ServerOptions) -> TestServer {
    TestServer::with(load(META_MODEL, &LoadOptions::default()), options).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_protects_the_work_and_nothing_else() {
    let server = TestServer::with(
        load(META_MODEL, &LoadOptions::default()),
        ServerOptions { api_keys: keys("secret"), ..options() },
    )
    .await;
    for path in ["/generate", "/chat"] {
        for offered in [None, Some("wrong"), Some("secret")] {
            let mut request = server.request(path, &json!({}));
            if let Some(offered) = offered {
                request = request.bearer_auth(offered);
            }
            let response = request.send().await.unwrap();
            let challenge = response.headers().get("www-authenticate").is_some_and(|value| value == "Bearer");
            let status = response.status().as_u16();
            // With the key, the body is what is wrong.
            assert_eq!((status, challenge), if offered == Some("secret") { (422, false) } else { (401, true) });
        }
    }
    for path in ["/", "/healthz", "/metrics"] {
        assert_eq!(server.get(path).await.status(), 200, "{path}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_follow_one_another_through_a_file_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    fs::write(&file, "old\n").unwrap();
    let api_keys = ApiKeys::new(ApiKey::parse_all("given").unwrap(), Some(&file)).unwrap();
    let server = serving(ServerOptions { api_keys, ..options() }).await;
    let accepted = async |key: &str| {
        let request = server.client.post(format!("{}/chat", server.url)).bearer_auth(key).json(&json!({}));
        request.send().await.unwrap().status() != 401
    };
    assert!(accepted("old").await && accepted("given").await && !accepted("new").await);
    fs::write(&file, "old\nnew\n").unwrap();
    eventually("the new key counts", async || {
        assert!(accepted("old").await, "there is no moment without a key");
        accepted("new").await
    })
    .await;
    fs::write(&file, "new\n").unwrap();
    eventually("the old key counts no more", async || {
        assert!(accepted("new").await && accepted("given").await);
        !accepted("old").await
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_page_may_not_shut_the_server_down() {
    let server = TestServer::start(META_MODEL).await;
    let request = server.client.post(format!("{}/shutdown", server.url)).header("origin", "http://example.com");
    assert_eq!(request.send().await.unwrap().status(), 403);
    assert_eq!(server.get("/healthz").await.status(), 200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxied_shutdown_needs_the_key_and_so_does_a_direct_one_where_there_is_one() {
    for (api_keys, headers, expected) in [
        (ApiKeys::default(), &[("x-forwarded-for", "203.0.113.9")][..], 403),
        (ApiKeys::default(), &[("forwarded", "for=203.0.113.9")], 403),
        (ApiKeys::default(), &[("via", "1.1 proxy")], 403),
        (ApiKeys::default(), &[("sec-fetch-site", "cross-site")], 403),
        (keys("secret"), &[], 401),
        (keys("secret"), &[("authorization", "Bearer other")], 401),
        (keys("secret"), &[("authorization", "Bearer secret"), ("x-forwarded-for", "203.0.113.9")], 200),
        (ApiKeys::default(), &[("sec-fetch-site", "same-origin")], 200),
    ] {
        let server = serving(ServerOptions { api_keys, ..options() }).await;
        let mut request = server.client.post(format!("{}/shutdown", server.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        assert_eq!(request.send().await.unwrap().status(), expected, "{headers:?}");
        if expected == 200 {
            server.ended().await.unwrap();
        } else {
            server.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_was_rebound_to_this_machine_is_answered_on_no_route() {
    let allowed_hosts = vec![HostName::parse("kaito.internal").unwrap()];
    let server = serving(ServerOptions { allowed_hosts, ..options() }).await;
    for line in [
        "GET /",
        "GET /healthz",
        "GET /metrics",
        "POST /chat",
        "POST /generate",
        "POST /shutdown",
        "OPTIONS /chat",
        "GET /no/such/route",
    ] {
        for (target, host, refused) in [
            ("", "evil.example", true),
            ("", "localhost.evil.example:80", true),
            ("http://evil.example", "localhost", true),
            ("", "localhost:5000", false),
            ("", "LOCALHOST.", false),
            ("", "[::1]:5000", false),
            ("", "127.0.0.1", false),
            ("", "Kaito.Internal:443", false),
            ("http://localhost:1", "evil.example", false),
        ] {
            // It ends the server.
            if line == "POST /shutdown" && !refused {
                continue;
            }
            let (method, path) = line.split_once(' ').unwrap();
            let head = format!(
                "{method} {target}{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            );
            let answer = ask_and_wait(server.address(), head.as_str()).await;
            assert_eq!(answer.status() == 403, refused, "{head}{answer:?}");
            if refused {
                assert!(answer.text.contains("--allowed-host") && answer.text.contains("--api-key"), "{answer:?}");
            }
        }
    }
    server.stop().await;

    let server = serving(ServerOptions { api_keys: keys("secret"), ..options() }).await;
    let answer =
        ask_and_wait(server.address(), "GET / HTTP/1.1\r\nHost: public.example\r\nConnection: close\r\n\r\n").await;
    assert_eq!(answer.status(), 200, "a client with the key may use any host name: {answer:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_origin_may_call_unless_allowed() {
    let allowed = vec!["http://good.example".parse().unwrap()];
    for (allowed_origins, origin, answer) in [
        (vec![], "http://good.example", None),
        (allowed.clone(), "http://good.example", Some("http://good.example")),
        (allowed, "http://bad.example", None),
    ] {
        let model = load(META_MODEL, &LoadOptions::default());
        let server = TestServer::with(model, ServerOptions { allowed_origins, ..options() }).await;
        let response = server.client.get(&server.url).header("origin", origin).send().await.unwrap();
        let allow = response.headers().get("access-control-allow-origin").map(|value| value.to_str().unwrap());
        assert_eq!(allow, answer);
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_may_send_any_header_and_read_those_that_sdks_need() {
    let allowed_origins = vec!["http://good.example".parse().unwrap()];
    let server = serving(ServerOptions { allowed_origins, api_keys: keys("secret"), ..options() }).await;
    let url = format!("{}/chat", server.url);
    let asked = "authorization,content-type,x-stainless-os,x-anything";
    let preflight = server.client.request(reqwest::Method::OPTIONS, &url).header("origin", "http://good.example");
    let preflight = preflight.header("access-control-request-method", "POST");
    let answer = preflight.header("access-control-request-headers", asked).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["access-control-allow-headers"], asked);
    assert_eq!(answer.headers()["access-control-allow-origin"], "http://good.example");
    // Also of a refusal.
    let refused = server.request("/chat", &json!({})).header("origin", "http://good.example").send().await.unwrap();
    assert_eq!(refused.status(), 401);
    assert_eq!(refused.headers()["access-control-expose-headers"], "x-request-id,retry-after,traceparent");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_is_kept_in_the_answer_if_it_is_one() {
    let server = serving(options()).await;
    let valid = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for (sent, echoed) in [(valid, Some(valid)), ("00-4bf9", None), ("", None)] {
        let request = server.client.get(format!("{}/no/such/route", server.url)).header("traceparent", sent);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 404);
        let found = answer.headers().get("traceparent").map(|value| value.to_str().unwrap());
        assert_eq!(found, echoed, "{sent}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_come_in_the_format_that_is_asked_for() {
    let server = serving(options()).await;
    for (accept, content_type, line) in [
        (None, "text/plain; version=0.0.4; charset=utf-8", "# TYPE kaito_requests_total counter"),
        (
            Some("text/plain;version=0.0.4;q=1,*/*;q=0.1"),
            "text/plain; version=0.0.4; charset=utf-8",
            "kaito_model_loaded 1",
        ),
        (
            Some("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"),
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            "# EOF",
        ),
    ] {
        let mut request = server.client.get(format!("{}/metrics", server.url));
        if let Some(accept) = accept {
            request = request.header("accept", accept);
        }
        let response = request.send().await.unwrap();
        assert_eq!(
            (&response.headers()["content-type"], &response.headers()["vary"]),
            (&content_type.parse().unwrap(), &"accept".parse().unwrap())
        );
        let text = response.text().await.unwrap();
        assert!(text.lines().any(|other| other == line), "no {line} in\n{text}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_that_are_changed_in_place_make_the_server_unhealthy_and_replaced_ones_do_not() {
    type Deed = fn(&Path);
    let longer: Deed = |file| {
        let mut bytes = fs::read(file).unwrap();
        bytes.push(0);
        fs::write(file, bytes).unwrap();
    };
    let replaced: Deed = |file| {
        let other = file.with_extension("new");
        fs::write(&other, "other weights").unwrap();
        fs::rename(&other, file).unwrap();
    };
    for (deed, healthy) in [(longer, false), (replaced, true)] {
        let folder = copy_of(&parity_model(CHAT_MODEL));
        let model = LanguageModel::load(folder.path(), &LoadOptions::default(), &|_| ()).unwrap();
        let server = TestServer::with(model, options()).await;
        let file = folder.path().join("model.safetensors");
        let before = fs::read(&file).unwrap();
        deed(&file);
        let response = server.get("/healthz").await;
        let status = response.status();
        let body = response.text().await.unwrap();
        assert_eq!(status, if healthy { 200 } else { 503 }, "{body}");
        if !healthy {
            assert!(body.contains("model.safetensors") && body.contains("rename"), "{body}");
            fs::write(&file, before).unwrap();
            assert_eq!(server.get("/healthz").await.status(), 503, "what was computed meanwhile is not forgotten");
        }
        server.stop().await;
    }
}
