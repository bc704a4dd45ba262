//! Which host names a server answers for: its defence against DNS rebinding.
//!
//! The owner of a web page can let its name resolve to 127.0.0.1. A browser that shows the page then lets it send requests, as
//! its own origin, to whatever listens on this machine. Only the host that such a request names tells it from one of a local
//! client.

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use url::Host;

use crate::error::ApiError;
use crate::options::ServerOptions;

/// Names of loopback addresses in the files of hosts that systems come with, beside `localhost` and what ends in it.
const LOOPBACK_NAMES: [&str; 6] =
    ["ip6-localhost", "ip6-loopback", "localhost4", "localhost6", "localhost.localdomain", "localhost6.localdomain6"];

/// The name or address of a host, without a port, in a canonical form.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostName(Named);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Named {
    Address(IpAddr),
    /// In lower case, without the dot at its end.
    Name(String),
}

impl HostName {
    /// `example.com`, `192.0.2.1`, `::1` or `[::1]`; `None` for anything else, a port included.
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Some(Self(Named::Address(address.to_canonical())));
        }
        let named = match Host::parse(text).ok()? {
            Host::Ipv4(address) => Named::Address(address.into()),
            Host::Ipv6(address) => Named::Address(IpAddr::from(address).to_canonical()),
            Host::Domain(name) => {
                let name = name.strip_suffix('.').unwrap_or(&name).to_ascii_lowercase();
                let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
                if name.is_empty() || name.ends_with('.') || !name.bytes().all(allowed) {
                    return None;
                }
                Named::Name(name)
            }
        };
        Some(Self(named))
    }

    /// The host of `HOST` or `HOST:PORT`, as a request has it.
    fn of_authority(authority: &str) -> Option<Self> {
        let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
        let host = match authority.rfind(']') {
            // The colons of an address are none before a port.
            Some(end) => {
                let (host, rest) = authority.split_at(end + 1);
                (rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port)).then_some(host)?
            }
            None => match authority.split_once(':') {
                Some((host, port)) => is_port(port).then_some(host)?,
                None => authority,
            },
        };
        Self::parse(host)
    }

    fn is_loopback(&self) -> bool {
        match &self.0 {
            Named::Address(address) => address.is_loopback(),
            Named::Name(name) => {
                name == "localhost" || name.ends_with(".localhost") || LOOPBACK_NAMES.contains(&name.as_str())
            }
        }
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Named::Address(address) => address.fmt(f),
            Named::Name(name) => f.write_str(name),
        }
    }
}

/// The hosts that a server answers for, beside loopback.
#[derive(Debug)]
pub(crate) struct Hosts {
    names: HashSet<HostName>,
    /// Whether a request for another host is refused.
    asked_for: bool,
}

impl Hosts {
    /// A server without a key on a loopback address trusts every client that reaches it, so it must check what they ask for.
    pub(crate) fn of(options: &ServerOptions) -> Self {
        let own = hostname::get().ok().and_then(|name| HostName::parse(name.to_str()?));
        Self {
            names: options.allowed_hosts.iter().cloned().chain(own).collect(),
            asked_for: options.address.ip().to_canonical().is_loopback() && !options.api_keys.are_asked_for(),
        }
    }

    /// The host that a request names, if it is none of these.
    ///
    /// The target of a request decides where it names a host, as RFC 9112 has it in section 3.2.2. A request that names none comes
    /// from no web page: browsers always name one.
    pub(crate) fn foreign_host(&self, uri: &Uri, headers: &HeaderMap) -> Option<String> {
        let in_target = uri.authority().map(|authority| authority.as_str().as_bytes());
        let in_header = headers.get_all(header::HOST).iter().map(|host| host.as_bytes());
        let named: Vec<&[u8]> = if let Some(target) = in_target { vec![target] } else { in_header.collect() };
        let foreign = named.into_iter().find(|named| !self.answer_for(named))?;
        Some(String::from_utf8_lossy(foreign).into_owned())
    }

    fn answer_for(&self, authority: &[u8]) -> bool {
        let host = str::from_utf8(authority).ok().and_then(HostName::of_authority);
        host.is_some_and(|host| host.is_loopback() || self.names.contains(&host))
    }
}

/// Lets requests pass that are for this server.
pub(crate) async fn check(State(hosts): State<Arc<Hosts>>, request: Request, next: Next) -> Response {
    match hosts.foreign_host(request.uri(), request.headers()).filter(|_| hosts.asked_for) {
        None => next.run(request).await,
        Some(foreign) => refusal(&foreign).into_response(),
    }
}

