//! From the name of an image to where it is asked for.

use std::net::IpAddr;

pub use oci_spec::distribution::Reference;
use oci_spec::image::Digest;
use url::Url;

use super::Error;

/// Longer names are no names: 255 characters for registry and repository, 128 for a tag, 136 for the longest digest.
const MAX_LENGTH: usize = 1024;

/// Reads the name of an image as Docker does: `[HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]`, with Docker Hub where no host
/// is named and `latest` where neither tag nor digest is.
///
/// # Errors
/// When it is none.
pub fn parse_reference(text: &str) -> Result<Reference, Error> {
    let error = |cause: String| Error::Reference { text: text.chars().take(MAX_LENGTH).collect(), cause };
    if text.len() > MAX_LENGTH {
        return Err(error(format!("it has {} characters, {MAX_LENGTH} are the most", text.len())));
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        return Err(error(format!("it begins with {scheme}://; write {rest:?}")));
    }
    let reference: Reference = text.parse().map_err(|cause: oci_spec::distribution::ParseError| {
        let name = text.split('@').next().unwrap_or_default();
        let tag_at = name.rfind(':').filter(|&colon| name.rfind('/').is_none_or(|slash| slash < colon));
        let (name, tag) = name.split_at(tag_at.unwrap_or(name.len()));
        let lower = format!("{}{tag}", name.to_lowercase());
        let wrong_case = name.chars().any(char::is_uppercase) && lower.parse::<Reference>().is_ok();
        error(if wrong_case { format!("repositories are written in lower case: {lower:?}") } else { cause.to_string() })
    })?;
    if let Some(digest) = reference.digest() {
        digest.parse::<Digest>().map_err(|cause| error(cause.to_string()))?;
    }
    Ok(reference)
}

/// Where a registry is asked. Plain HTTP is for those of which the user says so and, unless they are said to have a
/// certificate, for registries on this machine.
pub(super) fn base_url(reference: &Reference, plain_http: bool, certified: bool) -> Result<Url, Error> {
    let host = match reference.resolve_registry() {
        // The name that credentials are kept under is not the name of the registry.
        "index.docker.io" => "registry-1.docker.io",
        host => host,
    };
    let scheme = if plain_http || is_this_machine(host) && !certified { "http" } else { "https" };
    Url::parse(&format!("{scheme}://{host}/"))
        .map_err(|cause| Error::Reference { text: reference.to_string(), cause: format!("{host}: {cause}") })
}

fn is_this_machine(host_and_port: &str) -> bool {
    let host = host_and_port.split(':').next().unwrap_or_default();
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether two addresses are on the same host, by the same scheme and port: only there credentials are shown.
pub(super) fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme() && a.host() == b.host() && a.port_or_known_default() == b.port_or_known_default()
}

/// A `Location`, resolved against the address that answered with it. Query parameters stay as they are: they may
/// hold the state of an upload.
pub(super) fn resolve(base: &Url, location: &str) -> Result<Url, Error> {
    let error = |what: String| Error::Protocol { url: base.to_string(), what };
    let mut target = base.join(location).map_err(|cause| error(format!("refers to {location:?}: {cause}")))?;
    if base.scheme() == "https" && target.scheme() == "http" {
        // A registry behind a proxy that ends TLS may not know by which scheme it is asked.
        if base.host() != target.host() {
            return Err(error(format!("refers to {target}, which is not encrypted")));
        }
        let port = base.port();
        if target.set_scheme("https").is_err() || target.set_port(port).is_err() {
            return Err(error(format!("refers to {target}, which is not encrypted")));
        }
    }
    if !matches!(target.scheme(), "http" | "https") {
        return Err(error(format!("refers to {target}, which is neither http nor https")));
    }
    Ok(target)
}

