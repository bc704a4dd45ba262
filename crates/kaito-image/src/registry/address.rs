//! From the name of an image to where it is asked for.

use std::net::{Ipv4Addr, Ipv6Addr};

pub use oci_spec::distribution::Reference;
use oci_spec::{distribution::ParseError, image::Digest};
use url::{Host, Url};

use super::Error;

/// Longer names are no names: 255 characters for registry and repository, 128 for a tag, 136 for the longest digest.
const MAX_LENGTH: usize = 1024;

/// Reads the name of an image as Docker does: `[HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]`, with Docker Hub where no host
/// is named and `latest` where neither tag nor digest is. An IPv6 address stands in brackets.
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
    let reference = if text.starts_with('[') {
        with_ipv6_registry(text).map_err(error)?
    } else {
        text.parse().map_err(|cause| error(complaint(text, &cause)))?
    };
    if let Some(digest) = reference.digest() {
        digest.parse::<Digest>().map_err(|cause| error(cause.to_string()))?;
    }
    Ok(reference)
}

/// What is wrong with a name that could not be read.
fn complaint(text: &str, cause: &ParseError) -> String {
    let name = text.split('@').next().unwrap_or_default();
    let tag_at = name.rfind(':').filter(|&colon| name.rfind('/').is_none_or(|slash| slash < colon));
    let (name, tag) = name.split_at(tag_at.unwrap_or(name.len()));
    let lower = format!("{}{tag}", name.to_lowercase());
    if name.chars().any(char::is_uppercase) && lower.parse::<Reference>().is_ok() {
        return format!("repositories are written in lower case: {lower:?}");
    }
    // `2001:db8::1/x`: what a colon means there nobody can know.
    let host = name.split('/').next().unwrap_or_default();
    if host.parse::<Ipv6Addr>().is_ok() {
        return format!("an IPv6 address stands in brackets: \"[{host}]{}\"", &text[host.len()..]);
    }
    cause.to_string()
}

/// Reads a name that begins with a registry at an IPv6 address, which the parser of `oci-spec` does not know. The address
/// is kept in its shortest form, so that one registry has one name.
fn with_ipv6_registry(text: &str) -> Result<Reference, String> {
    let (host_and_port, rest) = text.split_once('/').ok_or("no repository follows the registry")?;
    let registry = ipv6_registry(host_and_port)?;
    // What follows the registry is read as it is after any other.
    let under = format!("localhost/{rest}");
    let read: Reference = under.parse().map_err(|cause| complaint(&under, &cause).replace("localhost/", ""))?;
    let repository = read.repository().to_owned();
    Ok(match (read.tag(), read.digest()) {
        (Some(tag), Some(digest)) => {
            Reference::with_tag_and_digest(registry, repository, tag.to_owned(), digest.to_owned())
        }
        (None, Some(digest)) => Reference::with_digest(registry, repository, digest.to_owned()),
        (tag, None) => Reference::with_tag(registry, repository, tag.unwrap_or("latest").to_owned()),
    })
}

/// `[ADDRESS]` or `[ADDRESS]:PORT`, with the address in its shortest form.
pub(super) fn ipv6_registry(host_and_port: &str) -> Result<String, String> {
    let inside = host_and_port.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let (address, port) = inside.ok_or_else(|| format!("{host_and_port:?} lacks a closing bracket"))?;
    if let Some((_, zone)) = address.split_once('%') {
        return Err(format!(
            "registries are not named with a zone, as {zone:?} is, which means something on one machine alone"
        ));
    }
    // The grammar of references has hexadecimal digits alone.
    let read = address.parse::<Ipv6Addr>().ok().filter(|_| !address.contains('.'));
    let read = read.ok_or_else(|| format!("{address:?} is no IPv6 address of hexadecimal digits and colons"))?;
    let [a, b, c, d, e, f, g, h] = read.segments();
    let short = match read.to_string() {
        // An IPv4 address within is written with dots, which could not be read again.
        text if text.contains('.') => format!("{a:x}:{b:x}:{c:x}:{d:x}:{e:x}:{f:x}:{g:x}:{h:x}"),
        text => text,
    };
    match port.strip_prefix(':') {
        None if port.is_empty() => Ok(format!("[{short}]")),
        Some(number) if number.bytes().all(|byte| byte.is_ascii_digit()) => match number.parse::<u16>() {
            Ok(number) if number > 0 => Ok(format!("[{short}]:{number}")),
            _ => Err(format!("{number:?} is no port; ports go from 1 to 65535")),
        },
        _ => Err(format!("{port:?} after the address is no port")),
    }
}

/// Where a registry is asked. Plain HTTP is for those of which the user says so and, unless they are said to have a
/// certificate, for registries on this machine.
pub(super) fn base_url(reference: &Reference, plain_http: bool, certified: bool) -> Result<Url, Error> {
    let host = match reference.resolve_registry() {
        // The name that credentials are kept under is not the name of the registry.
        "index.docker.io" => "registry-1.docker.io",
        host => host,
    };
    let url = |scheme: &str| {
        Url::parse(&format!("{scheme}://{host}/"))
            .map_err(|cause| Error::Reference { text: reference.to_string(), cause: format!("{host}: {cause}") })
    };
    let encrypted = url("https")?;
    if plain_http || is_this_machine(&encrypted) && !certified { url("http") } else { Ok(encrypted) }
}

