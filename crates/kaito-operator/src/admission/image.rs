//! References to images: `registry.example:5000/team/model:1@sha256:...`, `[2001:db8::5]:5000/team/model:1`.

use std::net::Ipv6Addr;

/// A reference that a kubelet can pull.
#[derive(Debug, PartialEq, Eq)]
pub struct Reference {
    /// Whether it has a tag or a digest.
    pub is_precise: bool,
}

/// Longest name that registries take, without tag and digest.
const LONGEST: usize = 255;
/// Longest tag.
const LONGEST_TAG: usize = 128;

/// Reads a reference.
///
/// # Errors
///
/// What is wrong with it.
pub fn read(text: &str) -> Result<Reference, String> {
    let (rest, digest) = match text.split_once('@') {
        None => (text, None),
        Some((rest, digest)) => (rest, Some(digest)),
    };
    // A colon after the last slash begins a tag; one before it, a port.
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    let refused = |why: &str| Err(format!("{text:?} is not a reference to an image: {why}"));
    if name.is_empty() {
        return refused("it names no repository; one is like registry.example/name:tag");
    }
    if text.contains(['<', '>', '$', '{', '}']) {
        return refused("it looks like a placeholder; put your image there, like registry.example/name:tag");
    }
    if text.contains(char::is_whitespace) {
        return refused("there is a space in it");
    }
    if name.contains("://") {
        return refused("it begins with the registry, without https://");
    }
    if name.len() > LONGEST {
        return refused("its name is longer than 255 characters");
    }
    let (registry, path) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':', '[']) || first == "localhost" => (Some(first), rest),
        _ => (None, name),
    };
    if let Some(registry) = registry.filter(|registry| !is_registry(registry)) {
        let brackets = if registry.parse::<Ipv6Addr>().is_ok() || registry.matches(':').count() > 1 {
            "; an IPv6 address stands in brackets and without a zone, like [2001:db8::5]:5000"
        } else {
            ""
        };
        return refused(&format!("{registry:?} is not a host with an optional port{brackets}"));
    }
    if let Some(part) = path.split('/').find(|part| !is_component(part)) {
        return refused(&format!(
            "{part:?} is not a part of a repository's name: lower-case letters and digits, with single dots, underscores or \
             hyphens between"
        ));
    }
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return refused("a tag is at most 128 letters, digits, underscores, dots and hyphens");
    }
    if digest.is_some_and(|digest| !is_digest(digest)) {
        return refused("a digest is sha256: and 64 hexadecimal digits");
    }
    Ok(Reference { is_precise: tag.is_some() || digest.is_some() })
}

/// Whether this is a host, with a port or without: a name, or an address; one of IPv6 in brackets.
pub fn is_registry(text: &str) -> bool {
    let is_port =
        |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
    if let Some((address, rest)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        // Container runtimes read neither a zone nor a dotted IPv4 part in brackets.
        let is_address = address.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':');
        return is_address
            && address.parse::<Ipv6Addr>().is_ok()
            && (rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port));
    }
    let (host, port) = match text.split_once(':') {
        None => (text, None),
        Some((host, port)) => (host, Some(port)),
    };
    let is_label = |part: &str| {
        !part.is_empty()
            && !part.starts_with('-')
            && !part.ends_with('-')
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    host.split('.').all(is_label) && port.is_none_or(is_port)
}

fn is_component(text: &str) -> bool {
    let is_letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separators = text.split(is_letter).filter(|run| !run.is_empty());
    text.starts_with(is_letter)
        && text.ends_with(is_letter)
        && separators.into_iter().all(|run| matches!(run, "." | "_" | "__") || run.bytes().all(|byte| byte == b'-'))
}

/// Whether an image can have this tag.
pub fn is_tag(text: &str) -> bool {
    text.len() <= LONGEST_TAG
        && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for (text, expected) in [
            ("llama", Some(false)),
            ("llama:1", Some(true)),
            ("team/llama_2-7b:v1.0", Some(true)),
            ("registry.example/llama", Some(false)),
            ("registry.example:5000/llama", Some(false)),
            ("localhost:5000/llama:1", Some(true)),
            ("localhost/llama", Some(false)),
            ("Registry.Example/llama:1", Some(true)),
            ("a__b/c--d:1", Some(true)),
            (&*format!("registry.example/llama@{digest}"), Some(true)),
            (&*format!("registry.example/llama:1@{digest}"), Some(true)),
            ("[::1]:5000/llama:1", Some(true)),
            ("[2001:db8::5]/team/llama", Some(false)),
            ("[2001:DB8::5]:5000/team/llama:1", Some(true)),
            (&*format!("[::1]:5000/llama@{digest}"), Some(true)),
            ("192.0.2.7:5000/llama:1", Some(true)),
            ("[::1]/llama", Some(false)),
            ("[::1]:0/llama:1", None),
            ("[::1]:/llama:1", None),
            ("[::1]:+80/llama:1", None),
            ("[::1]5000/llama:1", None),
            ("[::1/llama:1", None),
            ("::1/llama:1", None),
            ("2001:db8::5/llama:1", None),
            ("[fe80::1%eth0]:5000/llama:1", None),
            ("[::ffff:192.0.2.7]:5000/llama:1", None),
            ("[1:2]:5000/llama:1", None),
            ("[]:5000/llama:1", None),
            ("[registry.example]/llama:1", None),
            ("[::1]:5000", None),
            ("[::1]", None),
            ("registry.example:+5000/llama", None),
            ("registry.example/llama@sha256:12", None),
            ("registry.example/llama@md5:12", None),
            ("registry.example:port/llama", None),
            ("registry.example:0/llama", None),
            ("registry_1.example/llama", None),
            ("registry.example/Llama", None),
            ("registry.example//llama", None),
            ("registry.example/llama:", None),
            ("registry.example/llama:-1", None),
            ("a___b", None),
            ("a._b", None),
            (":1", None),
            ("", None),
            ("https://registry.example/llama", None),
            ("<YOUR IMAGE URL>", None),
            ("$REGISTRY/llama:1", None),
            (&*"a".repeat(256), None),
            (&*format!("a:{}", "b".repeat(129)), None),
        ] {
            assert_eq!(read(text).ok().map(|reference| reference.is_precise), expected, "{text:?} {:?}", read(text));
        }
    }

    #[test]
    fn an_ipv6_address_without_brackets_is_told_how_to_write_it() {
        for text in ["::1/llama:1", "2001:db8::5/llama", "[fe80::1%eth0]/llama:1"] {
            let problem = read(text).unwrap_err();
            assert!(problem.contains("like [2001:db8::5]:5000"), "{problem}");
        }
        assert!(!read("registry.example:port/llama").unwrap_err().contains("IPv6"));
    }

    proptest::proptest! {
        #[test]
        fn any_ipv6_address_of_a_registry_is_taken(address: std::net::Ipv6Addr, port in 1..=u16::MAX) {
            proptest::prop_assume!(!address.to_string().contains('.'));
            for text in [format!("[{address}]:{port}/team/llama:1"), format!("[{address}]/llama:1")] {
                proptest::prop_assert_eq!(read(&text), Ok(Reference { is_precise: true }));
            }
        }

        #[test]
        fn any_text_gets_an_answer(text in ".*") {
            let _ = read(&text);
        }

        #[test]
        fn what_registries_take_is_taken(text in "([a-z]+\\.example(:[1-9][0-9]{0,3})?/)?[a-z0-9]+([._-][a-z0-9]+)?(/[a-z0-9]+){0,3}:[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}") {
            proptest::prop_assert_eq!(read(&text), Ok(Reference { is_precise: true }));
        }
    }
}