/// The address, with a parameter more.
pub(super) fn with_query(url: &Url, key: &str, value: &str) -> Url {
    let mut url = url.clone();
    url.query_pairs_mut().append_pair(key, value);
    url
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    /// As the reference grammar of github.com/distribution/reference has it.
    #[test]
    fn names_are_read_as_docker_reads_them() {
        let with_digest = format!("ghcr.io/a/b:v1@{DIGEST}");
        for (text, registry, repository, tag, digest) in [
            ("phi-3", "docker.io", "library/phi-3", Some("latest"), None),
            ("team/phi-3:v2", "docker.io", "team/phi-3", Some("v2"), None),
            ("localhost/phi-3", "localhost", "phi-3", Some("latest"), None),
            ("localhost:5000/a/b/c:0.1", "localhost:5000", "a/b/c", Some("0.1"), None),
            ("registry.example.com/m__n", "registry.example.com", "m__n", Some("latest"), None),
            ("10.0.0.1:5000/x", "10.0.0.1:5000", "x", Some("latest"), None),
            (with_digest.as_str(), "ghcr.io", "a/b", Some("v1"), Some(DIGEST)),
        ] {
            let reference = parse_reference(text).unwrap();
            assert_eq!((reference.registry(), reference.repository()), (registry, repository), "{text}");
            assert_eq!((reference.tag(), reference.digest()), (tag, digest), "{text}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused_with_what_to_write() {
        let upper_digest = format!("a@{}", DIGEST.replace("ba78", "BA78"));
        for (text, says) in [
            ("", "at least one component"),
            ("https://ghcr.io/a/b", "write \"ghcr.io/a/b\""),
            ("ghcr.io/Team/Phi:V1", "lower case: \"ghcr.io/team/phi:V1\""),
            ("a b", "invalid reference format"),
            ("a:", "invalid reference format"),
            ("a@sha256:12", "invalid reference format"),
            ("a@sha256:00112233445566778899aabbccddeeff", "invalid checksum digest length"),
            (upper_digest.as_str(), "hexadecimal"),
        ] {
            let error = parse_reference(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
        let error = parse_reference(&"a".repeat(5000)).unwrap_err().to_string();
        assert!(error.contains("5000 characters") && error.len() < 1200, "{error}");
    }

    #[test]
    fn registries_of_this_machine_have_no_certificate() {
        for (text, plain_http, certified, base) in [
            ("localhost:5000/a", false, false, "http://localhost:5000/"),
            ("localhost:5000/a", false, true, "https://localhost:5000/"),
            ("127.0.0.1:5000/a", false, false, "http://127.0.0.1:5000/"),
            ("127.8.8.8/a", false, false, "http://127.8.8.8/"),
            ("localhost.example.com/a", false, false, "https://localhost.example.com/"),
            ("registry.local:5000/a", false, false, "https://registry.local:5000/"),
            ("registry.local:5000/a", true, true, "http://registry.local:5000/"),
            ("10.0.0.1:5000/a", false, false, "https://10.0.0.1:5000/"),
            ("phi-3", false, false, "https://registry-1.docker.io/"),
        ] {
            let reference = parse_reference(text).unwrap();
            assert_eq!(base_url(&reference, plain_http, certified).unwrap().as_str(), base, "{text}");
        }
    }

    #[test]
    fn locations_are_resolved_and_never_lose_encryption() {
        let base: Url = "https://r.test:5000/v2/a/blobs/uploads/?x=1".parse().unwrap();
        for (location, target) in [
            (
                "/v2/a/blobs/uploads/1?_state=a%3D%2Fb-c",
                Ok("https://r.test:5000/v2/a/blobs/uploads/1?_state=a%3D%2Fb-c"),
            ),
            ("1?y=2", Ok("https://r.test:5000/v2/a/blobs/uploads/1?y=2")),
            ("https://store.test/u?sig=A+B", Ok("https://store.test/u?sig=A+B")),
            ("http://r.test/u", Ok("https://r.test:5000/u")),
            ("http://r.test:5000/u", Ok("https://r.test:5000/u")),
            ("http://store.test/u", Err("not encrypted")),
            ("ftp://store.test/u", Err("neither http nor https")),
            ("https://:", Err("refers to")),
        ] {
            match (resolve(&base, location), target) {
                (Ok(found), Ok(target)) => assert_eq!(found.as_str(), target),
                (Err(error), Err(says)) => assert!(error.to_string().contains(says), "{error}"),
                (found, _) => panic!("{location}: {found:?}"),
            }
        }
        let upload = with_query(&"https://r.test/u?_state=a%3D%2Fb".parse().unwrap(), "digest", DIGEST);
        assert_eq!(upload.as_str(), format!("https://r.test/u?_state=a%3D%2Fb&digest={}", DIGEST.replace(':', "%3A")));
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        for (a, b, same) in [
            ("https://r.test/a", "https://r.test:443/b?c", true),
            ("https://R.test/a", "https://r.test", true),
            ("http://r.test/a", "https://r.test/a", false),
            ("https://r.test/a", "https://cdn.r.test/a", false),
            ("http://127.0.0.1:80/a", "http://127.0.0.1:81/a", false),
        ] {
            assert_eq!(same_origin(&a.parse().unwrap(), &b.parse().unwrap()), same, "{a} {b}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,200}") {
            if let Ok(reference) = parse_reference(&text) {
                let again = parse_reference(&reference.to_string());
                prop_assert!(again.is_ok_and(|again| again == reference), "{reference}");
                prop_assert!(base_url(&reference, false, false).is_ok() || reference.registry().contains(':'), "{reference}");
            }
        }

        #[test]
        fn names_by_the_grammar_are_read(
            registry in "[a-z]{1,8}\\.[a-z]{2,3}(:[1-9][0-9]{1,3})?",
            repository in "[a-z0-9]{1,6}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,6}){0,3}",
            tag in "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}",
        ) {
            let reference = parse_reference(&format!("{registry}/{repository}:{tag}")).unwrap();
            prop_assert_eq!(reference.registry(), registry);
            prop_assert_eq!(reference.repository(), repository);
            prop_assert_eq!(reference.tag(), Some(tag.as_str()));
        }
    }
}