/// Whether it is asked on this machine itself.
pub(super) fn is_this_machine(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => {
            address.is_loopback() || address.to_ipv4_mapped().as_ref().is_some_and(Ipv4Addr::is_loopback)
        }
        None => false,
    }
}

/// A `Location`, resolved against the address that answered with it. Query parameters stay as they are: they may
/// hold the state of an upload.
pub(super) fn resolve(base: &Url, location: &str) -> Result<Url, Error> {
    let error = |what: String| Error::Protocol { url: base.to_string(), what };
    let mut target = base.join(location).map_err(|cause| error(format!("refers to {location:?}: {cause}")))?;
    let port = target.port_or_known_default();
    if is_this_machine(base) && is_this_machine(&target) && base.port_or_known_default() == port {
        // One place has several names here, of which a certificate or a user's entry may know one alone.
        target
            .set_host(base.host_str())
            .map_err(|cause| error(format!("refers to {target}, which is no other address of it: {cause}")))?;
    }
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
        let ipv6_with_digest = format!("[::1]:5000/a/b:v1@{DIGEST}");
        let ipv6_by_digest = format!("[0:0:0:0:0:0:0:1]:5000/a@{DIGEST}");
        for (text, registry, repository, tag, digest) in [
            ("phi-3", "docker.io", "library/phi-3", Some("latest"), None),
            ("team/phi-3:v2", "docker.io", "team/phi-3", Some("v2"), None),
            ("localhost/phi-3", "localhost", "phi-3", Some("latest"), None),
            ("localhost:5000/a/b/c:0.1", "localhost:5000", "a/b/c", Some("0.1"), None),
            ("registry.example.com/m__n", "registry.example.com", "m__n", Some("latest"), None),
            ("10.0.0.1:5000/x", "10.0.0.1:5000", "x", Some("latest"), None),
            ("[::1]/x", "[::1]", "x", Some("latest"), None),
            ("[2001:DB8:0::1]:5000/team/phi-3:v2", "[2001:db8::1]:5000", "team/phi-3", Some("v2"), None),
            (ipv6_with_digest.as_str(), "[::1]:5000", "a/b", Some("v1"), Some(DIGEST)),
            (ipv6_by_digest.as_str(), "[::1]:5000", "a", None, Some(DIGEST)),
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
            ("[::1]:5000", "no repository follows"),
            ("[::1/a", "closing bracket"),
            ("[::g]/a", "no IPv6 address"),
            ("[127.0.0.1]/a", "no IPv6 address"),
            ("[::ffff:127.0.0.1]/a", "no IPv6 address"),
            ("[]/a", "no IPv6 address"),
            ("[fe80::1%eth0]:5000/a", "zone"),
            ("[::1]:0/a", "ports go from 1"),
            ("[::1]:65536/a", "ports go from 1"),
            ("[::1]:/a", "no port"),
            ("[::1]5000/a", "no port"),
            ("[::1]:5000/Team/a", "lower case: \"team/a\""),
            ("[::1]:5000/a:", "invalid reference format"),
            ("2001:db8::1/a:1", "in brackets: \"[2001:db8::1]/a:1\""),
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
            ("registry.localhost:5000/a", false, false, "http://registry.localhost:5000/"),
            ("[::1]:5000/a", false, false, "http://[::1]:5000/"),
            ("[::1]/a", false, true, "https://[::1]/"),
            ("[::ffff:7f00:1]:5000/a", false, false, "http://[::ffff:7f00:1]:5000/"),
            ("[2001:db8::1]:5000/a", false, false, "https://[2001:db8::1]:5000/"),
            ("[2001:db8::1]:5000/a", true, false, "http://[2001:db8::1]:5000/"),
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
        for (base, location, target) in [
            ("https://localhost:5000/v2/", "https://127.0.0.1:5000/u?x=1", "https://localhost:5000/u?x=1"),
            ("https://localhost:5000/v2/", "http://[::1]:5000/u", "https://localhost:5000/u"),
            ("http://[::1]:5000/v2/", "http://localhost:5000/u", "http://[::1]:5000/u"),
            ("http://localhost:5000/v2/", "http://127.0.0.1:9000/u", "http://127.0.0.1:9000/u"),
            ("http://localhost:5000/v2/", "http://r.test:5000/u", "http://r.test:5000/u"),
        ] {
            assert_eq!(resolve(&base.parse().unwrap(), location).unwrap().as_str(), target, "{base} {location}");
        }
        let upload = with_query(&"https://r.test/u?_state=a%3D%2Fb".parse().unwrap(), "digest", DIGEST);
        assert_eq!(upload.as_str(), format!("https://r.test/u?_state=a%3D%2Fb&digest={}", DIGEST.replace(':', "%3A")));
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
        fn near_ipv6_registries_too(host in "\\[[0-9a-fA-F:.%]{0,20}\\]?(:[0-9]{0,6})?", rest in "/[a-z/:]{0,10}") {
            if let Ok(reference) = parse_reference(&format!("{host}{rest}")) {
                prop_assert!(parse_reference(&reference.to_string()).is_ok_and(|again| again == reference), "{reference}");
                prop_assert!(base_url(&reference, false, false).is_ok(), "{reference}");
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
