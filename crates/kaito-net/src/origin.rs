//! Where credentials may go.

use url::Url;

/// Whether two addresses are on the same host, by the same scheme and port. Credentials for one are sent only to such others.
pub fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme() && a.host() == b.host() && a.port_or_known_default() == b.port_or_known_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        for (a, b, same) in [
            ("https://r.test/a", "https://r.test:443/b?c", true),
            ("https://R.test/a", "https://r.test", true),
            ("http://r.test/a", "https://r.test/a", false),
            ("https://r.test/a", "https://cdn.r.test/a", false),
            ("https://r.test/a", "https://r.test.evil/a", false),
            ("http://127.0.0.1:80/a", "http://127.0.0.1:81/a", false),
            ("http://[::1]:5000/a", "http://[0:0::1]:5000/b", true),
        ] {
            assert_eq!(same_origin(&a.parse().unwrap(), &b.parse().unwrap()), same, "{a} {b}");
        }
    }
}
