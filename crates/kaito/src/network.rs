//! Where to listen.

use std::{
    env,
    net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs},
    path::Path,
};

use anyhow::Context;

/// The address for `--host` and `--port`. Without a host: this machine only, or, in a container, whose network is its
/// own, every address.
pub fn address(host: Option<&str>, port: u16) -> anyhow::Result<SocketAddr> {
    match host {
        None => Ok(SocketAddr::new(default_host(in_container(&|path| Path::new(path).exists(), &is_set)), port)),
        Some(host) => {
            (host, port).to_socket_addrs().ok().and_then(|mut addresses| addresses.next()).with_context(|| {
                format!("--host {host:?} is neither an IP address nor a name that this machine can resolve")
            })
        }
    }
}

fn default_host(in_container: bool) -> IpAddr {
    if in_container { Ipv4Addr::UNSPECIFIED.into() } else { Ipv4Addr::LOCALHOST.into() }
}

/// Docker and Podman leave a file, Kubernetes sets a variable.
fn in_container(exists: &dyn Fn(&str) -> bool, is_set: &dyn Fn(&str) -> bool) -> bool {
    exists("/.dockerenv") || exists("/run/.containerenv") || is_set("KUBERNETES_SERVICE_HOST")
}

fn is_set(variable: &str) -> bool {
    env::var_os(variable).is_some_and(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_container_listens_to_the_world_by_default() {
        for (file, variable, container) in [
            (None, None, false),
            (Some("/.dockerenv"), None, true),
            (Some("/run/.containerenv"), None, true),
            (None, Some("KUBERNETES_SERVICE_HOST"), true),
        ] {
            assert_eq!(in_container(&|path| Some(path) == file, &|name| Some(name) == variable), container);
        }
        assert_eq!(default_host(false).to_string(), "127.0.0.1");
        assert_eq!(default_host(true).to_string(), "0.0.0.0");
    }

    #[test]
    fn hosts_are_addresses_or_names() {
        assert_eq!(address(Some("127.0.0.1"), 80).unwrap().to_string(), "127.0.0.1:80");
        assert_eq!(address(Some("::1"), 80).unwrap().to_string(), "[::1]:80");
        assert!(address(Some("localhost"), 80).unwrap().ip().is_loopback());
        let error = address(Some("no such host"), 80).unwrap_err().to_string();
        assert!(error.contains("no such host"), "{error}");
    }
}