fn refusal(foreign: &str) -> ApiError {
    let shown: String = foreign.chars().take(100).collect();
    ApiError::new(
        StatusCode::FORBIDDEN,
        format!(
            "This server has no API key, and so answers only requests for this machine's own names, not for the host {shown:?}; \
             --allowed-host adds a name, --api-key asks for a key instead."
        ),
    )
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;
    use crate::keys::{ApiKey, ApiKeys};

    fn hosts() -> Hosts {
        let allowed_hosts = ["kaito.internal", "192.0.2.7"].map(|name| HostName::parse(name).unwrap()).into();
        Hosts::of(&ServerOptions { allowed_hosts, ..ServerOptions::default() })
    }

    #[test]
    fn loopback_and_named_hosts_are_answered_in_every_form() {
        let hosts = hosts();
        for host in [
            "localhost",
            "localhost:5000",
            "LOCALHOST",
            "LocalHost.:80",
            "localhost:",
            "a.localhost",
            "ip6-localhost:1",
            "127.0.0.1",
            "127.0.0.1:5000",
            "127.1.2.3",
            "127.1:80",
            "2130706433",
            "[::1]",
            "[::1]:5000",
            "[0:0:0:0:0:0:0:1]",
            "[::ffff:127.0.0.1]:5000",
            "kaito.internal",
            "KAITO.Internal.:443",
            "192.0.2.7:8080",
        ] {
            assert!(hosts.answer_for(host.as_bytes()), "{host}");
        }
        for host in [
            "",
            ":5000",
            ".",
            "evil.example",
            "evil.example:5000",
            "localhost.evil.example",
            "evil-localhost",
            "127.0.0.1.evil.example",
            "notlocalhost",
            "localhost..",
            "localhost@evil.example",
            "evil.example@localhost",
            "localhost:5000:5000",
            "localhost:x",
            "localhost/",
            "localhost evil.example",
            "localhost,evil.example",
            "[::1",
            "::1]",
            "[::1]x",
            "[::1]:x",
            "::1",
            "[::2]",
            "[evil]",
            "128.0.0.1",
            "0.0.0.0",
            "[::]",
            "10.0.0.1",
            "192.0.2.8",
            "kaito.internal.evil.example",
            "xkaito.internal",
        ] {
            assert!(!hosts.answer_for(host.as_bytes()), "{host}");
        }
        assert!(!hosts.answer_for(b"localhost\xff"));
        let own = hostname::get().unwrap().into_string().unwrap();
        assert!(hosts.answer_for(format!("{own}:5000").as_bytes()), "{own}");
    }

    #[test]
    fn the_target_of_a_request_goes_before_its_header() {
        let hosts = hosts();
        for (target, headers, foreign) in [
            ("/chat", &["localhost"][..], None),
            ("/chat", &["evil.example:80"], Some("evil.example:80")),
            ("/chat", &["localhost", "evil.example"], Some("evil.example")),
            ("/chat", &[], None),
            ("http://localhost:5000/chat", &["evil.example"], None),
            ("http://evil.example/chat", &["localhost"], Some("evil.example")),
            ("http://localhost@evil.example/chat", &["localhost"], Some("localhost@evil.example")),
        ] {
            let mut map = HeaderMap::new();
            for host in headers {
                map.append(header::HOST, HeaderValue::from_static(host));
            }
            let uri: Uri = target.parse().unwrap();
            assert_eq!(hosts.foreign_host(&uri, &map).as_deref(), foreign, "{target} {headers:?}");
        }
    }

    #[test]
    fn a_host_is_asked_for_on_loopback_without_a_key() {
        let keys = || ApiKeys::new(ApiKey::parse_all("secret").unwrap(), None).unwrap();
        for (address, api_keys, asked_for) in [
            ("127.0.0.1:0", ApiKeys::default(), true),
            ("127.9.9.9:0", ApiKeys::default(), true),
            ("[::1]:0", ApiKeys::default(), true),
            ("[::ffff:127.0.0.1]:0", ApiKeys::default(), true),
            ("0.0.0.0:0", ApiKeys::default(), false),
            ("[::]:0", ApiKeys::default(), false),
            ("192.0.2.1:0", ApiKeys::default(), false),
            ("127.0.0.1:0", keys(), false),
        ] {
            let options = ServerOptions { address: address.parse().unwrap(), api_keys, ..ServerOptions::default() };
            assert_eq!(Hosts::of(&options).asked_for, asked_for, "{address}");
        }
    }

    #[test]
    fn names_have_one_form() {
        for (text, name) in [
            ("Example.COM.", Some("example.com")),
            ("::1", Some("::1")),
            ("[::1]", Some("::1")),
            ("bücher.example", Some("xn--bcher-kva.example")),
            ("example.com:80", None),
            ("http://example.com", None),
            ("*", None),
            ("", None),
            ("a b", None),
        ] {
            assert_eq!(HostName::parse(text).map(|name| name.to_string()).as_deref(), name, "{text}");
        }
    }
}
